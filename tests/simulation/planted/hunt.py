"""Plant each bug in turn and let the search look for it: how many seeds it needs."""

import argparse
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from tests.simulation.planted import commerce, dispatch, messaging, streaming

from fourplane import simulator
from fourplane.foundation.clock import MachineSource
from fourplane.simulator import experiment, search
from fourplane.simulator.experiments import Result

LIBRARY = Path(simulator.__file__).parent / "library"
SEEDS_MAX = 500
Plant = Callable[[pytest.MonkeyPatch], None]
PLANTS: dict[str, dict[Plant, str]] = {
    "streaming": streaming.PLANTS,
    "dispatch": dispatch.PLANTS,
    "commerce": commerce.PLANTS,
    "messaging": messaging.PLANTS,
}


class Hunted(msgspec.Struct, frozen=True):
    """What became of one planted bug."""

    system: str
    plant: str
    seed: int  # at which it was found, 0: not at all
    said: str
    cpu_s: float


def hunt(plant: Plant, name: str, *, seeds: int = SEEDS_MAX) -> Result | None:
    """The first seed that notices the planted bug; None when none of them does."""
    chosen = experiment.parse((LIBRARY / f"{name}.json").read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        return search.first_failure(chosen, range(1, seeds + 1))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("systems", nargs="*", default=list(PLANTS))
    parser.add_argument("--seeds", type=int, default=SEEDS_MAX)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    machine = MachineSource()
    for system in options.systems:
        for plant, name in PLANTS[system].items():
            if options.only not in plant.__name__:
                continue
            began = machine.cpu_s()
            found = hunt(plant, name, seeds=options.seeds)
            said = found.violations[0] if found is not None and found.violations else "the steady state does not hold"
            seed = 0 if found is None else found.seed
            hunted = Hunted(
                system, plant.__name__, seed, said if seed else "not found", round(machine.cpu_s() - began, 1)
            )
            print(msgspec.json.encode(hunted).decode(), flush=True)  # noqa: T201 - what a hunt says


if __name__ == "__main__":
    main()

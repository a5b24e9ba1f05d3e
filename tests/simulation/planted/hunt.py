"""Plant each bug in turn and let the search look for it: how many seeds it needs.

    PYTHONHASHSEED=0 python -m tests.simulation.planted.hunt [SYSTEM | PLANT ...] [--seeds 500] [--cpu-s 60] [--file FOUND.jsonl]

A hunt ends at its bound of seeds or of CPU seconds. With --file it goes on where it was broken off: what the file tells is not
looked for again.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
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
CPU_S_MAX = 60.0
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
    seeds: int  # looked at
    said: str
    cpu_s: float


def hunt(plant: Plant, name: str, *, seeds: int = SEEDS_MAX) -> Result | None:
    """The first seed that notices the planted bug; None when none of them does."""
    return _look(plant, name, iter(range(1, seeds + 1)))


def _look(plant: Plant, name: str, seeds: Iterator[int]) -> Result | None:
    chosen = experiment.parse((LIBRARY / f"{name}.json").read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        return search.first_failure(chosen, seeds)


def hunted(system: str, plant: Plant, *, seeds: int, cpu_s: float) -> Hunted:
    """The same with a bound of CPU seconds between two seeds, and what it took."""
    machine, tried = MachineSource(), 0
    began = machine.cpu_s()

    def while_it_may() -> Iterator[int]:
        nonlocal tried
        while tried < seeds and machine.cpu_s() - began < cpu_s:
            tried += 1
            yield tried

    found = _look(plant, PLANTS[system][plant], while_it_may())
    spent = round(machine.cpu_s() - began, 1)
    if found is None:
        return Hunted(system, plant.__name__, 0, tried, "not found", spent)
    said = found.violations[0] if found.violations else "the steady state does not hold"
    return Hunted(system, plant.__name__, found.seed, tried, said, spent)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(PLANTS), help="systems, or parts of the names of planted bugs")
    parser.add_argument("--seeds", type=int, default=SEEDS_MAX)
    parser.add_argument("--cpu-s", type=float, default=CPU_S_MAX, help="for each planted bug")
    parser.add_argument("--file", type=Path, help="what was found, a line each; those in it are not looked for again")
    options = parser.parse_args()
    known = _known(options.file)
    for system, plants in PLANTS.items():
        for plant in plants:
            wanted = any(name == system or name in plant.__name__ for name in options.names)
            if not wanted or (system, plant.__name__) in known:
                continue
            one = hunted(system, plant, seeds=options.seeds, cpu_s=options.cpu_s)
            known[system, plant.__name__] = one
            line = msgspec.json.encode(one).decode()
            print(line, flush=True)  # noqa: T201 - what a hunt says
            if options.file:
                with options.file.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
    seeds = [one.seed for one in known.values() if one.seed]
    if seeds:
        told = (
            f"{len(seeds)} of {len(known)} found, seeds needed: median {statistics.median(seeds):g}, most {max(seeds)}"
        )
        print(told)  # noqa: T201 - what a hunt says


def _known(path: Path | None) -> dict[tuple[str, str], Hunted]:
    if path is None or not path.is_file():
        return {}
    told = [msgspec.json.decode(line, type=Hunted) for line in path.read_bytes().splitlines() if line]
    return {(one.system, one.plant): one for one in told}


if __name__ == "__main__":
    main()

"""Experiments that nobody wrote: the seed draws how many faults there are, which, when, for how long and whom they meet.

Swarm testing leaves most kinds of faults out of each run, because faults hide each other's bugs: a process that is dead half of
the time never meets a slow disk. So a seed first draws the kinds it uses (one to three), then when they happen. What comes
out is an ordinary experiment, which can be written to a file, shrunk and run again.
Source: Groce, Zhang, Eide, Chen, Regehr, "Swarm Testing", 2012.
"""

from collections.abc import Callable
from random import Random
from typing import Any

from fourplane.simulator.experiment import Experiment, validate
from fourplane.simulator.setting import EXTENSION

KINDS_MAX = 3
FAULTS_MAX = 6
DURATION_S = 30.0
ZONES = ("eu-a", "eu-b", "us-a")
Draw = Callable[[Random], dict[str, Any]]


def _lasting(low_s: float, high_s: float) -> Draw:
    return lambda chance: {"duration_s": round(chance.uniform(low_s, high_s), 2)}


def _zone(chance: Random) -> dict[str, Any]:
    return {"zone": chance.choice(ZONES)}


def _share(chance: Random) -> dict[str, Any]:
    return {"percent": chance.choice((25, 50, 100)), **(_zone(chance) if chance.random() < 0.3 else {})}


FAULTS: dict[str, tuple[Draw, ...]] = {
    "instance_loss": (_lasting(0.5, 4.0),),
    "zone_loss": (_lasting(1.0, 6.0), _zone),
    "region_loss": (_lasting(1.0, 6.0), lambda chance: {"region": chance.choice(("eu", "us"))}),
    "latency": (
        _lasting(2.0, 8.0),
        _share,
        lambda chance: {"latency_s": round(chance.uniform(0.05, 1.5), 3), "jitter_s": round(chance.uniform(0, 0.5), 3)},
    ),
    "packet_loss": (_lasting(2.0, 8.0), _share, lambda chance: {"share": round(chance.uniform(0.02, 0.4), 3)}),
    "narrow_link": (
        _lasting(2.0, 6.0),
        _share,
        lambda chance: {"bytes_per_s": chance.choice((2_000, 20_000, 100_000))},
    ),
    "partition": (_lasting(1.0, 14.0), _share, lambda chance: {"one_way": chance.random() < 0.5}),
    "disk_stall": (_lasting(1.0, 6.0), lambda chance: {"stall_s": round(chance.uniform(0.02, 1.0), 3)}),
    "disk_full": (_lasting(1.0, 4.0), lambda chance: {"free_bytes": chance.choice((0, 5_000, 50_000))}),
    "disk_sync_failure": (_lasting(1.0, 4.0),),
    "clock_skew": (_lasting(2.0, 10.0), lambda chance: {"skew_s": round(chance.uniform(-30, 30), 2)}),
    "slow_dependency": (_lasting(2.0, 10.0), lambda chance: {"delay_s": round(chance.uniform(0.2, 9.0), 2)}),
    "retry_storm": (_lasting(1.0, 4.0), lambda chance: {"factor": chance.choice((3.0, 10.0))}),
}
BETWEEN_SITES: tuple[Draw, ...] = (_lasting(1.0, 12.0), _zone, lambda chance: {"one_way": chance.random() < 0.5})
NEEDS_PAYMENTS = frozenset({"slow_dependency"})


def draw(
    system: str, seed: int, *, people: int = 12, duration_s: float = DURATION_S, sites: tuple[str, ...] = ()
) -> Experiment:
    """The experiment of a seed for one system; the same seed draws the same one. At several sites these may be parted too."""
    faults = FAULTS | ({"service_partition": BETWEEN_SITES} if sites else {})
    chance = Random(f"swarm of {system} {seed}")
    known = sorted(faults if system in {"commerce", "dispatch"} else faults.keys() - NEEDS_PAYMENTS)
    kinds = chance.sample(known, chance.randint(1, KINDS_MAX))
    count = chance.randint(len(kinds), FAULTS_MAX)
    chosen = kinds + [chance.choice(kinds) for _ in range(count - len(kinds))]
    chance.shuffle(chosen)
    cuts = sorted(chance.uniform(0, duration_s * 0.7) for _ in chosen)
    method, before_s = [], 0.0
    for kind, at_s in zip(chosen, cuts, strict=True):
        arguments: dict[str, Any] = {}
        for part in faults[kind]:
            arguments |= part(chance)
        if sites:
            arguments = _moved(arguments, sites)
        method.append(_activity(kind, arguments, round(at_s - before_s, 2)))
        before_s = at_s
    return validate(
        {
            "title": f"{system}: swarm {seed}, {', '.join(sorted(kinds)).replace('_', ' ')}",
            "description": "Faults drawn by the seed; every promise must be kept, and the steady state must come back.",
            "tags": [system, "swarm"],
            "steady-state-hypothesis": {"title": f"{system} serves", "probes": [_up(), _served()]},
            "method": method,
            "rollbacks": [_activity("undo_all", {}, 0.0)],
            "extensions": [
                {"name": EXTENSION, "system": system, "people": people, "duration_s": duration_s}
                | ({"sites": list(sites)} if sites else {})
            ],
        }
    )


def _moved(arguments: dict[str, Any], sites: tuple[str, ...]) -> dict[str, Any]:
    """The same where the system stands: zones and regions that were drawn are those of its sites."""
    places = {zone: sites[number % len(sites)] for number, zone in enumerate(ZONES)}
    if "zone" in arguments:
        return arguments | {"zone": places[arguments["zone"]]}
    if "region" in arguments:
        return arguments | {"region": sites[0 if arguments["region"] == "eu" else -1].partition("-")[0]}
    return arguments


def _activity(func: str, arguments: dict[str, Any], before_s: float) -> dict[str, Any]:
    provider = {"type": "python", "module": "fourplane.simulator.faults", "func": func, "arguments": arguments}
    pauses = {"before": before_s, "after": 0}
    return {"type": "action", "name": func.replace("_", "-"), "provider": provider, "pauses": pauses}


def _probe(name: str, func: str, arguments: dict[str, Any], tolerance: Any) -> dict[str, Any]:
    provider = {"type": "python", "module": "fourplane.simulator.probes", "func": func, "arguments": arguments}
    return {"type": "probe", "name": name, "tolerance": tolerance, "provider": provider}


def _up() -> dict[str, Any]:
    return _probe("it is up", "is_up", {}, True)


def _served() -> dict[str, Any]:
    wanted = {"type": "range", "range": [0.9, 1.0]}
    return _probe("nearly everything is served", "availability", {"window_s": 4.0}, wanted)

"""The simulator itself: messages, connections and timers per CPU second, experiments of real services per core and hour, the loss
of a region with ten thousand viewers, planted bugs that the search finds, and drivers alive in one run.

Everything here counts CPU seconds of one process on one core; `bare_loop_turns_per_cpu_s` says how fast the machine was.
"""

import argparse
import asyncio
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from fourplane.foundation import clock, network
from fourplane.foundation.clock import MachineSource
from fourplane.simulator import experiment, experiments, loop, swarm
from fourplane.simulator.crowds import Plan, Tally, Target
from fourplane.simulator.crowds.dispatch import DispatchCrowd
from fourplane.simulator.deployment import HTTP_PORT, SimulatedDeployment, Spot
from fourplane.simulator.setting import SYSTEMS
from fourplane.simulator.systems import FEED_PORT, RECIPES, stores_of

MESSAGE = b"x" * 100
REGIONS = ("eu-a", "us-a", "asia-a")
ROWS = (
    "messages_per_cpu_s", "connections_per_cpu_s", "timers_per_cpu_s", "bare_loop_turns_per_cpu_s", "short_form", "long_form",
    "region_loss", "drivers", "planted",
)  # fmt: skip
MACHINE = MachineSource()  # the clock of the machine: inside a world `clock` tells virtual time


class Echo(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Sender(asyncio.Protocol):
    """Sends what comes back until it has come back `left` times."""

    def __init__(self, left: int, ended: "asyncio.Queue[None]") -> None:
        self.left = left
        self.ended = ended

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.left -= 1
        if self.left:
            self.transport.write(data)
        else:
            self.ended.put_nowait(None)


def echo(connections: int, rounds: int) -> dict[str, float]:
    """Everybody sends, everybody answers: messages and connection set-ups per CPU second."""

    async def main(world: loop.World) -> dict[str, float]:
        with world.on("server", region="eu", zone="eu-1"):
            await network.listen(Echo, "server", 7)
        ended: asyncio.Queue[None] = asyncio.Queue()
        began = MACHINE.cpu_s()
        with world.on("client", region="eu", zone="eu-1"):
            senders = [
                (await network.connect(lambda: Sender(rounds, ended), "server", 7))[1] for _ in range(connections)
            ]
        connected = MACHINE.cpu_s()
        for sender in senders:
            sender.transport.write(MESSAGE)
        for _ in senders:
            await ended.get()
        spent = MACHINE.cpu_s() - connected
        return {"messages": 2 * connections * rounds / spent, "connections": connections / (connected - began)}

    return loop.run(main, 1).result


def timers(count: int) -> float:
    """Sleeps per CPU second, a hundred at a time."""

    async def sleeper(rounds: int) -> None:
        for _ in range(rounds):
            await clock.sleep(clock.random().random())

    async def main(_: loop.World) -> float:
        began = MACHINE.cpu_s()
        async with asyncio.TaskGroup() as group:
            for _ in range(100):
                group.create_task(sleeper(count // 100))
        return count / (MACHINE.cpu_s() - began)

    return loop.run(main, 1).result


def bare(count: int) -> float:
    """Turns of an empty loop per CPU second: how fast this machine is just now, for ratios."""
    began = MACHINE.cpu_s()
    for _ in range(count):
        pass
    return count / (MACHINE.cpu_s() - began)


def hourly(system: str, *, people: int, duration_s: float, seeds: int) -> dict[str, float]:
    """Seeded experiments per core and hour: real services, faults drawn by the seed, one deployment on one host.

    What a process does once (imports, the kernels' code, the map) is done before, by one experiment of a moment.
    """
    experiments.run(swarm.draw(system, 1, people=2, duration_s=1.0), 1)
    spent, served = [], 0
    for seed in range(1, seeds + 1):
        began = MACHINE.cpu_s()
        result = experiments.run(swarm.draw(system, seed, people=people, duration_s=duration_s), seed)
        spent.append(MACHINE.cpu_s() - began)
        served += result.felt["served"] + result.felt["failed"]
    return {"per_core_hour": 3_600 * seeds / sum(spent), "cpu_s": sum(spent) / seeds, "actions": served / seeds}


def region_loss(people: int, duration_s: float) -> dict[str, float]:
    """Three regions, a site in each with copies in the others; one is lost for a minute while all of them watch films."""
    chosen = swarm.draw("streaming", 1)
    lose = {"type": "action", "name": "region-loss", "pauses": {"before": 60, "after": 0}, "provider": {
        "type": "python", "module": "fourplane.simulator.faults", "func": "region_loss",
        "arguments": {"region": "eu", "duration_s": 60.0}}}  # fmt: skip
    ours = {"name": "x-fourplane", "system": "streaming", "people": people, "duration_s": duration_s, "every_s": 240.0}
    ours |= {"sites": list(REGIONS), "replicas": list(REGIONS)}
    whole = chosen.raw | {"title": "a region is lost", "method": [lose], "extensions": [ours]}
    began = MACHINE.cpu_s()
    result = experiments.run(experiment.validate(whole), 1)
    spent = MACHINE.cpu_s() - began
    felt = result.felt
    return {
        "cpu_s": spent, "virtual_s": result.virtual_s, "actions": felt["served"] + felt["failed"],
        "failed": felt["failed"], "messages": result.messages, "promises_broken": len(result.violations),
    }  # fmt: skip


def drivers(count: int, duration_s: float) -> dict[str, float]:
    """So many drivers on the road at once, each telling its position, in a city that takes requests."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = MACHINE.cpu_s()

    async def main(world: loop.World) -> tuple[int, dict[str, float]]:
        with tempfile.TemporaryDirectory() as folder:
            spot = Spot("city", "eu-a", "eu")
            city = SimulatedDeployment(
                world, [spot], RECIPES["dispatch"], folder=Path(folder), stores=stores_of("dispatch"), chance=Random(1)
            )
            await city.start()
            platform = city.platform
            assert platform is not None
            with world.on("city"):
                account = await platform.accounts.create("op", "a long enough password", roles=("operator",))
                token = await platform.accounts.open_session(account)
            tally, crowd = Tally(), DispatchCrowd()
            target = Target(city.address, HTTP_PORT, location_port=FEED_PORT, operator_token=token)
            with world.on("phones", zone="eu-b", region="eu"):
                await crowd.drive(
                    target, Plan(users=count, rate_per_s=5.0, duration_s=duration_s), tally, lambda _s, _t: None
                )
            live = int(city.system.index.statistics().live)  # type: ignore[union-attr]
            await city.stop()
            return live, dict(tally.facts)

    live, facts = loop.run(main, 1).result
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1_024
    return {"live": live, "cpu_s": MACHINE.cpu_s() - began, "grown_mib": grown} | facts


def planted(seeds: int) -> dict[str, Any]:
    """Bugs planted on purpose, and how many the search finds."""
    sys.path.insert(0, str(Path(__file__).parents[1]))  # tests are beside benchmarks, not in the package
    from tests.simulation.planted.hunt import PLANTS, hunt

    found, missed, count = [], [], 0
    for plants in PLANTS.values():
        for plant, name in plants.items():
            count += 1
            result = hunt(plant, name, seeds=seeds)
            if result is None:
                missed.append(plant.__name__)
            else:
                found.append(result.seed)
    share = len(found) / count
    return {"planted": count, "found_share": share, "seeds_max": max(found), "missed": ", ".join(missed) or "none"}


def run(options: argparse.Namespace) -> dict[str, Any]:
    quick = bool(getattr(options, "quick", False))
    rounds = max(1, int(getattr(options, "rounds", 5)))
    only = str(getattr(options, "only", ""))

    def median(measure: Callable[[], float]) -> float:
        return statistics.median(measure() for _ in range(rounds))

    def forms(people: int, duration_s: float, seeds: int) -> dict[str, dict[str, float]]:
        return {system: hourly(system, people=people, duration_s=duration_s, seeds=seeds) for system in SYSTEMS}

    rows: dict[str, Callable[[], Any]] = {
        "messages_per_cpu_s": lambda: {
            "100 connections": median(lambda: echo(100, 100 if quick else 1_500)["messages"]),
            "10,000 connections": median(lambda: echo(1_000 if quick else 10_000, 15)["messages"]),
        },
        "connections_per_cpu_s": lambda: median(lambda: echo(1_000 if quick else 10_000, 1)["connections"]),
        "timers_per_cpu_s": lambda: median(lambda: timers(10_000 if quick else 100_000)),
        "bare_loop_turns_per_cpu_s": lambda: median(lambda: bare(3_000_000)),
        "short_form, 60 users, 30 s": lambda: forms(60, 30.0, 2 if quick else 8),
        "long_form, 400 users, 110 s": lambda: forms(40 if quick else 400, 110.0, 1 if quick else 2),
        "region_loss": lambda: region_loss(500 if quick else 10_000, 420.0),
        "drivers": lambda: drivers(5_000 if quick else 50_000, 20.0),
        "planted": lambda: planted(3 if quick else 500),
    }
    return {name: measure() for name, measure in rows.items() if only in name}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    options = parser.parse_args()
    wanted = options.only
    for name in (name for name in ROWS if wanted in name):
        options.only = name
        for row, figure in run(options).items():
            print(row, figure, flush=True)


if __name__ == "__main__":
    main()

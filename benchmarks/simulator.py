"""The simulator itself: protocol messages, connections and timers per CPU second, on the loop all experiments run on."""

import argparse
import asyncio
import statistics
from typing import Any

from fourplane.foundation import clock, network
from fourplane.foundation.clock import MachineSource
from fourplane.simulator import loop

MESSAGE = b"x" * 100
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


def run(options: argparse.Namespace) -> dict[str, Any]:
    quick = bool(getattr(options, "quick", False))
    rounds = max(1, int(getattr(options, "rounds", 5)))

    def median(measure: Any) -> float:
        return statistics.median(measure() for _ in range(rounds))

    return {
        "messages_per_cpu_s": {
            "100 connections": median(lambda: echo(100, 100 if quick else 1_500)["messages"]),
            "10,000 connections": median(lambda: echo(1_000 if quick else 10_000, 15)["messages"]),
        },
        "connections_per_cpu_s": median(lambda: echo(1_000 if quick else 10_000, 1)["connections"]),
        "timers_per_cpu_s": median(lambda: timers(10_000 if quick else 100_000)),
        "bare_loop_turns_per_cpu_s": median(lambda: bare(3_000_000)),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    for name, figure in run(parser.parse_args()).items():
        print(name, figure)


if __name__ == "__main__":
    main()

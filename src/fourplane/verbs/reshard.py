"""Move systems of a running deployment between its workers: `reshard commerce=1`. Callers wait about a second, nobody is refused.

Without arguments: where the systems are. The move is kept in the data folder, until `fleet.placement` is changed.
"""

import argparse
import asyncio

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import Rejected, Unavailable
from fourplane.verbs import deployment

WAIT_S = 90.0
LOOK_S = 0.1


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("moves", nargs="*", metavar="SYSTEM=SLOT", help="such as commerce=1")
    deployment.add(parser)


def run(options: argparse.Namespace) -> int:
    """Order the move, and stay until it has happened."""
    began = clock.monotonic_s()
    where = asyncio.run(_moved(options, dict(map(_parsed, options.moves))))
    if options.json:
        print(msgspec.json.encode(where).decode())
        return 0
    for system, slot in sorted(where.items()):
        print(f"{system:10} worker {slot}")
    if options.moves:
        print(f"moved in {clock.monotonic_s() - began:.1f} s")
    return 0


def _parsed(text: str) -> tuple[str, int]:
    name, _, slot = text.partition("=")
    if not name or not slot.isdecimal():
        raise Rejected(f"{text!r} is no move: say SYSTEM=SLOT, such as commerce=1", code="bad_move")
    return name, int(slot)


async def _moved(options: argparse.Namespace, wanted: dict[str, int]) -> dict[str, int]:
    """Where the systems are once the deployment is there again and agrees."""
    folder = deployment.folder(options)
    where: dict[str, int] = await deployment.ask(folder, "reshard", {"slots": wanted})
    try:
        async with asyncio.timeout(WAIT_S):
            while any(where[name] != slot for name, slot in wanted.items()):
                await clock.sleep(LOOK_S)
                try:
                    where = await deployment.ask(folder, "reshard", {"slots": {}})
                except Unavailable:
                    continue  # its workers are starting
    except TimeoutError:
        raise Unavailable(f"the deployment did not come back within {WAIT_S:.0f} s", code="not_back") from None
    return where

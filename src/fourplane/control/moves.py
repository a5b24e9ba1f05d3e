"""Which systems were moved to another slot, durably: what `reshard` decided, read by every worker that starts.

A move is decided by one rename of `data/workers/placement.json`; whoever starts behind it finds its shards where the file says,
also after a kill of everything. The file stands over `fleet.placement` as it was then: settings that were changed since are
the later word, and the file counts no longer. Slots that are not there any more are left out.

How a move runs (fleet.py): every worker drains and ends, the parent gives each slot the listening sockets of what it now owns,
and all start again; callers wait in the sockets the parent holds. No two owners write meanwhile: a shard is taken by its file
lock and a higher epoch (service/ownership.py), which the slot before has let go of.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from fourplane.foundation.errors import Corrupt

FILE = "placement.json"


class Moves(msgspec.Struct, frozen=True):
    """Where systems are now, and what the settings said when that was decided."""

    slots: dict[str, int]
    over: dict[str, int]


def moved(folder: Path, chosen: Mapping[str, int], workers: int) -> dict[str, int]:
    """The placement to start with; raises Corrupt for a file nobody can read."""
    path = folder / FILE
    if workers < 2 or not path.exists():
        return dict(chosen)
    try:
        moves = msgspec.json.decode(path.read_bytes(), type=Moves)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"{path} cannot be read: {error}", file=str(path)) from None
    if moves.over != dict(chosen):
        return dict(chosen)
    return dict(chosen) | {system: slot for system, slot in moves.slots.items() if slot < workers}


def decide(folder: Path, chosen: Mapping[str, int], slots: Mapping[str, int]) -> None:
    """Make a move durable; from the rename on it has happened."""
    fresh, path = folder / f"{FILE}.new", folder / FILE
    with fresh.open("wb") as file:
        file.write(msgspec.json.encode(Moves(dict(slots), dict(chosen))))
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

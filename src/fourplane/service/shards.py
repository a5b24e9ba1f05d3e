"""Which shard a key belongs to, and which worker slot owns it. Pure.

A system whose work grows past one core is cut into a fixed number of shards by the hash of its keys (a user's address). A shard
is the unit of ownership: one store, one owner, one epoch. Slots are configured places and not live processes, so a
restarted worker finds its shards where they were, and everybody knows the owner of a key without asking.

The number of shards is a property of the data: with embedded stores each shard is a file of its own, so the number is kept in
`data/shards.json` when a folder is made and stays. Several shards may be in one slot. `...{3}` at the end of a key names its
shard instead of a hash, for what belongs to a shard as a whole.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from zlib import crc32

import msgspec

from fourplane.foundation.errors import Conflict, Corrupt, Misconfigured
from fourplane.state.contracts import Change, Record, Records

COUNT_MAX = 64
FILE = "shards.json"
_TAG = re.compile(rb"\{(\d{1,3})\}\Z")


class ShardMap:
    """Keys to shards, shards to slots."""

    __slots__ = ("count", "home", "slots")

    def __init__(self, count: int, workers: int = 1, *, home: int = 0) -> None:
        """Shard 0 is in slot `home`, the others in the slots behind it, in turn."""
        if not 1 <= count <= COUNT_MAX:
            raise Misconfigured(f"a system has 1 to {COUNT_MAX} shards, not {count}", setting="fleet.shards")
        self.count = count
        self.home = home
        self.slots = tuple((home + shard) % workers for shard in range(count))

    def shard_of(self, key: bytes) -> int:
        """The shard of a key."""
        if key[-1:] == b"}" and (tag := _TAG.search(key)) is not None:
            return int(tag.group(1)) % self.count
        return crc32(key) % self.count

    def slot_of(self, key: bytes) -> int:
        """The slot that owns a key."""
        return self.slots[crc32(key) % self.count if key[-1:] != b"}" else self.shard_of(key)]

    def of_slot(self, slot: int) -> list[int]:
        """The shards a slot owns."""
        return [shard for shard, owner in enumerate(self.slots) if owner == slot]

    def store_name(self, system: str, shard: int) -> str:
        """What the store of a shard is called; the first one as if there were no others."""
        return system if shard == 0 else f"{system}-{shard}"


class ShardedRecords:
    """The `Records` of the shards one worker owns; a key of another one's is a bug and raises Conflict (`not_owner`)."""

    def __init__(self, shards: ShardMap, stores: Mapping[int, Records]) -> None:
        self._shards = shards
        self._stores = stores

    async def get(self, partition: bytes, sort: bytes) -> Record | None:
        return await self._of(partition).get(partition, sort)

    async def scan(
        self,
        partition: bytes,
        *,
        start: bytes = b"",
        end: bytes | None = None,
        limit: int = 1_000,
        reverse: bool = False,
    ) -> list[Record]:
        return await self._of(partition).scan(partition, start=start, end=end, limit=limit, reverse=reverse)

    async def write(self, partition: bytes, changes: Sequence[Change]) -> None:
        await self._of(partition).write(partition, changes)

    def _of(self, partition: bytes) -> Records:
        shard = self._shards.shard_of(partition)
        store = self._stores.get(shard)
        if store is None:
            raise Conflict(f"shard {shard} belongs to another worker", code="not_owner", shard=shard)
        return store


def kept_count(data: Path, system: str, *, wanted: int, usual: int, exists: bool) -> int:
    """How many shards the data of a system has; `usual` for a new folder, remembered from then on.

    `wanted` (0: whatever it is) must agree with what is there; raises Misconfigured. `exists`: data without a note has one shard.
    """
    path = data / FILE
    noted: dict[str, int] = {}
    if path.exists():
        try:
            noted = msgspec.json.decode(path.read_bytes(), type=dict[str, int])
        except msgspec.MsgspecError as error:
            raise Corrupt(f"{path} cannot be read: {error}") from None
    count = noted.get(system, 1 if exists else wanted or usual)
    if wanted and wanted != count:
        raise Misconfigured(
            f"fleet.shards: {system} was made with {count} shards in {data} and cannot have {wanted}; "
            "the number is chosen when a data folder is made",
            code="shards_fixed",
            setting="fleet.shards",
        )
    if noted.get(system) != count:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(noted | {system: count}), indent=1) + b"\n")
        fresh.replace(path)
    return count

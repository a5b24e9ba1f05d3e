"""Who does not want to meet whom again: pairs of rider and driver that matching leaves out.

Either side may block the other after they met. Pairs are few, so all of them are in memory; each is one record.
"""

import msgspec

from fourplane.foundation.errors import Corrupt, Rejected
from fourplane.state.contracts import Put, Records

PARTITION = b"dispatch/blocked"
SCHEMA = 1
PAIRS_MAX = 1_000_000
PER_RIDER_MAX = 200


class _Pair(msgspec.Struct, frozen=True, array_like=True):
    rider: str
    driver: int


class Blocks:
    """All blocked pairs of this owner."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._by_rider: dict[str, set[int]] = {}
        self.count = 0

    async def load(self) -> None:
        """Read what earlier runs stored."""
        start = b""
        while rows := await self._records.scan(PARTITION, start=start, limit=1_000):
            for row in rows:
                if row.value[:1] != bytes((SCHEMA,)):
                    raise Corrupt("a blocked pair of another schema", file="dispatch/blocked", place=row.sort.hex())
                self._take(msgspec.msgpack.decode(row.value[1:], type=_Pair))
            start = rows[-1].sort + b"\0"

    async def add(self, rider: str, driver: int) -> None:
        """These two are not matched again; saying it twice changes nothing. Raises Rejected past the bounds."""
        known = self._by_rider.get(rider, set())
        if driver in known:
            return
        if len(known) >= PER_RIDER_MAX or self.count >= PAIRS_MAX:
            raise Rejected("too many are blocked already", code="too_many_blocked")
        pair = _Pair(rider, driver)
        value = bytes((SCHEMA,)) + msgspec.msgpack.encode(pair)
        await self._records.write(PARTITION, [Put(rider.encode() + b"/" + driver.to_bytes(4, "big"), value)])
        self._take(pair)

    def of(self, rider: str) -> set[int]:
        """The drivers a rider is not matched with."""
        return self._by_rider.get(rider, _NOBODY)

    def _take(self, pair: _Pair) -> None:
        self._by_rider.setdefault(pair.rider, set()).add(pair.driver)
        self.count += 1


_NOBODY: set[int] = set()

"""The newest rows of a store of records, in memory until a run has them.

Three places, the newest first: rows that are with the disk (what the next write is judged by, but no reader sees them, because
a power cut could take them back), the *live* table of durable rows, and the *frozen* one that is on its way into a run. A
table is frozen as a whole and never changes again, so that writing it down needs no look at what happened meanwhile.
"""

from bisect import bisect
from collections.abc import Collection, Iterator
from itertools import islice

from fourplane.state.embedded.key_filter import Key
from fourplane.state.embedded.sorted_runs import State, StoredRow

SAMPLES = 128
ABSENT: State = (None, 0, None)


class MemoryTable:
    """Rows by partition and sort key; `size` counts every byte that was written into it.

    A partition that has one row is that row, without a dictionary around it: half the memory and time where keys are random.
    """

    __slots__ = ("partitions", "rows", "size")

    def __init__(self) -> None:
        self.partitions: dict[bytes, StoredRow | dict[bytes, StoredRow]] = {}
        self.rows = 0
        self.size = 0

    def add(self, rows: Collection[StoredRow]) -> None:
        """Put rows in, over what is there of them."""
        partitions = self.partitions
        before, further = len(partitions), 0
        for row in rows:
            partition = row[0]
            held = partitions.setdefault(partition, row)
            if held is row:
                continue
            sort = row[1]
            if isinstance(held, dict):
                further += sort not in held
                held[sort] = row
            elif held[1] == sort:
                partitions[partition] = row
            else:
                partitions[partition] = {held[1]: held, sort: row}
                further += 1
        self.rows += len(partitions) - before + further
        self.size += sum([len(row[2]) for row in rows if row[2] is not None]) + 64 * len(rows)

    def find(self, partition: bytes, sort: bytes) -> StoredRow | None:
        """The row, where there is one."""
        held = self.partitions.get(partition)
        if held is None:
            return None
        if isinstance(held, dict):
            return held.get(sort)
        return held if held[1] == sort else None

    def of_partition(self, partition: bytes) -> dict[bytes, StoredRow]:
        """All rows of a partition; not to be changed."""
        held = self.partitions.get(partition)
        if held is None:
            return {}
        return held if isinstance(held, dict) else {held[1]: held}

    def all_rows(self) -> Iterator[StoredRow]:
        """In no order that means anything."""
        for held in self.partitions.values():
            if isinstance(held, dict):
                yield from held.values()
            else:
                yield held

    def dismantle(self, count: int) -> bool:
        """Let go of some partitions, a few at a time because that takes time too; False when none is left."""
        partitions = self.partitions
        for _ in range(min(count, len(partitions))):
            partitions.popitem()
        return bool(partitions)


class Overlay:
    """Rows with the disk or on the way there, live rows, frozen rows."""

    __slots__ = ("frozen", "live", "pending")

    def __init__(self) -> None:
        self.pending: list[dict[Key, StoredRow]] = []  # by frame of the journal, the newest last
        self.live = MemoryTable()
        self.frozen: MemoryTable | None = None

    def gather(self) -> dict[Key, StoredRow]:
        """A new frame for rows, the newest from now on."""
        rows: dict[Key, StoredRow] = {}
        self.pending.append(rows)
        return rows

    @property
    def rows(self) -> int:
        """Durable rows in memory; one that is in both tables counts twice."""
        return self.live.rows + (self.frozen.rows if self.frozen is not None else 0)

    @property
    def size(self) -> int:
        """Their bytes."""
        return self.live.size + (self.frozen.size if self.frozen is not None else 0)

    def newest(self, key: Key) -> StoredRow | None:
        """What the next write of a row is judged by, None when only what lies below says it."""
        for rows in reversed(self.pending):
            if key in rows:
                return rows[key]
        return self.durable(*key)

    def durable(self, partition: bytes, sort: bytes) -> StoredRow | None:
        """What readers may see of a row, the same way."""
        live, frozen = self.live, self.frozen
        if partition in live.partitions and (row := live.find(partition, sort)) is not None:
            return row
        if frozen is not None and partition in frozen.partitions:
            return frozen.find(partition, sort)
        return None

    def of_partition(self, partition: bytes) -> dict[bytes, StoredRow]:
        """All rows readers may see of a partition."""
        live = self.live.of_partition(partition)
        frozen = self.frozen.of_partition(partition) if self.frozen is not None else None
        return live if not frozen else frozen | live

    def written(self, rows: dict[Key, StoredRow]) -> None:
        """The oldest frame that is pending is durable."""
        assert self.pending[0] is rows
        del self.pending[0]
        self.live.add(rows.values())

    def freeze(self) -> MemoryTable:
        """The frozen table: the one that is on its way already, or what is live now."""
        if self.frozen is None:
            self.frozen, self.live = self.live, MemoryTable()
        return self.frozen


class InOrder:
    """The rows of a table in key order, in short steps: thrown into buckets between samples, each sorted when it is asked for."""

    def __init__(self, table: MemoryTable) -> None:
        partitions = table.partitions
        step = max(1, len(partitions) // SAMPLES)
        samples: list[StoredRow] = []
        for held in islice(partitions.values(), 0, None, step):
            samples += held.values() if isinstance(held, dict) else (held,)
        samples = samples[:: max(1, len(samples) // SAMPLES)]
        self._by_partition = len(partitions) * 2 > table.rows  # comparing these alone takes half the time
        self._bounds = sorted({row[0] for row in samples} if self._by_partition else {row[:2] for row in samples})
        self._buckets: list[list[StoredRow]] = [[] for _ in range(len(self._bounds) + 1)]
        self._rows = table.all_rows()

    def sort_some(self, count: int) -> bool:
        """Place the next rows; False when all are placed."""
        bounds, buckets = self._bounds, self._buckets
        rows = list(islice(self._rows, count))
        if self._by_partition:
            for row in rows:
                buckets[bisect(bounds, row[0])].append(row)
        else:
            for row in rows:
                buckets[bisect(bounds, row)].append(row)
        return len(rows) == count

    def buckets(self, most: int) -> Iterator[list[StoredRow]]:
        """All rows in order, at most so many at a time."""
        for bucket in self._buckets:
            bucket.sort()
            for at in range(0, len(bucket), most):
                yield bucket[at : at + most]
            bucket.clear()

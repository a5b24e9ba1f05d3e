"""The newest rows of a store of records, in memory until a run has them.

Three places, the newest first: rows that are with the disk (what the next write is judged by, but no reader sees them, because
a power cut could take them back), the *live* table of durable rows, and the *frozen* one that is on its way into a run. A
table is frozen as a whole and never changes again, so that writing it down needs no look at what happened meanwhile.
"""

from bisect import bisect
from collections.abc import Iterator, Sequence
from itertools import islice

from fourplane.state.embedded.key_filter import Key
from fourplane.state.embedded.sorted_runs import State, StoredRow

SAMPLES = 128
ABSENT: State = (None, 0, None)


class MemoryTable:
    """Rows by partition and sort key; `size` counts every byte that was written into it."""

    __slots__ = ("partitions", "rows", "size")

    def __init__(self) -> None:
        self.partitions: dict[bytes, dict[bytes, StoredRow]] = {}
        self.rows = 0
        self.size = 0

    def add(self, rows: Sequence[StoredRow]) -> None:
        """Put rows in, over what is there of them."""
        partitions = self.partitions
        added = 0
        for row in rows:
            partition, sort, *_ = row
            cells = partitions.get(partition)
            if cells is None:
                partitions[partition] = {sort: row}
                added += 1
            else:
                added += sort not in cells
                cells[sort] = row
        self.rows += added
        self.size += sum([len(row[2]) for row in rows if row[2] is not None]) + 64 * len(rows)

    def dismantle(self, count: int) -> bool:
        """Let go of some partitions, a few at a time because that takes time too; False when none is left."""
        partitions = self.partitions
        for _ in range(min(count, len(partitions))):
            partitions.popitem()
        return bool(partitions)


class Overlay:
    """Rows with the disk, live rows, frozen rows."""

    __slots__ = ("frozen", "live", "pending")

    def __init__(self) -> None:
        self.pending: dict[Key, StoredRow] = {}
        self.live = MemoryTable()
        self.frozen: MemoryTable | None = None

    @property
    def rows(self) -> int:
        """Durable rows in memory; one that is in both tables counts twice."""
        return self.live.rows + (self.frozen.rows if self.frozen is not None else 0)

    @property
    def size(self) -> int:
        """Their bytes."""
        return self.live.size + (self.frozen.size if self.frozen is not None else 0)

    def durable(self, partition: bytes, sort: bytes) -> StoredRow | None:
        """What readers may see of a row, None when only what lies below says it."""
        cells = self.live.partitions.get(partition)
        if cells is not None and (row := cells.get(sort)) is not None:
            return row
        if self.frozen is not None and (cells := self.frozen.partitions.get(partition)) is not None:
            return cells.get(sort)
        return None

    def of_partition(self, partition: bytes) -> dict[bytes, StoredRow] | None:
        """All rows readers may see of a partition."""
        live = self.live.partitions.get(partition)
        frozen = self.frozen.partitions.get(partition) if self.frozen is not None else None
        return live if not frozen else frozen if not live else frozen | live

    def written(self, rows: Sequence[StoredRow]) -> None:
        """These rows are durable."""
        self.live.add(rows)
        pending = self.pending
        for row in rows:
            key = row[0], row[1]
            if pending[key] is row:
                del pending[key]

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
        samples = [row for cells in islice(partitions.values(), 0, None, step) for row in cells.values()]
        samples = samples[:: max(1, len(samples) // SAMPLES)]
        self._by_partition = len(partitions) * 2 > table.rows  # comparing these alone takes half the time
        self._bounds = sorted({row[0] for row in samples} if self._by_partition else {row[:2] for row in samples})
        self._buckets: list[list[StoredRow]] = [[] for _ in range(len(self._bounds) + 1)]
        self._rows = (row for cells in partitions.values() for row in cells.values())

    def sort_some(self, count: int) -> bool:
        """Place the next rows; False when all are placed."""
        bounds, buckets = self._bounds, self._buckets
        rows = list(islice(self._rows, count))
        for row in rows:
            buckets[bisect(bounds, row[0] if self._by_partition else row)].append(row)
        return len(rows) == count

    def buckets(self, most: int) -> Iterator[list[StoredRow]]:
        """All rows in order, at most so many at a time."""
        for bucket in self._buckets:
            bucket.sort()
            for at in range(0, len(bucket), most):
                yield bucket[at : at + most]
            bucket.clear()

"""Wide rows on SQLite behind a journal: the `Records` contract over segment files, sorted runs and one `Database`.

Idea. Rows with random keys land on a page of the tree each, and a page is 20 times a row: 11k rows a second. So a write is
first part of a frame of the journal (`segments`; one frame, one write and one sync for all who wait) and a row of the `overlay`
in memory, then its caller hears. From there rows go down in two steps, to a sorted run and with many others to the table
(`levels`). The database says how far the journal has gone down; opening reads what lies behind that into the overlay again.

A write must know the version before it; `key_filter` spares the look below for keys that were never there. Reads look at the
overlay, at the runs from the newest, at the table; scans merge them all.

The table is clustered by (partition, sort). An expired record is absent for everybody from its microsecond on; its row is
removed after a later merge, some hundreds at a time. A put over an expired row starts again at version 1.

Bounds: `overlay_rows_max` and `overlay_bytes_max`, past them writers wait for a flush. Frame body: u8 schema (3), then msgpack of
all rows of the group [(partition, sort, value or nil, version, expires_us or nil)]. Schema 2 held per write u32 length and
msgpack of (partition, [(sort, value or nil, version, expires_us or nil)]), schema 1 one such write alone.
"""

import asyncio
import struct
from collections.abc import Callable, Iterator, Sequence
from heapq import merge
from itertools import islice
from typing import cast
from zlib import crc32

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, Corrupt, Rejected, TooLarge, Unavailable
from fourplane.state.contracts import Change, Put, Record
from fourplane.state.embedded.database import Database, DatabaseStatistics
from fourplane.state.embedded.frame_writer import FrameWriter, WriterSettings, WriterStatistics
from fourplane.state.embedded.key_filter import Key
from fourplane.state.embedded.key_scan import KeyScan
from fourplane.state.embedded.levels import Levels, LevelsSettings, LevelsStatistics, create
from fourplane.state.embedded.overlay import ABSENT, Overlay
from fourplane.state.embedded.segments import PLACE_BITS, Frame, frames_beside
from fourplane.state.embedded.sorted_runs import State, StoredRow

KEY_BYTES_MAX = 512
VALUE_BYTES_MAX = 1 << 20
CHANGES_MAX = 100
SCAN_MAX = 10_000
BATCH_BYTES_MAX = 32 << 20
ROW_COST_BYTES = 100
SCHEMA_NUMBER = b"\x03"
_ALONE, _WRITES = b"\x01", b"\x02"
_LENGTH = struct.Struct("<I")

_GET = "SELECT value, version, expires_us FROM record WHERE partition=?1 AND sort=?2"
_SCAN = (
    "SELECT sort, value, version, expires_us FROM record WHERE partition=?1 AND sort>=?2"
    " AND (expires_us IS NULL OR expires_us>?3)"
)


_Found = tuple[bytes, bytes | None, int, int | None]  # sort and state


class RecordsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of one store of records."""

    writer: WriterSettings = WriterSettings()
    levels: LevelsSettings = LevelsSettings()
    overlay_rows_max: int = 300_000
    overlay_bytes_max: int = 128 << 20
    filter_keys_max: int = 16_000_000


class RecordsStatistics(msgspec.Struct, frozen=True):
    """One store of records since it was opened."""

    database: DatabaseStatistics
    writer: WriterStatistics
    levels: LevelsStatistics
    overlay_rows: int
    overlay_bytes: int
    filtered_keys: int


class EmbeddedRecords:
    """`Records` on one SQLite file and the journal beside it. A point read takes 3 to 8 us inline."""

    def __init__(self, database: Database, *, settings: RecordsSettings | None = None) -> None:
        self.database = database
        self._settings = settings or RecordsSettings()
        self._overlay = Overlay()
        self._writer: FrameWriter[dict[Key, StoredRow]] = FrameWriter(
            frames_beside(database.path, database.disk, "changes", self._settings.writer.segment_bytes),
            database.name,
            self._settings.writer,
            written=self._written,
            refused=self._refused,
            gather=self._overlay.gather,
            joined=_frame,
            sent=self._sent,
        )
        self._keys = KeyScan(database, self._settings.filter_keys_max)
        self._levels = Levels(database, self._overlay, self._keys, self._settings.levels)
        self._levels.crowded = self._crowded
        self._levels.roomier = self._roomier
        self._levels.flushed = self._flushed
        self._first_segment = 1
        self._full = False
        self._room: asyncio.Future[None] | None = None

    async def open(self) -> "EmbeddedRecords":
        """Make the tables where they are missing, and read the changes that have not gone down yet; raises Corrupt."""
        await self.database.transact(create)
        rows = self.database.integers("SELECT upto FROM folded")
        upto = self._levels.upto = rows[0][0] if rows else 0
        self._first_segment = max(1, upto >> PLACE_BITS)
        await self._levels.open()
        frames = await self._writer.open(upto)
        for frame in frames:
            self._overlay.live.add(_rows(self._writer.frames.read(frame), self.database.name))
            self._levels.upto = frame.at + frame.size
        self._levels.look()
        self._full = self._holds(1)
        return self

    async def get(self, partition: bytes, sort: bytes) -> Record | None:
        row = self._overlay.durable(partition, sort)
        value, version, expires_us = row[2:] if row is not None else self._below(partition, sort)
        if value is None:
            return None
        if expires_us is not None and expires_us <= clock.now_us():
            return None
        return Record(sort, value, version, expires_us)

    async def scan(
        self,
        partition: bytes,
        *,
        start: bytes = b"",
        end: bytes | None = None,
        limit: int = 1_000,
        reverse: bool = False,
    ) -> list[Record]:
        if not 0 < limit <= SCAN_MAX:
            raise Rejected(f"a scan returns 1 to {SCAN_MAX} records, not {limit}", code="bad_limit")
        now_us = clock.now_us()
        over = [
            row[1:]
            for row in self._overlay.of_partition(partition).values()
            if start <= row[1] and (end is None or row[1] < end)
        ]
        runs = self._levels.rows_of(partition, start, end, reverse=reverse)
        sql = _SCAN if end is None else f"{_SCAN} AND sort<?4"
        sql = f"{sql} ORDER BY sort {'DESC' if reverse else 'ASC'}"
        bounds = (partition, start, now_us) if end is None else (partition, start, now_us, end)
        if not over and not runs:
            rows = self.database.read(f"{sql} LIMIT {limit}", bounds)
            return [Record(*row) for row in cast("list[tuple[bytes, bytes, int, int | None]]", rows)]
        over.sort(key=_sort_of, reverse=reverse)
        table = self.database.rows(sql, bounds)
        sources = [iter(over), *(map(_of_row, rows) for rows in runs), cast("Iterator[_Found]", table)]
        try:
            return list(islice(_newest(sources, now_us, reverse=reverse), limit))
        finally:
            table.close()

    async def write(self, partition: bytes, changes: Sequence[Change]) -> None:
        done = None if self._full else self._put_new(partition, changes)
        if done is None:
            check_changes(partition, changes)
            while self._full:
                await self._make_room()
            try:
                rows = self._judged(partition, changes)
            except Conflict:
                if not self._writer.busy:
                    raise
                await self._writer.settle()  # a conflict with a write under way is told when that one is durable
                rows = self._judged(partition, changes)
            if not rows:
                return
            done = self._begin(rows)
        await done

    def _put_new(self, partition: bytes, changes: Sequence[Change]) -> "asyncio.Future[None] | None":
        """The short way of one row whose key was never there; None for everything else, and for what is not allowed."""
        change = changes[0] if len(changes) == 1 else None
        if not isinstance(change, Put) or change.expect_version or change.ttl_s is not None:
            return None
        sort, value = change.sort, change.value
        if not (
            0 < len(sort) <= KEY_BYTES_MAX and 0 < len(partition) <= KEY_BYTES_MAX and len(value) <= VALUE_BYTES_MAX
        ):
            return None
        key = partition, sort
        if self._levels.may_hold(crc32(sort, crc32(partition))) or self._overlay.newest(key) is not None:
            return None
        frame, done = self._writer.share(ROW_COST_BYTES + len(value))
        frame[key] = partition, sort, value, 1, None
        return done

    def _begin(self, rows: list[StoredRow]) -> "asyncio.Future[None]":
        """These rows are the newest from now on; the future is done when they are durable."""
        frame, done = self._writer.share(sum([ROW_COST_BYTES + len(row[2] or b"") for row in rows]))
        for row in rows:
            frame[row[:2]] = row
        return done

    async def fold(self) -> None:
        """Wait until every change that was durable when this was called is in the table."""
        await self._levels.fold()

    async def purge(self) -> int:
        """Fold, then remove up to 500 rows that expired; how many went."""
        before = self._levels.statistics().purged
        await self.fold()
        await self._levels.purge()
        return self._levels.statistics().purged - before

    def statistics(self) -> RecordsStatistics:
        return RecordsStatistics(
            database=self.database.statistics(),
            writer=self._writer.statistics(),
            levels=self._levels.statistics(),
            overlay_rows=self._overlay.rows,
            overlay_bytes=self._overlay.size,
            filtered_keys=self._keys.count,
        )

    async def close(self) -> None:
        """Finish what is queued. What has not gone down yet stays in the journal and is read again."""
        await self._writer.drain()
        self._keys.stop()
        await self._levels.close()
        await self._writer.close()
        await self.database.close()

    def abandon(self) -> None:
        """Let go without finishing anything, as a killed process would; for tests and the simulator."""
        self._keys.stop()
        self._levels.abandon()
        self._writer.abandon()
        self.database.abandon()

    # ---- rows ----

    def _judged(self, partition: bytes, changes: Sequence[Change]) -> list[StoredRow]:
        """What a batch makes of its rows; raises Conflict."""
        rows: list[StoredRow] = []
        overlay, levels = self._overlay, self._levels
        for change in changes:
            sort = change.sort
            row = overlay.newest((partition, sort))
            if row is not None:
                version = _version(row[2:])
            else:
                code = crc32(sort, crc32(partition))
                version = _version(self._stored(code, partition, sort)) if levels.may_hold(code) else 0
            if change.expect_version is not None and change.expect_version != version:
                raise conflict(change)
            if isinstance(change, Put):
                ttl_s = change.ttl_s
                until_us = None if ttl_s is None else clock.now_us() + int(ttl_s * 1e6)
                rows.append((partition, sort, change.value, version + 1, until_us))
            elif change.expect_version != 0:
                rows.append((partition, sort, *ABSENT))
        return rows

    def _below(self, partition: bytes, sort: bytes) -> State:
        """What runs and table say of a row."""
        code = crc32(sort, crc32(partition))
        return self._stored(code, partition, sort) if self._levels.may_hold(code) else ABSENT

    def _stored(self, code: int, partition: bytes, sort: bytes) -> State:
        """The same for a row that may be there."""
        levels = self._levels
        if not levels.empty and (found := levels.find(code, partition, sort)) is not None:
            return found
        rows = cast("list[State]", self.database.read(_GET, (partition, sort)))
        return rows[0] if rows else ABSENT

    def _sent(self, rows: int) -> Callable[[], None] | None:
        return self._levels.pace.sent(rows)

    def _written(self, written: Sequence[dict[Key, StoredRow]], frames: Sequence[Frame]) -> None:
        """A frame is durable: readers see its rows from now on."""
        for rows in written:
            self._overlay.written(rows)
        last = frames[-1]
        self._levels.upto = last.at + last.size
        self._levels.look()
        self._full = self._holds(1)

    def _refused(self, refused: Sequence[dict[Key, StoredRow]]) -> None:
        """None of these happened: what lies below them is the newest again."""
        gone = {id(rows) for rows in refused}
        self._overlay.pending = [rows for rows in self._overlay.pending if id(rows) not in gone]

    # ---- room ----

    def _holds(self, share: int) -> bool:
        """Whether the overlay has reached its bounds, or half of them for 2."""
        overlay, settings = self._overlay, self._settings
        return overlay.rows * share >= settings.overlay_rows_max or overlay.size * share >= settings.overlay_bytes_max

    def _crowded(self) -> bool:
        return self._holds(2)

    def _roomier(self) -> None:
        self._full = self._holds(1)
        if not self._full and self._room is not None:
            self._room.set_result(None)
            self._room = None

    def _flushed(self, upto: int) -> None:
        """The journal before this is not needed any more."""
        while self._first_segment < upto >> PLACE_BITS:
            self._writer.worker.submit(self._writer.frames.drop, self._first_segment)
            self._first_segment += 1

    async def _make_room(self) -> None:
        if self._writer.busy:
            await self._writer.settle()  # only what is durable can go down
        flush = self._levels.make_room()
        self._room = self._room or asyncio.get_running_loop().create_future()
        await asyncio.wait([flush, self._room], return_when=asyncio.FIRST_COMPLETED)
        if flush.cancelled():
            raise Unavailable(f"{self.database.name} is closed", code="closed")
        if flush.done():
            flush.result()


def _version(state: State) -> int:
    """The version the next write is judged by."""
    value, version, expires_us = state
    return 0 if value is None or (expires_us is not None and expires_us <= clock.now_us()) else version


def _of_row(row: StoredRow) -> _Found:
    return row[1:]


def _sort_of(found: _Found) -> bytes:
    return found[0]


def _newest(sources: "list[Iterator[_Found]]", now_us: int, *, reverse: bool) -> Iterator[Record]:
    """Records of sources that are each in order, the newest source first; of those with one key the first counts."""
    last: bytes | None = None
    for sort, value, version, expires_us in merge(*sources, key=_sort_of, reverse=reverse):
        if sort == last:
            continue
        last = sort
        if value is not None and (expires_us is None or expires_us > now_us):
            yield Record(sort, value, version, expires_us)


_ENCODER = msgspec.msgpack.Encoder()
_ROWS = msgspec.msgpack.Decoder(list[StoredRow])
_WRITE = msgspec.msgpack.Decoder(tuple[bytes, list[tuple[bytes, bytes | None, int, int | None]]])


def check_changes(partition: bytes, changes: Sequence[Change]) -> None:
    """Raise Rejected or TooLarge for a batch past the contract's bounds; shared by all engines."""
    if len(changes) == 1:  # the way of nearly all
        change = changes[0]
        if (
            isinstance(change, Put)
            and change.ttl_s is None
            and 0 < len(change.sort) <= KEY_BYTES_MAX
            and 0 < len(partition) <= KEY_BYTES_MAX
            and len(change.value) <= VALUE_BYTES_MAX
        ):
            return
    if not 0 < len(partition) <= KEY_BYTES_MAX:
        raise Rejected(f"a partition key has 1 to {KEY_BYTES_MAX} bytes, not {len(partition)}", code="bad_key")
    if not 0 < len(changes) <= CHANGES_MAX:
        raise TooLarge(f"a batch has 1 to {CHANGES_MAX} changes, not {len(changes)}")
    size = 0
    for change in changes:
        if not 0 < len(change.sort) <= KEY_BYTES_MAX:
            raise Rejected(f"a sort key has 1 to {KEY_BYTES_MAX} bytes, not {len(change.sort)}", code="bad_key")
        if isinstance(change, Put):
            if len(change.value) > VALUE_BYTES_MAX:
                raise TooLarge(f"a value has at most {VALUE_BYTES_MAX} bytes, not {len(change.value)}")
            if change.ttl_s is not None and not change.ttl_s > 0:
                raise Rejected(f"a record cannot live for {change.ttl_s} s", code="bad_ttl")
            size += len(change.value)
    if size > BATCH_BYTES_MAX:
        raise TooLarge(f"the values of a batch have at most {BATCH_BYTES_MAX} bytes, not {size}")
    if len(changes) > 1 and len({change.sort for change in changes}) != len(changes):
        raise Rejected("a batch changes each sort key once", code="duplicate_key")


def conflict(change: Change) -> Conflict:
    """The error of a version that differs."""
    told = f"record {change.sort!r} is not at version {change.expect_version}"
    return Conflict(told, code="version", sort=change.sort, expected=change.expect_version)


def _frame(rows: dict[Key, StoredRow]) -> tuple[int, bytes]:
    """How many rows a frame has, and its body."""
    return len(rows), SCHEMA_NUMBER + _ENCODER.encode(list(rows.values()))


def _rows(body: bytes, name: str) -> list[StoredRow]:
    """The rows of one frame, of whatever schema."""
    view, at = memoryview(body), 1
    if body[:1] == SCHEMA_NUMBER:
        return _ROWS.decode(view[1:])
    if body[:1] == _ALONE:
        return _of_write(view[1:])
    if body[:1] != _WRITES:
        raise Corrupt(f"{name}: a change has schema {body[0]}", file=name, place="journal")
    rows: list[StoredRow] = []
    while at < len(body):
        (length,) = _LENGTH.unpack_from(body, at)
        at += _LENGTH.size + length
        rows += _of_write(view[at - length : at])
    return rows


def _of_write(body: memoryview) -> list[StoredRow]:
    partition, rows = _WRITE.decode(body)
    return [(partition, *row) for row in rows]

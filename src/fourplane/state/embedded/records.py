"""Wide rows on SQLite behind a journal: the `Records` contract over segment files and one `Database`.

Idea. Rows with random keys land on a page of the tree each, and a page is 20 times a row: 11k rows a second. So a write is
first part of a frame of the journal (`segments`; one frame, one write and one sync for all who wait) and a row of the *overlay*
in memory, then its caller hears. From `fold_rows` on the overlay is written to the table in key order, a hundred rows a commit;
several rows share a page then. The journal has these rows, so only one commit in twenty is made durable, and only then the
overlay lets go of them. Folding waits while writers are busy, so that a burst runs at the speed of the journal; it takes a
quarter of the time when they are not, and all it can get once the overlay is half full. The last commit says how far the
journal is folded; opening reads what lies behind that into the overlay again, and folding it twice does no harm, because rows
carry their version.

A write must know the version before it; `key_filter` spares the look into the tree for keys that were never there.

Each row of the overlay knows its newest state (what the next write is judged by) and its durable state (what readers see, so
never one that a power cut could take back). Reads look at the overlay, then at the table; scans merge both.

The table is clustered by (partition, sort). An expired record is absent for everybody from its microsecond on; its row is
removed after a later fold, some hundreds at a time. A put over an expired row starts again at version 1.

Bounds: `overlay_rows_max` and `overlay_bytes_max`, past them writers wait for the fold. Frame body: u8 schema (2), then per
write u32 length and msgpack of (partition, [(sort, value or nil, version, expires_us or nil)]). Schema 1 held one write alone.
"""

import asyncio
import struct
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from heapq import merge
from typing import cast

import apsw
import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, Corrupt, FourplaneError, Rejected, TooLarge, Unavailable
from fourplane.state.contracts import Change, Put, Record
from fourplane.state.embedded.database import Database, DatabaseStatistics
from fourplane.state.embedded.frame_writer import FrameWriter, WriterSettings, WriterStatistics
from fourplane.state.embedded.key_scan import KeyScan
from fourplane.state.embedded.segments import PLACE_BITS, Frame, frames_beside

KEY_BYTES_MAX = 512
VALUE_BYTES_MAX = 1 << 20
CHANGES_MAX = 100
SCAN_MAX = 10_000
PURGE_ROWS = 500
BUSY_PER_S = 5_000  # more writes than this: folding waits
BUSY_LOOK_S = 0.02
BATCH_BYTES_MAX = 32 << 20
SCHEMA_NUMBER = b"\x02"
_ALONE = b"\x01"
_LENGTH = struct.Struct("<I")

SCHEMA = (
    (
        "CREATE TABLE IF NOT EXISTS record (partition BLOB NOT NULL, sort BLOB NOT NULL, value BLOB NOT NULL,"
        " version INTEGER NOT NULL, expires_us INTEGER, PRIMARY KEY (partition, sort)) WITHOUT ROWID"
    ),
    "CREATE INDEX IF NOT EXISTS record_expires ON record (expires_us) WHERE expires_us IS NOT NULL",
    "CREATE TABLE IF NOT EXISTS folded (one INTEGER PRIMARY KEY, upto INTEGER NOT NULL)",
)
_GET = "SELECT value, version, expires_us FROM record WHERE partition=?1 AND sort=?2"
_SCAN = (
    "SELECT sort, value, version, expires_us FROM record WHERE partition=?1 AND sort>=?2"
    " AND (expires_us IS NULL OR expires_us>?3)"
)
_FOLD = (
    "INSERT INTO record (partition, sort, value, version, expires_us) VALUES (?1,?2,?3,?4,?5)"
    " ON CONFLICT (partition, sort) DO UPDATE SET value=excluded.value, version=excluded.version,"
    " expires_us=excluded.expires_us"
)
_REMOVE = "DELETE FROM record WHERE partition=?1 AND sort=?2"
_UPTO = "INSERT INTO folded (one, upto) VALUES (1,?1) ON CONFLICT (one) DO UPDATE SET upto=excluded.upto"
_PURGE = (
    "DELETE FROM record WHERE (partition, sort) IN"
    " (SELECT partition, sort FROM record WHERE expires_us<=?1 ORDER BY expires_us LIMIT ?2)"
)

State = tuple[bytes | None, int, int | None]  # value (None: removed), version, expires_us
_ABSENT: State = (None, 0, None)


class RecordsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of one store of records."""

    writer: WriterSettings = WriterSettings()
    fold_rows: int = 50_000
    fold_bytes: int = 32 << 20
    fold_rows_at_once: int = 100
    fold_rows_synced: int = 2_000
    overlay_rows_max: int = 300_000
    overlay_bytes_max: int = 128 << 20
    filter_keys_max: int = 16_000_000


class RecordsStatistics(msgspec.Struct, frozen=True):
    """One store of records since it was opened."""

    database: DatabaseStatistics
    writer: WriterStatistics
    overlay_rows: int
    overlay_bytes: int
    folds: int
    folded_rows: int
    purged: int
    filtered_keys: int


class _Cell(msgspec.Struct, gc=False, eq=False):
    """One row of the overlay; `durable` is None while only the table has what readers may see."""

    newest: State | None = None
    durable: State | None = None


_Write = list[tuple[bytes, bytes, _Cell, State]]  # partition, sort, cell, its state behind this write


class EmbeddedRecords:
    """`Records` on one SQLite file and the journal beside it. A point read takes 3 to 8 us inline."""

    def __init__(self, database: Database, *, settings: RecordsSettings | None = None) -> None:
        self.database = database
        self._settings = settings or RecordsSettings()
        self._writer: FrameWriter[_Write] = FrameWriter(
            frames_beside(database.path, database.disk, "changes", self._settings.writer.segment_bytes),
            database.name,
            self._settings.writer,
            written=self._written,
            refused=self._refused,
            joined=SCHEMA_NUMBER,
        )
        self._overlay: dict[bytes, dict[bytes, _Cell]] = {}
        self._rows = self._bytes = self._folds = self._folded_rows = self._purged = 0
        self._upto = 0
        self._first_segment = 1
        self._fold_rows = self._settings.fold_rows
        self._folding: asyncio.Future[None] | None = None
        self._hurry = False
        self._room: asyncio.Future[None] | None = None
        self._bytes_folding = 0
        self._written_rows = 0  # since folding last looked
        self._keys = KeyScan(database, self._settings.filter_keys_max)

    async def open(self) -> "EmbeddedRecords":
        """Make the tables where they are missing, and read the changes that are not folded yet; raises Corrupt."""
        await self.database.transact(_create)
        rows = self.database.integers("SELECT upto FROM folded")
        self._upto = rows[0][0] if rows else 0
        self._first_segment = max(1, self._upto >> PLACE_BITS)
        frames = await self._writer.open(self._upto)
        self._keys.start()  # before anything can be folded, so that it learns of all of that
        for frame in frames:
            writes = [self._restored(body) for body in _bodies(self._writer.frames.read(frame), self.database.name)]
            self._written(writes, [frame])
        return self

    def _restored(self, body: memoryview) -> "_Write":
        partition, states = _DECODER.decode(body)
        write: _Write = []
        for sort, value, version, expires_us in states:
            cell = self._cell(partition, sort)
            state: State = (value, version, expires_us)
            cell.newest = state
            write.append((partition, sort, cell, state))
        return write

    async def get(self, partition: bytes, sort: bytes) -> Record | None:
        cells = self._overlay.get(partition)
        if cells is not None and (cell := cells.get(sort)) is not None and cell.durable is not None:
            value, version, expires_us = cell.durable
            if value is None:
                return None
        else:
            if not self._keys.may_hold((partition, sort)):
                return None
            rows = cast("list[tuple[bytes, int, int | None]]", self.database.read(_GET, (partition, sort)))
            if not rows:
                return None
            value, version, expires_us = rows[0]
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
        over = {
            sort: cell.durable
            for sort, cell in self._overlay.get(partition, {}).items()
            if cell.durable is not None and start <= sort and (end is None or sort < end)
        }
        sql = _SCAN if end is None else f"{_SCAN} AND sort<?5"
        sql = f"{sql} ORDER BY sort {'DESC' if reverse else 'ASC'} LIMIT ?4"
        bounds = (partition, start, now_us, limit + len(over))
        rows = self.database.read(sql, bounds if end is None else (*bounds, end))
        records = [Record(*row) for row in cast("list[tuple[bytes, bytes, int, int | None]]", rows)]
        if not over:
            return records
        added = [
            Record(sort, state[0], state[1], state[2])
            for sort, state in sorted(over.items(), reverse=reverse)
            if state[0] is not None and (state[2] is None or state[2] > now_us)
        ]
        kept = (record for record in records if record.sort not in over)
        return list(merge(kept, added, key=lambda record: record.sort, reverse=reverse))[:limit]

    async def write(self, partition: bytes, changes: Sequence[Change]) -> None:
        check_changes(partition, changes)
        settings = self._settings
        while self._rows >= settings.overlay_rows_max or self._bytes >= settings.overlay_bytes_max:
            await self._make_room()
        self._writer.check()
        try:
            states = self._judged(partition, changes)
        except Conflict:
            if not self._writer.busy:
                raise
            await self._writer.settle()  # a conflict with a write under way is told when that one is durable
            self._writer.check()
            states = self._judged(partition, changes)
        if states:
            await self._begin(partition, states)

    def _begin(self, partition: bytes, states: "list[tuple[bytes, State]]") -> "asyncio.Future[None]":
        """These rows are the newest from now on; the future is done when they are durable."""
        cells = self._overlay.get(partition)
        if cells is None:
            cells = self._overlay[partition] = {}
        write: _Write = []
        rows = []
        for sort, state in states:
            cell = cells.get(sort)
            if cell is None:
                cell = cells[sort] = _Cell(state)
                self._rows += 1
            else:
                cell.newest = state
            write.append((partition, sort, cell, state))
            rows.append((sort, *state))
        body = _ENCODER.encode((partition, rows))
        return self._writer.put(write, 0, len(states), _LENGTH.pack(len(body)) + body)

    async def fold(self) -> None:
        """Wait until every change that was durable when this was called is in the table."""
        if self._folding is not None:
            self._hurry = True
            await asyncio.shield(self._folding)
        if self._rows:
            folding = self._folding or self._start_folding()
            self._hurry = True
            await asyncio.shield(folding)

    async def purge(self) -> int:
        """Fold, then remove up to 500 rows that expired; how many went."""
        before = self._purged
        await self.fold()
        removed = await self.database.transact(partial(_purge, clock.now_us()), weight=PURGE_ROWS, savepoint=False)
        self._purged += removed
        return self._purged - before

    def statistics(self) -> RecordsStatistics:
        return RecordsStatistics(
            database=self.database.statistics(),
            writer=self._writer.statistics(),
            overlay_rows=self._rows,
            overlay_bytes=self._bytes,
            folds=self._folds,
            folded_rows=self._folded_rows,
            purged=self._purged,
            filtered_keys=self._keys.count,
        )

    async def close(self) -> None:
        """Finish what is queued. What is not folded yet stays in the journal and is read again."""
        await self._writer.drain()
        self._keys.stop()
        if self._folding is not None:
            self._hurry = True
            await asyncio.wait([self._folding])
        await self._writer.close()
        await self.database.close()

    def abandon(self) -> None:
        """Let go without finishing anything, as a killed process would; for tests and the simulator."""
        self._keys.stop()
        self._writer.abandon()
        self.database.abandon()

    # ---- the overlay ----

    def _judged(self, partition: bytes, changes: Sequence[Change]) -> list[tuple[bytes, State]]:
        """What a batch makes of its rows; raises Conflict."""
        states: list[tuple[bytes, State]] = []
        cells = self._overlay.get(partition)
        for change in changes:
            state = self._after(partition, cells, change)
            if state is not None:
                states.append((change.sort, state))
        return states

    def _cell(self, partition: bytes, sort: bytes) -> _Cell:
        cells = self._overlay.get(partition)
        if cells is None:
            cells = self._overlay[partition] = {}
        cell = cells.get(sort)
        if cell is None:
            cell = cells[sort] = _Cell()
            self._rows += 1
        return cell

    def _after(self, partition: bytes, cells: "dict[bytes, _Cell] | None", change: Change) -> State | None:
        """The row's state behind a change, None when there is nothing to write; raises Conflict."""
        cell = cells.get(change.sort) if cells is not None else None
        current = cell.newest if cell is not None else None
        if current is None:
            current = _ABSENT
            if self._keys.may_hold((partition, change.sort)):
                rows = cast("list[State]", self.database.read(_GET, (partition, change.sort)))
                current = rows[0] if rows else _ABSENT
        value, version, expires_us = current
        if value is None or (expires_us is not None and expires_us <= clock.now_us()):
            version = 0
        if change.expect_version is not None and change.expect_version != version:
            raise conflict(change)
        if isinstance(change, Put):
            ttl_s = change.ttl_s
            return change.value, version + 1, None if ttl_s is None else clock.now_us() + int(ttl_s * 1e6)
        return None if change.expect_version == 0 else _ABSENT

    def _written(self, writes: Sequence[_Write], frames: Sequence[Frame]) -> None:
        """These writes are durable: readers see them from now on."""
        for write in writes:
            for _, sort, cell, state in write:
                cell.durable = state
                self._bytes += len(sort) + len(state[0] or b"")
        self._written_rows += len(writes)
        last = frames[-1]
        self._upto = last.at + last.size
        if (self._rows >= self._fold_rows or self._bytes >= self._settings.fold_bytes) and self._folding is None:
            self._start_folding()

    def _refused(self, writes: Sequence[_Write]) -> None:
        """None of these happened: what readers see is the newest again."""
        for write in writes:
            for partition, sort, cell, _ in write:
                cell.newest = cell.durable
                if cell.durable is None:
                    self._let_go(partition, sort, cell)

    def _let_go(self, partition: bytes, sort: bytes, cell: _Cell) -> None:
        cells = self._overlay.get(partition, {})
        if cells.get(sort) is cell:
            del cells[sort]
            self._rows -= 1
            if not cells:
                del self._overlay[partition]

    # ---- folding ----

    async def _make_room(self) -> None:
        if self._folding is None and self._writer.busy:
            await self._writer.settle()  # only what is durable can be folded
        folding = self._folding or self._start_folding()
        self._hurry = True
        self._room = self._room or asyncio.get_running_loop().create_future()
        await asyncio.wait([folding, self._room], return_when=asyncio.FIRST_COMPLETED)
        if folding.done():
            folding.result()

    def _start_folding(self) -> "asyncio.Future[None]":
        """Write what is durable now to the table, some rows a commit, in key order; the future is done when all is there."""
        folding = self._folding = asyncio.get_running_loop().create_future()
        self._hurry = False
        self._bytes_folding, self._bytes = self._bytes, 0
        self._fold_some(_Fold(sorted(self._overlay), self._upto))
        return folding

    def _fold_some(self, fold: "_Fold") -> None:
        """Commit the next rows, and again when they are there."""
        written, self._written_rows = self._written_rows, 0
        if written > BUSY_PER_S * BUSY_LOOK_S and not self._must_hurry():
            asyncio.get_running_loop().call_later(BUSY_LOOK_S, self._fold_some, fold)
            return
        rows = fold.take(self._overlay, self._settings.fold_rows_at_once)
        fold.committed += rows
        last = fold.upto if fold.at >= len(fold.partitions) else None
        lasting = last is not None or len(fold.committed) >= self._settings.fold_rows_synced
        self._keys.add([(partition, sort) for partition, sort, _, _ in rows])
        began = clock.monotonic_s()
        work = partial(_fold, rows, last)
        try:
            done = self.database.transact(work, weight=max(1, len(rows)), savepoint=False, lasting=lasting)
        except FourplaneError as refused:
            self._fold_failed(refused)
        else:
            done.add_done_callback(partial(self._folded_some, fold, began, lasting))

    def _folded_some(self, fold: "_Fold", began: float, lasting: bool, done: "asyncio.Future[None]") -> None:  # noqa: FBT001 - bound above
        """The table has these rows; when they are durable the overlay lets go of those that did not change meanwhile."""
        error = Unavailable("the loop has ended") if done.cancelled() else done.exception()
        if error is not None:
            self._fold_failed(error)
            return
        if lasting:
            rows, fold.committed = fold.committed, []
            self._folded_rows += len(rows)
            for partition, sort, cell, state in rows:
                if cell.durable is state:
                    cell.durable = None
                    if cell.newest is state:
                        self._let_go(partition, sort, cell)
            if self._room is not None and self._rows < self._settings.overlay_rows_max:
                self._room.set_result(None)
                self._room = None
            if fold.at >= len(fold.partitions):
                self._folded(fold.upto)
                return
        if self._must_hurry():
            self._fold_some(fold)
        else:
            pause_s = 3 * (clock.monotonic_s() - began)
            asyncio.get_running_loop().call_later(pause_s, self._fold_some, fold)

    def _must_hurry(self) -> bool:
        settings = self._settings
        return self._hurry or self._rows * 2 > settings.overlay_rows_max or self._bytes * 2 > settings.overlay_bytes_max

    def _fold_failed(self, error: BaseException) -> None:
        self._fold_rows = self._rows + self._settings.fold_rows // 10  # not at once again
        self._bytes += self._bytes_folding
        self._end_folding()
        folding, self._folding = self._folding, None
        assert folding is not None
        folding.set_exception(error)
        folding.exception()  # nobody may be waiting

    def _folded(self, upto: int) -> None:
        """All of it is there: the journal before it is not needed any more."""
        self._folds += 1
        self._fold_rows = self._settings.fold_rows
        while self._first_segment < upto >> PLACE_BITS:
            self._writer.worker.submit(self._writer.frames.drop, self._first_segment)
            self._first_segment += 1
        self.database.transact(partial(_purge, clock.now_us()), weight=PURGE_ROWS, savepoint=False).add_done_callback(
            self._count_purged
        )
        self._end_folding()
        folding, self._folding = self._folding, None
        assert folding is not None
        folding.set_result(None)

    def _end_folding(self) -> None:
        self._bytes_folding = 0
        if self._room is not None:
            self._room.set_result(None)
            self._room = None

    def _count_purged(self, done: "asyncio.Future[int]") -> None:
        if not done.cancelled() and done.exception() is None:
            self._purged += done.result()


class _Fold:
    """One pass over the overlay: its partitions in order, and how far it got."""

    __slots__ = ("at", "committed", "partitions", "upto")

    def __init__(self, partitions: list[bytes], upto: int) -> None:
        self.partitions = partitions
        self.upto = upto
        self.at = 0
        self.committed: _Write = []  # not durable in the table yet

    def take(self, overlay: dict[bytes, dict[bytes, _Cell]], most: int) -> _Write:
        """The next durable rows in key order: `most`, and what is left of the last partition."""
        rows: _Write = []
        partitions = self.partitions
        while self.at < len(partitions) and len(rows) < most:
            partition = partitions[self.at]
            self.at += 1
            cells = overlay.get(partition, {})
            for sort in sorted(cells) if len(cells) > 1 else cells:
                cell = cells[sort]
                if cell.durable is not None:
                    rows.append((partition, sort, cell, cell.durable))
        return rows


_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[tuple[bytes, list[tuple[bytes, bytes | None, int, int | None]]]] = (
    msgspec.msgpack.Decoder(tuple[bytes, list[tuple[bytes, bytes | None, int, int | None]]])
)


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


def _bodies(body: bytes, name: str) -> Iterator[memoryview]:
    """The writes of one frame."""
    view, at = memoryview(body), 1
    if body[:1] == _ALONE:
        yield view[1:]
        return
    if body[:1] != SCHEMA_NUMBER:
        raise Corrupt(f"{name}: a change has schema {body[0]}", file=name, place="journal")
    while at < len(body):
        (length,) = _LENGTH.unpack_from(body, at)
        at += _LENGTH.size + length
        yield view[at - length : at]


def _create(writer: apsw.Connection) -> None:
    for statement in SCHEMA:
        writer.execute(statement).fetchall()


def _fold(rows: Iterable[tuple[bytes, bytes, _Cell, State]], upto: int | None, writer: apsw.Connection) -> None:
    """Write rows as they are; `upto`: nothing before it in the journal is needed any more."""
    puts, removed = [], []
    for partition, sort, _, (value, version, expires_us) in rows:
        if value is None:
            removed.append((partition, sort))
        else:
            puts.append((partition, sort, value, version, expires_us))
    writer.executemany(_FOLD, puts).fetchall()
    writer.executemany(_REMOVE, removed).fetchall()
    if upto is not None:
        writer.execute(_UPTO, (upto,)).fetchall()


def _purge(now_us: int, writer: apsw.Connection) -> int:
    writer.execute(_PURGE, (now_us, PURGE_ROWS)).fetchall()
    return int(writer.changes())

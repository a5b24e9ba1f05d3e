"""What lies below the overlay of a store of records: sorted runs, then the table; and the two ways down.

*Flush.* From `fold_rows` on the overlay is written into a run: in key order, in the shadow of the groups that writers send to the
disk (`pace`). When the file is synced and the database says durably that it counts, the overlay lets go of those rows and the
journal of what lies before them. While that goes on, new rows gather in a table of their own.

*Merge.* Rows with random keys touch a page of the table each, 25 us a row when 50,000 are merged into a million; a million
neighbours share pages, 5 us a row. So runs gather. From `runs_kept` on they are merged in key order in quiet moments; from three
quarters of `run_rows_max` (or its like) on also beside writers, as many rows as are written twice over; at the bound a flush
waits, and so do writers in the end. The last commit of a merge removes its runs from the list; merging twice does no
harm, because rows carry their version, and readers look at the runs until then.

A row is what the newest place says that knows it: overlay, runs from the newest, table. What was killed or cut on the way
leaves a file that is not on the list (it is removed when the store opens) or a run that is merged again.

The filters of keys lie among the runs as a file of their own (`known`), new with each merge: what it lists and the codes
in the runs together cover the table at any moment, whatever is cut.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import TypeVar

import apsw
import msgspec

from fourplane.foundation import clock
from fourplane.foundation.blocking import Worker
from fourplane.foundation.errors import Corrupt, FourplaneError, Unavailable
from fourplane.foundation.lifecycle import Tasks
from fourplane.state.embedded.database import Database
from fourplane.state.embedded.key_filter import KeyFilters, codes_of, decode, partition_code
from fourplane.state.embedded.key_scan import KeyScan
from fourplane.state.embedded.overlay import InOrder, MemoryTable, Overlay
from fourplane.state.embedded.pace import ROWS_QUIET, Pace
from fourplane.state.embedded.sorted_runs import (
    NO_CODES,
    Listed,
    Merging,
    Run,
    RunBuilder,
    State,
    StoredRow,
    runs_beside,
)

T = TypeVar("T")
PURGE_ROWS = 500
WRITE_BYTES = 256 << 10
RUN_ROWS = 256  # a step
MERGE_ROWS = 400
PRESSED = 0.75

SCHEMA = (
    (
        "CREATE TABLE IF NOT EXISTS record (partition BLOB NOT NULL, sort BLOB NOT NULL, value BLOB NOT NULL,"
        " version INTEGER NOT NULL, expires_us INTEGER, PRIMARY KEY (partition, sort)) WITHOUT ROWID"
    ),
    "CREATE INDEX IF NOT EXISTS record_expires ON record (expires_us) WHERE expires_us IS NOT NULL",
    "CREATE TABLE IF NOT EXISTS folded (one INTEGER PRIMARY KEY, upto INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS run (number INTEGER PRIMARY KEY, rows INTEGER NOT NULL, bytes INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS known (one INTEGER PRIMARY KEY, number INTEGER NOT NULL, bytes INTEGER NOT NULL)",
)
_PUT = (
    "INSERT INTO record (partition, sort, value, version, expires_us) VALUES (?1,?2,?3,?4,?5)"
    " ON CONFLICT (partition, sort) DO UPDATE SET value=excluded.value, version=excluded.version,"
    " expires_us=excluded.expires_us"
)
_REMOVE = "DELETE FROM record WHERE partition=?1 AND sort=?2"
_UPTO = "INSERT INTO folded (one, upto) VALUES (1,?1) ON CONFLICT (one) DO UPDATE SET upto=excluded.upto"
_LIST = "INSERT INTO run (number, rows, bytes) VALUES (?1,?2,?3)"
_UNLIST = "DELETE FROM run WHERE number<=?1"
_KNOWN = (
    "INSERT INTO known (one, number, bytes) VALUES (1,?1,?2)"
    " ON CONFLICT (one) DO UPDATE SET number=excluded.number, bytes=excluded.bytes"
)
_PURGE = (
    "DELETE FROM record WHERE (partition, sort) IN"
    " (SELECT partition, sort FROM record WHERE expires_us<=?1 ORDER BY expires_us LIMIT ?2)"
)


class LevelsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When rows go down, and how much may lie in runs."""

    fold_rows: int = 50_000
    fold_bytes: int = 32 << 20
    merge_rows_synced: int = 2_000
    runs_kept: int = 4
    runs_max: int = 64
    run_rows_max: int = 2_000_000
    run_bytes_max: int = 1 << 30
    known_keys_least: int = 20_000  # fewer are read from the table as quickly as from a file


class LevelsStatistics(msgspec.Struct, frozen=True):
    """Below the overlay, since it was opened."""

    runs: int
    run_rows: int
    run_bytes: int
    flushes: int
    merges: int
    merged_rows: int
    purged: int
    failed: str


class Levels:
    """Runs and the table under one overlay."""

    def __init__(self, database: Database, overlay: Overlay, keys: KeyScan, settings: LevelsSettings) -> None:
        self.pace = Pace()
        self.upto = 0  # the place in the journal before which everything is durable
        self.crowded: Callable[[], bool] = lambda: False
        self.roomier: Callable[[], None] = lambda: None
        self.flushed: Callable[[int], None] = lambda _upto: None
        self._database = database
        self._overlay = overlay
        self._keys = keys
        self._settings = settings
        self._store = runs_beside(database.path, database.disk)
        self._worker = Worker(f"runs of {database.name}", queue_max=64)
        self._runs: list[Run] = []  # the newest first
        self._older: list[Run] = []  # from before the filter: their keys are in no filter but their own
        self._known = 0  # the number of the file of filters
        self._next_number = 1
        self._run_rows = self._run_bytes = 0
        self._flushing: asyncio.Task[None] | None = None
        self._merging: asyncio.Task[None] | None = None
        self._asked_to_flush = self._asked_to_merge = False
        self._flush_at, self._flush_at_size = settings.fold_rows, settings.fold_bytes
        self._frozen_upto = 0
        self._merge_at = settings.runs_kept
        self._flushes = self._merges = self._merged_rows = self._purged = 0
        self._failed = ""
        self._tasks: Tasks

    async def open(self) -> None:
        """Open the runs that are listed and what is known of the keys; raises Corrupt."""
        listed = [Listed(*row) for row in self._database.integers("SELECT number, rows, bytes FROM run")]
        known = self._database.integers("SELECT number, bytes FROM known")
        try:
            runs = await self._worker.submit(self._store.open, listed, [number for number, _ in known])
            filters = await self._worker.submit(self._kept, *known[0]) if known else None
        except OSError as error:
            raise Unavailable(f"{self._database.name}: {error}", code="disk_failed") from error
        self._tasks = Tasks("records", asyncio.get_running_loop().create_future())
        self._runs = runs[::-1]
        self._count_runs()
        self._known = known[0][0] if filters is not None else 0
        self._next_number = max([self._known, *(run.number for run in runs)]) + 1
        self._keys.begun = self._scan_begun
        self._keys.start(filters)
        self._older = [run for run in self._runs if not len(run.codes)]
        for run in runs:
            self._keys.add(run.codes)
            run.codes = NO_CODES

    def _kept(self, number: int, size: int) -> KeyFilters | None:
        """Filters from their file, None when it is damaged: the table says the same."""
        try:
            return decode(self._store.read(number, 0, size))
        except Corrupt:
            return None

    def _scan_begun(self) -> None:
        """What a new filter learns of is the table and what goes down from now on."""
        self._older = list(self._runs)

    # ---- reading ----

    @property
    def empty(self) -> bool:
        """Whether there are no runs."""
        return not self._runs

    def may_hold(self, code: int) -> bool:
        """False: neither a run nor the table has a key with this code (`key_code`)."""
        return self._keys.may_hold(code) or (bool(self._older) and any(run.may_hold(code) for run in self._older))

    def find(self, code: int, partition: bytes, sort: bytes) -> State | None:
        """What the newest run says that knows this row."""
        for run in self._runs:
            if run.may_hold(code) and (state := run.find(partition, sort)) is not None:
                return state
        return None

    def rows_of(self, partition: bytes, start: bytes, end: bytes | None, *, reverse: bool) -> list[Iterator[StoredRow]]:
        """One iterator in order for each run that may know the partition, the newest first."""
        code = partition_code(partition)
        return [run.rows_of(partition, start, end, reverse=reverse) for run in self._runs if run.may_hold(code)]

    # ---- going down ----

    def look(self) -> None:
        """Something was written: flush when there is enough of it."""
        live = self._overlay.live
        if self._flushing is None and (live.rows >= self._flush_at or live.size >= self._flush_at_size):
            self._start_flush()

    def make_room(self) -> "asyncio.Task[None]":
        """Flush as quickly as it goes; the task ends when that is done."""
        self._asked_to_flush = True
        self.pace.hurry()
        return self._flushing or self._start_flush()

    async def fold(self) -> None:
        """Wait until everything that is durable now is in the table."""
        for _ in range(2):  # the flush under way has not what was written since, nor the merge the newest run
            if self._flushing is not None or self._overlay.rows:
                await asyncio.shield(self.make_room())
        for _ in range(2):
            if self._runs:
                self._asked_to_merge = True
                self.pace.hurry()
                await asyncio.shield(self._merging or self._start_merge())

    async def purge(self) -> int:
        """Remove up to 500 rows of the table that expired; how many went."""
        removed = await self._database.transact(partial(_purge, clock.now_us()), weight=PURGE_ROWS, savepoint=False)
        self._purged += removed
        return removed

    def statistics(self) -> LevelsStatistics:
        return LevelsStatistics(
            runs=len(self._runs),
            run_rows=self._run_rows,
            run_bytes=self._run_bytes,
            flushes=self._flushes,
            merges=self._merges,
            merged_rows=self._merged_rows,
            purged=self._purged,
            failed=self._failed,
        )

    async def close(self) -> None:
        """Leave what is under way: the journal and the runs still have it."""
        await self._tasks.cancel()
        if not self._known:
            with suppress(FourplaneError):  # next time the table is read again
                number, size = await self._keep()
                if number:
                    await self._database.transact(partial(_keep, number, size), savepoint=False)
        self._worker.close()
        self._store.close()

    def abandon(self) -> None:
        """Let go without finishing anything, as a killed process would."""
        for task in (self._flushing, self._merging):
            if task is not None:
                task.cancel()
        self._worker.close()
        self._store.close()

    # ---- flushing ----

    def _start_flush(self) -> "asyncio.Task[None]":
        task = self._flushing = self._tasks.start(self._flush(), "flush")
        return task

    async def _flush(self) -> None:
        try:
            await self._flush_all()
        except FourplaneError as error:
            self._failed = error.message
            live, settings = self._overlay.live, self._settings
            self._flush_at = live.rows + settings.fold_rows // 10  # not at once again
            self._flush_at_size = live.size + settings.fold_bytes // 10
            raise
        finally:
            self._flushing, self._asked_to_flush = None, False
            self.roomier()

    async def _flush_all(self) -> None:
        while self._full(1.0):
            self._asked_to_merge = True
            self.pace.hurry()
            await asyncio.shield(self._merging or self._start_merge())
        self._database.check_writable()
        overlay, fills = self._overlay, self._keys.fills
        if overlay.frozen is None:
            self._frozen_upto = self.upto
        table, upto = overlay.freeze(), self._frozen_upto
        if table.rows:
            builder = RunBuilder(self._next_number)
            self._next_number += 1
            run = await self._written_run(builder, table)
            await self._list_run(run, upto)
            self._runs.insert(0, run)
            self._count_runs()
            if self._keys.fills != fills:
                self._older.insert(0, run)
        overlay.frozen, self._failed = None, ""
        self.roomier()
        self._flushes += 1
        self._flush_at, self._flush_at_size = self._settings.fold_rows, self._settings.fold_bytes
        self.flushed(upto)
        if self._merging is None and len(self._runs) >= self._merge_at:
            self._start_merge()
        while table.dismantle(8 * await self._turn()):
            pass

    async def _list_run(self, run: Run, upto: int) -> None:
        try:
            await self._database.transact(partial(_listed, run, upto), savepoint=False)
        except FourplaneError as error:
            if error.reason == "disk_full":  # any other failure may have left it listed, and the file must stay
                self._worker.submit(self._store.drop, run.number)
            raise

    async def _written_run(self, builder: RunBuilder, table: MemoryTable) -> Run:
        """`_write_run`, without leavings when it fails."""
        try:
            return await self._write_run(builder, table)
        except FourplaneError:
            self._worker.submit(self._store.drop, builder.number)
            raise

    async def _write_run(self, builder: RunBuilder, table: MemoryTable) -> Run:
        """Write what a table holds; all of it is durable behind this, but not listed."""
        order = InOrder(table)
        while order.sort_some(4 * await self._turn()):
            pass
        parts: list[bytes] = []
        at, allowed = 0, 0
        for rows in order.buckets(RUN_ROWS):
            if allowed <= 0:
                allowed = await self._turn()
            allowed -= len(rows)
            parts += builder.add(rows)
            if builder.size - at >= WRITE_BYTES:
                self._keys.add(builder.new_codes())
                await self._on_disk(self._store.write, builder.number, at, parts)
                at, parts = builder.size, []
        self._keys.add(builder.new_codes())
        last, run = await self._on_disk(builder.finish, self._store)
        await self._on_disk(self._store.write, builder.number, at, parts + last)
        await self._on_disk(self._store.seal, builder.number)
        return run

    async def _on_disk(self, work: Callable[..., T], *args: object) -> T:
        try:
            return await self._worker.submit(work, *args)
        except OSError as error:
            name = self._database.name
            raise Unavailable(f"no run of {name} could be written: {error}", code="disk_failed", file=name) from error

    async def _turn(self) -> int:
        if self._asked_to_flush or self.crowded():
            return await self.pace.at_once()
        return await self.pace.in_passing()

    # ---- merging ----

    def _full(self, share: float) -> bool:
        """Whether this share of what runs may hold is used."""
        settings = self._settings
        return (
            self._run_rows >= share * settings.run_rows_max
            or self._run_bytes >= share * settings.run_bytes_max
            or len(self._runs) >= share * settings.runs_max
        )

    def _start_merge(self) -> "asyncio.Task[None]":
        task = self._merging = self._tasks.start(self._merge(), "merge")
        return task

    async def _merge(self) -> None:
        try:
            await self._merge_all(self._runs[::-1])
        except FourplaneError as error:
            self._failed = error.message
            self._merge_at = len(self._runs) + 1  # not at once again
            raise
        finally:
            self._merging, self._asked_to_merge = None, False

    async def _merge_all(self, runs: list[Run]) -> None:
        merging, last, fills = Merging(runs), False, self._keys.fills
        unknown = any(run in self._older for run in runs)
        merged = 0  # in the table, but not durably
        known = before = self._known
        while not last:
            rows, last = merging.window(min(MERGE_ROWS, await self._merge_turn()))
            merged += len(rows)
            lasting = last or merged >= self._settings.merge_rows_synced
            if unknown or self._keys.fills != fills:
                self._keys.add(codes_of([row[:2] for row in rows]))
            work = partial(_merged, rows, None)
            if last:
                known, size = await self._keep()
                work = partial(_merged, rows, (runs[-1].number, known, size))
            try:
                await self._database.transact(work, weight=max(1, len(rows)), savepoint=False, lasting=lasting)
            except FourplaneError as error:
                if error.reason == "disk_full" and known != before:  # after any other failure it may be listed
                    self._worker.submit(self._store.drop, known)
                raise
            if lasting:
                self._merged_rows += merged
                merged = 0
        self._known = known
        if before != known:
            self._worker.submit(self._store.drop, before)
        self._runs = [run for run in self._runs if run not in runs]
        self._older = [run for run in self._older if run not in runs]
        self._count_runs()
        self._merges += 1
        self._merge_at = self._settings.runs_kept
        for run in runs:
            self._worker.submit(self._store.drop, run.number)
        self._database.transact(partial(_purge, clock.now_us()), weight=PURGE_ROWS, savepoint=False).add_done_callback(
            self._count_purged
        )

    async def _keep(self) -> tuple[int, int]:
        """Write the filters into a file; its number and size, 0 for a store that does without."""
        whole, name = self._keys.whole, self._database
        if whole is None or whole.count < self._settings.known_keys_least or name.path is None:
            return 0, 0
        number, parts = self._next_number, whole.encode()
        self._next_number += 1
        try:
            await self._on_disk(self._store.write, number, 0, parts)
            await self._on_disk(self._store.seal, number)
        except FourplaneError:
            self._worker.submit(self._store.drop, number)
            raise
        return number, sum(map(len, parts))

    async def _merge_turn(self) -> int:
        while not self._asked_to_merge:
            if self._full(PRESSED):
                return await self.pace.in_passing()
            if await self.pace.look():
                return ROWS_QUIET
        return await self.pace.at_once()

    def _count_runs(self) -> None:
        self._run_rows = sum(run.rows for run in self._runs)
        self._run_bytes = sum(run.size for run in self._runs)

    def _count_purged(self, done: "asyncio.Future[int]") -> None:
        if not done.cancelled() and done.exception() is None:
            self._purged += done.result()


def create(writer: apsw.Connection) -> None:
    """Make the tables where they are missing."""
    for statement in SCHEMA:
        writer.execute(statement).fetchall()


def _listed(run: Run, upto: int, writer: apsw.Connection) -> None:
    """Let a run count: nothing before `upto` in the journal is needed any more."""
    writer.execute(_LIST, (run.number, run.rows, run.size)).fetchall()
    writer.execute(_UPTO, (upto,)).fetchall()


def _merged(rows: list[StoredRow], last: tuple[int, int, int] | None, writer: apsw.Connection) -> None:
    """Write rows as they are; `last`: the table has all of the runs up to this one, and these filters know it."""
    puts = [row for row in rows if row[2] is not None]
    writer.executemany(_PUT, puts).fetchall()
    if len(puts) < len(rows):
        writer.executemany(_REMOVE, [row[:2] for row in rows if row[2] is None]).fetchall()
    if last is not None:
        last_run, number, size = last
        writer.execute(_UNLIST, (last_run,)).fetchall()
        _keep(number, size, writer)


def _keep(number: int, size: int, writer: apsw.Connection) -> None:
    """From now on these are the filters of the table; number 0: there are none."""
    if number:
        writer.execute(_KNOWN, (number, size)).fetchall()
    else:
        writer.execute("DELETE FROM known").fetchall()


def _purge(now_us: int, writer: apsw.Connection) -> int:
    writer.execute(_PURGE, (now_us, PURGE_ROWS)).fetchall()
    return int(writer.changes())

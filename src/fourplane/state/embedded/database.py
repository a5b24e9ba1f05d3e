"""One store with one writer, group commit, and reads that see only what is durable.

Idea. SQLite itself is quick (2 to 5 us a row); waiting for the disk is not. So statements run *inline* on the loop and
only the disk sync goes elsewhere: to the kernel (`disk_sync`) or, where that takes none, to a thread. Commits asked for in one
loop tick, or while the last sync runs, form one group: one transaction, one sync, all callers told together. A caller that
may fail half-way has a savepoint, so its Conflict undoes only itself. A single entry past `inline_weight_max` runs on the
thread, and so do checkpoints of long logs.

Why not all on a thread: every step of SQLite there must take the interpreter's lock back from a busy loop, up to 5 ms each.

Reads use a second connection that holds a snapshot open (500k point reads/s against 270k when each takes its own). The snapshot
moves when a group is durable, before the next group runs; so a read sees every commit that returned and never one that a
power cut could still take back.

The log is folded into the main file in parts, inline, and groups go on while a part is synced; the last part, of a few pages,
is the only one they wait for (`database_file` has the order of syncs). A failed sync is final: the kernel may have dropped
the bytes, so the store refuses writes until it is opened again, and goes on reading.

Bounds: `queue_max` waiting commits, then Overloaded. Source: sqlite.org/wal.html; "fsyncgate" (LWN 752063).
"""

import asyncio
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from operator import length_hint
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import apsw
import msgspec

from fourplane.foundation import clock
from fourplane.foundation.blocking import Worker
from fourplane.foundation.disk_sync import DiskSync
from fourplane.foundation.errors import Corrupt, FourplaneError, Overloaded, Rejected, Unavailable
from fourplane.foundation.telemetry import Histogram
from fourplane.state.contracts import Row, SqlValue
from fourplane.state.embedded.database_file import DatabaseFile, FileSettings, Steps, Told
from fourplane.state.embedded.sqlite_errors import spoils_group, translate
from fourplane.state.embedded.vfs import Disk, scrub

FOLD_PARTS = 4  # of a log that is due
LAST_FRAMES_MAX = 64  # that commits wait for
LAST_PARTS_MAX = 4  # tries to become so few
T = TypeVar("T")
Work = Callable[[apsw.Connection], T]
_serial = iter(range(1, 1 << 62))


class DatabaseSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of one store. Weights count statements or their like, about 5 us each."""

    file: FileSettings = FileSettings()
    queue_max: int = 20_000
    group_weight_max: int = 1_000
    inline_weight_max: int = 1_000
    checkpoint_bytes: int = 16 << 20
    inline_checkpoint_frames_max: int = 5_000
    read_rows_max: int = 10_000


class DatabaseStatistics(msgspec.Struct, frozen=True):
    """One file since it was opened; durations in seconds."""

    path: str
    commits: int
    refused: int
    groups: int
    reads: int
    checkpoints: int
    waiting: int
    log_bytes: int
    file_bytes: int
    group_s_p50: float
    group_s_p99: float
    failed: str


class _Told:
    """A caller without a future: it hears in the turn in which its group ends, not in the one after."""

    __slots__ = ("_tell",)

    def __init__(self, tell: Callable[[BaseException | None], None]) -> None:
        self._tell = tell

    def done(self) -> bool:
        return False

    def set_result(self, _result: object) -> None:
        self._tell(None)

    def set_exception(self, error: BaseException) -> None:
        self._tell(error)


class _Entry(msgspec.Struct, Generic[T], gc=False):
    """One caller's part of a group: a function, or (without one) a statement that returns no rows."""

    future: "asyncio.Future[T] | _Told"
    work: Work[T] | None = None
    weight: int = 1
    savepoint: bool = False
    lasting: bool = True
    sql: str = ""
    parameters: tuple[SqlValue, ...] = ()
    result: T | None = None
    error: BaseException | None = None


class Database:
    """A file (or memory, without a path) that many callers write to as one."""

    def __init__(
        self, path: Path | None, *, disk: Disk | None = None, settings: DatabaseSettings | None = None
    ) -> None:
        self._settings = settings or DatabaseSettings()
        path = None if path is None else path.absolute()  # as SQLite tells it to the disk
        self.name = str(path) if path is not None else ":memory:"
        self._file = None if path is None else DatabaseFile(path, disk, self._settings.file)
        self._worker = Worker(f"database {path.name if path else 'memory'}", queue_max=64)
        self._queue: deque[_Entry[Any]] = deque()
        self._group_s = Histogram()
        self._commits = self._refused = self._groups = self._reads = self._checkpoints = 0
        self._busy = self._scheduled = self._stale = self._in_snapshot = False
        self._folding = False  # what was folded last is being synced
        self._held = False  # until that has ended
        self._parts = 0  # folded of a log that is due
        self._failed: FourplaneError | None = None
        self._idle: asyncio.Future[None] | None = None
        self._undone: list[Callable[[], None]] = []
        self._writer: apsw.Connection
        self._reader: apsw.Connection
        self._open = False

    @property
    def path(self) -> Path | None:
        """The file, None in memory."""
        return self._file.path if self._file is not None else None

    @property
    def disk(self) -> Disk | None:
        """The disk under the file, for neighbours that share its faults and counts."""
        return self._file.disk if self._file is not None else None

    async def open(self) -> "Database":
        """Check, recover and open; raises Corrupt, or Unavailable when somebody else has the file."""
        assert not self._open, "a database opens once"
        if self._file is None:
            self._memory()
        else:
            await self._worker.submit(self._file.open)
            self._writer, self._reader = self._file.writer, self._file.reader
            self._file.syncs = DiskSync.open()
            self._refresh()
        self._open = True
        return self

    def transact(
        self, work: Work[T], *, weight: int = 1, savepoint: bool = True, lasting: bool = True
    ) -> "asyncio.Future[T]":
        """Run `work` inside the next group; the future is done when it is durable. Without `savepoint` it must be atomic.

        Not `lasting`: done when it is committed; it becomes durable, and readers see it, with the next group that lasts.
        """
        loop = self._admitted()
        future: asyncio.Future[T] = loop.create_future()
        self._queue.append(_Entry(future, work, weight, savepoint, lasting))
        return future

    def transact_soon(self, work: Work[T], told: Callable[[BaseException | None], None], *, weight: int = 1) -> None:
        """`transact` for one who has gathered others already: its group begins at once unless one is under way.

        `told` hears in the very turn in which the group is durable or has failed, before anybody who awaits.
        """
        self._admitted()
        self._queue.append(_Entry(_Told(told), work, weight, savepoint=True))
        if not self._busy:
            self._flush()

    def append(self, sql: str, parameters: tuple[SqlValue, ...], answer: T) -> "asyncio.Future[T]":
        """Run one statement that returns no rows inside the next group; `answer` when it is durable.

        Neighbours with the same text run as one statement with many rows, at half the cost of `transact`.
        """
        loop = self._admitted()
        future: asyncio.Future[T] = loop.create_future()
        self._queue.append(_Entry(future, None, 1, False, True, sql, parameters, answer))
        return future

    def when_undone(self, callback: Callable[[], None]) -> None:
        """Call this when a whole group was rolled back, before the next one runs: what works remembered is wrong."""
        self._undone.append(callback)

    def check_writable(self) -> None:
        """Raise what a commit would raise now because of an earlier failure."""
        if self._failed is not None:
            raise self._failed

    def cursor(self, sql: str, parameters: tuple[SqlValue, ...] = ()) -> apsw.Cursor:
        """Rows one by one; the caller must use it up or close it before it waits."""
        self._reads += 1
        if self._stale:
            self._refresh()
        return self._reader.execute(sql, parameters)

    def rows(self, sql: str, parameters: tuple[SqlValue, ...] = ()) -> Generator[Row, None, None]:
        """The same, with errors as `read` tells them."""
        self._reads += 1
        try:
            if self._stale:
                self._refresh()
            with closing(self._reader.execute(sql, parameters)) as cursor:
                yield from cast("Iterator[Row]", cursor)
        except Exception as error:
            raise self._told(error) from error

    def read(self, sql: str, parameters: tuple[SqlValue, ...] = ()) -> list[Row]:
        """All rows of one query, inline."""
        self._reads += 1
        try:
            if self._stale:
                self._refresh()
            return cast("list[Row]", self._reader.execute(sql, parameters).fetchall())
        except Exception as error:
            raise self._told(error) from error

    def integers(self, sql: str, parameters: tuple[SqlValue, ...] = ()) -> list[tuple[int, ...]]:
        """The same for a query of INTEGER columns that are never null."""
        return cast("list[tuple[int, ...]]", self.read(sql, parameters))

    def read_bounded(self, sql: str, parameters: tuple[SqlValue, ...] = ()) -> list[Row]:
        """The same for SQL of others: refuses writes and more than `read_rows_max` rows."""
        self._reads += 1
        bound = self._settings.read_rows_max
        try:
            if self._stale:
                self._refresh()
            cursor = self._reader.execute(sql, parameters)
            rows = cast("list[Row]", list(islice(cursor, bound + 1)))
            if len(rows) > bound:
                cursor.close()
        except Exception as error:
            raise self._told(error) from error
        if len(rows) > bound:
            raise Rejected(f"the query has more than {bound} rows; page through them", code="too_many_rows")
        return rows

    async def drain(self) -> None:
        """Wait until everything that was queued is committed, and durable where it lasts."""
        while self._busy or self._queue or self._folding:
            if self._idle is None:
                self._idle = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._idle)

    async def check(self) -> None:
        """Read every page of the file against its checksum; raises Corrupt naming the first bad one."""
        await self.drain()
        if self._file is None:
            return
        bad: list[int] = []
        await self._worker.submit(scrub, self._file.path, self._file.page_bytes, bad.append)
        if bad:
            raise self._file.disk.refuse(self.name, f"page {bad[0]}", "does not match its checksum")

    async def close(self) -> None:
        """Finish what is queued, fold the log into the file, release it."""
        if not self._open:
            return
        await self.drain()
        self._open = False
        if self._file is None:
            self._reader.close()
            self._writer.close()
            return
        if self._in_snapshot:
            self._reader.execute("COMMIT")
            self._in_snapshot = False
        self._file.leave_kernel()
        try:
            await self._worker.submit(self._file.close if self._failed is None else self._file.release)
        finally:
            self._worker.close()

    def abandon(self) -> None:
        """Let go without finishing anything, as a killed process would; for tests and the simulator."""
        self._open = False
        failure = Unavailable(f"{self.name} was abandoned", code="closed", file=self.name)
        self._failed = failure
        for entry in self._queue:
            if not entry.future.done():
                entry.future.set_exception(failure)
        self._queue.clear()
        self._worker.close()
        if self._file is not None:
            self._file.release()

    def statistics(self) -> DatabaseStatistics:
        file = self._file
        return DatabaseStatistics(
            path=self.name,
            commits=self._commits,
            refused=self._refused,
            groups=self._groups,
            reads=self._reads,
            checkpoints=self._checkpoints,
            waiting=len(self._queue),
            log_bytes=file.log_end if file else 0,
            file_bytes=file.disk.state(self.name).size if file and self._open else 0,
            group_s_p50=self._group_s.quantile(0.5),
            group_s_p99=self._group_s.quantile(0.99),
            failed=self._failed.message if self._failed else "",
        )

    # ---- groups ----

    def _admitted(self) -> asyncio.AbstractEventLoop:
        """The loop that will run the next group; raises when nothing more is taken."""
        if self._failed is not None:
            raise self._failed
        if not self._open:
            raise Unavailable(f"{self.name} is closed", code="closed", file=self.name)
        if len(self._queue) >= self._settings.queue_max:
            raise Overloaded(f"{len(self._queue)} commits wait for {self.name}", retry_after_s=0.1, file=self.name)
        loop = asyncio.get_running_loop()
        if not self._scheduled and not self._busy:
            self._scheduled = True
            loop.call_soon(self._flush)
        return loop

    def _flush(self) -> None:
        """Run the next group, or say that there is none."""
        self._scheduled = False
        if self._busy or not self._open:
            return
        if not self._queue:
            if self._idle is not None and not self._idle.done():
                self._idle.set_result(None)
            self._idle = None
            return
        faults = self._file.disk.faults if self._file else None
        if faults is not None and faults.stall_s > 0:
            stall_s, faults.stall_s = faults.stall_s, 0.0
            self._busy = True
            asyncio.get_running_loop().call_later(stall_s, self._run_group)
            return
        self._run_group()

    def _run_group(self) -> None:
        file = self._file
        group, weight = self._next_group()
        self._busy = True
        began = clock.monotonic_s()
        if file is None:
            self._settle(group, began, self._execute(group))
            return
        if self._stale:
            self._refresh()
        if weight > self._settings.inline_weight_max:
            self._worker.call(partial(self._synced, group, began), self._execute_and_sync, group)
        else:
            error = self._execute(group)
            if error is not None or not file.log_grew or not any(entry.lasting for entry in group):
                self._settle(group, began, error)
                return
            self._sync(file, file.syncing_log(), partial(self._synced, group, began))

    def _next_group(self) -> tuple[list[_Entry[Any]], int]:
        queue, most = self._queue, self._settings.group_weight_max
        group: list[_Entry[Any]] = []
        weight = 0
        while queue and (not group or weight + queue[0].weight <= most):
            entry = queue.popleft()
            weight += entry.weight
            group.append(entry)
        return group, weight

    def _execute(self, group: list[_Entry[Any]]) -> BaseException | None:
        """One transaction of all entries; the error when it was undone as a whole."""
        writer = self._writer
        execute = writer.execute
        try:
            execute("BEGIN")
            rows: list[_Entry[Any]] = []
            for entry in group:
                if rows and (entry.work is not None or entry.sql != rows[0].sql):
                    _append_rows(writer, rows)
                    rows = []
                if entry.work is None:
                    rows.append(entry)
                else:
                    _work(writer, entry, entry.work)
            if rows:
                _append_rows(writer, rows)
            execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - every caller of the group gets it
            if not writer.get_autocommit():
                execute("ROLLBACK")
            for callback in self._undone:
                callback()
            return error
        return None

    def _execute_and_sync(self, group: list[_Entry[Any]]) -> None:
        error = self._execute(group)
        if error is not None:
            raise _Undone from error
        assert self._file is not None
        self._file.sync_log()

    def _synced(self, group: list[_Entry[Any]], began: float, error: BaseException | None) -> None:
        if isinstance(error, _Undone):
            self._settle(group, began, error.__cause__)
            return
        if error is not None:
            told = f"{self.name} could not be synced ({error!r}); open it again"
            self._failed = Unavailable(told, code="sync_failed", file=self.name)
            self._settle(group, began, self._failed)
            self._give_up()
            return
        self._stale = True
        self._settle(group, began, None)

    def _settle(self, group: list[_Entry[Any]], began: float, error: BaseException | None) -> None:
        """Tell every caller of a finished group and go on."""
        self._groups += 1
        self._group_s.record(clock.monotonic_s() - began)
        refused = 0
        for entry in group:
            future, failure = entry.future, error or entry.error
            if failure is not None:
                refused += 1
            if future.done():
                continue
            if failure is None:
                future.set_result(entry.result)
            else:
                future.set_exception(self._told(failure))
        self._commits += len(group) - refused
        self._refused += refused
        self._busy = False
        if self._failed is not None:
            return
        if self._file is not None and not self._file.log_grew:
            self._fold(self._file)
        if not self._scheduled and not self._busy:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _give_up(self) -> None:
        while self._queue:
            entry = self._queue.popleft()
            if not entry.future.done():
                assert self._failed is not None
                entry.future.set_exception(self._failed)
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)
        self._idle = None

    # ---- reads ----

    def _refresh(self) -> None:
        """Move the reader's snapshot to the newest durable commit."""
        execute = self._reader.execute
        if self._in_snapshot:
            execute("COMMIT")
        execute("BEGIN")
        execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()
        self._in_snapshot = True
        self._stale = False

    def _sync(self, file: DatabaseFile, steps: Steps, told: Told) -> None:
        """Go steps that wait for the disk elsewhere: in the kernel, or on the thread."""
        if not file.begin(steps, told):
            self._worker.call(told, file.sync_each, steps)

    # ---- checkpoints ----

    def _fold(self, file: DatabaseFile) -> None:
        """Between two groups: fold what is due."""
        most = self._settings.checkpoint_bytes
        due = file.log_end >= most
        if self._folding:
            self._busy = self._held = file.log_end >= 2 * most  # a disk that cannot keep up
        elif self._long(file) or (due and (file.frames <= LAST_FRAMES_MAX or self._parts >= LAST_PARTS_MAX)):
            self._checkpoint(file)
        elif due or file.log_end - file.folded_end >= most // FOLD_PARTS:
            self._fold_part(file, due=due)

    def _long(self, file: DatabaseFile) -> bool:
        return file.frames > self._settings.inline_checkpoint_frames_max

    def _fold_part(self, file: DatabaseFile, *, due: bool) -> None:
        """Fold what there is while groups go on. The reader stands at the log's end, so SQLite does not begin it anew."""
        self._parts += due
        self._folding = True
        try:
            self._refresh()
            whole = file.fold()  # not where somebody else reads what lies further back
            self._sync(file, file.settling(whole=False), partial(self._part_folded, whole=whole))
        except (apsw.Error, Corrupt, OSError, Overloaded) as error:
            self._folding = False
            self._checkpoint_failed(error)

    def _part_folded(self, error: BaseException | None, *, whole: bool) -> None:
        """It is durable; go on where nothing else is under way."""
        self._folding = False
        if self._held:
            self._held = self._busy = False
        file = self._file
        assert file is not None
        if error is not None:
            self._checkpoint_failed(error)
        elif whole and self._open and not self._busy and not file.log_grew and self._failed is None:
            self._fold(file)
        self._flush()

    def _checkpoint(self, file: DatabaseFile) -> None:
        """Fold the rest of the log into the main file while no group runs; then it may start anew."""
        self._busy = True
        self._parts = 0
        if self._in_snapshot:
            self._reader.execute("COMMIT")
            self._in_snapshot = False
        self._stale = True
        try:
            if self._long(file):
                self._worker.call(self._checkpointed, file.fold_and_settle)
            else:
                self._sync(file, file.settling(whole=file.fold()), self._checkpointed)
        except (apsw.Error, Corrupt, OSError, Overloaded) as error:
            self._checkpoint_failed(error)

    def _checkpointed(self, error: BaseException | None) -> None:
        if error is not None:
            self._checkpoint_failed(error)
            return
        self._checkpoints += 1
        self._stale = True
        self._busy = False
        self._flush()

    def _checkpoint_failed(self, error: BaseException) -> None:
        """What was acknowledged is safe in the log; nothing new is taken."""
        self._busy = False
        told = translate(error, self.name)
        if not isinstance(told, FourplaneError):
            told = Unavailable(f"{self.name}: {error!r}", code="disk_failed", file=self.name)
        self._failed = told
        self._give_up()

    def _memory(self) -> None:
        """Two connections to one nameless place in memory, so that reading cannot write there either."""
        flags = apsw.SQLITE_OPEN_URI | apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
        place, cached = f"file:/fourplane-{next(_serial)}?vfs=memdb", self._settings.file.statement_cache
        self._writer, self._reader = (apsw.Connection(place, flags, statementcachesize=cached) for _ in range(2))
        for connection, pragma in ((self._writer, "foreign_keys=ON"), (self._reader, "query_only=ON")):
            connection.execute(f"PRAGMA {pragma}").fetchall()

    def _told(self, error: BaseException) -> BaseException:
        return translate(error, self.name, self._file.disk.last_corrupt if self._file else None)


def _work(writer: apsw.Connection, entry: _Entry[T], work: Work[T]) -> None:
    """Run one caller's function; with a savepoint, what it did before it failed is undone."""
    if entry.savepoint:
        writer.execute("SAVEPOINT caller")
    try:
        entry.result = work(writer)
    except Exception as error:
        if spoils_group(error):
            raise
        if entry.savepoint:
            writer.execute("ROLLBACK TO caller")
        entry.error = error
    if entry.savepoint:
        writer.execute("RELEASE caller")


def _append_rows(writer: apsw.Connection, entries: list[_Entry[Any]]) -> None:
    """Run one statement for all entries; what fails for one undoes only that one and the rest goes on."""
    at = 0
    while at < len(entries):
        given = iter([entry.parameters for entry in (entries[at:] if at else entries)])
        try:
            writer.executemany(entries[0].sql, given).fetchall()
        except Exception as error:
            if spoils_group(error):
                raise
            at = len(entries) - length_hint(given)
            entries[at - 1].error = error
        else:
            return


class _Undone(Exception):
    """A group on the worker was rolled back; the cause says why."""

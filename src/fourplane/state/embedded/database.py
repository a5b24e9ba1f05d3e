"""One SQLite file with one writer, group commit, and reads that see only what is durable.

Idea. SQLite itself is quick (2 to 5 us a row); waiting for the disk is not. So statements run *inline* on the loop and
only the disk sync goes to a thread. Commits asked for in one loop tick, or while the last sync runs, form one group: one
transaction, one sync, all callers told together. A caller that may fail half-way has a savepoint, so its Conflict undoes
only itself. Groups past `inline_weight_max` run on the thread as a whole, and so do checkpoints of long logs.

Why not all on a thread: every step of SQLite there must take the interpreter's lock back from a busy loop, up to 5 ms each.

Reads use a second connection that holds a snapshot open (500k point reads/s against 270k when each takes its own). The snapshot
moves when a group is durable, before the next group runs; so a read sees every commit that returned and never one that a
power cut could still take back.

Order that keeps the file whole (see `write_ahead_log` for the mark):
1. group commits into the log, log synced, mark written (synced too when it was settled before), callers told;
2. when the log is long: pages folded into the main file, main file synced, mark settled and synced; only then may the next
   group start the log anew, because no group runs meanwhile;
3. a failed sync is final: the kernel may have dropped the bytes, so the file refuses writes until it is opened again.

Bounds: `queue_max` waiting commits, then Overloaded. Source: sqlite.org/wal.html; "fsyncgate" (LWN 752063).
"""

import asyncio
import ctypes
import os
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import apsw
import msgspec

from fourplane.foundation import clock
from fourplane.foundation.blocking import Worker
from fourplane.foundation.errors import Corrupt, FourplaneError, Overloaded, Rejected, Unavailable
from fourplane.foundation.telemetry import Histogram
from fourplane.state.contracts import Row, SqlValue
from fourplane.state.embedded import write_ahead_log
from fourplane.state.embedded.sqlite_errors import spoils_group, translate
from fourplane.state.embedded.vfs import RESERVED_BYTES, WAL_HEADER_BYTES, Disk, scrub
from fourplane.state.embedded.write_ahead_log import FRAME_HEADER_BYTES, Mark

T = TypeVar("T")
Work = Callable[[apsw.Connection], T]
FRESH = Mark(salts=b"\0" * 8, end=0, settled=True)


class DatabaseSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of one file. Weights count statements or their like, about 5 us each."""

    page_bytes: int = 4_096
    cache_mib: int = 32
    queue_max: int = 20_000
    group_weight_max: int = 1_000
    inline_weight_max: int = 1_000
    checkpoint_bytes: int = 4 << 20
    inline_checkpoint_frames_max: int = 1_200
    read_rows_max: int = 10_000
    statement_cache: int = 200


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


class _Entry(Generic[T]):
    """One caller's part of a group."""

    __slots__ = ("error", "future", "result", "savepoint", "weight", "work")

    def __init__(self, work: Work[T], future: "asyncio.Future[T]", weight: int, savepoint: bool) -> None:  # noqa: FBT001 - hot path
        self.work = work
        self.future = future
        self.weight = weight
        self.savepoint = savepoint
        self.result: T | None = None
        self.error: BaseException | None = None


class Database:
    """A file (or memory, without a path) that many callers write to as one."""

    def __init__(
        self, path: Path | None, *, disk: Disk | None = None, settings: DatabaseSettings | None = None
    ) -> None:
        self._settings = settings or DatabaseSettings()
        self._own_disk = disk is None and path is not None
        self.path = path
        self._name = str(path) if path is not None else ":memory:"
        self._disk = disk if disk is not None or path is None else Disk()
        self._wal = f"{self._name}-wal"
        self._mark_path = f"{self._name}-mark"
        self._worker = Worker(f"database {path.name if path else 'memory'}", queue_max=64)
        self._queue: deque[_Entry[Any]] = deque()
        self._group_s = Histogram()
        self._commits = self._refused = self._groups = self._reads = self._checkpoints = 0
        self._busy = self._scheduled = self._stale = self._in_snapshot = False
        self._mark_settled = True
        self._log_end = 0
        self._failed: FourplaneError | None = None
        self._idle: asyncio.Future[None] | None = None
        self._undone: list[Callable[[], None]] = []
        self._writer: apsw.Connection
        self._reader: apsw.Connection
        self._open = False

    async def open(self) -> "Database":
        """Check, recover and open the file; raises Corrupt, or Unavailable when another process has it."""
        assert not self._open, "a database opens once"
        if self.path is None:
            self._writer = self._reader = self._memory()
        else:
            await self._worker.submit(self._open_file, self.path)
        self._open = True
        return self

    def transact(self, work: Work[T], *, weight: int = 1, savepoint: bool = True) -> "asyncio.Future[T]":
        """Run `work` inside the next group; the future is done when it is durable. Without `savepoint` it must be atomic."""
        if self._failed is not None:
            raise self._failed
        if not self._open:
            raise Unavailable(f"{self._name} is closed", code="closed")
        queue = self._queue
        if len(queue) >= self._settings.queue_max:
            raise Overloaded(f"{len(queue)} commits wait for {self._name}", retry_after_s=0.1)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        queue.append(_Entry(work, future, weight, savepoint))
        if not self._scheduled and not self._busy:
            self._scheduled = True
            loop.call_soon(self._flush)
        return future

    def when_undone(self, callback: Callable[[], None]) -> None:
        """Call this when a whole group was rolled back, before the next one runs: what works remembered is wrong."""
        self._undone.append(callback)

    def cursor(self, sql: str, parameters: tuple[SqlValue, ...] = ()) -> apsw.Cursor:
        """Rows one by one; the caller must use it up or close it before it waits."""
        self._reads += 1
        if self._stale:
            self._refresh()
        return self._reader.execute(sql, parameters)

    def read(self, sql: str, parameters: tuple[SqlValue, ...] = ()) -> list[Row]:
        """All rows of one query, inline."""
        self._reads += 1
        try:
            if self._stale:
                self._refresh()
            rows: list[Row] = self._reader.execute(sql, parameters).fetchall()
        except Exception as error:
            raise self._told(error) from error
        return rows

    def read_bounded(self, sql: str, parameters: tuple[SqlValue, ...] = ()) -> list[Row]:
        """The same for SQL of others: refuses writes and more than `read_rows_max` rows."""
        self._reads += 1
        bound = self._settings.read_rows_max
        try:
            if self._stale:
                self._refresh()
            cursor = self._reader.execute(sql, parameters)
            rows: list[Row] = list(islice(cursor, bound + 1))
            if len(rows) > bound:
                cursor.close()
        except Exception as error:
            raise self._told(error) from error
        if len(rows) > bound:
            raise Rejected(f"the query has more than {bound} rows; page through them", code="too_many_rows")
        return rows

    async def drain(self) -> None:
        """Wait until everything that was queued is durable."""
        while self._busy or self._queue:
            if self._idle is None:
                self._idle = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._idle)

    async def check(self) -> None:
        """Read every page of the file against its checksum; raises Corrupt naming the first bad one."""
        await self.drain()
        if self.path is None:
            return
        bad: list[int] = []
        await self._worker.submit(scrub, self.path, self._settings.page_bytes, bad.append)
        if bad:
            raise self._disk_or_fail().refuse(self._name, f"page {bad[0]}", "does not match its checksum")

    async def close(self) -> None:
        """Finish what is queued, fold the log into the file, release it."""
        if not self._open:
            return
        await self.drain()
        self._open = False
        if self.path is None:
            self._writer.close()
            return
        await self._worker.submit(self._close_file)
        self._worker.close()

    def abandon(self) -> None:
        """Let go without finishing anything, as a killed process would; for tests and the simulator."""
        self._open = False
        failure = Unavailable(f"{self._name} was abandoned", code="closed")
        self._failed = failure
        for entry in self._queue:
            if not entry.future.done():
                entry.future.set_exception(failure)
        self._queue.clear()
        self._worker.close()
        if self.path is not None:
            self._release()

    def statistics(self) -> DatabaseStatistics:
        return DatabaseStatistics(
            path=self._name,
            commits=self._commits,
            refused=self._refused,
            groups=self._groups,
            reads=self._reads,
            checkpoints=self._checkpoints,
            waiting=len(self._queue),
            log_bytes=self._log_end,
            file_bytes=self._disk.state(self._name).size if self._disk and self._open else 0,
            group_s_p50=self._group_s.quantile(0.5),
            group_s_p99=self._group_s.quantile(0.99),
            failed=self._failed.message if self._failed else "",
        )

    # ---- groups ----

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
        faults = self._disk.faults if self._disk else None
        if faults is not None and faults.stall_s > 0:
            stall_s, faults.stall_s = faults.stall_s, 0.0
            self._busy = True
            asyncio.get_running_loop().call_later(stall_s, self._run_group)
            return
        self._run_group()

    def _run_group(self) -> None:
        group, weight = self._next_group()
        self._busy = True
        began = clock.monotonic_s()
        if self._disk is None:
            self._settle(group, began, self._execute(group))
            return
        if self._stale:
            self._refresh()
        if weight > self._settings.inline_weight_max:
            done = self._worker.submit(self._execute_and_sync, group)
        else:
            error = self._execute(group)
            if error is not None or self._log_end == self._disk.state(self._wal).wal_end:
                self._settle(group, began, error)
                return
            done = self._worker.submit(self._sync_log)
        done.add_done_callback(partial(self._synced, group, began))

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
            for entry in group:
                if entry.savepoint:
                    execute("SAVEPOINT caller")
                    try:
                        entry.result = entry.work(writer)
                    except Exception as error:
                        if spoils_group(error):
                            raise
                        execute("ROLLBACK TO caller")
                        entry.error = error
                    execute("RELEASE caller")
                    continue
                try:
                    entry.result = entry.work(writer)
                except Exception as error:
                    if spoils_group(error):
                        raise
                    entry.error = error
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
        self._sync_log()

    def _sync_log(self) -> None:
        """Make the log durable, then mark it acknowledged; on the worker."""
        disk = self._disk_or_fail()
        state = disk.state(self._wal)
        if state.wal_end == self._log_end:
            return
        disk.sync(self._wal)
        disk.pwrite(self._mark_path, Mark(salts=state.wal_salts, end=state.wal_end, settled=False).encode(), 0)
        if self._mark_settled:
            disk.sync(self._mark_path)
            self._mark_settled = False
        self._log_end = state.wal_end

    def _synced(self, group: list[_Entry[Any]], began: float, done: "asyncio.Future[None]") -> None:
        error = None if done.cancelled() else done.exception()
        if isinstance(error, _Undone):
            self._settle(group, began, error.__cause__)
            return
        if error is not None or done.cancelled():
            told = f"{self._name} could not be synced ({error!r}); open it again"
            self._failed = Unavailable(told, code="sync_failed", file=self._name)
            self._settle(group, began, self._failed)
            self._give_up()
            return
        self._stale = True
        self._settle(group, began, None)

    def _settle(self, group: list[_Entry[Any]], began: float, error: BaseException | None) -> None:
        """Tell every caller of a finished group and go on."""
        self._groups += 1
        self._group_s.record(clock.monotonic_s() - began)
        for entry in group:
            failure = error if error is not None else entry.error
            if failure is None:
                self._commits += 1
            else:
                self._refused += 1
            if entry.future.done():
                continue
            if failure is None:
                entry.future.set_result(entry.result)
            else:
                entry.future.set_exception(self._told(failure))
        self._busy = False
        if self._failed is not None:
            return
        if self._log_end >= self._settings.checkpoint_bytes:
            self._checkpoint()
        elif not self._scheduled:
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

    # ---- checkpoints ----

    def _checkpoint(self) -> None:
        """Fold the log into the main file while no group runs."""
        self._busy = True
        frames = self._log_end // (self._settings.page_bytes + FRAME_HEADER_BYTES)
        if self._in_snapshot:
            self._reader.execute("COMMIT")
            self._in_snapshot = False
        self._stale = True
        try:
            if frames <= self._settings.inline_checkpoint_frames_max:
                whole = self._fold()
                done = self._worker.submit(self._settle_mark, whole)
            else:
                done = self._worker.submit(self._fold_and_settle)
        except (apsw.Error, Corrupt, OSError, Overloaded) as error:
            self._checkpoint_failed(error)
            return
        done.add_done_callback(self._checkpointed)

    def _fold(self) -> bool:
        total, copied = self._writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        return bool(total == copied)

    def _fold_and_settle(self) -> None:
        self._settle_mark(self._fold())

    def _settle_mark(self, whole: bool) -> None:  # noqa: FBT001 - handed through the worker
        """Sync the main file, then say durably that the log may be overwritten."""
        disk = self._disk_or_fail()
        disk.sync(self._name)
        if not whole:
            return
        disk.pwrite(self._mark_path, Mark(salts=disk.state(self._wal).wal_salts, end=0, settled=True).encode(), 0)
        disk.sync(self._mark_path)
        self._mark_settled = True
        self._log_end = disk.state(self._wal).wal_end = 0

    def _checkpointed(self, done: "asyncio.Future[None]") -> None:
        error = None if done.cancelled() else done.exception()
        if error is not None or done.cancelled():
            self._checkpoint_failed(error)
            return
        self._checkpoints += 1
        self._stale = True
        self._busy = False
        self._flush()

    def _checkpoint_failed(self, error: BaseException | None) -> None:
        """What was acknowledged is safe in the log; nothing new is taken."""
        self._busy = False
        told = translate(error, self._name) if error is not None else None
        self._failed = (
            told if isinstance(told, FourplaneError) else Unavailable(f"{self._name}: {error!r}", code="disk_failed")
        )
        self._give_up()

    # ---- files ----

    def _memory(self) -> apsw.Connection:
        connection = apsw.Connection(":memory:", statementcachesize=self._settings.statement_cache)
        connection.execute("PRAGMA foreign_keys=ON").fetchall()
        return connection

    def _open_file(self, path: Path) -> None:
        disk = self._disk_or_fail()
        path.parent.mkdir(parents=True, exist_ok=True)
        disk.claim(self._mark_path)
        try:
            self._recover(path, disk)
        except BaseException as error:
            self._release()
            told = self._told(error)
            if told is error:
                raise
            raise told from error

    def _recover(self, path: Path, disk: Disk) -> None:
        settings = self._settings
        mark = write_ahead_log.read_mark(Path(self._mark_path))
        page_bytes = _page_bytes(path, lost=mark is not None and mark != FRESH)
        if page_bytes and page_bytes != settings.page_bytes:
            self._settings = settings = msgspec.structs.replace(settings, page_bytes=page_bytes)
        disk.expect(path, settings.page_bytes)
        wal = Path(self._wal)
        found = write_ahead_log.scan(wal)
        if not write_ahead_log.judge(wal, mark, found) and found.size:
            os.truncate(wal, 0)
        if mark is None:
            disk.pwrite(self._mark_path, FRESH.encode(), 0)
            disk.sync(self._mark_path)
        self._writer = self._connect(path, disk)
        self._writer.execute("PRAGMA cache_spill=OFF").fetchall()
        self._reader = self._connect(path, disk)
        self._reader.execute("PRAGMA query_only=ON").fetchall()
        disk.state(self._wal).wal_salts = found.salts or FRESH.salts
        if not self._fold():
            raise Unavailable(f"{path} is in use by somebody else", code="locked")
        self._settle_mark(whole=True)
        _sync_folder(path.parent)
        size, pages = path.stat().st_size, int(self._writer.execute("PRAGMA page_count").fetchall()[0][0])
        if size < pages * settings.page_bytes:
            raise disk.refuse(
                self._name, f"page {size // settings.page_bytes + 1}", f"is missing, {pages} were written"
            )
        self._refresh()

    def _connect(self, path: Path, disk: Disk) -> apsw.Connection:
        settings = self._settings
        connection = apsw.Connection(str(path), vfs=disk.name, statementcachesize=settings.statement_cache)
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        reserved = ctypes.c_int(RESERVED_BYTES)
        connection.file_control("main", apsw.SQLITE_FCNTL_RESERVE_BYTES, ctypes.addressof(reserved))
        for pragma in (
            f"page_size={settings.page_bytes}",
            "journal_mode=WAL",
            "synchronous=FULL",
            "wal_autocheckpoint=0",
            f"cache_size={-settings.cache_mib * 1024}",
            "foreign_keys=ON",
            "temp_store=MEMORY",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        return connection

    def _close_file(self) -> None:
        if self._failed is None:
            if self._in_snapshot:
                self._reader.execute("COMMIT")
                self._in_snapshot = False
            if self._log_end > WAL_HEADER_BYTES:
                self._settle_mark(self._fold())
        self._release()
        if self._failed is None:
            for left in (self._wal, f"{self._name}-shm"):
                Path(left).unlink(missing_ok=True)

    def _release(self) -> None:
        for name in ("_reader", "_writer"):
            connection = getattr(self, name, None)
            if connection is not None:
                connection.close(True)
        disk = self._disk_or_fail()
        disk.forget([self._name, self._wal, self._mark_path])
        if self._own_disk:
            disk.close()

    def _told(self, error: BaseException) -> BaseException:
        corrupt = self._disk.last_corrupt if self._disk else None
        return translate(error, self._name, corrupt)

    def _disk_or_fail(self) -> Disk:
        assert self._disk is not None, "memory has no disk"
        return self._disk


class _Undone(Exception):
    """A group on the worker was rolled back; the cause says why."""


def _page_bytes(path: Path, *, lost: bool) -> int:
    """The page size of an existing file, 0 for a new one; raises Corrupt when it is not one of ours."""
    header = b""
    if path.exists():
        with path.open("rb") as file:
            header = file.read(100)
    if not header and not lost:
        return 0
    if len(header) < 100 or header[:16] != b"SQLite format 3\0":
        what = "is missing" if not header else "is not a database"
        raise Corrupt(f"{path}: {what}", file=str(path), place="page 1")
    if header[20] != RESERVED_BYTES:
        raise Corrupt(f"{path}: pages carry no checksums ({header[20]} reserved bytes)", file=str(path), place="page 1")
    size = int.from_bytes(header[16:18], "big")
    return 65_536 if size == 1 else size


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

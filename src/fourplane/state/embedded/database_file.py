"""One SQLite file on a checksumming disk: opened with suspicion, synced in the right order, let go of cleanly.

Everything here may wait for the disk, so `Database` calls it on its worker (the fold excepted, unless it is a long one). What
has to be synced is told step by step: a thread goes the steps and waits at each, or the kernel is asked for each. Order:
1. a group's log bytes are synced, then the mark is written (synced too when it was settled), then callers are told;
2. pages are folded into the main file, the main file is synced, the mark is settled and synced; only after that may the log
   start anew. `write_ahead_log` explains what the mark proves.
Folding and syncing may go on in parts while the log grows: it holds every page until the mark says that it need not. SQLite
starts a log anew when all of it was folded and nobody reads from it, so whoever folds a part must have a reader at its end.
"""

import ctypes
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import apsw
import msgspec

from fourplane.foundation.disk_sync import DiskSync
from fourplane.foundation.errors import Corrupt, Unavailable
from fourplane.state.embedded import write_ahead_log
from fourplane.state.embedded.sqlite_errors import translate
from fourplane.state.embedded.vfs import RESERVED_BYTES, WAL_HEADER_BYTES, Disk
from fourplane.state.embedded.write_ahead_log import FRAME_HEADER_BYTES, Mark

FRESH = Mark(salts=b"\0" * 8, end=0, settled=True)
HEADER_BYTES = 100
Steps = Iterator[str]  # each names a file that must be durable before the next one
Told = Callable[[BaseException | None], object]


class FileSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Shape of a new file and memory for its pages; an existing file keeps its page size."""

    page_bytes: int = 4_096
    cache_mib: int = 32
    statement_cache: int = 200


class DatabaseFile:
    """A writing and a reading connection to one file, and how much of its log is durable."""

    def __init__(self, path: Path, disk: Disk | None, settings: FileSettings) -> None:
        self.path = path
        self.name = str(path)
        self.wal = f"{path}-wal"
        self.mark = f"{path}-mark"
        self.disk = disk or Disk()
        self._own_disk = disk is None
        self.page_bytes = settings.page_bytes
        self._settings = settings
        self.log_end = 0
        self.folded_end = 0
        self.syncs: DiskSync | None = None
        self.writer: apsw.Connection
        self.reader: apsw.Connection

    @property
    def log_grew(self) -> bool:
        """Whether the log holds bytes that are not synced yet."""
        return self.disk.state(self.wal).wal_end != self.log_end

    @property
    def frames(self) -> int:
        """Pages in the log that were not folded."""
        return (self.log_end - self.folded_end) // (self.page_bytes + FRAME_HEADER_BYTES)

    def open(self) -> None:
        """Check, recover, open; raises Corrupt, or Unavailable when somebody else has the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.disk.claim(self.mark)
        try:
            self._recover()
        except BaseException as error:
            self.release()
            told = translate(error, self.name, self.disk.last_corrupt)
            if told is error:
                raise
            raise told from error

    def sync_log(self) -> None:
        """Make the log durable, then mark it acknowledged."""
        self.sync_each(self.syncing_log())

    def syncing_log(self) -> Steps:
        """The steps of it: at each a file is to be synced."""
        disk, state = self.disk, self.disk.state(self.wal)
        if state.wal_end == self.log_end:
            return
        yield self.wal
        disk.pwrite(self.mark, Mark(salts=state.wal_salts, end=state.wal_end, settled=False).encode(), 0)
        if state.settled:
            yield self.mark
            state.settled = False
        self.log_end = state.wal_end

    def fold(self) -> bool:
        """Copy the log's pages into the main file; True when none is left behind."""
        log = self.disk.state(self.wal)
        log.folding = True
        try:
            total, copied = self.writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        finally:
            log.folding, log.folded = False, None
        if total != copied:
            return False
        self.folded_end = self.log_end
        return True

    def settling(self, *, whole: bool) -> Steps:
        """Steps: sync the main file, then say durably that the log may be overwritten."""
        yield self.name
        if not whole:
            return
        disk, state = self.disk, self.disk.state(self.wal)
        disk.pwrite(self.mark, Mark(salts=state.wal_salts, end=0, settled=True).encode(), 0)
        yield self.mark
        state.settled = True
        self.log_end = self.folded_end = state.wal_end = 0

    def fold_and_settle(self) -> None:
        """Fold, then go the steps behind it."""
        self.sync_each(self.settling(whole=self.fold()))

    def sync_each(self, steps: Steps) -> None:
        """Go these steps, waiting for the disk at each."""
        for path in steps:
            self.disk.sync(path)

    def begin(self, steps: Steps, told: Told) -> bool:
        """Go them without waiting; `told` hears on the loop how it ended. False where the system cannot do that."""
        if self.syncs is None or self.disk.faults is not None:
            return False
        self._go_on(steps, told, None)
        return True

    def _go_on(self, steps: Steps, told: Told, error: OSError | None) -> None:
        try:
            if error is None and self._under_way(steps, partial(self._go_on, steps, told)):
                return
        except OSError as failed:
            error = failed
        told(error)

    def _under_way(self, steps: Steps, then: Callable[[OSError | None], None]) -> bool:
        """Whether a sync has begun, behind which it goes on; else all steps were gone."""
        for path in steps:
            syncs = self.syncs
            if syncs is not None:
                self.disk.syncs += 1
                if syncs.begin(self.disk.descriptor(path), then):
                    return True
                self.leave_kernel()  # a file system without such a call: from now on a thread waits
            self.disk.sync(path)
        return False

    def leave_kernel(self) -> None:
        """Ask it for no more syncs; called on the loop, and tells how the one under way ended."""
        syncs, self.syncs = self.syncs, None
        if syncs is not None:
            syncs.close()

    def close(self) -> None:
        """Fold what is left and let go; the log is removed when nothing in it counts.

        A disk that refuses is told, and what it held is let go of all the same: a connection that stayed would know pages as
        folded which never reached the disk, and whoever opens the file next in this process would believe it.
        """
        whole = False
        try:
            self.sync_log()
            if self.log_end > WAL_HEADER_BYTES:
                self.fold_and_settle()
            whole = self.disk.state(self.wal).settled
        finally:
            self.release()
        if whole:
            for left in (self.wal, f"{self.name}-shm"):
                Path(left).unlink(missing_ok=True)

    def release(self) -> None:
        """Close the connections, then the descriptors, as they are."""
        self.leave_kernel()
        for name in ("reader", "writer"):
            connection = getattr(self, name, None)
            if connection is not None:
                connection.close(True)
        self.disk.forget([self.name, self.wal, self.mark])
        if self._own_disk:
            self.disk.close()

    def _recover(self) -> None:
        disk, path = self.disk, self.path
        mark = write_ahead_log.read_mark(Path(self.mark))
        self.page_bytes = _page_bytes(path, lost=mark is not None and mark != FRESH) or self.page_bytes
        disk.expect(path, self.page_bytes)
        wal = Path(self.wal)
        found = write_ahead_log.scan(wal)
        if not write_ahead_log.judge(wal, mark, found) and found.size:
            os.truncate(wal, 0)
        if mark is None:
            disk.pwrite(self.mark, FRESH.encode(), 0)
            disk.sync(self.mark)
        disk.opening_writer = True
        self.writer = self._connect()
        self.writer.execute(
            "SELECT 1 FROM sqlite_schema LIMIT 1"
        ).fetchall()  # SQLite opens the log with the first read
        disk.opening_writer = False
        self.writer.execute("PRAGMA cache_spill=OFF").fetchall()
        self.reader = self._connect()
        self.reader.execute("PRAGMA query_only=ON").fetchall()
        disk.state(self.wal).wal_salts = found.salts or FRESH.salts
        if not self.fold():
            raise Unavailable(f"{path} is in use by somebody else", code="locked", file=self.name)
        self.sync_each(self.settling(whole=True))
        _sync_folder(path.parent)
        size = path.stat().st_size
        pages = self.writer.pragma("page_count")
        assert isinstance(pages, int)
        if size < pages * self.page_bytes:
            raise disk.refuse(self.name, f"page {size // self.page_bytes + 1}", f"is missing, {pages} were written")

    def _connect(self) -> apsw.Connection:
        settings = self._settings
        connection = apsw.Connection(self.name, vfs=self.disk.name, statementcachesize=settings.statement_cache)
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        reserved = ctypes.c_int(RESERVED_BYTES)
        connection.file_control("main", apsw.SQLITE_FCNTL_RESERVE_BYTES, ctypes.addressof(reserved))
        for pragma in (
            f"page_size={self.page_bytes}",
            "journal_mode=WAL",
            "synchronous=FULL",
            "wal_autocheckpoint=0",
            f"cache_size={-settings.cache_mib * 1024}",
            "foreign_keys=ON",
            "temp_store=MEMORY",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        return connection


def _page_bytes(path: Path, *, lost: bool) -> int:
    """The page size of an existing file, 0 for a new one; raises Corrupt when it is not one of ours."""
    header = b""
    if path.exists():
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES)
    if not header and not lost:
        return 0
    if len(header) < HEADER_BYTES or header[:16] != b"SQLite format 3\0":
        what = "is missing" if not header else "is not a database"
        raise Corrupt(f"{path}: {what}", file=str(path), place="page 1")
    size = int.from_bytes(header[16:18], "big")
    if header[20] != RESERVED_BYTES or size & (size - 1):
        raise Corrupt(f"{path}: not made here, or its header is damaged", file=str(path), place="page 1")
    return 65_536 if size == 1 else size


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""The disk under the embedded engines: SQLite's files with page checksums, counted syncs and faults to order.

SQLite asks this layer (a VFS) for every byte. It adds what SQLite leaves out:

* *Pages of the database file* end with 8 reserved bytes: CRC-32 of the page seeded with its number, and a format tag.
  They are written on the way out and checked on the way in, so a flipped byte, a page that landed elsewhere or a file
  cut short raises `Corrupt` with file and page. Growing never leaves holes, so an all-zero page is corrupt too.
* *Frames of the write-ahead log* get their page's CRC when they are written. Readers check it; folding hands it on to the
  page in the database file unchecked, so a frame that rotted in between stays recognisable there (end to end, one
  CRC per page written). Before a file is opened the whole log is checked by `write_ahead_log.scan` against the acknowledged mark.
* *Syncs are taken over by the caller*: SQLite's own sync calls only mark a file as dirty, and `Disk.sync` makes it
  durable, on a thread, for a whole group of commits at once. The rules that keep this safe stand in `database.py`.
* *Faults*: with `Disk(faults=Faults())` every write since the last sync can be undone (`crash`), torn, refused because
  the disk is full, and syncs can fail. Undo reads the old bytes first, so only tests and the simulator pay for it.

Cost: about 1.5 us per page read or written, and 1.7 us for the CRC of 4 KiB.
"""

import errno
import fcntl
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

import apsw
import msgspec

from fourplane.foundation.errors import Corrupt, Unavailable

RESERVED_BYTES = 8
PAGE_TAG = 0x31635046  # "FPc1" read as a little-endian integer
WAL_HEADER_BYTES = 32
FRAME_HEADER_BYTES = 24
SECTOR_BYTES = 512
GATHERED_BYTES_MAX = 0x1FFFF  # more in one call SQLite takes for a full disk
_TRAILER = struct.Struct("<II")
_serial = iter(range(1, 1 << 62))


class DiskStatistics(msgspec.Struct, frozen=True):
    """What went through one disk since it was made."""

    reads: int
    writes: int
    written_bytes: int
    syncs: int
    corrupt_pages: int


class Faults:
    """What goes wrong with a disk; set the fields while it runs."""

    __slots__ = ("failing_syncs", "free_bytes", "stall_s")

    def __init__(self, *, free_bytes: int | None = None, failing_syncs: int = 0, stall_s: float = 0.0) -> None:
        self.free_bytes = free_bytes
        self.failing_syncs = failing_syncs
        self.stall_s = stall_s


class FileState:
    """What the disk knows of one open file, shared by all connections to it."""

    __slots__ = ("folded", "folding", "frames", "page_bytes", "path", "settled", "size", "wal_end", "wal_salts")

    def __init__(self, path: str, page_bytes: int) -> None:
        self.path = path
        self.page_bytes = page_bytes
        self.size = os.path.getsize(path) if os.path.exists(path) else 0  # noqa: PTH202, PTH110 - paths are SQLite's strings
        self.frames: dict[int, tuple[int, int]] = {}  # offset in the log -> page number, CRC
        self.folding = False
        self.folded: tuple[int, int] | None = None  # page number and CRC of the frame read last while folding
        self.wal_end = 0
        self.wal_salts = b"\0" * 8
        self.settled = True  # whatever the log held is durable in the main file, and durably said to be


class Disk:
    """The files of one or more databases of this process, and everything that can go wrong with them."""

    def __init__(self, *, faults: Faults | None = None) -> None:
        self.faults = faults
        self.name = f"fourplane-{next(_serial)}"
        self.reads = self.writes = self.written_bytes = self.syncs = self.corrupt_pages = 0
        self.last_corrupt: Corrupt | None = None
        self.opening_writer = False
        self._files: dict[str, FileState] = {}
        self._descriptors: dict[str, int] = {}
        self._undo: dict[str, list[tuple[int, bytes, int]]] = {}  # by file: writes that no sync has made durable
        self._page_bytes: dict[str, int] = {}
        self._one_call = hasattr(os, "RWF_DSYNC")
        self._vfs = _Vfs(self)

    def expect(self, path: Path, page_bytes: int) -> None:
        """Name the page size of a database before it is opened."""
        self._page_bytes[str(path)] = page_bytes
        self._page_bytes[f"{path}-wal"] = page_bytes

    def claim(self, path: str) -> None:
        """Lock a file against every other opener, in this process or another; raises Unavailable when it is taken."""
        taken = Unavailable(f"{path.removesuffix('-mark')} is already open", code="locked", file=path)
        if path in self._descriptors:
            raise taken
        descriptor = self.descriptor(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._descriptors.pop(path))
            raise taken from None

    def state(self, path: str) -> FileState:
        """What is known of a file, made on first use."""
        known = self._files.get(path)
        if known is None:
            known = self._files[path] = FileState(path, self._page_bytes.get(path, 4_096))
        return known

    def sync(self, path: str) -> None:
        """Make a file's bytes durable; called off the loop. Raises OSError when the disk says no."""
        self.syncs += 1
        faults = self.faults
        if faults is not None:
            if faults.failing_syncs > 0:
                faults.failing_syncs -= 1
                raise OSError(5, "injected: the disk refused to sync", path)
            self._undo.pop(path, None)
        os.fdatasync(self.descriptor(path))

    def pwrite(self, path: str, content: bytes, offset: int) -> None:
        """Write a few bytes of a file that is not SQLite's (the acknowledged mark)."""
        if self.faults is not None:
            self._remember(path, offset, len(content))
        os.pwrite(self.descriptor(path), content, offset)

    def append(self, path: str, parts: list[bytes], offset: int, size: int) -> None:
        """Write `size` bytes of a file that is not SQLite's; raises OSError, ENOSPC among them."""
        faults = self.faults
        if faults is not None:
            if faults.free_bytes is not None:
                if faults.free_bytes < size:
                    raise OSError(errno.ENOSPC, "injected: the disk is full", path)
                faults.free_bytes -= size
            self._remember(path, offset, size)
        written = os.pwritev(self.descriptor(path), parts, offset)
        if written < size:  # a signal or a nearly full disk: what is left says which
            rest = memoryview(b"".join(parts))
            while written < size:
                written += os.pwrite(self.descriptor(path), rest[written:], offset + written)
        self.writes += 1
        self.written_bytes += size

    def append_durably(self, path: str, parts: list[bytes], offset: int, size: int) -> None:
        """`append` and `sync` in one call of the system, so that no other thread's turn comes between; raises as `append`.

        What was written into the file before is not made durable by it.
        """
        if self.faults is None and self._one_call:
            try:
                written = os.pwritev(self.descriptor(path), parts, offset, os.RWF_DSYNC)
            except OSError as error:
                if error.errno not in {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}:
                    raise
                self._one_call = False  # the file system has no such call
            else:
                if written == size:
                    self.writes += 1
                    self.written_bytes += size
                    self.syncs += 1
                    return
        self.append(path, parts, offset, size)
        self.sync(path)

    def read(self, path: str, size: int, offset: int) -> bytes:
        """Bytes of such a file; raises FileNotFoundError."""
        if path not in self._descriptors and not os.path.exists(path):  # noqa: PTH110 - paths are strings here
            raise FileNotFoundError(path)
        self.reads += 1
        return os.pread(self.descriptor(path), size, offset)

    def truncate(self, path: str, size: int) -> None:
        """Cut such a file off."""
        if self.faults is not None:
            present = os.path.getsize(path)  # noqa: PTH202 - paths are strings here
            if present > size:
                self._remember(path, size, present - size)
        os.ftruncate(self.descriptor(path), size)

    def forget(self, paths: list[str]) -> None:
        """Close what was opened for these files; only after SQLite closed them, or its locks would be lost."""
        for path in paths:
            descriptor = self._descriptors.pop(path, None)
            if descriptor is not None:
                os.close(descriptor)
            self._files.pop(path, None)

    def crash(self, rng: Random | None = None) -> int:
        """Lose every write that was not synced, as a power cut does; returns how many. With `rng` some stay, some tear.

        The databases on this disk must have been abandoned before.
        """
        undone = 0
        unsynced = [(path, *write) for path, writes in self._undo.items() for write in reversed(writes)]
        for path, offset, before, size_before in unsynced:
            fate = rng.random() if rng is not None else 0.0
            if fate > 0.7 or not os.path.exists(path):  # noqa: PTH110 - paths are SQLite's strings
                continue
            undone += 1
            keep = (
                int(len(before) * rng.random()) // SECTOR_BYTES * SECTOR_BYTES if rng is not None and fate > 0.4 else 0
            )
            with open(path, "r+b") as file:  # noqa: PTH123 - paths are SQLite's strings
                file.seek(offset + keep)
                file.write(before[keep:])
                if rng is None:
                    file.truncate(size_before)
        self._undo.clear()
        self.forget(list(self._files) + list(self._descriptors))
        return undone

    def unlearn(self) -> None:
        """Forget what a power cut would undo; for a disk whose faults are over."""
        self._undo.clear()

    def statistics(self) -> DiskStatistics:
        return DiskStatistics(self.reads, self.writes, self.written_bytes, self.syncs, self.corrupt_pages)

    def close(self) -> None:
        """Release descriptors and the name; every database on it must be closed."""
        self.forget(list(self._files) + list(self._descriptors))
        self._vfs.unregister()

    def refuse(self, path: str, place: str, why: str) -> Corrupt:
        """Count a corrupt place and return the error to raise."""
        self.corrupt_pages += 1
        self.last_corrupt = Corrupt(f"{path}: {place} {why}", file=path, place=place)
        return self.last_corrupt

    def before_write(self, path: str, offset: int, length: int) -> None:
        """Apply the ordered faults to one write."""
        faults = self.faults
        assert faults is not None
        if faults.free_bytes is not None:
            if faults.free_bytes < length:
                raise apsw.FullError(f"injected: the disk is full, {length} bytes for {path}")
            faults.free_bytes -= length
        self._remember(path, offset, length)

    def _remember(self, path: str, offset: int, length: int) -> None:
        size = os.path.getsize(path) if os.path.exists(path) else 0  # noqa: PTH202, PTH110 - paths are SQLite's strings
        before = b""
        if size > offset:
            before = os.pread(self.descriptor(path), min(length, size - offset), offset)
        self._undo.setdefault(path, []).append((offset, before.ljust(length, b"\0"), size))

    def descriptor(self, path: str) -> int:
        descriptor = self._descriptors.get(path)
        if descriptor is None:
            descriptor = self._descriptors[path] = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        return descriptor


class _Vfs(apsw.VFS):
    """Routes SQLite's files to the classes below; temporary files go straight to the machine."""

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk.name, "")
        self._disk = disk

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - SQLite's name
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        if isinstance(path, str) and flags[0] & apsw.SQLITE_OPEN_MAIN_DB:
            return _DatabaseFile(self._disk, path, name, flags)
        if isinstance(path, str) and flags[0] & apsw.SQLITE_OPEN_WAL:
            return _LogFile(self._disk, path, name, flags)
        return apsw.VFSFile("", name, flags)


class _DatabaseFile(apsw.VFSFile):
    """The main file: pages with a checksum each."""

    def __init__(self, disk: Disk, path: str, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        super().__init__("", name, flags)
        self._disk = disk
        self._state = disk.state(path)
        self._page_bytes = self._state.page_bytes
        self._log = disk.state(f"{path}-wal")

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802 - SQLite's name
        data: bytes = super().xRead(amount, offset)
        disk = self._disk
        disk.reads += 1
        if amount == self._page_bytes:
            page = offset // amount + 1
            if len(data) != amount:
                raise disk.refuse(self._state.path, f"page {page}", "is cut short")
            if not page_is_whole(data, page):
                raise disk.refuse(self._state.path, f"page {page}", "does not match its checksum")
        return data

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802 - SQLite's name
        state = self._state
        size = len(data)
        if size != self._page_bytes or offset % size:
            raise apsw.IOError(f"{state.path}: a write of {size} bytes at {offset} is not a page")
        page = offset // size + 1
        while state.size < offset:
            self._write(seal_page(bytes(size), state.size // size + 1), state.size)
        folded, self._log.folded = self._log.folded, None
        if folded is not None and folded[0] == page:
            self._write(data, offset)  # two writes cost less than one more copy of the page
            self._write(_TRAILER.pack(folded[1], PAGE_TAG), offset + size - RESERVED_BYTES)
        else:
            self._write(seal_page(data, page), offset)

    def xSync(self, _flags: int) -> None:  # noqa: N802 - SQLite's name
        """Nothing: `DatabaseFile` knows when to sync."""

    def xTruncate(self, newsize: int) -> None:  # noqa: N802 - SQLite's name
        super().xTruncate(newsize)
        self._state.size = newsize

    def _write(self, data: bytes, offset: int) -> None:
        disk, state = self._disk, self._state
        if disk.faults is not None:
            disk.before_write(state.path, offset, len(data))
        super().xWrite(data, offset)
        disk.writes += 1
        disk.written_bytes += len(data)
        state.size = max(state.size, offset + len(data))


class _LogFile(apsw.VFSFile):
    """The write-ahead log: SQLite's frames, remembered by checksum until they are folded into the main file."""

    def __init__(self, disk: Disk, path: str, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        super().__init__("", name, flags)
        self._disk = disk
        self._state = disk.state(path)
        self._page_bytes = self._state.page_bytes
        self._writer = disk.opening_writer
        self._page = 0
        self._parts: list[bytes] = []
        self._parts_at = self._parts_bytes = 0

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802 - SQLite's name
        if self._parts:
            self._write_out()
        data: bytes = super().xRead(amount, offset)
        disk = self._disk
        disk.reads += 1
        if amount == self._page_bytes and (known := self._state.frames.get(offset)) is not None:
            page, checksum = known
            if self._writer and self._state.folding:
                self._state.folded = known
            elif checksum != zlib.crc32(memoryview(data)[:-RESERVED_BYTES], page):
                raise disk.refuse(self._state.path, f"byte {offset}", "is not what was written")
        return data

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802 - SQLite's name
        """Gather: the frames of one commit go to the disk in one call, when SQLite syncs and before it believes them."""
        state = self._state
        size = len(data)
        if offset == 0 and size == WAL_HEADER_BYTES and not state.settled:
            raise apsw.IOError(f"{state.path}: begins anew while the main file may lack what it holds")
        if not self._parts:
            self._parts_at = offset
        elif offset != self._parts_at + self._parts_bytes or self._parts_bytes + size > GATHERED_BYTES_MAX:
            self._write_out()
            self._parts_at = offset
        self._parts.append(data)
        self._parts_bytes += size
        if size == self._page_bytes:
            page = self._page
            state.frames[offset] = page, zlib.crc32(memoryview(data)[:-RESERVED_BYTES], page)
        elif size == FRAME_HEADER_BYTES:
            self._page = int.from_bytes(data[:4], "big")
        elif offset == 0 and size == WAL_HEADER_BYTES:
            state.wal_salts = bytes(data[16:24])
            state.frames.clear()
        state.wal_end = offset + size

    def xSync(self, _flags: int) -> None:  # noqa: N802 - SQLite's name
        """Hand on what was gathered; `DatabaseFile` knows when to make it durable."""
        if self._parts:
            self._write_out()

    def xFileSize(self) -> int:  # noqa: N802 - SQLite's name
        if self._parts:
            self._write_out()
        return super().xFileSize()

    def xTruncate(self, newsize: int) -> None:  # noqa: N802 - SQLite's name
        if self._parts:
            self._write_out()
        super().xTruncate(newsize)

    def _write_out(self) -> None:
        parts, self._parts = self._parts, []
        size, self._parts_bytes = self._parts_bytes, 0
        disk = self._disk
        if disk.faults is not None:
            disk.before_write(self._state.path, self._parts_at, size)
        super().xWrite(b"".join(parts), self._parts_at)
        disk.writes += 1
        disk.written_bytes += size


def seal_page(data: bytes, page: int) -> bytes:
    """The page with its checksum in the last 8 bytes."""
    body = memoryview(data)[:-RESERVED_BYTES]
    return b"".join((body, _TRAILER.pack(zlib.crc32(body, page), PAGE_TAG)))


def page_is_whole(data: bytes, page: int) -> bool:
    """Whether the page is what `seal_page` wrote for this page number."""
    checksum, tag = _TRAILER.unpack_from(data, len(data) - RESERVED_BYTES)
    return bool(tag == PAGE_TAG and checksum == zlib.crc32(memoryview(data)[:-RESERVED_BYTES], page))


def scrub(path: Path, page_bytes: int, corrupt: Callable[[int], None]) -> int:
    """Check every page of a database file that nobody writes to at the moment; returns how many there are."""
    pages = 0
    with path.open("rb") as file:
        while data := file.read(page_bytes):
            pages += 1
            if len(data) != page_bytes or not page_is_whole(data, pages):
                corrupt(pages)
    return pages

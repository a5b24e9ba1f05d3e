"""Append-only files of checksummed frames: where the event log keeps its events, each byte written once.

A segment is a file `<number>.segment`; a frame in it is 24 bytes of header and a body:

    4s tag | u32 CRC-32 of what follows | u64 key | u32 count | u32 length | body        (little-endian)

A full segment ends with an empty frame tagged as its end, so that a cut behind a whole frame shows too. `acknowledged` is the
mark of `write_ahead_log`, written after the sync and before anybody is told: on opening, every frame from the given
place up to the mark must be whole, else `Corrupt` names file and byte; what lies behind the mark is taken as far as it is
whole and cut off there. Later reads check the frame they read. Not detected: what `write_ahead_log` lists for power cuts.

Appending to a file changes its size, which a sync has to write to the file system's own journal: 0.5 ms, 8 ms for one in ten.
So a segment of small writes has zeros behind its last frame, written some steps ahead (`AHEAD_*`): a sync then writes the frames
and nothing else, 0.1 ms. What is not a frame ends a segment, and zeros are none.

`write` and `open` wait for the disk and run on a worker; `read` is a few microseconds from the page cache. A write that failed
is cut away again before the next one, so that no frame of it can come back; a sync that failed is final.
"""

import contextlib
import errno
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from fourplane.foundation.errors import Corrupt
from fourplane.state.embedded.vfs import Disk
from fourplane.state.embedded.write_ahead_log import Mark, read_mark

PLACE_BITS = 40
PLACE_MASK = (1 << PLACE_BITS) - 1
HEADER = struct.Struct("<4sIQII")
_CHECKED = struct.Struct("<QII")
HEADER_BYTES = HEADER.size
FRAME_BYTES_MAX = 64 << 20
_FRAME, _END = b"FPb1", b"FPz1"
_JOIN_BYTES_MAX = 256 << 10
_VECTOR_MAX = 256
SMALL_BYTES = 64 << 10  # a larger write takes longer than the change of the size
AHEAD_LEAST, AHEAD_MOST = 64 << 10, 4 << 20  # as many zeros as there are bytes, within these bounds


class Frame(msgspec.Struct, frozen=True, gc=False):
    """Where a body lies (`at`: segment << 40 | byte) and what its header says."""

    at: int
    key: int
    count: int
    size: int


class SyncFailed(Exception):
    """The disk may have dropped bytes; nothing more may be written before the files are opened again."""


class FrameStore(Protocol):
    """Frames on a disk, or in memory for a log that goes with the process."""

    def open(self, start: int) -> list[Frame]: ...
    def write(
        self, bodies: Sequence[tuple[int, int, bytes]], begun: Callable[[], object] | None = None
    ) -> list[Frame]: ...
    def read(self, frame: Frame) -> bytes: ...
    def drop(self, number: int) -> None: ...
    def take_stall_s(self) -> float: ...
    def close(self) -> None: ...


class Segments:
    """The frames of one event log in a folder of its own; one opener, guarded by the lock of its index."""

    def __init__(self, folder: Path, disk: Disk, *, segment_bytes: int) -> None:
        self._folder = folder
        self._disk = disk
        self._segment_bytes = segment_bytes
        self._mark_path = str(folder / "acknowledged")
        self._number = 1
        self._end = 0
        self._ahead = 0  # where the zeros of this segment end
        self._dirty = False

    def open(self, start: int) -> list[Frame]:
        """Check and return the frames from `start` on; the next write goes behind the last one."""
        fresh = not self._folder.exists()
        self._folder.mkdir(parents=True, exist_ok=True)
        if fresh:
            _sync_folder(self._folder.parent)
        mark = read_mark(Path(self._mark_path))
        present = sorted(int(path.stem) for path in self._folder.glob("*.segment") if path.stem.isdigit())
        if mark is None:
            if start or any(self._path(number).stat().st_size for number in present):
                raise Corrupt(f"{self._mark_path} is missing", file=self._mark_path, place="byte 0")
            self._acknowledge()
            self._disk.sync(self._mark_path)
            mark = Mark(salts=self._salts(), end=0, settled=False)
        must = max(start, int.from_bytes(mark.salts, "big") << PLACE_BITS | mark.end)
        number, position = (start >> PLACE_BITS or 1), start & PLACE_MASK
        found: list[Frame] = []
        while True:
            position, ended = self._scan(number, position, found, acknowledged=must)
            if not ended:
                break
            number, position = number + 1, 0
        self._number, self._end = number, position
        self._new_segment()
        self._ahead = self._path(number).stat().st_size
        if not self._zeros(position, self._ahead):
            self._cut()
        return found

    def write(self, bodies: Sequence[tuple[int, int, bytes]], begun: Callable[[], object] | None = None) -> list[Frame]:
        """Append frames of (key, count, body) durably, in order; `begun` is called when only the disk is waited for.

        Raises SyncFailed, or what the disk said.
        """
        if self._dirty:
            self._cut()
        if self._end >= self._segment_bytes:
            self._roll()
        frames: list[Frame] = []
        parts: list[bytes] = []
        base, at = self._number << PLACE_BITS, self._end
        for key, count, body in bodies:
            length = len(body)
            checksum = zlib.crc32(body, zlib.crc32(_CHECKED.pack(key, count, length)))
            parts.append(HEADER.pack(_FRAME, checksum, key, count, length))
            parts.append(body)
            frames.append(Frame(base | at, key, count, HEADER_BYTES + length))
            at += HEADER_BYTES + length
        path = str(self._path(self._number))
        self._dirty = True
        grows = at > self._ahead
        if grows and at - self._end <= SMALL_BYTES:
            self._go_ahead(path, at)
        if begun is not None:
            begun()
        if grows or len(parts) > _VECTOR_MAX:
            self._append(path, parts, self._end, at - self._end)
            self._sync(path)
        else:
            self._append_durably(path, parts, at - self._end)
        self._end = at
        self._dirty = False
        self._acknowledge()
        return frames

    def read(self, frame: Frame) -> bytes:
        """The body of a frame; raises Corrupt when it is not what was written."""
        path = self._path(frame.at >> PLACE_BITS)
        position = frame.at & PLACE_MASK
        try:
            content = self._disk.read(str(path), frame.size, position)
        except FileNotFoundError:
            raise Corrupt(f"{path} is missing", file=str(path), place="byte 0") from None
        if len(content) == frame.size:
            tag, checksum, key, count, length = HEADER.unpack_from(content)
            body = content[HEADER_BYTES:]
            if (
                tag == _FRAME
                and key == frame.key
                and checksum == zlib.crc32(body, zlib.crc32(_CHECKED.pack(key, count, length)))
            ):
                return body
        raise self._disk.refuse(str(path), f"byte {position}", "is not what was written")

    def drop(self, number: int) -> None:
        """Remove a segment that nothing refers to any more."""
        path = self._path(number)
        self._disk.forget([str(path)])
        path.unlink(missing_ok=True)

    def take_stall_s(self) -> float:
        """How long the next write shall hang, by order of the disk's faults; asked once a group."""
        faults = self._disk.faults
        if faults is None:
            return 0.0
        stall_s, faults.stall_s = faults.stall_s, 0.0
        return stall_s

    def close(self) -> None:
        """Let go of the files; everything acknowledged is on the disk already."""
        self._disk.forget([*(str(path) for path in self._folder.glob("*.segment")), self._mark_path])

    def _scan(self, number: int, position: int, into: list[Frame], *, acknowledged: int) -> tuple[int, bool]:
        """Add the whole frames of one segment from `position`; where they end, and whether the segment is complete."""
        path = self._path(number)
        size = path.stat().st_size if path.exists() else 0
        base = number << PLACE_BITS
        if position <= size and size:
            with path.open("rb") as file:
                file.seek(position)
                while len(header := file.read(HEADER_BYTES)) == HEADER_BYTES:
                    tag, checksum, key, count, length = HEADER.unpack(header)
                    if tag not in {_FRAME, _END} or length > min(FRAME_BYTES_MAX, size - position):
                        break
                    body = file.read(length)
                    if checksum != zlib.crc32(body, zlib.crc32(_CHECKED.pack(key, count, length))):
                        break
                    if tag == _END:
                        return position, True
                    into.append(Frame(base | position, key, count, HEADER_BYTES + length))
                    position += HEADER_BYTES + length
        if base | min(position, size) < acknowledged:
            told = (
                "is missing" if not size else f"is whole only up to byte {min(position, size)}, more was acknowledged"
            )
            raise Corrupt(f"{path}: {told}", file=str(path), place=f"byte {min(position, size)}")
        return position, False

    def _roll(self) -> None:
        """End the full segment and begin the next one."""
        path = str(self._path(self._number))
        head = _CHECKED.pack(0, 0, 0)
        end = HEADER.pack(_END, zlib.crc32(head), 0, 0, 0)
        self._dirty = True
        self._append(path, [end], self._end, len(end))
        if self._ahead > self._end + len(end):
            self._disk.truncate(path, self._end + len(end))
        self._sync(path)
        self._number, self._end = self._number + 1, 0
        self._new_segment()
        self._dirty = False

    def _go_ahead(self, path: str, upto: int) -> None:
        """Zeros from `upto` to well behind it; a disk without room for them may have some for the frames."""
        count = min(max(upto, AHEAD_LEAST), AHEAD_MOST)
        with contextlib.suppress(OSError):
            self._disk.append(path, [bytes(count)], upto, count)
            self._ahead = upto + count

    def _zeros(self, start: int, end: int) -> bool:
        """Whether the segment holds nothing but zeros from `start` to `end`."""
        with self._path(self._number).open("rb") as file:
            file.seek(start)
            while start < end and (content := file.read(min(1 << 20, end - start))):
                if content.strip(b"\0"):
                    return False
                start += len(content)
        return True

    def _new_segment(self) -> None:
        self._ahead = 0
        path = self._path(self._number)
        if not path.exists():
            path.touch(mode=0o600)
            _sync_folder(self._folder)

    def _cut(self) -> None:
        """Remove what a failed write or a torn tail left behind the last acknowledged frame."""
        path = str(self._path(self._number))
        self._disk.truncate(path, self._end)
        self._sync(path)
        self._ahead = self._end
        self._dirty = False

    def _append(self, path: str, parts: list[bytes], offset: int, size: int) -> None:
        if size <= _JOIN_BYTES_MAX or len(parts) > _VECTOR_MAX:
            parts = [b"".join(parts)]
        self._disk.append(path, parts, offset, size)

    def _append_durably(self, path: str, parts: list[bytes], size: int) -> None:
        """The same into zeros that are durable already, with its sync."""
        try:
            self._disk.append_durably(path, parts, self._end, size)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            raise SyncFailed(str(error)) from error

    def _sync(self, path: str) -> None:
        try:
            self._disk.sync(path)
        except OSError as error:
            raise SyncFailed(str(error)) from error

    def _acknowledge(self) -> None:
        mark = Mark(salts=self._salts(), end=self._end, settled=False)
        self._disk.pwrite(self._mark_path, mark.encode(), 0)

    def _salts(self) -> bytes:
        return self._number.to_bytes(8, "big")

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:010}.segment"


class MemorySegments:
    """The same without a disk."""

    def __init__(self) -> None:
        self._bodies: dict[int, bytes] = {}
        self._next = 0

    def open(self, start: int) -> list[Frame]:
        assert start == 0, "memory has nothing from before"
        return []

    def write(self, bodies: Sequence[tuple[int, int, bytes]], begun: Callable[[], object] | None = None) -> list[Frame]:
        if begun is not None:
            begun()
        frames = []
        for key, count, body in bodies:
            self._next += 1  # a segment each, so that a trim gives memory back at once
            at = self._next << PLACE_BITS
            self._bodies[at] = body
            frames.append(Frame(at, key, count, HEADER_BYTES + len(body)))
        return frames

    def read(self, frame: Frame) -> bytes:
        return self._bodies[frame.at]

    def drop(self, number: int) -> None:
        self._bodies.pop(number << PLACE_BITS, None)

    def take_stall_s(self) -> float:
        return 0.0

    def close(self) -> None:
        self._bodies.clear()


def frames_beside(path: Path | None, disk: Disk | None, name: str, segment_bytes: int) -> FrameStore:
    """Frames in a folder next to a database file, or in memory where there is none."""
    if path is None or disk is None:
        return MemorySegments()
    return Segments(path.with_name(f"{path.name}-{name}"), disk, segment_bytes=segment_bytes)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

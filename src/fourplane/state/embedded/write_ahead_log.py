"""What a write-ahead log holds, checked before SQLite believes it, and the mark of what was acknowledged.

SQLite ends recovery silently at the first frame whose checksum fails: right for a tail that was being written when the
process died, wrong for a frame that was acknowledged. The difference is the *acknowledged mark*, a file of 64 bytes next
to the database: (salts of the log, end of the last acknowledged commit, settled?). It is written after a group's log
bytes were synced and before its callers are told, without a sync of its own: a kill cannot lose it (the kernel has it), a
power cut can only make it older, which never raises a false alarm. When the log was folded into the main file, the
mark becomes *settled* and is synced before the log may be overwritten, so a stale log is recognised too.

    mark                 log on disk                       verdict
    settled, salts A     none, torn header, or salts A     nothing in it counts: emptied (an older page must not come back)
    settled, salts A     valid header with other salts     newer commits; SQLite recovers them
    open, salts A, end   salts A, whole up to `end`        fine; what lies behind was never acknowledged
    open, salts A, end   missing, shorter, other, flipped  Corrupt with file and byte

Not detected: a cut or flip in the commits of the last moments before a *power* cut that also lost the newer mark, and a file
set rolled back as a whole to an older copy of itself.

The log's checksum is linear modulo 2**32 (pairs x, y: s0 += x + s1; s1 += y + s0), so a frame's share is one dot product with
Fibonacci numbers; numpy checks about 1 GB/s. Source: sqlite.org/fileformat2.html section 4.
"""

import struct
import zlib
from pathlib import Path

import msgspec
import numpy as np

from fourplane.foundation.errors import Corrupt

HEADER = struct.Struct(">8I")
HEADER_BYTES = 32
FRAME_HEADER_BYTES = 24
MAGIC = 0x377F0682
MARK_BYTES = 64
_MARK = struct.Struct("<8sB7x8sQ")
_MARK_TAG = b"FPmark1\n"
_FRAMES_AT_ONCE = 256
_MASK = 0xFFFFFFFF

Words = np.ndarray[tuple[int, ...], np.dtype[np.uint32]]


class Mark(msgspec.Struct, frozen=True):
    """How far a log was acknowledged; `settled`: all of it is in the main file."""

    salts: bytes
    end: int
    settled: bool

    def encode(self) -> bytes:
        body = _MARK.pack(_MARK_TAG, self.settled, self.salts, self.end)
        return body.ljust(MARK_BYTES - 4, b"\0") + struct.pack("<I", zlib.crc32(body))


class Scan(msgspec.Struct, frozen=True):
    """What the log holds: `end` is behind the last whole commit, 0 without a valid header."""

    salts: bytes
    page_bytes: int
    end: int
    size: int


def read_mark(path: Path) -> Mark | None:
    """The mark, or None where there is none; raises Corrupt when its own checksum fails."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    if not content:
        return None  # killed between creating the file and its first mark: nothing was acknowledged
    body = content[: _MARK.size]
    if len(content) != MARK_BYTES or content[-4:] != struct.pack("<I", zlib.crc32(body)):
        raise Corrupt(f"{path}: the acknowledged mark does not match its checksum", file=str(path), place="byte 0")
    tag, settled, salts, end = _MARK.unpack(body)
    if tag != _MARK_TAG:
        raise Corrupt(f"{path}: not an acknowledged mark", file=str(path), place="byte 0")
    return Mark(salts=salts, end=end, settled=bool(settled))


def scan(path: Path) -> Scan:
    """Check every frame up to the first bad one; a missing file scans as empty."""
    try:
        size = path.stat().st_size
        file = path.open("rb")
    except FileNotFoundError:
        return Scan(salts=b"", page_bytes=0, end=0, size=0)
    with file:
        header = file.read(HEADER_BYTES)
        if len(header) < HEADER_BYTES:
            return Scan(salts=b"", page_bytes=0, end=0, size=size)
        magic, _, page_bytes, _, _, _, sum0, sum1 = HEADER.unpack(header)
        order = ">u4" if magic & 1 else "<u4"
        state = _checksum(header[:24], order)
        if magic & ~1 != MAGIC or state != (sum0, sum1):
            return Scan(salts=b"", page_bytes=0, end=0, size=size)
        salts = header[16:24]
        end, index, bad = HEADER_BYTES, 0, False
        frame_bytes = FRAME_HEADER_BYTES + page_bytes
        step = _Step(page_bytes, order)
        while not bad and (chunk := file.read(frame_bytes * _FRAMES_AT_ONCE)):
            frames = len(chunk) // frame_bytes
            for position, share in enumerate(step.shares(chunk, frames)):
                head = chunk[position * frame_bytes : position * frame_bytes + FRAME_HEADER_BYTES]
                state = step.advance(state, share)
                if head[8:16] != salts or head[:4] == b"\0\0\0\0" or struct.unpack(">II", head[16:]) != state:
                    bad = True
                    break
                index += 1
                if head[4:8] != b"\0\0\0\0":
                    end = HEADER_BYTES + index * frame_bytes
            bad = bad or frames < _FRAMES_AT_ONCE
        return Scan(salts=salts, page_bytes=page_bytes, end=end, size=size)


def judge(wal: Path, mark: Mark | None, found: Scan) -> bool:
    """True when SQLite may recover this log, False when it must be emptied first; raises Corrupt for lost commits."""
    if mark is None:
        return True
    if mark.settled:
        return bool(found.end) and found.salts != mark.salts
    if found.salts != mark.salts:
        what = "is missing" if not found.size else "has lost its header"
        raise Corrupt(f"{wal}: {what}, {mark.end} bytes were acknowledged", file=str(wal), place="byte 0")
    if found.end < mark.end:
        message = f"{wal}: whole only up to byte {found.end} of {mark.end} acknowledged"
        raise Corrupt(message, file=str(wal), place=f"byte {found.end}")
    return True


class _Step:
    """The checksum over one frame (8 header bytes and the page) as a linear map."""

    def __init__(self, page_bytes: int, order: str) -> None:
        self._page_bytes = page_bytes
        self._order = order
        pairs = page_bytes // 8 + 1
        fibonacci = [0, 1]
        for _ in range(2 * pairs + 1):
            fibonacci.append((fibonacci[-1] + fibonacci[-2]) & _MASK)
        first, second = [], []
        for index in range(pairs):
            power = pairs - 1 - index
            first += [fibonacci[2 * power + 1], fibonacci[2 * power]]
            second += [fibonacci[2 * power + 2], fibonacci[2 * power + 1]]
        self._first: Words = np.array(first, dtype=np.uint32)
        self._second: Words = np.array(second, dtype=np.uint32)
        self._m = (fibonacci[2 * pairs - 1], fibonacci[2 * pairs], fibonacci[2 * pairs + 1])

    def shares(self, chunk: bytes, frames: int) -> list[tuple[int, int]]:
        """What each frame adds to the two sums."""
        width = FRAME_HEADER_BYTES + self._page_bytes
        raw = np.frombuffer(chunk, dtype=self._order, count=frames * width // 4).reshape(frames, width // 4)
        words = np.concatenate([raw[:, :2], raw[:, 6:]], axis=1).astype(np.uint32)
        first = (words * self._first).sum(axis=1, dtype=np.uint32)
        second = (words * self._second).sum(axis=1, dtype=np.uint32)
        return list(zip(first.tolist(), second.tolist(), strict=True))

    def advance(self, state: tuple[int, int], share: tuple[int, int]) -> tuple[int, int]:
        """The sums behind a frame, from the sums before it."""
        low, middle, high = self._m
        return (
            (low * state[0] + middle * state[1] + share[0]) & _MASK,
            (middle * state[0] + high * state[1] + share[1]) & _MASK,
        )


def _checksum(content: bytes, order: str) -> tuple[int, int]:
    words = np.frombuffer(content, dtype=order).tolist()
    sum0 = sum1 = 0
    for index in range(0, len(words), 2):
        sum0 = (sum0 + words[index] + sum1) & _MASK
        sum1 = (sum1 + words[index + 1] + sum0) & _MASK
    return sum0, sum1

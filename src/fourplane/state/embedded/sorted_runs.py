"""Sorted runs: immutable files of rows in key order, which lie between the journal of records and their table.

A run is what the overlay held when it was flushed: written once from front to back, synced, never changed, removed as a whole.

    block*  | contents | 4s tag, u32 CRC of the contents, u32 their length, u64 where they begin        (little-endian)
    block:  u32 CRC seeded with its place | msgpack of up to 16 rows (partition, sort, value or nil, version, expires_us or nil)

The contents say how many rows there are, the first key and the place of every block, a filter of keys and partitions (as in
`key_filter`), and the code of every key, for whoever opens the store (a run of format 3 has none). All but the codes stays in
memory, about 16 bytes a row; a look-up reads one block, 6 to 10 us from the page cache, and checks it.

Source: O'Neil et al., The log-structured merge-tree, 1996; the file is LevelDB's table in its simplest form.
"""

import contextlib
import os
import struct
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np

from fourplane.foundation.errors import Corrupt
from fourplane.state.embedded.key_filter import MIX, Codes, Key
from fourplane.state.embedded.vfs import Disk

State = tuple[bytes | None, int, int | None]  # value (None: removed), version, expires_us
StoredRow = tuple[bytes, bytes, bytes | None, int, int | None]
BLOCK_ROWS = 16
BLOCK_BYTES_MAX = 64 << 10
FILTER_BITS = 16
NO_CODES: Codes = np.empty(0, np.uint32)
_TAIL = struct.Struct("<4sIIQ")
_TAG = b"FPr1"
_CHECKSUM = struct.Struct("<I")


class Listed(msgspec.Struct, frozen=True):
    """What the table of runs says about one."""

    number: int
    rows: int
    size: int


class _Contents(msgspec.Struct, array_like=True):
    rows: int
    firsts: list[Key]
    places: list[int]  # of the blocks, and where the last one ends
    bits: bytes
    codes: bytes = b""


class RunStore(Protocol):
    """Where runs lie: a folder, or memory for records that go with the process."""

    def open(self, listed: Sequence[Listed], kept: Sequence[int]) -> "list[Run]": ...
    def write(self, number: int, at: int, parts: list[bytes]) -> None: ...
    def seal(self, number: int) -> None: ...
    def read(self, number: int, at: int, size: int) -> bytes: ...
    def refuse(self, number: int, place: int) -> Corrupt: ...
    def drop(self, number: int) -> None: ...
    def close(self) -> None: ...


class Run:
    """One run: what it may hold, a row by its key, rows of a partition in order, blocks one by one.

    `codes` are those of its keys, until somebody took them.
    """

    __slots__ = ("_bits", "_mask", "_places", "_store", "codes", "firsts", "number", "rows", "size")

    def __init__(self, store: RunStore, number: int, size: int, contents: _Contents) -> None:
        self._store = store
        self.number = number
        self.size = size
        self.rows = contents.rows
        self.firsts = contents.firsts
        self._places = array("Q", contents.places)
        self._bits = contents.bits
        self._mask = len(contents.bits) * 8 - 1
        self.codes: Codes = np.frombuffer(contents.codes, "<u4")

    def may_hold(self, code: int) -> bool:
        """False: no row has this key (`key_code`), or this partition (`partition_code`)."""
        at = code & self._mask
        if not self._bits[at >> 3] >> (at & 7) & 1:
            return False
        at = code * MIX >> 16 & self._mask
        return bool(self._bits[at >> 3] >> (at & 7) & 1)

    def find(self, partition: bytes, sort: bytes) -> State | None:
        """What this run says of a row; None when it says nothing."""
        index = bisect_right(self.firsts, (partition, sort)) - 1
        if index < 0:
            return None
        for row in self.block(index):
            if row[1] == sort and row[0] == partition:
                return row[2:]
        return None

    def rows_of(self, partition: bytes, start: bytes, end: bytes | None, *, reverse: bool) -> Iterator[StoredRow]:
        """Rows with start <= sort < end of one partition in order, or backwards."""
        low: Key = (partition, start)
        high: Key = (partition + b"\0", b"") if end is None else (partition, end)
        first = max(0, bisect_right(self.firsts, low) - 1)
        last = bisect_left(self.firsts, high)
        for index in reversed(range(first, last)) if reverse else range(first, last):
            rows = self.block(index)
            for row in reversed(rows) if reverse else rows:
                if row[0] == partition and start <= row[1] and (end is None or row[1] < end):
                    yield row

    def block(self, index: int) -> list[StoredRow]:
        """The rows of one block; raises Corrupt when it is not what was written."""
        at = self._places[index]
        content = self._store.read(self.number, at, self._places[index + 1] - at)
        body = memoryview(content)[_CHECKSUM.size :]
        if len(content) < _CHECKSUM.size or _CHECKSUM.unpack_from(content)[0] != zlib.crc32(body, at & 0xFFFFFFFF):
            raise self._store.refuse(self.number, at)
        return _ROWS.decode(body)


class RunBuilder:
    """Turns rows that come in key order into the bytes of a run."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.size = 0
        self._contents = _Contents(0, [], [], b"")
        self._codes = array("I")
        self._partitions = array("I")
        self._taken = 0

    def new_codes(self) -> Codes:
        """The codes of the keys that came since this was asked last."""
        codes = np.array(self._codes[self._taken :], np.uint32)
        self._taken += len(codes)
        return codes

    def add(self, rows: list[StoredRow]) -> list[bytes]:
        """What to write for these rows, in key order and behind all before; one block at least."""
        parts: list[bytes] = []
        for at in range(0, len(rows), BLOCK_ROWS):
            self._block(rows[at : at + BLOCK_ROWS], parts)
        partitions, sorts = [row[0] for row in rows], [row[1] for row in rows]
        codes = list(map(zlib.crc32, partitions))
        self._codes.extend(map(zlib.crc32, sorts, codes))
        self._partitions.extend(set(codes))  # one that goes on in the next step is there twice, which does no harm
        self._contents.rows += len(rows)
        return parts

    def _block(self, rows: list[StoredRow], into: list[bytes]) -> None:
        body = _ENCODER.encode(rows)
        if len(body) > BLOCK_BYTES_MAX and len(rows) > 1:
            half = len(rows) // 2
            self._block(rows[:half], into)
            self._block(rows[half:], into)
            return
        into += (_CHECKSUM.pack(zlib.crc32(body, self.size & 0xFFFFFFFF)), body)
        self._contents.firsts.append(rows[0][:2])
        self._contents.places.append(self.size)
        self.size += _CHECKSUM.size + len(body)

    def finish(self, store: RunStore) -> tuple[list[bytes], "Run"]:
        """What to write last, and the run as it can be read once all of it is durable."""
        contents = self._contents
        contents.places.append(self.size)
        codes = np.array(self._codes, np.uint32)
        contents.bits = _filter(np.concatenate([codes, np.array(self._partitions, np.uint32)]))
        contents.codes = codes.astype("<u4").tobytes()
        body = _ENCODER.encode(contents)
        tail = _TAIL.pack(_TAG, zlib.crc32(body), len(body), self.size)
        run = Run(store, self.number, self.size + len(body) + len(tail), contents)
        run.codes = NO_CODES  # who built it had them
        return [body, tail], run


class RunFiles:
    """Runs as files in a folder of their own."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        self._folder = folder
        self._disk = disk

    def open(self, listed: Sequence[Listed], kept: Sequence[int]) -> list[Run]:
        """The listed runs, oldest first; raises Corrupt for one that is not whole. Files neither listed nor kept go."""
        fresh = not self._folder.exists()
        self._folder.mkdir(parents=True, exist_ok=True)
        if fresh:
            _sync_folder(self._folder.parent)
        known = {str(self._path(number)) for number in (*(each.number for each in listed), *kept)}
        for path in self._folder.glob("*.run"):
            if str(path) not in known:
                path.unlink()
        return [self._opened(each) for each in sorted(listed, key=lambda each: each.number)]

    def _opened(self, listed: Listed) -> Run:
        size = self._path(listed.number).stat().st_size if self._path(listed.number).exists() else 0
        if size == listed.size >= _TAIL.size:
            tag, checksum, length, at = _TAIL.unpack(self.read(listed.number, size - _TAIL.size, _TAIL.size))
            if tag == _TAG and at + length + _TAIL.size == size:
                body = self.read(listed.number, at, length)
                if zlib.crc32(body) == checksum:
                    return Run(self, listed.number, size, _CONTENTS.decode(body))
        raise self.refuse(listed.number, min(size, listed.size))

    def write(self, number: int, at: int, parts: list[bytes]) -> None:
        """Put bytes into the file of a run; they are not durable yet."""
        content = b"".join(parts)
        self._disk.append(str(self._path(number)), [content], at, len(content))

    def seal(self, number: int) -> None:
        """Make a run durable, and that it is there."""
        self._disk.sync(str(self._path(number)))
        _sync_folder(self._folder)

    def read(self, number: int, at: int, size: int) -> bytes:
        try:
            return self._disk.read(str(self._path(number)), size, at)
        except FileNotFoundError:
            raise self.refuse(number, 0) from None

    def refuse(self, number: int, place: int) -> Corrupt:
        return self._disk.refuse(str(self._path(number)), f"byte {place}", "is not what was written")

    def drop(self, number: int) -> None:
        """Remove a run nobody reads any more, or what there is of one that was never finished."""
        self._disk.forget([str(self._path(number))])
        with contextlib.suppress(OSError):
            self._path(number).unlink(missing_ok=True)

    def close(self) -> None:
        self._disk.forget([str(path) for path in self._folder.glob("*.run")])

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:010}.run"


class MemoryRuns:
    """The same without a disk."""

    def __init__(self) -> None:
        self._contents: dict[int, bytearray] = {}

    def open(self, listed: Sequence[Listed], kept: Sequence[int]) -> list[Run]:
        assert not listed, "memory has nothing from before"
        assert not kept, "nor this"
        return []

    def write(self, number: int, at: int, parts: list[bytes]) -> None:
        content = self._contents.setdefault(number, bytearray())
        assert at == len(content)
        content += b"".join(parts)

    def seal(self, number: int) -> None:
        """Nothing: it lasts as long as the process."""

    def read(self, number: int, at: int, size: int) -> bytes:
        return bytes(self._contents[number][at : at + size])

    def refuse(self, number: int, place: int) -> Corrupt:
        return Corrupt(f"run {number}: byte {place} is not what was written", file=str(number), place=f"byte {place}")

    def drop(self, number: int) -> None:
        self._contents.pop(number, None)

    def close(self) -> None:
        self._contents.clear()


def runs_beside(path: Path | None, disk: Disk | None) -> RunStore:
    """Runs in a folder next to a database file, or in memory where there is none."""
    if path is None or disk is None:
        return MemoryRuns()
    return RunFiles(path.with_name(f"{path.name}-runs"), disk)


class Merging:
    """All rows of some runs in key order, the newest state of each, a window at a time."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._cursors = [_Cursor(run) for run in runs]

    def window(self, rows: int) -> tuple[list[StoredRow], bool]:
        """About so many of the next rows, and whether they are the last."""
        until = self._until(max(1, rows // BLOCK_ROWS))
        newest: dict[Key, StoredRow] = {}
        for cursor in self._cursors:  # oldest first
            for row in cursor.before(until):
                newest[row[:2]] = row
        return sorted(newest.values(), key=_key_of), until is None

    def _until(self, blocks: int) -> Key | None:
        """A key with about so many first keys of blocks before it, and at least one; None when the rest is smaller."""
        each = blocks // len(self._cursors) + 2
        heads = sorted(head for cursor in self._cursors for head in cursor.run.firsts[cursor.at : cursor.at + each])
        for head in heads[blocks:]:
            if head > heads[0]:
                return head
        return heads[-1] if heads and heads[-1] > heads[0] else None


class _Cursor:
    __slots__ = ("_rest", "at", "run")

    def __init__(self, run: Run) -> None:
        self.run = run
        self.at = 0
        self._rest: list[StoredRow] = []

    def before(self, until: Key | None) -> list[StoredRow]:
        """The next rows with keys before `until`."""
        rows, firsts = self._rest, self.run.firsts
        while self.at < len(firsts) and (until is None or firsts[self.at] < until):
            rows = rows + self.run.block(self.at)
            self.at += 1
        cut = len(rows) if until is None else bisect_left(rows, until, key=_key_of)
        self._rest = rows[cut:]
        return rows[:cut]


def _key_of(row: StoredRow) -> Key:
    return row[:2]


def _filter(codes: Codes) -> bytes:
    size = 1 << max(10, (len(codes) * FILTER_BITS - 1).bit_length())
    code = codes.astype(np.uint64)
    marked = np.zeros(size, dtype=np.uint8)
    marked[code & np.uint64(size - 1)] = 1
    marked[code * np.uint64(MIX) >> np.uint64(16) & np.uint64(size - 1)] = 1
    return np.packbits(marked, bitorder="little").tobytes()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_ENCODER = msgspec.msgpack.Encoder()
_ROWS: msgspec.msgpack.Decoder[list[StoredRow]] = msgspec.msgpack.Decoder(list[StoredRow])
_CONTENTS = msgspec.msgpack.Decoder(_Contents)

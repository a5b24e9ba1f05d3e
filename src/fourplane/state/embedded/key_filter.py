"""Which keys a table may hold, in two bytes a key: Bloom filters that spare a read per new key.

A write has to know the version before it, so a write of a key that was never there would read a page of the tree, 15 to
30 us once the tree is larger than its cache. The filter answers `no` for certain in 0.4 us; a `yes` is wrong for about
one absent key in 80 while there are at most `capacity` keys, and costs only the read. Removed keys stay in it.

Keys are known by a code, the CRC-32 of their bytes: the same in every process, so that a filter can be kept in a file. A store
that outgrows its filter gets a further, larger one behind it (`KeyFilters`), because the codes of old keys are not at hand.

    file:  the bits of each filter | msgpack [(keys, bytes)] | 4s tag, u32 CRC of all before, u32 length and u64 place of the list

Source: Bloom, Space/time trade-offs in hash coding, 1970, with two probes of 16 bits a key;
Almeida et al., Scalable Bloom filters, 2007.
"""

import struct
import zlib
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

BITS_PER_KEY = 16
BITS_MAX = 1 << 32  # a code has no more
GROWTH = 8
MIX = 0x9E3779B1
_TAIL = struct.Struct("<4sIIQ")
_TAG = b"FPk1"
Codes = np.ndarray[tuple[int, ...], np.dtype[np.uint32]]
Key = tuple[bytes, bytes]


def key_code(partition: bytes, sort: bytes) -> int:
    """What filters know a key by."""
    return zlib.crc32(sort, zlib.crc32(partition))


def partition_code(partition: bytes) -> int:
    """What they know a partition by."""
    return zlib.crc32(partition)


def codes_of(keys: Sequence[Key]) -> Codes:
    """The same of many keys."""
    crc = zlib.crc32
    return np.array([crc(sort, crc(partition)) for partition, sort in keys], np.uint32)


class KeyFilter:
    """Keys by two bits each of a table whose size is a power of two."""

    __slots__ = ("_bits", "_mask", "capacity", "count")

    def __init__(self, capacity: int, bits: bytes = b"", count: int = 0) -> None:
        size = len(bits) * 8 or min(BITS_MAX, 1 << max(13, (capacity * BITS_PER_KEY - 1).bit_length()))
        self._bits = bytearray(bits or size >> 3)
        self._mask = size - 1
        self.capacity = size // BITS_PER_KEY
        self.count = count

    @property
    def bits(self) -> bytes:
        """A copy of the table."""
        return bytes(self._bits)

    def may_hold(self, code: int) -> bool:
        """False: this key was never added."""
        bits = self._bits
        at = code & self._mask
        if not bits[at >> 3] >> (at & 7) & 1:
            return False
        at = code * MIX >> 16 & self._mask
        return bool(bits[at >> 3] >> (at & 7) & 1)

    def unknown(self, codes: Codes) -> Codes:
        """Those that were never added."""
        bits = np.frombuffer(self._bits, np.uint8)
        known = np.ones(len(codes), bool)
        for places in self._places(codes):
            known &= bits[places >> 3] >> (places & 7).astype(np.uint8) & 1 != 0
        return codes[~known]

    def add(self, codes: Codes) -> None:
        """Remember these keys; `count` grows by those that were not claimed before."""
        bits = np.frombuffer(self._bits, np.uint8)
        codes = self.unknown(codes)
        for places in self._places(codes):
            np.bitwise_or.at(bits, places >> 3, np.uint8(1) << (places & 7).astype(np.uint8))
        self.count += len(codes)

    def _places(self, codes: Codes) -> Iterable[np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
        wide = codes.astype(np.uint64)
        mask = np.uint64(self._mask)
        yield (wide & mask).astype(np.int64)
        yield (wide * np.uint64(MIX) >> np.uint64(16) & mask).astype(np.int64)


class KeyFilters:
    """Filters one behind the other, each larger than all before it; all but the last are full."""

    def __init__(self, parts: list[KeyFilter]) -> None:
        self.parts = parts

    @property
    def count(self) -> int:
        """How many keys there are."""
        return sum(part.count for part in self.parts)

    def may_hold(self, code: int) -> bool:
        """False: this key was never added."""
        for part in self.parts:  # noqa: SIM110 - half the time of `any`
            if part.may_hold(code):
                return True
        return False

    def add(self, codes: Codes) -> None:
        """Remember these keys."""
        *full, last = self.parts
        for part in full:
            codes = part.unknown(codes)
        last.add(codes)

    def grow(self, keys_max: int) -> bool:
        """Make room for more where it is needed; False when that would be room for more than `keys_max`."""
        if self.parts[-1].count <= self.parts[-1].capacity:
            return True
        total = sum(part.capacity for part in self.parts)
        if total >= keys_max:
            return False
        self.parts.append(KeyFilter(min(GROWTH * total, keys_max - total)))
        return True

    def encode(self) -> list[bytes]:
        """The file."""
        parts = [part.bits for part in self.parts]
        contents = msgspec.msgpack.encode(
            [(part.count, len(bits)) for part, bits in zip(self.parts, parts, strict=True)]
        )
        at, checksum = sum(map(len, parts)), 0
        parts.append(contents)
        for part in parts:
            checksum = zlib.crc32(part, checksum)
        return [*parts, _TAIL.pack(_TAG, checksum, len(contents), at)]


def decode(content: bytes) -> KeyFilters | None:
    """The filters of a file; None when it is not what was written."""
    if len(content) < _TAIL.size:
        return None
    body = memoryview(content)[: -_TAIL.size]
    tag, checksum, length, at = _TAIL.unpack_from(content, len(body))
    if tag != _TAG or zlib.crc32(body) != checksum or at + length != len(body):
        return None
    parts, at = [], 0
    for count, size in msgspec.msgpack.decode(body[-length:], type=list[tuple[int, int]]):
        parts.append(KeyFilter(0, bytes(body[at : at + size]), count))
        at += size
    return KeyFilters(parts)

"""Which keys a table may hold, in two bytes a key: a Bloom filter that spares a read per new key.

A write has to know the version before it, so a write of a key that was never there would read a page of the tree, 15 to
30 us once the tree is larger than its cache. The filter answers `no` for certain in 0.3 us; a `yes` is wrong for about
one absent key in 80 while there are at most `capacity` keys, and costs only the read. Removed keys stay in it.

It lives in memory and is filled again after an opening, some hundred rows at a time (`KeyScan`); until that is through it
answers `maybe` to everything. Source: Bloom, Space/time trade-offs in hash coding, 1970; two probes of 16 bits a key.
"""

from collections.abc import Collection

import numpy as np

BITS_PER_KEY = 16
Key = tuple[bytes, bytes]


class KeyFilter:
    """Keys by two bits each of a table whose size is a power of two."""

    __slots__ = ("_bits", "_mask", "capacity", "count")

    def __init__(self, capacity: int) -> None:
        size = 1 << max(13, (capacity * BITS_PER_KEY - 1).bit_length())
        assert size <= 1 << 32, "two probes come from one 64-bit hash"
        self._bits = bytearray(size >> 3)
        self._mask = size - 1
        self.capacity = size // BITS_PER_KEY
        self.count = 0

    def add(self, keys: Collection[Key]) -> None:
        """Remember these keys; `count` grows by those that were not claimed before."""
        found = np.fromiter(map(hash, keys), np.int64, len(keys))
        bits = np.frombuffer(self._bits, np.uint8)
        first, second = found & self._mask, found >> 32 & self._mask
        in_first, in_second = (1 << (place & 7).astype(np.uint8) for place in (first, second))
        first >>= 3
        second >>= 3
        known = (bits[first] & in_first != 0) & (bits[second] & in_second != 0)
        np.bitwise_or.at(bits, first, in_first)
        np.bitwise_or.at(bits, second, in_second)
        self.count += len(keys) - int(np.count_nonzero(known))

    def may_hold(self, key: Key) -> bool:
        """False: this key was never added."""
        found = hash(key)
        bits = self._bits
        first = found & self._mask
        if not bits[first >> 3] >> (first & 7) & 1:
            return False
        second = (found >> 32) & self._mask
        return bool(bits[second >> 3] >> (second & 7) & 1)

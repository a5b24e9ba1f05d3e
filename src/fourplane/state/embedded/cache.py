"""Values in the memory of this process: the `Cache` contract, bounded in bytes, evicting by S3-FIFO.

S3-FIFO decides what to keep with three queues: new keys enter a small one (a tenth of the room); a key that was asked for
again while there moves to the main one, the others leave after one pass and are remembered by name only (the ghosts); a
ghost that comes back goes to the main queue at once. In the main queue a key that was asked for since the last pass gets
another one. A hit only bumps a number up to 3, nothing moves.

Invariant: the sizes of all entries sum to `used_bytes` <= `bytes_max`. Cost: about 1 us a call.
Source: Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023.
"""

from collections import deque
from collections.abc import Sequence

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import Rejected, TooLarge

KEY_CHARS_MAX = 1_024
ENTRY_OVERHEAD_BYTES = 200
SMALL_SHARE = 0.1
DEAD_MAX = 1_000


class CacheSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of one cache."""

    bytes_max: int = 64 << 20
    value_bytes_max: int = 8 << 20
    ghosts_max: int = 100_000


class CacheStatistics(msgspec.Struct, frozen=True):
    """One cache since it was made."""

    entries: int
    used_bytes: int
    bytes_max: int
    hits: int
    misses: int
    evicted: int
    expired: int


class _Entry:
    __slots__ = ("asked", "expires_s", "key", "main", "size", "value")

    def __init__(self, key: str, value: bytes, expires_s: float, size: int) -> None:
        self.key = key
        self.value = value
        self.expires_s = expires_s
        self.size = size
        self.asked = 0
        self.main = False


class EmbeddedCache:
    """`Cache` in a dictionary. Nothing waits."""

    def __init__(self, settings: CacheSettings | None = None) -> None:
        self._settings = settings or CacheSettings()
        self._entries: dict[str, _Entry] = {}
        self._small: deque[_Entry] = deque()
        self._main: deque[_Entry] = deque()
        self._ghosts: dict[str, None] = {}
        self._small_bytes = self._used = 0
        self._hits = self._misses = self._evicted = self._expired = 0

    async def get(self, key: str) -> bytes | None:
        return self._find(key)

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        return [self._find(key) for key in keys]

    async def set(self, key: str, value: bytes, *, ttl_s: float) -> None:
        self._put(key, value, ttl_s)

    async def add(self, key: str, value: bytes, *, ttl_s: float) -> bool:
        if self._live(key) is not None:
            return False
        self._put(key, value, ttl_s)
        return True

    async def increment(self, key: str, amount: int, *, ttl_s: float) -> int:
        entry = self._live(key)
        if entry is None:
            self._put(key, b"%d" % amount, ttl_s)
            return amount
        total = as_counter(key, entry.value) + amount
        entry.value = b"%d" % total
        return total

    async def delete(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._forget(entry)

    async def close(self) -> None:
        self._entries.clear()
        self._small.clear()
        self._main.clear()
        self._used = self._small_bytes = 0

    def statistics(self) -> CacheStatistics:
        return CacheStatistics(
            entries=len(self._entries),
            used_bytes=self._used,
            bytes_max=self._settings.bytes_max,
            hits=self._hits,
            misses=self._misses,
            evicted=self._evicted,
            expired=self._expired,
        )

    def check(self) -> None:
        """Assert the invariants; for tests."""
        entries = self._entries.values()
        assert sum(entry.size for entry in entries) == self._used <= self._settings.bytes_max
        assert sum(entry.size for entry in entries if not entry.main) == self._small_bytes
        queued = [id(entry) for queue in (self._small, self._main) for entry in queue if entry.size]
        assert sorted(queued) == sorted(id(entry) for entry in entries)
        assert len(self._ghosts) <= self._settings.ghosts_max

    def _find(self, key: str) -> bytes | None:
        entry = self._live(key)
        if entry is None:
            self._misses += 1
            return None
        self._hits += 1
        if entry.asked < 3:
            entry.asked += 1
        return entry.value

    def _live(self, key: str) -> _Entry | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.expires_s <= clock.monotonic_s():
            del self._entries[key]
            self._forget(entry)
            self._expired += 1
            return None
        return entry

    def _put(self, key: str, value: bytes, ttl_s: float) -> None:
        check_entry(key, value, ttl_s, self._settings.value_bytes_max)
        size = len(value) + len(key) + ENTRY_OVERHEAD_BYTES
        if size > self._settings.bytes_max:
            raise TooLarge(f"{size} bytes do not fit into a cache of {self._settings.bytes_max}")
        before = self._entries.pop(key, None)
        if before is not None:
            self._forget(before)
        self._make_room(size)
        if len(self._small) + len(self._main) > 2 * len(self._entries) + DEAD_MAX:
            self._small = deque(entry for entry in self._small if entry.size)
            self._main = deque(entry for entry in self._main if entry.size)
        entry = _Entry(key, value, clock.monotonic_s() + ttl_s, size)
        self._entries[key] = entry
        self._used += size
        if key in self._ghosts or (before is not None and before.main):
            self._ghosts.pop(key, None)
            entry.main = True
            self._main.append(entry)
        else:
            self._small_bytes += size
            self._small.append(entry)

    def _make_room(self, size: int) -> None:
        bound = self._settings.bytes_max
        while self._used + size > bound:
            if self._small_bytes > bound * SMALL_SHARE or not self._main:
                self._pass_small()
            else:
                self._pass_main()

    def _pass_small(self) -> None:
        entry = self._small.popleft()
        if not entry.size:
            return  # was deleted or replaced while it stood in the queue
        if entry.asked > 1:
            self._small_bytes -= entry.size
            entry.main = True
            entry.asked = 0
            self._main.append(entry)
            return
        self._evict(entry)
        self._ghosts[entry.key] = None
        if len(self._ghosts) > self._settings.ghosts_max:
            del self._ghosts[next(iter(self._ghosts))]

    def _pass_main(self) -> None:
        entry = self._main.popleft()
        if not entry.size:
            return
        if entry.asked:
            entry.asked -= 1
            self._main.append(entry)
            return
        self._evict(entry)

    def _evict(self, entry: _Entry) -> None:
        del self._entries[entry.key]
        self._forget(entry)
        self._evicted += 1

    def _forget(self, entry: _Entry) -> None:
        """Take an entry out of the sums; its place in a queue is skipped later."""
        self._used -= entry.size
        if not entry.main:
            self._small_bytes -= entry.size
        entry.size = 0
        entry.value = b""


def check_entry(key: str, value: bytes, ttl_s: float, value_bytes_max: int) -> None:
    """Raise Rejected or TooLarge for what no engine takes."""
    if not 0 < len(key) <= KEY_CHARS_MAX:
        raise Rejected(f"a cache key has 1 to {KEY_CHARS_MAX} characters", code="bad_key")
    if not ttl_s > 0:
        raise Rejected(f"a cached value cannot live for {ttl_s} s", code="bad_ttl")
    if len(value) > value_bytes_max:
        raise TooLarge(f"a cached value has at most {value_bytes_max} bytes, not {len(value)}")


def as_counter(key: str, value: bytes) -> int:
    """The number a counter holds; raises Rejected when it is something else."""
    try:
        return int(value)
    except ValueError:
        raise Rejected(f"{key} holds no number", code="not_a_counter") from None

"""What a cache node has: entries in memory, bodies in files, a bound in bytes, and SIEVE to decide what goes.

One file per entry (head and body, written beside and renamed): a restart finds whole entries or nothing. A body is mapped
or its file opened when it is first asked for; at most `resident_max` entries keep theirs. SIEVE (Zhang et al., NSDI 2024):
new entries at the head, a hit only sets a bit, a hand walks from the tail and takes the first entry without it. No list is
touched on a hit.

Invariants (`check`): the sum of the entries' sizes is `bytes`, which never exceeds `bytes_max` after `put`; every entry is in
exactly one key's list and once in the queue.
"""

import contextlib
import mmap
import os
import resource
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import msgspec

from fourplane.edge.cache_fields import Fields, parse_range
from fourplane.edge.http_cache import NOT_STORED, Freshness, selects
from fourplane.foundation import ids
from fourplane.foundation.blocking import Worker
from fourplane.foundation.errors import FourplaneError

MAGIC = b"FPC1"
SCHEMA = 1
MAP_MIN = 64 << 10
VARIANTS_MAX = 32
HEAD_BYTES = 512  # what an entry costs beside its body


class StoredHead(msgspec.Struct, array_like=True):
    """The head of an entry's file."""

    schema: int
    key: bytes
    status: int
    reason: bytes
    fields: list[tuple[bytes, bytes]]
    freshness: Freshness
    secondary: list[bytes | None]
    part: tuple[int, int, int | None] | None
    asked_range: bytes | None
    size: int
    tags: list[bytes]


class CacheEntry:
    """One stored response. `head` is everything but Age and Cache-Status, built once."""

    __slots__ = (
        "asked_range",
        "body",
        "descriptor",
        "fields",
        "file",
        "fresh_until_s",
        "freshness",
        "head",
        "head_second",
        "head_timed",
        "key",
        "newer",
        "offset",
        "older",
        "part",
        "ready",
        "ready_second",
        "reason",
        "refreshing",
        "secondary",
        "size",
        "status",
        "tags",
        "turn",
        "visited",
    )

    def __init__(self, key: bytes, status: int, reason: bytes, fields: Fields, freshness: Freshness) -> None:
        self.key = key
        self.status = status
        self.reason = reason
        self.fields = fields
        self.turn = 0  # counts up when another response might be the right one for the same request
        self.renew(freshness)
        self.descriptor = -1
        self.secondary: tuple[bytes | None, ...] = ()
        self.part: tuple[int, int, int | None] | None = None
        self.asked_range: bytes | None = None
        self.body: bytes | memoryview | None = None
        self.size = 0
        self.offset = 0
        self.file: str | None = None
        self.tags: tuple[bytes, ...] = ()
        self.visited = False
        self.refreshing = False
        self.newer: CacheEntry | None = None
        self.older: CacheEntry | None = None
        self.head_second = -1
        self.head_timed = b""
        self.ready = b""  # a whole answer, for hot small objects
        self.ready_second = -1
        self.head = b""
        self.build_head()

    def renew(self, freshness: Freshness) -> None:
        """What may be done with it from now on; `fresh_until_s` lets a hit be decided by one comparison."""
        self.freshness = freshness
        self.turn += 1
        kept = freshness
        self.fresh_until_s = -1.0 if kept.must_validate else kept.stored_s + kept.lifetime_s - kept.age_s

    def answers_part(self, ranged: bytes) -> bool:
        """Whether this stored part holds what a Range asks for."""
        if self.asked_range == ranged:
            return True
        if self.part is None or self.part[2] is None or self.size < self.part[1] - self.part[0]:
            return False
        span = parse_range(ranged, self.part[2])
        return isinstance(span, tuple) and self.part[0] <= span[0] and span[1] <= self.part[1]

    def build_head(self) -> None:
        """Write the head again after its fields changed."""
        lines = [b"HTTP/1.1 %d %s\r\n" % (self.status, self.reason)]
        lines += [b"%s: %s\r\n" % field for field in self.fields if field[0] not in NOT_STORED]
        self.head = b"".join(lines)
        self.head_second = self.ready_second = -1
        self.turn += 1

    @property
    def cost(self) -> int:
        """Bytes this entry is charged."""
        return self.size + HEAD_BYTES

    def stored_head(self) -> StoredHead:
        """What goes to disk."""
        return StoredHead(
            SCHEMA,
            self.key,
            self.status,
            self.reason,
            self.fields,
            self.freshness,
            list(self.secondary),
            self.part,
            self.asked_range,
            self.size,
            list(self.tags),
        )


class CacheStore:
    """Entries by key; `folder` None keeps bodies in memory only."""

    def __init__(self, folder: Path | None, *, bytes_max: int, resident_max: int = 0) -> None:
        self.bytes_max = bytes_max
        self.bytes = 0
        self.evictions = 0
        self.disk_errors = 0
        self._folder = folder
        # A resident entry costs one descriptor, so a quarter of what this process may open is the bound.
        self._resident_max = resident_max or max(32, min(4_096, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
        self._resident: deque[CacheEntry] = deque()
        self._keys: dict[bytes, list[CacheEntry]] = {}
        self._head: CacheEntry | None = None
        self._tail: CacheEntry | None = None
        self._hand: CacheEntry | None = None
        self._count = 0
        self._worker = None if folder is None else Worker("cache-disk", queue_max=4_096)

    def __len__(self) -> int:
        return self._count

    def listed(self) -> list[bytes]:
        """Every key that has a response."""
        return list(self._keys)

    def variants(self, key: bytes) -> list[CacheEntry] | None:
        """All stored responses of a key, the newest first."""
        return self._keys.get(key)

    def find(self, key: bytes, request: Fields) -> CacheEntry | None:
        """The newest whole response whose secondary key is the request's."""
        for entry in self._keys.get(key, ()):
            if entry.part is None and self.matches(entry, request):
                return entry
        return None

    @staticmethod
    def matches(entry: CacheEntry, request: Fields) -> bool:
        """Whether the fields the entry varies by are the same in `request`."""
        names = entry.freshness.vary
        return not names or selects(names, entry.secondary, request, entry.fields)

    def content(self, entry: CacheEntry) -> bytes | memoryview | None:
        """The body; None (and the entry is gone) when its file cannot be read."""
        body = entry.body
        if body is not None:
            return body
        try:
            body = self._map(entry)
        except (OSError, ValueError):
            self.disk_errors += 1
            self.remove(entry)
            return None
        entry.body = body
        self._keep_resident(entry)
        return body

    def open_file(self, entry: CacheEntry) -> int:
        """A descriptor of the entry's file for sending it in the kernel; -1 when it has none or is small. Stays the store's."""
        if entry.descriptor >= 0 or entry.file is None or entry.size < MAP_MIN or self._folder is None:
            return entry.descriptor
        try:
            entry.descriptor = os.open(self._folder / entry.file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return -1
        self._keep_resident(entry)
        return entry.descriptor

    def put(self, entry: CacheEntry, body: bytes) -> None:
        """Store a response in place of an equal one; evicts until it fits. Its file follows behind."""
        entry.body = body
        entry.size = len(body)
        if entry.cost > self.bytes_max:
            return
        for old in list(self._keys.get(entry.key, ())):
            if _replaces(entry, old):
                self.remove(old)
        self._insert(entry)
        while self.bytes > self.bytes_max:
            self._evict(entry)
        if self._folder is not None:
            self._write_behind(entry, body)

    def rewrite(self, entry: CacheEntry) -> None:
        """The head of an entry changed (a 304): build it again, also on disk."""
        entry.build_head()
        body = self.content(entry)
        if self._folder is not None and body is not None:
            self._write_behind(entry, body)

    def remove(self, entry: CacheEntry) -> None:
        """Forget an entry and its file."""
        variants = self._keys.get(entry.key)
        if variants is None or entry not in variants:
            return
        variants.remove(entry)
        entry.turn += 1
        for other in variants:
            other.turn += 1
        if not variants:
            del self._keys[entry.key]
        self._unlink(entry)
        self.bytes -= entry.cost
        self._count -= 1
        entry.body = None
        entry.ready, entry.ready_second = b"", -1
        self._release(entry)
        self._discard(entry.file)
        entry.file = None

    def purge(self, key: bytes) -> int:
        """Forget every response of a key; how many there were."""
        variants = list(self._keys.get(key, ()))
        for entry in variants:
            self.remove(entry)
        return len(variants)

    def purge_tag(self, tag: bytes) -> int:
        """Forget every response that carries this Cache-Tag; walks all entries."""
        tagged = [entry for entry in self._walk() if tag in entry.tags]
        for entry in tagged:
            self.remove(entry)
        return len(tagged)

    def check(self) -> None:
        """Assert the invariants of the module's essay."""
        walked = list(self._walk())
        assert len(walked) == self._count == sum(len(found) for found in self._keys.values())
        assert sum(entry.cost for entry in walked) == self.bytes <= self.bytes_max

    async def open(self) -> int:
        """Take over what an earlier run left in the folder; returns the entries found."""
        if self._folder is None or self._worker is None:
            return 0
        found = await self._worker.submit(_load, self._folder)
        for entry in found:
            if entry.cost <= self.bytes_max:
                self._insert(entry)
        while self.bytes > self.bytes_max:
            self._evict(None)
        return self._count

    def close(self) -> None:
        """Finish the writes under way and let go of all files."""
        if self._worker is not None:
            self._worker.close()
        for entry in self._walk():
            self._release(entry)

    # -- files

    def _map(self, entry: CacheEntry) -> bytes | memoryview:
        if entry.file is None or self._folder is None:
            raise OSError("no file")
        with (self._folder / entry.file).open("rb") as file:
            if entry.size < MAP_MIN:
                file.seek(entry.offset)
                body = file.read(entry.size)
                if len(body) != entry.size:
                    raise OSError("short file")
                return body
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(mapped) < entry.offset + entry.size:
            raise OSError("short file")
        return memoryview(mapped)[entry.offset : entry.offset + entry.size]

    def _keep_resident(self, entry: CacheEntry) -> None:
        self._resident.append(entry)
        if len(self._resident) > self._resident_max:
            oldest = self._resident.popleft()
            if oldest is not entry and oldest.file is not None:
                oldest.body = None
                self._release(oldest)

    @staticmethod
    def _release(entry: CacheEntry) -> None:
        if entry.descriptor >= 0:
            os.close(entry.descriptor)
            entry.descriptor = -1

    def _write_behind(self, entry: CacheEntry, body: bytes | memoryview) -> None:
        assert self._folder is not None
        assert self._worker is not None
        name = ids.capability()
        head = msgspec.msgpack.encode(entry.stored_head())
        try:
            future = self._worker.submit(_write, self._folder / name[:2], name, head, body)
        except FourplaneError:  # the disk is far behind: an entry without file would not be bounded
            self.disk_errors += 1
            self.remove(entry)
            return

        def written(_: object) -> None:
            if future.cancelled() or future.exception() is not None:
                self.disk_errors += 1
                self.remove(entry)
                return
            self._release(entry)
            self._discard(entry.file)
            entry.file, entry.offset = f"{name[:2]}/{name}", future.result()
            entry.body = None  # the next hit maps the file; the memory of the fill is free
            if entry not in self._keys.get(entry.key, ()):
                self._discard(entry.file)

        future.add_done_callback(written)

    def _discard(self, name: str | None) -> None:
        """Delete a file behind; one that stays because the node stops is found again at the next start."""
        if name is not None and self._folder is not None and self._worker is not None:
            with contextlib.suppress(FourplaneError):
                self._worker.submit(_delete, self._folder / name)

    # -- SIEVE

    def _insert(self, entry: CacheEntry) -> None:
        variants = self._keys.setdefault(entry.key, [])
        for other in variants:
            other.turn += 1
        variants.insert(0, entry)
        entry.older, entry.newer = self._head, None
        if self._head is not None:
            self._head.newer = entry
        self._head = entry
        if self._tail is None:
            self._tail = entry
        self.bytes += entry.cost
        self._count += 1
        if len(variants) > VARIANTS_MAX:
            self.remove(variants[-1])

    def _evict(self, spared: CacheEntry | None) -> None:
        at = self._hand or self._tail
        for _ in range(2 * self._count + 2):
            assert at is not None
            if not at.visited and at is not spared:
                break
            at.visited = False
            at = at.newer or self._tail
        assert at is not None
        self._hand = at.newer
        self.evictions += 1
        self.remove(at)

    def _unlink(self, entry: CacheEntry) -> None:
        if self._hand is entry:
            self._hand = entry.newer
        if entry.newer is not None:
            entry.newer.older = entry.older
        else:
            self._head = entry.older
        if entry.older is not None:
            entry.older.newer = entry.newer
        else:
            self._tail = entry.newer
        entry.newer = entry.older = None

    def _walk(self) -> Iterator[CacheEntry]:
        at = self._head
        while at is not None:
            following = at.older
            yield at
            at = following


def _replaces(new: CacheEntry, old: CacheEntry) -> bool:
    if new.part is not None or old.part is not None:
        return new.part == old.part and new.asked_range == old.asked_range
    return new.freshness.vary != old.freshness.vary or new.secondary == old.secondary


def _write(folder: Path, name: str, head: bytes, body: bytes | memoryview) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{name}.part"
    try:
        with part.open("wb") as file:
            file.write(MAGIC + len(head).to_bytes(4, "big") + head)
            file.write(body)
        part.rename(folder / name)
    except OSError:
        _delete(part)
        raise
    return len(MAGIC) + 4 + len(head)


def _delete(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _load(folder: Path) -> list[CacheEntry]:
    """Every whole entry of a folder, oldest first; broken and half-written files are deleted."""
    folder.mkdir(parents=True, exist_ok=True)
    found: list[tuple[float, CacheEntry]] = []
    for path in sorted(folder.glob("??/*")):
        try:
            with path.open("rb") as file:
                lead = file.read(8)
                if lead[:4] != MAGIC or path.suffix:
                    raise ValueError("not an entry")
                length = int.from_bytes(lead[4:], "big")
                head = msgspec.msgpack.decode(file.read(length), type=StoredHead)
                if head.schema != SCHEMA or os.fstat(file.fileno()).st_size != 8 + length + head.size:
                    raise ValueError("cut short")
        except (OSError, ValueError, msgspec.MsgspecError):
            _delete(path)
            continue
        entry = CacheEntry(head.key, head.status, head.reason, head.fields, head.freshness)
        entry.secondary, entry.part, entry.asked_range = tuple(head.secondary), head.part, head.asked_range
        entry.size, entry.offset, entry.file = head.size, 8 + length, f"{path.parent.name}/{path.name}"
        entry.tags = tuple(head.tags)
        found.append((head.freshness.stored_s, entry))
    found.sort(key=lambda pair: pair[0])
    return [entry for _, entry in found]

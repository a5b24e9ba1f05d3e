"""A cache node: an HTTP cache in front of any origin, or of another node, on a port of its own.

A hit is answered inside the connection's callback: look up, compare the secondary key, look at the clock, write a prebuilt
head and the mapped body. No task, no await, no log line; counters and, once a second per entry, one formatted Age.
Everything else runs in a task: a *fill* asks the parent once for all clients that want the same thing (coalescing) and
hands out bytes as they come; what may not be stored goes to one client alone and everybody else asks for themselves.

    hit        stored and fresh                        stale      stale-while-revalidate, refreshed behind
    revalidate stale with a validator: 304 freshens    pass       unsafe methods, ranges and what must not be stored
Every answer carries Cache-Status (RFC 9211). Rules: `http_cache`. Bytes: `cache_store`. Parent: `cache_origin`.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec

from fourplane.edge import http_cache as rules
from fourplane.edge.cache_fetch import CacheFetch
from fourplane.edge.cache_fields import KEPT_IN_304, parse_range
from fourplane.edge.cache_fill import Fill, Uncacheable
from fourplane.edge.cache_hot import BODY_MAX, HotAnswer, HotAnswers
from fourplane.edge.cache_origin import OriginPool, OriginSettings
from fourplane.edge.cache_protocol import CacheProtocol, CacheRequest
from fourplane.edge.cache_store import CacheEntry, CacheStore
from fourplane.edge.deadlines import Deadlines
from fourplane.edge.http_answers import date_line, error_answer
from fourplane.edge.http_cache import Verdict
from fourplane.edge.listener import Listener, ListenerSettings
from fourplane.foundation import clock
from fourplane.foundation.errors import DeadlineExceeded, FourplaneError, Unavailable
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Histogram, Registry

SAMPLE = 15  # every 16th hit is timed
KERNEL_MIN = 128 << 10  # bodies from here on are sent by the kernel
CORS = (
    b"access-control-allow-origin: *\r\naccess-control-expose-headers: *\r\ntiming-allow-origin: *\r\n"
    b"cross-origin-resource-policy: cross-origin\r\n"
)
PREFLIGHT = (
    b"HTTP/1.1 204 No Content\r\naccess-control-allow-methods: GET, HEAD\r\naccess-control-allow-headers: *, range\r\n"
    b"access-control-max-age: 86400\r\n"
)


class CacheNodeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One cache node: where it listens, what it fills from, its bounds and its manners."""

    name: str = "fourplane"
    listener: ListenerSettings = ListenerSettings(port=8101)
    origin: OriginSettings = OriginSettings()
    folder: Path | None = None  # None: bodies in memory only
    bytes_max: int = 1 << 30
    object_bytes_max: int = 64 << 20  # larger responses pass through
    filling_bytes_max: int = 512 << 20
    body_bytes_max: int = 16 << 20  # of requests
    idle_s: float = 60.0
    uncacheable_s: float = (
        10.0  # how long a response that must not be stored keeps clients from waiting for one another
    )
    stale_unreachable_s: float = 86_400.0  # how long overdue a response may be when the origin cannot be reached
    obey_request: bool = True  # the client's Cache-Control; a CDN in front of its own origin ignores it
    whole: bool = False  # ask the parent for whole objects even if the client wants a part
    key_host: bool = True  # the Host is part of what a response is stored under
    cors: bool = False
    congestion: str = "auto"  # of connections to clients: bbr, cubic, ...; auto: the system's, unpaced on loopback


class CacheStatistics(msgspec.Struct, frozen=True):
    """What a node did since it started, and what it holds."""

    requests: int
    hits: int
    stale: int
    misses: int
    revalidated: int
    collapsed: int
    passed: int
    errors: int
    refused: dict[str, int]
    connections: int
    entries: int
    bytes_stored: int
    bytes_max: int
    bytes_out: int
    bytes_hit: int
    bytes_filled: int
    evictions: int
    disk_errors: int


Guard = Callable[[bytes], bytes]  # a request target to the key it is stored under; raises what the client may not


class CacheNode:
    """One listening cache; a lifecycle part."""

    def __init__(
        self,
        settings: CacheNodeSettings,
        *,
        registry: Registry,
        guard: Guard | None = None,
        allowed: Callable[[], bool] = lambda: True,
        tls: ssl.SSLContext | None = None,
        inherited: socket.socket | None = None,
    ) -> None:
        self.settings = settings
        self.registry = registry
        self.deadlines = Deadlines()
        self.draining = False
        self.store = CacheStore(settings.folder, bytes_max=settings.bytes_max)
        self.hot = HotAnswers()
        self.pool = OriginPool(settings.origin)
        self.latency = Histogram()
        self.fill_latency = Histogram()
        self.listener = Listener(settings.listener, tls=tls, inherited=inherited)
        self._guard = guard
        self._allowed = allowed
        self._label = settings.name.encode()
        self._obey = settings.obey_request
        self._idle_ticks = self.deadlines.ticks(settings.idle_s)
        self._extra = CORS if settings.cors else b""
        self._tasks: Tasks | None = None
        self._connections: dict[CacheProtocol, None] = {}
        self._fills: dict[bytes, Fill] = {}
        self._uncacheable = Uncacheable(settings.uncacheable_s)
        self._refused: dict[str, int] = {}
        self._fetch = CacheFetch(settings, self.store, self.pool, self._uncacheable.add)
        self.requests = 0
        self.hits = 0
        self.stale = 0
        self.misses = 0
        self.collapsed = 0
        self.passed = 0
        self.errors = 0
        self.bytes_out = 0
        self.bytes_hit = 0

    @property
    def port(self) -> int:
        """The port it really listens on."""
        return self.listener.port

    # -- lifecycle

    async def start(self, tasks: Tasks) -> None:
        """Take over what is on disk and listen."""
        self._tasks = tasks
        found = await self.store.open()
        await self.listener.open(lambda: CacheProtocol(self))
        if not self.listener.choose_congestion(self.settings.congestion):
            name, wanted = self.settings.name, self.settings.congestion
            self.registry.event("warning", "cdn", f"{name}: the kernel knows no {wanted}, the system's control stays")
        if found:
            self.registry.event("info", "cdn", f"{self.settings.name} kept {found} objects from before its restart")

    async def drain(self) -> None:
        """Accept nothing new; connections end after the answer under way."""
        self.draining = True
        self.listener.close()
        for connection in list(self._connections):
            if not connection.busy:
                connection.transport.close()

    async def stop(self) -> None:
        """Cut what is open and finish the writes under way."""
        self.draining = True
        self.listener.close()
        for connection in list(self._connections):
            connection.transport.abort()
        self.pool.close()
        self.deadlines.close()
        self.store.close()
        await clock.sleep(0)

    def vanish(self, *, gone: bool) -> None:
        """Cut every connection and each new one, as if the place it stands in were dark, until it is over."""
        self.draining = gone
        for connection in list(self._connections) if gone else ():
            connection.transport.abort()

    def statistics(self) -> CacheStatistics:
        store, fetch = self.store, self._fetch
        return CacheStatistics(
            self.requests,
            self.hits,
            self.stale,
            self.misses,
            fetch.revalidated,
            self.collapsed,
            self.passed,
            self.errors,
            dict(self._refused),
            len(self._connections),
            len(store),
            store.bytes,
            store.bytes_max,
            self.bytes_out,
            self.bytes_hit,
            fetch.bytes_filled,
            store.evictions,
            store.disk_errors,
        )

    # -- called by connections

    def opened(self, connection: CacheProtocol) -> bool:
        """Count a connection in; False when it must go."""
        if self.draining or not self.listener.bounds.try_enter(connection.peer):
            return False
        self._connections[connection] = None
        return True

    def closed(self, connection: CacheProtocol) -> None:
        """Count a connection out."""
        if self._connections.pop(connection, 0) is None:
            self.listener.bounds.leave(connection.peer)

    def counted(self, code: str) -> None:
        """Remember why a request was refused."""
        self._refused[code] = self._refused.get(code, 0) + 1

    def start_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run the slow part of an answer."""
        assert self._tasks is not None
        return self._tasks.start(work, "request")

    def serve_hot(self, connection: CacheProtocol, hit: HotAnswer) -> bool:
        """Answer a request whose very bytes were answered before from memory; False when anything about it changed."""
        entry = hit.entry
        now_s = clock.now_us() / 1e6
        if hit.turn != entry.turn or now_s >= entry.fresh_until_s or self.draining or not self._allowed():
            return False
        if self._guard is not None:
            try:
                self._guard(hit.request.target)
            except FourplaneError:
                return False
        second = int(now_s)
        if entry.head_second != second:
            entry.head_timed = self._timed(entry, now_s, b"hit", entry.head)
            entry.head_second = second
        if entry.size >= BODY_MAX:
            if not self._send_body(connection, hit.request, entry, entry.head_timed, (0, entry.size)):
                return False
        else:
            if entry.ready_second != second:
                body = self.store.content(entry)
                if body is None:
                    return False
                self.hot.make_ready(entry, b"".join((entry.head_timed, b"\r\n", body)), second)
            connection.answer_hot(entry.ready)
        connection.deadline_tick = self.deadlines.now + self._idle_ticks
        entry.visited = True
        size = entry.size
        self.requests += 1
        self.hits += 1
        self.bytes_out += size
        self.bytes_hit += size
        if not self.hits & SAMPLE:
            self.latency.record(clock.now_us() / 1e6 - now_s)
        return True

    def handle(self, connection: CacheProtocol, request: CacheRequest) -> Coroutine[Any, Any, None] | None:
        """Answer at once and return None, or return the work that will."""
        self.requests += 1
        target = request.target
        if not self._allowed():
            self._refuse(connection, request, Unavailable("this node was stopped", code="stopped_by_operator"))
            return None
        try:
            key = target if self._guard is None else self._guard(target)
        except FourplaneError as error:
            self._refuse(connection, request, error)
            return None
        if self.settings.key_host:
            key = request.host + b"\0" + key
        method = request.method
        if method not in {b"GET", b"HEAD"}:
            if method == b"OPTIONS" and self.settings.cors:
                connection.answer(request, PREFLIGHT + self._extra)
                return None
            return self._answer(connection, request, key, None)
        entry = self._lookup(key, request)
        if entry is None:
            return self._answer(connection, request, key, None)
        return self._use(connection, request, key, entry)

    def _use(
        self, connection: CacheProtocol, request: CacheRequest, key: bytes, entry: CacheEntry
    ) -> Coroutine[Any, Any, None] | None:
        """Answer from what is stored, or return the work that asks the parent about it."""
        now_s = clock.now_us() / 1e6
        if now_s < entry.fresh_until_s and not (request.special and self._obey):
            verdict = Verdict.HIT
        else:
            verdict = rules.judge(entry.freshness, request.fields, now_s, obey_request=self._obey)
        if verdict is Verdict.HIT or verdict is Verdict.STALE:
            if not self.serve(connection, request, entry, now_s):
                return self._answer(connection, request, key, None)
            if verdict is Verdict.STALE:
                self.stale += 1
                self._refresh(key, request, entry)
            else:
                self.hits += 1
                if request.raw and entry.part is None:
                    self.hot.learn(request, entry)
                if not self.hits & SAMPLE:
                    self.latency.record(clock.now_us() / 1e6 - now_s)
            return None
        if verdict is Verdict.ONLY_IF_CACHED:
            self._refuse(connection, request, DeadlineExceeded("nothing fresh is stored", code="only_if_cached"))
            return None
        return self._answer(connection, request, key, entry)

    def serve(
        self,
        connection: CacheProtocol,
        request: CacheRequest,
        entry: CacheEntry,
        now_s: float,
        how: bytes = b"hit",
    ) -> bool:
        """Answer from a stored response; False when its body could not be read."""
        entry.visited = True
        second = int(now_s)
        if entry.head_second != second or how != b"hit":
            entry.head_timed = self._timed(entry, now_s, how, entry.head)
            entry.head_second = second if how == b"hit" else -1
        if request.special:
            if rules.is_unmodified(entry.freshness, request.fields, status=entry.status):
                connection.answer(request, self._not_modified(entry, now_s, how))
                return True
            if (ranged := request.value(b"range")) is not None and entry.status in {200, 206}:
                return self._serve_range(connection, request, entry, now_s, ranged)
        self.bytes_out += entry.size
        self.bytes_hit += entry.size if how == b"hit" else 0
        return self._send_body(connection, request, entry, entry.head_timed, (0, entry.size))

    # -- answers from the store

    def _send_body(
        self, connection: CacheProtocol, request: CacheRequest, entry: CacheEntry, head: bytes, span: tuple[int, int]
    ) -> bool:
        """Send a span of a stored body: by the kernel from its file, else from memory; False when unreadable."""
        first, past = span
        if request.method != b"HEAD" and past - first >= KERNEL_MIN:
            file = self.store.open_file(entry)
            if file >= 0 and connection.answer_file(request, head, file, entry.offset + first, past - first):
                return True
        body = self.store.content(entry)
        if body is None:
            return False
        whole = first == 0 and past == entry.size
        connection.answer(request, head, body if whole else memoryview(body)[first:past])
        return True

    def _lookup(self, key: bytes, request: CacheRequest) -> CacheEntry | None:
        entries = self.store.variants(key)
        if entries is None:
            return None
        ranged = request.value(b"range") if request.special else None
        for entry in entries:
            if entry.part is not None and (ranged is None or not entry.answers_part(ranged)):
                continue
            if not entry.freshness.vary or self.store.matches(entry, request.fields):
                return entry
        return None

    def _timed(self, entry: CacheEntry, now_s: float, how: bytes, head: bytes) -> bytes:
        kept = entry.freshness
        return head + b"%sage: %d\r\ncache-status: %s; %s; ttl=%d\r\n" % (
            self._extra,
            max(0, int(kept.age(now_s))),
            self._label,
            how,
            int(kept.left(now_s)),
        )

    def _not_modified(self, entry: CacheEntry, now_s: float, how: bytes) -> bytes:
        lines = [b"HTTP/1.1 304 Not Modified\r\n"]
        lines += [b"%s: %s\r\n" % field for field in entry.fields if field[0] in KEPT_IN_304]
        return self._timed(entry, now_s, how, b"".join(lines))

    def _serve_range(
        self, connection: CacheProtocol, request: CacheRequest, entry: CacheEntry, now_s: float, ranged: bytes
    ) -> bool:
        offset, size = (0, entry.size) if entry.part is None else (entry.part[0], entry.part[2] or entry.part[1])
        span = parse_range(ranged, size) if rules.range_holds(entry.freshness, request.value(b"if-range")) else None
        if span is None and entry.part is None:
            self.bytes_out += entry.size
            self.bytes_hit += entry.size
            return self._send_body(connection, request, entry, entry.head_timed, (0, entry.size))
        if span is False:
            head = b"HTTP/1.1 416 Range Not Satisfiable\r\ncontent-length: 0\r\ncontent-range: bytes */%d\r\n" % size
            connection.answer(request, self._timed(entry, now_s, b"hit", head + date_line()))
            return True
        if entry.asked_range == ranged or not isinstance(span, tuple):
            self.bytes_out += entry.size
            return self._send_body(connection, request, entry, entry.head_timed, (0, entry.size))
        first, past = span
        lines = [b"HTTP/1.1 206 Partial Content\r\n"]
        lines += [b"%s: %s\r\n" % field for field in entry.fields if field[0] not in _NOT_IN_PART]
        lines.append(b"content-length: %d\r\ncontent-range: bytes %d-%d/%d\r\n" % (past - first, first, past - 1, size))
        self.bytes_out += past - first
        self.bytes_hit += past - first
        head = self._timed(entry, now_s, b"hit", b"".join(lines))
        return self._send_body(connection, request, entry, head, (first - offset, past - offset))

    # -- answers that need the parent

    async def _answer(
        self, connection: CacheProtocol, request: CacheRequest, key: bytes, entry: CacheEntry | None
    ) -> None:
        began_s = clock.monotonic_s()
        try:
            if request.method == b"GET" and entry is None and rules.wants_only_cached(request.fields):
                self._refuse(connection, request, DeadlineExceeded("nothing is stored", code="only_if_cached"))
            else:
                await self._ask(connection, request, key, entry)
        except FourplaneError as error:
            self._refuse(connection, request, error)
        except ConnectionError:
            pass
        finally:
            self.fill_latency.record(clock.monotonic_s() - began_s)
            connection.finished(request)

    async def _ask(
        self, connection: CacheProtocol, request: CacheRequest, key: bytes, entry: CacheEntry | None
    ) -> None:
        fill = self._join(connection, request, key, entry)
        while True:
            if fill.connection is not connection:
                self.collapsed += 1
            fill.join(request)
            try:
                while not fill.decided:
                    await fill.changed()
                if self._fits(fill, connection, request):
                    await self._deliver(connection, request, fill)
                    return
            finally:
                fill.leave(request)
            fill = self._begin(connection, request, key, entry, alone=True)

    def _join(self, connection: CacheProtocol, request: CacheRequest, key: bytes, entry: CacheEntry | None) -> Fill:
        """The fill that answers this request: one under way, or a new one."""
        alone = request.method != b"GET" or not self._is_plain(request) or self._uncacheable.holds(key)
        if not alone and (fill := self._fills.get(key)) is not None and (not fill.decided or fill.shared):
            return fill
        return self._begin(connection, request, key, entry, alone=alone)

    def _is_plain(self, request: CacheRequest) -> bool:
        if not request.special:
            return True
        return self.settings.whole and request.value(b"authorization") is None

    def _begin(
        self,
        connection: CacheProtocol | None,
        request: CacheRequest,
        key: bytes,
        entry: CacheEntry | None,
        *,
        alone: bool,
    ) -> Fill:
        fill = Fill(key, request.target, request, connection)
        if request.method == b"GET":
            self.misses += 1
        else:
            self.passed += 1
        if not alone:
            self._fills[key] = fill
        self.start_task(self._run(fill, entry))
        return fill

    async def _run(self, fill: Fill, entry: CacheEntry | None) -> None:
        try:
            await self._fetch.run(fill, entry)
        except FourplaneError as error:
            self.errors += 1
            fill.error = error
        except Exception as error:  # noqa: BLE001 - a bug ends this fill, not the node; it is told
            self.errors += 1
            fill.error = Unavailable("the cache node failed", code="bug")
            self.registry.event("error", "cdn", f"{self.settings.name}: a fill failed: {error!r}")
        finally:
            fill.done = True
            if self._fills.get(fill.key) is fill:
                del self._fills[fill.key]
            fill.tell()

    def _fits(self, fill: Fill, connection: CacheProtocol, request: CacheRequest) -> bool:
        """Whether what the parent answered to another client answers this one too."""
        if fill.connection is connection and fill.request is request:
            return True
        if fill.error is not None and not fill.status:
            return True
        if fill.entry is not None:
            return self.store.matches(fill.entry, request.fields)
        kept = fill.freshness
        return fill.shared and kept is not None and rules.secondary_key(kept.vary, request.fields) == fill.secondary

    async def _deliver(self, connection: CacheProtocol, request: CacheRequest, fill: Fill) -> None:
        if self.settings.whole and request.special and fill.shared:
            while not fill.done:
                await fill.changed()
        if fill.error is not None and (not fill.status or fill.done):
            raise fill.error
        if fill.entry is not None and (fill.done or not fill.status):
            first, visited = fill.request is request, fill.entry.visited
            how = fill.how if first else f"{fill.how}; collapsed"
            if self.serve(connection, request, fill.entry, clock.now_us() / 1e6, how.encode()):
                if first:
                    fill.entry.visited = visited  # who brought it in is no proof that anybody comes back for it
                return
            raise Unavailable("the stored response could not be read", code="disk")
        await self._stream(connection, request, fill)

    async def _stream(self, connection: CacheProtocol, request: CacheRequest, fill: Fill) -> None:
        lines = [b"HTTP/1.1 %d %s\r\n" % (fill.status, fill.reason)]
        lines += [b"%s: %s\r\n" % field for field in fill.fields if field[0] != b"content-length"]
        how = fill.how if fill.request is request else f"{fill.how}; collapsed"
        stored = "; stored" if fill.storing else ""
        lines.append(b"%scache-status: %s; %s%s\r\n" % (self._extra, self._label, how.encode(), stored.encode()))
        head = b"".join(lines)
        if request.method == b"HEAD" or fill.status in {204, 304}:
            length = [b"%s: %s\r\n" % field for field in fill.fields if field[0] == b"content-length"]
            connection.answer(request, head + b"".join(length[:1]))
            return
        connection.begin(request, head, fill.length)
        try:
            async for piece in fill.read(request):
                self.bytes_out += len(piece)
                await connection.send(piece)
        except FourplaneError:
            connection.fail()
            return
        connection.end()

    def _refresh(self, key: bytes, request: CacheRequest, entry: CacheEntry) -> None:
        """Ask the parent again while the stale response is already on its way to the client; once at a time."""
        if not entry.refreshing and key not in self._fills:
            entry.refreshing = True
            plain = CacheRequest()
            plain.method, plain.target, plain.host, plain.fields = b"GET", request.target, request.host, request.fields
            self._begin(None, plain, key, entry, alone=False)

    def prefetch(self, target: bytes, host: bytes = b"fill") -> Fill | None:
        """Fill an object that nobody asked for yet; None when it is stored and fresh, or under way. What is stored is kept for
        one round of eviction, as if it had been asked for: that is the prediction.
        """
        key = target if self._guard is None else self._guard(target)
        request = CacheRequest()
        request.method, request.target, request.host, request.fields = b"GET", target, host, [(b"host", host)]
        if self.settings.key_host:
            key = host + b"\0" + key
        entry = self._lookup(key, request)
        fresh = entry is not None and entry.freshness.left(clock.now_us() / 1e6) > 0
        if entry is not None and fresh:
            entry.visited = True
        if fresh or key in self._fills:
            return None
        return self._begin(None, request, key, entry, alone=False)

    def _refuse(self, connection: CacheProtocol, request: CacheRequest, error: FourplaneError) -> None:
        self.counted(error.reason)
        if connection.gone:
            return
        status = 502 if error.reason in {"closed", "truncated", "malformed", "connect"} else error.http_status
        status = 504 if error.reason == "timeout" else status
        whole = error_answer(status, error.reason, error.public, close=not request.keep_alive)
        head, _, body = whole.partition(b"\r\n\r\n")
        label = b"\r\n%scache-status: %s; fwd=miss; detail=%s\r\n" % (self._extra, self._label, error.reason.encode())
        connection.transport.write(head + label + b"\r\n" + (b"" if request.method == b"HEAD" else body))


_NOT_IN_PART = rules.NOT_STORED | {b"content-length", b"content-range"}

"""Asks the parent for one fill: what to send, what the answer means, what to keep.

304 to our validator      the stored response is freshened and answers
5xx, or nobody there      the stored response may stand in (stale-if-error, or unreachable within its bound)
storable                  handed out while it comes, stored when whole
anything else             handed to the client that asked; a success of an unsafe method invalidates
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from fourplane.edge import http_cache as rules
from fourplane.edge.cache_fields import Fields, all_values, first_value, parse_content_range, split_list
from fourplane.edge.cache_fill import Fill
from fourplane.edge.cache_origin import OriginFailed, OriginPool, OriginReply
from fourplane.edge.cache_store import CacheEntry, CacheStore
from fourplane.edge.http_answers import http_date
from fourplane.edge.http_cache import Freshness
from fourplane.foundation import clock

if TYPE_CHECKING:
    from fourplane.edge.cache_node import CacheNodeSettings

CONDITIONS = frozenset({b"if-none-match", b"if-modified-since", b"if-match", b"if-unmodified-since", b"if-range"})
TAGS_MAX = 32


class CacheFetch:
    """The fills of one node."""

    def __init__(
        self,
        settings: "CacheNodeSettings",
        store: CacheStore,
        pool: OriginPool,
        uncacheable: Callable[[bytes], None],
    ) -> None:
        self._settings = settings
        self._store = store
        self._pool = pool
        self._uncacheable = uncacheable
        self._filling = 0
        self.revalidated = 0
        self.bytes_filled = 0

    async def run(self, fill: Fill, entry: CacheEntry | None) -> None:
        """Ask once, or twice when a 304 turns out to mean another response; raises OriginFailed."""
        try:
            if not await self._ask(fill, entry):
                self._store.purge(fill.key)
                await self._ask(fill, None)
        finally:
            if entry is not None:
                entry.refreshing = False

    async def _ask(self, fill: Fill, entry: CacheEntry | None) -> bool:
        request = fill.request
        fields, conditional = self._outgoing(fill, entry)
        asked_s = clock.now_us() / 1e6
        connection = fill.connection

        def interim(status: int, reason: bytes, told: Fields) -> None:
            if connection is not None:
                connection.interim(request, status, reason, told)

        try:
            reply = await self._pool.fetch(request.method, fill.target, fields, request.body, interim=interim)
        except OriginFailed:
            if entry is None or not self._stands_in(fill, entry, None):
                raise
            return True
        now_s = clock.now_us() / 1e6
        if reply.status == 304 and conditional and entry is not None:
            reply.abort()
            return self._validated(fill, entry, reply, asked_s, now_s)
        if reply.status >= 500 and entry is not None and self._stands_in(fill, entry, reply.status):
            reply.abort()
            return True
        await self._take(fill, entry, reply, asked_s, now_s)
        return True

    def _outgoing(self, fill: Fill, entry: CacheEntry | None) -> tuple[Fields, bool]:
        """The fields for the parent, and whether they carry our own condition."""
        fields = rules.without_hop_by_hop(fill.request.fields)
        whole = self._settings.whole and fill.request.method == b"GET"
        drop = {b"content-length", b"expect"}
        own: Fields = []
        if entry is not None and fill.request.method == b"GET" and entry.part is None:
            own = rules.conditions(entry.freshness)
        if own or whole:
            drop |= CONDITIONS
        if whole:
            drop |= {b"range", b"cache-control", b"pragma", b"cookie"}
        fields = [field for field in fields if field[0] not in drop]
        if self._settings.origin.host_header:
            fields = [field for field in fields if field[0] != b"host"]
            fields.append((b"host", self._settings.origin.host_header.encode()))
        elif not fill.request.host:
            fields.append((b"host", b"localhost"))
        fields.append((b"via", b"1.1 " + self._settings.name.encode()))
        return fields + own, bool(own)

    def _stands_in(self, fill: Fill, entry: CacheEntry, status: int | None) -> bool:
        now_s = clock.now_us() / 1e6
        unreachable_s = self._settings.stale_unreachable_s
        if not rules.may_serve_stale(entry.freshness, now_s, status=status, unreachable_s=unreachable_s):
            return False
        fill.entry = entry
        fill.how = "hit; fwd=stale; detail=unreachable" if status is None else f"hit; fwd=stale; fwd-status={status}"
        fill.tell()
        return True

    def _validated(self, fill: Fill, entry: CacheEntry, reply: OriginReply, asked_s: float, now_s: float) -> bool:
        if not rules.matches_304(entry.freshness, reply.fields):
            return False
        self.revalidated += 1
        entry.fields = rules.freshen(entry.fields, reply.fields)
        newer = rules.evaluate(b"GET", fill.request.fields, entry.status, entry.fields, asked_s=asked_s, now_s=now_s)
        if newer is None:
            entry.build_head()
            self._store.remove(entry)
        else:
            entry.renew(newer)
            self._store.rewrite(entry)
        fill.entry = entry
        fill.how = "fwd=stale; fwd-status=304"
        fill.tell()
        return True

    async def _take(
        self, fill: Fill, entry: CacheEntry | None, reply: OriginReply, asked_s: float, now_s: float
    ) -> None:
        request = fill.request
        if first_value(reply.fields, b"date") is None:
            reply.fields.append((b"date", http_date(now_s).encode()))
        method = request.method
        if method == b"POST" and rules.answers_get(fill.target, request.host, reply.status, reply.fields):
            method = b"GET"
        kept = rules.evaluate(method, request.fields, reply.status, reply.fields, asked_s=asked_s, now_s=now_s)
        fill.how = f"fwd={self._why(fill, entry)}; fwd-status={reply.status}"
        if request.method == b"HEAD":
            self._update_by_head(fill, reply, asked_s, now_s)
        for target in rules.invalidated(request.method, fill.target, request.host, reply.status, reply.fields):
            self._store.purge(request.host + b"\0" + target if self._settings.key_host else target)
        room = self._settings.object_bytes_max
        if reply.length is not None and reply.length > room:
            kept = None
        if self._filling + (reply.length or 0) > self._settings.filling_bytes_max:
            kept = None
        fill.freshness = kept
        fill.storing = kept is not None
        fill.shared = kept is not None and kept.left(now_s) > 0 and not kept.must_validate and reply.status != 206
        if not fill.shared and request.method == b"GET":
            self._uncacheable(fill.key)
        if kept is not None:
            fill.secondary = rules.secondary_key(kept.vary, request.fields)
        fill.reason, fill.fields, fill.length = reply.reason, reply.fields, reply.length
        fill.status = reply.status
        fill.tell()
        await self._body(fill, reply, kept, room)

    async def _body(self, fill: Fill, reply: OriginReply, kept: Freshness | None, room: int) -> None:
        counted = 0
        try:
            while piece := await reply.read():
                counted += len(piece)
                self._filling += len(piece)
                self.bytes_filled += len(piece)
                if counted > room:
                    fill.storing = False
                if not await fill.put(piece):
                    reply.abort()
                    return
        finally:
            self._filling -= counted
            reply.abort()
        if fill.storing and kept is not None:
            self._keep(fill, kept)

    def _keep(self, fill: Fill, kept: Freshness) -> None:
        body = fill.body()
        fields = [field for field in fill.fields if field[0] not in rules.NOT_STORED]
        if first_value(fields, b"content-length") is None and fill.status not in {204, 304}:
            fields.append((b"content-length", b"%d" % len(body)))
        entry = CacheEntry(fill.key, fill.status, fill.reason, fields, kept)
        entry.secondary = fill.secondary
        entry.tags = tuple(tag.encode("latin-1") for tag in split_list(all_values(fields, b"cache-tag"))[:TAGS_MAX])
        if fill.status == 206:
            stated = parse_content_range(first_value(fields, b"content-range"))
            # What came counts, not what was announced: a part is never taken for longer than its bytes.
            entry.part = stated and (stated[0], min(stated[1], stated[0] + len(body)), stated[2])
            entry.asked_range = first_value(fill.request.fields, b"range")
            if entry.part is None or entry.asked_range is None:
                return
        self._store.put(entry, body)
        fill.entry = entry

    def _update_by_head(self, fill: Fill, reply: OriginReply, asked_s: float, now_s: float) -> None:
        """A HEAD freshens the stored response it describes, or makes it stale (RFC 9111 4.3.5)."""
        for entry in list(self._store.variants(fill.key) or ()):
            if reply.status != 200 or not self._store.matches(entry, fill.request.fields):
                continue
            length = first_value(reply.fields, b"content-length")
            tag, modified = first_value(reply.fields, b"etag"), first_value(reply.fields, b"last-modified")
            same = (length is None or length == b"%d" % entry.size) and (tag is None or tag == entry.freshness.etag)
            same = same and (modified is None or modified == first_value(entry.fields, b"last-modified"))
            if not same:
                self._store.remove(entry)
                continue
            entry.fields = rules.freshen(entry.fields, reply.fields)
            newer = rules.evaluate(
                b"GET", fill.request.fields, entry.status, entry.fields, asked_s=asked_s, now_s=now_s
            )
            if newer is not None:
                entry.renew(newer)
                self._store.rewrite(entry)

    @staticmethod
    def _why(fill: Fill, entry: CacheEntry | None) -> str:
        if fill.request.method not in {b"GET", b"HEAD"}:
            return "method"
        return "stale" if entry is not None else "uri-miss"

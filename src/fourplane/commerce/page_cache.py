"""Whole pages kept as bytes, sent from inside the protocol.

A visitor without a cart sees the same page as every other one, so it is rendered once and kept as the complete answer: head,
body, validator. The hot route finds it by path in one dictionary look-up; everything else (a cart cookie, a query, a page
that is not kept) goes on to the application.
An entry is fresh for about `fresh_s` (each a little differently, so that pages kept together do not all grow old together);
after that it is still sent, and noted as `due`: somebody renders it anew behind everybody's back, each page once at a time
(`take_due`). Past `stale_s` it waits for the application, and where that fails it may still be sent (stale if error). A change of
stock or price drops the pages of its product at once, so old is only what changes by itself.
Each page has a gzip twin with a validator of its own, made soon afterwards on a thread (`take_plain`, `pack`): a third to a
sixth of the bytes for whoever takes it.

Invariant: at most `pages_max` entries; a page with a Set-Cookie is never kept. Cost: a hit about 1 us.
"""

from collections import OrderedDict
from collections.abc import Iterable
from hashlib import blake2b

import msgspec

from fourplane.edge.http_answers import answer
from fourplane.edge.http_request import HotAnswer, HttpRequest
from fourplane.edge.replies import PAGE_HEADERS
from fourplane.foundation import clock

BROWSER_S = 5


class PageCacheSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of the kept pages."""

    pages_max: int = 5_000
    page_bytes_max: int = 256 << 10
    fresh_s: float = 5.0
    stale_s: float = 300.0
    due_max: int = 1_000
    renew_at_once: int = 8
    pack_at_once: int = 16
    warm: int = 200  # popular products rendered at the start


class PageCacheStatistics(msgspec.Struct, frozen=True):
    """What the kept pages did."""

    pages: int
    hits: int
    misses: int
    stale: int
    packed: int = 0


class _Entry:
    __slots__ = ("answer", "due", "fresh_until", "kept_at", "not_modified", "packed", "packed_not_modified", "tag")

    def __init__(self, body: bytes, now: float, fresh_s: float) -> None:
        self.tag = f'"{blake2b(body, digest_size=12).hexdigest()}"'.encode()
        headers = {name.decode(): value.decode() for name, value in PAGE_HEADERS}
        vary = "cookie, accept-encoding"
        headers |= {"etag": self.tag.decode(), "cache-control": f"private, max-age={BROWSER_S}", "vary": vary}
        self.answer = answer(200, body, media_type="text/html; charset=utf-8", headers=headers, dated=False)
        self.not_modified = answer(304, headers=headers, dated=False)
        self.kept_at = now
        self.fresh_until = now + fresh_s
        self.due = False
        self.packed = self.packed_not_modified = b""

    def pack(self, small: bytes) -> None:
        """The same page in fewer bytes, under a validator of its own."""
        headers = {name.decode(): value.decode() for name, value in PAGE_HEADERS}
        tag = f'{self.tag.decode()[:-1]}-gz"'
        headers |= {"etag": tag, "cache-control": f"private, max-age={BROWSER_S}", "vary": "cookie, accept-encoding"}
        self.packed_not_modified = answer(304, headers=headers, dated=False)
        headers |= {"content-encoding": "gzip"}
        self.packed = answer(200, small, media_type="text/html; charset=utf-8", headers=headers, dated=False)


class PageCache:
    """Pages for visitors without a cart."""

    def __init__(self, settings: PageCacheSettings) -> None:
        self._settings = settings
        self._pages: OrderedDict[bytes, _Entry] = OrderedDict()
        self._due: dict[bytes, None] = {}
        self._plain: dict[bytes, None] = {}  # without a gzip twin
        self.enabled = True
        self.hits = self.misses = self.stale = 0

    def hot(self, request: HttpRequest) -> HotAnswer:
        """The kept answer of a request, or None for the application to make one."""
        entry = self._pages.get(request.path) if self.enabled and not request.query else None
        if entry is None:
            self.misses += 1
            return None
        raw = request.raw.lower()  # a plain head that nobody has split yet: look without splitting it
        personal = (
            b"\ncookie:" in raw or b"\nauthorization:" in raw
            if raw
            else any(name in (b"cookie", b"authorization") for name, _ in request.headers)
        )
        if personal:
            return None
        wanted = (request.header(b"if-none-match") or b"") if not raw or b"\nif-none-match:" in raw else b""
        now = clock.monotonic_s()
        if now > entry.fresh_until:
            if now - entry.kept_at > self._settings.stale_s:
                self.misses += 1
                return None
            self.stale += 1
            if not entry.due and len(self._due) < self._settings.due_max:
                entry.due = True
                self._due[request.path] = None
        self.hits += 1
        if entry.packed and _takes_gzip(raw, request):
            return entry.packed_not_modified if wanted and entry.tag[:-1] + b'-gz"' in wanted else entry.packed
        return entry.not_modified if wanted and entry.tag in wanted else entry.answer

    def keep(self, path: str, body: bytes) -> None:
        """Keep a page that was just rendered for a visitor without a cart."""
        if len(body) > self._settings.page_bytes_max:
            return
        key = path.encode()
        spread = 0.8 + 0.4 * clock.random().random()
        self._pages[key] = _Entry(body, clock.monotonic_s(), self._settings.fresh_s * spread)
        self._pages.move_to_end(key)
        self._plain[key] = None
        while len(self._pages) > self._settings.pages_max:
            gone, _ = self._pages.popitem(last=False)
            self._plain.pop(gone, None)

    def take_due(self, most: int) -> list[str]:
        """Pages that should be rendered anew, those noted first; each is handed out once."""
        taken = [key for key, _ in zip(self._due, range(most), strict=False)]
        for key in taken:
            del self._due[key]
            if (entry := self._pages.get(key)) is not None:
                entry.due = False  # asked for again where rendering fails
        return [key.decode() for key in taken]

    def take_plain(self, most: int) -> list[tuple[str, bytes]]:
        """Pages that have no gzip twin yet: path and body, those kept first."""
        taken: list[tuple[str, bytes]] = []
        while self._plain and len(taken) < most:
            key = next(iter(self._plain))
            del self._plain[key]
            entry = self._pages.get(key)
            if entry is not None and not entry.packed:
                taken.append((key.decode(), entry.answer.partition(b"\r\n\r\n")[2]))
        return taken

    def pack(self, path: str, body: bytes, small: bytes) -> None:
        """Keep the gzip twin of a page, unless the page is another one by now or hardly any smaller."""
        entry = self._pages.get(path.encode())
        if entry is not None and len(small) < 0.9 * len(body) and entry.answer.endswith(body):
            entry.pack(small)

    def find_stale(self, path: str) -> bytes | None:
        """The body of a kept page, whatever its age up to `stale_s`: for when rendering failed."""
        entry = self._pages.get(path.encode())
        if entry is None or clock.monotonic_s() - entry.kept_at > self._settings.stale_s:
            return None
        self.stale += 1
        return entry.answer.partition(b"\r\n\r\n")[2]

    def drop(self, paths: Iterable[str]) -> None:
        """Forget pages whose content has changed."""
        for path in paths:
            self._pages.pop(path.encode(), None)

    def clear(self) -> None:
        """Forget all pages."""
        self._pages.clear()
        self._plain.clear()

    def statistics(self) -> PageCacheStatistics:
        """What the kept pages did so far."""
        return PageCacheStatistics(
            len(self._pages),
            self.hits,
            self.misses,
            self.stale,
            sum(bool(entry.packed) for entry in self._pages.values()),
        )


def _takes_gzip(raw: bytes, request: HttpRequest) -> bool:
    """Whether this visitor takes gzip; `raw` is the lower-case head where nobody has split it yet."""
    if raw:
        at = raw.find(b"\naccept-encoding:")
        accepted = raw[at : raw.find(b"\r", at + 1)] if at >= 0 else b""
    else:
        accepted = (request.header(b"accept-encoding") or b"").lower()
    return b"gzip" in accepted and b"gzip;q=0" not in accepted.replace(b" ", b"")

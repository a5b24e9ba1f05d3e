"""One response on its way from the parent to whoever wants it.

The task that asks the parent is the only writer; each client reads at its own pace. While the response is meant for the store all
pieces stay (the store wants the whole body, and a late client starts at its beginning); otherwise pieces are dropped once
every reader has them and the writer waits for the slowest, so a large download costs `WINDOW` bytes, not its size.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator

from fourplane.edge.cache_fields import Fields
from fourplane.edge.cache_protocol import CacheProtocol, CacheRequest
from fourplane.edge.cache_store import CacheEntry
from fourplane.edge.http_cache import Freshness
from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError

WINDOW = 1 << 20
UNCACHEABLE_MAX = 10_000


class Uncacheable:
    """Keys whose responses cannot be shared, for a while: nobody waits for another client's answer to them."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until_s: OrderedDict[bytes, float] = OrderedDict()

    def add(self, key: bytes) -> None:
        """Remember `key`; the oldest is forgotten past the bound."""
        self._until_s[key] = clock.monotonic_s() + self._seconds
        if len(self._until_s) > UNCACHEABLE_MAX:
            self._until_s.popitem(last=False)

    def holds(self, key: bytes) -> bool:
        """Whether `key` is remembered still."""
        until_s = self._until_s.get(key)
        if until_s is None:
            return False
        if until_s < clock.monotonic_s():
            del self._until_s[key]
            return False
        return True


class Fill:
    """What the parent answered so far."""

    __slots__ = (
        "_base",
        "_pieces",
        "_readers",
        "_waiters",
        "connection",
        "done",
        "entry",
        "error",
        "fields",
        "freshness",
        "how",
        "key",
        "length",
        "reason",
        "request",
        "secondary",
        "shared",
        "size",
        "status",
        "storing",
        "target",
    )

    def __init__(self, key: bytes, target: bytes, request: CacheRequest, connection: CacheProtocol | None) -> None:
        self.key = key
        self.target = target
        self.request = request
        self.connection = connection  # who asked first; hears interim responses
        self.status = 0
        self.reason = b""
        self.fields: Fields = []
        self.length: int | None = None
        self.freshness: Freshness | None = None
        self.secondary: tuple[bytes | None, ...] = ()
        self.entry: CacheEntry | None = None  # answer from this instead: validated, stale or stored by now
        self.how = ""  # for Cache-Status
        self.shared = False
        self.storing = False
        self.done = False
        self.error: FourplaneError | None = None
        self.size = 0
        self._pieces: list[bytes] = []
        self._base = 0
        self._readers: dict[CacheRequest, int] = {}
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def decided(self) -> bool:
        """Whether it is known how this fill answers."""
        return self.status > 0 or self.entry is not None or self.error is not None

    async def changed(self) -> None:
        """Wait until anything about this fill is new."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def tell(self) -> None:
        """Wake whoever waits."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def put(self, piece: bytes) -> bool:
        """Add a piece; False when nobody wants the rest."""
        self._pieces.append(piece)
        self.size += len(piece)
        self.tell()
        while not self.storing:
            self._drop_read()
            if not self._readers:
                return False
            if sum(len(kept) for kept in self._pieces) <= WINDOW:
                return True
            await self.changed()
        return True

    def body(self) -> bytes:
        """Everything, once it is done and was stored."""
        return b"".join(self._pieces)

    def join(self, reader: CacheRequest) -> None:
        """Count a reader in before its first piece."""
        self._readers[reader] = self._base

    def leave(self, reader: CacheRequest) -> None:
        """A reader has gone or has everything."""
        if self._readers.pop(reader, None) is not None:
            self.tell()

    async def read(self, reader: CacheRequest) -> AsyncIterator[bytes]:
        """All pieces for one reader that has joined; raises the fill's error when it is cut short."""
        while True:
            at = self._readers[reader]
            if at < self._base + len(self._pieces):
                self._readers[reader] = at + 1
                if not self.storing:
                    self.tell()
                yield self._pieces[at - self._base]
            elif self.error is not None:
                raise self.error
            elif self.done:
                return
            else:
                await self.changed()

    def _drop_read(self) -> None:
        if self._readers:
            slowest = min(self._readers.values()) - self._base
            if slowest > 0:
                del self._pieces[:slowest]
                self._base += slowest

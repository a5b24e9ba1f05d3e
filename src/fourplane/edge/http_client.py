"""An HTTP/1.1 client for one origin: bounded connections, keep-alive, deadlines, streamed answers.

One connection carries one request at a time. A request is sent again only when its method is idempotent and a connection
that had been used before closed without a single byte of an answer: that is the keep-alive race of RFC 9112 9.3.1.
Anything else is told to the caller, who knows whether the work may have been done. Invariant: every connection is in
exactly one place, idle, lent or closed; `lent + idle <= connections_max`.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import msgspec

from fourplane.edge.client_connection import ClientConnection, ConnectionCut
from fourplane.foundation import clock, network
from fourplane.foundation.errors import DeadlineExceeded, Overloaded, Rejected, TooLarge, Unavailable
from fourplane.foundation.tracing import current_trace

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})


class HttpClientSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of one client."""

    connections_max: int = 64
    waiting_max: int = 10_000
    body_bytes_max: int = 64 << 20
    connect_s_max: float = 5.0
    idle_s_max: float = 30.0  # shorter than a server's, so that we seldom meet its close
    buffer_bytes_max: int = 1 << 20


class HttpResponse(msgspec.Struct, frozen=True):
    """One whole answer; names of headers in lower case, repeated fields joined by a comma."""

    status: int
    headers: dict[str, str]
    body: bytes


class HttpStream:
    """An answer whose body is still coming: iterate over it inside the `async with`."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self.status = connection.status
        self.headers = joined(connection.fields)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self._connection.read():
            yield piece


class HttpClientStatistics(msgspec.Struct, frozen=True):
    """What a client did and holds."""

    requests: int
    connects: int
    retries: int
    lent: int
    idle: int
    waiting: int


class HttpClient:
    """A pool of connections to one host and port, over `foundation.network`."""

    def __init__(
        self,
        host: str,
        port: int,
        tls: ssl.SSLContext | None = None,
        *,
        settings: HttpClientSettings | None = None,
        server_name: str | None = None,
    ) -> None:
        self.host, self.port = host, port
        self._tls = tls
        self._settings = settings or HttpClientSettings()
        self._server_name = server_name
        name = server_name or (f"[{host}]" if ":" in host else host)
        self._authority = name if port == (443 if tls is not None else 80) else f"{name}:{port}"
        self._idle: deque[ClientConnection] = deque()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._lent = 0
        self._closed = False
        self._requests = self._connects = self._retries = 0

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
        body_max: int | None = None,
    ) -> HttpResponse:
        """Ask and wait for the whole answer, whatever its status.

        Raises DeadlineExceeded after `timeout_s`, Unavailable where nobody answers or the answer was cut, TooLarge past
        `body_max`, Overloaded when too many wait for a connection.
        """
        limit = self._settings.body_bytes_max if body_max is None else body_max
        try:
            async with asyncio.timeout(timeout_s), self.stream(method, path, body=body, headers=headers) as stream:
                parts: list[bytes] = []
                size = 0
                async for piece in stream:
                    size += len(piece)
                    if size > limit:
                        raise TooLarge("the answer is too large", limit_bytes=limit)
                    parts.append(piece)
                return HttpResponse(stream.status, stream.headers, b"".join(parts))
        except TimeoutError:
            raise DeadlineExceeded(f"{self._authority} did not answer within {timeout_s:g} s") from None

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[HttpStream]:
        """Ask and read the body as it comes; leaving early gives the connection up. The caller bounds the time."""
        head = self._head(method, path, len(body), headers or {})
        self._requests += 1
        connection = await self._ask(method, head + body)
        try:
            yield HttpStream(connection)
        except ConnectionCut as cut:
            raise Unavailable(f"{self._authority} cut its answer: {cut}", code="answer_cut") from None
        finally:
            self._give_back(connection)

    def close(self) -> None:
        """Close what is idle now and what is lent when it comes back."""
        self._closed = True
        while self._idle:
            self._idle.pop().abort()
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(Unavailable("the client is closed"))

    def statistics(self) -> HttpClientStatistics:
        return HttpClientStatistics(
            self._requests, self._connects, self._retries, self._lent, len(self._idle), len(self._waiting)
        )

    async def _ask(self, method: str, message: bytes) -> ClientConnection:
        """Send and wait for the head of the answer; a connection that is returned is lent to the caller."""
        while True:
            connection = await self._borrow()
            reused = connection.uses > 0
            try:
                await connection.ask(method, message)
            except ConnectionCut as cut:
                self._give_back(connection)
                if reused and not cut.answered and method in IDEMPOTENT:
                    self._retries += 1
                    continue
                code = "no_answer" if not cut.answered else "answer_cut"
                raise Unavailable(f"{self._authority} closed the connection: {cut}", code=code) from None
            except BaseException:
                self._give_back(connection)
                raise
            return connection

    async def _borrow(self) -> ClientConnection:
        while True:
            if self._closed:
                raise Unavailable("the client is closed")
            while self._idle:
                connection = self._idle.pop()
                if connection.usable and clock.monotonic_s() - connection.rested_s < self._settings.idle_s_max:
                    self._lent += 1
                    return connection
                connection.abort()
            if self._lent < self._settings.connections_max:
                self._lent += 1
                try:
                    return await self._connect()
                except BaseException:
                    self._lent -= 1
                    self._wake()
                    raise
            await self._wait_turn()

    async def _wait_turn(self) -> None:
        if len(self._waiting) >= self._settings.waiting_max:
            raise Overloaded(f"too many requests wait for {self._authority}")
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._wake()  # our turn came at the same moment: hand it on
            raise

    async def _connect(self) -> ClientConnection:
        self._connects += 1
        buffer_max = self._settings.buffer_bytes_max
        try:
            async with asyncio.timeout(self._settings.connect_s_max):
                _, connection = await network.connect(
                    lambda: ClientConnection(buffer_max),
                    self.host,
                    self.port,
                    tls=self._tls,
                    server_name=self._server_name,
                )
        except TimeoutError:
            raise Unavailable(f"{self._authority} does not accept a connection", code="connect_timeout") from None
        except OSError as error:
            raise Unavailable(f"{self._authority} cannot be reached: {error}", code="unreachable") from None
        return connection

    def _give_back(self, connection: ClientConnection) -> None:
        self._lent -= 1
        if connection.finish() and not self._closed:
            connection.rested_s = clock.monotonic_s()
            self._idle.append(connection)
        else:
            connection.abort()
        self._wake()

    def _wake(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _head(self, method: str, path: str, size: int, headers: Mapping[str, str]) -> bytes:
        if not path.startswith("/") or not path.isascii() or not path.isprintable() or " " in path:
            raise Rejected(f"not a request path: {path[:80]!r}", code="bad_path")
        if not method.isalpha() or not method.isupper():
            raise Rejected(f"not a method: {method[:20]!r}", code="bad_method")
        lines = [f"{method} {path} HTTP/1.1"]
        names = {name.lower() for name in headers}
        if "host" not in names:
            lines.append(f"host: {self._authority}")
        if size or method in ("POST", "PUT", "PATCH"):
            lines.append(f"content-length: {size}")
        if (context := current_trace()) and "traceparent" not in names:
            lines.append(f"traceparent: 00-{context}-01")
        for name, value in headers.items():
            if "\n" in value or "\r" in value or "\0" in value or not name.replace("-", "").replace("_", "").isalnum():
                raise Rejected(f"not a header field: {name[:40]!r}", code="bad_header")
            if name.lower() not in ("content-length", "transfer-encoding"):
                lines.append(f"{name}: {value}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def joined(fields: list[tuple[str, str]]) -> dict[str, str]:
    """Header fields as a dict; repeated ones joined as RFC 9110 5.3 allows, Set-Cookie by line ends."""
    found: dict[str, str] = {}
    for name, value in fields:
        if name in found:
            found[name] += ("\n" if name == "set-cookie" else ", ") + value
        else:
            found[name] = value
    return found

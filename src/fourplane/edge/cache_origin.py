"""The side of a cache node that asks its parent: pooled connections, strict framing, no request sent twice.

A response is believed only as far as it is consistent: Content-Length given twice with different values, a length and a
transfer coding together, a body cut short, a head past its bound are `OriginFailed`, so a lie of the origin is never stored.
A connection is used again only while it is younger than the origin's own patience (its Keep-Alive, or `idle_s`) and quiet,
also in the kernel's eyes: an end that this loop has not come round to read counts. Its age is counted from when its last
request was written, which is before the origin began to wait: an answer that a busy loop read late looks young otherwise,
and the request that follows it meets the origin's end half way (a rare 502 on a loaded machine).
A request that went out is never repeated,
because the origin may have acted on it. Interim responses (1xx) are handed on as they come.
"""

import asyncio
import re
import socket
import ssl
from collections.abc import Callable

import msgspec

from fourplane.edge.cache_fields import Fields, all_values
from fourplane.edge.certificate import client_context
from fourplane.edge.http_cache import without_hop_by_hop
from fourplane.foundation import clock, network
from fourplane.foundation.errors import Unavailable

HEAD_MAX = 64 << 10
CHUNK = 256 << 10
TCP_ESTABLISHED = 1
BODYLESS = frozenset({204, 304})
PATIENCE_SHARE = 0.6  # of the patience an origin states; the rest is for what is on its way
_PATIENCE = re.compile(rb"timeout\s*=\s*(\d{1,6})", re.IGNORECASE)

Interim = Callable[[int, bytes, Fields], None]


class OriginFailed(Unavailable):
    """The parent gave no usable answer: `reason` says connect, timeout, closed, truncated, malformed."""


class OriginSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a node fills from, and its patience."""

    host: str = "127.0.0.1"
    port: int = 8100
    secure: bool = False  # speak TLS and believe the system's authorities
    host_header: str = ""  # the Host the origin is asked for; empty: the client's
    connect_s: float = 3.0
    head_s: float = 15.0
    read_s: float = 15.0
    idle_max: int = 32
    idle_s: float = 3.0
    connections_max: int = 256


class _Connection:
    __slots__ = ("asked_s", "idle_s", "reader", "reused", "writer")

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.idle_s = 0.0
        self.asked_s = 0.0
        self.reused = False


class OriginReply:
    """A response head and the body that follows it, in pieces."""

    __slots__ = ("_connection", "_done", "_keep", "_left", "_pool", "fields", "length", "raw", "reason", "status")

    def __init__(self, pool: "OriginPool", connection: _Connection, status: int, reason: bytes, raw: Fields) -> None:
        self._pool = pool
        self._connection = connection
        self.status = status
        self.reason = reason
        self.raw = raw
        self.fields = without_hop_by_hop(raw)
        self.length: int | None = None  # None: chunked or until the connection closes
        self._left = 0
        self._keep = True
        self._done = False

    def frame(self, *, has_body: bool, http_1_0: bool) -> None:
        """Decide how the body ends; raises OriginFailed for contradictions."""
        options = {part.strip().lower() for value in all_values(self.raw, b"connection") for part in value.split(b",")}
        self._keep = b"close" not in options and (not http_1_0 or b"keep-alive" in options)
        codings = b",".join(all_values(self.raw, b"transfer-encoding")).lower()
        lengths = {part.strip() for value in all_values(self.raw, b"content-length") for part in value.split(b",")}
        if not has_body:
            self.length = 0 if not lengths else None
            self._finish()
            return
        if codings:
            if lengths and codings.strip() == b"chunked":  # how responses are smuggled
                raise OriginFailed("the origin gave a length and a transfer coding", code="malformed")
            if lengths:
                self._keep = False
                self.fields = [(name, value) for name, value in self.fields if name != b"content-length"]
            if codings.strip() == b"chunked":
                self._left = -1
            elif codings.rstrip().endswith(b"chunked"):
                raise OriginFailed("the origin used a transfer coding nobody asked for", code="malformed")
            else:  # without chunked at the end the body ends with the connection (RFC 9112 6.3)
                self._left = -2
                self._keep = False
        elif lengths:
            if len(lengths) > 1 or not (text := next(iter(lengths))).isdigit() or len(text) > 18:
                raise OriginFailed("the origin gave contradictory lengths", code="malformed")
            self.length = self._left = int(text)
            if self._left == 0:
                self._finish()
        else:
            self._left = -2
            self._keep = False

    async def read(self) -> bytes:
        """The next piece of the body, empty at its end; raises OriginFailed when it is cut short or stalls."""
        if self._done:
            return b""
        try:
            async with asyncio.timeout(self._pool.settings.read_s):
                return await self._read()
        except TimeoutError:
            self.abort()
            raise OriginFailed("the origin stopped in the middle of a body", code="timeout") from None
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            self.abort()
            raise OriginFailed(f"the origin broke off: {type(error).__name__}", code="truncated") from None

    async def _read(self) -> bytes:
        reader = self._connection.reader
        if self._left == -1:
            return await self._read_chunk(reader)
        piece = await reader.read(CHUNK if self._left < 0 else min(CHUNK, self._left))
        if not piece:
            if self._left == -2:
                self._finish()
                return b""
            raise ValueError("cut short")
        if self._left > 0:
            self._left -= len(piece)
            if self._left == 0:
                self._finish()
        return piece

    async def _read_chunk(self, reader: asyncio.StreamReader) -> bytes:
        line = await reader.readuntil(b"\r\n")
        size_text = line.partition(b";")[0].strip()
        if not size_text or len(size_text) > 15:
            raise ValueError("chunk size")
        size = int(size_text, 16)
        if size > 0:
            piece = await reader.readexactly(size)
            if await reader.readexactly(2) != b"\r\n":
                raise ValueError("chunk end")
            return piece
        for _ in range(64):
            if await reader.readuntil(b"\r\n") == b"\r\n":
                self._finish()
                return b""
        raise ValueError("too many trailers")

    def _finish(self) -> None:
        self._done = True
        stated = _PATIENCE.search(b",".join(all_values(self.raw, b"keep-alive")))
        patience_s = self._pool.settings.idle_s
        self._connection.idle_s = patience_s if stated is None else min(patience_s, int(stated[1]) * PATIENCE_SHARE)
        self._pool.give_back(self._connection, keep=self._keep)

    def abort(self) -> None:
        """Nobody wants the rest."""
        if not self._done:
            self._done = True
            self._pool.give_back(self._connection, keep=False)


class OriginPool:
    """Connections to one parent; a request past `connections_max` waits for one."""

    def __init__(self, settings: OriginSettings, *, tls: ssl.SSLContext | None = None) -> None:
        self.settings = settings
        self._tls = client_context() if settings.secure and tls is None else tls
        self._idle: list[_Connection] = []
        self._gate: asyncio.Semaphore | None = None
        self.opened = 0
        self.failed = 0

    async def fetch(
        self, method: bytes, target: bytes, fields: Fields, body: bytes = b"", *, interim: Interim | None = None
    ) -> OriginReply:
        """Send one request and wait for the final head; the caller reads or aborts the reply."""
        if self._gate is None:
            self._gate = asyncio.Semaphore(self.settings.connections_max)
        await self._gate.acquire()
        connection: _Connection | None = None
        try:
            connection = self._take_idle() or await self._connect()
            async with asyncio.timeout(self.settings.head_s):
                return await self._exchange(connection, method, target, fields, body=body, interim=interim)
        except BaseException as error:
            self.failed += 1
            if connection is not None:
                connection.writer.transport.abort()
            self._gate.release()
            if isinstance(error, TimeoutError):
                raise OriginFailed("the origin did not answer in time", code="timeout") from None
            if isinstance(error, OSError | ValueError | asyncio.IncompleteReadError | asyncio.LimitOverrunError):
                raise OriginFailed(f"no answer from the origin: {type(error).__name__}", code="closed") from None
            raise

    def _take_idle(self) -> _Connection | None:
        now_s = clock.monotonic_s()
        while self._idle:
            connection = self._idle.pop()
            reader = connection.reader
            transport = connection.writer.transport
            usable = not (reader.at_eof() or transport.is_closing() or _unread(reader))
            if usable and now_s - connection.asked_s < connection.idle_s and not _has_ended(transport):
                connection.reused = True
                return connection
            transport.abort()
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=HEAD_MAX * 4, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        try:
            async with asyncio.timeout(self.settings.connect_s):
                settings = self.settings
                transport, _ = await network.connect(lambda: protocol, settings.host, settings.port, tls=self._tls)
        except (OSError, TimeoutError) as error:
            raise OriginFailed(f"the origin cannot be reached: {type(error).__name__}", code="connect") from None
        self.opened += 1
        return _Connection(reader, asyncio.StreamWriter(transport, protocol, reader, loop))

    async def _exchange(
        self,
        connection: _Connection,
        method: bytes,
        target: bytes,
        fields: Fields,
        *,
        body: bytes,
        interim: Interim | None,
    ) -> OriginReply:
        lines = [method, b" ", target, b" HTTP/1.1\r\n"]
        for name, value in fields:
            lines += [name, b": ", value, b"\r\n"]
        if body or method in {b"POST", b"PUT", b"PATCH"}:
            lines.append(b"content-length: %d\r\n" % len(body))
        connection.asked_s = clock.monotonic_s()
        connection.writer.write(b"".join([*lines, b"\r\n", body]))
        await connection.writer.drain()
        while True:
            head = await connection.reader.readuntil(b"\r\n\r\n")
            if len(head) > HEAD_MAX:
                raise OriginFailed("the origin's head is too large", code="malformed")
            version, status, reason, raw = parse_head(head)
            if status >= 200:
                break
            if status == 101:
                raise OriginFailed("the origin changed the protocol", code="malformed")
            if interim is not None and status != 100:
                interim(status, reason, without_hop_by_hop(raw))
        reply = OriginReply(self, connection, status, reason, raw)
        reply.frame(has_body=method != b"HEAD" and status not in BODYLESS, http_1_0=version == b"HTTP/1.0")
        return reply

    def give_back(self, connection: _Connection, *, keep: bool) -> None:
        """A reply is over; keep its connection for the next one or end it."""
        if keep and len(self._idle) < self.settings.idle_max and not connection.reader.at_eof():
            self._idle.append(connection)
        else:
            connection.writer.transport.abort()
        assert self._gate is not None
        self._gate.release()

    def close(self) -> None:
        """End all idle connections."""
        while self._idle:
            self._idle.pop().writer.transport.abort()


def _unread(reader: asyncio.StreamReader) -> bool:
    """Whether bytes wait that belong to no answer: what an honest origin never sends."""
    return bool(reader._buffer)  # type: ignore[attr-defined] # noqa: SLF001 - the stream has no public way to ask


def _has_ended(transport: asyncio.WriteTransport) -> bool:
    """Whether the kernel knows of an end that the loop has not come round to read yet."""
    connected = transport.get_extra_info("socket")
    if connected is None or not hasattr(connected, "getsockopt"):
        return False
    try:
        state: bytes = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    except OSError:  # no TCP: the loop's own view has to do
        return False
    return state[0] != TCP_ESTABLISHED


def parse_head(head: bytes) -> tuple[bytes, int, bytes, Fields]:
    """Version, status, reason and fields (names in lower case) of a response head; raises OriginFailed."""
    lines = head[:-4].split(b"\r\n")
    parts = lines[0].split(b" ", 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or len(parts[1]) != 3 or not parts[1].isdigit():
        raise OriginFailed("the origin does not speak HTTP/1.1", code="malformed")
    fields: Fields = []
    for line in lines[1:]:
        if line[:1] in {b" ", b"\t"} and fields:  # obsolete folding: one space
            name, value = fields[-1]
            fields[-1] = (name, value + b" " + line.strip())
            continue
        name, colon, value = line.partition(b":")
        if not colon or not name or name != name.strip() or b" " in name or b"\0" in value:
            raise OriginFailed("the origin sent a broken header", code="malformed")
        fields.append((name.lower(), value.strip(b" \t")))
    return parts[0], int(parts[1]), parts[2] if len(parts) > 2 else b"", fields

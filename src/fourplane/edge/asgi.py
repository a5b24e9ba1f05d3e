"""One request inside an ASGI 3 application: scope, receive, send, and the bytes that go out.

The head leaves together with the first body bytes in one write. Without a Content-Length the answer is chunked, or ends with
the connection for HTTP/1.0. Backpressure both ways: `receive` pauses reading past `body_buffer_max` unread bytes, `send`
waits while the peer does not take what was written. Invariants: a HEAD, 204 or 304 answer carries no body; an answer
shorter or longer than its Content-Length ends the connection, it is never padded; no field can contain a line end.
Source: ASGI HTTP specification 2.4.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_to_bytes

from fourplane.edge import http_answers
from fourplane.edge.exchange import ApplicationFault, ClientGone, Exchange
from fourplane.edge.http_request import HttpRequest

if TYPE_CHECKING:
    from fourplane.edge.http_protocol import HttpProtocol

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

ASGI_VERSION: Final = {"version": "3.0", "spec_version": "2.4"}
TOGETHER_MAX: Final = 65_536  # bytes of a body that are copied behind their head
FRAMING: Final = frozenset({b"content-length", b"connection", b"transfer-encoding", b"date"})
DISCONNECT: Final = {"type": "http.disconnect"}


def http_scope(request: HttpRequest, *, scheme: str, server: tuple[str, int | None]) -> dict[str, Any]:
    """What an ASGI application is told about a request."""
    path = request.path
    text = unquote_to_bytes(path).decode("utf-8", "replace") if b"%" in path else path.decode("latin-1")
    return {
        "type": "http",
        "asgi": ASGI_VERSION,
        "http_version": "1.0" if request.http_1_0 else "1.1",
        "method": request.method.decode("ascii"),
        "scheme": scheme,
        "path": text,
        "raw_path": path,
        "query_string": request.query,
        "root_path": "",
        "headers": request.headers,
        "client": (request.peer, 0),
        "server": server,
        "state": {},
        "extensions": {},
    }


def streaming(exchange: Exchange) -> "AsgiExchange":
    """What answers in place of `exchange`, in pieces."""
    made = exchange.instead = AsgiExchange(exchange.protocol, exchange.request, whole=True)
    made.gone, made.keep_alive = exchange.gone, exchange.keep_alive
    if not exchange.gone:
        exchange.protocol.exchange = made
    return made


class AsgiExchange(Exchange):
    """The two callables of one request and the state between them."""

    _peer_done = False
    _head: bytes | None = None
    _chunked = False
    _expected = -1
    _sent = 0
    _buffered = 0
    _receive_waiter: "asyncio.Future[None] | None" = None

    def __init__(self, protocol: "HttpProtocol", request: HttpRequest, *, whole: bool = False) -> None:
        """`whole`: the body is here already, in `request.body`."""
        self.protocol = protocol
        self.request = request
        self.keep_alive = request.keep_alive
        self.head_only = request.method == b"HEAD"
        self._parts: list[bytes] = [request.body] if whole and request.body else []
        self.body_done = whole

    # -- the protocol's side

    def body_received(self, body: bytes) -> None:
        """More of the request's body; past the bound the connection is not read any further."""
        self._parts.append(body)
        self._buffered += len(body)
        request, protocol = self.request, self.protocol
        if self._buffered > protocol.server.settings.body_buffer_max and not request.reading_paused:
            request.reading_paused = True
            protocol.transport.pause_reading()
        self._wake()

    def body_complete(self) -> None:
        """The request is whole."""
        self.body_done = True
        self._wake()

    def peer_finished(self) -> None:
        """The peer will send nothing more: who waits for it is told it left, the answer may still go out."""
        self.keep_alive = False
        self._peer_done = True
        self._wake()

    def disconnected(self) -> None:
        """The peer is gone; `receive` says so and `send` raises."""
        self.gone = True
        self._wake()

    # -- the application's side

    async def receive(self) -> Message:
        """The next piece of the body, then a disconnect once the answer is out or the peer left."""
        request = self.request
        if request.expects_continue and not self.started and not self.gone:
            request.expects_continue = False
            if not self._parts and not self.body_done:
                self.protocol.transport.write(http_answers.CONTINUE)
        while self._buffered >= 0 and not self._parts and not self.body_done and not self.gone:
            await self._wait()
        if self.gone:
            return DISCONNECT
        if self._buffered >= 0:
            body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._parts.clear()
            self._buffered = -1 if self.body_done else 0
            if request.reading_paused:
                request.reading_paused = False
                self.protocol.transport.resume_reading()
            return {"type": "http.request", "body": body, "more_body": not self.body_done}
        while not self.gone and not self.finished and not self._peer_done:
            await self._wait()
        return DISCONNECT

    async def send(self, message: Message) -> None:
        """Take one message of the answer; waits while the peer reads slowly."""
        kind = message["type"]
        if self.gone:
            raise ClientGone("the peer closed the connection")
        if kind == "http.response.body":
            self._send_body(message.get("body", b""), more=message.get("more_body", False))
            if self.protocol.write_paused and not self.finished:
                await self.protocol.wait_writable()
        elif kind == "http.response.start":
            self._start(message["status"], message.get("headers", ()))
        else:
            raise ApplicationFault(f"unexpected message {kind!r}")

    def send_whole(self, lines: bytes, body: bytes | None) -> None:
        """For applications that know this server (`extensions["fourplane.whole"]`)."""
        if self._head is not None:
            raise ApplicationFault("the answer has already begun")
        super().send_whole(lines, body)

    def _start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        if self._head is not None or self.started:
            raise ApplicationFault("the answer has already begun")
        lines = [http_answers.status_line(status)]
        dated = False
        for name, value in headers:
            low = name.lower()
            if low in FRAMING:
                if low == b"content-length":
                    self._expected = int(value)
                elif low == b"date":
                    dated = True
                else:
                    if low == b"connection":
                        self.keep_alive = self.keep_alive and b"close" not in value.lower()
                    continue
            lines.append(low + b": " + value + b"\r\n")
        if not dated:
            lines.append(http_answers.date_line())
        if status in http_answers.NO_BODY:
            self.head_only = True
            self._expected = 0
        head = b"".join(lines)
        if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines):
            raise ApplicationFault("a header field contains a line end")
        self._head = head

    def _send_body(self, body: bytes, *, more: bool) -> None:
        if self.finished:
            raise ApplicationFault("the answer is already complete")
        head = self._head
        if head is not None:
            if not more and len(body) == self._expected and not self.head_only and len(body) < TOGETHER_MAX:
                self._head = None
                self.started = self.finished = True
                self.protocol.transport.write(b"%b%b%b" % (head, self.ending(), body))
                self._wake()
                self.protocol.exchange_finished()
                return
            self._head = None
            self.started = True
            head = self._complete_head(head, len(body), more=more)
        elif not self.started:
            raise ApplicationFault("a body before the head")
        self._sent += len(body)
        out = self._framed(body, more=more)
        if 0 <= self._expected < self._sent and not self.head_only:
            self.protocol.transport.abort()
            raise ApplicationFault("the body is longer than its Content-Length")
        if head is not None:
            out = head + out if len(out) < TOGETHER_MAX else out
            if len(out) >= TOGETHER_MAX:
                self.protocol.transport.write(head)
        if out:
            self.protocol.transport.write(out)
        if not more:
            self.finished = True
            if self._sent < self._expected and not self.head_only:
                self.keep_alive = False
                self.protocol.transport.abort()
            self._wake()
            self.protocol.exchange_finished()

    def _complete_head(self, head: bytes, size: int, *, more: bool) -> bytes:
        request = self.request
        if self._expected < 0 and (not self.head_only or (size and not more)):
            if not more:
                self._expected = size
                head += b"content-length: %d\r\n" % size
            elif request.http_1_0:
                self.keep_alive = False
            else:
                self._chunked = True
                head += http_answers.CHUNKED
        return head + self.ending()

    def _framed(self, body: bytes, *, more: bool) -> bytes:
        if self.head_only:
            return b""
        if not self._chunked:
            return body
        framed = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
        return framed if more else framed + http_answers.LAST_CHUNK

    async def _wait(self) -> None:
        waiter = self._receive_waiter
        if waiter is None:
            waiter = self._receive_waiter = asyncio.get_running_loop().create_future()
        await asyncio.shield(waiter)

    def _wake(self) -> None:
        waiter, self._receive_waiter = self._receive_waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def settle(self, failed: bool) -> None:  # noqa: FBT001 - as above
        """As above, and who still waits for a message is told."""
        if not self.finished and not self.gone:
            self._wake()
            super().settle(failed)

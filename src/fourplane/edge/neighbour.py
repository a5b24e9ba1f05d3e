"""Requests whose work lives in another worker of this machine, handed over as they are.

A connection may land on any worker; the system it asks for lives in one. The worker that has the connection sends the
request on over the owner's Unix socket and its answer back as it comes: bodies stream both ways with backpressure, header
fields stay what they were (Host, cookies, bearer), and the client's address goes along in `x-fourplane-peer`, which only a
server behind such a socket believes and which is taken out of every request from outside. The owner decides about identity,
rate and body; nothing is decided twice.

The owner's socket is held by the parent process: while the owner restarts, requests wait in its queue, so that callers
see latency, until `answer_s_max`. A request that was sent and not answered is sent again when that is safe: an idempotent
method or an Idempotency-Key, with a body that is whole. Else the caller hears 503 `connection_lost`: the work may have happened.
"""

import asyncio
from collections import deque
from typing import Final, cast

import msgspec

from fourplane.edge.asgi import Receive, Scope, Send
from fourplane.edge.client_connection import ClientConnection, ConnectionCut
from fourplane.edge.exchange import ClientGone
from fourplane.edge.http_client import IDEMPOTENT
from fourplane.edge.http_request import HttpRequest
from fourplane.edge.replies import send_error
from fourplane.foundation import clock, network
from fourplane.foundation.errors import DeadlineExceeded, FourplaneError, Overloaded, Unavailable

PEER_HEADER: Final = b"x-fourplane-peer"
HOP_BY_HOP: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect")
)
ANSWER_HOP: Final = frozenset(("connection", "keep-alive", "transfer-encoding"))
RETRY_S: Final = 0.02


class NeighbourSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of the way to one neighbour."""

    connections_max: int = 512  # requests at one time; more are told to come back
    idle_max: int = 64
    idle_s_max: float = 30.0
    answer_s_max: float = 40.0  # to the head of the answer, a restart of the owner included
    buffer_bytes_max: int = 1 << 20
    again_body_max: int = 1 << 20  # a larger body is not kept for a second try


class NeighbourStatistics(msgspec.Struct, frozen=True):
    """What went this way."""

    requests: int
    under_way: int
    connects: int
    repeated: int
    lost: int
    tunnels: int


class Link(ClientConnection):
    """One connection to the owner; knows when its socket takes no more."""

    def __init__(self, buffer_max: int) -> None:
        super().__init__(buffer_max)
        self._full: asyncio.Future[None] | None = None
        self.spoiled = False  # a body was not sent to its end

    @property
    def complete(self) -> bool:
        """Whether the whole answer has been read."""
        return self._body_done and not self._parts

    async def send(self, data: bytes) -> None:
        """Write a piece of a body; waits while the owner reads slowly, drops it once the connection is gone."""
        if self._transport is not None and self._lost is None:
            self._transport.write(data)
        while self._full is not None and self._lost is None:
            await asyncio.shield(self._full)

    def pause_writing(self) -> None:
        self._full = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        full, self._full = self._full, None
        if full is not None and not full.done():
            full.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.resume_writing()


class Neighbour:
    """The worker that owns a part of this deployment; an ASGI application."""

    def __init__(self, name: str, path: str, settings: NeighbourSettings | None = None) -> None:
        self.name = name
        self.path = path
        self.settings = settings or NeighbourSettings()
        self.tunnels = 0
        self._idle: deque[Link] = deque()
        self._under_way = 0
        self._requests = self._connects = self._repeated = self._lost = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand one request over and its answer back."""
        self._requests += 1
        self._under_way += 1
        try:
            if self._under_way > self.settings.connections_max:
                raise Overloaded(f"too many requests wait for {self.name}", code="neighbour_busy")
            await self._hand_over(scope, receive, send)
        except FourplaneError as error:
            wants_page = any(name == b"accept" and b"text/html" in value for name, value in scope["headers"])
            await send_error(send, error, [], wants_page=wants_page and "/api/" not in scope["path"])
        except ClientGone:
            pass  # the caller left; its link was aborted, which the owner sees
        finally:
            self._under_way -= 1

    def close(self) -> None:
        """End the connections at rest."""
        while self._idle:
            self._idle.pop().abort()

    def statistics(self) -> NeighbourStatistics:
        return NeighbourStatistics(
            self._requests, self._under_way, self._connects, self._repeated, self._lost, self.tunnels
        )

    async def _hand_over(self, scope: Scope, receive: Receive, send: Send) -> None:
        names = dict(scope["headers"])
        body, more = b"", b"content-length" in names or b"transfer-encoding" in names
        if more:
            first = await receive()
            if first["type"] == "http.disconnect":
                raise ClientGone
            body, more = first.get("body", b""), bool(first.get("more_body", False))
        again = not more and len(body) <= self.settings.again_body_max
        again = again and (scope["method"] in IDEMPOTENT or b"idempotency-key" in names)
        chunked = more and b"content-length" not in names
        head = request_head(scope, chunked=chunked, length=None if more else len(body))
        until = clock.monotonic_s() + self.settings.answer_s_max
        while True:
            link = await self._link(until)
            try:
                try:
                    async with asyncio.timeout(until - clock.monotonic_s()):
                        if more:
                            await _ask_streaming(link, scope["method"], head, body, receive, chunked=chunked)
                        else:
                            await link.ask(scope["method"], head + body)
                except ConnectionCut as cut:
                    self._lost += 1
                    if not again or cut.answered:
                        raise Unavailable(f"the connection to {self.name} was lost", code="connection_lost") from None
                    self._repeated += 1
                    await clock.sleep(RETRY_S)
                    continue
                except TimeoutError:
                    raise DeadlineExceeded(f"{self.name} did not answer in time") from None
                await _answer(link, send)
                return
            finally:
                self._give_back(link)

    async def _link(self, until: float) -> Link:
        now = clock.monotonic_s()
        while self._idle:
            link = self._idle.pop()
            if link.usable and now - link.rested_s < self.settings.idle_s_max:
                return link
            link.abort()
        while True:
            try:
                async with asyncio.timeout(until - clock.monotonic_s()):
                    _, link = await network.connect_unix(lambda: Link(self.settings.buffer_bytes_max), self.path)
            except (OSError, TimeoutError) as error:
                if clock.monotonic_s() + RETRY_S >= until:
                    raise Unavailable(f"{self.name} cannot be reached: {error}", code="unreachable") from None
                await clock.sleep(RETRY_S)
            else:
                self._connects += 1
                return link

    def _give_back(self, link: Link) -> None:
        if link.finish() and not link.spoiled and len(self._idle) < self.settings.idle_max:
            link.rested_s = clock.monotonic_s()
            self._idle.append(link)
        else:
            link.abort()


def request_head(scope: Scope, *, chunked: bool, length: int | None) -> bytes:
    """The head of a request as it goes on: the same fields, without those of the hop, with the client's address."""
    target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
    lines = [b"%b %b HTTP/1.1\r\n" % (scope["method"].encode("ascii"), target)]
    named_length = False
    for name, value in scope["headers"]:
        if name in HOP_BY_HOP or name == PEER_HEADER:
            continue
        named_length = named_length or name == b"content-length"
        lines.append(b"%b: %b\r\n" % (name, value))
    client = scope.get("client")
    lines.append(b"%b: %b\r\n" % (PEER_HEADER, str(client[0] if client else "local").encode("latin-1")))
    if chunked:
        lines.append(b"transfer-encoding: chunked\r\n")
    elif length and not named_length:  # came in chunks and is whole by now
        lines.append(b"content-length: %d\r\n" % length)
    return b"".join(lines) + b"\r\n"


def peer_of(request: HttpRequest) -> str:
    """The client's address as the worker in front of us saw it."""
    told = request.header(PEER_HEADER)
    return request.peer if told is None else told.decode("latin-1")


async def _ask_streaming(
    link: Link, method: str, head: bytes, first: bytes, receive: Receive, *, chunked: bool
) -> None:
    """Send the body as it comes and wait for the head of the answer, which may come before the body's end."""

    def framed(piece: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(piece), piece) if chunked and piece else piece

    async def send_body() -> None:
        await link.send(framed(first))
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                link.abort()
                return
            more = bool(message.get("more_body", False))
            await link.send(framed(message.get("body", b"")))
        if chunked:
            await link.send(b"0\r\n\r\n")

    try:
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(send_body())
            await link.ask(method, head)
            if not sending.done():  # answered early: the rest of the body will not be read there
                sending.cancel()
                link.spoiled = True
    except* ConnectionCut as cut:
        raise cast("ConnectionCut", cut.exceptions[0]) from None


async def _answer(link: Link, send: Send) -> None:
    headers = [
        (name.encode("latin-1"), value.encode("latin-1")) for name, value in link.fields if name not in ANSWER_HOP
    ]
    await send({"type": "http.response.start", "status": link.status, "headers": headers})
    more = True
    while more:
        try:
            piece = await link.read()
        except ConnectionCut:
            raise ClientGone from None  # half an answer is out: what comes back must be cut as well
        more = bool(piece) and not link.complete
        await send({"type": "http.response.body", "body": piece, "more_body": more})

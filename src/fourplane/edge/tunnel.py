"""A WebSocket whose handler lives in another worker: its bytes, unread, in both directions.

The worker that has the connection repeats the handshake on the owner's Unix socket and copies what comes back, be it 101 or a
refusal; frames are never looked at. Backpressure goes through: reading stops on one side while the other does not take.
Pings, bounds and rates are the owner's business. When either side is gone, so is the other.
"""

import asyncio
from typing import TYPE_CHECKING, cast

from fourplane.edge.http_answers import error_answer
from fourplane.edge.http_request import HttpRequest
from fourplane.edge.neighbour import PEER_HEADER, RETRY_S, Neighbour
from fourplane.foundation import clock, network

if TYPE_CHECKING:
    from fourplane.edge.http_protocol import HttpProtocol


class Upstream(asyncio.Protocol):
    """The owner's side of the tunnel."""

    def __init__(self, client: "HttpProtocol") -> None:
        self._client = client
        self._changed = asyncio.Event()
        self.transport: asyncio.Transport | None = None
        self.gone = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - part of the Protocol
        self.gone = True
        self._changed.set()

    def data_received(self, data: bytes) -> None:
        if self._client.gone:
            return
        self._client.transport.write(data)
        if self._client.write_paused and self.transport is not None:
            self.transport.pause_reading()
            self._changed.set()

    def pause_writing(self) -> None:
        if not self._client.gone:
            self._client.transport.pause_reading()

    def resume_writing(self) -> None:
        if not self._client.gone:
            self._client.transport.resume_reading()

    async def copy(self) -> None:
        """Stay until either side is gone; wait here for a client that takes nothing."""
        while not self.gone and not self._client.gone:
            await self._changed.wait()
            self._changed.clear()
            await self._client.wait_writable()
            if not self.gone and self.transport is not None:
                self.transport.resume_reading()

    def end(self) -> None:
        """Cut the owner's side."""
        self._changed.set()
        if self.transport is not None:
            self.transport.abort()


class Tunnel:
    """The plan for a WebSocket of a neighbour, and its session once it runs."""

    __slots__ = ("_client", "_neighbour", "_upstream")

    def __init__(self, neighbour: Neighbour) -> None:
        self._neighbour = neighbour
        self._upstream: Upstream | None = None
        self._client: HttpProtocol | None = None

    async def run(self, client: "HttpProtocol", request: HttpRequest) -> None:
        """Shake hands with the owner and copy until one side is gone; waits for an owner that is restarting."""
        until = clock.monotonic_s() + self._neighbour.settings.answer_s_max
        upstream = Upstream(client)
        while upstream.transport is None:
            try:
                await network.connect_unix(lambda: upstream, self._neighbour.path)
            except OSError:
                if clock.monotonic_s() > until:
                    text = f"{self._neighbour.name} cannot be reached"
                    client.socket_refused(error_answer(503, "unreachable", text, close=True))
                    return
                await clock.sleep(RETRY_S)
        self._client, self._upstream = client, upstream
        self._neighbour.tunnels += 1
        try:
            upstream.transport.write(_handshake(request))
            if not client.gone:
                client.socket_opened(self)
            await upstream.copy()
        finally:
            self._neighbour.tunnels -= 1
            upstream.end()
            if not client.gone:
                client.transport.close()

    # -- what the connection tells its session

    def data_received(self, data: bytes) -> None:
        """Frames of the client."""
        if self._upstream is not None and self._upstream.transport is not None and not self._upstream.gone:
            self._upstream.transport.write(data)

    def disconnected(self) -> None:
        """The client is gone."""
        if self._upstream is not None:
            self._upstream.end()

    def keep_alive(self) -> None:
        """The owner asks for signs of life."""

    def going_away(self) -> None:
        """The worker in front drains: the client connects again and lands elsewhere."""
        if self._client is not None:
            self._client.transport.close()


def _handshake(request: HttpRequest) -> bytes:
    lines = [b"%b %b HTTP/1.1\r\n" % (request.method, request.target)]
    lines += [b"%b: %b\r\n" % field for field in request.headers if field[0] != PEER_HEADER]
    lines.append(b"%b: %b\r\n" % (PEER_HEADER, request.peer.encode("latin-1")))
    return b"".join(lines) + b"\r\n"

"""WebSockets (RFC 6455) by wsproto on connections of the HTTP server.

An upgrade is first shown to the door (`SocketDoor`): it may look at accounts, origin and path, and answers with a plan or with
the bytes of an HTTP refusal. An accepted session offers `routes.SocketSession`: `receive` waits for whole messages, bounded
in size and in number (past `QUEUE_MAX` reading pauses); `send` never waits and raises Overloaded once the
peer has left more than the bound untaken, so one slow reader cannot fill the memory. A ping goes out on every rest;
two rests without any frame end the session.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final, Protocol, cast
from urllib.parse import parse_qsl

import msgspec
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Pong,
    Request,
    TextMessage,
)
from wsproto.extensions import PerMessageDeflate
from wsproto.utilities import RemoteProtocolError

from fourplane.edge.http_answers import error_answer
from fourplane.edge.http_request import HttpRequest
from fourplane.edge.routes import Identity
from fourplane.foundation.errors import Overloaded, Unavailable

if TYPE_CHECKING:
    from fourplane.edge.http_protocol import HttpProtocol
    from fourplane.edge.routes import SocketSession

QUEUE_MAX: Final = 256
GOING_AWAY: Final = 1001
POLICY: Final = 1008
TOO_BIG: Final = 1009
INTERNAL: Final = 1011


class SocketPlan(msgspec.Struct, frozen=True):
    """Yes to a WebSocket: who it is, how it is spoken, who serves it."""

    handler: "Callable[[SocketSession], Awaitable[None]]"
    identity: Identity | None = None
    subprotocol: str | None = None
    message_max: int = 1 << 20


class SocketElsewhere(Protocol):
    """A WebSocket that somebody else serves: takes over the connection until it ends (`tunnel.Tunnel`)."""

    async def run(self, client: "HttpProtocol", request: HttpRequest) -> None: ...


SocketDoor = Callable[[HttpRequest], Awaitable[SocketPlan | SocketElsewhere | bytes]]


class WebSocketSession:
    """One open WebSocket; implements `routes.SocketSession`."""

    __slots__ = (
        "_arrived",
        "_close_sent",
        "_connection",
        "_fragments",
        "_fragments_size",
        "_gone",
        "_inbox",
        "_message_max",
        "_protocol",
        "_quiet",
        "_reading_paused",
        "_send_max",
        "identity",
        "peer",
        "query",
        "subprotocol",
    )

    def __init__(
        self, protocol: "HttpProtocol", request: HttpRequest, plan: SocketPlan, connection: WSConnection
    ) -> None:
        self.identity = plan.identity
        self.peer = request.peer
        self.query: Mapping[str, str] = dict(parse_qsl(request.query.decode("latin-1"), keep_blank_values=True))
        self.subprotocol = plan.subprotocol
        self._message_max = plan.message_max
        self._send_max = protocol.server.settings.socket_send_buffer_max
        self._protocol = protocol
        self._connection = connection
        self._inbox: deque[str | bytes] = deque()
        self._fragments: list[str | bytes] = []
        self._fragments_size = 0
        self._gone = False
        self._close_sent = False
        self._quiet = 0
        self._reading_paused = False
        self._arrived: asyncio.Future[None] | None = None

    # -- the handler's side

    async def receive(self) -> str | bytes | None:
        """The next message, None when the peer is gone."""
        while not self._inbox:
            if self._gone:
                return None
            self._arrived = asyncio.get_running_loop().create_future()
            await self._arrived
        message = self._inbox.popleft()
        if self._reading_paused and len(self._inbox) <= QUEUE_MAX // 2:
            self._reading_paused = False
            self._protocol.transport.resume_reading()
        return message

    def send(self, message: str | bytes) -> None:
        """Queue one message; raises Overloaded past the bound, Unavailable when closed."""
        if self._gone or self._close_sent:
            raise Unavailable("the WebSocket is closed", code="socket_closed")
        held = self._protocol.transport.get_write_buffer_size()
        if held > self._send_max:
            raise Overloaded("the peer reads too slowly", code="slow_reader", held_bytes=held)
        event = TextMessage(data=message) if isinstance(message, str) else BytesMessage(data=message)
        self._protocol.transport.write(self._connection.send(event))

    def buffered(self) -> int:
        """Bytes queued and not yet taken by the network."""
        return 0 if self._gone else int(self._protocol.transport.get_write_buffer_size())

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Say goodbye; the connection ends when the peer answers, or after the linger time."""
        self.finish(code, reason)

    # -- the connection's side

    def data_received(self, data: bytes) -> None:
        """Bytes of the peer."""
        self._quiet = 0
        try:
            self._connection.receive_data(data)
            for event in self._connection.events():
                self._take(event)
                if self._gone:
                    return
        except RemoteProtocolError as error:
            hint = error.event_hint
            code = int(hint.code) if isinstance(hint, CloseConnection) else 1002
            self.finish(code, "not a WebSocket frame")
            self._end()

    def keep_alive(self) -> None:
        """The server's coarse timer: ask the peer for a sign of life, give up after two rests without one."""
        if self._gone:
            return
        self._quiet += 1
        if self._quiet > 2 or self._close_sent:
            self._protocol.transport.abort()
            return
        self._protocol.transport.write(self._connection.send(Ping()))

    def going_away(self) -> None:
        """The server drains."""
        self.finish(GOING_AWAY, "the server is restarting")

    def disconnected(self) -> None:
        """The connection is gone."""
        self._gone = True
        self._wake()

    def finish(self, code: int, reason: str) -> None:
        """Send a close frame once."""
        if self._gone or self._close_sent:
            return
        self._close_sent = True
        self._protocol.transport.write(self._connection.send(CloseConnection(code=code, reason=reason[:120])))
        deadlines = self._protocol.server.deadlines
        self._protocol.deadline_tick = deadlines.ticks(self._protocol.server.settings.linger_s)

    def _take(self, event: object) -> None:
        if isinstance(event, TextMessage | BytesMessage):
            self._take_fragment(event)
        elif isinstance(event, Ping):
            self._protocol.transport.write(self._connection.send(event.response()))
        elif isinstance(event, CloseConnection):
            if not self._close_sent:
                self._close_sent = True
                self._protocol.transport.write(self._connection.send(event.response()))
            self._end()
        else:
            assert isinstance(event, Pong | Request), event

    def _take_fragment(self, event: TextMessage | BytesMessage) -> None:
        self._fragments_size += len(event.data)
        if self._fragments_size > self._message_max:
            self.finish(TOO_BIG, "the message is too large")
            self._end()
            return
        self._fragments.append(event.data if isinstance(event.data, str) else bytes(event.data))
        if not event.message_finished:
            return
        parts, self._fragments, self._fragments_size = self._fragments, [], 0
        if len(parts) == 1:
            whole = parts[0]
        elif isinstance(parts[0], str):
            whole = "".join(cast("list[str]", parts))
        else:
            whole = b"".join(cast("list[bytes]", parts))
        self._inbox.append(whole)
        if len(self._inbox) >= QUEUE_MAX and not self._reading_paused:
            self._reading_paused = True
            self._protocol.transport.pause_reading()
        self._wake()

    def _end(self) -> None:
        self._gone = True
        self._wake()
        self._protocol.transport.close()

    def _wake(self) -> None:
        waiter, self._arrived = self._arrived, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


async def serve_socket(protocol: "HttpProtocol", request: HttpRequest, door: SocketDoor) -> None:
    """Ask the door, shake hands, run the handler until it returns or the peer leaves."""
    connection = WSConnection(ConnectionType.SERVER)
    try:
        connection.initiate_upgrade_connection(request.headers, request.target)
    except RemoteProtocolError as error:
        headers = {"sec-websocket-version": "13"} if "version" in str(error).lower() else None
        status = 426 if headers else 400
        protocol.socket_refused(error_answer(status, "bad_handshake", str(error), close=True, headers=headers))
        return
    list(connection.events())
    plan = await door(request)
    if protocol.gone:
        return
    if isinstance(plan, bytes):
        protocol.socket_refused(plan)
        return
    if not isinstance(plan, SocketPlan):
        await plan.run(protocol, request)
        return
    extensions = [PerMessageDeflate()] if protocol.server.settings.socket_deflate else []
    protocol.transport.write(
        connection.send(AcceptConnection(subprotocol=plan.subprotocol, extensions=list(extensions)))
    )
    session = WebSocketSession(protocol, request, plan, connection)
    protocol.socket_opened(session)
    code, reason = 1000, ""
    try:
        await plan.handler(session)
    except Overloaded as error:
        code, reason = POLICY, error.public
    except Unavailable:
        code = GOING_AWAY
    except Exception:
        code, reason = INTERNAL, "the server failed"
        raise
    finally:
        session.finish(code, reason)

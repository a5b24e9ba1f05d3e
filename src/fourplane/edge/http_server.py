"""The HTTP server of every process: listener, protocol, hot routes, one ASGI application, WebSockets, drain.

A request takes one of four ways: turned away by the admission, answered by a hot handler inside the protocol, served as a
WebSocket, or given to the application in a task of its own: as it was read where a typed route answers it, else as ASGI.
The server owns what the ways share: bounds, time
limits, the admission, counters. It runs on uvloop, plain asyncio and the simulator's loop alike.
"""

import socket
import ssl
import sys
from collections.abc import Awaitable, Callable
from typing import Any, cast

import msgspec

from fourplane.edge.admission import Admission, AdmissionSettings, FirstLines
from fourplane.edge.asgi import AsgiApp, AsgiExchange, http_scope
from fourplane.edge.deadlines import TICK_S, Deadlines
from fourplane.edge.exchange import ClientGone, Exchange, TypedApp
from fourplane.edge.http_protocol import HttpProtocol
from fourplane.edge.http_request import HotHandler, HttpRequest
from fourplane.edge.listener import Listener, ListenerSettings
from fourplane.edge.neighbour import peer_of
from fourplane.edge.passing import HttpPassing
from fourplane.edge.resting import Resting, RestingSettings
from fourplane.edge.routes import Priority
from fourplane.edge.waiting_room import WaitingRoom
from fourplane.edge.websocket import SocketDoor, serve_socket
from fourplane.foundation import clock, network
from fourplane.foundation.disk_sync import give_way
from fourplane.foundation.errors import Misconfigured
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Registry

# A thread gets the interpreter's lock from a busy loop after this long. Python's own 5 ms are paid twice for every sync.
LOCK_S = 0.0005


class HttpServerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of one HTTP server; a request past one gets the status in the comment."""

    listener: ListenerSettings = ListenerSettings()
    admission: AdmissionSettings = AdmissionSettings()
    resting: RestingSettings = RestingSettings()
    target_bytes_max: int = 8_192  # 414
    head_bytes_max: int = 32_768  # 431
    header_count_max: int = 100  # 431
    body_bytes_max: int = 256 << 20  # 413; routes have their own, smaller bounds
    hot_body_max: int = 1 << 20  # 413
    body_buffer_max: int = 256 << 10  # unread bytes before reading pauses
    head_s_max: float = 10.0  # 408
    body_grace_s: float = 10.0  # 408
    body_rate_min: float = 1_000.0  # bytes per second after the grace
    idle_s_max: float = 60.0
    write_stall_s_max: float = 60.0
    linger_s: float = 2.0
    burst_max: int = 64  # pipelined requests answered before others get a turn
    drain_s_max: float = 15.0
    unasked_s: float = 1.0  # a connection that was accepted and has not asked anything yet keeps so long in a drain
    socket_ping_s: float = 20.0
    socket_send_buffer_max: int = 4 << 20  # bytes queued per WebSocket before Overloaded
    socket_deflate: bool = True


BODY_METHODS = ("POST", "PUT", "PATCH", "DELETE")


class HttpServerStatistics(msgspec.Struct, frozen=True):
    """What the server did and holds."""

    port: int
    connections: int
    connections_refused: int
    requests: int
    hot: int
    shed: int
    in_flight: int
    sockets: int
    refused: dict[str, int]
    resting: int = 0  # connections left unread for a moment, because they came back too early


class HttpServer:
    """One listening HTTP server; a lifecycle part."""

    def __init__(
        self,
        settings: HttpServerSettings,
        app: AsgiApp,
        *,
        registry: Registry,
        sockets: SocketDoor | None = None,
        classify: Callable[[bytes, bytes], Priority] | None = None,
        first_lines: Callable[[str], FirstLines | None] | None = None,
        tls: ssl.SSLContext | None = None,
        inherited: socket.socket | None = None,
        name: str = "http",
        behind: bool = False,
    ) -> None:
        """`first_lines`: what tells the class of most first lines of one method as `classify` does, but at once.

        `behind`: only other workers connect here, over a Unix socket, and tell whom they speak for (neighbour.py).
        """
        self.settings = settings
        self.registry = registry
        self.admission = Admission(settings.admission, classify)
        self.deadlines = Deadlines()
        self.idle_ticks = self.deadlines.ticks(settings.idle_s_max)
        self.head_ticks = self.deadlines.ticks(settings.head_s_max)
        self.retry_ticks = self.deadlines.ticks(settings.admission.retry_after_s)
        self.resting = Resting(settings.resting, self.admission)
        self.room: WaitingRoom | None = None
        self.seen: dict[bytes, bytes] = {}  # whole plain GETs seen lately, and their targets
        self.blocks: dict[bytes, int] = {}  # plain fields seen lately, and the body's length
        self.lines: dict[bytes, FirstLines] = {}  # by the first four bytes of a method
        self.draining = False
        self.passing: HttpPassing | None = None  # to other workers
        self.scheme = "https" if tls is not None else "http"
        self.listener = Listener(settings.listener, tls=tls, inherited=inherited)
        self._app = app
        self._typed: TypedApp | None = cast("TypedApp", app) if isinstance(app, TypedApp) else None
        self._behind = behind
        self._sockets = sockets
        for method in BODY_METHODS:
            if first_lines is not None and (lines := first_lines(method)) is not None:
                self.lines[_mark(lines.method)] = lines
        self._tasks: Tasks | None = None
        self._connections: dict[HttpProtocol, None] = {}
        self._hot_exact: dict[bytes, dict[bytes, HotHandler]] = {}
        self._hot_prefix: dict[bytes, list[tuple[bytes, HotHandler]]] = {}
        self._refused: dict[str, int] = {}
        self._socket_count = 0
        self._server_address: tuple[str, int | None] = (settings.listener.host, settings.listener.port)
        self.requests_total = registry.counter(
            "fourplane_edge_http_requests_total", "requests given to the application", server=name
        )
        self.hot_total = registry.counter(
            "fourplane_edge_http_hot_total", "requests answered in the protocol", server=name
        )
        self.shed_total = registry.counter(
            "fourplane_edge_http_shed_total", "requests turned away by the admission", server=name
        )
        registry.gauge(
            "fourplane_edge_http_connections_count",
            "open connections",
            read=lambda: float(len(self._connections)),
            server=name,
        )
        registry.gauge(
            "fourplane_edge_http_in_flight_count",
            "requests being answered",
            read=lambda: float(self.admission.in_flight),
            server=name,
        )

    @property
    def port(self) -> int:
        """The port it really listens on."""
        return self.listener.port

    @property
    def takes_sockets(self) -> bool:
        """Whether anybody opens WebSockets here."""
        return self._sockets is not None

    def hot(self, method: str, path: str, handler: HotHandler, *, again: bool = False) -> None:
        """Answer `method path` inside the protocol: `handler(request)` returns whole prebuilt bytes at once.

        A path that ends in `*` takes everything below it. A handler that returns None passes the request on to the
        application, so that a cache answers its hits here and its misses there. It must not wait and not take long.
        `again`: in the place of the one that is there.
        """
        verb, place = method.encode(), path.encode()
        self.lines.pop(_mark(verb), None)  # hot ones are never turned away
        if place.endswith(b"*"):
            prefixes = self._hot_prefix.setdefault(verb, [])
            if again:
                prefixes.remove(next(entry for entry in prefixes if entry[0] == place[:-1]))
            prefixes.append((place[:-1], handler))
            prefixes.sort(key=lambda entry: -len(entry[0]))
            self._hot_exact.setdefault(verb, {})
        elif not again and place in self._hot_exact.setdefault(verb, {}):
            raise Misconfigured(f"{method} {path} has two hot handlers")
        else:
            self._hot_exact[verb][place] = handler

    def behind_room(self, room: WaitingRoom) -> None:
        """Send people whose pages are shed into this waiting room."""
        self.room = room
        room.watch(self.admission)
        for method, path, handler in room.hot_routes():
            self.hot(method, path, handler)

    def turned_away(self, data: bytes, target: bytes) -> bytes:
        """The answer to a plain GET that was shed; counts it."""
        self.shed_total.value += 1
        told = None if self.room is None else self.room.instead(data, target)
        return self.admission.rejection if told is None else told

    def refusal(self) -> bytes:
        """The answer to anything else that was shed; counts it."""
        self.shed_total.value += 1
        return self.admission.rejection

    def hot_handler(self, method: bytes, path: bytes) -> HotHandler | None:
        """The hot handler of a request, if it has one."""
        exact = self._hot_exact.get(method)
        if exact is None:
            return None
        found = exact.get(path)
        if found is None:
            for prefix, handler in self._hot_prefix.get(method, ()):
                if path.startswith(prefix):
                    return handler
        return found

    # -- lifecycle

    async def start(self, tasks: Tasks) -> None:
        """Listen; raises OSError when the port is busy."""
        self._tasks = tasks
        sys.setswitchinterval(min(LOCK_S, sys.getswitchinterval()))  # what waits for the disk waits for a thread
        self.admission.begin, self.admission.refuse = self._begin, self._turn_away
        self.admission.exempt = lambda method, path: self.hot_handler(method, path) is not None
        self.admission.watch()
        if not self._behind:  # lines between workers carry everybody
            self.resting.open()
        await self.listener.open(lambda: HttpProtocol(self))
        self._server_address = (self.settings.listener.host, self.listener.port)

    async def drain(self) -> None:
        """Accept nothing new, let every request in flight finish, bounded by `drain_s_max`."""
        self.draining = True
        self.listener.close()
        for connection in list(self._connections):
            connection.drain()
        ends = clock.monotonic_s() + self.settings.drain_s_max
        await clock.sleep(TICK_S / 10)  # what the listener took in its last turn becomes a connection after it
        while self._connections and clock.monotonic_s() < ends:
            await clock.sleep(TICK_S / 10)

    async def stop(self) -> None:
        """Cut what is still open."""
        self.draining = True
        self.listener.close()
        for connection in list(self._connections):
            connection.transport.abort()
        self.deadlines.close()
        self.resting.close()
        self.admission.close()
        await clock.sleep(0)

    def statistics(self) -> HttpServerStatistics:
        return HttpServerStatistics(
            port=self.listener.port,
            connections=len(self._connections),
            connections_refused=self.listener.bounds.refused,
            requests=self.requests_total.value,
            hot=self.hot_total.value,
            shed=self.shed_total.value,
            in_flight=self.admission.in_flight,
            sockets=self._socket_count,
            refused=dict(self._refused),
            resting=len(self.resting),
        )

    async def adopt(self, connection: socket.socket) -> None:
        """Serve a connection that another worker accepted, at rest between two requests."""
        _, protocol = await network.adopt(lambda: HttpProtocol(self), connection)
        protocol.deadline_tick = self.deadlines.now + self.idle_ticks

    # -- called by connections

    def opened(self, connection: HttpProtocol) -> bool:
        """Count a connection in; False when it must go at once."""
        if not self.listener.bounds.try_enter(connection.peer):
            return False
        self._connections[connection] = None
        if self.draining:  # accepted before the door was shut
            connection.drain()
        return True

    def closed(self, connection: HttpProtocol) -> None:
        """Count a connection out."""
        if connection in self._connections:
            del self._connections[connection]
            self.listener.bounds.leave(connection.peer)

    def counted(self, code: str) -> None:
        """Remember why a connection was refused."""
        self._refused[code] = self._refused.get(code, 0) + 1

    def begin_exchange(self, connection: HttpProtocol, request: HttpRequest, *, whole: bool = False) -> Exchange:
        """Give a request to the application in a task of its own; `whole`: its body is there already."""
        admission, app = self.admission, self._typed
        admission.entered()
        self.requests_total.value += 1
        if self._behind:
            request.peer = peer_of(request)
        work = app.typed(request) if whole and app is not None else None
        if work is not None:
            exchange = Exchange(connection, request)
            if not admission.stands(work.priority, exchange, work):
                self._begin(exchange, work)
            return exchange
        asgi = AsgiExchange(connection, request, whole=whole)
        scope = http_scope(request, scheme=self.scheme, server=self._server_address)
        scope["extensions"] = {"fourplane.whole": asgi.send_whole}
        if not admission.lines_up(request.method, request.path, asgi, scope):
            self._begin(asgi, scope)
        return asgi

    def _begin(self, exchange: Exchange, work: Any) -> None:
        """Its turn has come; `work` is that of a typed route or a scope."""
        if self._tasks is not None:
            self._tasks.start(self._run(exchange, work), "request")

    def _turn_away(self, exchange: Exchange) -> None:
        """It has waited too long."""
        self.shed_total.value += 1
        self.admission.left()
        if not exchange.gone:
            exchange.send_whole(*self.admission.stale_answer)

    def begin_socket(self, connection: HttpProtocol, request: HttpRequest) -> None:
        """Let the door of WebSockets decide about an upgrade, in a task of its own."""
        assert self._tasks is not None
        assert self._sockets is not None
        if self._behind:
            request.peer = peer_of(request)
        self._tasks.start(self._run_socket(serve_socket(connection, request, self._sockets)), "socket")

    async def _run(self, exchange: Exchange, work: Any) -> None:
        failed = False
        give_way()
        try:
            if isinstance(exchange, AsgiExchange):
                await self._app(work, exchange.receive, exchange.send)
            else:
                await work.answer(exchange)
        except ClientGone:
            self.counted("client_gone")
        except Exception as error:  # noqa: BLE001 - a bug of a handler ends its request, not the server; it is told
            failed = True
            method, path = exchange.request.method.decode("latin-1"), exchange.request.path.decode("latin-1")
            self.registry.event("error", "http", f"{method} failed: {error!r}", path=path[:200])
        finally:
            self.admission.left()
            exchange.settle(failed)

    async def _run_socket(self, work: Awaitable[None]) -> None:
        self._socket_count += 1
        try:
            await work
        except Exception as error:  # noqa: BLE001 - as above, for a WebSocket
            self.registry.event("error", "http", f"a WebSocket handler failed: {error!r}")
        finally:
            self._socket_count -= 1


def _mark(method: bytes) -> bytes:
    """How a first line of this method begins."""
    return (method + b" ")[:4]

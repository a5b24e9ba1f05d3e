"""Every door of every system behind one table: who may pass, how fast, with which types, and what an error looks like.

A request goes through the same steps in the same order: route, host, origin, identity, access, rate, body, handler,
reply. The steps before the handler only look at headers, so a request that will be refused costs no decoding. The
gateway is an ASGI 3 application (it also runs on other ASGI servers) and the door of WebSockets for our own server; a plain
request of a route it takes from our own server as it was read (`typed`), and says the same to it.
Metrics cells are made when the table is built. Other ASGI applications can be mounted under a prefix.
"""

import asyncio
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import parse_qsl

import msgspec

from fourplane.edge import api_page, openapi
from fourplane.edge.admission import FirstLines
from fourplane.edge.asgi import AsgiApp, Receive, Scope, Send, streaming
from fourplane.edge.deadlines import HandlerClock
from fourplane.edge.exchange import ClientGone, Exchange
from fourplane.edge.gate_checks import HostCheck, origin_passes, request_id, session_token
from fourplane.edge.http_answers import answer, error_body
from fourplane.edge.http_request import PLAIN_REST, HttpRequest
from fourplane.edge.neighbour import Neighbour
from fourplane.edge.rate_limit import RateLimit
from fourplane.edge.replies import Headers, allow_hosts, send_error, send_result, whole_error, whole_result
from fourplane.edge.request_body import decode, of_whole, read_body
from fourplane.edge.route_table import RouteTable
from fourplane.edge.routes import Access, Call, Door, Identity, Priority, Reply, Route, SocketRoute, StaticFolder
from fourplane.edge.session_routes import SessionRoutes
from fourplane.edge.static_files import StaticFiles, StaticSettings, UnusableRange
from fourplane.edge.tunnel import Tunnel
from fourplane.edge.waiting_room import WaitingRequired, WaitingRoom, WaitingRoomSettings
from fourplane.edge.websocket import SocketPlan
from fourplane.foundation import clock
from fourplane.foundation.blocking import Worker
from fourplane.foundation.errors import (
    DeadlineExceeded,
    Forbidden,
    FourplaneError,
    NotFound,
    Overloaded,
    Rejected,
    Unauthenticated,
)
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Counter, Histogram, Registry
from fourplane.foundation.tracing import Context

if TYPE_CHECKING:
    from fourplane.service.accounts import Accounts

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
OPERATOR = "operator"
METHODS = {name.encode(): name for name in ("GET", "POST", "PUT", "PATCH", "DELETE")}  # of plain requests


class GatewaySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the gateway allows where a route says nothing."""

    hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]")
    origins: tuple[str, ...] = ()
    rate_per_s: float = 200.0
    burst_s: float = 2.0
    callers_max: int = 20_000
    handler_s_max: float = 30.0
    query_count_max: int = 200
    static: StaticSettings = StaticSettings()
    waiting_room: WaitingRoomSettings = WaitingRoomSettings()


class MethodNotAllowed(Rejected):
    """The path exists, the verb does not."""

    code = "method_not_allowed"
    http_status = 405


class Misdirected(Rejected):
    """A Host this deployment does not answer to."""

    code = "host_not_allowed"
    http_status = 421


class _Served:
    """One route with everything prepared that a request needs."""

    __slots__ = ("decoder", "errors", "label", "latency", "limit", "raw", "requests", "route")

    def __init__(self, route: Route, registry: Registry, limit: RateLimit) -> None:
        self.route = route
        self.limit = limit
        self.raw = route.body is bytes
        self.decoder: msgspec.json.Decoder[Any] | None = (
            None if route.body is None or self.raw else msgspec.json.Decoder(route.body)
        )
        self.label = label = f"{route.method} {route.path}"
        self.requests: Counter = registry.counter("fourplane_edge_requests_total", "requests by route", route=label)
        self.errors: Counter = registry.counter("fourplane_edge_errors_total", "answers of 500 and above", route=label)
        self.latency: Histogram = registry.histogram(
            "fourplane_edge_request_seconds", "time from request to answer", route=label
        )


class _Asked:
    """What was asked, however it came here; `body` where it is whole already, else it is read by `receive`."""

    __slots__ = ("body", "headers", "method", "path", "peer", "query", "receive")

    def __init__(
        self,
        method: str,
        path: str,
        query: bytes,
        *,
        headers: dict[str, str],
        peer: str,
        body: bytes = b"",
        receive: Receive | None = None,
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.peer = peer
        self.body = body
        self.receive = receive


class _Typed:
    """A plain request of a route, and who answers it."""

    __slots__ = ("gateway", "params", "path", "priority", "served")

    def __init__(self, gateway: "Gateway", served: _Served, params: dict[str, str], path: str) -> None:
        self.gateway = gateway
        self.served = served
        self.params = params
        self.path = path
        self.priority = served.route.priority

    def answer(self, exchange: Exchange) -> Coroutine[Any, Any, None]:
        """Go through the gateway's steps."""
        return self.gateway.answer(exchange, self.served, self.params, self.path)


class Gateway:
    """The table of doors; an ASGI application and a door of WebSockets."""

    def __init__(
        self,
        doors: Sequence[Door],
        accounts: "Accounts",
        *,
        registry: Registry,
        settings: GatewaySettings | None = None,
        secure: bool = False,
        mounts: Mapping[str, AsgiApp] | None = None,
        elsewhere: Callable[[str], Neighbour | None] | None = None,
        room: WaitingRoom | None = None,
        version: str = "0",
    ) -> None:
        self.settings = settings or GatewaySettings()
        self._accounts = accounts
        self._registry = registry
        self._tracer = registry.tracer
        self._hosts = HostCheck(self.settings.hosts)
        allow_hosts(self.settings.hosts)
        self._origins = frozenset(self.settings.origins)
        self._mounts = sorted((mounts or {}).items(), key=lambda entry: -len(entry[0]))
        self._mounted = tuple(prefix.encode() for prefix, _ in self._mounts)
        self._elsewhere = elsewhere
        self.room = room
        self._clock = HandlerClock(self.settings.handler_s_max)
        self._default_limit = self._new_limit(self.settings.rate_per_s)
        self._table: RouteTable[_Served] = RouteTable()
        self._sockets: RouteTable[SocketRoute] = RouteTable()
        self._folders: list[StaticFolder] = []
        self._files = StaticFiles(self.settings.static)
        self.routes: list[Route] = []
        for door in [*SessionRoutes(accounts, secure=secure).routes(), *doors]:
            self._add(door)
        self._folders.sort(key=lambda folder: -len(folder.prefix))
        self._aside = Worker("describe")
        self._describe(version)

    # -- a lifecycle part, in front of which the server starts and after which it has stopped

    async def start(self, tasks: Tasks) -> None:
        """Nothing to start: the table is ready once built."""

    async def drain(self) -> None:
        """The server waits for what it handed over."""

    async def stop(self) -> None:
        self.close()

    def close(self) -> None:
        """End the threads that read static files and describe the API."""
        self._files.close()
        self._aside.close()
        self._clock.close()

    # -- ASGI

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await _other_scope(scope, receive, send)
            return
        if self._elsewhere is not None and (neighbour := self._elsewhere(scope["path"])) is not None:
            await neighbour(scope, receive, send)
            return
        for prefix, app in self._mounts:
            if scope["path"].startswith(prefix):
                await app(scope, receive, send)
                return
        began = clock.monotonic_s()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path, client = scope["raw_path"].decode("latin-1"), scope.get("client")
        peer = client[0] if client else "local"
        asked = _Asked(scope["method"], path, scope["query_string"], headers=headers, peer=peer, receive=receive)
        rid = request_id(headers.get("x-request-id"))
        extra: Headers = [(b"x-request-id", rid.encode())]
        root = self._begin_trace(headers, rid, extra)
        served: _Served | None = None
        try:
            self._admit(asked)
            served, params, folder = self._find(asked)
            if asked.method == "OPTIONS":
                result: object = self._options(path)
            elif served is not None:
                result = await self._call(served, params, asked, rid=rid, extra=extra, now=began)
            else:
                assert folder is not None
                result = await self._files.reply(folder, path, headers)
            whole = (scope.get("extensions") or {}).get("fourplane.whole")
            status = await send_result(send, result, extra, whole=whole)
        except FourplaneError as error:
            if isinstance(error, WaitingRequired) and _wants_page(asked) and asked.method == "GET":
                status = await send_result(send, error.way(asked.query.decode("latin-1")), extra)
                return
            _explain(error, extra)
            status = await send_error(send, error, extra, wants_page=_wants_page(asked))
        except ClientGone:
            status = 499
        if served is not None:
            self._count(served, root, status, began)

    # -- our own server

    def typed(self, request: HttpRequest) -> _Typed | None:
        """A plain request of a route, to be answered without ASGI; None for everything else."""
        if b"%" in request.path or request.path.startswith(self._mounted):
            return None
        path = request.path.decode("latin-1")
        if self._elsewhere is not None and self._elsewhere(path) is not None:
            return None
        found = self._table.find(path)
        if found is None:
            return None
        served = found[0].get(METHODS.get(request.method, ""))
        return None if served is None else _Typed(self, served, found[1], path)

    async def answer(self, exchange: Exchange, served: _Served, params: dict[str, str], path: str) -> None:
        """The same steps for such a request; raises ClientGone never, it is counted."""
        request, began = exchange.request, clock.monotonic_s()
        headers = request.texts()
        asked = _Asked(
            METHODS[request.method], path, request.query, headers=headers, peer=request.peer, body=request.body
        )
        rid = request_id(headers.get("x-request-id"))
        extra: Headers = [(b"x-request-id", rid.encode())]
        root = self._begin_trace(headers, rid, extra)
        try:
            self._admit(asked)
            self._check_room(asked, served)
            result = await self._call(served, params, asked, rid=rid, extra=extra, now=began)
            status = await _deliver(exchange, result, extra)
        except FourplaneError as error:
            if isinstance(error, WaitingRequired) and _wants_page(asked) and asked.method == "GET":
                await _deliver(exchange, error.way(asked.query.decode("latin-1")), extra)
                return
            _explain(error, extra)
            status, lines, body = whole_error(error, extra, wants_page=_wants_page(asked))
            if not exchange.gone:
                exchange.send_whole(lines, body)
        except ClientGone:
            status = 499
        self._count(served, root, status, began)

    def _begin_trace(self, headers: Mapping[str, str], rid: str, extra: Headers) -> Context | None:
        """Trace a request; whoever sent a trace along hears which span is ours."""
        traceparent = headers.get("traceparent")
        root = self._tracer.begin(traceparent, rid, ours="x-request-id" not in headers)
        if traceparent is not None and root is not None:
            extra.append((b"traceresponse", root.traceresponse.encode()))
        return root

    def _count(self, served: _Served, root: Context | None, status: int, began: float) -> None:
        """One request of a route is over."""
        ended, failed = clock.monotonic_s(), status >= 500
        served.requests.value += 1
        if failed:
            served.errors.value += 1
        served.latency.record(ended - began)
        if root is not None:
            self._tracer.end(root, served.label, began, ended, failed=failed)

    def classify(self, method: bytes, path: bytes) -> Priority:
        """The priority class of a request, by its first line alone."""
        found = self._table.methods_at(path.decode("latin-1"))
        if found is None:
            return Priority.USER
        served = found.get(method.decode("latin-1"))
        return Priority.USER if served is None else served.route.priority

    def first_lines(self, method: str) -> FirstLines | None:
        """The same for most whole first lines of one method, in a third of the time."""
        expression, served = self._table.expression(method)
        if not served:
            return None
        pattern = re.compile(f"{method} {expression}{PLAIN_REST}".encode())
        return FirstLines(method.encode(), pattern, (Priority.USER, *(one.route.priority for one in served)))

    async def open_socket(self, request: HttpRequest) -> SocketPlan | Tunnel | bytes:
        """Decide about one WebSocket."""
        if self._elsewhere is not None:
            neighbour = self._elsewhere(request.path.decode("latin-1"))
            if neighbour is not None:
                return Tunnel(neighbour)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers}
        try:
            host = headers.get("host", "")
            if not self._hosts.passes(host):
                raise Misdirected("this deployment does not answer to that host")
            if not origin_passes(headers.get("origin"), host, self._origins):
                raise Forbidden("this page may not open a WebSocket here", code="origin_not_allowed")
            found = self._sockets.find(request.path.decode("latin-1"))
            if found is None:
                raise NotFound("no WebSocket here")
            route = found[0]["GET"]
            identity = await self._identify(headers)
            _check_access(route.access, identity)
            caller = request.peer if identity is None else f"account {identity.account_id}"
            if not self._default_limit.take(caller, clock.monotonic_s()).allowed:
                raise Overloaded("too many WebSockets from here", code="rate_limited")
        except FourplaneError as error:
            body = error_body(error.reason, error.public, error.fields)
            return answer(error.http_status, body, close=True)
        offered = [one.strip() for one in headers.get("sec-websocket-protocol", "").split(",")]
        chosen = next((one for one in offered if one in route.subprotocols), None)
        return SocketPlan(route.handler, identity, chosen, route.message_max)

    # -- one request

    def _admit(self, asked: _Asked) -> None:
        host = asked.headers.get("host", "")
        if not self._hosts.passes(host) and host:
            raise Misdirected("this deployment does not answer to that host", host=host[:100])
        if asked.method not in SAFE and not origin_passes(asked.headers.get("origin"), host, self._origins):
            raise Forbidden("this page may not act here", code="origin_not_allowed")

    def _find(self, asked: _Asked) -> tuple[_Served | None, dict[str, str], StaticFolder | None]:
        method, path = asked.method, asked.path
        if method == "OPTIONS":
            return None, {}, None
        found = self._table.find(path)
        if found is not None:
            methods, params = found
            served = methods.get(method)
            if served is None and method == "HEAD":
                served = methods.get("GET")
            if served is not None:
                self._check_room(asked, served)
                return served, params, None
            raise _not_allowed(method, methods)
        for folder in self._folders:
            if path.startswith(folder.prefix):
                if method in ("GET", "HEAD"):
                    return None, {}, folder
                raise _not_allowed(method, {"GET": None})
        raise NotFound("there is nothing at this address", path=path[:200])

    def _check_room(self, asked: _Asked, served: _Served) -> None:
        room, path = self.room, asked.path
        if room is not None and room.stops(path, asked.headers, served.route.priority):
            raise WaitingRequired(room.path, path, room.settings.poll_s)

    def _options(self, path: str) -> Reply:
        found = self._table.find(path)
        methods: Mapping[str, object] = found[0] if found is not None else {"GET": None}
        return Reply(status=204, headers={"allow": _allowed(methods)})

    async def _call(
        self, served: _Served, params: dict[str, str], asked: _Asked, *, rid: str, extra: Headers, now: float
    ) -> object:
        route, headers, peer = served.route, asked.headers, asked.peer
        identity = None
        if "cookie" in headers or "authorization" in headers:
            identity = await self._identify(headers)
        if route.access != "public":
            _check_access(route.access, identity)
        self._check_rate(served.limit, peer if identity is None else f"account {identity.account_id}", extra, now)
        body: Any = None
        if route.body is not None:
            if asked.receive is None:
                raw = of_whole(asked.body, route.body_max)
            else:
                raw = await read_body(asked.receive, headers, route.body_max)
            body = raw if served.raw else decode(raw, served.decoder)
        query = asked.query
        call: Call[Any] = Call(
            params=params,
            query=self._query(query) if query else {},
            headers=headers,
            body=body,
            identity=identity,
            request_id=rid,
            peer=peer,
        )
        task = asyncio.current_task()
        assert task is not None
        self._clock.enter(task, now)
        try:
            return await route.handler(call)
        except asyncio.CancelledError:
            if self._clock.leave(task):
                raise DeadlineExceeded("the work took too long") from None
            raise
        except (FourplaneError, ClientGone):
            raise
        except Exception as error:  # noqa: BLE001 - a bug of one handler ends one request; people are told
            return self._failed(route, call.request_id, error)
        finally:
            self._clock.leave(task)

    def _failed(self, route: Route, rid: str, error: Exception) -> NoReturn:
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        place = f"{where.tb_frame.f_code.co_filename}:{where.tb_lineno}" if where is not None else ""
        self._registry.event(
            "error", "gateway", f"{route.method} {route.path} failed: {error!r}", request_id=rid, place=place
        )
        raise FourplaneError("the server failed; the request id finds it in the log", code="internal", request_id=rid)

    async def _identify(self, headers: Mapping[str, str]) -> Identity | None:
        token = session_token(headers.get("cookie"), headers.get("authorization"))
        if token is None:
            return None
        found = await self._accounts.session(token)
        return None if found is None else Identity(found.account_id, found.name, found.roles)

    def _check_rate(self, limit: RateLimit, caller: str, extra: Headers, now: float) -> None:
        verdict = limit.take(caller, now)
        extra.append((b"ratelimit-limit", b"%d" % verdict.limit))
        extra.append((b"ratelimit-remaining", b"%d" % verdict.remaining))
        if not verdict.allowed:
            raise Overloaded(
                "too many requests from here",
                retry_after_s=verdict.retry_after_s,
                code="rate_limited",
                limit=verdict.limit,
            )

    def _query(self, query: bytes) -> dict[str, str]:
        if b"%" not in query and b"+" not in query and query.count(b"&") < self.settings.query_count_max:
            return dict([part.partition("=")[::2] for part in query.decode("latin-1").split("&") if part])
        try:
            return dict(
                parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=self.settings.query_count_max)
            )
        except ValueError:
            raise Rejected("the query has too many fields", code="bad_query") from None

    # -- building

    def _add(self, door: Door) -> None:
        match door:
            case Route():
                limit = self._default_limit if door.rate_per_s <= 0 else self._new_limit(door.rate_per_s)
                self._table.add(door.method, door.path, _Served(door, self._registry, limit))
                self.routes.append(door)
            case SocketRoute():
                self._sockets.add("GET", door.path, door)
            case StaticFolder():
                self._folders.append(door)

    def _new_limit(self, rate_per_s: float) -> RateLimit:
        burst = rate_per_s * self.settings.burst_s
        return RateLimit(rate_per_s, burst, count_max=self.settings.callers_max)

    def _describe(self, version: str) -> None:
        """Two doors that tell of all others; what they tell is made when it is first asked for, beside the loop."""
        routes = tuple(self.routes)
        told: dict[str, bytes] = {}

        def describe() -> bytes:
            return msgspec.json.encode(openapi.document(routes, title="Fourplane", version=version))

        async def description(_call: Call[None]) -> Reply:
            if "program" not in told:
                told["program"] = await self._aside.submit(describe)
            return Reply(told["program"], media_type="application/json", headers={"cache-control": "no-cache"})

        async def listing(_call: Call[None]) -> Reply:
            if "people" not in told:
                told["people"] = await self._aside.submit(api_page.page, routes)
            return Reply(told["people"], headers={"cache-control": "no-cache"})

        self._add(Route("GET", "/openapi.json", description, "This API in OpenAPI 3.1"))
        self._add(Route("GET", "/api/", listing, "This API as a page"))


def _check_access(access: Access, identity: Identity | None) -> None:
    if access == "public":
        return
    if identity is None:
        raise Unauthenticated("log in first", code="login_required")
    if access == "operator" and OPERATOR not in identity.roles:
        raise Forbidden("only an operator may do this", code="operator_required")


def _allowed(methods: Mapping[str, object]) -> str:
    return ", ".join(sorted({*methods, "OPTIONS", *(["HEAD"] if "GET" in methods else [])}))


def _not_allowed(method: str, methods: Mapping[str, object]) -> MethodNotAllowed:
    return MethodNotAllowed(f"{method} is not possible here", allow=_allowed(methods))


def _explain(error: FourplaneError, extra: Headers) -> None:
    """Header fields that belong to an error."""
    if isinstance(error, MethodNotAllowed):
        extra.append((b"allow", str(error.fields["allow"]).encode()))
    elif isinstance(error, UnusableRange):
        extra.append((b"content-range", f"bytes */{error.fields['size']}".encode()))


def _wants_page(asked: _Asked) -> bool:
    return "/api/" not in asked.path and "text/html" in asked.headers.get("accept", "")


async def _deliver(exchange: Exchange, result: object, extra: Headers) -> int:
    """Answer with what a handler returned; the status that went out."""
    made = whole_result(result, extra)
    if made is None:
        return await send_result(streaming(exchange).send, result, extra)
    exchange.send_whole(made[1], made[2])
    return made[0]


async def _other_scope(scope: Scope, receive: Receive, send: Send) -> None:
    """Lifespan and WebSocket messages of a foreign ASGI server: nothing to start, no sockets there."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    while scope["type"] == "lifespan":
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return

"""HTTP/1.1 on one connection: bytes in, requests out, answers in order.

llhttp (through httptools) reads the grammar: bare LF, obs-fold, space before the colon, a second Content-Length, CL with
TE and bad chunk sizes are its errors. This class adds what a server owes beyond grammar: bounds, one valid Host, only
`chunked` as transfer coding, refusal of bodies on upgrades, versions, Expect, and time limits.

Pipelining without a queue: input is fed in slices that end at the first empty line, or at the end of a body whose length is
known. A slice therefore completes at most one request, and while that one is being answered the rest of the input
stays unparsed in `_held` with reading paused. Invariants: `_held` is empty or an exchange is busy; answers leave in order;
after a refusal nothing more is parsed.

A plain request, one whose bytes lie here whole and need no second thought, does without the parser (`http_plain`).
Sources: RFC 9112, RFC 9110.
"""

import asyncio
from enum import IntEnum
from typing import TYPE_CHECKING, Final, cast

import httptools

from fourplane.edge import http_answers
from fourplane.edge.http_answers import error_answer
from fourplane.edge.http_plain import HEAD_END, SEEN_BYTES_MAX, plain_target, take_plain, take_run
from fourplane.edge.http_request import (
    FIRST_OF_GET,
    GET,
    MAY_BE_PLAIN,
    PLAIN_FIRST,
    BadTarget,
    HotHandler,
    HttpRequest,
    plain_whole,
    split_target,
)
from fourplane.edge.http_rules import EMPTY_LENGTH, SPECIAL, Refused, check_version, note_special

if TYPE_CHECKING:
    from fourplane.edge.exchange import Exchange
    from fourplane.edge.http_server import HttpServer
    from fourplane.edge.tunnel import Tunnel
    from fourplane.edge.websocket import WebSocketSession

LINGER_BYTES_MAX: Final = 1 << 20
FIELD_BYTES_MIN: Final = 4  # of a header field with its line end


class Phase(IntEnum):
    """Where the parser stands."""

    IDLE = 0
    HEAD = 1
    BODY = 2


class Mode(IntEnum):
    """What incoming bytes mean on this connection."""

    HTTP = 0
    SOCKET = 1
    LINGER = 2  # our last answer is out, input is dropped until the peer has read it
    CLOSED = 3


# Members as globals: in Python 3.11 the look-up through the class costs ten times as much, eight times a request.
IDLE, HEAD, BODY = Phase.IDLE, Phase.HEAD, Phase.BODY
HTTP, SOCKET, LINGER, CLOSED = Mode.HTTP, Mode.SOCKET, Mode.LINGER, Mode.CLOSED


class HttpProtocol(asyncio.Protocol):
    """One connection; made by the server's listener."""

    __slots__ = (
        "_count_max",
        "_fed_in_head",
        "_head_max",
        "_held",
        "_lingered",
        "_mode",
        "_parser",
        "_phase",
        "_since_tick",
        "_target_max",
        "_write_waiter",
        "admission",
        "deadline_tick",
        "early",
        "exchange",
        "far",
        "gone",
        "peer",
        "plain_max",
        "request",
        "resting",
        "seen",
        "server",
        "session",
        "told_tick",
        "transport",
        "write_paused",
    )

    transport: asyncio.Transport
    request: HttpRequest

    def __init__(self, server: "HttpServer") -> None:
        self.server = server
        self.exchange: Exchange | None = None
        self.session: WebSocketSession | Tunnel | None = None
        self.gone = False
        self.far = -1  # the other worker whose work the last request was
        self.peer = ""
        self.write_paused = False
        self.resting = False  # left unread for a moment
        self.early = 0  # 1: what is read now came meanwhile
        self.deadline_tick = self.told_tick = 0
        self.admission = server.admission
        self.seen = server.seen
        limits = server.settings
        self._target_max, self._head_max = limits.target_bytes_max, limits.head_bytes_max
        self._count_max = limits.header_count_max
        self._since_tick = 0
        self._mode = HTTP
        self._phase = IDLE
        self._held = b""
        self.plain_max = min(self._target_max, self._head_max, FIELD_BYTES_MIN * self._count_max)
        self._fed_in_head = 0
        self._lingered = 0
        self._write_waiter: asyncio.Future[None] | None = None
        self._parser = httptools.HttpRequestParser(self)

    # -- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        address = transport.get_extra_info("peername")
        self.peer = str(address[0]) if isinstance(address, tuple) and address else "local"
        if not self.server.opened(self):
            self.transport.abort()
            self.gone = True
            return
        self._since_tick = self.server.deadlines.now
        self.deadline_tick = self.server.deadlines.ticks(self.server.settings.head_s_max)
        self.server.deadlines.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self.server.closed(self)
        self.gone = True
        self._mode = CLOSED
        self._held = b""
        del self._parser  # it keeps methods of this: a circle, which would stay until all garbage is looked for
        self.wake_writer()
        if self.exchange is not None:
            self.exchange.disconnected()
        if self.session is not None:
            self.session.disconnected()

    def eof_received(self) -> bool | None:
        if self._mode is HTTP and self.exchange is not None and self._phase is not BODY:
            self.exchange.peer_finished()
            return self.transport.can_write_eof()  # the peer finished asking and may still read the answer
        return None

    def pause_writing(self) -> None:
        self.write_paused = True
        self.deadline_tick = self.server.deadlines.ticks(self.server.settings.write_stall_s_max)

    def resume_writing(self) -> None:
        self.write_paused = False
        self.wake_writer()
        if self._mode is HTTP and self.exchange is None:
            self._rest_for_next()
            self._continue_held()

    async def wait_writable(self) -> None:
        """Wait until the peer has taken enough of what was written, or is gone."""
        while self.write_paused and not self.gone:
            waiter = self._write_waiter
            if waiter is None:
                waiter = self._write_waiter = asyncio.get_running_loop().create_future()
            await asyncio.shield(waiter)

    def wake_writer(self) -> None:
        """Let the coroutine in `wait_writable` look again."""
        waiter, self._write_waiter = self._write_waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def data_received(self, data: bytes) -> None:
        if self._mode is not HTTP:
            self._other_data(data)
            return
        if self.exchange is None and self._phase is IDLE and not self._held and not self.write_paused:
            if self.early:
                self.early -= 1
            first = data[0]
            if first == FIRST_OF_GET:
                target = self.seen.get(data) if len(data) <= SEEN_BYTES_MAX else None
                if target is None:
                    target = plain_target(self, data)
                if target is not None and take_plain(self, data, GET, target, b""):
                    return
            elif first in MAY_BE_PLAIN:
                whole = plain_whole(data)
                if whole is not None and take_plain(self, data, *whole):
                    return
            if data.find(HEAD_END) == len(data) - 4:
                self._feed(data)
                return
        elif self._held or (self.exchange is not None and self._phase is not BODY) or self.write_paused:
            self._hold(self._held + data)
            return
        self._feed_slices(data)

    def expire(self) -> None:
        """The coarse timer: decide by what this connection is waiting for."""
        limits, deadlines = self.server.settings, self.server.deadlines
        if self.write_paused:
            self.server.counted("write_stalled")
            self.transport.abort()
        elif self._mode is SOCKET and self.session is not None:
            self.session.keep_alive()
            self.deadline_tick = deadlines.ticks(limits.socket_ping_s)
        elif self._mode is not HTTP:
            self.transport.abort()
        elif self._phase is BODY:
            allowed = limits.body_grace_s + self.request.received / limits.body_rate_min
            due = self._since_tick + int(allowed * 2) + 1
            if self.request.reading_paused or due > deadlines.now:
                self.deadline_tick = max(due, deadlines.now + 2)
            elif self.exchange is not None and self.exchange.started:
                self.transport.abort()
            else:
                self._refuse(408, "slow_body", "the body came too slowly")
        elif self.exchange is not None:
            self.deadline_tick = deadlines.ticks(limits.idle_s_max)
        elif self._phase is HEAD:
            self._refuse(408, "slow_head", "the request head did not arrive in time")
        else:
            self.transport.close()

    # -- feeding the parser

    def _feed(self, data: bytes | memoryview) -> None:
        if self._phase is IDLE and EMPTY_LENGTH.search(data) is not None:  # the parser would not tell us of it
            self._refuse(400, "malformed", "not HTTP/1.1: empty Content-Length")
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # an upgrade we took or ignored; the slice ended with the head, nothing is behind it
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if isinstance(cause, Refused):
                self._refuse(cause.status, cause.code, str(cause))
                return
            raise
        except httptools.HttpParserInvalidMethodError:
            self._refuse(501, "unknown_method", "this method is not known here")
        except httptools.HttpParserError as error:
            self._refuse(400, "malformed", f"not HTTP/1.1: {error}")
        if self._phase is HEAD:
            if self._fed_in_head == 0:  # a head in pieces: from now on it has its time limit
                self._since_tick = self.server.deadlines.now
                self.deadline_tick = self._since_tick + self.server.head_ticks
            self._fed_in_head += len(data)
            if self._fed_in_head > self.server.settings.head_bytes_max and self._mode is HTTP:
                self._refuse(431, "head_too_large", "the request head is too large")

    def _feed_slices(self, data: bytes) -> None:
        view = memoryview(data)
        position, size, answered = 0, len(data), 0
        while position < size:
            if self._mode is not HTTP:
                self._other_data(bytes(view[position:]))
                return
            if self._phase is not BODY and (self.exchange is not None or self.write_paused):
                self._hold(data[position:])
                return
            if self._phase is IDLE:
                if data[position] in PLAIN_FIRST:
                    before = position
                    position, cost = take_run(self, data, position)
                    answered += cost
                    if position > before and answered <= self.server.settings.burst_max:
                        continue
                answered += 1
                if answered > self.server.settings.burst_max:
                    self._hold(data[position:])
                    asyncio.get_running_loop().call_soon(self._continue_held)
                    return
            remaining = self.request.remaining if self._phase is BODY else 0
            if remaining > 0:
                end = min(size, position + remaining)
            else:
                found = data.find(HEAD_END, position)
                end = size if found < 0 else found + 4
            self._feed(view[position:end])
            position = end

    def _hold(self, data: bytes) -> None:
        if data:
            self._held = data
            self.transport.pause_reading()

    def _continue_held(self) -> None:
        if self._held and self._mode is HTTP and not self.write_paused and self.exchange is None:
            data, self._held = self._held, b""
            self.transport.resume_reading()
            self._feed_slices(data)

    def rest(self, count: int) -> None:
        """Leave this connection, refused `count` times, unread until its turn has come; no request or answer is here."""
        if self.at_rest and self._phase is IDLE:
            self.resting = True
            self.transport.pause_reading()
            self.server.resting.add(self, count)

    def read_again(self) -> None:
        """The rest is over."""
        self.resting = False
        self.early = 2  # with the next read
        if not self.gone and self._mode is HTTP and not self.transport.is_closing():
            self.transport.resume_reading()

    def _other_data(self, data: bytes) -> None:
        if self._mode is SOCKET:
            if self.session is not None:
                self.session.data_received(data)
            else:
                self._hold(self._held + data)
        elif self._mode is LINGER:
            self._lingered += len(data)
            if self._lingered > LINGER_BYTES_MAX:
                self.transport.abort()

    # -- the parser's side

    def on_message_begin(self) -> None:
        self._phase = HEAD
        self._fed_in_head = 0
        self.request = HttpRequest(self.peer)

    def on_url(self, url: bytes) -> None:
        request = self.request
        request.target = request.target + url if request.target else url
        if len(request.target) > self._target_max:
            raise Refused(414, "target_too_long", "the request target is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        request = self.request
        request.head_bytes = size = request.head_bytes + len(name) + len(value) + 4
        if size > self._head_max:
            raise Refused(431, "head_too_large", "the request head is too large")
        if self._phase is BODY:
            return  # trailers are read, bounded and dropped (RFC 9110 6.5.1)
        name = name.lower()
        if value and value[-1] <= 32:
            value = value.rstrip(b" \t")
        headers = request.fields
        headers.append((name, value))
        if name in SPECIAL:
            note_special(request, name, value)
        if len(headers) > self._count_max:
            raise Refused(431, "too_many_headers", "the request has too many header fields")

    def on_headers_complete(self) -> None:
        request, parser = self.request, self._parser
        keep_alive = parser.should_keep_alive()
        if request.connection_named or not keep_alive:  # otherwise it can only be HTTP/1.1
            check_version(request, parser.get_http_version())
        if request.host is None and not request.http_1_0:
            raise Refused(400, "host_missing", "a request needs one Host")
        if request.upgrade is not None and not parser.should_upgrade():
            request.upgrade = None  # without Connection: upgrade the field is only a remark
        request.method = parser.get_method()
        request.keep_alive = keep_alive and not self.server.draining
        target = request.target
        if target[0] == 47:
            mark = target.find(b"?")
            if mark < 0:
                request.path = target
            else:
                request.path, request.query = target[:mark], target[mark + 1 :]
        else:
            self._take_other_target(request)
        self._phase = BODY
        if request.method == b"CONNECT":
            raise Refused(405, "no_tunnel", "this server is not a proxy")
        hot = self.server.hot_handler(request.method, request.path)
        if hot is not None and request.upgrade is None:
            request.hot = hot
        else:
            self._begin_exchange(request)
        if request.has_body:
            self._begin_body(request)

    def _begin_body(self, request: HttpRequest) -> None:
        self._since_tick = self.server.deadlines.now
        self.deadline_tick = self._since_tick + self.server.head_ticks
        if request.hot is not None:
            if request.remaining > self.server.settings.hot_body_max:
                raise Refused(413, "too_large", "the body is too large")
            if request.expects_continue:
                self.transport.write(http_answers.CONTINUE)

    def on_body(self, body: bytes) -> None:
        request = self.request
        size = len(body)
        request.received += size
        if request.remaining > 0:
            request.remaining -= size
        if request.hot is not None:
            if request.received > self.server.settings.hot_body_max:
                raise Refused(413, "too_large", "the body is too large")
            request.parts.append(body)
        elif request.received > self.server.settings.body_bytes_max:
            raise Refused(413, "too_large", "the body is too large")
        elif self.exchange is not None:
            self.exchange.body_received(body)

    def on_message_complete(self) -> None:
        self._phase = IDLE
        request = self.request
        hot = request.hot
        if hot is not None:
            if request.parts:
                request.body = b"".join(request.parts)
            self._answer_hot(request, hot)
        elif self.exchange is not None:
            self.deadline_tick = self.server.deadlines.now + self.server.idle_ticks
            self.exchange.body_complete()

    # -- answering

    def _answer_hot(self, request: HttpRequest, hot: HotHandler) -> None:
        answered = hot(request)
        if answered is None:
            request.hot = None
            self._begin_exchange(request)
            if self.exchange is not None:
                if request.body:
                    self.exchange.body_received(request.body)
                self.exchange.body_complete()
            return
        self.server.hot_total.value += 1
        if isinstance(answered, tuple):
            self.transport.writelines(answered)
        else:
            self.transport.write(answered)
        if request.keep_alive:
            self.deadline_tick = self.server.deadlines.now + self.server.idle_ticks
        else:
            self._finish_connection()

    def _begin_exchange(self, request: HttpRequest) -> None:
        server = self.server
        if request.upgrade is not None:
            if request.has_body:
                raise Refused(400, "upgrade_with_body", "an upgrade carries no body")
            if request.upgrade == b"websocket" and request.method == b"GET" and server.takes_sockets:
                self._mode = SOCKET
                self.deadline_tick = server.deadlines.ticks(server.settings.head_s_max)
                server.begin_socket(self, request)
                return
        if request.remaining > server.settings.body_bytes_max:
            raise Refused(413, "too_large", "the body is too large")
        admission = server.admission
        if admission.in_flight >= admission.shed_at and admission.turns_away_as(request.method, request.path):
            server.shed_total.value += 1
            if request.has_body or not request.keep_alive:
                self._send_last(admission.rejection_and_close)
            else:
                self.transport.write(admission.rejection)
                request.hot = None
            return
        self.exchange = server.begin_exchange(self, request)

    def exchange_finished(self) -> None:
        """The answer is out; go on with the next request or end the connection."""
        exchange, self.exchange = self.exchange, None
        if exchange is None or self._mode is not HTTP:
            return
        if self.request.reading_paused:
            self.request.reading_paused = False
            self.transport.resume_reading()
        if not exchange.keep_alive or self.server.draining or self._phase is BODY:
            self._finish_connection()
            return
        self._rest_for_next()
        if self.server.passing is not None and not self._held:
            self.server.passing.answered(self)
        self._continue_held()

    @property
    def at_rest(self) -> bool:
        """Whether nothing of a request or an answer is here."""
        return (
            self._mode is HTTP
            and self._phase is IDLE
            and self.exchange is None
            and not (self._held or self.resting or self.gone or self.server.draining or self.transport.is_closing())
        )

    def socket_opened(self, session: "WebSocketSession | Tunnel") -> None:
        """The handshake is out: what the peer sent meanwhile, and all that follows, are frames."""
        self.session = session
        self._since_tick = self.server.deadlines.now
        self.deadline_tick = self.server.deadlines.ticks(self.server.settings.socket_ping_s)
        if self._held:
            early, self._held = self._held, b""
            self.transport.resume_reading()
            session.data_received(early)

    def socket_refused(self, answer: bytes) -> None:
        """The application did not want this WebSocket: say so in HTTP and end."""
        self._send_last(answer)

    def _rest_for_next(self) -> None:
        self.deadline_tick = self.server.deadlines.now + self.server.idle_ticks

    def _take_other_target(self, request: HttpRequest) -> None:
        try:
            request.path, request.query, authority = split_target(request.method, request.target)
        except BadTarget as error:
            raise Refused(400, "bad_target", str(error)) from None
        if authority is not None:  # absolute-form: its authority replaces Host (RFC 9112 3.2.2)
            request.host = authority
            request.fields = [(name, authority if name == b"host" else value) for name, value in request.fields]

    def _refuse(self, status: int, code: str, message: str) -> None:
        if self._mode is not HTTP and self._mode is not SOCKET:
            return
        self.server.counted(code)
        exchange = self.exchange
        if exchange is not None:
            self.exchange = None
            exchange.disconnected()
            if exchange.started:
                self.transport.abort()
                return
        self._send_last(error_answer(status, code, message, close=True))

    def _send_last(self, answer: bytes) -> None:
        self.transport.write(answer)
        self._finish_connection()

    def _finish_connection(self) -> None:
        """End after our last answer so that the peer can read it: half-close, drop what it still sends, then close."""
        self._held = b""
        unread = self._phase is not IDLE
        self._mode = LINGER
        self.deadline_tick = self.server.deadlines.ticks(self.server.settings.linger_s)
        if not unread or not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        self.transport.resume_reading()

    def drain(self) -> None:
        """Stop after the request in flight; a connection at rest closes now, one that has not asked yet in a moment."""
        if self._mode is SOCKET and self.session is not None:
            self.session.going_away()
        elif self._mode is HTTP and self.exchange is None and self._phase is IDLE:
            if self.deadline_tick - self._since_tick > self.server.head_ticks + 1:
                self.transport.close()
            elif not self.gone:
                self._since_tick = -self.server.idle_ticks
                asyncio.get_running_loop().call_later(self.server.settings.unasked_s, self.drain)

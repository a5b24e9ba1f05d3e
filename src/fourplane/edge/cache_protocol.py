"""HTTP/1.1 on the client side of a cache node: requests in, prebuilt heads and mapped bodies out.

llhttp reads the grammar (smuggling, bare line feeds, double lengths are its errors). A request is answered inside
`data_received` when the node has the response; otherwise the connection waits while a task of the node answers, and what
the client pipelined meanwhile is kept, bounded, with reading paused. Answers leave in order.
"""

import asyncio
import os
import re
from typing import TYPE_CHECKING, cast

import httptools

from fourplane.edge.cache_fields import Fields
from fourplane.edge.http_answers import error_answer
from fourplane.edge.http_request import BadTarget, host_is_valid, split_target
from fourplane.foundation import network

if TYPE_CHECKING:
    from fourplane.edge.cache_node import CacheNode

HEAD_BYTES_MAX = 32 << 10
FIELDS_MAX = 100
PIPELINED_MAX = 32
PIECE = 32 << 10
PACE = 128 << 10
AHEAD = 64 << 10  # encrypted bytes that may wait for a client
PACED_AT_ONCE = 16
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
CLOSE = b"connection: close\r\n"
SPECIAL = frozenset(
    {
        b"range",
        b"if-none-match",
        b"if-modified-since",
        b"if-match",
        b"if-unmodified-since",
        b"cache-control",
        b"pragma",
        b"authorization",
    }
)


# A client sends the same fields with every request, so a head behind its first line is parsed once and remembered. Only
# plain GETs are: one whole message, nothing special, no body. The first line must be exactly what the pattern says.
HEAD_END = b"\r\n\r\n"
KNOWN_MAX = 2_048
_LINE = re.compile(rb"GET (/[!-~]*) HTTP/1\.1\r\n")
_known: "dict[bytes, CacheRequest]" = {}


class CacheRequest:
    """One request of a client. `special`: it carries a field that a plain hit need not look at."""

    __slots__ = ("body", "expects", "fields", "host", "http_1_0", "keep_alive", "method", "raw", "special", "target")

    def __init__(self) -> None:
        self.raw = b""  # every byte of a plain GET whose head was seen before
        self.method = b""
        self.target = b""
        self.host = b""
        self.fields: Fields = []
        self.body = b""
        self.special = False
        self.keep_alive = True
        self.http_1_0 = False
        self.expects = False

    def again(self, target: bytes, raw: bytes) -> "CacheRequest":
        """The same request for another target."""
        made = CacheRequest.__new__(CacheRequest)
        made.raw = raw
        made.method, made.target, made.host, made.fields = self.method, target, self.host, self.fields
        made.body, made.special, made.keep_alive, made.http_1_0, made.expects = b"", False, True, False, False
        return made

    def value(self, name: bytes) -> bytes | None:
        """The first value of a field, name in lower case."""
        for found, value in self.fields:
            if found == name:
                return value
        return None


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class CacheProtocol(asyncio.Protocol):
    """One client connection of a cache node."""

    __slots__ = (
        "_answering",
        "_cork",
        "_descriptor",
        "_drained",
        "_head_bytes",
        "_head_known",
        "_held",
        "_host",
        "_hot",
        "_learning",
        "_node",
        "_paced",
        "_parser",
        "_pending",
        "_request",
        "_sending",
        "_task",
        "busy",
        "chunked",
        "deadline_tick",
        "gone",
        "peer",
        "transport",
        "write_paused",
    )

    transport: asyncio.Transport

    def __init__(self, node: "CacheNode") -> None:
        self._node = node
        self._hot = node.hot.answers
        self._parser = httptools.HttpRequestParser(self)
        self._request = CacheRequest()
        self._pending: list[CacheRequest] = []
        self._answering: CacheRequest | None = None
        self._head_bytes = 0
        self._head_known = False  # the head of the message under way was read to its end
        self._held = False  # reading was paused
        self._host = b""
        self._learning = b""
        self._descriptor = -1  # of the socket, where the kernel may send files into it
        self._cork: network.Cork | None = None  # made for the first file
        self._sending: tuple[int, int, int, CacheRequest] | None = None  # file, offset, bytes left
        self._paced: tuple[memoryview, CacheRequest] | None = None  # what is left of a body in memory
        self._drained: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self.busy = False
        self.chunked = False
        self.gone = False
        self.peer = ""
        self.write_paused = False
        self.deadline_tick = 0

    # -- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        address = transport.get_extra_info("peername")
        self.peer = str(address[0]) if isinstance(address, tuple) and address else "local"
        if not self._node.opened(self):
            self.gone = True
            self.transport.abort()
            return
        plain = transport.get_extra_info("ssl_object") is None
        connected = transport.get_extra_info("socket") if plain else None
        self._descriptor = connected.fileno() if connected is not None and hasattr(connected, "fileno") else -1
        if not plain:
            self.transport.set_write_buffer_limits(high=AHEAD)
        self.rest()
        self._node.deadlines.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the name is asyncio's
        if not self.gone:
            self._node.closed(self)
        self.gone = True
        del self._parser  # it keeps methods of this: a circle, which would stay until all garbage is looked for
        self._pending.clear()
        if self._sending is not None:
            os.close(self._sending[0])
            self._sending = None
        if self._cork is not None:
            self._cork.forget()
            self._cork = None
        self._paced = None
        self._wake()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self.write_paused = True
        self._hold()

    def resume_writing(self) -> None:
        self.write_paused = False
        self._wake()
        self.rest()
        if self._sending is not None:
            self._send_on()
            return
        if self._paced is not None:
            self._pace()
            return
        if not self.busy:
            self._continue()

    def data_received(self, data: bytes) -> None:
        if not (self._head_bytes or self.busy or self.write_paused or self._pending):
            hit = self._hot.get(data)
            if hit is not None and self._node.serve_hot(self, hit):
                return
            line = _LINE.match(data)
            if line is not None:
                rest = data[line.end() :]
                known = _known.get(rest)
                if known is not None:
                    self._handle(known.again(line[1], data))
                    return
                self._learning = rest if rest.find(HEAD_END) == len(rest) - 4 else b""
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(400, "upgrade", "a cache node does not change protocols")
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if not isinstance(cause, _Refused):
                raise
            self._refuse(cause.status, cause.code, cause.message)
        except httptools.HttpParserInvalidMethodError:
            self._refuse(501, "unknown_method", "this method is not known here")
        except httptools.HttpParserError as error:
            self._refuse(400, "malformed", f"not HTTP/1.1: {error}")
        else:
            if self._head_bytes > HEAD_BYTES_MAX and not self._head_known:  # it has no end yet
                self._refuse(431, "head_too_large", "the request head is too large")
        self._learning = b""

    def expire(self) -> None:
        """The coarse timer: nothing asked, nothing taken for too long."""
        if self.busy and not self.write_paused:
            self.rest()
        elif self.write_paused or self.busy:
            self.transport.abort()
        else:
            self.transport.close()

    def rest(self) -> None:
        """Count the patience with this client from now."""
        self.deadline_tick = self._node.deadlines.ticks(self._node.settings.idle_s)

    # -- the parser's side

    def on_message_begin(self) -> None:
        self._request = CacheRequest()

    def on_url(self, url: bytes) -> None:
        self._request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        request = self._request
        request.fields.append((name, value))
        if name in SPECIAL:
            request.special = True
        elif name == b"host":
            if request.host or (value != self._host and not host_is_valid(value)):
                raise _Refused(400, "bad_host", "a request has one valid Host")
            request.host = self._host = value
        elif name == b"connection":
            request.http_1_0 = True  # until the version is looked at
        elif name == b"expect":
            request.expects = value.lower() == b"100-continue"

    def on_headers_complete(self) -> None:
        request, parser = self._request, self._parser
        self._head_known = True
        request.method = parser.get_method()
        request.keep_alive = parser.should_keep_alive()
        if request.http_1_0 or not request.keep_alive:  # the version costs a string: asked only where it can matter
            request.http_1_0 = parser.get_http_version() == "1.0"
        if len(request.fields) > FIELDS_MAX or (
            self._head_bytes > HEAD_BYTES_MAX
            and len(request.target) + sum(len(name) + len(value) for name, value in request.fields) > HEAD_BYTES_MAX
        ):
            raise _Refused(431, "head_too_large", "the request head is too large")
        if not request.host and parser.get_http_version() != "1.0":
            raise _Refused(400, "no_host", "a request has a Host")
        if not request.target.startswith(b"/"):
            try:
                path, query, authority = split_target(request.method, request.target)
            except BadTarget as error:
                raise _Refused(400, "bad_target", str(error)) from None
            if not path:
                raise _Refused(405, "no_tunnels", "a cache node opens no tunnels")
            request.target = path + b"?" * bool(query) + query
            request.host = authority or request.host
        if request.expects:
            self.transport.write(CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._request.body += body
        if len(self._request.body) > self._node.settings.body_bytes_max:
            raise _Refused(413, "too_large", "the request body is too large")

    def on_message_complete(self) -> None:
        self._head_bytes, self._head_known = 0, False
        if self._learning:
            _learn(self._learning, self._request)
        if not (self.busy or self.write_paused or self._pending):
            self._handle(self._request)
        else:
            self._pending.append(self._request)
            if len(self._pending) >= PIPELINED_MAX:
                self._hold()
            if len(self._pending) > 64 * PIPELINED_MAX:
                raise _Refused(429, "too_many", "too many requests without waiting for an answer")

    # -- answering

    def _handle(self, request: CacheRequest) -> None:
        self._answering = request
        work = self._node.handle(self, request)
        if work is None:
            if self._sending is None and self._paced is None:
                self.finished(request)
            return
        self.busy = True
        self._task = self._node.start_task(work)

    def answer(self, request: CacheRequest, *parts: bytes | memoryview) -> None:
        """Send one whole answer whose head lacks its last empty line: `parts[0]`; the rest is its body."""
        head = parts[0]
        assert isinstance(head, bytes)
        if not request.keep_alive:
            head += CLOSE
        if len(parts) == 1 or request.method == b"HEAD":
            self.transport.write(head + b"\r\n")
        elif len(parts[1]) < 16_384:
            self.transport.write(b"".join((head, b"\r\n", parts[1])))
        elif len(parts[1]) <= PACE:
            self.transport.write(head + b"\r\n")
            self.transport.write(parts[1])
        else:
            self.busy = True
            self._paced = (memoryview(parts[1]), request)
            self.transport.write(head + b"\r\n")
            self._pace()

    def _pace(self) -> None:
        """Hand the transport as much of a large body as the client takes: what TLS encrypts ahead would only be kept."""
        assert self._paced is not None
        left, request = self._paced
        for _ in range(PACED_AT_ONCE):
            if self.write_paused or self.gone or self.transport.is_closing():
                break
            self.transport.write(left[:PACE])
            left = left[PACE:]
            if not left:
                self._paced = None
                self.finished(request)
                return
        self._paced = (left, request)
        if not self.write_paused and not self.gone:
            asyncio.get_running_loop().call_soon(self._pace_on)

    def _pace_on(self) -> None:
        if self._paced is not None and not self.write_paused:
            self._pace()

    def answer_hot(self, whole: bytes) -> None:
        """Send a prebuilt answer in one go, past the transport while that holds nothing back."""
        transport = self.transport
        if self._descriptor < 0 or self.gone or transport.get_write_buffer_size():
            transport.write(whole)
            return
        try:
            sent = os.write(self._descriptor, whole)
        except BlockingIOError:
            sent = 0
        except OSError:
            transport.abort()
            return
        if sent != len(whole):
            transport.write(memoryview(whole)[sent:])

    def answer_file(self, request: CacheRequest, head: bytes, file: int, offset: int, count: int) -> bool:
        """Send a head and part of a file without the bytes passing through here; False where that cannot be done.

        The kernel copies while the socket takes it. When it is full the transport carries one small piece and calls
        `resume_writing` when that is gone: so nothing but the transport ever watches the socket.
        """
        transport = self.transport
        if self._descriptor < 0 or self.gone or transport.get_write_buffer_size():
            return False
        whole = head + (b"\r\n" if request.keep_alive else CLOSE + b"\r\n")
        try:
            if self._cork is None:
                self._cork = network.Cork(self._descriptor)
            self._cork.hold()
            if not self._wrote(whole):
                return False
            count, offset = self._send_some(file, offset, count)
            if not count:
                self._cork.release()
        except OSError:
            transport.abort()
            return True
        if count:
            self.busy = True
            self._sending = (os.dup(file), offset, count, request)
            transport.set_write_buffer_limits(high=0)
            self._send_piece()
        return True

    def _wrote(self, head: bytes) -> bool:
        """Write a head past the transport; False when the socket takes nothing now. Raises OSError when the client is gone."""
        assert self._cork is not None
        try:
            if os.write(self._descriptor, head) != len(head):
                raise OSError("half a head")
        except BlockingIOError:
            self._cork.release()
            return False
        return True

    def _send_some(self, file: int, offset: int, count: int) -> tuple[int, int]:
        """Hand over what the socket takes now; what is left and from where. Raises OSError when the client is gone."""
        try:
            while count:
                sent = network.send_file(self._descriptor, file, offset, count)
                if not sent:
                    raise OSError("the file is shorter than it was")
                offset += sent
                count -= sent
        except BlockingIOError:
            pass
        return count, offset

    def _send_piece(self) -> None:
        """Let the transport carry a little, so that it tells us when the socket takes more."""
        assert self._sending is not None
        file, offset, count, request = self._sending
        piece = os.pread(file, min(PIECE, count), offset)
        if not piece:
            self.transport.abort()
            return
        self._sending = (file, offset + len(piece), count - len(piece), request)
        self.transport.write(piece)
        if not self.write_paused:  # it went out at once
            asyncio.get_running_loop().call_soon(self._send_on)

    def _send_on(self) -> None:
        if self._sending is None or self.write_paused:
            return
        file, offset, count, request = self._sending
        try:
            if not self.transport.get_write_buffer_size():
                count, offset = self._send_some(file, offset, count)
            if not count and self._cork is not None:
                self._cork.release()
        except OSError:
            self.transport.abort()
            return
        if count:
            self._sending = (file, offset, count, request)
            self._send_piece()
            return
        self._sending = None
        os.close(file)
        self.transport.set_write_buffer_limits()
        self.finished(request)

    def begin(self, request: CacheRequest, head: bytes, length: int | None) -> None:
        """Send a head whose body follows in pieces; `head` without length and last empty line."""
        self.chunked = False
        if length is not None:
            head += b"content-length: %d\r\n" % length
        elif request.http_1_0:
            request.keep_alive = False
        else:
            head += b"transfer-encoding: chunked\r\n"
            self.chunked = True
        self.transport.write(head + (b"\r\n" if request.keep_alive else CLOSE + b"\r\n"))

    async def send(self, piece: bytes) -> None:
        """Send a piece of a body and wait until the client has taken enough; raises ConnectionError when it left."""
        if self.gone:
            raise ConnectionResetError
        if self.chunked:
            self.transport.writelines((b"%x\r\n" % len(piece), piece, b"\r\n"))
        else:
            self.transport.write(piece)
        while self.write_paused and not self.gone:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    def end(self) -> None:
        """The body is complete."""
        if self.chunked:
            self.transport.write(b"0\r\n\r\n")
            self.chunked = False

    def fail(self) -> None:
        """The body cannot be completed: the client must not take it for whole."""
        self.transport.abort()

    def interim(self, request: CacheRequest, status: int, reason: bytes, fields: Fields) -> None:
        """Hand an interim response on; HTTP/1.0 knows none."""
        if not request.http_1_0 and not self.gone:
            lines = [b"HTTP/1.1 %d %s\r\n" % (status, reason), *(b"%s: %s\r\n" % field for field in fields), b"\r\n"]
            self.transport.write(b"".join(lines))

    def refuse(self, request: CacheRequest, status: int, code: str, message: str) -> None:
        """Answer with an error of the node itself."""
        whole = error_answer(status, code, message, close=not request.keep_alive)
        if request.method == b"HEAD":
            whole = whole.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        self.transport.write(whole)

    def finished(self, request: CacheRequest) -> None:
        """The answer is out: go on with the next request."""
        self.busy = False
        self._task = None
        self._answering = None
        if self.gone:
            return
        if not request.keep_alive or self._node.draining:
            self.transport.close()
            return
        self.rest()
        if (self._pending or self._held) and not self.write_paused:
            asyncio.get_running_loop().call_soon(self._continue)

    def _hold(self) -> None:
        """Read nothing more until the client has taken its answers."""
        self._held = True
        self.transport.pause_reading()

    def _continue(self) -> None:
        while self._pending and not self.busy and not self.write_paused and not self.gone:
            self._handle(self._pending.pop(0))
        if (
            self._held
            and not self.busy
            and not self.gone
            and not self.write_paused
            and len(self._pending) < PIPELINED_MAX
        ):
            self._held = False
            self.transport.resume_reading()

    def _refuse(self, status: int, code: str, message: str) -> None:
        if not self.gone:
            self._node.counted(code)
            if not self.busy:
                self.transport.write(error_answer(status, code, message, close=True))
            self.transport.close()

    def _wake(self) -> None:
        waiter, self._drained = self._drained, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


def _learn(rest: bytes, request: CacheRequest) -> None:
    plain = request.method == b"GET" and not request.special and not request.body and not request.expects
    if plain and request.keep_alive and not request.http_1_0:
        if len(_known) >= KNOWN_MAX:
            _known.clear()
        _known[rest] = request

"""One request on its way to one answer, whoever gives it.

An answer that is whole when it begins leaves in one write: status, fields and body together. A typed route needs nothing
else, so the gateway gets such a request as it was read and answers it here, without the messages of ASGI between
(`TypedApp`); `AsgiExchange` adds them for applications that speak them. Invariants: one answer per exchange; an answer
after which nothing more can be read ends the connection and says so.
"""

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from fourplane.edge import http_answers
from fourplane.edge.http_request import HttpRequest

if TYPE_CHECKING:
    from fourplane.edge.http_protocol import HttpProtocol
    from fourplane.edge.routes import Priority


class ClientGone(OSError):
    """The peer left while the application was still sending."""


class ApplicationFault(Exception):
    """The application broke the rules of an answer."""


class Exchange:
    """One request whose body is here, and the state of its answer."""

    started = False
    finished = False
    gone = False  # the peer has left
    body_done = True
    head_only = False
    instead: "Exchange | None" = None  # took over, to answer in pieces

    def __init__(self, protocol: "HttpProtocol", request: HttpRequest) -> None:
        self.protocol = protocol
        self.request = request
        self.keep_alive = request.keep_alive

    # -- the protocol's side

    def body_received(self, body: bytes) -> None:
        """The body of such a request is here before it begins."""
        raise AssertionError(f"{len(body)} bytes behind a whole request")

    def body_complete(self) -> None:
        """As above."""

    def peer_finished(self) -> None:
        """The peer will send nothing more; the answer may still go out."""
        self.keep_alive = False

    def disconnected(self) -> None:
        """The peer is gone."""
        self.gone = True

    # -- the answer

    def send_whole(self, lines: bytes, body: bytes | None) -> None:
        """A whole answer in one call.

        `lines` are the status line and header fields, each with its line end, without length and date. None is the body
        of an answer that has none (204, 304).
        """
        if self.gone:
            raise ClientGone("the peer closed the connection")
        if self.started:
            raise ApplicationFault("the answer has already begun")
        self.started = self.finished = True
        date, ending = http_answers.date_line(), self.ending()
        protocol = self.protocol
        if body is None:
            protocol.transport.write(b"%b%b%b" % (lines, date, ending))
        elif self.head_only:
            protocol.transport.write(b"%b%bcontent-length: %d\r\n%b" % (lines, date, len(body), ending))
        else:
            protocol.transport.write(b"%b%bcontent-length: %d\r\n%b%b" % (lines, date, len(body), ending, body))
        protocol.exchange_finished()

    def ending(self) -> bytes:
        """The last lines of a head: what becomes of the connection, and the empty one."""
        if self.protocol.server.draining or not self.body_done:
            self.keep_alive = False
        if not self.keep_alive:
            return http_answers.CLOSE + b"\r\n"
        return http_answers.KEEP + b"\r\n" if self.request.http_1_0 else b"\r\n"

    # -- when the application is through

    def settle(self, failed: bool) -> None:  # noqa: FBT001 - one caller, right after the application returned
        """The application returned or raised: an answer it did not finish becomes 500 or a cut connection."""
        if self.instead is not None:
            self.instead.settle(failed)
            return
        if self.finished or self.gone:
            return
        self.finished = True
        protocol = self.protocol
        if self.started:
            protocol.transport.abort()
            return
        text = "the server failed to answer" if failed else "the application gave no answer"
        close = not self.body_done or not self.keep_alive
        self.keep_alive = not close
        body = http_answers.error_answer(500, "internal", text, close=close)
        if self.request.method == b"HEAD":
            body = body[: body.index(b"\r\n\r\n") + 4]
        protocol.transport.write(body)
        protocol.exchange_finished()


class TypedWork(Protocol):
    """A plain request and the route that answers it."""

    priority: "Priority"

    def answer(self, exchange: Exchange) -> Coroutine[Any, Any, None]:
        """Answer it; raises ClientGone when nobody is there any more."""


@runtime_checkable
class TypedApp(Protocol):
    """An application that answers some requests as they were read."""

    def typed(self, request: HttpRequest) -> TypedWork | None:
        """What is to be done for a plain request with its whole body; None when it has to go the way of ASGI."""

"""A client over WebSocket (RFC 7395): every message is one stanza, the stream opens with `<open/>` and ends with `<close/>`."""

import asyncio
from collections.abc import Callable

from fourplane.edge.routes import SocketSession
from fourplane.foundation import network
from fourplane.foundation.errors import FourplaneError, Unavailable
from fourplane.foundation.network import InheritedSocket
from fourplane.messaging import stanzas
from fourplane.messaging.client_stream import ClientStream, Phase, Streams
from fourplane.messaging.login import Offer
from fourplane.messaging.relay import copy_messages
from fourplane.messaging.xml_stream import CLIENT, FRAMING, STREAMS, StreamError

CONTENT = f" xmlns='{CLIENT}'".encode()
# SCRAM only: the gateway decides about TLS, and a password in the clear is never taken.
OFFER = Offer(secure=False, starttls=False, tls_required=False, binding=b"")
FEATURES = OFFER.features(tls_required=False)
KINDS = (b"<message", b"<presence", b"<iq")


class WebStream(ClientStream):
    """One WebSocket; `run` lives as long as it does."""

    __slots__ = ("_closing", "_passed", "_readable", "_socket")

    def __init__(self, streams: Streams, socket: SocketSession) -> None:
        super().__init__(streams)
        self._socket = socket
        self._closing = False
        self._passed: InheritedSocket | None = None  # our end, when another worker goes on with it
        self._readable = asyncio.Event()
        self._readable.set()

    async def run(self) -> None:
        """Take messages until either side closes."""
        self.came_from(self._socket.peer)
        try:
            while not self._closing:
                message = await self._socket.receive()
                if message is None:
                    break
                data = message.encode() if isinstance(message, str) else message
                self.streams.bytes_in += len(data)
                self._take_message(data)
                await self._readable.wait()
                if self._passed is not None:
                    await copy_messages(self._socket, self._passed)
                    return
            await self._socket.close()
        finally:
            self.lost()

    def detach(self) -> tuple[InheritedSocket, Callable[[bool], None]]:
        """One end of a pair through which messages will be copied."""
        if self._closing:
            raise Unavailable("the client is gone", code="closed")
        near, passed = network.pair()

        def done(taken: bool) -> None:  # noqa: FBT001 - one word
            if taken:
                self.left()
                self._passed = near
                self._readable.set()
            else:
                near.close()
                self.fail(StreamError("remote-connection-failed", "the worker of this user does not answer"))

        return passed, done

    def _take_message(self, data: bytes) -> None:
        head = data.lstrip()
        if head.startswith((b"<open", b"<close")):
            try:
                self._take_framing(head)
            except StreamError as error:
                self.fail(error)
        elif self.phase is Phase.OPENING:
            self.fail(StreamError("bad-format", "an <open/> was expected"))
        elif self.phase is not Phase.ENDED:
            self.received(data)
            if self._framer is not None:
                self.fail(StreamError("not-well-formed", "a message is one complete stanza"))

    def _take_framing(self, data: bytes) -> None:
        framer = self.streams.framers.borrow()
        found = framer.feed(data, self.streams.settings.stanza_max_before_login)
        if len(found) != 1 or not framer.idle:
            raise StreamError("not-well-formed")
        self.streams.framers.give_back(framer)
        if found[0].name == f"{FRAMING} close":
            self.end()
        elif found[0].name == f"{FRAMING} open" and self.phase is Phase.OPENING:
            self.open_stream(found[0].attributes)
        else:
            raise StreamError("invalid-namespace")

    def offer(self) -> tuple[Offer, bytes]:
        return OFFER, FEATURES

    def _write(self, out: list[bytes]) -> None:
        try:
            for data in out:
                framed = _framed(data)
                self.streams.bytes_out += len(framed)
                self._socket.send(framed.decode())
        except FourplaneError:
            self._closing = True

    def _header(self, attributes: str) -> bytes:
        return f"<open xmlns='{FRAMING}'{attributes}/>".encode()

    def _footer(self) -> bytes:
        return f"<close xmlns='{FRAMING}'/>".encode()

    def _close(self) -> None:
        self._closing = True
        self._readable.set()
        self.streams.router.spawn(self._close_socket())

    def _abort(self) -> None:
        self._close()

    async def _close_socket(self) -> None:
        await self._socket.close()

    def _pause(self) -> None:
        self._readable.clear()

    def _resume(self) -> None:
        self._readable.set()

    def _unsent(self) -> int:
        return self._socket.buffered()


def _framed(data: bytes) -> bytes:
    """A stanza as it stands alone in a message: with its namespace."""
    if data.startswith(KINDS):
        if b"xmlns=" in data[: data.index(b">")]:
            return data
        return stanzas.with_attribute(data, CONTENT)
    if data.startswith(b"<stream:"):
        return stanzas.with_attribute(data, f" xmlns:stream='{STREAMS}'".encode())
    return data

"""A client over TCP: STARTTLS (RFC 6120 section 5) on one port, TLS from the first byte (RFC 7590, XEP-0368) on the other."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import cast

from fourplane.foundation import network
from fourplane.foundation.errors import Unavailable
from fourplane.messaging.client_stream import ClientStream, Phase, Streams
from fourplane.messaging.login import TLS_NS
from fourplane.messaging.relay import copy_between
from fourplane.messaging.settings import MessagingSettings
from fourplane.messaging.stream_compression import PROTOCOL, StreamCompression, wanted_method
from fourplane.messaging.xml_stream import Stanza, StreamError, read_header

HEADER_MAX = 8_192


class TcpStream(ClientStream, asyncio.Protocol):
    """The protocol object of one TCP connection."""

    __slots__ = ("_header_bytes", "_tls", "_transport", "_upgrading", "_zlib")

    def __init__(self, streams: Streams, tls: ssl.SSLContext | None) -> None:
        super().__init__(streams)
        self._tls = tls
        self._transport: asyncio.Transport | None = None
        self._header_bytes = b""
        self._zlib: StreamCompression | None = None
        self._upgrading = False  # between <proceed/> and the end of the handshake

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        upgraded = self._transport is not None
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=self.streams.settings.write_high)
        self.secure = transport.get_extra_info("ssl_object") is not None
        if upgraded:
            return
        peer = transport.get_extra_info("peername")
        self.came_from(str(peer[0]) if peer else "")

    def data_received(self, data: bytes) -> None:
        self.streams.bytes_in += len(data)
        if self._zlib is None:
            self._plain_received(data)
            return
        try:
            for piece in self._zlib.inflate(data):
                self._plain_received(piece)
        except StreamError as error:
            self.fail(error)

    def _plain_received(self, data: bytes) -> None:
        if self.phase is Phase.OPENING:
            self._take_header(data)
        elif self.phase is not Phase.ENDED:
            self.received(data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, _exc: Exception | None) -> None:
        self._transport = None
        self.lost()

    def pause_writing(self) -> None:
        self.writing_paused()

    def resume_writing(self) -> None:
        self.writing_resumed()

    def detach(self) -> tuple[socket.socket, Callable[[bool], None]]:
        """The connection itself, or with TLS (or something unsent) one end of a pair that will be copied."""
        transport = self._transport
        if transport is None or transport.is_closing():
            raise Unavailable("the client is gone", code="closed")
        itself = transport.get_extra_info("ssl_object") is None and not transport.get_write_buffer_size()
        near, passed = (None, network.duplicate(transport)) if itself else network.pair()

        def done(taken: bool) -> None:  # noqa: FBT001 - one word
            if not taken:
                if near is not None:
                    near.close()
                self.fail(StreamError("remote-connection-failed", "the worker of this user does not answer"))
                return
            self.left()
            if near is None:
                transport.abort()
            else:
                self.streams.router.spawn(copy_between(transport, near))

        return passed, done

    def _take_header(self, data: bytes) -> None:
        self._header_bytes += data
        if self._upgrading:
            return
        try:
            header = read_header(self._header_bytes, HEADER_MAX)
            if header is None:
                return
            self._header_bytes = b""
            self.open_stream(header.attributes)
        except StreamError as error:
            self._header_bytes = b""
            self.fail(error)
            return
        if header.rest:
            self.received(header.rest)

    def _start_tls(self) -> None:
        transport, tls = self._transport, self._tls
        assert transport is not None
        if tls is None:
            raise StreamError("unsupported-stanza-type")
        transport.pause_reading()
        transport.write(f"<proceed xmlns='{TLS_NS}'/>".encode())
        self.reopen()
        self._login = None
        self._upgrading = True
        self.streams.router.spawn(self._secure(transport, tls))

    async def _secure(self, transport: asyncio.Transport, tls: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        try:
            secured = await loop.start_tls(transport, self, tls, server_side=True)
        except (OSError, ssl.SSLError):
            transport.abort()
            self.lost()
            return
        if secured is None:
            self.lost()
            return
        self._transport = secured
        self._transport.set_write_buffer_limits(high=self.streams.settings.write_high)
        self.secure = True
        self._upgrading = False
        if self._header_bytes and self.phase is Phase.OPENING:
            self._take_header(b"")

    def _compressible(self) -> bool:
        return self.streams.settings.compression > 0 and self._zlib is None

    def _start_compression(self, stanza: Stanza) -> None:
        level = self.streams.settings.compression
        if self._zlib is not None or not level or not wanted_method(stanza.raw):
            why = "unsupported-method" if level and self._zlib is None else "setup-failed"
            self.send(f"<failure xmlns='{PROTOCOL}'><{why}/></failure>".encode())
            return
        self.send(f"<compressed xmlns='{PROTOCOL}'/>".encode())
        self.flush()
        self._zlib = StreamCompression(level)
        self.reopen()

    def _write(self, out: list[bytes]) -> None:
        transport = self._transport
        if transport is not None:
            data = out[0] if len(out) == 1 else b"".join(out)
            if self._zlib is not None:
                data = self._zlib.deflate(data)
            self.streams.bytes_out += len(data)
            transport.write(data)

    def _header(self, attributes: str) -> bytes:
        return (
            "<?xml version='1.0'?><stream:stream xmlns='jabber:client'"
            f" xmlns:stream='http://etherx.jabber.org/streams'{attributes}>"
        ).encode()

    def _footer(self) -> bytes:
        return b"</stream:stream>" if self.opened else b""

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _pause(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def _resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _unsent(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport is not None else 0


def prepare_listener(server: asyncio.Server, settings: MessagingSettings) -> None:
    """Set what every accepted connection inherits: no delay, buffers, and how dead peers are found.

    A peer that vanished is noticed after keepalive_idle_s + keepalive_count * keepalive_interval_s. On the listener it costs
    nothing per connection; on each of them it cost 50 us of a login.
    """
    for sock in server.sockets:
        if getattr(sock, "family", None) not in {socket.AF_INET, socket.AF_INET6}:
            continue
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(settings.no_delay))
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            if settings.socket_buffer:
                sock.setsockopt(socket.SOL_SOCKET, option, settings.socket_buffer)
        if settings.keepalive_idle_s <= 0:
            continue
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, settings.keepalive_idle_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, settings.keepalive_interval_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, settings.keepalive_count)

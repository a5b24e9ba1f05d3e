"""A connection goes to the worker that owns its user, before anything was decided.

Any worker accepts a connection, speaks the opening and TLS; the first word of a login names the user. If that user's actor is
elsewhere, the connection is passed there (SCM_RIGHTS) together with that word, and the login happens where the user is. An
unencrypted TCP connection is passed itself and costs its first worker nothing afterwards. Of one with TLS, whose keys cannot
travel, or a WebSocket, one end of a local pair is passed, and the first worker copies between the two.

While the owner restarts, connections wait in its socket, which the parent process holds. Bounds: `login_s` of the settings
for the whole login, the socket's queue for what waits, the transports' own for what is copied.
"""

import asyncio
import contextlib
import socket
import ssl
from typing import TYPE_CHECKING, cast

import msgspec

from fourplane.edge.passing import Passing
from fourplane.edge.routes import SocketSession
from fourplane.foundation import clock, network
from fourplane.foundation.errors import FourplaneError
from fourplane.messaging import addresses
from fourplane.messaging import authentication as sasl
from fourplane.messaging.inline_login import read_wish
from fourplane.messaging.login import FAST_MECHANISM, SASL2_NS, SASL_NS, sasl_text
from fourplane.messaging.relay import FarSocket
from fourplane.messaging.tcp_stream import TcpStream
from fourplane.messaging.user_shards import UserShards
from fourplane.messaging.web_stream import WebStream
from fourplane.messaging.xml_stream import Stanza

if TYPE_CHECKING:
    from fourplane.messaging.client_stream import ClientStream, Streams

KIND = "xmpp"
TRY_S = 0.01
TRY_UNTIL_S = 20.0


class Passed(msgspec.Struct, array_like=True, frozen=True):
    """What travels with a connection."""

    kind: str  # "tcp" or "web"
    secure: bool
    peer: str
    first: bytes  # what the client said, from the word that names its user


_decode = msgspec.msgpack.Decoder(Passed).decode


class Handover:
    """Passes connections on and takes those of others; one per worker."""

    def __init__(
        self,
        streams: "Streams",
        shards: UserShards,
        *,
        passing: Passing,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._streams = streams
        self._shards = shards
        self._passing = passing
        self._tls = tls
        passing.takes(KIND, self._arrived)

    def try_pass(self, stream: "ClientStream", stanza: Stanza, rest: bytes) -> bool:
        """Pass the connection of `stream` on if `stanza` names a user who is elsewhere; `rest`: what came behind it."""
        name = claimed_name(stanza)
        if name is None:
            return False
        try:
            domain = self._streams.settings.domains[0]
            slot = self._shards.slot_of(addresses.parse(f"{addresses.prepare_local(name)}@{domain}"))
        except FourplaneError:
            return False  # no name of anybody: refused here
        if slot == self._shards.slot:
            return False
        first = stanza.raw + rest
        stream.pause("handover")
        self._streams.router.spawn(self._pass(stream, slot, first))
        return True

    async def _pass(self, stream: "ClientStream", slot: int, first: bytes) -> None:
        try:
            connection, done = stream.detach()
        except FourplaneError:
            return  # gone meanwhile
        kind = "web" if isinstance(stream, WebStream) else "tcp"
        message = msgspec.msgpack.encode(Passed(kind, stream.secure, stream.peer, first))
        until = clock.monotonic_s() + TRY_UNTIL_S
        try:
            while not self._passing.try_pass(slot, KIND, message, connection):
                if clock.monotonic_s() > until:
                    done(False)
                    return
                await clock.sleep(TRY_S)
        finally:
            connection.close()
        done(True)

    def _arrived(self, message: bytes, connection: socket.socket) -> None:
        try:
            told = _decode(message)
        except msgspec.MsgspecError:
            connection.close()
            return
        self._streams.router.spawn(self._take(told, connection))

    async def _take(self, told: Passed, connection: socket.socket) -> None:
        if told.kind == "web":
            far = FarSocket(told.peer, told.first)
            with contextlib.suppress(OSError):
                await network.adopt(lambda: far, connection)
                web = WebStream(self._streams, cast("SocketSession", far))
                web.go_on(secure=told.secure, peer=told.peer)
                await web.run()
            return
        with contextlib.suppress(OSError):
            await network.adopt(lambda: AdoptedStream(self._streams, self._tls, told), connection)


class AdoptedStream(TcpStream):
    """A TCP connection whose opening another worker spoke."""

    __slots__ = ("_told",)

    def __init__(self, streams: "Streams", tls: ssl.SSLContext | None, told: Passed) -> None:
        super().__init__(streams, tls)
        self._told: Passed | None = told

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        told, self._told = self._told, None
        if told is not None:
            self.go_on(secure=told.secure, peer=told.peer)
            self.received(told.first)


def claimed_name(stanza: Stanza) -> str | None:
    """Whom the first word of a login names, None when it names nobody."""
    try:
        if stanza.name == f"{SASL2_NS} authenticate":
            wish = read_wish(stanza)
            mechanism, text = wish.mechanism, wish.text
        elif stanza.name == f"{SASL_NS} auth":
            mechanism, text = stanza.attributes.get("mechanism", ""), sasl_text(stanza)
        else:
            return None
        message = sasl.decode(text)
        if mechanism == "PLAIN":
            return message.split(b"\0")[1].decode()
        if mechanism == FAST_MECHANISM:
            return message.partition(b"\0")[0].decode()
        return sasl.claimed(message)
    except (FourplaneError, UnicodeDecodeError, IndexError):
        return None

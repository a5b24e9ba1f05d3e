"""A chat client just large enough to be a probe: TLS, login by SCRAM-SHA-256, one message to oneself, goodbye.

It speaks the public port and knows nothing of the server (RFC 6120, RFC 5802): what it does not find in the bytes that come
within its time is a failure with the name of the step. The salted password is remembered, so that a probe costs the
server what a returning client costs; its message asks not to be kept (XEP-0334), so that probes fill no archive. Bounded:
BUFFER_MAX bytes, the caller's deadline.
"""

import asyncio
import base64
import hashlib
import hmac
import re
import ssl
from functools import lru_cache
from typing import cast

from fourplane.foundation import clock, network
from fourplane.foundation.errors import Unavailable

BUFFER_MAX = 1 << 20
SASL = "urn:ietf:params:xml:ns:xmpp-sasl"


class XmppProbe(asyncio.Protocol):
    """One connection of a probe."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._ended = False
        self._more: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > BUFFER_MAX:
            self.abort()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - part of the Protocol
        self._ended = True
        self._wake()

    async def talk(self, name: str, password: str, *, domain: str) -> None:
        """Log in and get a message from oneself; raises Unavailable with the step that failed."""
        await self._open(domain)
        await self._log_in(name, password)
        await self._open(domain)
        bind = "<bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>probe</resource></bind>"
        self._send(f"<iq type='set' id='bind'>{bind}</iq>")
        jid = (await self._until("bind", rb"<jid>([^<]+)</jid>")).decode()
        word = clock.token_bytes(8).hex()
        hint = "<no-store xmlns='urn:xmpp:hints'/>"
        self._send(f"<presence/><message type='chat' to='{jid}' id='{word}'><body>{word}</body>{hint}</message>")
        await self._until("own message", b"<body>(" + word.encode() + b")</body>")
        self._send("</stream:stream>")

    def abort(self) -> None:
        """Close without a word."""
        if self._transport is not None:
            self._transport.abort()

    async def _open(self, domain: str) -> None:
        self._send(
            f"<?xml version='1.0'?><stream:stream to='{domain}' version='1.0' xmlns='jabber:client' "
            "xmlns:stream='http://etherx.jabber.org/streams'>"
        )
        await self._until("stream", rb"(</stream:features>|<stream:features\s*/>)")

    async def _log_in(self, name: str, password: str) -> None:
        bare = b"n=" + name.encode() + b",r=" + base64.b64encode(clock.token_bytes(18))
        first = base64.b64encode(b"n,," + bare).decode()
        self._send(f"<auth xmlns='{SASL}' mechanism='SCRAM-SHA-256'>{first}</auth>")
        challenge = base64.b64decode(await self._until("challenge", rb"<challenge[^>]*>([^<]+)<"))
        fields = dict(part.split(b"=", 1) for part in challenge.split(b","))
        last = b"c=biws,r=" + fields[b"r"]
        signed = bare + b"," + challenge + b"," + last
        key = hmac.digest(_salted(password, fields[b"s"], int(fields[b"i"])), b"Client Key", "sha256")
        signature = hmac.digest(hashlib.sha256(key).digest(), signed, "sha256")
        proof = base64.b64encode(bytes(a ^ b for a, b in zip(key, signature, strict=True)))
        self._send(f"<response xmlns='{SASL}'>{base64.b64encode(last + b',p=' + proof).decode()}</response>")
        await self._until("login", rb"(<success[^>]*>)")

    def _send(self, text: str) -> None:
        if self._transport is None or self._transport.is_closing():
            raise Unavailable("the connection is gone", code="cut")
        self._transport.write(text.encode())

    async def _until(self, step: str, wanted: bytes) -> bytes:
        """What the group of `wanted` matched; everything up to there is taken."""
        while True:
            found = re.search(wanted, self._buffer)
            if found is not None:
                self._buffer = self._buffer[found.end() :]
                return found.group(1)
            if b"<failure" in self._buffer or b"<stream:error" in self._buffer:
                raise Unavailable(f"{step}: {self._buffer[-200:]!r}", code="refused")
            if self._ended:
                raise Unavailable(f"{step}: the connection ended", code="cut")
            self._more = asyncio.get_running_loop().create_future()
            await self._more

    def _wake(self) -> None:
        more, self._more = self._more, None
        if more is not None and not more.done():
            more.set_result(None)


async def talk(host: str, port: int, tls: ssl.SSLContext | None, *, name: str, password: str, domain: str) -> None:
    """One probe from connecting to goodbye. Raises Unavailable, OSError; the caller bounds the time."""
    _, probe = await network.connect(XmppProbe, host, port, tls=tls, server_name=domain)
    try:
        await probe.talk(name, password, domain=domain)
    finally:
        probe.abort()


@lru_cache(maxsize=8)
def _salted(password: str, salt: bytes, iterations: int) -> bytes:
    return hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(salt), iterations)

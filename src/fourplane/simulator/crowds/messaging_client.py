"""An XMPP client small enough for thousands in one process: TLS or not, SCRAM-SHA-256, one resource, stream management.

It speaks the public port through `foundation.network`, live and simulated alike. Whatever arrives goes to `inbox`;
answers to requests go to whoever waits for them.
"""

import asyncio
import base64
import hashlib
import hmac
import ssl
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import cast
from xml.etree import ElementTree as ET

from fourplane.foundation import clock, network
from fourplane.foundation.errors import FourplaneError, Unauthenticated, Unavailable
from fourplane.messaging.stanzas import escape
from fourplane.messaging.xml_stream import IQ, MESSAGE, PRESENCE, Framer, Header, Stanza, read_header

INBOX_MAX = 10_000
STANZA_MAX = 4 << 20
ANSWER_S = 30.0
SALTED_MAX = 20_000
SASL = "urn:ietf:params:xml:ns:xmpp-sasl"


class XmppClient(asyncio.Protocol):
    """One account's connection; `login` first. Not for use from several tasks at once."""

    def __init__(self, name: str, password: str, *, domain: str = "localhost", resource: str = "crowd") -> None:
        self.name = name
        self.password = password
        self.domain = domain
        self.resource = resource
        self.jid = ""
        self.inbox: deque[Stanza] = deque(maxlen=INBOX_MAX)
        self.on_stanza: Callable[[Stanza], None] | None = None  # instead of the inbox
        self.closed = False
        self.stream_error = ""
        self.handled = 0  # stanzas taken, for stream management
        self.resume_id = ""
        self._transport: asyncio.Transport | None = None
        self._framer: Framer | None = None
        self._header = b""
        self._answers: dict[str, asyncio.Future[Stanza]] = {}
        self._next: asyncio.Future[Stanza] | None = None
        self._early: deque[Stanza] = deque(maxlen=INBOX_MAX)
        self._handshake = True
        self._id = 0

    async def connect(self, host: str, port: int, *, tls: ssl.SSLContext | None = None, direct: bool = False) -> None:
        """Open the connection and, with `tls`, secure it: from the first byte (`direct`) or by STARTTLS."""
        await network.connect(lambda: self, host, port, tls=tls if direct else None, server_name=self.domain)
        await self._open()
        if tls is not None and not direct:
            self.send(b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
            await self._expect("urn:ietf:params:xml:ns:xmpp-tls proceed")
            assert self._transport is not None
            loop = asyncio.get_running_loop()
            secured = await loop.start_tls(self._transport, self, tls, server_hostname=self.domain)
            assert secured is not None
            self._transport = secured
            await self._open()

    async def login(self, *, presence: bool = True, manage: bool = False) -> None:
        """Prove the password by SCRAM-SHA-256, bind the resource, fetch the roster, be available."""
        await self.authenticate()
        content = f"<bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>{escape(self.resource)}</resource></bind>"
        self.send(f"<iq type='set' id='bind'>{content}</iq>".encode())
        answer = await self._expect(IQ)
        self.jid = ET.fromstring(answer.raw).findtext(".//{*}jid") or ""  # noqa: S314 - our own server's bytes
        if not self.jid:
            raise Unavailable(f"{self.name} could not bind: {answer.raw[:200]!r}")
        if manage:
            await self.manage()
        self._handshake = False
        await self.request("get", "<query xmlns='jabber:iq:roster'/>")
        if presence:
            self.send(b"<presence/>")

    async def authenticate(self) -> None:
        """SASL SCRAM-SHA-256 and the stream's restart; raises Unauthenticated."""
        nonce = base64.b64encode(clock.token_bytes(18))
        bare = b"n=" + self.name.replace("=", "=3D").replace(",", "=2C").encode() + b",r=" + nonce
        first = base64.b64encode(b"n,," + bare).decode()
        self.send(f"<auth xmlns='{SASL}' mechanism='SCRAM-SHA-256'>{first}</auth>".encode())
        challenge = await self._expect(f"{SASL} challenge")
        server_first = base64.b64decode(_text(challenge))
        fields = dict(part.split(b"=", 1) for part in server_first.split(b","))
        salted = _salted(self.password, fields[b"s"], int(fields[b"i"]))
        without_proof = b"c=biws,r=" + fields[b"r"]
        signed = bare + b"," + server_first + b"," + without_proof
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        signature = hmac.digest(hashlib.sha256(client_key).digest(), signed, "sha256")
        proof = base64.b64encode(bytes(a ^ b for a, b in zip(client_key, signature, strict=True)))
        last = base64.b64encode(without_proof + b",p=" + proof).decode()
        self.send(f"<response xmlns='{SASL}'>{last}</response>".encode())
        success = await self._expect(f"{SASL} success")
        server_key = hmac.digest(salted, b"Server Key", "sha256")
        expected = b"v=" + base64.b64encode(hmac.digest(server_key, signed, "sha256"))
        if base64.b64decode(_text(success)) != expected:
            raise Unauthenticated("the server does not know the password")
        await self._open()

    async def manage(self) -> None:
        """Turn on stream management with resumption."""
        self.send(b"<enable xmlns='urn:xmpp:sm:3' resume='true'/>")
        answer = await self._expect("urn:xmpp:sm:3 enabled")
        self.resume_id = answer.attributes.get("id", "")
        self.handled = 0

    async def resume(self, resume_id: str, handled: int) -> Stanza:
        """Go on with a broken session after `authenticate`; the server's answer."""
        self._handshake = True
        self.send(f"<resume xmlns='urn:xmpp:sm:3' previd='{resume_id}' h='{handled}'/>".encode())
        answer = await self._expect("")
        self._handshake = False
        self.resume_id, self.handled = resume_id, handled
        while self._early:
            self._arrived(self._early.popleft())
        return answer

    def send(self, data: bytes) -> None:
        """Write bytes; raises Unavailable when the connection is gone."""
        if self._transport is None or self._transport.is_closing():
            raise Unavailable(f"{self.name} is not connected: {self.stream_error}")
        self._transport.write(data)

    def message(self, to: str, body: str, *, kind: str = "chat") -> str:
        """Send a text; its id."""
        self._id += 1
        ident = f"{self.name}-{self.resource}-{self._id}"
        head = f"<message to='{escape(to)}' type='{kind}' id='{ident}'>"
        self.send(f"{head}<body>{escape(body)}</body></message>".encode())
        return ident

    async def request(self, kind: str, payload: str, *, to: str = "") -> Stanza:
        """Send an iq and wait for its answer (result or error); raises Unavailable."""
        self._id += 1
        ident = f"q{self._id}"
        target = f" to='{escape(to)}'" if to else ""
        future: asyncio.Future[Stanza] = asyncio.get_running_loop().create_future()
        self._answers[ident] = future
        try:
            self.send(f"<iq type='{kind}' id='{ident}'{target}>{payload}</iq>".encode())
            async with asyncio.timeout(ANSWER_S):
                return await future
        except TimeoutError:
            raise Unavailable(f"no answer within {ANSWER_S:.0f} s") from None
        finally:
            self._answers.pop(ident, None)

    async def next(self, name: str = MESSAGE, *, wait_s: float = ANSWER_S) -> Stanza:
        """The oldest stanza of this kind in the inbox, or the next one to come; raises Unavailable after `wait_s`."""
        async with asyncio.timeout(wait_s):
            while True:
                for stanza in self.inbox:
                    if stanza.name == name:
                        self.inbox.remove(stanza)
                        return stanza
                if self.closed:
                    raise Unavailable(f"{self.name} was disconnected: {self.stream_error}")
                self._next = asyncio.get_running_loop().create_future()
                await self._next

    async def close(self) -> None:
        """Say goodbye and close."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"</stream:stream>")
            self._transport.close()
        await clock.sleep(0)

    def abort(self) -> None:
        """Vanish without a word, as a phone in a tunnel."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._framer is None:
            self._header += data
            header: Header | None = read_header(self._header, STANZA_MAX)
            if header is None:
                return
            self._header = b""
            self._framer = Framer(64, 64)
            data = header.rest
        framer = self._framer
        try:
            found = framer.feed(data, STANZA_MAX) if data else []
        except FourplaneError as error:
            self.stream_error = self.stream_error or str(error)
            self.abort()
            return
        for stanza in found:
            self._arrived(stanza)
        if framer.closed and self._transport is not None:
            self._transport.close()

    def connection_lost(self, _exc: Exception | None) -> None:
        self.closed = True
        error = Unavailable(f"{self.name} was disconnected: {self.stream_error}")
        for future in [*self._answers.values(), self._next]:
            if future is not None and not future.done():
                future.set_exception(error)
                future.exception()

    def _arrived(self, stanza: Stanza) -> None:
        name = stanza.name
        if name.endswith("streams error"):
            self.stream_error = stanza.children[0].rpartition(" ")[2] if stanza.children else "unknown"
        if self._handshake:
            self._early.append(stanza)
            self._tell(stanza)
            return
        if name in {MESSAGE, PRESENCE, IQ}:
            self.handled += 1
        if name == "urn:xmpp:sm:3 r":
            self.send(b"<a xmlns='urn:xmpp:sm:3' h='%d'/>" % self.handled)
            return
        if name == IQ and stanza.attributes.get("type") in {"result", "error"}:
            future = self._answers.pop(stanza.attributes.get("id", ""), None)
            if future is not None and not future.done():
                future.set_result(stanza)
            return
        if self.on_stanza is not None:
            self.on_stanza(stanza)
        else:
            self.inbox.append(stanza)
            self._tell(stanza)

    def _tell(self, stanza: Stanza) -> None:
        if self._next is not None and not self._next.done():
            self._next.set_result(stanza)

    async def _open(self) -> None:
        self._framer = None
        self._header = b""
        self.send(
            b"<?xml version='1.0'?><stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'"
            + f" to='{self.domain}' version='1.0'>".encode()
        )
        await self._expect("http://etherx.jabber.org/streams features")

    async def _expect(self, name: str) -> Stanza:
        async with asyncio.timeout(ANSWER_S):
            while not self._early:
                if self.closed:
                    raise Unavailable(f"{self.name} was disconnected: {self.stream_error}")
                self._next = asyncio.get_running_loop().create_future()
                await self._next
        stanza = self._early.popleft()
        if name and stanza.name != name:
            condition = stanza.children[0].rpartition(" ")[2] if stanza.children else stanza.name
            if stanza.name == f"{SASL} failure":
                raise Unauthenticated(f"the server refused {self.name}: {condition}", code=condition)
            raise Unavailable(f"expected {name}, got {stanza.raw[:200]!r}", code=condition)
        return stanza


@lru_cache(maxsize=SALTED_MAX)
def _salted(password: str, salt: bytes, iterations: int) -> bytes:
    """The salted password, which RFC 5802 lets a client keep: whoever logs in again does not pay for it again."""
    return hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(salt), iterations)


def _text(stanza: Stanza) -> str:
    return ET.fromstring(stanza.raw).text or ""  # noqa: S314 - our own server's bytes


def body_of(stanza: Stanza) -> str:
    """The text of a message, empty when it has none."""
    root = ET.fromstring(stanza.raw)  # noqa: S314 - expat accepted these bytes
    return root.findtext("body") or root.findtext("{jabber:client}body") or ""

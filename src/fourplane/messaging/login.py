"""From a connection to a session: TLS, SASL, resource binding (RFC 6120 sections 5 to 7), stream management's resumption.

Everything that may wait (account lookups, a password hash, loading the user) runs as one coroutine per step while the
stream takes no further stanza. A wrong name and a wrong password look the same and cost the same.
"""

import base64
import re
from functools import lru_cache
from typing import Literal
from xml.etree import ElementTree as ET

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError, Rejected, Unauthenticated
from fourplane.messaging import addresses, stanzas
from fourplane.messaging import authentication as sasl
from fourplane.messaging.addresses import Address
from fourplane.messaging.authentication import SaslError, Scram
from fourplane.messaging.routing import Router
from fourplane.messaging.stream_compression import FEATURE
from fourplane.messaging.stream_management import NAMESPACE as SM
from fourplane.messaging.stream_management import StreamManagement
from fourplane.messaging.user_session import UserSession
from fourplane.messaging.xml_stream import IQ, Stanza, StreamError
from fourplane.service.passwords import ScramKeys

SASL_NS = "urn:ietf:params:xml:ns:xmpp-sasl"
TLS_NS = "urn:ietf:params:xml:ns:xmpp-tls"
BIND_NS = "urn:ietf:params:xml:ns:xmpp-bind"
SASL2_NS = "urn:xmpp:sasl:2"
BIND2_NS = "urn:xmpp:bind:0"
FAST_NS = "urn:xmpp:fast:0"
FAST_MECHANISM = "HT-SHA-256-NONE"
FEATURES = "".join(f"<feature var='{name}'/>" for name in ("urn:xmpp:carbons:2", "urn:xmpp:csi:0", SM))
INLINE = (
    f"<bind xmlns='{BIND2_NS}'><inline>{FEATURES}</inline></bind><sm xmlns='{SM}'/>"
    f"<fast xmlns='{FAST_NS}'><mechanism>{FAST_MECHANISM}</mechanism></fast>"
)
NONCE_BYTES = 18
_RESOURCE = re.compile(rb"-bind['\"] ?><resource>([A-Za-z0-9._\-]{1,200})</resource></bind></iq>$")
RESOURCE_BYTES = 8


class Offer:
    """What one connection may use to log in: decided by its security."""

    __slots__ = ("binding", "mechanisms", "secure", "starttls")

    def __init__(self, *, secure: bool, starttls: bool, tls_required: bool, binding: bytes) -> None:
        self.secure = secure
        self.starttls = starttls and not secure
        self.binding = binding if secure else b""
        self.mechanisms: list[str] = []
        if secure or not tls_required:
            if self.binding:
                self.mechanisms += ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-1-PLUS"]
            self.mechanisms += ["SCRAM-SHA-256", "SCRAM-SHA-1"]
            if secure:
                self.mechanisms.append("PLAIN")

    def features(self, *, tls_required: bool, registration: bool = False) -> bytes:
        """`<stream:features/>` before authentication."""
        parts = ["<stream:features>"]
        if self.starttls:
            required = "<required/>" if tls_required else ""
            parts.append(f"<starttls xmlns='{TLS_NS}'>{required}</starttls>")
        if self.mechanisms:
            listed = "".join(f"<mechanism>{name}</mechanism>" for name in self.mechanisms)
            parts.append(f"<mechanisms xmlns='{SASL_NS}'>{listed}</mechanisms>")
            parts.append(f"<authentication xmlns='{SASL2_NS}'>{listed}<inline>{INLINE}</inline></authentication>")
            if self.binding:
                binding = "<channel-binding type='tls-server-end-point'/>"
                parts.append(f"<sasl-channel-binding xmlns='urn:xmpp:sasl-cb:0'>{binding}</sasl-channel-binding>")
            if registration:
                parts.append("<register xmlns='http://jabber.org/features/iq-register'/>")
        parts.append("</stream:features>")
        return "".join(parts).encode()


@lru_cache(maxsize=16)
def features_after_login(
    stanza_max: int, caps: str, *, bound: bool = False, managed: bool = False, zlib: bool = False
) -> bytes:
    """`<stream:features/>` of an authenticated stream; what was done inline already is not offered again (XEP-0386)."""
    session = "<session xmlns='urn:ietf:params:xml:ns:xmpp-session'><optional/></session>"
    parts = [
        FEATURE if zlib else "",
        "" if bound else f"<bind xmlns='{BIND_NS}'/>{session}",
        "" if managed else f"<sm xmlns='{SM}'/>",
        "<ver xmlns='urn:xmpp:features:rosterver'/><sub xmlns='urn:xmpp:features:pre-approval'/><csi xmlns='urn:xmpp:csi:0'/>",
        f"<limits xmlns='urn:xmpp:stream-limits:0'><max-bytes>{stanza_max}</max-bytes></limits>{caps}",
    ]
    return f"<stream:features>{''.join(parts)}</stream:features>".encode()


class Step(msgspec.Struct, frozen=True):
    """What one step of an exchange came to; the two profiles (RFC 6120 and XEP-0388) write it differently."""

    kind: Literal["challenge", "success", "failure"]
    data: bytes = b""  # of a challenge or a success
    name: str = ""  # the proved account
    condition: str = ""
    text: str = ""

    def written(self) -> bytes:
        """As RFC 6120 section 6 writes it."""
        if self.kind == "failure":
            text = f"<text xml:lang='en'>{stanzas.escape(self.text)}</text>" if self.text else ""
            return f"<failure xmlns='{SASL_NS}'><{self.condition}/>{text}</failure>".encode()
        if not self.data:
            return f"<{self.kind} xmlns='{SASL_NS}'/>".encode()
        return f"<{self.kind} xmlns='{SASL_NS}'>{base64.b64encode(self.data).decode()}</{self.kind}>".encode()


class Login:
    """The SASL exchange of one connection."""

    __slots__ = ("_failures", "_name", "_offer", "_router", "_scram")

    def __init__(self, router: Router, offer: Offer) -> None:
        self._router = router
        self._offer = offer
        self._scram: Scram | None = None
        self._name = ""
        self._failures = 0

    @property
    def offer(self) -> Offer:
        """What was offered on this connection."""
        return self._offer

    def try_step(self, kind: str, mechanism: str, text: str) -> Step | None:
        """Handle `auth` (with its mechanism), `response` or `abort` and its base64 text; None when `begin` must fetch something.

        Raises StreamError after too many failures.
        """
        try:
            if kind == "auth":
                return self._try_begin(mechanism, text)
            if kind == "response" and self._scram is not None:
                return self._finish(text)
            return self.failed(SaslError("aborted" if kind == "abort" else "malformed-request"))
        except FourplaneError as error:
            return self._refused(error)

    async def begin(self, mechanism: str, text: str) -> Step:
        """The first message, after `try_step` found that it needs the store or a password hash."""
        accounts, router = self._router.accounts, self._router
        try:
            message = sasl.decode(text)
            if mechanism == "PLAIN":
                name, password = sasl.parse_plain(message)
                account = await accounts.verify_password(name, password)
                return Step("success", name=account.name)
            hash_name = mechanism.removesuffix("-PLUS")
            keys = await router.credentials.keys(self._name, hash_name)
            return self._challenge(keys or accounts.scram_decoy(self._name, hash_name))
        except FourplaneError as error:
            return self._refused(error)

    def _refused(self, error: FourplaneError) -> Step:
        match error:
            case StreamError():
                raise error
            case SaslError():
                return self.failed(error)
            case Unauthenticated() | Rejected():
                return self.failed(SaslError("not-authorized"))
            case _:
                return self.failed(SaslError("temporary-auth-failure", error.public))

    def failed(self, error: SaslError) -> Step:
        """Count a failed exchange; raises StreamError when there were too many."""
        self._failures += 1
        if self._failures >= self._router.settings.login_attempts_max:
            raise StreamError("policy-violation", "too many failed logins")
        return Step("failure", condition=error.condition, text=error.text)

    def _try_begin(self, mechanism: str, text: str) -> Step | None:
        self._scram = None
        if mechanism not in self._offer.mechanisms:
            weak = mechanism == "PLAIN"
            raise SaslError("encryption-required" if weak and not self._offer.secure else "invalid-mechanism")
        if mechanism == "PLAIN":
            return None
        scram = self._scram = Scram(mechanism, self._offer.binding, plus_offered=bool(self._offer.binding))
        if not text.strip():
            return Step("challenge")
        self._name = scram.first(sasl.decode(text))
        self._router.accounts.admit_login(self._name)
        keys = self._router.credentials.remembered(self._name, mechanism.removesuffix("-PLUS"))
        return self._challenge(keys) if keys is not None else None

    def _challenge(self, keys: ScramKeys) -> Step:
        assert self._scram is not None
        return Step("challenge", self._scram.challenge(keys, clock.token_bytes(NONCE_BYTES)))

    def _finish(self, text: str) -> Step:
        assert self._scram is not None
        scram, self._scram = self._scram, None
        try:
            last = scram.finish(sasl.decode(text))
        except SaslError:
            self._router.accounts.note_login(self._name, succeeded=False)
            raise
        self._router.accounts.note_login(self._name, succeeded=True)
        return Step("success", last, addresses.prepare_local(self._name))


def requested_resource(stanza: Stanza) -> str:
    """The resource a bind request asks for, or a random one; raises Rejected."""
    if stanza.name != IQ or stanza.attributes.get("type") != "set" or stanza.children != [f"{BIND_NS} bind"]:
        raise Rejected("a resource must be bound first", code="not_authorized")
    plain = _RESOURCE.search(stanza.raw)
    if plain is not None:
        return plain.group(1).decode()
    element: ET.Element = stanzas.payload(stanza)[1]
    asked = element.findtext(f"{{{BIND_NS}}}resource") or ""
    return addresses.prepare_resource(asked) if asked else clock.token_bytes(RESOURCE_BYTES).hex()


def bound(stanza: Stanza, address: Address) -> bytes:
    """The answer to a bind request."""
    content = f"<bind xmlns='{BIND_NS}'><jid>{stanzas.escape(address.full)}</jid></bind>"
    return stanzas.result(Stanza(IQ, {"id": stanza.attributes.get("id", "")}, [], b""), content.encode())


def enable_management(router: Router, session: UserSession, stanza: Stanza) -> bytes:
    """Answer `<enable/>` (XEP-0198 section 3)."""
    if session.management is not None:
        return _sm_failed("unexpected-request")
    resume = stanza.attributes.get("resume") in {"true", "1"}
    resume_id = clock.token_bytes(16).hex() if resume else ""
    session.management = StreamManagement(resume_id)
    if not resume:
        return f"<enabled xmlns='{SM}'/>".encode()
    router.resume_ids[resume_id] = session
    return f"<enabled xmlns='{SM}' resume='true' id='{resume_id}' max='{int(router.settings.resume_s)}'/>".encode()


def resume(router: Router, name: str, stanza: Stanza) -> tuple[UserSession | None, bytes]:
    """Answer `<resume/>` (section 5): the session that goes on, or None and why not."""
    h = stanza.attributes.get("h", "")
    resume_id = stanza.attributes.get("previd", "")
    known = router.resume_ids.get(resume_id)
    if known is None or known.address.local != name or not h.isdecimal() or len(h) > 10:
        return None, _sm_failed("item-not-found")
    session = router.resumed(resume_id)
    assert session is not None
    management = session.management
    assert management is not None
    session.taken(management.acknowledged(int(h)))
    answer = f"<resumed xmlns='{SM}' previd='{resume_id}' h='{session.durable_h()}'/>"
    return session, answer.encode()


def refused_resumption() -> bytes:
    """The answer to `<resume/>` in a stream that has its session."""
    return _sm_failed("unexpected-request")


def _sm_failed(condition: str) -> bytes:
    return f"<failed xmlns='{SM}'><{condition} xmlns='{stanzas.STANZAS_NS}'/></failed>".encode()


def sasl_text(stanza: Stanza) -> str:
    """The text of a SASL element."""
    raw = stanza.raw
    if b"&" in raw or b"<!" in raw or stanza.children:
        return stanzas.tree(stanza).text or ""
    return stanzas.inner(raw).decode()

"""Login, resource and stream management in one round trip (SASL2 XEP-0388, Bind 2 XEP-0386, FAST XEP-0484).

`<authenticate/>` carries the first message of a mechanism together with what shall happen on success: resume a session, or
bind a resource and turn features on. The answer holds all of it, and no stream is opened anew. A client that asks for a
FAST token proves itself with an HMAC of that token the next time, which is one message and no password hash.

A token belongs to one account and one client (its `user-agent` id), lives `fast_s` seconds and is replaced when more than half of
that is over. Beside it lies a digest of the account's stored key: a changed password or a deleted account ends every
token. A token proves nothing about the server's certificate, so it is offered only where a password would be taken too.
"""

import base64
import hashlib
import hmac
import re
import struct
from functools import lru_cache
from xml.etree import ElementTree as ET

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError
from fourplane.messaging import addresses, stanzas
from fourplane.messaging import authentication as sasl
from fourplane.messaging.authentication import SaslError
from fourplane.messaging.login import BIND2_NS, FAST_MECHANISM, FAST_NS, SASL2_NS, SASL_NS, Login, Step
from fourplane.messaging.routing import Router
from fourplane.messaging.stream_management import NAMESPACE as SM
from fourplane.messaging.xml_stream import Stanza
from fourplane.service.passwords import ScramKeys
from fourplane.state.contracts import Delete, Put

SCHEMA = 1
KEYS = "SCRAM-SHA-256"  # whose digest a token is bound to
REMEMBERED = 4_096  # hashes of what comes again and again
TOKEN_BYTES = 24
TAG_MAX = 64
AGENT_MAX = 200
WISHES_MAX = 1_024
WISH_BYTES_MAX = 2_000
_RESPONSE = re.compile(rb"<initial-response>([A-Za-z0-9+/=]+)</initial-response>")
_HEAD = struct.Struct(">BQ32s")  # schema, when it ends, digest of the account's key


class SaslTag:
    """The elements of `<authenticate/>` as a tree names them."""

    INITIAL = f"{{{SASL2_NS}}}initial-response"
    AGENT = f"{{{SASL2_NS}}}user-agent"
    TOKEN = f"{{{FAST_NS}}}request-token"
    FAST = f"{{{FAST_NS}}}fast"
    RESUME = f"{{{SM}}}resume"
    BIND = f"{{{BIND2_NS}}}bind"
    TAG = f"{{{BIND2_NS}}}tag"
    CARBONS = "{urn:xmpp:carbons:2}enable"
    INACTIVE = "{urn:xmpp:csi:0}inactive"
    MANAGE = f"{{{SM}}}enable"


class Wish(msgspec.Struct):
    """What a client wants besides being authenticated."""

    mechanism: str
    text: str = ""
    agent: str = ""  # the client's own id, for its token
    token: bool = False
    fast: bool = False
    forget: bool = False
    resume: Stanza | None = None
    bind: bool = False
    tag: str = ""
    carbons: bool = False
    inactive: bool = False
    manage: Stanza | None = None


def read_wish(stanza: Stanza) -> Wish:
    """Take `<authenticate/>` apart; raises Rejected. A client that comes back says the same but for its proof."""
    raw = stanza.raw
    proof = _RESPONSE.search(raw)
    if proof is None or len(raw) > WISH_BYTES_MAX:
        return _read_wish(raw)
    begin, end = proof.span(1)
    return msgspec.structs.replace(_remembered_wish(raw[:begin] + raw[end:]), text=proof.group(1).decode())


@lru_cache(maxsize=WISHES_MAX)
def _remembered_wish(raw: bytes) -> Wish:
    return _read_wish(raw)


def _read_wish(raw: bytes) -> Wish:
    root = stanzas.root(Stanza("", {}, [], raw))
    wish = Wish(mechanism=root.get("mechanism", ""))
    for child in root:
        match child.tag:
            case SaslTag.INITIAL:
                wish.text = child.text or ""
            case SaslTag.AGENT:
                wish.agent = child.get("id", "")[:AGENT_MAX]
            case SaslTag.TOKEN:
                wish.token = child.get("mechanism") == FAST_MECHANISM
            case SaslTag.FAST:
                wish.fast = True
                wish.forget = child.get("invalidate") in {"true", "1"}
            case SaslTag.RESUME:
                wish.resume = _element(child)
            case SaslTag.BIND:
                wish.bind = True
                _read_bind(wish, child)
            case _:
                pass  # another extension's: ignored, as XEP-0388 wants
    return wish


def _read_bind(wish: Wish, bind: ET.Element) -> None:
    for child in bind:
        match child.tag:
            case SaslTag.TAG:
                wish.tag = (child.text or "")[:TAG_MAX]
            case SaslTag.CARBONS:
                wish.carbons = True
            case SaslTag.INACTIVE:
                wish.inactive = True
            case SaslTag.MANAGE:
                wish.manage = _element(child)
            case _:
                pass


def resource_for(wish: Wish) -> str:
    """The resource of Bind 2: what the client is called, and something of its own that stays the same for its id."""
    own = _key(wish.agent)[2:8].hex() if wish.agent else clock.token_bytes(6).hex()
    return addresses.prepare_resource(f"{wish.tag}~{own}" if wish.tag else own)


def written(step: Step) -> bytes:
    """A challenge or a failure as XEP-0388 writes it."""
    if step.kind == "failure":
        text = f"<text>{stanzas.escape(step.text)}</text>" if step.text else ""
        return f"<failure xmlns='{SASL2_NS}'><{step.condition} xmlns='{SASL_NS}'/>{text}</failure>".encode()
    return f"<challenge xmlns='{SASL2_NS}'>{base64.b64encode(step.data).decode()}</challenge>".encode()


def success(step: Step, jid: str, inner: bytes) -> bytes:
    """The whole success with what was done inline."""
    data = f"<additional-data>{base64.b64encode(step.data).decode()}</additional-data>" if step.data else ""
    who = f"<authorization-identifier>{stanzas.escape(jid)}</authorization-identifier>"
    return f"<success xmlns='{SASL2_NS}'>{data}{who}".encode() + inner + b"</success>"


def try_token(router: Router, exchange: Login, wish: Wish) -> Step | None:
    """Check HT-SHA-256-NONE (`name NUL HMAC(token, "Initiator")`) when the token is remembered, None when it must be read.

    Raises StreamError after too many failures.
    """
    try:
        local, proof = _claim(wish)
        remembered = router.credentials.remembered(local, KEYS)
        value = router.credentials.remembered_token(local, _key(wish.agent))
        if remembered is None or value is None:
            return None
        router.accounts.admit_login(local)
        return _checked(router, exchange, local, proof, _valid(value, _digest_of(remembered)))
    except SaslError as error:
        return exchange.failed(error)
    except (FourplaneError, UnicodeDecodeError):
        return exchange.failed(SaslError("not-authorized"))


async def by_token(router: Router, exchange: Login, wish: Wish) -> Step:
    """The same with the store's token."""
    try:
        local, proof = _claim(wish)
        router.accounts.admit_login(local)
        return _checked(router, exchange, local, proof, await _stored(router, local, wish.agent))
    except SaslError as error:
        return exchange.failed(error)
    except (FourplaneError, UnicodeDecodeError):
        return exchange.failed(SaslError("not-authorized"))


def _claim(wish: Wish) -> tuple[str, bytes]:
    name, _, proof = sasl.decode(wish.text).partition(b"\0")
    return addresses.prepare_local(name.decode()), proof


def _checked(router: Router, exchange: Login, local: str, proof: bytes, found: tuple[int, bytes] | None) -> Step:
    initiator, responder = _proofs(found[1] if found is not None else b"\0")
    right = hmac.compare_digest(initiator, proof)
    router.accounts.note_login(local, succeeded=right and found is not None)
    if found is None or not right:
        return exchange.failed(SaslError("not-authorized"))
    return Step("success", responder, local)


@lru_cache(maxsize=REMEMBERED)
def _proofs(token: bytes) -> tuple[bytes, bytes]:
    """What both sides say to prove that they know the token."""
    return hmac.digest(token, b"Initiator", "sha256"), hmac.digest(token, b"Responder", "sha256")


def try_token_for(router: Router, name: str, wish: Wish) -> bytes | None:
    """Nothing to hand out, when that can be said without reading or writing; None otherwise."""
    if not wish.agent or not (wish.token or wish.forget or wish.fast):
        return b""
    if wish.token or wish.forget:
        return None
    value = router.credentials.remembered_token(name, _key(wish.agent))
    if value is None:
        return None
    ends_us = _HEAD.unpack_from(value)[1]
    return b"" if ends_us - clock.now_us() > int(router.settings.fast_s * 1e6) // 2 else None


async def token_for(router: Router, name: str, wish: Wish) -> bytes:
    """The `<token/>` to hand out: a new one when asked for or when the present one is half over, else nothing."""
    bare, key = f"{name}@{router.settings.domains[0]}", _key(wish.agent)
    if not wish.agent:
        return b""
    if wish.forget:
        router.credentials.forget_token(name, key)
        await router.store.written(bare, [Delete(key)])
        router.credentials.forget_token(name, key)
        return b""
    lifetime_us = int(router.settings.fast_s * 1e6)
    if not wish.token:
        found = await _stored(router, name, wish.agent) if wish.fast else None
        if found is None or found[0] - clock.now_us() > lifetime_us // 2:
            return b""
    digest = await _key_digest(router, name)
    if digest is None:
        return b""
    token = base64.urlsafe_b64encode(clock.token_bytes(TOKEN_BYTES))
    ends_us = clock.now_us() + lifetime_us
    value = _HEAD.pack(SCHEMA, ends_us, digest) + token
    await router.store.written(bare, [Put(key, value, ttl_s=router.settings.fast_s)])
    router.credentials.remember_token(name, key, value)
    return f"<token xmlns='{FAST_NS}' expiry='{stanzas.timestamp(ends_us)}' token='{token.decode()}'/>".encode()


async def _stored(router: Router, name: str, agent: str) -> tuple[int, bytes] | None:
    """When the token of this client ends, and the token; None when there is none any more."""
    if not agent:
        return None
    value = await router.store.value(f"{name}@{router.settings.domains[0]}", _key(agent))
    if value is None:
        return None
    router.credentials.remember_token(name, _key(agent), value)
    return _valid(value, await _key_digest(router, name))


def _valid(value: bytes, digest: bytes | None) -> tuple[int, bytes] | None:
    schema, ends_us, written_for = _HEAD.unpack_from(value)
    assert schema == SCHEMA, f"token schema {schema}"
    return None if ends_us <= clock.now_us() or digest != written_for else (ends_us, value[_HEAD.size :])


async def _key_digest(router: Router, name: str) -> bytes | None:
    keys = await router.credentials.keys(name, KEYS)
    return _digest_of(keys) if keys is not None else None


def _digest_of(keys: ScramKeys) -> bytes:
    return _digest(keys.stored_key)


@lru_cache(maxsize=REMEMBERED)
def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


@lru_cache(maxsize=REMEMBERED)
def _key(agent: str) -> bytes:
    return b"f/" + hashlib.sha256(agent.encode()).digest()


def _element(element: ET.Element) -> Stanza:
    namespace, _, name = element.tag[1:].partition("}")
    return Stanza(f"{namespace} {name}", dict(element.attrib), [], b"")

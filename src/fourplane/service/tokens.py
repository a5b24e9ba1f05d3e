"""Short signed tokens: who may fetch this media file, open this WebSocket, speak as this worker.

A token is `key id . payload . mac`, base64url; the payload holds the audience, the expiry and a few claims; the mac is
HMAC-SHA256 over both. Nothing is stored, so a token cannot be taken back: keep `ttl_s` short and use sessions for
everything else. A token of one audience is worth nothing for another. Cost: sign 5 us, verify 6 us.
"""

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import Rejected, Unauthenticated
from fourplane.service.key_ring import Key, KeyRing

TOKEN_MAX = 4_096
TTL_S_MAX = 86_400.0 * 7


class _Payload(msgspec.Struct, array_like=True):
    audience: str
    expires_us: int
    claims: dict[str, str]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Payload)


class Signer:
    """Signs with the ring's current key, verifies with any key of the ring."""

    __slots__ = ("_ring",)

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring

    def sign(self, audience: str, claims: dict[str, str], ttl_s: float) -> str:
        """A token for `audience` that lives `ttl_s` seconds; raises Rejected past a week or 4 KiB."""
        if not 0 < ttl_s <= TTL_S_MAX:
            raise Rejected(f"a token lives up to {TTL_S_MAX:.0f} s, not {ttl_s}", code="bad_ttl")
        expires_us = clock.now_us() + int(ttl_s * 1e6)
        key = self._ring.current
        body = f"{key.id}.{_text(_encoder.encode(_Payload(audience, expires_us, claims)))}"
        token = f"{body}.{_text(_mac(key, body))}"
        if len(token) > TOKEN_MAX:
            raise Rejected(f"claims make a token of {len(token)} letters, more than {TOKEN_MAX}", code="token_too_long")
        return token

    def verify(self, audience: str, token: str) -> dict[str, str]:
        """The claims of a valid token of this audience; raises Unauthenticated (`bad_token`, `token_expired`)."""
        if len(token) > TOKEN_MAX or not token.isascii():
            raise Unauthenticated("not a token", code="bad_token")
        body, _, mac = token.rpartition(".")
        key_id, _, payload = body.partition(".")
        key = self._ring.find(key_id) if payload else None
        if key is None or not hmac.compare_digest(_text(_mac(key, body)), mac):
            raise Unauthenticated("the token was not signed here", code="bad_token")
        content = _decoder.decode(_bytes(payload))
        if content.audience != audience:
            raise Unauthenticated("the token is meant for something else", code="bad_token")
        if content.expires_us <= clock.now_us():
            raise Unauthenticated("the token has lapsed", code="token_expired")
        return content.claims


def _mac(key: Key, body: str) -> bytes:
    return hmac.digest(key.secret, body.encode("ascii"), "sha256")


def _text(content: bytes) -> str:
    return urlsafe_b64encode(content).rstrip(b"=").decode("ascii")


def _bytes(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))

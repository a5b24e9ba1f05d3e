"""SASL (RFC 6120 section 6): SCRAM (RFC 5802, RFC 7677) with channel binding, and PLAIN (RFC 4616) under TLS.

Pure: the stored keys come in as arguments, bytes go out. SCRAM proves the password both ways without showing it; the
server holds StoredKey and ServerKey, from which nobody can log in. With a -PLUS mechanism the proof also covers the
certificate the client saw (tls-server-end-point, RFC 5929), so a man in the middle cannot pass it on; `y` from a client
to which -PLUS was offered means that somebody removed the offer, and is refused.
"""

import base64
import binascii
import hashlib
import hmac
import re

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from fourplane.foundation.errors import Rejected
from fourplane.service.passwords import ScramKeys

HASHES = {"SCRAM-SHA-256": hashlib.sha256, "SCRAM-SHA-1": hashlib.sha1}
MESSAGE_MAX = 4_096


class SaslError(Rejected):
    """The exchange fails with one of RFC 6120's conditions."""

    code = "sasl"

    def __init__(self, condition: str, text: str = "") -> None:
        super().__init__(text or condition)
        self.condition = condition
        self.text = text


class FirstMessage(msgspec.Struct, frozen=True):
    """The client's first SCRAM message, taken apart."""

    header: bytes  # gs2 header, covered by the proof
    name: str
    nonce: bytes
    bare: bytes


class Scram:
    """One exchange: `first`, then `challenge` with the stored keys, then `finish`."""

    __slots__ = ("_auth_message", "_binding", "_first", "_hash", "_keys", "_nonce")

    def __init__(self, mechanism: str, binding: bytes | None, *, plus_offered: bool) -> None:
        """`binding`: the certificate's hash when the mechanism is a -PLUS form."""
        base = mechanism.removesuffix("-PLUS")
        self._hash = HASHES[base]
        plus = mechanism.endswith("-PLUS")
        self._binding = (plus, binding or b"", plus_offered)
        self._first: FirstMessage | None = None
        self._keys: ScramKeys | None = None
        self._nonce = b""
        self._auth_message = b""

    def first(self, message: bytes) -> str:
        """Read the client's first message; the user name it asks for."""
        self._first = parse_first(message, self._binding[0], plus_offered=self._binding[2])
        return self._first.name

    def challenge(self, keys: ScramKeys, server_nonce: bytes) -> bytes:
        """The server's first message."""
        assert self._first is not None
        self._keys = keys
        self._nonce = self._first.nonce + base64.b64encode(server_nonce)
        salt = base64.b64encode(keys.salt)
        message = b"r=" + self._nonce + b",s=" + salt + b",i=" + str(keys.iterations).encode()
        self._auth_message = self._first.bare + b"," + message
        return message

    def finish(self, message: bytes) -> bytes:
        """The server's last message when the proof is right; raises SaslError `not-authorized` otherwise."""
        assert self._first is not None
        assert self._keys is not None
        without_proof, _, proof_text = message.rpartition(b",p=")
        fields = _fields(without_proof)
        proof = _decoded(proof_text)
        if fields.get(b"r") != self._nonce:
            raise SaslError("not-authorized")
        expected = self._first.header + (self._binding[1] if self._binding[0] else b"")
        if _decoded(fields.get(b"c", b"")) != expected:
            raise SaslError("not-authorized", "channel binding")
        auth_message = self._auth_message + b"," + without_proof
        signature = hmac.digest(self._keys.stored_key, auth_message, self._hash)
        if len(proof) != len(signature):
            raise SaslError("not-authorized")
        client_key = bytes(a ^ b for a, b in zip(proof, signature, strict=True))
        if not hmac.compare_digest(self._hash(client_key).digest(), self._keys.stored_key):
            raise SaslError("not-authorized")
        return b"v=" + base64.b64encode(hmac.digest(self._keys.server_key, auth_message, self._hash))


def parse_first(message: bytes, plus: bool, *, plus_offered: bool) -> FirstMessage:  # noqa: FBT001 - paired with the next
    """Take `gs2-header client-first-message-bare` apart; raises SaslError."""
    if len(message) > MESSAGE_MAX:
        raise SaslError("malformed-request")
    parts = message.split(b",", 2)
    if len(parts) != 3:
        raise SaslError("malformed-request")
    flag, authzid, bare = parts
    if plus and flag != b"p=tls-server-end-point":
        raise SaslError("malformed-request", "this mechanism binds to tls-server-end-point")
    if not plus and flag not in {b"n", b"y"}:
        raise SaslError("malformed-request")
    if flag == b"y" and plus_offered:
        raise SaslError("not-authorized", "the offer of channel binding was removed on the way")
    fields = _fields(bare)
    if b"m" in fields or b"n" not in fields or not fields.get(b"r"):
        raise SaslError("malformed-request")
    name = _name(fields[b"n"])
    if authzid and authzid[2:].partition(b"@")[0] not in {fields[b"n"], b""}:
        raise SaslError("invalid-authzid")
    return FirstMessage(flag + b"," + authzid + b",", name, fields[b"r"], bare)


def claimed(message: bytes) -> str:
    """Whom a first SCRAM message names, whatever else it says; raises SaslError."""
    return _name(_fields(message.split(b",", 2)[-1]).get(b"n", b""))


def parse_plain(message: bytes) -> tuple[str, str]:
    """User name and password of a PLAIN message; raises SaslError."""
    parts = message.split(b"\0")
    if len(parts) != 3 or len(message) > MESSAGE_MAX or not parts[1] or not parts[2]:
        raise SaslError("malformed-request")
    try:
        authzid, name, password = (part.decode() for part in parts)
    except UnicodeDecodeError:
        raise SaslError("malformed-request") from None
    if authzid and authzid.partition("@")[0] != name:
        raise SaslError("invalid-authzid")
    return name, password


def decode(text: str) -> bytes:
    """The bytes of a SASL element's text: base64, or `=` for empty; raises SaslError `incorrect-encoding`."""
    stripped = text.strip()
    if stripped in {"", "="}:
        return b""
    try:
        return base64.b64decode(stripped, validate=True)
    except (binascii.Error, ValueError):
        raise SaslError("incorrect-encoding") from None


def certificate_binding(certificate_pem: bytes) -> bytes:
    """tls-server-end-point (RFC 5929 section 4.1): the certificate's digest by its signature's hash, at least SHA-256."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    used = certificate.signature_hash_algorithm
    weak = used is None or used.digest_size < hashes.SHA256.digest_size
    return certificate.fingerprint(hashes.SHA256() if weak or used is None else used)


def _fields(message: bytes) -> dict[bytes, bytes]:
    fields: dict[bytes, bytes] = {}
    for part in message.split(b","):
        key, equals, value = part.partition(b"=")
        if not equals or key in fields:
            raise SaslError("malformed-request")
        fields[key] = value
    return fields


def _name(raw: bytes) -> str:
    if not re.fullmatch(rb"(?:[^=,]|=2C|=3D)+", raw):
        raise SaslError("malformed-request")
    try:
        return raw.replace(b"=2C", b",").replace(b"=3D", b"=").decode()
    except UnicodeDecodeError:
        raise SaslError("malformed-request") from None


def _decoded(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise SaslError("malformed-request") from None

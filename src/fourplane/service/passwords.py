"""What is stored of a password: a scrypt hash for the web and SCRAM keys for XMPP, both from one call.

scrypt (RFC 7914) costs memory, so that guessing is dear; SCRAM (RFC 5802, 7677) lets a client prove that it knows the
password without sending it, and the server holds only StoredKey and ServerKey. Everything here is pure: the salt is an
argument. Cost with the defaults: 55 ms and 16 MiB for scrypt, 3 ms and 2 ms for the two SCRAM mechanisms; never on
the loop.
"""

import hashlib
import hmac
from typing import Literal

import msgspec

from fourplane.foundation.errors import Rejected

Mechanism = Literal["SCRAM-SHA-256", "SCRAM-SHA-1"]
MECHANISMS: dict[str, str] = {"SCRAM-SHA-256": "sha256", "SCRAM-SHA-1": "sha1"}
SALT_BYTES = 16
HASH_BYTES = 32


class ScryptCost(msgspec.Struct, frozen=True):
    """How dear one guess is: memory is 128 * n * r bytes."""

    n: int = 1 << 14
    r: int = 8
    p: int = 1

    def text(self) -> str:
        """The cost as it is stored beside a hash, so that it can be raised later."""
        return f"scrypt:{self.n}:{self.r}:{self.p}"

    @staticmethod
    def parse(text: str) -> "ScryptCost":
        """The cost of a stored hash."""
        kind, n, r, p = text.split(":")
        assert kind == "scrypt", f"unknown password hash {kind}"
        return ScryptCost(int(n), int(r), int(p))


class WebHash(msgspec.Struct, frozen=True):
    """A scrypt hash with everything needed to check it."""

    cost: ScryptCost
    salt: bytes
    digest: bytes

    def matches(self, password: bytes) -> bool:
        """Whether `password` (normalised) made this hash; as slow as making it."""
        return hmac.compare_digest(_scrypt(password, self.salt, self.cost), self.digest)


class ScramKeys(msgspec.Struct, frozen=True):
    """What a SCRAM server needs of one account and mechanism; useless for logging in elsewhere."""

    salt: bytes
    iterations: int
    stored_key: bytes
    server_key: bytes


class PasswordKeys(msgspec.Struct, frozen=True):
    """Everything stored of one password. May be given to many test accounts that share it."""

    web: WebHash
    scram: dict[str, ScramKeys]


def derive_web(password: bytes, salt: bytes, cost: ScryptCost) -> WebHash:
    """The web hash of a normalised password."""
    return WebHash(cost, salt, _scrypt(password, salt, cost))


def derive_scram(mechanism: str, password: bytes, salt: bytes, iterations: int) -> ScramKeys:
    """SCRAM keys as in RFC 5802, section 3; raises Rejected for a mechanism that is not known."""
    algorithm = MECHANISMS.get(mechanism)
    if algorithm is None:
        raise Rejected(f"unknown mechanism {mechanism!r}", code="unknown_mechanism")
    salted = hashlib.pbkdf2_hmac(algorithm, password, salt, iterations)
    client_key = hmac.digest(salted, b"Client Key", algorithm)
    stored_key = hashlib.new(algorithm, client_key).digest()
    return ScramKeys(salt, iterations, stored_key, hmac.digest(salted, b"Server Key", algorithm))


def derive(password: bytes, salts: tuple[bytes, bytes, bytes], cost: ScryptCost, iterations: int) -> PasswordKeys:
    """Web hash and the keys of both mechanisms; each has a salt of its own."""
    web_salt, *scram_salts = salts
    scram = {
        mechanism: derive_scram(mechanism, password, salt, iterations)
        for mechanism, salt in zip(MECHANISMS, scram_salts, strict=True)
    }
    return PasswordKeys(derive_web(password, web_salt, cost), scram)


def _scrypt(password: bytes, salt: bytes, cost: ScryptCost) -> bytes:
    memory_max = 132 * cost.n * cost.r * cost.p + (1 << 20)
    return hashlib.scrypt(password, salt=salt, n=cost.n, r=cost.r, p=cost.p, maxmem=memory_max, dklen=HASH_BYTES)

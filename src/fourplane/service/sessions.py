"""Sessions: random tokens that say who is asking, until they lapse or are closed.

A token is 128 random bits; only its SHA-256 is stored, so a stolen store opens no session. A cookie and a bearer
header carry the same token. `find` remembers an answer for `cache_s`, which is also how long another worker may still honour a
session that was closed elsewhere. Cost: 1 us remembered, one inline read otherwise.
"""

import hashlib

import msgspec

from fourplane.foundation import clock
from fourplane.state.contracts import Sql, Statement

TOKEN_BYTES = 16
TOKEN_LETTERS = TOKEN_BYTES * 2


class SessionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    lifetime_s: float = 14 * 86_400.0
    cache_s: float = 5.0
    cache_count_max: int = 100_000
    link_lifetime_s: float = 3_600.0


class Identity(msgspec.Struct, frozen=True):
    """Who is asking, as a session proves it."""

    account_id: int
    name: str
    roles: frozenset[str] = frozenset()
    tenant: str = "main"


class Sessions:
    """Sessions of all accounts of one store."""

    __slots__ = ("_cache", "_settings", "_sql")

    def __init__(self, sql: Sql, settings: SessionSettings | None = None) -> None:
        self._sql = sql
        self._settings = settings or SessionSettings()
        self._cache: dict[str, tuple[Identity, float]] = {}

    async def open(self, account_id: int) -> str:
        """A new token for this account; the only time it can be seen."""
        token = new_token()
        expires_us = clock.now_us() + int(self._settings.lifetime_s * 1e6)
        sql = "INSERT INTO account_sessions (token_hash, account_id, expires_us) VALUES (?1, ?2, ?3)"
        await self._sql.commit([Statement(sql, (hash_token(token), account_id, expires_us), expect_rows=1)])
        return token

    async def find(self, token: str) -> Identity | None:
        """Who opened the session, None for an unknown, lapsed or closed token."""
        if len(token) != TOKEN_LETTERS:
            return None
        now_s = clock.monotonic_s()
        remembered = self._cache.get(token)
        if remembered is not None and now_s < remembered[1]:
            return remembered[0]
        rows = await self._sql.read(
            "SELECT a.id, a.name, a.roles, a.tenant, s.expires_us FROM account_sessions s"
            " JOIN accounts a ON a.id = s.account_id WHERE s.token_hash = ?1",
            hash_token(token),
        )
        self._cache.pop(token, None)
        if not rows:
            return None
        number, name, roles, tenant, expires_us = rows[0]
        left_s = (int(expires_us or 0) - clock.now_us()) / 1e6
        if left_s <= 0:
            return None
        identity = Identity(int(number or 0), str(name), frozenset(str(roles).split()), str(tenant))
        if len(self._cache) >= self._settings.cache_count_max:
            del self._cache[next(iter(self._cache))]
        self._cache[token] = (identity, now_s + min(left_s, self._settings.cache_s))
        return identity

    async def close(self, token: str) -> None:
        """End a session; an unknown token is fine."""
        self._cache.pop(token, None)
        await self._sql.commit([Statement("DELETE FROM account_sessions WHERE token_hash = ?1", (hash_token(token),))])

    def forget(self, account_id: int) -> None:
        """Ask the store again about every session of this account."""
        stale = [token for token, (identity, _) in self._cache.items() if identity.account_id == account_id]
        for token in stale:
            del self._cache[token]

    async def sweep(self) -> int:
        """Remove lapsed sessions and links; how many went."""
        now_us = clock.now_us()
        gone = await self._sql.commit(
            [
                Statement("DELETE FROM account_sessions WHERE expires_us <= ?1 RETURNING account_id", (now_us,)),
                Statement("DELETE FROM operator_links WHERE expires_us <= ?1", (now_us,)),
            ]
        )
        return len(gone[0])

    async def open_link(self) -> str:
        """A one-time token that makes its first user an operator."""
        token = new_token()
        expires_us = clock.now_us() + int(self._settings.link_lifetime_s * 1e6)
        sql = "INSERT INTO operator_links (token_hash, expires_us) VALUES (?1, ?2)"
        await self._sql.commit([Statement(sql, (hash_token(token), expires_us), expect_rows=1)])
        return token

    async def use_link(self, token: str) -> bool:
        """Whether this link was valid; it never is again."""
        sql = "DELETE FROM operator_links WHERE token_hash = ?1 RETURNING expires_us"
        [rows] = await self._sql.commit([Statement(sql, (hash_token(token),))])
        return bool(rows) and int(rows[0][0] or 0) > clock.now_us()


def new_token() -> str:
    """128 random bits as 32 letters."""
    return clock.token_bytes(TOKEN_BYTES).hex()


def hash_token(token: str) -> bytes:
    """What is stored of a token. Tokens are random, so one fast hash is enough."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()

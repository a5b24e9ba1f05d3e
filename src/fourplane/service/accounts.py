"""One account for every system: a web password, SCRAM keys for chat, roles, a tenant, sessions.

The name is normalised (names.py), the password never stored (passwords.py), sessions are random tokens (sessions.py). A
wrong name and a wrong password take the same time and raise the same error, and both count towards the wait of
that name (login_throttle.py), so that nobody learns from outside which accounts exist. Derivations run off the loop, at most
`jobs_max` waiting; past that a login is told to come back.
"""

import hmac
from collections.abc import Sequence

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.blocking import Pool
from fourplane.foundation.errors import Conflict, Overloaded, Rejected, Unauthenticated
from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.lifecycle import Tasks
from fourplane.service.login_throttle import LoginThrottle, ThrottleSettings
from fourplane.service.names import normal_name, normal_password
from fourplane.service.passwords import (
    MECHANISMS,
    SALT_BYTES,
    PasswordKeys,
    ScramKeys,
    ScryptCost,
    WebHash,
    derive,
    derive_web,
)
from fourplane.service.rpc import idempotent
from fourplane.service.schema import ACCOUNTS
from fourplane.service.sessions import Identity, Sessions, SessionSettings
from fourplane.state import schema
from fourplane.state.contracts import Row, Sql, Statement

__all__ = ["Account", "AccountSettings", "Accounts", "Identity", "NewAccount"]

SWEEP_S = 3_600.0
BULK = 500
OPERATOR = "operator"
COLUMNS = "id, name, tenant, roles, web_cost, web_salt, web_digest"


class AccountSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    scrypt: ScryptCost = ScryptCost()
    scram_iterations: int = 4_096
    threads: int = 2
    jobs_max: int = 200
    throttle: ThrottleSettings = ThrottleSettings()
    sessions: SessionSettings = SessionSettings()


class Account(msgspec.Struct, frozen=True):
    """A person or a machine that can log in."""

    id: int
    name: str
    tenant: str = "main"
    roles: frozenset[str] = frozenset()


class NewAccount(msgspec.Struct, frozen=True):
    """An account to make: with a password, or with keys derived before (an import, a crowd that shares one)."""

    name: str
    password: str = ""
    keys: PasswordKeys | None = None
    roles: tuple[str, ...] = ()


class AccountStatistics(msgspec.Struct, frozen=True):
    logins: int
    refused: int
    throttled: int
    names_throttled: int


class Accounts:
    """All accounts of one deployment. A lifecycle part."""

    def __init__(self, sql: Sql, *, ids: IdGenerator, settings: AccountSettings | None = None) -> None:
        self._settings = settings or AccountSettings()
        if self._settings.scram_iterations < 4_096:
            raise Rejected("scram_iterations must be at least 4096 (RFC 7677)", code="misconfigured")
        self._sql = sql
        self._ids = ids
        self._pool = Pool("passwords", threads=self._settings.threads, queue_max=self._settings.jobs_max)
        self._throttle = LoginThrottle(self._settings.throttle)
        self._sessions = Sessions(sql, self._settings.sessions)
        self._decoy = clock.token_bytes(SALT_BYTES)
        self._decoy_hash: WebHash | None = None
        self._logins = self._refused = self._throttled = 0
        self.changes = 0  # of passwords and accounts in this process: whoever remembers keys forgets them then

    async def start(self, tasks: Tasks) -> None:
        """Make the tables, then sweep lapsed sessions every hour."""
        await schema.ensure(self._sql, "accounts", ACCOUNTS, ())
        tasks.start(self._sweep(), "sweep")

    async def drain(self) -> None:
        """Nothing is accepted that could be left unfinished."""

    async def stop(self) -> None:
        self._pool.close()

    async def create(
        self, name: str, password: str, *, tenant: str = "main", roles: Sequence[str] = (), account_id: int = 0
    ) -> Account:
        """A new account with web password and SCRAM keys; raises Conflict (`name_taken`), Rejected for a bad name."""
        new = NewAccount(name, password, roles=tuple(roles))
        return (await self._create([new], tenant, account_id))[0]

    async def create_many(self, new: Sequence[NewAccount], *, tenant: str = "main") -> list[Account]:
        """Many accounts, at most 500 per commit, all of one commit or none; raises Conflict when a name is taken."""
        accounts: list[Account] = []
        for begin in range(0, len(new), BULK):
            accounts += await self._create(new[begin : begin + BULK], tenant, 0)
        return accounts

    @idempotent
    async def derive_keys(self, password: str) -> PasswordKeys:
        """What would be stored of this password; for accounts made with `NewAccount.keys`."""
        salts = (clock.token_bytes(SALT_BYTES), clock.token_bytes(SALT_BYTES), clock.token_bytes(SALT_BYTES))
        plain = normal_password(password)
        return await self._pool.run(derive, plain, salts, self._settings.scrypt, self._settings.scram_iterations)

    @idempotent
    async def find(self, name: str, *, tenant: str = "main") -> Account | None:
        """The account of this name in any spelling, None for no or an impossible name."""
        row = await self._row(name, tenant)
        return None if row is None else _account(row)

    @idempotent
    async def verify_password(self, name: str, password: str, *, tenant: str = "main") -> Account:
        """The account, if this is its password; raises Unauthenticated, or Overloaded while the name must wait."""
        key = self._admit(name, tenant)
        row = await self._row(name, tenant)
        stored = await self._decoy_web_hash() if row is None else _web_hash(row)
        try:
            plain = normal_password(password)
        except Rejected:
            plain = b"\0"
        matches = await self._pool.run(stored.matches, plain)
        if row is None or not matches:
            self._refuse(key)
            raise Unauthenticated("the name or the password is wrong", code="wrong_credentials")
        self._throttle.succeeded(key)
        self._logins += 1
        return _account(row)

    @idempotent
    async def set_password(self, account: Account, password: str) -> None:
        """Replace the password and SCRAM keys, and end all sessions."""
        keys = await self.derive_keys(password)
        web = keys.web
        update = "UPDATE accounts SET web_cost = ?2, web_salt = ?3, web_digest = ?4 WHERE id = ?1"
        await self._sql.commit(
            [
                Statement(update, (account.id, web.cost.text(), web.salt, web.digest), expect_rows=1),
                Statement("DELETE FROM account_scram WHERE account_id = ?1", (account.id,)),
                Statement("DELETE FROM account_sessions WHERE account_id = ?1", (account.id,)),
                *_scram_statements(account.id, keys),
            ]
        )
        self._sessions.forget(account.id)
        self.changes += 1

    @idempotent
    async def set_roles(self, account: Account, roles: Sequence[str]) -> Account:
        """Replace the roles; other workers follow within `sessions.cache_s`."""
        text = _roles_text(roles)
        update = Statement("UPDATE accounts SET roles = ?2 WHERE id = ?1", (account.id, text), expect_rows=1)
        await self._sql.commit([update])
        self._sessions.forget(account.id)
        return Account(account.id, account.name, account.tenant, frozenset(text.split()))

    @idempotent
    async def scram_keys(self, name: str, mechanism: str, *, tenant: str = "main") -> ScramKeys | None:
        """Keys for a SCRAM exchange, None for an unknown account or mechanism; see `scram_decoy`."""
        try:
            normal = normal_name(name)
        except Rejected:
            return None
        rows = await self._sql.read(
            "SELECT k.salt, k.iterations, k.stored_key, k.server_key FROM accounts a"
            " JOIN account_scram k ON k.account_id = a.id"
            " WHERE a.tenant = ?1 AND a.name = ?2 AND k.mechanism = ?3",
            tenant,
            normal,
            mechanism,
        )
        if not rows:
            return None
        salt, iterations, stored_key, server_key = rows[0]
        return ScramKeys(_bytes(salt), int(iterations or 0), _bytes(stored_key), _bytes(server_key))

    def scram_decoy(self, name: str, mechanism: str, *, tenant: str = "main") -> ScramKeys:
        """Keys that no password fits but that look the same each time, so that an unknown name does not show."""
        iterations = self._settings.scram_iterations
        return decoy_keys(self._decoy, name, mechanism, tenant=tenant, iterations=iterations)

    def admit_login(self, name: str, *, tenant: str = "main") -> None:
        """Raise Overloaded while `name` must wait; for exchanges that verify elsewhere (SCRAM)."""
        self._admit(name, tenant)

    def note_login(self, name: str, *, tenant: str = "main", succeeded: bool) -> None:
        """Tell how an exchange that was verified elsewhere ended."""
        key = throttle_key(name, tenant)
        if succeeded:
            self._throttle.succeeded(key)
            self._logins += 1
        else:
            self._refuse(key)

    async def open_session(self, account: Account) -> str:
        """A token for cookies and bearer headers; the only time it can be seen."""
        return await self._sessions.open(account.id)

    @idempotent
    async def session(self, token: str) -> Identity | None:
        """Who opened this session, None when unknown, lapsed or closed."""
        return await self._sessions.find(token)

    @idempotent
    async def close_session(self, token: str) -> None:
        await self._sessions.close(token)

    async def delete(self, account: Account) -> None:
        """Remove an account, its keys and its sessions."""
        of_account = (account.id,)
        await self._sql.commit(
            [
                Statement("DELETE FROM account_sessions WHERE account_id = ?1", of_account),
                Statement("DELETE FROM account_scram WHERE account_id = ?1", of_account),
                Statement("DELETE FROM accounts WHERE id = ?1", of_account),
            ]
        )
        self._sessions.forget(account.id)
        self.changes += 1

    async def operator_link(self) -> str:
        """A token that opens one operator session, once, within `sessions.link_lifetime_s`."""
        return await self._sessions.open_link()

    async def redeem(self, token: str) -> str:
        """Turn a one-time link into an operator's session token; raises Unauthenticated when used or lapsed."""
        if not await self._sessions.use_link(token):
            raise Unauthenticated("this link was used or has lapsed", code="link_used")
        account = await self.find(OPERATOR)
        if account is None:
            try:
                account = await self.create(OPERATOR, clock.token_bytes(16).hex(), roles=(OPERATOR,))
            except Conflict:  # another worker redeemed a link at the same moment
                account = await self.find(OPERATOR)
        assert account is not None
        if OPERATOR not in account.roles:
            raise Unauthenticated("the account named operator is not an operator", code="not_an_operator")
        return await self.open_session(account)

    def statistics(self) -> AccountStatistics:
        return AccountStatistics(self._logins, self._refused, self._throttled, len(self._throttle))

    async def _create(self, new: Sequence[NewAccount], tenant: str, account_id: int) -> list[Account]:
        accounts: list[Account] = []
        statements: list[Statement] = []
        now_us = clock.now_us()
        for one in new:
            name = normal_name(one.name)
            keys = one.keys if one.keys is not None else await self.derive_keys(one.password)
            roles = _roles_text(one.roles)
            account = Account(account_id or self._ids.next(), name, tenant, frozenset(roles.split()))
            web = keys.web
            values = (account.id, tenant, name, roles, web.cost.text(), web.salt, web.digest, now_us)
            insert = (
                "INSERT INTO accounts (id, tenant, name, roles, web_cost, web_salt, web_digest, created_us)"
                " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"
            )
            statements += [Statement(insert, values, expect_rows=1), *_scram_statements(account.id, keys)]
            accounts.append(account)
        try:
            await self._sql.commit(statements)
        except Conflict:
            what = f"the name {accounts[0].name!r}" if len(new) == 1 else "a name of this batch"
            raise Conflict(f"{what} is taken", code="name_taken") from None
        return accounts

    async def _row(self, name: str, tenant: str) -> Row | None:
        try:
            normal = normal_name(name)
        except Rejected:
            return None
        sql = f"SELECT {COLUMNS} FROM accounts WHERE tenant = ?1 AND name = ?2"  # noqa: S608 - constant columns
        rows = await self._sql.read(sql, tenant, normal)
        return rows[0] if rows else None

    async def _decoy_web_hash(self) -> WebHash:
        if self._decoy_hash is None:
            self._decoy_hash = await self._pool.run(derive_web, self._decoy, self._decoy, self._settings.scrypt)
        return self._decoy_hash

    def _admit(self, name: str, tenant: str) -> str:
        key = throttle_key(name, tenant)
        wait_s = self._throttle.wait_s(key, clock.monotonic_s())
        if wait_s > 0:
            self._throttled += 1
            raise Overloaded("too many wrong passwords for this name", retry_after_s=wait_s, code="login_throttled")
        return key

    def _refuse(self, key: str) -> None:
        self._refused += 1
        self._throttle.failed(key, clock.monotonic_s())

    async def _sweep(self) -> None:
        while True:
            await clock.sleep(SWEEP_S)
            await self._sessions.sweep()


def _account(row: Row) -> Account:
    number, name, tenant, roles = row[:4]
    return Account(int(number or 0), str(name), str(tenant), frozenset(str(roles).split()))


def _web_hash(row: Row) -> WebHash:
    cost, salt, digest = row[4:7]
    return WebHash(ScryptCost.parse(str(cost)), _bytes(salt), _bytes(digest))


def _bytes(value: object) -> bytes:
    assert isinstance(value, bytes), "a column of bytes"
    return value


def _roles_text(roles: Sequence[str]) -> str:
    for role in roles:
        if not role.replace("_", "").replace("-", "").isalnum() or len(role) > 64:
            raise Rejected(f"not a role name: {role[:64]!r}", code="bad_role")
    return " ".join(sorted(set(roles)))


def _scram_statements(account_id: int, keys: PasswordKeys) -> list[Statement]:
    insert = (
        "INSERT INTO account_scram (account_id, mechanism, salt, iterations, stored_key, server_key)"
        " VALUES (?1, ?2, ?3, ?4, ?5, ?6)"
    )
    return [
        Statement(insert, (account_id, mechanism, one.salt, one.iterations, one.stored_key, one.server_key))
        for mechanism, one in keys.scram.items()
    ]


def decoy_keys(secret: bytes, name: str, mechanism: str, *, tenant: str, iterations: int) -> ScramKeys:
    """Keys that no password fits, always the same for the same name and secret."""
    seed = f"{tenant}\0{name}\0{mechanism}".encode("utf-8", "surrogatepass")
    size = 32 if MECHANISMS.get(mechanism) == "sha256" else 20
    salt, stored, server = (
        hmac.digest(secret, purpose + seed, "sha256") for purpose in (b"salt", b"stored", b"server")
    )
    return ScramKeys(salt[:SALT_BYTES], iterations, stored[:size], server[:size])


def throttle_key(name: str, tenant: str) -> str:
    try:
        return f"{tenant}\0{normal_name(name)}"
    except Rejected:
        return f"{tenant}\0{name[:64]}"

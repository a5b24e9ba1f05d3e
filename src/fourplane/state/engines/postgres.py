"""Relational rows on PostgreSQL: the `Sql` contract over asyncpg's pool.

Every commit is one SERIALIZABLE transaction, so statements mean what they mean on the embedded engine, where commits run one
after the other; PostgreSQL's own refusals (40001, 40P01) happen before anything is durable and are tried again with jitter. A
connection lost while a commit was on its way raises Unavailable, because it may have happened; a read is tried once more.

`?1` becomes `$1` outside quotes. NUMERIC comes back as int where it is whole, float otherwise, because the contract has
no decimals. Reads have connections of their own, which cannot write: one round trip each. Nothing of a session is ever
changed, so nothing is reset when a connection is given back. Each store lives in a schema called like itself.
Bounds: `connections_max`, `waiting_max` callers, then Overloaded.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from functools import lru_cache
from typing import Any, cast

import asyncpg
import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import (
    Conflict,
    DeadlineExceeded,
    FourplaneError,
    Misconfigured,
    Overloaded,
    Rejected,
    TooLarge,
    Unavailable,
)
from fourplane.state.contracts import Row, SqlValue, Statement
from fourplane.state.embedded.sql import refuse_control

_PLACES = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|\?(\d+)")
_ROWS = re.compile(r"^\s*(?:select|values|with)\b|\breturning\b", re.IGNORECASE)
_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    OSError,
)
_AGAIN = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
_LOGIN = (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidPasswordError, asyncpg.InvalidCatalogNameError)
_RULES: tuple[tuple[type[Exception], str], ...] = (
    (asyncpg.UniqueViolationError, "unique"),
    (asyncpg.CheckViolationError, "check"),
    (asyncpg.ForeignKeyViolationError, "foreign_key"),
    (asyncpg.ExclusionViolationError, "unique"),
)


class PostgresSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of one pool."""

    connections_max: int = 10
    readers_max: int = 6
    waiting_max: int = 1_000
    statements_max: int = 10_000
    read_rows_max: int = 10_000
    timeout_s: float = 10.0
    attempts_max: int = 12
    pause_s: float = 0.002


class PostgresStatistics(msgspec.Struct, frozen=True):
    """One store since it was opened."""

    schema: str
    connections: int
    idle: int
    waiting: int
    commits: int
    reads: int
    repeated: int
    lost: int


class PostgresSql:
    """`Sql` on one PostgreSQL database."""

    dialect = "postgresql"

    def __init__(
        self,
        pool: "asyncpg.Pool[asyncpg.Record]",
        readers: "asyncpg.Pool[asyncpg.Record]",
        schema: str,
        settings: PostgresSettings,
    ) -> None:
        self._pool = pool
        self._readers = readers
        self._schema = schema
        self._settings = settings
        self._waiting = self._commits = self._reads = self._repeated = self._lost = 0

    @classmethod
    async def open(cls, url: str, *, schema: str, settings: PostgresSettings | None = None) -> "PostgresSql":
        """Connect and make the schema; raises Unavailable or Misconfigured."""
        bounds = settings or PostgresSettings()
        session = {"search_path": f'"{schema}"', "application_name": "fourplane"}
        pools = []
        try:
            for most, more in (
                (bounds.connections_max, {}),
                (bounds.readers_max, {"default_transaction_read_only": "on"}),
            ):
                pool = await asyncpg.create_pool(
                    url,
                    min_size=0 if more else 1,
                    max_size=most,
                    command_timeout=bounds.timeout_s,
                    timeout=bounds.timeout_s,
                    statement_cache_size=500,
                    init=_prepare,
                    reset=_nothing,
                    server_settings=session | more,
                )
                pools.append(pool)
        except _LOGIN as error:
            raise Misconfigured(
                "PostgreSQL refused the user, password or database of the URL", code="postgres_login"
            ) from error
        except (*_LOST, TimeoutError) as error:
            raise Unavailable("PostgreSQL cannot be reached", code="postgres_unreachable") from error
        except ValueError as error:
            raise Misconfigured("not a PostgreSQL URL", code="store_url") from error
        store = cls(pools[0], pools[1], schema, bounds)
        with suppress(Conflict):  # two processes made it at the same moment
            await store.commit([Statement(f'CREATE SCHEMA IF NOT EXISTS "{schema}"')])
        return store

    async def read(self, sql: str, *parameters: SqlValue) -> list[Row]:
        text = translated(sql)
        self._reads += 1
        rows: list[Any] = []
        for attempt in (1, 2):
            try:
                async with self._connection(self._readers) as connection:
                    rows = await connection.fetch(text, *parameters)
                break
            except Exception as error:
                if attempt == 1 and isinstance(error, _LOST):
                    continue
                raise self._told(error) from error
        if len(rows) > self._settings.read_rows_max:
            raise Rejected(
                f"the query has more than {self._settings.read_rows_max} rows; page through them", code="too_many_rows"
            )
        return [tuple(row) for row in rows]

    async def commit(self, statements: Sequence[Statement]) -> list[list[Row]]:
        if len(statements) > self._settings.statements_max:
            raise TooLarge(f"{len(statements)} statements in one commit, {self._settings.statements_max} are allowed")
        for attempt in range(1, self._settings.attempts_max + 1):
            try:
                async with self._connection(self._pool) as connection, connection.transaction(isolation="serializable"):
                    answers = [await _run(connection, each, position) for position, each in enumerate(statements)]
                self._commits += 1
                return answers
            except _AGAIN as error:
                if attempt == self._settings.attempts_max:
                    raise Overloaded("too many commits want the same rows", retry_after_s=0.5) from error
                self._repeated += 1
                await clock.sleep(self._settings.pause_s * attempt * (0.5 + clock.random().random()))
            except Exception as error:
                raise self._told(error) from error
        raise AssertionError("the last attempt returns or raises")

    def statistics(self) -> PostgresStatistics:
        pool = self._pool
        return PostgresStatistics(
            schema=self._schema,
            connections=pool.get_size(),
            idle=pool.get_idle_size(),
            waiting=self._waiting,
            commits=self._commits,
            reads=self._reads,
            repeated=self._repeated,
            lost=self._lost,
        )

    async def close(self) -> None:
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                await asyncio.gather(self._pool.close(), self._readers.close())
        except TimeoutError:
            self._pool.terminate()
            self._readers.terminate()

    @asynccontextmanager
    async def _connection(self, pool: "asyncpg.Pool[asyncpg.Record]") -> AsyncIterator[Any]:
        if self._waiting >= self._settings.waiting_max:
            raise Overloaded(f"{self._waiting} callers wait for PostgreSQL", retry_after_s=0.2)
        self._waiting += 1
        try:
            connection = await pool.acquire(timeout=self._settings.timeout_s)
        finally:
            self._waiting -= 1
        try:
            yield connection
        finally:
            await pool.release(connection)

    def _told(self, error: Exception) -> Exception:
        if isinstance(error, FourplaneError):
            return error
        for kind, rule in _RULES:
            if isinstance(error, kind):
                return Conflict(str(error), code=f"{rule}_rule", rule=rule)
        if isinstance(error, TimeoutError | asyncpg.QueryCanceledError):
            return DeadlineExceeded("PostgreSQL did not answer in time")
        if isinstance(error, asyncpg.TooManyConnectionsError):
            return Overloaded("PostgreSQL has no connection left")
        if isinstance(error, asyncpg.InsufficientResourcesError):
            return Unavailable(f"PostgreSQL has run out of something: {error}", code="disk_full")
        # asyncpg reports a parameter of the wrong kind as an InterfaceError too
        if isinstance(error, asyncpg.DataError | ValueError | TypeError):
            return Rejected(f"the statement cannot run: {error}", code="bad_statement")
        if isinstance(error, _LOST):
            self._lost += 1
            return Unavailable(f"the connection to PostgreSQL is lost: {type(error).__name__}", code="postgres_lost")
        if isinstance(error, asyncpg.PostgresError):
            return Rejected(f"the statement cannot run: {error}", code="bad_statement")
        return error


@lru_cache(maxsize=2_000)
def translated(sql: str) -> str:
    """The statement with PostgreSQL's `$1`; refuses transaction control."""
    refuse_control(sql)
    return _PLACES.sub(lambda found: f"${found[1]}" if found[1] else found[0], sql)


async def _run(connection: Any, statement: Statement, position: int) -> list[Row]:
    text = translated(statement.sql)
    rows: list[Any] = []
    if _ROWS.search(text):
        rows = await connection.fetch(text, *statement.parameters)
        changed = len(rows)
    else:
        status = cast("str", await connection.execute(text, *statement.parameters))
        last = status.rpartition(" ")[2]
        changed = int(last) if last.isdigit() else 0
    if statement.expect_rows is not None and changed != statement.expect_rows:
        told = f"statement {position} changed {changed} rows where {statement.expect_rows} were expected"
        raise Conflict(told, code="unexpected_rows", position=position, label=statement.label, rows=changed)
    return [tuple(row) for row in rows]


async def _nothing(_connection: Any) -> None:
    """Given back as it was taken."""


async def _prepare(connection: Any) -> None:
    """NUMERIC as plain numbers; sums of BIGINT are NUMERIC."""
    await connection.set_type_codec("numeric", schema="pg_catalog", encoder=str, decoder=_number, format="text")


def _number(text: str) -> int | float:
    value = Decimal(text)
    return int(value) if value == value.to_integral_value() else float(value)

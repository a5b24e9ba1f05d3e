"""Relational rows on PostgreSQL: the `Sql` contract over a few connections.

A commit is one exchange (`postgres_line`), however many statements it has, and one SERIALIZABLE transaction, so statements mean
what they mean on the embedded engine, where commits run one after the other; PostgreSQL's own refusals (40001, 40P01) happen
before anything is durable and are tried again with jitter. A connection lost while a commit was on its way raises Unavailable,
because it may have happened; a read is tried once more.

`?1` becomes `$1` outside quotes. NUMERIC comes back as int where it is whole, float otherwise, because the contract has
no decimals. Reads have connections of their own, which cannot write, and share them. Nothing of a session is ever changed, so
nothing is reset. Each store lives in a schema called like itself.
Bounds: `connections_max`, `waiting_max` callers, then Overloaded.
"""

import asyncio
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache, partial

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
from fourplane.state.engines.postgres_line import Answer, Ask, Check, Line, is_outdated
from fourplane.state.engines.postgres_lines import Lines

_PLACES = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|\?(\d+)")
_UNREACHABLE = "postgres_unreachable"
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
_READING = {"default_transaction_read_only": "on", "jit": "off"}
# Commits find rows by their keys. A plan that is made while a table is empty, and kept, must not scan it when it has grown.
_WRITING = {
    "default_transaction_isolation": "serializable",
    "enable_seqscan": "off",
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
}


class PostgresSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of one pool."""

    connections_max: int = 10
    readers_max: int = 6
    waiting_max: int = 1_000
    statements_max: int = 10_000
    named_max: int = 500
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
    unanswered: int  # calls that the server was away for, since it last answered one


class PostgresSql:
    """`Sql` on one PostgreSQL database."""

    dialect = "postgresql"

    def __init__(self, *, writers: Lines, readers: Lines, schema: str, settings: PostgresSettings) -> None:
        self._writers = writers
        self._readers = readers
        self._schema = schema
        self._settings = settings
        self._commits = self._reads = self._repeated = self._lost = self._unanswered = 0

    @classmethod
    async def open(cls, url: str, *, schema: str, settings: PostgresSettings | None = None) -> "PostgresSql":
        """Connect and make the schema; raises Unavailable or Misconfigured."""
        bounds = settings or PostgresSettings()
        session = {"search_path": f'"{schema}"', "application_name": "fourplane"}

        def lines(most: int, rule: dict[str, str]) -> Lines:
            opener = partial(_connected, url, session | rule, bounds)
            return Lines(opener, most=most, waiting_max=bounds.waiting_max, timeout_s=bounds.timeout_s)

        store = cls(
            writers=lines(bounds.connections_max, _WRITING),
            readers=lines(bounds.readers_max, _READING),
            schema=schema,
            settings=bounds,
        )
        try:
            with suppress(Conflict):  # two processes made it at the same moment
                await store.commit([Statement(f'CREATE SCHEMA IF NOT EXISTS "{schema}"')])
        except BaseException:
            await store.close()
            raise
        return store

    async def read(self, sql: str, *parameters: SqlValue) -> list[Row]:
        most = self._settings.read_rows_max
        ask = Ask(translated(sql), parameters, most + 1)
        self._reads += 1
        rows: list[Row] = []
        for attempt in (1, 2):
            try:
                [(rows, _)] = await (await self._readers.shared()).run((ask,))
                self._unanswered = 0
                break
            except Exception as error:
                if attempt == 1 and (isinstance(error, _LOST) or is_outdated(error)):
                    continue
                raise self._told(error) from error
        if len(rows) > most:
            raise Rejected(f"the query has more than {most} rows; page through them", code="too_many_rows")
        return rows

    async def commit(self, statements: Sequence[Statement]) -> list[list[Row]]:
        if len(statements) > self._settings.statements_max:
            raise TooLarge(f"{len(statements)} statements in one commit, {self._settings.statements_max} are allowed")
        plan = _Plan(statements)
        for attempt in range(1, self._settings.attempts_max + 1):
            try:
                answers = await (await self._writers.idle()).run(plan.asks, check=plan.check)
                self._commits += 1
                self._unanswered = 0
                return plan.rows(answers)
            except Exception as error:
                plan.refuse_unexpected(error)
                if not (isinstance(error, _AGAIN) or is_outdated(error)):
                    raise self._told(error) from error
                if attempt == self._settings.attempts_max:
                    raise Overloaded("too many commits want the same rows", retry_after_s=0.5) from error
                self._repeated += 1
                await clock.sleep(self._settings.pause_s * attempt * (0.5 + clock.random().random()))
        raise AssertionError("the last attempt returns or raises")

    def statistics(self) -> PostgresStatistics:
        return PostgresStatistics(
            schema=self._schema,
            connections=self._writers.count,
            idle=self._writers.idle_count,
            waiting=self._writers.waiting + self._readers.waiting,
            commits=self._commits,
            reads=self._reads,
            repeated=self._repeated,
            lost=self._lost,
            unanswered=self._unanswered,
        )

    async def close(self) -> None:
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                await asyncio.gather(self._writers.close(), self._readers.close())
        except TimeoutError:
            self._writers.abort()
            self._readers.abort()

    def _told(self, error: Exception) -> Exception:
        if isinstance(error, FourplaneError):
            self._unanswered += error.reason == _UNREACHABLE
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
            self._unanswered += 1
            return Unavailable(f"the connection to PostgreSQL is lost: {type(error).__name__}", code="postgres_lost")
        if isinstance(error, asyncpg.PostgresError):
            return Rejected(f"the statement cannot run: {error}", code="bad_statement")
        return error


@lru_cache(maxsize=2_000)
def translated(sql: str) -> str:
    """The statement with PostgreSQL's `$1`; refuses transaction control."""
    refuse_control(sql)
    return _PLACES.sub(lambda found: f"${found[1]}" if found[1] else found[0], sql)


async def _connected(url: str, session: dict[str, str], bounds: PostgresSettings) -> Line:
    """One more connection; raises Unavailable or Misconfigured."""
    try:
        return await Line.open(url, session=session, named_max=bounds.named_max, timeout_s=bounds.timeout_s)
    except _LOGIN as error:
        raise Misconfigured(
            "PostgreSQL refused the user, password or database of the URL", code="postgres_login"
        ) from error
    except (*_LOST, TimeoutError) as error:
        raise Unavailable("PostgreSQL cannot be reached", code="postgres_unreachable") from error
    except ValueError as error:
        raise Misconfigured("not a PostgreSQL URL", code="store_url") from error


class _Plan:
    """A commit's statements as they are asked.

    An expectation travels with its statement, which fails on the server where it is not met: so the commit need not wait for
    somebody to look. Counting costs the server as much as a few rows, so what is `sure` is not counted. Of statements that give
    rows of what they change the answers are looked at.
    """

    __slots__ = ("_guarded", "_statements", "asks", "check")

    def __init__(self, statements: Sequence[Statement]) -> None:
        self._statements = statements
        self.asks: list[Ask] = []
        self._guarded: list[bool] = []
        self.check: Check | None = None
        for position, each in enumerate(statements):
            text, expected = translated(each.sql), each.expect_rows
            counting = None if expected is None or each.sure else guarded(text, len(each.parameters))
            self._guarded.append(counting is not None)
            if counting is not None:
                self.asks.append(Ask(counting, (*each.parameters, expected, position)))
                continue
            self.asks.append(Ask(text, each.parameters))
            if expected is not None and not each.sure:
                self.check = self._look

    def rows(self, answers: Sequence[Answer]) -> list[list[Row]]:
        """The rows of each statement, without the count a guarded one puts before them."""
        return [
            [row[1:] for row in rows if row[0] and len(row) > 1] if sure else rows
            for (rows, _), sure in zip(answers, self._guarded, strict=True)
        ]

    def refuse_unexpected(self, error: Exception) -> None:
        """Raise Conflict where a guarded statement failed for its count."""
        if isinstance(error, asyncpg.InvalidTextRepresentationError) and (found := _UNMET.search(str(error))):
            position = int(found[2])
            if position < len(self._guarded) and self._guarded[position]:
                raise self._conflict(position, int(found[1])) from error

    def _look(self, answers: Sequence[Answer]) -> Conflict | None:
        for position, (each, (_, count)) in enumerate(zip(self._statements, answers, strict=True)):
            if not self._guarded[position] and each.expect_rows is not None and count != each.expect_rows:
                return self._conflict(position, count)
        return None

    def _conflict(self, position: int, count: int) -> Conflict:
        each = self._statements[position]
        told = f"statement {position} changed {count} rows where {each.expect_rows} were expected"
        return Conflict(told, code="unexpected_rows", position=position, label=each.label, rows=count)


_UNMET = re.compile(r"unmet: (\d+) rows of (\d+)")
_CHANGES = re.compile(r"\s*(?:insert|update|delete)\b(?!.*\breturning\b)", re.IGNORECASE | re.DOTALL)
_FINDS = re.compile(r"\s*select\b", re.IGNORECASE)


@lru_cache(maxsize=2_000)
def guarded(text: str, places: int) -> str | None:
    """The statement with two more values, how many rows it must change or find and its position: any other number is an error.

    It gives that number, before the columns of what it finds. None for statements this cannot be done with.
    """
    if ";" in text or "--" in text:
        return None
    seen = (
        f"CASE WHEN count(*) = CAST(${places + 1} AS BIGINT) THEN count(*)"
        f" ELSE CAST('unmet: ' || count(*) || ' rows of ' || CAST(${places + 2} AS TEXT) AS BIGINT) END AS seen"
    )
    if _CHANGES.match(text):
        return f"WITH done AS ({text} RETURNING 1) SELECT {seen} FROM done"  # noqa: S608 - the values stay values
    if _FINDS.match(text):
        return f"WITH done AS ({text}) SELECT met.seen, done.* FROM (SELECT {seen} FROM done) AS met LEFT JOIN done ON TRUE"  # noqa: S608
    return None

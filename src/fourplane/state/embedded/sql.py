"""Relational rows on SQLite: the `Sql` contract over one `Database`."""

import re
from collections.abc import Callable, Sequence

import apsw
import msgspec

from fourplane.foundation.disk_sync import give_way
from fourplane.foundation.errors import Conflict, Rejected, TooLarge
from fourplane.state.contracts import Row, SqlValue, Statement
from fourplane.state.embedded.database import Database, DatabaseStatistics

ALLOWED_MAX = 2_000
CONTROL = frozenset(
    "BEGIN COMMIT ROLLBACK SAVEPOINT RELEASE END ABORT START ATTACH DETACH PRAGMA VACUUM SET RESET".split()
) | {"an empty statement"}


_ROWLESS = re.compile(r"\s*(?:INSERT|UPDATE|DELETE)\b[^;]*$", re.IGNORECASE)


class SqlSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of one commit."""

    statements_max: int = 10_000


class EmbeddedSql:
    """`Sql` on one SQLite file. Point reads 2 to 5 us inline; a commit waits for its group's sync."""

    dialect = "sqlite"

    def __init__(self, database: Database, settings: SqlSettings | None = None) -> None:
        self.database = database
        self._settings = settings or SqlSettings()
        self._allowed: dict[str, bool] = {}  # texts that passed, and whether they never return rows

    async def read(self, sql: str, *parameters: SqlValue) -> list[Row]:
        if sql not in self._allowed:
            self._allow(sql)
        return self.database.read_bounded(sql, parameters)

    async def commit(self, statements: Sequence[Statement]) -> list[list[Row]]:
        count = len(statements)
        if count == 1 and statements[0].expect_rows is None:
            only = statements[0]
            sql = only.sql
            rowless = self._allowed.get(sql)
            if rowless is None:
                rowless = self._allow(sql)
            if rowless:
                return await self.database.append(sql, only.parameters, [[]])
            return await self.database.transact(lambda writer: [run(writer, only, 0)], savepoint=False)
        return await self.database.transact(self._together(statements), weight=max(1, count))

    def commit_soon(self, statements: Sequence[Statement], told: Callable[[BaseException | None], None]) -> None:
        """`commit` for one who has gathered others already: begun at once, `told` in the turn in which it is durable."""
        self.database.transact_soon(self._together(statements), told, weight=max(1, len(statements)))

    def _together(self, statements: Sequence[Statement]) -> Callable[[apsw.Connection], list[list[Row]]]:
        """What runs them one after the other; raises for what may not be run."""
        for statement in statements:
            if statement.sql not in self._allowed:
                self._allow(statement.sql)
        count, most = len(statements), self._settings.statements_max
        if count > most:
            raise TooLarge(f"{count} statements in one commit, {most} are allowed")
        given = tuple(statements)
        return lambda writer: [run(writer, statement, position) for position, statement in enumerate(given)]

    def _allow(self, sql: str) -> bool:
        """Remember texts that passed, so that each is looked at once; whether this one never returns rows."""
        refuse_control(sql)
        if len(self._allowed) >= ALLOWED_MAX:
            self._allowed.clear()
        rowless = self._allowed[sql] = _ROWLESS.match(sql) is not None and "RETURNING" not in sql.upper()
        return rowless

    def statistics(self) -> DatabaseStatistics:
        return self.database.statistics()

    async def close(self) -> None:
        await self.database.close()


def run(writer: apsw.Connection, statement: Statement, position: int) -> list[Row]:
    """One statement inside a transaction; raises Conflict when its expectation fails."""
    give_way()
    expected = statement.expect_rows
    if expected is None:
        rows: list[Row] = writer.execute(statement.sql, statement.parameters).fetchall()
        return rows
    before = writer.total_changes()
    rows = writer.execute(statement.sql, statement.parameters).fetchall()
    changed = len(rows) or (writer.changes() if writer.total_changes() != before else 0)
    if changed != expected:
        told = f"statement {position} changed {changed} rows where {expected} were expected"
        raise Conflict(told, code="unexpected_rows", position=position, label=statement.label, rows=changed)
    return rows


def refuse_control(sql: str) -> None:
    """Transactions are the engine's business; raises Rejected for BEGIN, COMMIT and their like, and for nothing at all."""
    word = sql.lstrip().split(None, 1)[0].upper().rstrip(";") if sql.strip() else "an empty statement"
    if word in CONTROL:
        raise Rejected(f"{word} is not for callers", code="bad_statement")

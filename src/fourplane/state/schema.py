"""Tables by declaration: SQLAlchemy renders them, Alembic renders the changes, our driver runs both.

A system declares its tables once, as SQLAlchemy Core `MetaData` in their *newest* form, and one migration per later change.
A new store gets the newest tables at once; an older one gets the migrations it lacks, each in one transaction with the row
in `fourplane_schema` that says so. Migrations only expand (new tables, new nullable or defaulted columns, new indexes), so
that a program of the version before keeps working; a contraction is refused by name. A store with more migrations than this
program knows is refused. SQLAlchemy never sees a connection: it is a renderer here, off every hot path.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import msgspec
import sqlalchemy
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.schema import CreateIndex, CreateTable

from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, Misconfigured
from fourplane.state.contracts import Sql, Statement

if TYPE_CHECKING:
    from alembic.operations import Operations

VERSIONS = (
    "CREATE TABLE IF NOT EXISTS fourplane_schema (name TEXT NOT NULL, version BIGINT NOT NULL, title TEXT NOT NULL,"
    " applied_us BIGINT NOT NULL, PRIMARY KEY (name, version))"
)
_APPLIED = "INSERT INTO fourplane_schema (name, version, title, applied_us) VALUES (?1,?2,?3,?4)"


class Migration(msgspec.Struct, frozen=True):
    """One step from the version before: `change` gets Alembic's operations and only adds."""

    title: str
    change: "Callable[[Operations], None]"


async def ensure(sql: Sql, name: str, metadata: sqlalchemy.MetaData, migrations: Sequence[Migration] = ()) -> int:
    """Bring the tables of `name` to version 1 + len(migrations) and return it. Safe to call at every start, also by two at once.

    Raises Misconfigured when the store is newer than this program or a migration would take something away.
    """
    newest = 1 + len(migrations)
    await _commit_quietly(sql, [Statement(VERSIONS)])
    rows = await sql.read("SELECT max(version) FROM fourplane_schema WHERE name=?1", name)
    version = rows[0][0] or 0
    assert isinstance(version, int)
    if version > newest:
        raise Misconfigured(
            f"the tables of {name} are at version {version}, this program knows {newest}", code="newer_schema"
        )
    if version == 0:
        statements = [Statement(text) for text in render_tables(sql.dialect, metadata)]
        await _commit_quietly(
            sql, [*(_applied(name, number, "tables") for number in range(1, newest + 1)), *statements]
        )
        return newest
    for number in range(version, newest):
        migration = migrations[number - 1]
        statements = [Statement(text) for text in render_migration(sql.dialect, migration)]
        await _commit_quietly(sql, [_applied(name, number + 1, migration.title), *statements])
    return newest


def render_tables(dialect: str, metadata: sqlalchemy.MetaData) -> list[str]:
    """CREATE TABLE and CREATE INDEX for all tables, in the order their foreign keys need."""
    engine = _dialect(dialect)
    texts = []
    for table in metadata.sorted_tables:
        texts.append(str(CreateTable(table).compile(dialect=engine)).strip())
        indexes = sorted(table.indexes, key=lambda index: str(index.name))
        texts.extend(str(CreateIndex(index).compile(dialect=engine)).strip() for index in indexes)
    return texts


def render_migration(dialect: str, migration: Migration) -> list[str]:
    """The statements of one migration; raises Misconfigured when it contracts."""
    from fourplane.state.expansion import rendered  # noqa: PLC0415 - loads Alembic, which a start without a change does not need

    return rendered(_dialect(dialect), migration.title, migration.change)


def _dialect(name: str) -> Dialect:
    match name:
        case "sqlite":
            return cast("Dialect", sqlite.dialect())  # type: ignore[no-untyped-call,redundant-cast,unused-ignore]
        case "postgresql":
            return cast("Dialect", postgresql.dialect())  # type: ignore[no-untyped-call,redundant-cast,unused-ignore]
    raise Misconfigured(f"no renderer for the dialect {name}", code="dialect")


def _applied(name: str, version: int, title: str) -> Statement:
    return Statement(_APPLIED, (name, version, title, clock.now_us()))


async def _commit_quietly(sql: Sql, statements: list[Statement]) -> None:
    """Commit; when another process did the very same at the same moment, its result stands."""
    try:
        await sql.commit(statements)
    except Conflict as error:
        if error.fields.get("rule") not in {"unique", "exists"}:
            raise

"""Rows carried from the embedded files to PostgreSQL while their owner goes on writing, and proved equal at the end.

A *pass* reads every table of the source in key order, asks the target for the same keys, and writes only the rows that
differ; then it removes rows the source no longer has. So a pass may be interrupted anywhere and repeated, and costs a
comparison where everything was copied before. Passes run while the deployment runs, from a read-only connection that holds
no snapshot for longer than a page of rows. What is written behind a pass's back is found by the next one.

The last pass is made with the data folder held and nobody writing (the *window*): the stores are opened and closed once, so
that journals are folded into their tables, then compared as before; counts and checksums of both sides must agree. A checksum
is the sum, modulo 2**64, of BLAKE2b over each row's msgpack: independent of order, computed from what the target gives back.

Records are the one table `record` of their file, in the schema `r_` and the store's name. Tables are made from the source's own
text (SQLAlchemy rendered it for SQLite), with PostgreSQL's names of the types.
"""

import hashlib
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

import apsw
import msgspec

from fourplane.foundation.errors import Conflict, Misconfigured, Rejected, Unavailable
from fourplane.state.contracts import Row, Sql, SqlValue, Statement

PAGE_ROWS = 1_000
VALUES_MAX = 10_000
PAGE_BYTES = 4 << 20
_TYPES = {
    "BLOB": "BYTEA",
    "INTEGER": "BIGINT",
    "INT": "BIGINT",
    "REAL": "DOUBLE PRECISION",
    "FLOAT": "DOUBLE PRECISION",
}
_WORDS = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"|\b(?:BLOB|INTEGER|INT|REAL|FLOAT)\b", re.IGNORECASE)
_PRIVATE = ("folded", "sqlite_")
_RECORDS = ("record",)  # the other tables of a store of records say where the journal and the runs beside it are
_BUSY_MS = 5_000


class Table(msgspec.Struct, frozen=True):
    """One table of a source: how to make it again, its columns, and those of its key."""

    name: str
    made_by: tuple[str, ...]
    columns: tuple[str, ...]
    key: tuple[str, ...]


class Moved(msgspec.Struct):
    """What one pass did to one table."""

    store: str
    table: str
    rows: int = 0
    written: int = 0
    removed: int = 0


class Proof(msgspec.Struct, frozen=True):
    """Both sides of one table counted and summed; they agree or the move failed."""

    store: str
    table: str
    rows: int
    checksum: str


class SourceFile:
    """One SQLite file of a deployment, read without disturbing its writer."""

    def __init__(self, path: Path, store: str) -> None:
        self.path = path
        self.store = store
        try:
            self._connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
            self._connection.set_busy_timeout(_BUSY_MS)
            self.tables = tuple(self._tables())
        except apsw.Error as error:
            raise Unavailable(f"cannot read {path}: {error}", code="source_unreadable", file=str(path)) from error

    def count(self, table: Table) -> int:
        """How many rows it has now."""
        return cast("int", self._connection.execute(f'SELECT count(*) FROM "{table.name}"').get)  # noqa: S608 - names of its own schema

    def pages(self, table: Table) -> Iterator[list[Row]]:
        """All rows in key order, a page at a time; between pages the writer may do as it likes."""
        columns, key = _names(table.columns), _names(table.key)
        places = ",".join(f"?{number + 1}" for number in range(len(table.key)))
        last: Row = ()
        while True:
            where = f"WHERE ({key}) > ({places})" if last else ""
            sql = f'SELECT {columns} FROM "{table.name}" {where} ORDER BY {key} LIMIT {PAGE_ROWS}'  # noqa: S608 - the same
            rows: list[Row] = []
            size = 0
            for row in self._connection.execute(sql, last):
                rows.append(cast("Row", row))
                size += sum(len(value) for value in rows[-1] if isinstance(value, bytes | str))
                if size > PAGE_BYTES:
                    break
            if not rows:
                return
            last = key_of(table, rows[-1])
            yield rows

    def present(self, table: Table, keys: Sequence[Row]) -> set[Row]:
        """Which of these keys it has."""
        key = _names(table.key)
        sql = f'SELECT {key} FROM "{table.name}" WHERE ({key}) IN (VALUES {_places(len(table.key), len(keys))})'  # noqa: S608 - the same
        return {cast("Row", row) for row in self._connection.execute(sql, [value for row in keys for value in row])}

    def close(self) -> None:
        self._connection.close()

    def _tables(self) -> Iterator[Table]:
        execute = self._connection.execute
        rows = execute("SELECT name, sql FROM sqlite_schema WHERE type='table' ORDER BY rowid").fetchall()
        for name, sql in cast("list[tuple[str, str]]", rows):
            if name.startswith(_PRIVATE) or (self.store.startswith("records.") and name not in _RECORDS):
                continue
            facts = cast(
                "list[tuple[int, str, str, int, str, int]]", execute(f'PRAGMA table_info("{name}")').fetchall()
            )
            key = tuple(fact[1] for fact in sorted(facts, key=lambda fact: fact[5]) if fact[5])
            columns = tuple(fact[1] for fact in facts)
            indexes = execute(
                "SELECT sql FROM sqlite_schema WHERE type='index' AND tbl_name=?1 AND sql IS NOT NULL ORDER BY rowid",
                (name,),
            ).fetchall()
            texts = (sql, *(cast("str", text) for (text,) in indexes))
            yield Table(name, tuple(for_postgres(text) for text in texts), columns, key or columns)


async def make_tables(source: SourceFile, target: Sql) -> None:
    """Make what the target lacks."""
    there = {
        cast("str", name)
        for (name,) in await target.read(
            "SELECT table_name FROM information_schema.tables WHERE table_schema=current_schema()"
        )
    }
    for table in source.tables:
        if table.name not in there:
            await target.commit([Statement(text) for text in table.made_by])


async def copy_table(
    source: SourceFile, table: Table, target: Sql, *, told: Callable[[int], None], final: bool = False
) -> Moved:
    """One pass over one table; `told` hears of every page. Raises Conflict only where `final`, else the next pass tries again."""
    done = Moved(source.store, table.name)
    for rows in source.pages(table):
        known = await _target_rows(target, table, [key_of(table, row) for row in rows])
        different = [row for row in rows if known.get(key_of(table, row)) != row]
        try:
            await _upsert(target, table, different)
        except Conflict:
            if final:
                raise
        else:
            done.written += len(different)
        done.rows += len(rows)
        told(len(rows))
    return done


async def remove_gone(source: SourceFile, table: Table, target: Sql) -> int:
    """Remove rows the source no longer has; how many went. Children first, or a foreign key raises Conflict."""
    if await _count(target, table) == source.count(table):
        return 0
    removed = 0
    async for page in target_pages(target, table):
        keys = [key_of(table, row) for row in page]
        kept = source.present(table, keys)
        gone = [key for key in keys if key not in kept]
        if gone:
            place = _places(len(table.key), len(gone))
            sql = f'DELETE FROM "{table.name}" WHERE ({_names(table.key)}) IN (VALUES {place})'  # noqa: S608 - the same
            await target.commit([Statement(_typed(sql, gone[0]), _flat(gone))])
            removed += len(gone)
    return removed


async def prove(source: SourceFile, table: Table, target: Sql) -> Proof:
    """Count and sum both sides; raises Conflict (`not_equal`) when they differ."""
    here = _Sum()
    for rows in source.pages(table):
        here.add(rows)
    there = _Sum()
    async for rows in target_pages(target, table):
        there.add(rows)
    if (here.rows, here.total) != (there.rows, there.total):
        told = f"{source.store}, table {table.name}: {here.rows} rows here ({here.text}), {there.rows} there ({there.text})"
        raise Conflict(told, code="not_equal", store=source.store, table=table.name)
    return Proof(source.store, table.name, here.rows, here.text)


async def target_pages(target: Sql, table: Table) -> AsyncIterator[list[Row]]:
    """All rows of the target in its own order."""
    columns, key = _names(table.columns), _names(table.key)
    last: Row = ()
    rows_max = PAGE_ROWS // 8
    while True:
        where = f"WHERE ({key}) > ({','.join(f'?{number + 1}' for number in range(len(last)))})" if last else ""
        sql = f'SELECT {columns} FROM "{table.name}" {where} ORDER BY {key} LIMIT {rows_max}'  # noqa: S608 - the same
        rows = await target.read(sql, *last)
        if not rows:
            return
        last = key_of(table, rows[-1])
        size = sum(len(value) for row in rows for value in row if isinstance(value, bytes | str))
        rows_max = min(PAGE_ROWS, rows_max * 2) if size < PAGE_BYTES // 4 else max(1, rows_max // 2)
        yield rows


def key_of(table: Table, row: Row) -> Row:
    """The key of a row."""
    return tuple(row[table.columns.index(column)] for column in table.key)


def for_postgres(sql: str) -> str:
    """A CREATE TABLE or CREATE INDEX of SQLite as PostgreSQL reads it."""

    def named(found: re.Match[str]) -> str:
        return _TYPES.get(found[0].upper(), found[0])

    return _WORDS.sub(named, re.sub(r"\)\s*WITHOUT\s+ROWID\s*$", ")", sql, flags=re.IGNORECASE))


async def _target_rows(target: Sql, table: Table, keys: list[Row]) -> dict[Row, Row]:
    found: dict[Row, Row] = {}
    if all(isinstance(value, int | bytes) for key in (keys[0], keys[-1]) for value in key):
        # one range of the index; texts are ordered by another rule there, so they are looked up one by one
        width = len(table.key)
        low, high = (",".join(f"?{start + at + 1}" for at in range(width)) for start in (0, width))
        sql = (
            f'SELECT {_names(table.columns)} FROM "{table.name}"'  # noqa: S608 - the same
            f" WHERE ({_names(table.key)}) >= ({low}) AND ({_names(table.key)}) <= ({high})"
        )
        with suppress(Rejected):  # more rows than a read gives: the target has many that are gone here
            return {key_of(table, row): row for row in await target.read(sql, *keys[0], *keys[-1])}
    most = max(1, VALUES_MAX // len(table.key))
    for start in range(0, len(keys), most):
        some = keys[start : start + most]
        place = _places(len(table.key), len(some))
        sql = f'SELECT {_names(table.columns)} FROM "{table.name}" WHERE ({_names(table.key)}) IN (VALUES {place})'  # noqa: S608 - the same
        for row in await target.read(_typed(sql, some[0]), *_flat(some)):
            found[key_of(table, row)] = row
    return found


async def _upsert(target: Sql, table: Table, rows: list[Row]) -> None:
    rest = [column for column in table.columns if column not in table.key]
    update = ", ".join(f'"{column}"=excluded."{column}"' for column in rest)
    then = f"DO UPDATE SET {update}" if rest else "DO NOTHING"
    most = max(1, VALUES_MAX // len(table.columns))
    for start in range(0, len(rows), most):
        some = rows[start : start + most]
        place = _places(len(table.columns), len(some))
        sql = (
            f'INSERT INTO "{table.name}" ({_names(table.columns)}) VALUES {place}'  # noqa: S608 - the same
            f" ON CONFLICT ({_names(table.key)}) {then}"
        )
        await target.commit([Statement(sql, _flat(some))])


async def _count(target: Sql, table: Table) -> int:
    return cast("int", (await target.read(f'SELECT count(*) FROM "{table.name}"'))[0][0])  # noqa: S608 - the same


class _Sum:
    """Rows counted and summed."""

    def __init__(self) -> None:
        self.rows = self.total = 0

    def add(self, rows: Sequence[Row]) -> None:
        for row in rows:
            digest = hashlib.blake2b(msgspec.msgpack.encode(row), digest_size=8).digest()
            self.total = (self.total + int.from_bytes(digest, "big")) & 0xFFFF_FFFF_FFFF_FFFF
        self.rows += len(rows)

    @property
    def text(self) -> str:
        return f"{self.total:016x}"


def _names(columns: Sequence[str]) -> str:
    return ",".join(f'"{column}"' for column in columns)


def _places(width: int, count: int) -> str:
    rows = ("(" + ",".join(f"?{row * width + at + 1}" for at in range(width)) + ")" for row in range(count))
    return ",".join(rows)


def _flat(rows: Sequence[Row]) -> tuple[SqlValue, ...]:
    return tuple(value for row in rows for value in row)


def _typed(sql: str, first: Row) -> str:
    """Name the types of the first row of VALUES, which PostgreSQL takes for text otherwise."""
    for number, value in enumerate(first, 1):
        match value:
            case bytes():
                kind = "BYTEA"
            case int():
                kind = "BIGINT"
            case float():
                kind = "DOUBLE PRECISION"
            case _:
                kind = "TEXT"
        sql = re.sub(rf"\?{number}(?!\d)", f"CAST(?{number} AS {kind})", sql, count=1)
    return sql


def source_files(folder: Path) -> list[tuple[str, str, Path]]:
    """Contract, name and file of every store of rows in a folder of the deployment."""
    if not folder.is_dir():
        raise Misconfigured(f"no such folder: {folder}", code="no_source")
    found = []
    for path in sorted(folder.glob("*.db")):
        contract, _, name = path.stem.partition("-")
        if contract in {"sql", "records"} and name:
            found.append((contract, name, path))
    return found

"""A relational store on another host: the simulated twin of a database server, asked through `service.rpc`.

What a caller learns is what it learns from a real one: a read that was lost with its connection is asked again, a commit is
not, because it may have happened (`connection_lost`), and a server out of reach until the deadline is Unavailable.
Values travel as msgpack without a schema, because what a column holds is known to nobody here.
"""

from collections.abc import Sequence

import msgspec

from fourplane.service.rpc import idempotent
from fourplane.state.contracts import Row, Sql, SqlValue, Statement

_encode, _decode = msgspec.msgpack.encode, msgspec.msgpack.decode


class SqlDesk:
    """The store as it is called from elsewhere."""

    def __init__(self, sql: Sql) -> None:
        self._sql = sql

    @idempotent
    async def read(self, sql: str, parameters: bytes) -> bytes:
        return _encode(await self._sql.read(sql, *_decode(parameters)))

    async def commit(self, statements: bytes) -> bytes:
        wanted = [
            Statement(one["sql"], tuple(one["parameters"]), one["expect_rows"], one["label"])
            for one in _decode(statements)
        ]
        return _encode(await self._sql.commit(wanted))


class FarSql:
    """The contract `Sql` over a desk elsewhere."""

    def __init__(self, desk: SqlDesk, dialect: str) -> None:
        self._desk = desk
        self._dialect = dialect

    @property
    def dialect(self) -> str:
        return self._dialect

    async def read(self, sql: str, *parameters: SqlValue) -> list[Row]:
        return [tuple(row) for row in _decode(await self._desk.read(sql, _encode(parameters)))]

    async def commit(self, statements: Sequence[Statement]) -> list[list[Row]]:
        found = _decode(await self._desk.commit(_encode(list(statements))))
        return [[tuple(row) for row in rows] for rows in found]

"""Wide rows on a relational server: the `Records` contract over any `Sql`, such as PostgreSQL.

One table per store, clustered by nothing, keyed by (partition, sort). A batch is one transaction, so it is atomic; each expected
version is a condition of its statement, whose row count decides. `expires_us` is compared with the caller's clock, as on
the embedded engine. Writes that come while one is under way share the next transaction, whatever their partitions, and those of
one kind a statement, as arrays; when one of them meets a conflict, each is tried alone and hears its own answer. A transaction
costs about as much as ten writes in it, so where `PACE_FROM` shared the last one the next begins `PACE_S` after it: a fifth less
CPU time a checkout in our server and in PostgreSQL's; one writer or two never wait. Those who look in one turn of the loop share
a read. Expired rows are removed a thousand at a time, once in `PURGE_EVERY` changes; they are found by the hour in which they
expire (`due`), which a new value hardly ever changes: so a row can be rewritten beside itself, and no index learns of it.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol, cast

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, FourplaneError, Rejected, Unavailable
from fourplane.state.arrays import array
from fourplane.state.contracts import Change, Put, Record, Row, Sql, SqlValue, Statement
from fourplane.state.embedded.records import SCAN_MAX, check_changes, conflict

PURGE_EVERY = 1_000
_DUE = "due BIGINT GENERATED ALWAYS AS (expires_us / 3600000000) STORED"
_CREATE = (
    (
        "CREATE TABLE IF NOT EXISTS record (partition BYTEA NOT NULL, sort BYTEA NOT NULL, value BYTEA NOT NULL,"
        f" version BIGINT NOT NULL, expires_us BIGINT, {_DUE}, PRIMARY KEY (partition, sort)) WITH (fillfactor=75)"
    ),
    f"ALTER TABLE record ADD COLUMN IF NOT EXISTS {_DUE}",
    "CREATE INDEX IF NOT EXISTS record_due ON record (due) WHERE due IS NOT NULL",
    "DROP INDEX IF EXISTS record_expires",
)
_FIND = "SELECT sort, value, version, expires_us FROM record WHERE partition=?1 AND sort=?2"
_FIND_MANY = (  # by the key, row by row, also when the table was empty as the plan was made
    "SELECT q.at, r.* FROM unnest(CAST(?1 AS BYTEA[]), CAST(?2 AS BYTEA[])) WITH ORDINALITY AS q(partition, sort, at),"
    " LATERAL (SELECT sort, value, version, expires_us FROM record"
    " WHERE record.partition=q.partition AND record.sort=q.sort OFFSET 0) AS r"
)
_ALIVE = "(expires_us IS NULL OR expires_us>?3)"
_PRESENT = f"SELECT version FROM record WHERE partition=?1 AND sort=?2 AND {_ALIVE}"  # noqa: S608 - constants
_SCAN = f"SELECT sort, value, version, expires_us FROM record WHERE partition=?1 AND sort>=?2 AND {_ALIVE}"  # noqa: S608 - constants
_INSERT = (
    "INSERT INTO record (partition, sort, value, version, expires_us) VALUES (?1,?2,?3,1,?4)"
    " ON CONFLICT (partition, sort) DO UPDATE SET value=excluded.value, expires_us=excluded.expires_us,"
)
_PUT = f"{_INSERT} version=CASE WHEN record.expires_us<=?5 THEN 1 ELSE record.version+1 END"
_PUT_ABSENT = f"{_INSERT} version=1 WHERE record.expires_us<=?5"
_PUT_OVER = (
    "UPDATE record SET value=?3, expires_us=?4, version=version+1"
    " WHERE partition=?1 AND sort=?2 AND version=?6 AND (expires_us IS NULL OR expires_us>?5)"
)
_MANY = (
    "INSERT INTO record (partition, sort, value, version, expires_us) SELECT r.partition, r.sort, r.value, 1, r.expires_us FROM"
    " unnest(CAST(?1 AS BYTEA[]), CAST(?2 AS BYTEA[]), CAST(?3 AS BYTEA[]), CAST(?4 AS BIGINT[]))"
    " AS r(partition, sort, value, expires_us)"
    " ON CONFLICT (partition, sort) DO UPDATE SET value=excluded.value, expires_us=excluded.expires_us,"
)
_PUT_MANY = f"{_MANY} version=CASE WHEN record.expires_us<=?5 THEN 1 ELSE record.version+1 END"
_PUT_ABSENT_MANY = f"{_MANY} version=1 WHERE record.expires_us<=?5"
_PUT_OVER_MANY = (
    "UPDATE record SET value=r.value, expires_us=r.expires_us, version=record.version+1 FROM"
    " unnest(CAST(?1 AS BYTEA[]), CAST(?2 AS BYTEA[]), CAST(?3 AS BYTEA[]), CAST(?4 AS BIGINT[]), CAST(?6 AS BIGINT[]))"
    " AS r(partition, sort, value, expires_us, version)"
    " WHERE record.partition=r.partition AND record.sort=r.sort AND record.version=r.version"
    " AND (record.expires_us IS NULL OR record.expires_us>?5)"
)
_DELETE = "DELETE FROM record WHERE partition=?1 AND sort=?2"
_DELETE_OVER = f"{_DELETE} AND version=?4 AND {_ALIVE}"
_PURGE = (
    "DELETE FROM record WHERE (partition, sort) IN"
    " (SELECT partition, sort FROM record WHERE due<=?1/3600000000 AND expires_us<=?1 ORDER BY due LIMIT 1000)"
)
TOGETHER_MAX = 64
PACE_FROM, PACE_S = 4, 0.02  # where so many shared a transaction, the next begins so long after it began
GATHERED_BYTES_MAX = 16_384  # larger values travel as they are
_COUNTS = ("unexpected_rows", "unique_rule")


class ClosableSql(Sql, Protocol):
    """An engine's `Sql`, which this store owns."""

    def statistics(self) -> msgspec.Struct: ...
    async def close(self) -> None: ...


class SqlRecords:
    """`Records` in one table of a relational store."""

    def __init__(self, sql: ClosableSql) -> None:
        self._sql = sql
        self._since_purge = 0
        self._line: deque[_Writing] = deque()
        self._writing = False
        self._last, self._began_s = 0, 0.0
        self._looking: list[_Looking] | None = None

    async def open(self) -> "SqlRecords":
        """Make the table where it is missing."""
        await self._sql.commit([Statement(sql) for sql in _CREATE])
        return self

    async def get(self, partition: bytes, sort: bytes) -> Record | None:
        if self._looking is None:
            record = await self._look(partition, sort)
        else:
            mine = _Looking(partition, sort, asyncio.get_running_loop().create_future())
            self._looking.append(mine)
            if len(self._looking) >= TOGETHER_MAX:
                self._looking = None
            try:
                record = await mine.future
            except _ReaderLeft:
                record = await self._look_alone(partition, sort)
        if record is None or (record.expires_us is not None and record.expires_us <= clock.now_us()):
            return None
        return record

    async def _look_alone(self, partition: bytes, sort: bytes) -> Record | None:
        rows = await self._sql.read(_FIND, partition, sort)
        return _record(rows[0]) if rows else None

    async def _look(self, partition: bytes, sort: bytes) -> Record | None:
        """Read for everybody who looks in this turn of the loop."""
        others: list[_Looking] = []
        self._looking = others
        try:
            await clock.sleep(0)
            if self._looking is others:
                self._looking = None
            if not others:
                return await self._look_alone(partition, sort)
            wanted = [(partition, sort), *((one.partition, one.sort) for one in others)]
            places = array([place for place, _ in wanted], bytes), array([key for _, key in wanted], bytes)
            found = {row[0]: _record(row[1:]) for row in await self._sql.read(_FIND_MANY, *places)}
            for number, one in enumerate(others, 2):
                if not one.future.done():
                    one.future.set_result(found.get(number))
            return found.get(1)
        except BaseException as error:
            told = error if isinstance(error, FourplaneError) else _ReaderLeft()
            for one in others:
                _fail(one.future, told)
            raise
        finally:
            if self._looking is others:
                self._looking = None

    async def scan(
        self,
        partition: bytes,
        *,
        start: bytes = b"",
        end: bytes | None = None,
        limit: int = 1_000,
        reverse: bool = False,
    ) -> list[Record]:
        if not 0 < limit <= SCAN_MAX:
            raise Rejected(f"a scan returns 1 to {SCAN_MAX} records, not {limit}", code="bad_limit")
        sql = _SCAN if end is None else f"{_SCAN} AND sort<?5"
        sql = f"{sql} ORDER BY sort {'DESC' if reverse else 'ASC'} LIMIT ?4"
        bounds = (partition, start, clock.now_us(), limit)
        rows = await self._sql.read(sql, *(bounds if end is None else (*bounds, end)))
        return [_record(row) for row in rows]

    async def write(self, partition: bytes, changes: Sequence[Change]) -> None:
        check_changes(partition, changes)
        mine = _Writing(partition, tuple(changes), asyncio.get_running_loop().create_future())
        self._line.append(mine)
        try:
            if self._writing and await mine.future is None:
                return
        except asyncio.CancelledError:
            if (
                mine.future.done()
                and not mine.future.cancelled()
                and mine.future.exception() is None
                and mine.future.result()
            ):
                self._pass_on(mine)  # it was its turn to write for all
            raise
        await self._write_line(mine)
        await mine.future
        self._since_purge += len(changes)
        if self._since_purge >= PURGE_EVERY:
            self._since_purge = 0
            await self._sql.commit([Statement(_PURGE, (clock.now_us(),))])

    async def _write_line(self, mine: "_Writing") -> None:
        """One commit for all who stand in line; then the next in line writes for those who came meanwhile."""
        self._writing = True
        if self._last >= PACE_FROM:
            try:
                await clock.sleep(max(0.0, self._began_s + PACE_S - clock.monotonic_s()))
            except BaseException:
                self._pass_on(mine)
                raise
        self._began_s = clock.monotonic_s()
        batch = [self._line.popleft() for _ in range(min(len(self._line), TOGETHER_MAX))]
        self._last = len(batch)
        for one in batch:
            if one.future.done():  # it was told to write
                one.future = asyncio.get_running_loop().create_future()
        try:
            await self._write_batch(batch)
        finally:
            stopped = Unavailable(
                "the writer of this batch was stopped; it may or may not be written", code="write_unknown"
            )
            for one in batch:
                _fail(one.future, stopped)
            self._pass_on(None)

    def _pass_on(self, gone: "_Writing | None") -> None:
        if gone is not None and gone in self._line:
            self._line.remove(gone)
        while self._line:
            following = self._line[0]
            if not following.future.done():
                following.future.set_result(True)
                return
            self._line.popleft()  # its caller has left
        self._writing = False

    async def _write_batch(self, batch: "list[_Writing]") -> None:
        now_us = clock.now_us()
        try:
            await self._sql.commit(_statements(batch, now_us))
        except Conflict as error:
            if len(batch) == 1:
                _fail(batch[0].future, _told(error, batch[0].changes))
                return
            await asyncio.gather(*(self._write_batch([one]) for one in batch))  # each hears its own answer
        except FourplaneError as error:
            for one in batch:
                _fail(one.future, error)
        else:
            for one in batch:
                if not one.future.done():
                    one.future.set_result(None)

    def statistics(self) -> msgspec.Struct:
        return self._sql.statistics()

    async def close(self) -> None:
        await self._sql.close()


class _ReaderLeft(Exception):
    """Who was to read for all was stopped."""


class _Looking:
    """Somebody who waits for what another caller reads."""

    __slots__ = ("future", "partition", "sort")

    def __init__(self, partition: bytes, sort: bytes, future: "asyncio.Future[Record | None]") -> None:
        self.partition = partition
        self.sort = sort
        self.future = future


class _Writing:
    """One write in line. Its future is None when written; True means that its caller writes for the line."""

    __slots__ = ("changes", "future", "partition")

    def __init__(self, partition: bytes, changes: tuple[Change, ...], future: "asyncio.Future[bool | None]") -> None:
        self.partition = partition
        self.changes = changes
        self.future = future


def _told(error: Conflict, changes: Sequence[Change]) -> Conflict:
    """Which record was not at its version."""
    position = error.fields.get("position")
    if error.reason in _COUNTS and isinstance(position, int):
        return conflict(changes[position])
    return error


def _fail(future: "asyncio.Future[Any]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # its caller may have gone


def _statements(batch: "Sequence[_Writing]", now_us: int) -> list[Statement]:
    """The writes of a batch; where several came and no key comes twice, what is put in one way is one statement."""
    single = [(one.partition, change) for one in batch for change in one.changes]
    if len(batch) == 1 or len({(partition, change.sort) for partition, change in single}) < len(single):
        return [_statement(partition, change, now_us) for partition, change in single]
    statements: list[Statement] = []
    gathered: dict[str, list[tuple[bytes, Put]]] = {}
    for partition, change in single:
        if isinstance(change, Put) and len(change.value) <= GATHERED_BYTES_MAX:
            expected = change.expect_version
            text = _PUT_MANY if expected is None else _PUT_OVER_MANY if expected else _PUT_ABSENT_MANY
            gathered.setdefault(text, []).append((partition, change))
        else:
            statements.append(_statement(partition, change, now_us))
    for text, puts in gathered.items():
        values: tuple[SqlValue, ...] = (
            array([partition for partition, _ in puts], bytes),
            array([put.sort for _, put in puts], bytes),
            array([put.value for _, put in puts], bytes),
            array([_expires_us(put, now_us) for _, put in puts], int),
            now_us,
        )
        if text == _PUT_OVER_MANY:
            values = (*values, array([put.expect_version for _, put in puts], int))
        statements.append(Statement(text, values, expect_rows=len(puts) if text != _PUT_MANY else None))
    return statements


def _expires_us(put: Put, now_us: int) -> int | None:
    return None if put.ttl_s is None else now_us + int(put.ttl_s * 1e6)


def _statement(partition: bytes, change: Change, now_us: int) -> Statement:
    expected, sort = change.expect_version, change.sort
    if isinstance(change, Put):
        row = (partition, sort, change.value, _expires_us(change, now_us), now_us)
        if expected is None:
            return Statement(_PUT, row)
        if expected == 0:
            return Statement(_PUT_ABSENT, row, expect_rows=1)
        return Statement(_PUT_OVER, (*row, expected), expect_rows=1)
    if expected is None:
        return Statement(_DELETE, (partition, sort))
    if expected == 0:
        return Statement(_PRESENT, (partition, sort, now_us), expect_rows=0)
    return Statement(_DELETE_OVER, (partition, sort, now_us, expected), expect_rows=1)


def _record(row: Row) -> Record:
    sort, value, version, expires_us = row
    return Record(cast("bytes", sort), cast("bytes", value), cast("int", version), cast("int | None", expires_us))

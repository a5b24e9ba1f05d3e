"""Wide rows on SQLite: the `Records` contract over one `Database`.

One table clustered by (partition, sort), so a partition's records lie together and a scan reads them in order. An expired
record is absent for everybody from its microsecond on; its row is removed a little later, some hundreds at a time, by the writes
that follow. A put over an expired row starts again at version 1.
"""

from collections.abc import Sequence
from typing import cast

import apsw
import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, Rejected, TooLarge
from fourplane.state.contracts import Change, Delete, Put, Record
from fourplane.state.embedded.database import Database, DatabaseStatistics

KEY_BYTES_MAX = 512
VALUE_BYTES_MAX = 1 << 20
CHANGES_MAX = 100
SCAN_MAX = 10_000
PURGE_EVERY = 1_000
PURGE_ROWS = 500

SCHEMA = (
    (
        "CREATE TABLE IF NOT EXISTS record (partition BLOB NOT NULL, sort BLOB NOT NULL, value BLOB NOT NULL,"
        " version INTEGER NOT NULL, expires_us INTEGER, PRIMARY KEY (partition, sort)) WITHOUT ROWID"
    ),
    "CREATE INDEX IF NOT EXISTS record_expires ON record (expires_us) WHERE expires_us IS NOT NULL",
)
_GET = "SELECT value, version, expires_us FROM record WHERE partition=?1 AND sort=?2"
_ALIVE = "(expires_us IS NULL OR expires_us>?3)"
_SCAN = f"SELECT sort, value, version, expires_us FROM record WHERE partition=?1 AND sort>=?2 AND {_ALIVE}"  # noqa: S608 - constants
_PUT = (
    "INSERT INTO record (partition, sort, value, version, expires_us) VALUES (?1,?2,?3,1,?4)"
    " ON CONFLICT (partition, sort) DO UPDATE SET value=excluded.value, expires_us=excluded.expires_us,"
    " version=CASE WHEN record.expires_us<=?5 THEN 1 ELSE record.version+1 END"
)
_PUT_ABSENT = (
    "INSERT INTO record (partition, sort, value, version, expires_us) VALUES (?1,?2,?3,1,?4)"
    " ON CONFLICT (partition, sort) DO UPDATE SET value=excluded.value, expires_us=excluded.expires_us, version=1"
    " WHERE record.expires_us<=?5"
)
_PUT_OVER = (
    "UPDATE record SET value=?3, expires_us=?4, version=version+1"
    " WHERE partition=?1 AND sort=?2 AND version=?6 AND (expires_us IS NULL OR expires_us>?5)"
)
_DELETE = "DELETE FROM record WHERE partition=?1 AND sort=?2"
_DELETE_OVER = f"DELETE FROM record WHERE partition=?1 AND sort=?2 AND version=?4 AND {_ALIVE}"  # noqa: S608 - constants
_PURGE = (
    "DELETE FROM record WHERE (partition, sort) IN"
    " (SELECT partition, sort FROM record WHERE expires_us<=?1 ORDER BY expires_us LIMIT ?2)"
)


class RecordsStatistics(msgspec.Struct, frozen=True):
    """One store of records since it was opened."""

    database: DatabaseStatistics
    purged: int


class EmbeddedRecords:
    """`Records` on one SQLite file. A point read takes 3 to 8 us inline."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._since_purge = 0
        self._purged = 0

    async def open(self) -> "EmbeddedRecords":
        """Make the table where it is missing."""
        await self.database.transact(_create)
        return self

    async def get(self, partition: bytes, sort: bytes) -> Record | None:
        rows = cast("list[tuple[bytes, int, int | None]]", self.database.read(_GET, (partition, sort)))
        if not rows:
            return None
        value, version, expires_us = rows[0]
        if expires_us is not None and expires_us <= clock.now_us():
            return None
        return Record(sort, value, version, expires_us)

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
        rows = self.database.read(sql, bounds if end is None else (*bounds, end))
        return [Record(*row) for row in cast("list[tuple[bytes, bytes, int, int | None]]", rows)]

    async def write(self, partition: bytes, changes: Sequence[Change]) -> None:
        check_changes(partition, changes)
        now_us = clock.now_us()
        given = tuple(changes)
        if len(given) == 1:
            only = given[0]
            await self.database.transact(lambda writer: _apply(writer, partition, only, now_us), savepoint=False)
        else:
            await self.database.transact(
                lambda writer: _apply_all(writer, partition, given, now_us),
                weight=len(given),
            )
        self._since_purge += len(given)
        if self._since_purge >= PURGE_EVERY:
            self._since_purge = 0
            self._purged += await self.purge()

    async def purge(self) -> int:
        """Remove up to 500 rows that expired; how many went."""
        now_us = clock.now_us()

        def remove(writer: apsw.Connection) -> int:
            writer.execute(_PURGE, (now_us, PURGE_ROWS)).fetchall()
            return int(writer.changes())

        if not self.database.read("SELECT 1 FROM record WHERE expires_us<=?1 LIMIT 1", (now_us,)):
            return 0
        return await self.database.transact(remove, weight=PURGE_ROWS, savepoint=False)

    def statistics(self) -> RecordsStatistics:
        return RecordsStatistics(database=self.database.statistics(), purged=self._purged)

    async def close(self) -> None:
        await self.database.close()


def check_changes(partition: bytes, changes: Sequence[Change]) -> None:
    """Raise Rejected or TooLarge for a batch past the contract's bounds; shared by all engines."""
    if not 0 < len(partition) <= KEY_BYTES_MAX:
        raise Rejected(f"a partition key has 1 to {KEY_BYTES_MAX} bytes, not {len(partition)}", code="bad_key")
    if not 0 < len(changes) <= CHANGES_MAX:
        raise TooLarge(f"a batch has 1 to {CHANGES_MAX} changes, not {len(changes)}")
    for change in changes:
        if not 0 < len(change.sort) <= KEY_BYTES_MAX:
            raise Rejected(f"a sort key has 1 to {KEY_BYTES_MAX} bytes, not {len(change.sort)}", code="bad_key")
        if isinstance(change, Put):
            if len(change.value) > VALUE_BYTES_MAX:
                raise TooLarge(f"a value has at most {VALUE_BYTES_MAX} bytes, not {len(change.value)}")
            if change.ttl_s is not None and not change.ttl_s > 0:
                raise Rejected(f"a record cannot live for {change.ttl_s} s", code="bad_ttl")
    if len(changes) > 1 and len({change.sort for change in changes}) != len(changes):
        raise Rejected("a batch changes each sort key once", code="duplicate_key")


def conflict(change: Change) -> Conflict:
    """The error of a version that differs."""
    told = f"record {change.sort!r} is not at version {change.expect_version}"
    return Conflict(told, code="version", sort=change.sort, expected=change.expect_version)


def _create(writer: apsw.Connection) -> None:
    for statement in SCHEMA:
        writer.execute(statement).fetchall()


def _apply_all(writer: apsw.Connection, partition: bytes, changes: Sequence[Change], now_us: int) -> None:
    for change in changes:
        _apply(writer, partition, change, now_us)


def _apply(writer: apsw.Connection, partition: bytes, change: Change, now_us: int) -> None:
    if isinstance(change, Put):
        expires_us = None if change.ttl_s is None else now_us + int(change.ttl_s * 1e6)
        expected = change.expect_version
        if expected is None:
            writer.execute(_PUT, (partition, change.sort, change.value, expires_us, now_us)).fetchall()
            return
        if expected == 0:
            writer.execute(_PUT_ABSENT, (partition, change.sort, change.value, expires_us, now_us)).fetchall()
        else:
            writer.execute(_PUT_OVER, (partition, change.sort, change.value, expires_us, now_us, expected)).fetchall()
        if writer.changes() != 1:
            raise conflict(change)
        return
    _remove(writer, partition, change, now_us)


def _remove(writer: apsw.Connection, partition: bytes, change: Delete, now_us: int) -> None:
    expected = change.expect_version
    if expected is None:
        writer.execute(_DELETE, (partition, change.sort)).fetchall()
        return
    if expected == 0:
        rows = writer.execute(f"{_GET} AND {_ALIVE}", (partition, change.sort, now_us)).fetchall()
        if rows:
            raise conflict(change)
        return
    writer.execute(_DELETE_OVER, (partition, change.sort, now_us, expected)).fetchall()
    if writer.changes() != 1:
        raise conflict(change)

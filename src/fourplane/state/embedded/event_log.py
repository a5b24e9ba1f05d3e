"""Ordered events on SQLite: the `EventLog` contract over one `Database`.

One row per producer batch, so that 1,000 events cost one insert. Bodies of all streams are appended to one table in the order
of arrival, which dirties its last page only; a small second table says where each batch lies: key = stream number << 40 |
offset of the first event. (Bodies clustered by stream wrote 1.2 to 7 times the bytes with 8 to 50 streams.) A body
begins with its schema number:

    u8 schema (1) | u32 count | u32 length of each event | the events

The end of a stream is its last batch, or the floor that a trim left behind when it removed that batch.
"""

import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from typing import cast

import apsw
import msgspec

from fourplane.foundation.errors import Corrupt, NotFound, Rejected, TooLarge
from fourplane.state.contracts import LogEntry
from fourplane.state.embedded.database import Database, DatabaseSettings, DatabaseStatistics
from fourplane.state.embedded.database_file import FileSettings

OFFSET_BITS = 40
EVENTS_MAX = 10_000
EVENT_BYTES_MAX = 1 << 20
BATCH_BYTES_MAX = 8 << 20
READ_BYTES_MAX = 8 << 20
READ_MAX = 100_000
NAME_CHARS_MAX = 200
SCHEMA_NUMBER = 1
SETTINGS = DatabaseSettings(
    file=FileSettings(page_bytes=32_768), checkpoint_bytes=24 << 20, inline_checkpoint_frames_max=300
)

_STEPS = (
    (
        "CREATE TABLE IF NOT EXISTS stream (id INTEGER PRIMARY KEY, topic TEXT NOT NULL, partition INTEGER NOT NULL,"
        " floor INTEGER NOT NULL DEFAULT 0, UNIQUE (topic, partition))"
    ),
    "CREATE TABLE IF NOT EXISTS batch (id INTEGER PRIMARY KEY, body BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS place (key INTEGER PRIMARY KEY, batch INTEGER NOT NULL, count INTEGER NOT NULL)",
    (
        "CREATE TABLE IF NOT EXISTS position (consumers TEXT NOT NULL, topic TEXT NOT NULL, partition INTEGER NOT NULL,"
        " next INTEGER NOT NULL, PRIMARY KEY (consumers, topic, partition)) WITHOUT ROWID"
    ),
)
_STREAM = "SELECT id, floor FROM stream WHERE topic=?1 AND partition=?2"
_LAST = "SELECT key, count FROM place WHERE key BETWEEN ?1 AND ?2 ORDER BY key DESC LIMIT 1"
_FROM = "SELECT key, body FROM place JOIN batch ON batch.id=place.batch WHERE key BETWEEN ?1 AND ?2 ORDER BY key"
_APPEND = "INSERT INTO batch (body) VALUES (?1)"
_TRIM_BODIES = "DELETE FROM batch WHERE id IN (SELECT batch FROM place WHERE key>=?1 AND key<?2)"
_PLACE = "INSERT INTO place (key, batch, count) VALUES (?1,?2,?3)"
_POSITION = (
    "INSERT INTO position (consumers, topic, partition, next) VALUES (?1,?2,?3,?4)"
    " ON CONFLICT (consumers, topic, partition) DO UPDATE SET next=excluded.next"
)


class EventLogStatistics(msgspec.Struct, frozen=True):
    """One event log since it was opened."""

    database: DatabaseStatistics
    streams: int
    appended: int
    read: int


class _Stream:
    """Where the next batch goes, as the writer sees it inside its transaction."""

    __slots__ = ("end", "id")

    def __init__(self, number: int, end: int) -> None:
        self.id = number
        self.end = end


class EmbeddedEventLog:
    """`EventLog` on one SQLite file; 1 us an event in batches of 1,000."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._streams: dict[tuple[str, int], _Stream] = {}
        self._known: dict[tuple[str, int], int] = {}
        self._appended = self._read = 0

    async def open(self) -> "EmbeddedEventLog":
        """Make the tables where they are missing."""
        self.database.when_undone(self._streams.clear)
        await self.database.transact(_create)
        return self

    async def append(self, topic: str, partition: int, values: Sequence[bytes]) -> int:
        _check_name(topic)
        body = encode(values)
        count = len(values)
        key = (topic, partition)

        def work(writer: apsw.Connection) -> int:
            stream = self._streams.get(key)
            if stream is None:
                stream = self._streams[key] = _load(writer, topic, partition)
            first = stream.end
            writer.execute(_APPEND, (body,)).fetchall()
            place = (stream.id << OFFSET_BITS | first, writer.last_insert_rowid(), count)
            writer.execute(_PLACE, place).fetchall()
            stream.end = first + count
            return first

        first = await self.database.transact(work, weight=1 + len(body) // 16_384, savepoint=False)
        self._appended += count
        return first

    async def read(self, topic: str, partition: int, offset: int, *, limit: int = 1_000) -> list[LogEntry]:
        if not 0 < limit <= READ_MAX or offset < 0:
            raise Rejected(f"cannot read {limit} events from offset {offset}", code="bad_offset")
        base, floor = self._stream(topic, partition)
        if base is None:
            return []
        if offset < floor:
            raise NotFound(f"offset {offset} of {topic}/{partition} was trimmed, {floor} is the first", first=floor)
        last = self.database.integers(_LAST, (base, base | offset))
        if last and _end(last, base, floor) <= offset:
            return []
        entries: list[LogEntry] = []
        size = 0
        cursor = self.database.cursor(_FROM, (last[0][0] if last else base, base | (1 << OFFSET_BITS) - 1))
        for key, body in cast("Iterator[tuple[int, bytes]]", cursor):
            size += take(body, key - base, offset, limit, entries, self.database.name)
            if len(entries) >= limit or size > READ_BYTES_MAX:
                cursor.close()
                break
        self._read += len(entries)
        return entries

    async def end_offset(self, topic: str, partition: int) -> int:
        base, floor = self._stream(topic, partition)
        if base is None:
            return 0
        return _end(self.database.integers(_LAST, (base, base | (1 << OFFSET_BITS) - 1)), base, floor)

    async def commit_offset(self, group: str, topic: str, partition: int, offset: int) -> None:
        _check_name(group)
        if offset < 0:
            raise Rejected(f"offset {offset} is negative", code="bad_offset")
        await self.database.transact(
            lambda writer: writer.execute(_POSITION, (group, topic, partition, offset)).fetchall(), savepoint=False
        )

    async def committed_offset(self, group: str, topic: str, partition: int) -> int:
        sql = "SELECT next FROM position WHERE consumers=?1 AND topic=?2 AND partition=?3"
        rows = self.database.integers(sql, (group, topic, partition))
        return rows[0][0] if rows else 0

    async def trim(self, topic: str, partition: int, before: int) -> None:
        def work(writer: apsw.Connection) -> None:
            stream = self._streams.get((topic, partition)) or _load(writer, topic, partition)
            base = stream.id << OFFSET_BITS
            rows = _integers(writer, _LAST, base, base | min(before, stream.end))
            if not rows:
                return
            # the batch that holds `before` stays, unless `before` is exactly behind it
            key, count = rows[0]
            cut = key - base + count if key - base + count <= before else key - base
            writer.execute(_TRIM_BODIES, (base, base | cut)).fetchall()
            writer.execute("DELETE FROM place WHERE key>=?1 AND key<?2", (base, base | cut)).fetchall()
            writer.execute("UPDATE stream SET floor=max(floor, ?1) WHERE id=?2", (cut, stream.id)).fetchall()

        if before > 0:
            await self.database.transact(work, weight=100)

    def statistics(self) -> EventLogStatistics:
        return EventLogStatistics(self.database.statistics(), len(self._known), self._appended, self._read)

    async def close(self) -> None:
        await self.database.close()

    def _stream(self, topic: str, partition: int) -> tuple[int | None, int]:
        """Base key and floor of a stream that has durable events."""
        rows = self.database.integers(_STREAM, (topic, partition))
        if not rows:
            return None, 0
        number, floor = rows[0]
        self._known[topic, partition] = number
        return number << OFFSET_BITS, floor


def encode(values: Sequence[bytes]) -> bytes:
    """One batch as stored; raises Rejected or TooLarge past the bounds."""
    count = len(values)
    if not 0 < count <= EVENTS_MAX:
        raise Rejected(f"a batch has 1 to {EVENTS_MAX} events, not {count}", code="bad_batch")
    lengths = array("I", map(len, values))
    total = sum(lengths)
    if total > BATCH_BYTES_MAX or (total > EVENT_BYTES_MAX and max(lengths) > EVENT_BYTES_MAX):
        raise TooLarge(f"an event has at most {EVENT_BYTES_MAX} bytes, a batch {BATCH_BYTES_MAX}")
    if sys.byteorder == "big":
        lengths.byteswap()
    return b"".join((struct.pack("<BI", SCHEMA_NUMBER, count), lengths.tobytes(), *values))


def take(body: bytes, first: int, offset: int, limit: int, into: list[LogEntry], path: object) -> int:  # noqa: PLR0917 - hot path
    """Add the events of one batch from `offset` on, up to `limit` entries in all; how many bytes they have."""
    schema, count = struct.unpack_from("<BI", body)
    if schema != SCHEMA_NUMBER:
        raise Corrupt(f"{path}: batch {first} has schema {schema}", file=str(path), place=f"offset {first}")
    lengths = struct.unpack_from(f"<{count}I", body, 5)
    skip = max(0, offset - first)
    if skip >= count:
        return 0
    at = 5 + 4 * count + sum(lengths[:skip])
    began = at
    stop = min(count, skip + limit - len(into))
    for index in range(skip, stop):
        end = at + lengths[index]
        into.append(LogEntry(first + index, body[at:end]))
        at = end
    taken: int = at - began
    return taken


def _create(writer: apsw.Connection) -> None:
    for statement in _STEPS:
        writer.execute(statement).fetchall()


def _load(writer: apsw.Connection, topic: str, partition: int) -> _Stream:
    rows = _integers(writer, _STREAM, topic, partition)
    if not rows:
        made = _integers(writer, "INSERT INTO stream (topic, partition) VALUES (?1,?2) RETURNING id", topic, partition)
        return _Stream(made[0][0], 0)
    number, floor = rows[0]
    base = number << OFFSET_BITS
    return _Stream(number, _end(_integers(writer, _LAST, base, base | (1 << OFFSET_BITS) - 1), base, floor))


def _integers(writer: apsw.Connection, sql: str, *parameters: int | str) -> list[tuple[int, ...]]:
    return cast("list[tuple[int, ...]]", writer.execute(sql, parameters).fetchall())


def _end(last: Sequence[tuple[int, ...]], base: int, floor: int) -> int:
    if not last:
        return floor
    key, count = last[0]
    return max(floor, key - base + count)


def _check_name(name: str) -> None:
    if not 0 < len(name) <= NAME_CHARS_MAX:
        raise Rejected(f"a name has 1 to {NAME_CHARS_MAX} characters", code="bad_name")

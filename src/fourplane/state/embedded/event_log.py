"""Ordered events on the disk: the `EventLog` contract over segment files and one `Database` as their index.

Idea. Events are only ever appended, so a B-tree would write each byte twice (log and page) and copy it four times. Here a
batch is one frame of a segment file (`segments`), written once: all batches waiting for the disk are one write and one
sync on the worker, everybody is told together, and the next ones gather meanwhile. SQLite keeps what is small: the
streams, where consumer groups go on, and the index from (stream, offset) to a frame. The index follows behind,
`index_batches` frames in one commit; opening reads the frames behind it again, so a killed process loses none.

A frame's key = stream number << 40 | offset of the first event. `event_batch` has the body.

The end of a stream is its last batch, or the floor that a trim left behind when it removed that batch. A trim gives the space
of whole segments back (64 MiB), once none of their batches is referred to.

Bounds: those of `frame_writer`; `behind_batches_max` frames not indexed, then Overloaded.
Cost: 0.3 us of CPU per event of 100 bytes in batches of 1,000.
"""

import asyncio
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import cast

import apsw
import msgspec

from fourplane.foundation.errors import Corrupt, FourplaneError, NotFound, Overloaded, Rejected, Unavailable
from fourplane.state.contracts import LogEntry
from fourplane.state.embedded.database import Database, DatabaseSettings, DatabaseStatistics
from fourplane.state.embedded.event_batch import encode, take
from fourplane.state.embedded.frame_writer import FrameWriter, WriterSettings, WriterStatistics
from fourplane.state.embedded.segments import PLACE_BITS, Frame, frames_beside

OFFSET_BITS = 40
OFFSET_MASK = (1 << OFFSET_BITS) - 1
READ_BYTES_MAX = 8 << 20
READ_MAX = 100_000
NAME_CHARS_MAX = 200
SETTINGS = DatabaseSettings()

_STEPS = (
    (
        "CREATE TABLE IF NOT EXISTS stream (id INTEGER PRIMARY KEY, topic TEXT NOT NULL, partition INTEGER NOT NULL,"
        " floor INTEGER NOT NULL DEFAULT 0, UNIQUE (topic, partition))"
    ),
    (
        "CREATE TABLE IF NOT EXISTS frame (key INTEGER PRIMARY KEY, at INTEGER NOT NULL, count INTEGER NOT NULL,"
        " size INTEGER NOT NULL)"
    ),
    "CREATE TABLE IF NOT EXISTS segment (number INTEGER PRIMARY KEY, live INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS indexed (one INTEGER PRIMARY KEY, upto INTEGER NOT NULL)",
    (
        "CREATE TABLE IF NOT EXISTS position (consumers TEXT NOT NULL, topic TEXT NOT NULL, partition INTEGER NOT NULL,"
        " next INTEGER NOT NULL, PRIMARY KEY (consumers, topic, partition)) WITHOUT ROWID"
    ),
)
_STREAM = "SELECT id, floor FROM stream WHERE topic=?1 AND partition=?2"
_LAST = "SELECT key, at, count, size FROM frame WHERE key BETWEEN ?1 AND ?2 ORDER BY key DESC LIMIT 1"
_FROM = "SELECT key, at, count, size FROM frame WHERE key BETWEEN ?1 AND ?2 ORDER BY key"
_INDEX = "INSERT OR REPLACE INTO frame (key, at, count, size) VALUES (?1,?2,?3,?4)"
_LIVE = "INSERT INTO segment (number, live) VALUES (?1,?2) ON CONFLICT (number) DO UPDATE SET live=live+excluded.live"
_UPTO = "INSERT INTO indexed (one, upto) VALUES (1,?1) ON CONFLICT (one) DO UPDATE SET upto=excluded.upto"
_POSITION = (
    "INSERT INTO position (consumers, topic, partition, next) VALUES (?1,?2,?3,?4)"
    " ON CONFLICT (consumers, topic, partition) DO UPDATE SET next=excluded.next"
)


class EventLogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of one event log."""

    writer: WriterSettings = WriterSettings()
    index_batches: int = 1_000
    behind_batches_max: int = 50_000
    streams_cached: int = 20_000


class EventLogStatistics(msgspec.Struct, frozen=True):
    """One event log since it was opened."""

    database: DatabaseStatistics
    writer: WriterStatistics
    streams: int
    appended: int
    read: int
    not_indexed: int


class _Stream:
    """One partition: where the next batch goes, how far it is durable, and its durable frames that are not indexed yet."""

    __slots__ = ("durable", "end", "floor", "id", "tail")

    def __init__(self, number: int, end: int, floor: int) -> None:
        self.id = number
        self.end = self.durable = end
        self.floor = floor
        self.tail: list[Frame] = []


class EmbeddedEventLog:
    """`EventLog` in a folder of segments beside its index."""

    def __init__(self, database: Database, *, settings: EventLogSettings | None = None) -> None:
        self.database = database
        self._settings = settings or EventLogSettings()
        self._writer: FrameWriter[_Stream] = FrameWriter(
            frames_beside(database.path, database.disk, "segments", self._settings.writer.segment_bytes),
            database.name,
            self._settings.writer,
            written=self._written,
            refused=self._refused,
        )
        self._streams: dict[tuple[str, int], _Stream] = {}
        self._making: dict[tuple[str, int], asyncio.Future[int]] = {}
        self._behind: list[tuple[_Stream, Frame]] = []
        self._indexing: asyncio.Future[None] | None = None
        self._appended = self._read = self._indexed_count = 0
        self._open = False

    async def open(self) -> "EmbeddedEventLog":
        """Make the tables where they are missing, and index the frames that were written last; raises Corrupt."""
        await self.database.transact(_create)
        rows = self.database.integers("SELECT upto FROM indexed")
        found = await self._writer.open(rows[0][0] if rows else 0)
        known = {number for (number,) in self.database.integers("SELECT id FROM stream")}
        for frame in found:
            if frame.key >> OFFSET_BITS not in known:
                told = f"{self.database.name}: an event of stream {frame.key >> OFFSET_BITS}, which it does not know"
                raise Corrupt(told, file=self.database.name, place="table stream")
        for start in range(0, len(found), self._settings.index_batches):
            batch = found[start : start + self._settings.index_batches]
            await self.database.transact(partial(_index, batch), weight=len(batch), savepoint=False)
        self._open = True
        if self.database.integers("SELECT count(*) FROM sqlite_schema WHERE name='batch'") != [(0,)]:
            await self._bring_over()
        return self

    async def append(self, topic: str, partition: int, values: Sequence[bytes]) -> int:
        _check_name(topic)
        body = encode(values)
        stream = self._find(topic, partition) or await self._make(topic, partition)
        first = stream.end
        await self._put(stream, body, len(values))
        return first

    async def read(self, topic: str, partition: int, offset: int, *, limit: int = 1_000) -> list[LogEntry]:
        if not 0 < limit <= READ_MAX or offset < 0:
            raise Rejected(f"cannot read {limit} events from offset {offset}", code="bad_offset")
        stream = self._find(topic, partition)
        if stream is None or offset >= stream.durable:
            return []
        if offset < stream.floor:
            told = f"offset {offset} of {topic}/{partition} was trimmed, {stream.floor} is the first"
            raise NotFound(told, first=stream.floor)
        entries: list[LogEntry] = []
        size = 0
        base = stream.id << OFFSET_BITS
        for frame in self._frames_from(stream, offset):
            size += take(self._writer.frames.read(frame), frame.key - base, offset, limit, entries, self.database.name)
            if len(entries) >= limit or size > READ_BYTES_MAX:
                break
        self._read += len(entries)
        return entries

    async def end_offset(self, topic: str, partition: int) -> int:
        stream = self._find(topic, partition)
        return stream.durable if stream is not None else 0

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
        stream = self._find(topic, partition)
        if before <= 0 or stream is None:
            return
        await self.index()
        base, durable = stream.id << OFFSET_BITS, stream.durable

        def work(writer: apsw.Connection) -> int:
            rows = _integers(writer, _LAST, base, base | min(before, durable))
            if not rows:
                return 0
            # the batch that holds `before` stays, unless `before` is exactly behind it
            key, _, count, _ = rows[0]
            cut = key - base + count if key - base + count <= before else key - base
            gone = _integers(writer, "DELETE FROM frame WHERE key>=?1 AND key<?2 RETURNING at", base, base | cut)
            for number in sorted({at >> PLACE_BITS for (at,) in gone}):
                _integers(writer, _LIVE, number, -sum(at >> PLACE_BITS == number for (at,) in gone))
            writer.execute("UPDATE stream SET floor=max(floor, ?1) WHERE id=?2", (cut, stream.id)).fetchall()
            return cut

        cut = await self.database.transact(work, weight=100)
        for kept in (
            stream,
            self._streams.get((topic, partition), stream),
        ):  # the cache may have let go of it meanwhile
            kept.floor = max(kept.floor, cut)
        await self._drop_segments()

    async def index(self) -> None:
        """Wait until every batch that was durable when this was called is in the index."""
        wanted = self._indexed_count + len(self._behind)
        while self._indexed_count < wanted:
            await asyncio.shield(self._indexing or self._start_indexing())

    def statistics(self) -> EventLogStatistics:
        return EventLogStatistics(
            database=self.database.statistics(),
            writer=self._writer.statistics(),
            streams=len(self._streams),
            appended=self._appended,
            read=self._read,
            not_indexed=len(self._behind),
        )

    async def close(self) -> None:
        """Finish what is queued and index it."""
        if self._open:
            self._open = False
            await self._writer.drain()
            if self._writer.failed is None:
                await self.index()
            await self._writer.close()
        await self.database.close()

    def abandon(self) -> None:
        """Let go without finishing anything, as a killed process would; for tests and the simulator."""
        self._open = False
        self._writer.abandon()
        self.database.abandon()

    # ---- streams ----

    def _find(self, topic: str, partition: int) -> _Stream | None:
        """A stream that exists durably."""
        key = (topic, partition)
        stream = self._streams.get(key)
        if stream is None:
            rows = self.database.integers(_STREAM, key)
            if not rows:
                return None
            number, floor = rows[0]
            base = number << OFFSET_BITS
            last = self.database.integers(_LAST, (base, base | OFFSET_MASK))
            end = max(floor, last[0][0] - base + last[0][2]) if last else floor
            self._forget_streams()
            stream = self._streams[key] = _Stream(number, end, floor)
        return stream

    async def _make(self, topic: str, partition: int) -> _Stream:
        """A new stream, durable before its first event; callers that want the same one at once share the commit."""
        key = (topic, partition)
        made = self._making.get(key)
        if made is None:

            def work(writer: apsw.Connection) -> int:
                insert = "INSERT INTO stream (topic, partition) VALUES (?1,?2) RETURNING id"
                return _integers(writer, insert, topic, partition)[0][0]

            made = self._making[key] = self.database.transact(work)
            made.add_done_callback(lambda _: self._making.pop(key, None))
        await asyncio.shield(made)
        stream = self._find(topic, partition)
        assert stream is not None, "its commit has returned"
        return stream

    def _forget_streams(self) -> None:
        """Keep the cache of streams bounded: those with nothing under way are in the index."""
        if len(self._streams) < self._settings.streams_cached:
            return
        self._streams = {key: kept for key, kept in self._streams.items() if kept.tail or kept.end != kept.durable}

    def _frames_from(self, stream: _Stream, offset: int) -> Iterator[Frame]:
        """The durable frames of a stream from the one that holds `offset` on."""
        base = stream.id << OFFSET_BITS
        wanted, tail = base | offset, stream.tail
        behind = tail[0].key if tail else base | OFFSET_MASK
        if wanted < behind:
            last = self.database.integers(_LAST, (base, wanted))
            rows = self.database.cursor(_FROM, (last[0][0] if last else base, behind - 1))
            try:
                for key, at, count, size in cast("Iterator[tuple[int, int, int, int]]", rows):
                    yield Frame(at, key, count, size)
            finally:
                rows.close()
        start = bisect_right(tail, wanted, key=lambda frame: frame.key) - 1
        yield from tail[max(0, start) :]

    # ---- groups ----

    def _put(self, stream: _Stream, body: bytes, count: int) -> "asyncio.Future[None]":
        if len(self._behind) > self._settings.behind_batches_max:
            raise Overloaded(f"the index of {self.database.name} is behind", retry_after_s=1.0)
        done = self._writer.put(stream, stream.id << OFFSET_BITS | stream.end, count, body)
        stream.end += count
        return done

    def _written(self, streams: Sequence[_Stream], frames: Sequence[Frame]) -> None:
        for stream, frame in zip(streams, frames, strict=True):
            stream.durable = (frame.key & OFFSET_MASK) + frame.count
            stream.tail.append(frame)
            self._behind.append((stream, frame))
            self._appended += frame.count
        if len(self._behind) >= self._settings.index_batches and self._indexing is None:
            with suppress(FourplaneError):  # the next one tries again; `behind_batches_max` bounds what gathers
                self._start_indexing()

    def _refused(self, streams: Sequence[_Stream]) -> None:
        """Nothing of these counts: their offsets go to the next ones."""
        for stream in streams:
            stream.end = stream.durable

    # ---- the index ----

    def _start_indexing(self) -> "asyncio.Future[None]":
        """Commit the oldest frames that are not indexed yet; they stay in memory until that is durable."""
        batch = self._behind[: self._settings.index_batches]
        frames = [frame for _, frame in batch]
        committed = self.database.transact(partial(_index, frames), weight=len(frames), savepoint=False)
        self._indexing = asyncio.get_running_loop().create_future()
        committed.add_done_callback(partial(self._indexed, batch, self._indexing))
        return self._indexing

    def _indexed(
        self, batch: list[tuple[_Stream, Frame]], told: "asyncio.Future[None]", done: "asyncio.Future[None]"
    ) -> None:
        self._indexing = None
        error = Unavailable("the loop has ended") if done.cancelled() else done.exception()
        if error is not None:
            told.set_exception(error)
            told.exception()  # nobody may be waiting
            return
        del self._behind[: len(batch)]
        self._indexed_count += len(batch)
        counts: dict[_Stream, int] = {}
        for stream, _ in batch:
            counts[stream] = counts.get(stream, 0) + 1
        for stream, count in counts.items():
            stream.tail = stream.tail[count:]
        told.set_result(None)

    async def _drop_segments(self) -> None:
        """Remove segments without a live batch, the one being written excepted."""
        select = "SELECT number FROM segment WHERE live<=0 AND number<(SELECT upto>>?1 FROM indexed) LIMIT 1000"
        numbers = [number for (number,) in self.database.integers(select, (PLACE_BITS,))]
        if not numbers:
            return
        for number in numbers:
            await self._writer.worker.submit(self._writer.frames.drop, number)

        def work(writer: apsw.Connection) -> None:
            for number in numbers:
                writer.execute("DELETE FROM segment WHERE number=?1", (number,)).fetchall()

        await self.database.transact(work, weight=len(numbers))

    async def _bring_over(self) -> None:
        """Move the batches of a log of the first format, whose bodies were rows, into segments; may be repeated."""
        streams: dict[int, _Stream] = {}
        for topic, partition in cast(
            "list[tuple[str, int]]", self.database.read("SELECT topic, partition FROM stream")
        ):
            stream = self._find(topic, partition)
            assert stream is not None
            streams[stream.id] = stream
        rows = self.database.integers("SELECT key, batch FROM place ORDER BY key")
        for key, number in rows:
            stream = streams[key >> OFFSET_BITS]
            first = key & OFFSET_MASK
            if first < stream.end:
                continue
            body = cast("bytes", self.database.read("SELECT body FROM batch WHERE id=?1", (number,))[0][0])
            stream.end = first
            await self._put(stream, body, struct.unpack_from("<I", body, 1)[0])
        await self.index()
        await self.database.transact(_drop_first_format)


def _create(writer: apsw.Connection) -> None:
    for statement in _STEPS:
        writer.execute(statement).fetchall()


def _index(frames: list[Frame], writer: apsw.Connection) -> None:
    """Index frames that are durable, oldest first."""
    writer.executemany(_INDEX, ((frame.key, frame.at, frame.count, frame.size) for frame in frames)).fetchall()
    for number, live in _per_segment(frames):
        writer.execute(_LIVE, (number, live)).fetchall()
    writer.execute(_UPTO, (frames[-1].at + frames[-1].size,)).fetchall()


def _per_segment(frames: Iterable[Frame]) -> list[tuple[int, int]]:
    counts: dict[int, int] = {}
    for frame in frames:
        number = frame.at >> PLACE_BITS
        counts[number] = counts.get(number, 0) + 1
    return sorted(counts.items())


def _drop_first_format(writer: apsw.Connection) -> None:
    for table in ("place", "batch"):
        writer.execute(f"DROP TABLE {table}").fetchall()


def _integers(writer: apsw.Connection, sql: str, *parameters: int | str) -> list[tuple[int, ...]]:
    return cast("list[tuple[int, ...]]", writer.execute(sql, parameters).fetchall())


def _check_name(name: str) -> None:
    if not 0 < len(name) <= NAME_CHARS_MAX:
        raise Rejected(f"a name has 1 to {NAME_CHARS_MAX} characters", code="bad_name")

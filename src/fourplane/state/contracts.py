"""The six contracts of the state plane, and what each maps to on the big engines.

Systems know only these. A value, batch or row that is stored begins with its schema number; the system that owns it
writes it. A write that returned is durable on that engine; a write that raised may or may not have happened unless the error is
`Conflict` or `Rejected`, then it did not.

    contract   promise in one line                               embedded          at scale
    Sql        a list of statements commits together or not      SQLite            PostgreSQL, MySQL
    Records    a batch is atomic inside one partition            SQLite            Cassandra (LOGGED BATCH, LWT)
    EventLog   order inside a partition, at-least-once reading   SQLite            Kafka (acks=all, group offsets)
    Cache      may forget anything at any time                   process           Redis (SET PX, MGET, INCRBY)
    Blobs      whole objects, replaced atomically                folder            S3 (PUT, ranged GET, LIST v2)
    Search     documents found soon after they were given        tantivy           OpenSearch (bulk, query DSL)
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

SqlValue = int | float | str | bytes | None
Row = tuple[SqlValue, ...]


class Statement(msgspec.Struct, frozen=True, gc=False):
    """One SQL statement with numbered parameters (`?1`, `?2`) in the dialect both SQLite and PostgreSQL read.

    `expect_rows`: the number of rows it must change (or return); any other number undoes the whole commit with `Conflict`,
    whose `fields` name the statement's position and `label`. `sure`: no other number is possible (an INSERT of just these rows),
    so an engine need not pay for counting.
    """

    sql: str
    parameters: tuple[SqlValue, ...] = ()
    expect_rows: int | None = None
    label: str = ""
    sure: bool = False


class Sql(Protocol):
    """Relational rows. Maps to one PostgreSQL transaction per `commit`; waits for durability, grouped with others."""

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`, for rendering DDL."""

    async def read(self, sql: str, *parameters: SqlValue) -> list[Row]:
        """Rows of one query, at most 10,000; sees every commit that returned before. Embedded: inline, 5-15 us."""

    async def commit(self, statements: Sequence[Statement]) -> list[list[Row]]:
        """Run all statements in one transaction; durable when it returns. Rows of RETURNING, per statement.

        Raises Conflict when an expectation or a uniqueness rule fails (nothing happened), Rejected for wrong SQL.
        """


class Record(msgspec.Struct, frozen=True, gc=False):
    """One row of a partition. `version` grows by one with each write of this sort key, from 1."""

    sort: bytes
    value: bytes
    version: int
    expires_us: int | None = None


class Put(msgspec.Struct, frozen=True, gc=False):
    """Write one record. `expect_version`: None writes always, 0 only when absent, n only over version n."""

    sort: bytes
    value: bytes
    expect_version: int | None = None
    ttl_s: float | None = None


class Delete(msgspec.Struct, frozen=True, gc=False):
    """Remove one record; absent is fine unless `expect_version` asks for a version."""

    sort: bytes
    expect_version: int | None = None


Change = Put | Delete


class Records(Protocol):
    """Wide rows: partition key -> sorted records. No scan or order across partitions, no secondary index.

    Cassandra: one table (partition blob, sort blob, value blob, version bigint), batches per partition, `IF version = ?`.
    Keys: 1 to 512 bytes. Values: up to 1 MiB. A batch: up to 100 changes, distinct sort keys.
    """

    async def get(self, partition: bytes, sort: bytes) -> Record | None:
        """The record, or None when absent or expired. Embedded: inline, under 15 us."""

    async def scan(
        self,
        partition: bytes,
        *,
        start: bytes = b"",
        end: bytes | None = None,
        limit: int = 1_000,
        reverse: bool = False,
    ) -> list[Record]:
        """Records with start <= sort < end in sort order (or backwards), at most `limit` <= 10,000."""

    async def write(self, partition: bytes, changes: Sequence[Change]) -> None:
        """Apply all changes or none, durably; raises Conflict (field `sort`) when an expected version differs."""


class LogEntry(msgspec.Struct, frozen=True, gc=False):
    """One event at its offset; offsets of a partition grow by one without holes."""

    offset: int
    value: bytes


class EventLog(Protocol):
    """Append-only topics in numbered partitions, and the offsets of consumer groups. Kafka: acks=all, manual commit."""

    async def append(self, topic: str, partition: int, values: Sequence[bytes]) -> int:
        """Append a batch in order, durably; the offset of its first event. One batch is one stored row."""

    async def read(self, topic: str, partition: int, offset: int, *, limit: int = 1_000) -> list[LogEntry]:
        """Up to `limit` events from `offset` on; empty at the end. Raises NotFound for an offset already trimmed."""

    async def end_offset(self, topic: str, partition: int) -> int:
        """The offset the next event will get."""

    async def commit_offset(self, group: str, topic: str, partition: int, offset: int) -> None:
        """Remember durably that `group` has handled everything before `offset`."""

    async def committed_offset(self, group: str, topic: str, partition: int) -> int:
        """Where `group` goes on; 0 when it never committed."""

    async def trim(self, topic: str, partition: int, before: int) -> None:
        """Forget events before `before` (whole batches only)."""


class Cache(Protocol):
    """Values that may vanish at any time. Redis: commands of one loop tick share one pipeline."""

    async def get(self, key: str) -> bytes | None: ...
    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]: ...
    async def set(self, key: str, value: bytes, *, ttl_s: float) -> None: ...
    async def add(self, key: str, value: bytes, *, ttl_s: float) -> bool:
        """Set only where absent; True when this call did it."""

    async def increment(self, key: str, amount: int, *, ttl_s: float) -> int:
        """Add to a counter made on first use (the ttl counts from then); the new value."""

    async def delete(self, key: str) -> None: ...


class BlobInfo(msgspec.Struct, frozen=True):
    """What is known of an object without reading it."""

    key: str
    size: int
    etag: str
    modified_us: int
    media_type: str = "application/octet-stream"


class Blobs(Protocol):
    """Whole objects by key (`a/b/c`, letters, digits and `-_./=`), replaced atomically. S3: PUT, GET Range, LIST v2."""

    async def put(self, key: str, content: bytes, *, media_type: str = "application/octet-stream") -> BlobInfo:
        """Store a small object (up to 64 MiB); readers see the old or the new one, never a mixture."""

    async def put_file(self, key: str, path: Path, *, media_type: str = "application/octet-stream") -> BlobInfo:
        """Store a file of any size; the file at `path` stays."""

    async def info(self, key: str) -> BlobInfo | None: ...
    async def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        """Bytes start..end (exclusive) of an object, at most 64 MiB; raises NotFound."""

    def stream(self, key: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The same in chunks of up to 1 MiB, for any size."""

    async def keys(self, prefix: str, *, after: str = "", limit: int = 1_000) -> list[str]:
        """Keys with this prefix in order, behind `after`."""

    async def delete(self, key: str) -> None: ...


class Document(msgspec.Struct, frozen=True):
    """Something to find. `text` is searched by words, weighted by field; `facets` are exact; `numbers` sort and filter."""

    id: str
    text: Mapping[str, str]
    facets: Mapping[str, Sequence[str]] = {}
    numbers: Mapping[str, float] = {}
    payload: bytes = b""


class Query(msgspec.Struct, frozen=True):
    """What to find: words (the last one may be a prefix), exact facets, number ranges; best first unless `sort` says."""

    words: str = ""
    facets: Mapping[str, Sequence[str]] = {}
    ranges: Mapping[str, tuple[float | None, float | None]] = {}
    sort: str = ""
    descending: bool = False
    offset: int = 0
    limit: int = 20
    count_facets: Sequence[str] = ()


class Hit(msgspec.Struct, frozen=True, gc=False):
    id: str
    score: float
    payload: bytes = b""


class Found(msgspec.Struct, frozen=True, gc=False):
    """Hits in order, how many there are in all, and how often each value of the asked facets occurs."""

    hits: Sequence[Hit]
    total: int
    facet_counts: Mapping[str, Mapping[str, int]] = {}


class Search(Protocol):
    """Documents found by words; visible within a second of `index`. OpenSearch: bulk, multi_match, terms aggregations.

    The index is derived data: it can always be rebuilt from the system that owns the documents.
    """

    async def index(self, documents: Sequence[Document]) -> None:
        """Add or replace by id."""

    async def remove(self, ids: Sequence[str]) -> None: ...
    async def find(self, query: Query) -> Found:
        """Best hits; a hostile query string is words, never syntax. Raises Rejected past limits (256 characters)."""

    async def refresh(self) -> None:
        """Make everything given so far visible now (tests and imports)."""

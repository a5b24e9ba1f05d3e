"""The tables of streaming: titles, the jobs that make their versions, where viewers stopped. Times are BIGINT microseconds."""

from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, Column, Float, Index, Integer, MetaData, String, Table, Text

from fourplane.state.schema import Migration

if TYPE_CHECKING:
    from alembic.operations import Operations

METADATA = MetaData()

Table(
    "titles",
    METADATA,
    Column("id", String(40), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("description", Text, nullable=False),
    Column("version", String(40), nullable=False),  # empty until the first version is published
    Column("duration_s", Float, nullable=False),
    Column("height", Integer, nullable=False),
    Column("rungs", Integer, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("plays", BigInteger, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("published_us", BigInteger, nullable=False),
    Column("about", Text, nullable=False, server_default=""),  # JSON of `about.About`
)
JOBS = Table(
    "jobs",
    METADATA,
    Column("id", String(40), primary_key=True),
    Column("title", String(40), nullable=False),
    Column("file", Text, nullable=False),
    Column("owned", Integer, nullable=False),  # 1: an upload of ours, deleted when done
    Column("state", String(20), nullable=False),  # queued running done failed cancelled
    Column("error", String(60), nullable=False),
    Column("said", Text, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("changed_us", BigInteger, nullable=False),
)
Index("jobs_by_state", JOBS.c.state, JOBS.c.created_us)


def _positions() -> tuple[Column[Any], ...]:
    return (
        Column("account", BigInteger, primary_key=True, autoincrement=False),
        Column("title", String(40), primary_key=True),
        Column("at_s", Float, nullable=False),
        Column("changed_us", BigInteger, nullable=False),
    )


Table("positions", METADATA, *_positions())


def _describe(operations: "Operations") -> None:
    operations.add_column("titles", Column("about", Text, nullable=False, server_default=""))


def _remember(operations: "Operations") -> None:
    operations.create_table("positions", *_positions())


MIGRATIONS = (Migration("titles are described", _describe), Migration("viewers' places", _remember))

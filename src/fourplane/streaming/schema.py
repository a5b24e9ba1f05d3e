"""The tables of streaming: titles and the jobs that make their versions. Times are BIGINT microseconds."""

from sqlalchemy import BigInteger, Column, Float, Index, Integer, MetaData, String, Table, Text

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

"""What `EventLog` promises, on every engine."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourplane.foundation.errors import NotFound, Rejected, TooLarge
from fourplane.state.contracts import LogEntry
from fourplane.state.embedded.database import Database
from fourplane.state.embedded.event_log import EmbeddedEventLog


@pytest.fixture(params=["embedded", "memory", "simulated"])
def on(request, opener):
    return opener("log", request.param)


def test_offsets_grow_by_one_without_holes(on):
    async def body(log):
        assert await log.end_offset("t", 0) == 0
        assert [await log.append("t", 0, [b"a", b""]), await log.append("t", 0, [b"c" * 5_000])] == [0, 2]
        assert await log.read("t", 0, 0) == [LogEntry(0, b"a"), LogEntry(1, b""), LogEntry(2, b"c" * 5_000)]
        assert await log.end_offset("t", 0) == 3
        assert await log.read("t", 0, 3) == []
        assert await log.read("t", 0, 99) == []

    on(body)


def test_partitions_and_topics_are_apart(on):
    async def body(log):
        await asyncio.gather(*[log.append(topic, part, [b"%d" % part]) for topic in ("t", "u") for part in range(5)])
        for topic in ("t", "u"):
            for part in range(5):
                assert await log.read(topic, part, 0) == [LogEntry(0, b"%d" % part)]

    on(body)


def test_concurrent_producers_keep_their_own_order(on):
    async def body(log):
        async def produce(name):
            for number in range(20):
                await log.append("t", 0, [b"%d %d" % (name, number)])

        await asyncio.gather(*[produce(name) for name in range(5)])
        entries = await log.read("t", 0, 0, limit=1_000)
        assert [entry.offset for entry in entries] == list(range(100))
        for name in range(5):
            mine = [entry.value for entry in entries if entry.value.startswith(b"%d " % name)]
            assert mine == [b"%d %d" % (name, number) for number in range(20)]

    on(body)


def test_reading_starts_and_stops_inside_a_batch(on):
    async def body(log):
        for start in range(0, 30, 10):
            await log.append("t", 0, [b"%d" % n for n in range(start, start + 10)])
        assert [int(entry.value) for entry in await log.read("t", 0, 7, limit=8)] == list(range(7, 15))
        assert [entry.offset for entry in await log.read("t", 0, 29, limit=8)] == [29]

    on(body)


def test_groups_remember_where_they_go_on(on):
    async def body(log):
        assert await log.committed_offset("g", "t", 0) == 0
        await log.commit_offset("g", "t", 0, 7)
        await log.commit_offset("h", "t", 0, 2)
        await log.commit_offset("g", "t", 0, 5)
        assert [await log.committed_offset(name, "t", 0) for name in ("g", "h", "i")] == [5, 2, 0]

    on(body)


def test_trimmed_events_are_gone_and_offsets_go_on(on):
    async def body(log):
        for _ in range(3):
            await log.append("t", 0, [b"x"] * 10)
        await log.trim("t", 0, 15)
        with pytest.raises(NotFound):
            await log.read("t", 0, 9)
        assert len(await log.read("t", 0, 10)) == 20
        await log.trim("t", 0, 30)
        assert await log.end_offset("t", 0) == 30
        assert await log.read("t", 0, 30) == []
        assert await log.append("t", 0, [b"y"]) == 30
        assert await log.read("t", 0, 30) == [LogEntry(30, b"y")]

    on(body)


def test_bad_input_is_refused(on):
    async def body(log):
        with pytest.raises(Rejected):
            await log.append("t", 0, [])
        with pytest.raises(Rejected):
            await log.append("", 0, [b"x"])
        with pytest.raises(TooLarge):
            await log.append("t", 0, [bytes((1 << 20) + 1)])
        with pytest.raises(Rejected):
            await log.read("t", 0, -1)
        assert await log.end_offset("t", 0) == 0

    on(body)


def test_offsets_survive_a_trim_to_the_end_and_a_new_opening(tmp_path):
    async def body():
        log = await EmbeddedEventLog(await Database(tmp_path / "a.db").open()).open()
        await log.append("t", 0, [b"x"] * 4)
        await log.trim("t", 0, 4)
        await log.close()
        log = await EmbeddedEventLog(await Database(tmp_path / "a.db").open()).open()
        assert await log.append("t", 0, [b"y"]) == 4
        await log.close()

    asyncio.run(body())


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.binary(max_size=4), min_size=1, max_size=5), max_size=10),
    st.integers(0, 60),
    st.integers(1, 60),
)
def test_any_batches_read_back_as_one_sequence(batches, offset, limit):
    async def body():
        log = await EmbeddedEventLog(await Database(None).open()).open()
        flat = [value for batch in batches for value in batch]
        for batch in batches:
            await log.append("t", 3, batch)
        expected = [LogEntry(at, value) for at, value in enumerate(flat)][offset : offset + limit]
        assert await log.read("t", 3, offset, limit=limit) == expected
        await log.close()

    asyncio.run(body())

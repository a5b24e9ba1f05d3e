"""What `Records` promises, on every engine."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, Rejected, TooLarge
from fourplane.state.contracts import Delete, Put, Record, Statement
from fourplane.state.embedded.database import Database
from fourplane.state.embedded.records import EmbeddedRecords
from fourplane.state.engines.postgres import PostgresSql
from fourplane.state.engines.sql_records import PURGE_EVERY, SqlRecords


@pytest.fixture(params=["embedded", "memory", "simulated", "postgresql"])
def on(request, opener):
    return opener("records", request.param)


class HandClock(clock.MachineSource):
    """A clock that stands where it was put."""

    def __init__(self):
        super().__init__()
        self.at_us = 1_000_000_000

    def now_us(self):
        return self.at_us


def test_versions_grow_by_one_from_one(on):
    async def body(records):
        for version in range(1, 4):
            await records.write(b"p", [Put(b"s", b"v%d" % version)])
            assert await records.get(b"p", b"s") == Record(b"s", b"v%d" % version, version)
        await records.write(b"p", [Delete(b"s")])
        assert await records.get(b"p", b"s") is None
        await records.write(b"p", [Put(b"s", b"again")])
        assert (await records.get(b"p", b"s")).version == 1

    on(body)


def test_expected_versions_decide(on):
    async def body(records):
        await records.write(b"p", [Put(b"s", b"1", expect_version=0)])
        for wrong in (
            Put(b"s", b"x", expect_version=0),
            Put(b"s", b"x", expect_version=2),
            Delete(b"s", expect_version=2),
        ):
            with pytest.raises(Conflict) as told:
                await records.write(b"p", [wrong])
            assert told.value.fields["sort"] == b"s"
        with pytest.raises(Conflict):
            await records.write(b"p", [Put(b"none", b"x", expect_version=1)])
        with pytest.raises(Conflict):
            await records.write(b"p", [Delete(b"s", expect_version=0)])
        await records.write(b"p", [Put(b"s", b"2", expect_version=1)])
        await records.write(b"p", [Delete(b"none", expect_version=0), Delete(b"absent")])
        assert await records.get(b"p", b"s") == Record(b"s", b"2", 2)
        await records.write(b"p", [Delete(b"s", expect_version=2)])
        assert await records.scan(b"p") == []

    on(body)


def test_a_batch_is_all_or_nothing(on):
    async def body(records):
        await records.write(b"p", [Put(b"b", b"old")])
        with pytest.raises(Conflict):
            await records.write(b"p", [Put(b"a", b"new"), Delete(b"b"), Put(b"c", b"new", expect_version=3)])
        assert await records.scan(b"p") == [Record(b"b", b"old", 1)]

    on(body)


def test_scan_is_sorted_bounded_and_goes_both_ways(on):
    async def body(records):
        keys = [bytes([n]) for n in (1, 2, 3, 200, 255)]
        await records.write(b"p", [Put(key, key) for key in reversed(keys)])
        await records.write(b"q", [Put(b"\x02", b"other")])
        assert [record.sort for record in await records.scan(b"p")] == keys
        assert [record.sort for record in await records.scan(b"p", reverse=True, limit=2)] == [b"\xff", b"\xc8"]
        assert [record.sort for record in await records.scan(b"p", start=b"\x02", end=b"\xc8")] == [b"\x02", b"\x03"]
        assert [r.sort for r in await records.scan(b"p", start=b"\x02", end=b"\xff", reverse=True, limit=1)] == [
            b"\xc8"
        ]
        assert await records.scan(b"p", start=b"\x03", end=b"\x03") == []
        assert await records.scan(b"nobody") == []

    on(body)


def test_records_expire_to_the_microsecond(tmp_path):
    async def body():
        hand = HandClock()
        with clock.installed(hand):
            records = await EmbeddedRecords(await Database(tmp_path / "a.db").open()).open()
            await records.write(b"p", [Put(b"s", b"1", ttl_s=1.0), Put(b"t", b"stays")])
            hand.at_us += 999_999
            assert (await records.get(b"p", b"s")).expires_us == 1_001_000_000
            hand.at_us += 1
            assert await records.get(b"p", b"s") is None
            assert [record.sort for record in await records.scan(b"p")] == [b"t"]
            with pytest.raises(Conflict):
                await records.write(b"p", [Put(b"s", b"2", expect_version=1)])
            await records.write(b"p", [Put(b"s", b"2", expect_version=0)])
            assert await records.get(b"p", b"s") == Record(b"s", b"2", 1)
            await records.write(b"p", [Put(b"u", b"", ttl_s=1)])
            hand.at_us += 2_000_000
            assert await records.purge() == 1
            await records.close()

    asyncio.run(body())


def test_bad_input_is_refused(on):
    async def body(records):
        with pytest.raises(Rejected):
            await records.write(b"", [Put(b"s", b"")])
        with pytest.raises(Rejected):
            await records.write(b"p", [Put(b"s" * 513, b"")])
        with pytest.raises(Rejected):
            await records.write(b"p", [Put(b"s", b"1"), Delete(b"s")])
        with pytest.raises(Rejected):
            await records.write(b"p", [Put(b"s", b"", ttl_s=0)])
        with pytest.raises(TooLarge):
            await records.write(b"p", [Put(b"s", bytes((1 << 20) + 1))])
        with pytest.raises(TooLarge):
            await records.write(b"p", [Put(b"%d" % n, b"") for n in range(101)])
        with pytest.raises(Rejected):
            await records.scan(b"p", limit=0)
        await records.write(b"p" * 512, [Put(b"s" * 512, bytes(1 << 20))])
        assert len((await records.get(b"p" * 512, b"s" * 512)).value) == 1 << 20

    on(body)


def test_concurrent_compare_and_set_counts_right(on):
    async def body(records):
        await records.write(b"p", [Put(b"n", b"0")])

        async def count():
            while True:
                now = await records.get(b"p", b"n")
                try:
                    await records.write(b"p", [Put(b"n", b"%d" % (int(now.value) + 1), expect_version=now.version)])
                    return
                except Conflict:
                    continue

        await asyncio.gather(*[count() for _ in range(20)])
        assert await records.get(b"p", b"n") == Record(b"n", b"20", 21)

    on(body)


KEYS = st.sampled_from([b"a", b"b", b"c"])
VERSIONS = st.sampled_from([None, None, 0, 1, 2])
CHANGES = st.builds(Put, KEYS, st.binary(max_size=3), VERSIONS) | st.builds(Delete, KEYS, VERSIONS)
BATCHES = st.lists(CHANGES, min_size=1, max_size=3, unique_by=lambda change: change.sort)


def applied(model, batch):
    """The table after a batch, or None where it conflicts."""
    after = dict(model)
    for change in batch:
        version = model[change.sort].version if change.sort in model else 0
        if change.expect_version not in (None, version):
            return None
        if isinstance(change, Put):
            after[change.sort] = Record(change.sort, change.value, version + 1)
        else:
            after.pop(change.sort, None)
    return after


@settings(max_examples=60, deadline=None)
@given(batches=st.lists(BATCHES, max_size=12))
def test_any_history_equals_the_model(batches):
    async def body():
        records = await EmbeddedRecords(await Database(None).open()).open()
        model = {}
        for batch in batches:
            after = applied(model, batch)
            if after is None:
                with pytest.raises(Conflict):
                    await records.write(b"p", batch)
            else:
                await records.write(b"p", batch)
                model = after
            assert await records.scan(b"p") == [model[key] for key in sorted(model)]
        await records.close()

    asyncio.run(body())


def test_many_writers_at_once_each_write_what_they_gave(on):
    async def body(records):
        await asyncio.gather(
            *[records.write(b"p%d" % n, [Put(b"s", b'\x00\\"{,}%d' % n, expect_version=0)]) for n in range(12)]
        )
        changes = [Put(b"s", b"over", expect_version=1), Put(b"s", b"", ttl_s=60.0), Put(b"s", b"y" * 20_000)]
        wrong = Put(b"s", b"lost", expect_version=7)
        told = await asyncio.gather(
            *[records.write(b"p%d" % n, [(*changes, wrong)[n % 4], Put(b"t", b"2")]) for n in range(12)],
            *[records.write(b"same", [Put(b"s", b"%d" % n)]) for n in range(5)],
            return_exceptions=True,
        )
        assert [n for n, each in enumerate(told) if isinstance(each, Conflict)] == [3, 7, 11]
        assert {n: each for n, each in enumerate(told) if each is not None and n % 4 != 3} == {}
        for n in range(12):
            found = [(one.value, one.version) for one in await records.scan(b"p%d" % n)]
            kept = (b'\x00\\"{,}%d' % n, 1)
            assert found == ([kept] if n % 4 == 3 else [(changes[n % 4].value, 2), (b"2", 1)])
        assert (await records.get(b"same", b"s")).version == 5

    on(body)


def test_many_readers_at_once_each_find_their_own(on):
    async def body(records):
        for n in range(20):
            await records.write(b"p%d" % n, [Put(b'\\"{s', b"%d" % n)])
        asked = [(b"p%d" % (n % 30), b'\\"{s') for n in range(150)]
        found = await asyncio.gather(*[records.get(*place) for place in asked])
        assert found == [Record(b'\\"{s', b"%d" % (n % 30), 1) if n % 30 < 20 else None for n in range(150)]
        looking = [asyncio.ensure_future(records.get(*place)) for place in asked[:10]]
        await asyncio.sleep(0)
        looking[0].cancel()
        rest = await asyncio.gather(*looking[1:])
        assert [record.value for record in rest] == [b"%d" % n for n in range(1, 10)]

    on(body)


def test_a_table_of_an_older_release_finds_by_the_hour_what_has_expired(postgres_server):
    async def main():
        sql = await PostgresSql.open(postgres_server.url, schema="r_older")
        put = "INSERT INTO record (partition, sort, value, version, expires_us) VALUES (?1, ?2, ?2, 1, ?3)"
        older = [
            Statement(
                "CREATE TABLE record (partition BYTEA NOT NULL, sort BYTEA NOT NULL, value BYTEA NOT NULL,"
                " version BIGINT NOT NULL, expires_us BIGINT, PRIMARY KEY (partition, sort))"
            ),
            Statement("CREATE INDEX record_expires ON record (expires_us) WHERE expires_us IS NOT NULL"),
            *(
                Statement(put, (b"p", sort, expires_us))
                for sort, expires_us in ((b"gone", 1), (b"this hour", clock.now_us() - 1), (b"kept", None))
            ),
        ]
        await sql.commit(older)
        records = await SqlRecords(sql).open()
        await records.write(b"p", [Put(b"later", b"1", ttl_s=7_200.0)])
        await sql.commit([Statement(put, (b"p", b"older still running", 2))])
        records._since_purge = PURGE_EVERY
        await records.write(b"p", [Put(b"later", b"2", ttl_s=7_200.0)])
        assert await sql.read("SELECT sort FROM record ORDER BY sort") == [(b"kept",), (b"later",)]
        await records.close()
        await (await SqlRecords(await PostgresSql.open(postgres_server.url, schema="r_older")).open()).close()

    asyncio.run(main())

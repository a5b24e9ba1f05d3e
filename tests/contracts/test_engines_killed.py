"""Servers that are killed and come back: callers hear of it, then it works again without a restart of ours."""

import asyncio

import pytest

from fourplane.foundation import clock
from fourplane.foundation.errors import Misconfigured, Overloaded, Unavailable
from fourplane.state.contracts import Put, Statement
from fourplane.state.engines.postgres import PostgresSql
from fourplane.state.engines.redis import RedisCache, RedisSettings
from fourplane.state.engines.s3 import S3Blobs, S3Settings
from fourplane.state.engines.sql_records import SqlRecords


async def eventually(work):
    for _ in range(200):
        try:
            return await work()
        except Unavailable:
            await clock.sleep(0.01)
    raise AssertionError("never came back")


def test_redis_comes_back(redis_server):
    async def body():
        cache = await RedisCache.open(redis_server.url, prefix="k:")
        await cache.set("a", b"1", ttl_s=60)
        redis_server.kill()
        with pytest.raises(Unavailable):
            await cache.get("a")
        with pytest.raises(Unavailable):  # the first one learned that the connection is gone
            await cache.get("a")
        assert cache.statistics().unanswered
        redis_server.start()
        assert await eventually(lambda: cache.get("a")) is None
        await cache.set("a", b"2", ttl_s=60)
        assert await cache.get("a") == b"2"
        assert cache.statistics().connects >= 2
        assert cache.statistics().unanswered == 0
        await cache.close()
        with pytest.raises(Unavailable):
            await cache.get("a")

    asyncio.run(body())


def test_redis_refuses_a_wrong_password_without_repeating_it(redis_server):
    async def body():
        with pytest.raises(Misconfigured) as told:
            await RedisCache.open(f"redis://:wrong-one@127.0.0.1:{redis_server.port}/0")
        assert "wrong-one" not in str(told.value)

    asyncio.run(body())


def test_redis_commands_of_one_tick_leave_in_one_write_and_are_bounded(redis_server):
    async def body():
        cache = await RedisCache.open(redis_server.url, settings=RedisSettings(in_flight_max=100))
        before = cache.statistics().writes
        await asyncio.gather(*[cache.get(f"k{number}") for number in range(100)])
        assert cache.statistics().writes - before == 1
        answers = await asyncio.gather(*[cache.get(f"k{number}") for number in range(150)], return_exceptions=True)
        assert sum(isinstance(answer, Overloaded) for answer in answers) == 50
        await cache.close()

    asyncio.run(body())


def test_a_silent_redis_counts_as_lost(redis_server):
    async def body():
        cache = await RedisCache.open(redis_server.url, settings=RedisSettings(timeout_s=0.05))
        pipe = cache._pipe
        pipe.data_received = lambda _data: None
        with pytest.raises(Unavailable):
            await cache.get("a")
        assert await eventually(lambda: cache.get("a")) is None
        await cache.close()

    asyncio.run(body())


def test_postgres_comes_back_with_every_acknowledged_row(postgres_server):
    async def body():
        sql = await PostgresSql.open(postgres_server.url, schema="killed")
        await sql.commit([Statement("CREATE TABLE told (id BIGINT PRIMARY KEY)")])
        for number in range(5):
            await sql.commit([Statement("INSERT INTO told (id) VALUES (?1)", (number,))])
        postgres_server.kill()
        with pytest.raises(Unavailable):
            await sql.commit([Statement("INSERT INTO told (id) VALUES (?1)", (100,))])
        postgres_server.start()
        rows = await eventually(lambda: sql.read("SELECT id FROM told WHERE id<100 ORDER BY id"))
        assert rows == [(number,) for number in range(5)]
        await eventually(lambda: sql.commit([Statement("INSERT INTO told (id) VALUES (?1)", (200,))]))
        await sql.close()

    asyncio.run(body())


def test_records_on_postgres_come_back_with_every_acknowledged_version(postgres_server):
    async def body():
        records = await SqlRecords(await PostgresSql.open(postgres_server.url, schema="r_killed")).open()
        for _ in range(3):
            await records.write(b"p", [Put(b"s", b"x")])
        postgres_server.kill()
        with pytest.raises(Unavailable):
            await records.write(b"p", [Put(b"t", b"x")])
        assert records.statistics().unanswered
        postgres_server.start()
        assert (await eventually(lambda: records.get(b"p", b"s"))).version == 3
        await eventually(lambda: records.write(b"p", [Put(b"s", b"y", expect_version=3)]))
        assert records.statistics().unanswered == 0
        await records.close()

    asyncio.run(body())


def test_s3_comes_back_with_every_object(s3_server):
    async def body():
        quick = S3Settings(retry_s=0.1, retries_max=1)
        blobs = await S3Blobs.open(s3_server.url, name="killed", settings=quick)
        await blobs.put("a/b", b"1" * 3_000_000)
        s3_server.kill()
        for work in (blobs.put("a/c", b"2"), blobs.get("a/b"), blobs.info("a/b"), blobs.keys("")):
            with pytest.raises(Unavailable):
                await work
        assert blobs.statistics().unanswered == 4
        s3_server.start()
        assert await eventually(lambda: blobs.get("a/b")) == b"1" * 3_000_000
        assert blobs.statistics().unanswered == 0
        await eventually(lambda: blobs.put("a/c", b"3"))
        assert await blobs.keys("") == ["a/b", "a/c"]
        await blobs.close()

    asyncio.run(body())


def test_s3_names_a_wrong_key_a_missing_bucket_and_nobody_there(s3_server):
    async def body():
        quick = S3Settings(retry_s=0.1, retries_max=0)
        wrong = {
            "s3_login": s3_server.url.replace("secret", "wrong-one"),
            "s3_bucket": s3_server.url.replace("@bucket", "@nowhere"),
            "store_url": s3_server.url.replace("endpoint", "entpoint"),
        }
        for code, url in wrong.items():
            with pytest.raises(Misconfigured) as told:
                await S3Blobs.open(url, name="x", settings=quick)
            assert told.value.reason == code
            assert "wrong-one" not in str(told.value)
        with pytest.raises(Unavailable) as told:
            await S3Blobs.open("s3://k:wrong-one@bucket?endpoint=http://127.0.0.1:9", name="x", settings=quick)
        assert "wrong-one" not in str(told.value)

    asyncio.run(body())

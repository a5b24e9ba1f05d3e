"""What `Cache` promises, on every engine."""

import asyncio

import pytest

from fourplane.foundation import clock
from fourplane.foundation.errors import Rejected, TooLarge
from fourplane.state.embedded.cache import CacheSettings, EmbeddedCache


@pytest.fixture(params=["embedded", "simulated", "redis"])
def on(request, opener):
    return opener("cache", request.param)


def test_values_come_back_until_deleted(on):
    async def body(cache):
        assert await cache.get("k") is None
        await cache.set("k", b"\x00\r\n\xff", ttl_s=60)
        await cache.set("empty", b"", ttl_s=60)
        assert await cache.get("k") == b"\x00\r\n\xff"
        assert await cache.get_many(["empty", "none", "k"]) == [b"", None, b"\x00\r\n\xff"]
        assert await cache.get_many([]) == []
        await cache.delete("k")
        await cache.delete("never there")
        assert await cache.get("k") is None

    on(body)


def test_add_sets_only_where_absent(on):
    async def body(cache):
        assert await cache.add("lock", b"a", ttl_s=60) is True
        assert await cache.add("lock", b"b", ttl_s=60) is False
        assert await cache.get("lock") == b"a"
        claims = await asyncio.gather(*[cache.add("race", b"%d" % n, ttl_s=60) for n in range(50)])
        assert sum(claims) == 1

    on(body)


def test_counters_count(on):
    async def body(cache):
        totals = await asyncio.gather(*[cache.increment("n", 2, ttl_s=60) for _ in range(100)])
        assert sorted(totals) == list(range(2, 201, 2))
        assert await cache.increment("n", -200, ttl_s=60) == 0
        assert await cache.get("n") == b"0"
        await cache.set("word", b"abc", ttl_s=60)
        with pytest.raises(Rejected):
            await cache.increment("word", 1, ttl_s=60)

    on(body)


def test_many_callers_in_one_tick_get_their_own_answers(on):
    async def body(cache):
        await asyncio.gather(*[cache.set(f"k{n}", b"%d" % n, ttl_s=60) for n in range(500)])
        assert await asyncio.gather(*[cache.get(f"k{n}") for n in range(500)]) == [b"%d" % n for n in range(500)]

    on(body)


def test_bad_input_is_refused(on):
    async def body(cache):
        with pytest.raises(Rejected):
            await cache.set("", b"", ttl_s=1)
        with pytest.raises(Rejected):
            await cache.set("k", b"", ttl_s=0)
        with pytest.raises(TooLarge):
            await cache.set("k", bytes((8 << 20) + 1), ttl_s=1)
        assert await cache.get("k") is None

    on(body)


class HandClock(clock.MachineSource):
    def __init__(self):
        super().__init__()
        self.at_s = 100.0

    def monotonic_s(self):
        return self.at_s


def test_values_vanish_after_their_time():
    async def body():
        hand = HandClock()
        with clock.installed(hand):
            cache = EmbeddedCache()
            await cache.set("k", b"v", ttl_s=2)
            await cache.increment("n", 1, ttl_s=2)
            hand.at_s += 1.9
            assert await cache.increment("n", 1, ttl_s=2) == 2
            hand.at_s += 0.1
            assert await cache.get("k") is None
            assert await cache.increment("n", 1, ttl_s=2) == 1
            cache.check()

    asyncio.run(body())


def test_redis_lifetimes_are_milliseconds(opener):
    async def body(cache):
        await cache.set("k", b"v", ttl_s=0.001)
        await cache.increment("n", 1, ttl_s=0.001)
        for _ in range(10_000):
            if await cache.get_many(["k", "n"]) == [None, None]:
                return
        raise AssertionError("never expired")

    opener("cache", "redis")(body)


def test_hot_keys_survive_a_scan_of_cold_ones():
    async def body():
        cache = EmbeddedCache(CacheSettings(bytes_max=100 * 301, ghosts_max=50))
        for key in range(20):
            await cache.set(f"hot{key}", bytes(90), ttl_s=60)
            await cache.get(f"hot{key}")
            await cache.get(f"hot{key}")
        for key in range(2_000):
            await cache.set(f"cold{key}", bytes(90), ttl_s=60)
            await cache.get(f"hot{key % 20}")
            cache.check()
        found = await cache.get_many([f"hot{key}" for key in range(20)])
        assert sum(value is not None for value in found) >= 18
        assert cache.statistics().used_bytes <= 100 * 301

    asyncio.run(body())


def test_replacing_one_key_for_ever_takes_no_room():
    async def body():
        cache = EmbeddedCache()
        for number in range(5_000):
            await cache.set("k", b"%d" % number, ttl_s=60)
        assert len(cache._small) < 2_000
        cache.check()

    asyncio.run(body())

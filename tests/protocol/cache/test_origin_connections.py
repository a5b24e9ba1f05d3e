"""Which connections to the origin are used again, and which never."""

import asyncio

from tests.protocol.cache.rig import node, response

MAX_AGE_0 = "Cache-Control: max-age=0"


def opened_by(answer, asked=3):
    async def main():
        async with node(answer) as (cache, _origin, connect):
            client = await connect()
            for number in range(asked):
                assert (await client.ask(f"/{number}"))[0] == 200
            return cache.pool.opened

    return asyncio.run(asyncio.wait_for(main(), 20))


def test_a_quiet_connection_is_used_again():
    assert opened_by(lambda *_: response(b"x", MAX_AGE_0)) == 1


def test_an_origin_that_states_no_patience_is_given_none():
    assert opened_by(lambda *_: response(b"x", MAX_AGE_0, "Keep-Alive: timeout=0")) == 3


def test_a_stated_patience_that_is_long_changes_nothing():
    assert opened_by(lambda *_: response(b"x", MAX_AGE_0, "Keep-Alive: timeout=5, max=100")) == 1


def test_an_end_the_loop_has_not_read_yet_is_an_end():
    """The origin closes an idle connection while this loop is busy: the next request must not go into it."""

    async def main():
        async with node(lambda *_: response(b"x", MAX_AGE_0)) as (cache, origin, connect):
            client = await connect()
            assert (await client.ask("/1"))[0] == 200
            idle = cache.pool._idle[0]
            idle.writer.transport.pause_reading()
            origin.writers[0].close()
            await asyncio.sleep(0.05)
            assert (await client.ask("/2"))[0] == 200
            assert cache.pool.opened == 2

    asyncio.run(asyncio.wait_for(main(), 20))


def test_the_age_of_a_connection_counts_from_its_last_request():
    """A loop that was busy reads an answer late; the origin's patience began when it was sent."""

    async def main():
        async with node(lambda *_: response(b"x", MAX_AGE_0)) as (cache, _, connect):
            client = await connect()
            assert (await client.ask("/1"))[0] == 200
            cache.pool._idle[0].asked_s -= cache.pool.settings.idle_s
            assert (await client.ask("/2"))[0] == 200
            assert cache.pool.opened == 2

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_request_the_origin_has_seen_is_not_sent_twice():
    async def main():
        def answer(_method, target, _head):
            return None if target == "/2" else response(b"x", MAX_AGE_0)

        async with node(answer) as (_cache, origin, connect):
            client = await connect()
            assert (await client.ask("/1"))[0] == 200
            assert (await client.ask("/2"))[0] == 502
            assert [target for _, target, _ in origin.seen] == ["/1", "/2"]

    asyncio.run(asyncio.wait_for(main(), 20))

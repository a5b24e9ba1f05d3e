"""Objects filled before anybody asks."""

import asyncio

from tests.protocol.cache.rig import fresh, node, response


def run(main):
    asyncio.run(asyncio.wait_for(main(), 20))


async def ended(fill):
    while not fill.done:
        await fill.changed()


def test_a_filled_object_is_a_hit_for_the_first_client():
    async def main():
        async with node(fresh, key_host=False) as (cache, origin, connect):
            await ended(cache.prefetch(b"/a"))
            client = await connect()
            assert (await client.ask("/a"))[1]["cache-status"].startswith("node; hit")
            assert len(origin.seen) == 1

    run(main)


def test_what_is_stored_or_under_way_is_not_filled_again():
    async def main():
        async with node(fresh, key_host=False) as (cache, origin, _connect):
            origin.gate = asyncio.Event()
            fill = cache.prefetch(b"/a")
            assert cache.prefetch(b"/a") is None
            origin.gate.set()
            await ended(fill)
            assert cache.prefetch(b"/a") is None
            assert len(origin.seen) == 1

    run(main)


def test_a_client_joins_a_fill_under_way():
    async def main():
        async with node(fresh, key_host=False) as (cache, origin, connect):
            origin.gate = asyncio.Event()
            fill = cache.prefetch(b"/a")
            client = await connect()
            asked = asyncio.create_task(client.ask("/a"))
            while not cache.statistics().collapsed:
                await asyncio.sleep(0.01)
            origin.gate.set()
            await ended(fill)
            assert (await asked)[2] == b"0123456789"
            assert len(origin.seen) == 1

    run(main)


def test_an_origin_that_refuses_leaves_nothing_behind():
    async def main():
        async with node(lambda *_: response(b"", status="404 Not Found"), key_host=False) as (cache, _, _connect):
            await ended(cache.prefetch(b"/a"))
            assert cache.prefetch(b"/a") is not None

    run(main)

"""Answers that stand ready never outlive what they were made of."""

import asyncio

from tests.protocol.cache.rig import fresh, node, response

from fourplane.foundation.errors import Forbidden


def test_equal_bytes_are_answered_without_being_read_again():
    async def main():
        async with node(fresh) as (cache, origin, connect):
            client = await connect()
            answers = [await client.ask("/a") for _ in range(6)]
            assert {body for _, _, body in answers} == {b"0123456789"}
            assert len(cache.hot.answers) == 1
            assert cache.store.variants(b"here\0/a")[0].ready
            assert len(origin.seen) == 1
            found = cache.statistics()
            assert (found.requests, found.hits, found.bytes_hit) == (6, 5, 50)
            other = await connect()
            assert (await other.ask("/b"))[1]["cache-status"].startswith("node; fwd=uri-miss")

    asyncio.run(main())


def test_a_purged_object_is_asked_for_again():
    async def main():
        versions = iter([b"old", b"new"])
        async with node(lambda *_: response(next(versions), "Cache-Control: max-age=60")) as (cache, origin, connect):
            client = await connect()
            assert {(await client.ask())[2] for _ in range(4)} == {b"old"}
            cache.store.purge(b"here\0/a")
            assert {(await client.ask())[2] for _ in range(4)} == {b"new"}
            assert len(origin.seen) == 2

    asyncio.run(main())


def test_what_is_no_longer_fresh_is_validated_and_its_new_fields_are_sent():
    async def main():
        def answer(_method, _target, head):
            if "if-none-match" in head.lower():
                return b'HTTP/1.1 304 Not Modified\r\nETag: "v1"\r\nCache-Control: max-age=60\r\nX-Turn: 2\r\n\r\n'
            return response(b"x", "Cache-Control: max-age=60", 'ETag: "v1"', "X-Turn: 1")

        async with node(answer) as (cache, _origin, connect):
            client = await connect()
            for _ in range(4):
                assert (await client.ask())[1]["x-turn"] == "1"
            entry = cache.store.variants(b"here\0/a")[0]
            entry.freshness.lifetime_s = 0
            entry.renew(entry.freshness)
            for _ in range(4):
                assert (await client.ask())[1]["x-turn"] == "2"

    asyncio.run(main())


def test_another_response_under_the_same_key_is_chosen_by_its_fields():
    async def main():
        def answer(_method, _target, head):
            tongue = "de" if "accept-language: de" in head.lower() else "en"
            return response(tongue.encode(), "Cache-Control: max-age=60", "Vary: Accept-Language")

        async with node(answer) as (_cache, origin, connect):
            client = await connect()
            for tongue in ["de", "en"] * 4:
                assert (await client.ask("/a", f"Accept-Language: {tongue}"))[2] == tongue.encode()
            assert len(origin.seen) == 2

    asyncio.run(main())


def test_a_signed_address_is_checked_every_time():
    async def main():
        async with node(fresh) as (cache, _origin, connect):
            valid = [True]

            def guard(target):
                if not valid[0]:
                    raise Forbidden("the address has lapsed", code="expired")
                return target

            cache._guard = guard
            client = await connect()
            assert [(await client.ask())[0] for _ in range(4)] == [200] * 4
            valid[0] = False
            assert (await client.ask())[0] == 403

    asyncio.run(main())


def test_a_stopped_node_refuses_what_stands_ready():
    async def main():
        async with node(fresh) as (cache, _origin, connect):
            client = await connect()
            for _ in range(4):
                await client.ask()
            cache._allowed = lambda: False
            assert (await client.ask())[0] == 503

    asyncio.run(main())


def test_the_age_goes_on():
    async def main():
        async with node(fresh) as (cache, _origin, connect):
            client = await connect()
            for _ in range(4):
                await client.ask()
            entry = cache.store.variants(b"here\0/a")[0]
            entry.freshness.stored_s -= 30
            entry.head_second = entry.ready_second = -1
            assert int((await client.ask())[1]["age"]) >= 30

    asyncio.run(main())


def test_a_304_that_names_a_vary_ends_what_stood_ready_for_others():
    async def main():
        def answer(_method, _target, head):
            if "if-none-match" in head.lower():
                lines = b"HTTP/1.1 304 Not Modified\r\nETag: 1\r\nCache-Control: max-age=60\r\nVary: Accept-Language\r\n\r\n"
                return lines.replace(b"ETag: 1", b'ETag: "1"')
            return response(b"x", "Cache-Control: max-age=60", 'ETag: "1"')

        async with node(answer) as (cache, origin, connect):
            client = await connect()
            for _ in range(3):
                await client.ask("/a", "Accept-Language: en")
            entry = cache.store.variants(b"here\0/a")[0]
            entry.freshness.lifetime_s = 0
            entry.renew(entry.freshness)
            assert (await client.ask("/a", "Accept-Language: de"))[0] == 200
            assert len(origin.seen) == 2
            assert (await client.ask("/a", "Accept-Language: en"))[1]["cache-status"].startswith("node; fwd")
            assert len(origin.seen) == 3

    asyncio.run(main())

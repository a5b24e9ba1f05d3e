"""Answers that stand ready never outlive what they were made of."""

import asyncio
import socket

import pytest
from tests.protocol.cache.rig import fresh, node, response

from fourplane.foundation import network
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


async def _on_disk(cache, key):
    while not (found := cache.store.variants(key)) or found[0].file is None:
        await asyncio.sleep(0.005)


def test_large_answers_leave_in_whole_packets_with_nothing_held_back(tmp_path):
    content = bytes(range(256)) * 8_192

    async def main():
        large = response(content, "Cache-Control: max-age=60")
        async with node(lambda *_: large, folder=tmp_path) as (cache, origin, connect):
            client = await connect()
            assert (await client.ask())[2] == content
            await _on_disk(cache, b"here\0/a")
            held = []
            (connection,) = cache._connections
            with pytest.MonkeyPatch.context() as patch:
                send_file = network.send_file
                patch.setattr(
                    network, "send_file", lambda *given: held.append(_corked(connection)) or send_file(*given)
                )
                for _ in range(3):
                    client.send()  # several answers at once do not fit: the socket is full in the middle of a body
                assert [(await client.read())[2] == content for _ in range(3)] == [True] * 3
            assert len(held) >= 3
            assert all(held)
            assert not _corked(connection)
            assert (await client.ask("/a", "Range: bytes=0-9"))[2] == content[:10]
            assert len(origin.seen) == 1

    asyncio.run(main())


def _corked(connection):
    return connection.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK)


def test_a_socket_that_takes_no_head_gets_the_answer_all_the_same(tmp_path):
    content = b"film" * 100_000

    async def main():
        async with node(lambda *_: response(content, "Cache-Control: max-age=60"), folder=tmp_path) as (
            cache,
            _origin,
            connect,
        ):
            client = await connect()
            await client.ask()
            await _on_disk(cache, b"here\0/a")
            (connection,) = cache._connections

            def full(*_):
                raise BlockingIOError

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("os.write", full)
                client.send()
                assert (await client.read())[2] == content
            assert not _corked(connection)

    asyncio.run(main())


def test_connections_within_this_machine_are_not_paced_and_others_use_the_systems_control():
    async def control(**settings):
        async with node(fresh, **settings) as (cache, _origin, connect):
            assert (await (await connect()).ask())[0] == 200
            (connection,) = cache._connections
            used = connection.transport.get_extra_info("socket").getsockopt(
                socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16
            )
            return used.rstrip(b"\0").decode(), [
                event.text for event in cache.registry.events if event.level == "warning"
            ]

    async def main():
        with socket.socket() as made:
            system = made.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()
        assert await control() == ("reno", [])
        assert await control(congestion="") == (system, [])
        used, events = await control(congestion="nosuch")
        assert used == system
        assert events == ["node: the kernel knows no nosuch, the system's control stays"]

    asyncio.run(main())

"""A cache node on the wire: hits, parts, validators, coalescing, and origins that misbehave."""

import asyncio
import contextlib
import resource
import socket
import struct

import pytest
from tests.protocol.cache.rig import fresh, node, response


def run(main):
    asyncio.run(asyncio.wait_for(main(), 20))


def test_the_second_request_is_a_hit():
    async def main():
        async with node(fresh) as (cache, origin, connect):
            client = await connect()
            first, second = await client.ask(), await client.ask()
            assert first[2] == second[2] == b"0123456789"
            assert "fwd=uri-miss" in first[1]["cache-status"]
            assert second[1]["cache-status"].startswith("node; hit")
            assert second[1]["age"] == "0"
            assert len(origin.seen) == 1
            assert cache.statistics().hits == 1

    run(main)


@pytest.mark.parametrize(
    ("asked", "status", "body", "where"),
    [
        ("bytes=0-1", 206, b"01", "bytes 0-1/10"),
        ("bytes=4-", 206, b"456789", "bytes 4-9/10"),
        ("bytes=-2", 206, b"89", "bytes 8-9/10"),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("bytes=0-1,3-4", 200, b"0123456789", None),
        ("bytes=9-1", 200, b"0123456789", None),
    ],
)
def test_parts_of_a_stored_response(asked, status, body, where):
    async def main():
        async with node(fresh) as (_, origin, connect):
            client = await connect()
            await client.ask()
            found = await client.ask("/a", f"Range: {asked}")
            assert (found[0], found[2], found[1].get("content-range")) == (status, body, where)
            assert len(origin.seen) == 1

    run(main)


def test_if_range_decides_between_part_and_whole():
    async def main():
        async with node(fresh) as (_, _, connect):
            client = await connect()
            await client.ask()
            assert (await client.ask("/a", "Range: bytes=0-1", 'If-Range: "v1"'))[0] == 206
            assert (await client.ask("/a", "Range: bytes=0-1", 'If-Range: "old"'))[0] == 200

    run(main)


def test_validators_answer_304_from_the_store():
    async def main():
        async with node(fresh) as (_, origin, connect):
            client = await connect()
            await client.ask()
            status, fields, body = await client.ask("/a", 'If-None-Match: "v1"')
            assert (status, fields["etag"], body) == (304, '"v1"', b"")
            assert (await client.ask("/a", 'If-None-Match: "v2"'))[0] == 200
            status, fields, _ = await client.ask(method="HEAD")
            assert (status, fields["content-length"]) == (200, "10")
            assert len(origin.seen) == 1

    run(main)


def test_twenty_clients_cost_one_request_to_the_origin():
    async def main():
        async with node(fresh) as (cache, origin, connect):
            origin.gate = asyncio.Event()
            clients = [await connect() for _ in range(20)]
            for client in clients:
                client.send("/movie")
            while cache.statistics().requests < 20 or not origin.seen:
                await asyncio.sleep(0)
            origin.gate.set()
            bodies = [(await client.read())[2] for client in clients]
            assert bodies == [b"0123456789"] * 20
            assert len(origin.seen) == 1
            assert cache.statistics().collapsed == 19

    run(main)


def test_one_users_response_never_reaches_another():
    count = 0

    def answer(_method, _target, _head):
        nonlocal count
        count += 1
        return response(b"user %d" % count, "Cache-Control: private, max-age=60")

    async def main():
        async with node(answer) as (_, origin, connect):
            origin.gate = asyncio.Event()
            clients = [await connect() for _ in range(5)]
            for client in clients:
                client.send()
            while not origin.seen:
                await asyncio.sleep(0)
            origin.gate.set()
            bodies = {(await client.read())[2] for client in clients}
            assert len(bodies) == 5

    run(main)


def test_bytes_reach_the_client_before_the_origin_has_sent_them_all():
    async def main():
        async with node(
            lambda *_: b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nCache-Control: max-age=9\r\n\r\n01234"
        ) as (
            _,
            _,
            connect,
        ):
            client = await connect()
            client.send()
            await client.reader.readuntil(b"\r\n\r\n")
            assert await client.reader.readexactly(5) == b"01234"

    run(main)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (None, 502),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 502),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello", 502),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 502),
        (b"HTTP/1.1 200 OK\r\nContent Length: 5\r\n\r\nhello", 502),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 502),
        (b"ICY 200 OK\r\n\r\n", 502),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", 502),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000 + b"\r\n\r\n", 502),
    ],
    ids=[
        "hangs up",
        "two lengths",
        "negative",
        "length and chunks",
        "space in name",
        "coding",
        "not http",
        "upgrade",
        "huge head",
    ],
)
def test_a_misbehaving_origin_is_a_502_and_nothing_is_stored(raw, status):
    async def main():
        async with node(lambda *_: raw and raw + b"") as (cache, _, connect):
            client = await connect()
            assert (await client.ask())[0] == status
            assert cache.statistics().entries == 0
            assert (await client.ask())[0] == status

    run(main)


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 100\r\nConnection: close\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nshort\r\n",
        b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\n",
    ],
)
def test_a_cut_body_cuts_the_client_and_is_not_stored(raw):
    async def main():
        async with node(lambda *_: raw) as (cache, _, connect):
            client = await connect()
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                assert (await client.ask())[0] == 502, "a body that is not whole must not look whole"
            assert cache.statistics().entries == 0

    run(main)


@pytest.mark.parametrize(
    "sent", [b"", b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 100\r\n\r\nhalf"]
)
def test_an_origin_that_resets_its_connections_leaves_nothing_behind(sent):
    async def main():
        def answer(*_):
            writer = origin.writers[-1]
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            asyncio.get_running_loop().call_later(
                0, lambda: asyncio.get_running_loop().call_soon(writer.transport.abort)
            )
            return sent

        async with node(answer) as (cache, origin, connect):
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                assert (await (await connect()).ask())[0] == 502, "a body that is not whole must not look whole"
            assert cache.statistics().entries == 0
            origin.answer = fresh
            assert (await (await connect()).ask())[::2] == (200, b"0123456789")

    run(main)


@pytest.mark.parametrize(
    "fields",
    [
        ["Cache-Control: no-store, max-age=60"],
        ["Cache-Control: max-age=60", "Cache-Control: private"],
        ["Cache-Control: public, no-store", "CDN-Cache-Control: no-store"],
    ],
)
def test_fields_that_contradict_one_another_are_read_as_the_stricter(fields):
    async def main():
        async with node(lambda *_: response(b"mine", *fields, "Expires: Thu, 01 Jan 2099 00:00:00 GMT")) as (
            cache,
            origin,
            connect,
        ):
            for _ in range(2):
                assert (await (await connect()).ask())[2] == b"mine"
            assert len(origin.seen) == 2
            assert cache.statistics().entries == 0

    run(main)


def test_a_dead_origin_lets_stale_responses_stand_in():
    alive = True

    def answer(*_):
        return response(b"kept", "Cache-Control: max-age=0", 'ETag: "a"') if alive else None

    async def main():
        nonlocal alive
        async with node(answer) as (_, _, connect):
            client = await connect()
            await client.ask()
            alive = False
            status, fields, body = await client.ask()
            assert (status, body) == (200, b"kept")
            assert "detail=unreachable" in fields["cache-status"]

    run(main)


def test_a_304_freshens_and_costs_no_body():
    def answer(_method, _target, head):
        if 'if-none-match: "a"' in head.lower():
            return b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\nCache-Control: max-age=60\r\nX-New: 1\r\n\r\n'
        return response(b"body", "Cache-Control: max-age=0", 'ETag: "a"')

    async def main():
        async with node(answer) as (cache, origin, connect):
            client = await connect()
            await client.ask()
            status, fields, body = await client.ask()
            assert (status, body, fields["x-new"]) == (200, b"body", "1")
            assert "fwd-status=304" in fields["cache-status"]
            assert (await client.ask())[1]["cache-status"].startswith("node; hit")
            assert len(origin.seen) == 2
            assert cache.statistics().revalidated == 1

    run(main)


def test_pipelined_requests_are_answered_in_order():
    def answer(_method, target, _head):
        return response(target.encode(), "Cache-Control: max-age=60")

    async def main():
        async with node(answer) as (_, _, connect):
            client = await connect()
            await client.ask("/3")
            for number in range(6):
                client.send(f"/{number}")
            assert [(await client.read())[2] for _ in range(6)] == [b"/%d" % number for number in range(6)]

    run(main)


@pytest.mark.parametrize(
    "raw",
    [
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET /a HTTP/1.1\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: x\r\nBad Name: 1\r\n\r\n",
        b"GET /a HTTP/1.1\nHost: x\n\n\n\x00",
        b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\nhello",
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
        b"GET /a HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: x\r\n folded: 1\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(200)) + b"\r\n",
        b"GET /a HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 40_000 + b"\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 2_000_000,
        b"GET http://user@x/a HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_abuse_never_reaches_the_origin(raw):
    async def main():
        async with node(fresh) as (_, origin, connect):
            client = await connect()
            client.writer.write(raw)
            answer = b""
            with contextlib.suppress(ConnectionError):  # it closed before it had read all
                answer = await client.reader.read()
            assert answer == b"" or int(answer.split(b" ")[1]) >= 400
            assert origin.seen == []

    run(main)


def test_what_lies_in_a_body_is_no_request():
    async def main():
        async with node(fresh) as (_, origin, connect):
            client = await connect()
            hidden = b"GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"
            client.writer.write(b"GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(hidden) + hidden)
            assert (await client.read())[0] == 200
            assert (await client.ask("/b"))[0] == 200
            assert [target for _, target, _ in origin.seen] == ["/a", "/b"]

    run(main)


@pytest.mark.parametrize(
    "begun", [b"", b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 10\r\n\r\nhalf"]
)
def test_an_origin_that_falls_silent_is_given_up(begun):
    async def main():
        async with node(lambda *_: begun, head_s=0.05, read_s=0.05) as (cache, _, connect):
            client = await connect()
            if begun:
                with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                    await client.ask()
            else:
                assert (await client.ask())[0] == 504
            assert cache.statistics().entries == 0

    run(main)


def test_a_full_disk_costs_an_entry_and_no_answer(tmp_path):
    async def main():
        body = b"x" * 300_000

        def answer(_, target, __):
            return response(body if target == "/large" else b"small", "Cache-Control: max-age=60")

        async with node(answer, folder=tmp_path / "cache") as (cache, origin, connect):
            client = await connect()
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # the kernel takes no more than this of a file
            try:
                assert (await client.ask("/large"))[2] == body
                while not cache.store.disk_errors:
                    await asyncio.sleep(0.005)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert cache.statistics().entries == 0
            assert not list((tmp_path / "cache").rglob("*.part"))
            assert (await client.ask("/large"))[2] == body
            assert len(origin.seen) == 2
            assert (await client.ask("/large"))[2] == body  # there is room again
            assert len(origin.seen) == 2

    run(main)


def test_an_early_hint_is_handed_on_and_not_stored():
    def answer(*_):
        return b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + response(b"body", "Cache-Control: max-age=60")

    async def main():
        async with node(answer) as (_, _, connect):
            client = await connect()
            status, fields, _ = await client.ask()
            assert (status, fields["link"]) == (103, "</x>")
            assert (await client.read())[2] == b"body"
            assert (await client.ask())[0] == 200

    run(main)


def test_a_large_download_passes_in_a_bounded_window():
    size = 8 << 20

    def answer(*_):
        return response(bytes(size), "Cache-Control: max-age=60")

    async def main():
        async with node(answer, object_bytes_max=1 << 20) as (cache, _, connect):
            client = await connect()
            status, _, body = await client.ask()
            assert (status, len(body)) == (200, size)
            assert cache.statistics().entries == 0

    run(main)


def test_a_write_makes_the_stored_response_invalid():
    async def main():
        async with node(fresh) as (_, origin, connect):
            client = await connect()
            await client.ask()
            await client.ask("/a", "Content-Length: 0", method="POST")
            await client.ask()
            assert [method for method, *_ in origin.seen] == ["GET", "POST", "GET"]

    run(main)


def test_only_if_cached_never_asks_the_origin():
    async def main():
        async with node(fresh) as (_, origin, connect):
            client = await connect()
            assert (await client.ask("/a", "Cache-Control: only-if-cached"))[0] == 504
            assert origin.seen == []

    run(main)


def test_whole_objects_are_filled_for_a_part():
    async def main():
        async with node(fresh, whole=True) as (_, origin, connect):
            client = await connect()
            status, _, body = await client.ask("/a", "Range: bytes=2-3")
            assert (status, body) == (206, b"23")
            assert "range" not in origin.seen[0][2].lower()
            assert (await client.ask())[1]["cache-status"].startswith("node; hit")

    run(main)


def test_a_restarted_node_still_has_its_objects(tmp_path):
    async def main():
        async with node(fresh, folder=tmp_path) as (_, origin, connect):
            await (await connect()).ask()
            assert len(origin.seen) == 1
        async with node(fresh, folder=tmp_path) as (_, origin, connect):
            status, fields, body = await (await connect()).ask()
            assert (status, body) == (200, b"0123456789")
            assert fields["cache-status"].startswith("node; hit")
            assert origin.seen == []

    run(main)


def test_a_remembered_head_is_no_way_around_the_checks():
    async def main():
        async with node(fresh) as (_, origin, connect):
            client = await connect()
            for _ in range(3):
                assert (await client.ask("/a"))[0] == 200
            head = b" HTTP/1.1\r\nHost: here\r\n\r\n"
            for target in (b"/a b", b"/a\x00", b"/\xff", b"a"):
                other = await connect()
                other.writer.write(b"GET " + target + head)
                answer = await other.reader.readuntil(b"\r\n\r\n")
                assert int(answer.split(b" ")[1]) >= 400, target
            split = await connect()
            for part in (b"GET /a HTTP/1.1\r\nHo", b"st: here\r\n\r", b"\nGET /a HTTP/1.1\r\nHost: here\r\n\r\n"):
                split.writer.write(part)
                await asyncio.sleep(0.01)
            assert [(await split.read())[0] for _ in range(2)] == [200, 200]
            assert len(origin.seen) == 1

    run(main)


def test_a_large_body_in_memory_is_paced_and_arrives_whole():
    content = bytes(range(256)) * (3 << 12)

    async def main():
        async with node(lambda *_: response(content, "Cache-Control: max-age=60")) as (cache, _, connect):
            await (await connect()).ask()
            client = await connect()
            for _ in range(3):
                client.send()
            client.send("/a", "Range: bytes=1000-2000999")
            await asyncio.sleep(0.1)
            held = [one.transport.get_write_buffer_size() for one in cache._connections]
            assert max(held) < len(content) // 2
            for _ in range(3):
                assert (await client.read())[2] == content
            assert (await client.read())[2] == content[1000:2001000]

    run(main)


def test_a_large_body_arrives_whole_however_slowly_it_is_read(tmp_path):
    size = 3 << 20
    content = bytes(range(256)) * (size // 256)

    async def main():
        async with node(lambda *_: response(content, "Cache-Control: max-age=60"), folder=tmp_path) as (
            cache,
            _,
            connect,
        ):
            await (await connect()).ask()
            while not list(tmp_path.glob("??/*")) or cache.store.variants(b"here\0/a")[0].file is None:
                await asyncio.sleep(0.01)
            clients = [await connect() for _ in range(3)]
            for client in clients:
                client.send()
                client.send("/a", "Range: bytes=1000-2000999")
            await asyncio.sleep(0.2)
            for client in clients:
                assert (await client.read())[2] == content
                assert (await client.read())[2] == content[1000:2001000]
            gone = await connect()
            gone.send()
            await asyncio.sleep(0.05)
            gone.writer.transport.abort()
            await asyncio.sleep(0.05)
            assert cache.statistics().hits == 7

    run(main)

"""Slow and silent peers, drain and bounds, in virtual time: the same server on the simulator's loop."""

import asyncio

from tests.unit.edge.serving import HOST, answers, echo_app, serving, settings

from fourplane.edge.http_client import HttpClient, HttpClientSettings
from fourplane.edge.listener import ListenerSettings
from fourplane.foundation import clock, network
from fourplane.simulator import loop as simulator

PORT = 8000


class Peer(asyncio.Protocol):
    """A client that keeps what it hears."""

    def __init__(self):
        self.heard = b""
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.heard += data

    def connection_lost(self, exc):
        if not self.closed.done():
            self.closed.set_result(clock.monotonic_s())


async def connect():
    _, peer = await network.connect(Peer, "127.0.0.1", PORT)
    return peer


def simulate(work, app=echo_app, **options):
    async def main(_world):
        options.setdefault("settings", settings(port=PORT))
        async with serving(app, **options) as server:
            return await work(server)

    return simulator.run(main, 7).result


def test_a_silent_connection_is_closed_without_a_word():
    async def work(_server):
        began = clock.monotonic_s()
        peer = await connect()
        return await peer.closed - began, peer.heard

    waited, heard = simulate(work)
    assert 10 <= waited <= 12
    assert heard == b""


def test_a_dripping_head_ends_with_408():
    async def work(server):
        began = clock.monotonic_s()
        peer = await connect()
        for byte in b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"a" * 100:
            if peer.closed.done():
                break
            peer.transport.write(bytes([byte]))
            await clock.sleep(0.5)
        return await peer.closed - began, answers(peer.heard), server.statistics()

    waited, found, statistics = simulate(work)
    assert 10 <= waited <= 14
    assert [one.status for one in found] == [408]
    assert statistics.connections == 0
    assert statistics.refused == {"slow_head": 1}


def test_a_dripping_body_ends_with_408_and_a_fast_one_may_take_long():
    async def work(_server):
        slow, fast = await connect(), await connect()
        head = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 100000\r\n\r\n"
        slow.transport.write(head)
        fast.transport.write(head)
        for _ in range(50):
            fast.transport.write(b"x" * 2_000)
            if not slow.closed.done():
                slow.transport.write(b"x")
            await clock.sleep(1.0)
        return answers(slow.heard), answers(fast.heard)

    slow, fast = simulate(work)
    assert [one.status for one in slow] == [408]
    assert [one.status for one in fast] == [200]


def test_a_kept_connection_is_closed_after_the_idle_time():
    async def work(_server):
        peer = await connect()
        peer.transport.write(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
        await clock.sleep(50.0)
        peer.transport.write(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
        asked = clock.monotonic_s()
        return await peer.closed - asked, answers(peer.heard)

    waited, found = simulate(work)
    assert [one.status for one in found] == [200, 200]
    assert 60 <= waited <= 62


def test_a_peer_that_reads_nothing_is_cut():
    async def app(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(100):
            await send({"type": "http.response.body", "body": b"x" * 1_000_000, "more_body": True})

    async def work(server):
        peer = await connect()
        peer.transport.pause_reading()
        peer.transport.write(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
        await clock.sleep(90.0)
        return server.statistics()

    statistics = simulate(work, app)
    assert (statistics.connections, statistics.in_flight) == (0, 0)
    assert statistics.refused["write_stalled"] == 1


def test_drain_finishes_what_was_begun_and_takes_nothing_new():
    async def slow(scope, receive, send):
        await clock.sleep(5.0)
        await echo_app(scope, receive, send)

    async def work(server):
        idle, busy = await connect(), await connect()
        busy.transport.write(b"GET /busy HTTP/1.1\r\n" + HOST + b"\r\n")
        await clock.sleep(1.0)
        began = clock.monotonic_s()
        await server.drain()
        took = clock.monotonic_s() - began
        refused = False
        try:
            await connect()
        except OSError:
            refused = True
        return took, answers(busy.heard), idle.closed.done(), refused

    took, found, idle_closed, refused = simulate(work, slow)
    assert 3.9 <= took <= 5
    assert found[0].body == b"GET /busy? "
    assert found[0].headers["connection"] == "close"
    assert idle_closed
    assert refused


def test_connections_past_a_bound_are_closed_at_once():
    bounds = ListenerSettings(port=PORT, connections_max=100, per_address_max=3, loopback_unbounded=False)

    async def work(server):
        peers = [await connect() for _ in range(5)]
        await clock.sleep(0.1)
        open_ones = [not peer.closed.done() for peer in peers]
        peers[0].transport.close()
        await clock.sleep(0.1)
        later = await connect()
        await clock.sleep(0.1)
        return open_ones, later.closed.done(), server.statistics().connections_refused

    base = settings(port=PORT)
    open_ones, later_closed, refused = simulate(work, settings=type(base)(listener=bounds))
    assert open_ones == [True, True, True, False, False]
    assert not later_closed
    assert refused == 2


def test_the_same_seed_gives_the_same_run():
    async def main(_world):
        async with serving(echo_app, settings=settings(port=PORT)) as server:
            client = HttpClient("127.0.0.1", server.port, settings=HttpClientSettings(connections_max=3))
            async with asyncio.TaskGroup() as group:
                for number in range(50):
                    group.create_task(client.request("POST", f"/{number}", body=b"x" * number))
            client.close()

    digests = {simulator.run(main, 11).digest for _ in range(2)}
    assert len(digests) == 1

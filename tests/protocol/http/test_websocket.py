"""RFC 6455 with the websockets library as the client."""

import asyncio

import pytest
import websockets
from tests.unit.edge.serving import HOST, echo_app, serving, settings, talk

from fourplane.edge.websocket import SocketPlan
from fourplane.foundation.errors import Overloaded, Unavailable


def with_socket(handler, work, *, plan=None, **options):
    async def door(_request):
        return plan or SocketPlan(handler, subprotocol=None, message_max=100_000)

    async def main():
        async with serving(echo_app, sockets=door, **options) as server:
            return await work(f"ws://127.0.0.1:{server.port}/ws?x=1", server)

    return asyncio.run(main())


async def echo(session):
    while (message := await session.receive()) is not None:
        session.send(message)


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_messages_come_back_as_they_were(compression):
    async def work(url, _server):
        async with websockets.connect(url, compression=compression) as socket:
            found = []
            for message in ("text", "", b"bytes", "ä" * 20_000, b"\0" * 90_000):
                await socket.send(message)
                found.append(await socket.recv() == message)
            return found

    assert all(with_socket(echo, work))


def test_fragments_are_joined():
    async def work(url, _server):
        async with websockets.connect(url) as socket:
            await socket.send(["one ", "two ", "three"])
            return await socket.recv()

    assert with_socket(echo, work) == "one two three"


def test_a_message_past_the_bound_closes_with_1009():
    async def work(url, _server):
        async with websockets.connect(url) as socket:
            await socket.send("x" * 100_001)
            with pytest.raises(websockets.ConnectionClosed) as caught:
                await socket.recv()
            return caught.value.rcvd.code

    assert with_socket(echo, work) == 1009


def test_a_packed_bomb_is_stopped():
    async def work(url, _server):
        async with websockets.connect(url, compression="deflate") as socket:
            await socket.send(b"\0" * 20_000_000)
            with pytest.raises(websockets.ConnectionClosed):
                await socket.recv()

    with_socket(echo, work)


def test_the_handler_ends_the_socket_when_it_returns():
    async def greet(session):
        session.send(dict(session.query)["x"])

    async def work(url, _server):
        async with websockets.connect(url) as socket:
            first = await socket.recv()
            with pytest.raises(websockets.ConnectionClosedOK):
                await socket.recv()
            return first

    assert with_socket(greet, work) == "1"


def test_a_bug_closes_with_1011_and_is_told():
    async def bug(_session):
        raise ValueError("a bug")

    async def work(url, server):
        async with websockets.connect(url) as socket:
            with pytest.raises(websockets.ConnectionClosedError) as caught:
                await socket.recv()
        return caught.value.rcvd.code, [event.text for event in server.registry.events]

    code, events = with_socket(bug, work)
    assert code == 1011
    assert "a bug" in events[0]


def test_receive_ends_when_the_peer_leaves():
    ended = []

    async def listen(session):
        ended.append(await session.receive())
        with pytest.raises(Unavailable):
            session.send("late")

    async def work(url, server):
        socket = await websockets.connect(url)
        socket.transport.abort()
        while not ended or server.statistics().sockets:
            await asyncio.sleep(0.001)
        return ended

    assert with_socket(listen, work) == [None]


def test_a_slow_reader_is_overloaded_at_the_sender():
    sent = []

    async def flood(session):
        try:
            while True:
                session.send(b"x" * 50_000)
                sent.append(session.buffered())
                await asyncio.sleep(0)
        except Overloaded as error:
            sent.append(error.reason)
            raise

    async def work(url, _server):
        socket = await websockets.connect(url, max_queue=1, compression=None)
        while not sent or sent[-1] != "slow_reader":
            await asyncio.sleep(0.001)
        socket.transport.abort()
        return max(sent[:-1])

    assert with_socket(flood, work, settings=settings(socket_send_buffer_max=1 << 20)) < (1 << 20) + 60_000


def test_pings_are_answered():
    async def work(url, _server):
        async with websockets.connect(url) as socket:
            await (await socket.ping())
            return True

    assert with_socket(echo, work)


def test_subprotocol_and_plain_http_beside_it():
    plan = SocketPlan(echo, subprotocol="chat")

    async def work(url, server):
        async with websockets.connect(url, subprotocols=["other", "chat"]) as socket:
            chosen = socket.subprotocol
        return chosen, await talk(server.port, b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")

    chosen, plain = with_socket(echo, work, plan=plan)
    assert chosen == "chat"
    assert plain.startswith(b"HTTP/1.1 200")


HANDSHAKE = b"GET /ws HTTP/1.1\r\n" + HOST + b"Connection: upgrade\r\nUpgrade: websocket\r\n"
KEY = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"


@pytest.mark.parametrize(
    "frames",
    [b"\x81\x03abc", b"\xff" * 50, b"\x83\x80\0\0\0\0", b"\x89\xfe\x01\x00" + b"\0" * 260, b"\x88\x81\0\0\0\0a"],
    ids=["unmasked", "reserved", "unknown_opcode", "long_ping", "short_close"],
)
def test_broken_frames_end_the_socket(frames):
    async def work(_url, server):
        data = await talk(server.port, HANDSHAKE + KEY, frames, half_close=False)
        return data, server.registry.events

    data, events = with_socket(echo, work)
    assert data.startswith(b"HTTP/1.1 101")
    assert data.partition(b"\r\n\r\n")[2][:1] == b"\x88"
    assert not events


def test_a_handshake_without_a_key_is_refused():
    async def work(_url, server):
        return await talk(server.port, HANDSHAKE + b"Sec-WebSocket-Version: 13\r\n\r\n", half_close=False)

    assert with_socket(echo, work).startswith(b"HTTP/1.1 400")


def test_drain_says_1001():
    async def work(url, server):
        async with websockets.connect(url) as socket:
            await server.drain()
            with pytest.raises(websockets.ConnectionClosed) as caught:
                await socket.recv()
            return caught.value.rcvd.code

    assert with_socket(echo, work) == 1001

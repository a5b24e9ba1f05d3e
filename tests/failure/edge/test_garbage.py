"""Whatever bytes come, the server answers or closes, keeps serving others, and leaks nothing."""

import asyncio
import random

from tests.unit.edge.serving import HOST, echo_app, serving, settings, talk

from fourplane.edge.http_answers import answer
from fourplane.edge.websocket import SocketPlan

ROUNDS = 1_000
PIECES = [
    b"GET / HTTP/1.1\r\n",
    b"POST /hot HTTP/1.1\r\n",
    HOST,
    b"Content-Length: 5\r\n",
    b"Content-Length: 99999999999\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n",
    b"Expect: 100-continue\r\n",
    b"\r\n",
    b"\r\n\r\n",
    b"5\r\nhello\r\n",
    b"0\r\n\r\n",
    b"\0\xff\xfe",
    b": :\r\n",
    b"\n",
    b"\x81\x85\0\0\0\0hello",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"HTTP/1.1 200 OK\r\n",
    b"a" * 40_000,
]


def mutated(chance):
    data = bytearray(b"".join(chance.choice(PIECES) for _ in range(chance.randrange(1, 12))))
    for _ in range(chance.randrange(0, 4)):
        if data:
            data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data)


def test_random_and_half_right_bytes_never_break_the_server():
    chance = random.Random(20_26)

    async def echo(session):
        while (message := await session.receive()) is not None:
            session.send(message)

    async def door(_request):
        return SocketPlan(echo)

    async def main():
        async with serving(echo_app, sockets=door, settings=settings(head_s_max=0.5, body_grace_s=0.5)) as server:
            server.hot("POST", "/hot", lambda request: answer(200, request.body))
            errors = []
            asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))
            for _ in range(ROUNDS):
                message = mutated(chance)
                cut = chance.randrange(len(message) + 1)
                await talk(server.port, message[:cut], message[cut:])
            good = await talk(server.port, b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
            async with asyncio.timeout(10):
                while server.statistics().connections or server.statistics().in_flight:
                    await asyncio.sleep(0.01)
            return errors, good, [event.text for event in server.registry.events]

    errors, good, events = asyncio.run(main())
    assert errors == []
    assert events == []
    assert good.startswith(b"HTTP/1.1 200")

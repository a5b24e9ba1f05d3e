import asyncio

import pytest
import websockets

from fourplane.edge.gateway import Gateway, GatewaySettings
from fourplane.edge.http_client import HttpClient
from fourplane.edge.http_server import HttpServer, HttpServerSettings
from fourplane.edge.listener import ListenerSettings
from fourplane.edge.neighbour import Neighbour, NeighbourSettings
from fourplane.edge.routes import Reply, Route, SocketRoute
from fourplane.foundation import clock, network
from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry
from fourplane.service.accounts import Accounts
from fourplane.state.stores import Stores, StoresSettings


class Work:
    """What the owner does."""

    def __init__(self):
        self.placed = 0
        self.left = asyncio.Event()

    def doors(self):
        return [
            Route("GET", "/far/seen", self.seen, "What the owner sees"),
            Route("POST", "/far/upload", self.upload, "Bytes", body=bytes, body_max=32 << 20),
            Route("POST", "/far/place", self.place, "Counts"),
            Route("GET", "/far/stream", self.stream, "Pieces"),
            SocketRoute("/far/echo", self.echo, "Echo", subprotocols=("talk",)),
        ]

    async def seen(self, call):
        return {
            "peer": call.peer,
            "host": call.headers["host"],
            "query": dict(call.query),
            "own": call.headers.get("x-own"),
        }

    async def upload(self, call):
        return Reply(call.body[::-1], media_type="application/octet-stream", headers={"x-size": str(len(call.body))})

    async def place(self, _call):
        self.placed += 1
        return {"placed": self.placed}

    async def stream(self, _call):
        async def pieces():
            for number in range(3):
                yield b"piece %d\n" % number
                await clock.sleep(0.001)

        return Reply(pieces(), media_type="text/plain")

    async def echo(self, session):
        session.send(f"peer {session.peer}")
        while (message := await session.receive()) is not None:
            session.send(message)
        self.left.set()


async def server(life, registry, accounts, doors, **options):
    elsewhere = options.pop("elsewhere", None)
    gateway = Gateway(doors, accounts, registry=registry, settings=GatewaySettings(rate_per_s=1e6), elsewhere=elsewhere)
    made = HttpServer(
        HttpServerSettings(listener=ListenerSettings(port=0)),
        gateway,
        registry=registry,
        sockets=gateway.open_socket,
        **options,
    )
    life.add(options.get("name", "http"), made)
    return made


def two_workers(main, *, late=False, settings=None):
    """Run `main(client, work, port, path, neighbour)`: a front server that owns nothing, an owner behind a Unix socket."""

    def test(tmp_path):
        async def body():
            registry, life, path = Registry(), Lifecycle(Registry()), str(tmp_path / "owner")
            stores = Stores(StoresSettings(sql="memory://"))
            accounts = Accounts(await stores.sql("accounts"), ids=IdGenerator())
            work, neighbour = Work(), Neighbour("the owner", path, settings)
            life.add("accounts", accounts)
            waiting = network.bind_unix(path)
            if not late:
                await server(life, registry, accounts, work.doors(), inherited=waiting.dup(), name="owner", behind=True)
            front = await server(
                life, registry, accounts, [], elsewhere=lambda where: neighbour if where.startswith("/far/") else None
            )
            await life.start()
            client = HttpClient("127.0.0.1", front.port)
            try:
                async with asyncio.timeout(20):
                    await main(client, work, front.port, waiting, neighbour)
            finally:
                client.close()
                neighbour.close()
                await life.drain()
                await life.stop()
                await stores.stop()
                waiting.close()

        asyncio.run(body())

    return test


async def _same_request(client, _work, port, _waiting, _neighbour):
    headers = {"x-own": "1", "x-fourplane-peer": "10.9.8.7"}
    answer = await client.request("GET", "/far/seen?a=b%20c", headers=headers)
    assert answer.status == 200
    said = answer.body.decode()
    assert '"peer":"127.0.0.1"' in said, "a client cannot say that it is somebody else"
    assert f'"host":"127.0.0.1:{port}"' in said
    assert '"query":{"a":"b c"}' in said
    assert '"own":"1"' in said
    assert (await client.request("GET", "/far/nothing")).status == 404
    assert (await client.request("HEAD", "/far/seen")).body == b""


test_the_owner_sees_the_request_as_it_came_and_the_clients_address = two_workers(_same_request)


async def _bodies(client, _work, _port, _waiting, neighbour):
    for size in (0, 1, 70_000, 5 << 20):
        sent = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        answer = await client.request("POST", "/far/upload", body=sent)
        assert (answer.status, answer.headers["x-size"], answer.body == sent[::-1]) == (200, str(size), True)
    assert (await client.request("POST", "/far/upload", body=bytes(33 << 20))).status == 413
    assert (await client.request("GET", "/far/stream")).body == b"piece 0\npiece 1\npiece 2\n"
    assert neighbour.statistics().under_way == 0


test_bodies_stream_both_ways = two_workers(_bodies)


async def _sockets(_client, work, port, _waiting, neighbour):
    async with websockets.connect(f"ws://127.0.0.1:{port}/far/echo", subprotocols=["talk"]) as socket:
        assert socket.subprotocol == "talk"
        assert await socket.recv() == "peer 127.0.0.1"
        for message in ("hello", b"bytes", "x" * 200_000):
            await socket.send(message)
            assert await socket.recv() == message
        assert neighbour.statistics().tunnels == 1
    await work.left.wait()
    with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
        await websockets.connect(f"ws://127.0.0.1:{port}/far/nothing")
    assert refused.value.response.status_code == 404


test_websockets_go_through_and_end_with_their_client = two_workers(_sockets)


class Dying(asyncio.Protocol):
    """An owner that is killed with the request in its hands."""

    heard = 0

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, _data):
        Dying.heard += 1
        self.transport.abort()


async def _restart(client, work, _port, waiting, neighbour):
    Dying.heard = 0
    dying = await network.listen_unix(Dying, "", inherited=waiting.dup())
    safe = [
        asyncio.ensure_future(client.request("GET", "/far/seen")),
        asyncio.ensure_future(client.request("POST", "/far/place", body=b"", headers={"idempotency-key": "one"})),
    ]
    unsafe = await client.request("POST", "/far/place")
    assert unsafe.status == 503
    assert b"connection_lost" in unsafe.body
    dying.close()
    while Dying.heard < 3:
        await clock.sleep(0.001)
    late = asyncio.ensure_future(client.request("POST", "/far/place"))  # waits in the queue of the socket
    await clock.sleep(0.02)
    registry, life = Registry(), Lifecycle(Registry())
    stores = Stores(StoresSettings(sql="memory://"))
    accounts = Accounts(await stores.sql("accounts"), ids=IdGenerator())
    life.add("accounts", accounts)
    await server(life, registry, accounts, work.doors(), inherited=waiting.dup(), name="owner", behind=True)
    await life.start()
    assert [answer.status for answer in await asyncio.gather(*safe, late)] == [200, 200, 200]
    assert work.placed == 2
    assert neighbour.statistics().repeated >= 2
    await life.stop()
    await stores.stop()


test_a_restarting_owner_costs_time_and_only_what_cannot_be_repeated_fails = two_workers(_restart, late=True)


async def _absent(client, _work, _port, _waiting, _neighbour):
    answer = await client.request("GET", "/far/seen", headers={"accept": "text/html"})
    assert answer.status == 504
    assert b"<h1>504</h1>" in answer.body


test_an_owner_that_never_answers_is_a_504 = two_workers(
    _absent, late=True, settings=NeighbourSettings(answer_s_max=0.05)
)

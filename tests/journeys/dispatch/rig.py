"""A whole dispatch system on embedded engines, a rider and a driver, for tests."""

import asyncio
import atexit
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import numpy as np

from fourplane.dispatch import feed_frames as frames
from fourplane.dispatch.app import Dispatch, DispatchSettings
from fourplane.dispatch.driver_index import IndexSettings, make_updates
from fourplane.dispatch.location_feed import FeedSettings
from fourplane.dispatch.matching import MatchingSettings
from fourplane.dispatch.pricing import PricingSettings
from fourplane.edge.gateway import Gateway, GatewaySettings
from fourplane.edge.http_client import HttpClient
from fourplane.edge.http_server import HttpServer, HttpServerSettings
from fourplane.edge.listener import ListenerSettings
from fourplane.foundation import clock, network
from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry
from fourplane.service.accounts import Accounts
from fourplane.service.card_simulator import CardSimulator
from fourplane.service.key_ring import KeyRing
from fourplane.service.tokens import Signer
from fourplane.state.stores import Stores, StoresSettings

QUICK = DispatchSettings(
    index=IndexSettings(engine="columns"),
    feed=FeedSettings(port=0),
    matching=MatchingSettings(window_s=0.05, offer_s=1.0, patience_s=20.0),
    pricing=PricingSettings(surge_refresh_s=1.0),
)
MEMORY = StoresSettings(sql="memory://", records="memory://", log="memory://", search="memory://")


MAPS = os.environ.get("DISPATCH_TEST_MAPS", "")  # given to a child, so that it need not make the city again
if not MAPS:
    MAPS = tempfile.mkdtemp(prefix="dispatch-maps-")
    atexit.register(shutil.rmtree, MAPS, ignore_errors=True)


class Refused(Exception):
    def __init__(self, status: int, body: dict) -> None:
        super().__init__(f"{status} {body}")
        self.status, self.code = status, body["error"]["code"]


class City:
    """A running system and the calls tests make."""

    def __init__(self, dispatch: Dispatch, server: HttpServer, life: Lifecycle, host: str) -> None:
        self.dispatch, self.server, self.life = dispatch, server, life
        self.host = host
        self.client = HttpClient(host, server.port)
        self.sequence = 0

    async def call(self, method: str, path: str, body: object = None, **headers: str):
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            sent["content-type"] = "application/json"
        answer = await self.client.request(
            method, f"/dispatch/api{path}", body=b"" if body is None else msgspec.json.encode(body), headers=sent
        )
        content = json.loads(answer.body) if answer.body else None
        if answer.status >= 400:
            raise Refused(answer.status, content)
        return content

    async def guest(self) -> "Rider":
        made = await self.call("POST", "/guests", {})
        return Rider(self, made["rider"], made["token"])

    async def driver(self, lat: float, lng: float, name: str = "Ana", vehicle: int = 0) -> "Driver":
        made = await self.call("POST", "/drivers", {"name": name, "vehicle": vehicle})
        driver = Driver(self, made["driver"], made["token"], made["feed_token"])
        await driver.do("online")
        await driver.move(lat, lng)
        return driver

    def points(self, count: int, seed: int = 1, spread: float = 0.006) -> list[tuple[float, float]]:
        """Road nodes near the middle of the city."""
        roads = self.dispatch.eta.roads
        lat, lng = roads.center
        near = np.flatnonzero(np.hypot(roads.lat - lat, roads.lng - lng) < spread)
        chosen = np.random.default_rng(seed).choice(near, count, replace=False)
        return [(float(roads.lat[n]), float(roads.lng[n])) for n in chosen]


class Rider:
    def __init__(self, city: City, rider: str, token: str) -> None:
        self.city, self.rider, self.token = city, rider, token

    async def call(self, method: str, path: str, body: object = None, **headers: str):
        return await self.city.call(method, path, body, x_rider_token=self.token, **headers)

    async def estimate(self, start, end, product: str = "go"):
        return await self.call("POST", "/requests/estimate", {
            "product_id": product, "start_latitude": start[0], "start_longitude": start[1],
            "end_latitude": end[0], "end_longitude": end[1],
        })  # fmt: skip

    async def request(
        self, start, end, *, product: str = "go", key: str = "", method: str = "card_ok", pin: bool = False
    ):
        fare = (await self.estimate(start, end, product))["fare"]["fare_id"]
        headers = {"idempotency_key": key} if key else {}
        return await self.call("POST", "/requests", {"fare_id": fare, "payment_method": method, "pin": pin}, **headers)

    async def show(self, ride: str):
        return await self.call("GET", f"/requests/{ride}")

    async def wait_for(self, ride: str, holds: Callable[[dict], bool], tries: int = 400):
        for _ in range(tries):
            answer = await self.show(ride)
            if holds(answer):
                return answer
            await clock.sleep(0.02)
        raise AssertionError(f"it never came to that: {answer}")


class Driver:
    def __init__(self, city: City, number: int, token: str, feed_token: str) -> None:
        self.city, self.number, self.token, self.feed_token = city, number, token, feed_token

    async def do(self, verb: str, trip: str = "", **more: object):
        return await self.city.call("POST", f"/drivers/me/{verb}", {"trip": trip, **more}, x_driver_token=self.token)

    async def move(self, lat: float, lng: float):
        await clock.sleep(0.07)
        return await self.city.call(
            "POST", "/drivers/me/position", {"latitude": lat, "longitude": lng}, x_driver_token=self.token
        )

    async def me(self):
        return await self.city.call("GET", "/drivers/me", x_driver_token=self.token)

    async def wait_offer(self, tries: int = 400) -> str:
        for _ in range(tries):
            state = await self.me()
            if state["offer"]:
                return state["offer"]["trip"]
            await clock.sleep(0.02)
        raise AssertionError("no offer came")

    async def drive(self, trip: str, pin: str = "") -> None:
        for verb in ("accept", "arrive", "start", "finish"):
            await self.do(verb, trip, **({"pin": pin} if verb == "start" else {}))


class Gate(asyncio.Protocol):
    """A gateway of drivers on the TCP feed."""

    def __init__(self) -> None:
        self.reader = frames.FrameReader()
        self.got: list[tuple[int, dict]] = []
        self.closed = asyncio.Event()
        self.news = asyncio.Event()

    def connection_made(self, transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        for kind, payload in self.reader.feed(data):
            self.got.append((kind, json.loads(bytes(payload))))
        self.news.set()

    def connection_lost(self, exc) -> None:
        self.closed.set()
        self.news.set()

    async def wait(self, holds: Callable[[int, dict], bool]) -> dict:
        while True:
            for kind, content in self.got:
                if holds(kind, content):
                    self.got.remove((kind, content))
                    return content
            assert not self.closed.is_set(), self.got
            self.news.clear()
            await self.news.wait()

    def send(self, kind: int, payload: bytes) -> None:
        self.transport.write(frames.frame(kind, payload))

    def positions(self, first: int, places: list[tuple[float, float]], sequence: int) -> None:
        numbers = np.arange(first, first + len(places), dtype=np.uint32)
        lat, lng = np.array(places).T
        self.transport.write(
            frames.positions_frame(make_updates(numbers, lat, lng, np.full(len(places), sequence, np.uint32)))
        )


async def gate(city: City, token: str) -> Gate:
    """A connected gateway that said hello."""
    _, made = await network.connect(Gate, city.host, city.dispatch.feed.port)
    made.send(frames.HELLO, token.encode())
    await made.wait(lambda kind, _: kind == frames.WELCOME)
    return made


async def build(
    *,
    data: Path | None = None,
    settings: DispatchSettings = QUICK,
    host: str = "127.0.0.1",
    disk=None,
    cards: bool = True,
) -> City:
    registry, ids = Registry(), IdGenerator()
    chosen = MEMORY if data is None else StoresSettings(search="memory://")
    chosen = msgspec.structs.replace(chosen, blobs=f"folder:///{MAPS}")  # the city is made once for all tests
    stores = Stores(chosen, data=data or Path("unused"), disk=disk)
    payments = CardSimulator(await stores.sql("payments"), ids=ids)
    accounts = Accounts(await stores.sql("accounts"), ids=ids)
    dispatch = Dispatch(
        msgspec.structs.replace(settings, feed=msgspec.structs.replace(settings.feed, host=host)),
        records=await stores.records("dispatch"), log=await stores.log("dispatch"), blobs=await stores.blobs("dispatch"),
        payments=payments, signer=Signer(KeyRing.in_memory()), ids=ids, registry=registry,
    )  # fmt: skip
    gateway = Gateway(
        dispatch.doors(), accounts, registry=registry, settings=GatewaySettings(hosts=("*",), rate_per_s=1e6)
    )
    server = HttpServer(
        HttpServerSettings(listener=ListenerSettings(host=host, port=0)), gateway, registry=registry,
        classify=gateway.classify, sockets=gateway.open_socket,
    )  # fmt: skip
    for method, path, handler in dispatch.hot_routes():
        server.hot(method, path, handler)
    life = Lifecycle(registry)
    for name, part in (
        ("stores", stores),
        ("accounts", accounts),
        ("cards", payments),
        ("dispatch", dispatch),
        ("http", server),
    ):
        life.add(name, part)
    await life.start()
    city = City(dispatch, server, life, host)
    city.gateway, city.payments, city.accounts = gateway, payments, accounts
    return city


@asynccontextmanager
async def running(**options) -> AsyncIterator[City]:
    """A city for the length of a block; its invariants are checked at the end."""
    city = await build(**options)
    try:
        yield city
        city.dispatch.rides.check()
    finally:
        city.client.close()
        await city.life.drain()
        await city.life.stop()
        city.gateway.close()

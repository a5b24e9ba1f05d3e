"""A whole shop behind a real listener, for journeys, the failure tests and the simulator."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from fourplane.commerce.app import Commerce, CommerceSettings
from fourplane.commerce.page_cache import PageCacheSettings
from fourplane.edge.gateway import Gateway, GatewaySettings
from fourplane.edge.http_client import HttpClient, HttpClientSettings
from fourplane.edge.http_server import HttpServer, HttpServerSettings
from fourplane.edge.listener import ListenerSettings
from fourplane.foundation import clock
from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry
from fourplane.service.accounts import Accounts
from fourplane.service.card_simulator import CardSettings, CardSimulator
from fourplane.state.stores import Stores, StoresSettings

COLD = PageCacheSettings(warm=0)  # pages are rendered when somebody asks
QUICK = CommerceSettings(generated_products=40, pages=COLD)
ADDRESS = {
    "name": "Ada Vale",
    "street": "12 Harbour Road",
    "city": "Porto",
    "postcode": "4000-001",
    "country": "PT",
    "email": "ada@example.org",
}
AGAIN_MAX, AGAIN_S = 60, 0.3
MEMORY = StoresSettings(sql="memory://", records="memory://", search="memory://")


class Undescribed(Gateway):
    """Without a description of the API, which costs more than all the rest of a start."""

    def _describe(self, version: str) -> None:
        """Nobody asks for it."""


class Shop:
    """A running shop and a client to it."""

    def __init__(
        self, commerce: Commerce, server: HttpServer, accounts: Accounts, cards: CardSimulator, host: str
    ) -> None:
        self.commerce = commerce
        self.server = server
        self.accounts = accounts
        self.cards = cards
        self.client = HttpClient(host, server.port, settings=HttpClientSettings(connections_max=200))

    async def call(self, method: str, path: str, body: object = None, **headers: str):
        answer = await self.client.request(
            method,
            path,
            body=b"" if body is None else msgspec.json.encode(body),
            headers={"content-type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()},
            timeout_s=30.0,
        )
        json = answer.headers.get("content-type", "").startswith("application/json")
        return answer.status, msgspec.json.decode(answer.body) if json and answer.body else answer.body

    async def patient(self, method: str, path: str, body: object = None, **headers: str):
        """A call that comes back when it is told to, as the storefront's page does: many at once may be too much."""
        for _ in range(AGAIN_MAX):
            status, told = await self.call(method, path, body, **headers)
            if status != 503 or told["error"]["code"] != "overloaded":
                break
            await clock.sleep(AGAIN_S)
        return status, told

    async def cart_with(self, sku: str, quantity: int = 1) -> str:
        cart = (await self.patient("POST", "/commerce/api/carts"))[1]["id"]
        status, view = await self.patient(
            "POST", f"/commerce/api/carts/{cart}/lines?country=PT", {"sku": sku, "quantity": quantity}
        )
        assert status == 200, view
        return cart

    async def order(self, cart: str, attempt: str, **changes: object):
        body = {"address": ADDRESS} | changes
        return await self.patient("POST", f"/commerce/api/carts/{cart}/orders", body, idempotency_key=attempt)

    async def some_sku(self, stock: int) -> str:
        """A sku of the shop with exactly this much on hand."""
        product = (await self.commerce.catalog.page("", 1))[0]
        sku = product.variants[0].sku
        await self.set_stock(sku, stock)
        return sku

    async def set_stock(self, sku: str, stock: int) -> None:
        from fourplane.commerce.inventory import Adjustment

        await self.commerce.inventory.set_stock([Adjustment(sku, stock, "count")])

    async def money(self) -> dict[str, dict[str, int]]:
        """The card network's books, when the captures that follow the answers are done."""
        await self.commerce.coordinator.settle()
        return await self.cards.balances()


async def build(
    *,
    data: Path | None = None,
    settings: CommerceSettings = QUICK,
    host: str = "127.0.0.1",
    stores_settings: StoresSettings | None = None,
    disk=None,
    shards: int = 2,
    wrap=lambda store: store,
    described: bool = False,
) -> Shop:
    """Open a shop; `wrap` may put something between it and its stores. No shards: stock lies beside the orders."""
    registry, ids = Registry(), IdGenerator()
    given = stores_settings or (StoresSettings(search="memory://") if data else MEMORY)
    stores = Stores(given, data=data or Path("unused"), disk=disk)
    cards = CardSimulator(
        wrap(await stores.sql("payments")), ids=ids, settings=CardSettings(slow_s=0.05, silent_s=20.0)
    )
    accounts = Accounts(await stores.sql("accounts"), ids=ids)
    main = wrap(await stores.sql("commerce"))
    commerce = Commerce(
        settings,
        sql=main,
        records=wrap(await stores.records("commerce")),
        search=await stores.search("commerce"),
        blobs=await stores.blobs("commerce") if data else None,
        payments=cards,
        ids=ids,
        registry=registry,
        shards=[wrap(await stores.sql(f"stock-{number}")) for number in range(shards)] or [main],
    )
    gateway = (Gateway if described else Undescribed)(
        commerce.doors(), accounts, registry=registry, settings=GatewaySettings(hosts=("*",), rate_per_s=1e6)
    )
    server = HttpServer(
        HttpServerSettings(listener=ListenerSettings(host=host, port=0)),
        gateway,
        registry=registry,
        classify=gateway.classify,
        first_lines=gateway.first_lines,
    )
    life = Lifecycle(registry)
    for name, part in (
        ("stores", stores),
        ("accounts", accounts),
        ("cards", cards),
        ("commerce", commerce),
        ("http", server),
    ):
        life.add(name, part)
    await life.start()
    built = Shop(commerce, server, accounts, cards, host)
    built.life, built.stores, built.gateway = life, stores, gateway
    return built


@asynccontextmanager
async def shop(**options) -> AsyncIterator[Shop]:
    """A shop for the length of a block."""
    built = await build(**options)
    try:
        yield built
    finally:
        built.client.close()
        await built.life.drain()
        await built.life.stop()
        built.gateway.close()


async def serve(data: Path) -> None:
    """A shop in a process of its own, until it is killed; tells its port."""
    settings = CommerceSettings(generated_products=8, standing_offers=False, pages=COLD)
    async with shop(data=data, settings=settings, shards=0) as s:
        sys.stdout.write(f"port {s.server.port}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))

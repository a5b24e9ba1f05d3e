"""Shoppers after few pieces: they fill carts, look again, order, and ask again with the same key when no answer came."""

import asyncio
from typing import Any

import msgspec

from fourplane.commerce.app import Commerce
from fourplane.commerce.inventory import Adjustment
from fourplane.foundation import clock, ids
from fourplane.foundation.errors import FourplaneError
from fourplane.simulator.checkers import shop
from fourplane.simulator.deployment import SimulatedDeployment
from fourplane.simulator.loop import World
from fourplane.simulator.people import Caller, Felt, Pace
from fourplane.simulator.sites import Sites

EVERY_S = 1.5
STOCK = 12
SKUS = 3
TRIES = 12
SETTLE_S = 60.0
ORDERS_MAX = 1_000
LOOK_S = 5.0
CARDS = ("card_ok", "card_ok", "card_ok", "card_ok", "card_declined", "card_slow")
ADDRESS = {
    "name": "Robin Shopper",
    "street": "7 Market Square",
    "city": "Porto",
    "postcode": "4000-001",
    "country": "PT",
    "email": "robin@example.org",
}


class Shop:
    """The shop of one site, and what its buyers were promised."""

    def __init__(self, site: SimulatedDeployment) -> None:
        self.site = site
        self.stock: dict[str, int] = {}
        self.placed: list[shop.Placed] = []

    @property
    def system(self) -> Commerce | None:
        """What runs there now, when it can be asked."""
        system = self.site.system
        return system if isinstance(system, Commerce) and self.site.is_up else None


class CommercePeople:
    """Drives the API of every shop."""

    def __init__(self, world: World, sites: Sites, hosts: list[str], count: int) -> None:
        self.felt = Felt()
        self._world = world
        self._home = sites.home
        self._count = count
        self._callers = [Caller(world, sites.of(place), self.felt, host) for place, host in enumerate(hosts)]
        self._shops = [Shop(site) for site in sites.all]
        self._hosts = hosts
        self.pace = Pace(EVERY_S)
        self._carts: list[str] = []  # what is broken about them
        self._open: list[tuple[int, str, dict[str, str], dict[str, object]]] = []
        self._settled = False

    async def begin(self) -> None:
        for one in self._shops:
            assert one.system is not None
            with self._world.on(one.site.host):
                products = await one.system.catalog.page("", SKUS)
                one.stock = {product.variants[0].sku: STOCK for product in products}
                await one.system.inventory.set_stock([Adjustment(sku, STOCK, "count") for sku in one.stock])

    async def drive(self, duration_s: float) -> None:
        until_s = clock.monotonic_s() + duration_s
        async with asyncio.TaskGroup() as group:
            for number in range(self._count):
                place = number % len(self._hosts)
                with self._world.on(self._hosts[place]):
                    group.create_task(self._shop(place, until_s))

    async def settle(self) -> None:
        for place, cart, headers, body in self._open:
            await self._order(place, cart, headers, body)
        await clock.sleep(SETTLE_S)
        self._settled = True

    async def check(self) -> list[str]:
        broken = [*self.felt.violations, *self._carts, *shop.doubled(self._placed)]
        for one in self._shops:
            broken += shop.oversold(one.stock, one.placed)
        if self._settled:
            self.felt.facts |= {"orders": 0, "told": len({placed.order for placed in self._placed})}
        rest, asked = 0, 0
        for one in self._shops:
            found = await self._look_into(one)
            if found is not None:
                broken, rest, asked = broken + found[0], rest + found[1], asked + 1
            elif self._settled:
                broken.append(f"shop: the books of {one.site.host} cannot be read although everything is whole again")
        platform = self._home.platform
        if self._settled and platform is not None and asked == len(self._shops):
            with self._world.on(self._home.host):
                balances = await platform.payments.cards.balances()
            captured = sum(accounts.get("merchant", 0) for accounts in balances.values())
            broken += shop.unbalanced(balances) + shop.charged_wrong(self._placed, captured, other_orders=rest)
        return broken

    def surge(self, factor: float) -> None:
        self.pace.factor = factor

    @property
    def _placed(self) -> list[shop.Placed]:
        """Of all shops."""
        return [placed for one in self._shops for placed in one.placed]

    async def _look_into(self, one: Shop) -> tuple[list[str], int] | None:
        """What is broken in a shop, and what orders nobody was told of cost; None when it or its far stock is down.

        A task of that host looks, because it may crash meanwhile, and then nothing that runs there goes on.
        """
        system = one.system
        if system is None:
            return None
        with self._world.on(one.site.host):
            look = asyncio.get_running_loop().create_task(self._books_of(one, system))
        await asyncio.wait({look}, timeout=LOOK_S)
        if not look.done():
            look.cancel()
            return None
        return look.result()

    async def _books_of(self, one: Shop, system: Commerce) -> tuple[list[str], int] | None:
        try:
            broken = await _stock_of(system)
            if not self._settled:
                return broken, 0
            told, rest = await self._orders_of(one, system)
        except FourplaneError:
            return None
        return broken + told, rest

    async def _orders_of(self, one: Shop, system: Commerce) -> tuple[list[str], int]:
        """What is broken about the orders of a shop, and what those cost whose buyers were not told."""
        told = {placed.order for placed in one.placed}
        orders = await system.orders.in_state("paid", limit=ORDERS_MAX)
        known = {ids.encode("order", order.number) for order in orders}
        broken = shop.ordered_twice([order.cart for order in orders])
        sold: dict[str, int] = {}
        for order in orders:
            for line in order.body.quote.lines:
                sold[line.sku] = sold.get(line.sku, 0) + line.quantity
        broken += shop.not_given_back(await system.inventory.levels(), one.stock, sold)
        broken += [f"shop: order {order} was confirmed and is gone" for order in sorted(told - known)]
        self.felt.facts["orders"] += len(known)
        return broken, sum(order.body.quote.total for order in orders if ids.encode("order", order.number) not in told)

    async def _shop(self, place: int, until_s: float) -> None:
        chance = clock.random()
        caller, stock = self._callers[place], self._shop_of(place).stock
        while clock.monotonic_s() < until_s:
            cart = ids.capability()
            promised: dict[str, int] = {}
            for _ in range(chance.choice((1, 1, 2))):
                await self.pace.wait()
                sku, quantity = chance.choice(sorted(stock)), chance.choice((1, 1, 2))
                line = {"sku": sku, "quantity": quantity, "operation": ids.capability(8)}
                answer = await caller.call(
                    "add to cart", "POST", f"/commerce/api/carts/{cart}/lines?country=PT", body=line
                )
                if answer is not None and answer.status == 200:
                    promised[sku] = promised.get(sku, 0) + quantity
            await self.pace.wait()
            if promised:
                await self._look_and_buy(place, cart, promised)

    async def _look_and_buy(self, place: int, cart: str, promised: dict[str, int]) -> None:
        seen = await self._callers[place].call("cart", "GET", f"/commerce/api/carts/{cart}?country=PT")
        if seen is not None and seen.status == 200:
            lines = msgspec.json.decode(seen.body)["lines"]
            self._carts += shop.cart_lost(cart, promised, {line["sku"]: line["quantity"] for line in lines})
        body: dict[str, object] = {"address": ADDRESS, "method": clock.random().choice(CARDS), "shipping": "standard"}
        headers = {"idempotency-key": ids.capability()}
        if not await self._order(place, cart, headers, body):
            self._open.append((place, cart, headers, body))

    async def _order(self, place: int, cart: str, headers: dict[str, str], body: dict[str, object]) -> bool:
        """Order until there is an answer; False when none came in all tries."""
        for _ in range(TRIES):
            answer = await self._callers[place].call(
                "order", "POST", f"/commerce/api/carts/{cart}/orders", body=body, headers=headers
            )
            if answer is not None and answer.status < 500 and answer.status != 429:
                if answer.status == 201:
                    self._remember(place, headers["idempotency-key"], msgspec.json.decode(answer.body))
                return True
            await clock.sleep(0.5 + clock.random().random())
        return False

    def _remember(self, place: int, key: str, order: dict[str, Any]) -> None:
        for number, line in enumerate(order["quote"]["lines"]):
            total = order["total"] if number == 0 else 0
            self._shop_of(place).placed.append(shop.Placed(key, order["id"], line["sku"], line["quantity"], total))
        self._world.note(f"{order['id']} placed")

    def _shop_of(self, place: int) -> Shop:
        return self._shops[place % len(self._shops)]


async def _stock_of(system: Commerce) -> list[str]:
    """What is broken about the stock of a shop."""
    broken = [f"shop: {sku} stands at {count}" for sku, count in (await system.inventory.levels()).items() if count < 0]
    try:
        await system.inventory.check()
    except AssertionError as error:
        broken.append(f"shop: {error}")
    return broken

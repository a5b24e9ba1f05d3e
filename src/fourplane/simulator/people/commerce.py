"""Shoppers after few pieces: they fill carts, look again, order, and ask again with the same key when no answer came."""

import asyncio
from typing import Any

import msgspec

from fourplane.commerce.app import Commerce
from fourplane.commerce.inventory import Adjustment
from fourplane.foundation import clock, ids
from fourplane.simulator.checkers import shop
from fourplane.simulator.deployment import SimulatedDeployment
from fourplane.simulator.loop import World
from fourplane.simulator.people import Caller, Felt, Pace

EVERY_S = 1.5
STOCK = 12
SKUS = 3
TRIES = 12
SETTLE_S = 60.0
ORDERS_MAX = 1_000
CARDS = ("card_ok", "card_ok", "card_ok", "card_ok", "card_declined", "card_slow")
ADDRESS = {
    "name": "Robin Shopper",
    "street": "7 Market Square",
    "city": "Porto",
    "postcode": "4000-001",
    "country": "PT",
    "email": "robin@example.org",
}


class CommercePeople:
    """Drives the shop's API of one deployment."""

    def __init__(self, world: World, deployment: SimulatedDeployment, hosts: list[str], count: int) -> None:
        self.felt = Felt()
        self._world = world
        self._deployment = deployment
        self._count = count
        self._callers = [Caller(world, deployment, self.felt, host) for host in hosts]
        self._hosts = hosts
        self.pace = Pace(EVERY_S)
        self._stock: dict[str, int] = {}
        self._placed: list[shop.Placed] = []
        self._carts: list[str] = []  # what is broken about them
        self._open: list[tuple[int, str, dict[str, str], dict[str, object]]] = []
        self._settled = False

    async def begin(self) -> None:
        system = self._system()
        assert system is not None
        with self._world.on(self._deployment.host):
            products = await system.catalog.page("", SKUS)
            self._stock = {product.variants[0].sku: STOCK for product in products}
            await system.inventory.set_stock([Adjustment(sku, STOCK, "count") for sku in self._stock])

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
        broken = [
            *self.felt.violations,
            *self._carts,
            *shop.doubled(self._placed),
            *shop.oversold(self._stock, self._placed),
        ]
        system, platform = self._system(), self._deployment.platform
        if system is None or platform is None or not self._deployment.is_up:
            return broken
        with self._world.on(self._deployment.host):
            levels = await system.inventory.levels()
            broken += [f"shop: {sku} stands at {count}" for sku, count in levels.items() if count < 0]
            try:
                await system.inventory.check()
            except AssertionError as error:
                broken.append(f"shop: {error}")
            if self._settled:
                broken += await self._settlement(system, await platform.payments.cards.balances())
        return broken

    def surge(self, factor: float) -> None:
        self.pace.factor = factor

    def _system(self) -> Commerce | None:
        system = self._deployment.system
        return system if isinstance(system, Commerce) else None

    async def _settlement(self, system: Commerce, balances: dict[str, dict[str, int]]) -> list[str]:
        told = {one.order for one in self._placed}
        orders = await system.orders.in_state("paid", limit=ORDERS_MAX)
        known = {ids.encode("order", order.number) for order in orders}
        broken = shop.unbalanced(balances) + shop.ordered_twice([order.cart for order in orders])
        sold: dict[str, int] = {}
        for order in orders:
            for line in order.body.quote.lines:
                sold[line.sku] = sold.get(line.sku, 0) + line.quantity
        broken += shop.not_given_back(await system.inventory.levels(), self._stock, sold)
        broken += [f"shop: order {order} was confirmed and is gone" for order in sorted(told - known)]
        rest = sum(order.body.quote.total for order in orders if ids.encode("order", order.number) not in told)
        captured = sum(accounts.get("merchant", 0) for accounts in balances.values())
        self.felt.facts |= {"orders": len(known), "told": len(told)}
        return broken + shop.charged_wrong(self._placed, captured, other_orders=rest)

    async def _shop(self, place: int, until_s: float) -> None:
        chance = clock.random()
        caller = self._callers[place]
        while clock.monotonic_s() < until_s:
            cart = ids.capability()
            promised: dict[str, int] = {}
            for _ in range(chance.choice((1, 1, 2))):
                await self.pace.wait()
                sku, quantity = chance.choice(sorted(self._stock)), chance.choice((1, 1, 2))
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
                    self._remember(headers["idempotency-key"], msgspec.json.decode(answer.body))
                return True
            await clock.sleep(0.5 + clock.random().random())
        return False

    def _remember(self, key: str, order: dict[str, Any]) -> None:
        for number, line in enumerate(order["quote"]["lines"]):
            total = order["total"] if number == 0 else 0
            self._placed.append(shop.Placed(key, order["id"], line["sku"], line["quantity"], total))
        self._world.note(f"{order['id']} placed")

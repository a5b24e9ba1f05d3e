"""Shoppers: they look around, search, open products, fill carts, and some of them buy.

One loop draws the next action over all shoppers at the plan's rate, so the load does not slow down with the shop (an open
loop); at most `OPEN_MAX` actions run at once, what comes on top is counted as `missed`. Shapes: `steady`; `flash-sale`, quiet for
a fifth of the time, then ten times the rate on a handful of products, then quiet again. Every order carries an idempotency
key; an order whose answer was lost is asked for again, as an honest client does. Whoever is turned away opens a page next, as
people do. Where that leads into the waiting room, a shopper takes a place, asks again from time to time without doing anything
else, and goes on with the pass it is let in with.
"""

import asyncio

import msgspec

from fourplane.edge.http_client import HttpClient, HttpClientSettings, HttpResponse
from fourplane.foundation import clock, ids
from fourplane.foundation.errors import FourplaneError
from fourplane.simulator.crowds import Plan, Progress, Tally, Target

OPEN_MAX = 400
WORDS = (
    "leather",
    "lamp",
    "blue",
    "jacket",
    "guitar",
    "coffee",
    "garden",
    "silver",
    "tent",
    "book",
    "chiar",
    "headpho",
)
COUNTRIES = ("US", "DE", "PT", "GB", "FR")
CARDS = ("card_ok",) * 24 + ("card_declined",)
FLASH_FACTOR = 10.0
FLASH_PRODUCTS = 5
ROOM_POLL_S = 2.0
PAGE = {"accept": "text/html"}
ADDRESS = {
    "name": "Robin Shopper",
    "street": "7 Market Square",
    "city": "Springfield",
    "postcode": "12345",
    "email": "robin@example.org",
}


class _Ordered(msgspec.Struct):
    """What of an order is counted."""

    total: int
    currency: str


class Shopper:
    """One visitor: a cart, a country, and the products seen last."""

    def __init__(self, number: int) -> None:
        self.country = COUNTRIES[number % len(COUNTRIES)]
        self.cart = ""
        self.filled = 0
        self.room = ""  # where it waits, empty while it does not
        self.place = ""
        self.entry = ""  # what the room let it in with
        self.asks_at_s = 0.0
        self.turned_away = False


class CommerceCrowd:
    """Drives the shop's pages and API over HTTP."""

    def __init__(self) -> None:
        self._products: list[str] = []
        self._skus: list[str] = []
        self._open: set[asyncio.Task[None]] = set()

    async def drive(self, target: Target, plan: Plan, tally: Tally, progress: Progress) -> None:
        """Shop until the plan is over."""
        client = HttpClient(
            target.host, target.http_port, settings=HttpClientSettings(connections_max=min(200, max(8, plan.users)))
        )
        for name in ("orders", "sold_out", "declined", "missed", "waiting", "let_in"):
            tally.facts.setdefault(name, 0.0)
        shoppers = [Shopper(number) for number in range(max(1, plan.users))]
        chance = clock.random()
        began = clock.monotonic_s()
        due = began
        try:
            await self._look(client, tally)
            while not plan.duration_s or clock.monotonic_s() - began < plan.duration_s:
                flash = _flash(plan, clock.monotonic_s() - began)
                due = max(due, clock.monotonic_s() - 1.0)
                due += chance.expovariate(max(plan.rate_per_s, 0.01) * (FLASH_FACTOR if flash else 1.0))
                if (wait := due - clock.monotonic_s()) > 0:
                    await clock.sleep(wait)
                if len(self._open) >= OPEN_MAX:
                    tally.facts["missed"] += 1
                    await clock.sleep(0)
                    continue
                task = asyncio.get_running_loop().create_task(
                    self._act(client, chance.choice(shoppers), tally, flash=flash)
                )
                self._open.add(task)
                task.add_done_callback(self._open.discard)
                if plan.duration_s:
                    share = min(1.0, (clock.monotonic_s() - began) / plan.duration_s)
                    progress(
                        share,
                        f"{tally.facts['orders']:.0f} orders{', flash sale' if flash else ''}"
                        f"{', ' + str(int(tally.facts['waiting'])) + ' wait' if tally.facts['waiting'] else ''}",
                    )
            if self._open:
                await asyncio.wait(self._open, timeout=15.0)
        finally:
            for task in list(self._open):
                task.cancel()
            await asyncio.gather(*self._open, return_exceptions=True)
            client.close()

    async def _look(self, client: HttpClient, tally: Tally) -> None:
        """Learn what the shop sells, as a visitor of its first pages would."""
        cursor = ""
        for _ in range(3):
            found = await self._ask(client, tally, "search", "GET", f"/commerce/api/products?limit=60&cursor={cursor}")
            if found is None or found.status != 200:
                break
            page = msgspec.json.decode(found.body)
            self._products += [product["id"] for product in page["products"]]
            cursor = page["next"]
            if not cursor:
                break

    async def _act(self, client: HttpClient, shopper: Shopper, tally: Tally, *, flash: bool) -> None:
        chance = clock.random()
        dice = chance.random()
        if shopper.room:
            await self._wait(client, shopper, tally)
        elif shopper.turned_away:
            await self._browse(client, shopper, tally)
        elif not self._products:
            await self._look(client, tally)
        elif shopper.filled and dice < (0.4 if flash else 0.2):
            await self._buy(client, shopper, tally)
        elif dice < 0.5:
            await self._add(client, shopper, tally, flash=flash)
        elif dice < 0.7:
            await self._browse(client, shopper, tally)
        elif dice < 0.93:
            path = f"/commerce/p/{chance.choice(self._products)}"
            await self._ask(client, tally, "product", "GET", path, headers=PAGE, shopper=shopper)
        else:
            await self._ask(client, tally, "home", "GET", "/commerce/", headers=PAGE, shopper=shopper)

    async def _browse(self, client: HttpClient, shopper: Shopper, tally: Tally) -> None:
        """A page of search results, which a busy shop shows last."""
        path = f"/commerce/search?q={clock.random().choice(WORDS)}"
        await self._ask(client, tally, "search", "GET", path, headers=PAGE, shopper=shopper)

    async def _wait(self, client: HttpClient, shopper: Shopper, tally: Tally) -> None:
        """Ask for the way in, no more often than the room wants."""
        now_s = clock.monotonic_s()
        if now_s < shopper.asks_at_s:
            return
        shopper.asks_at_s = now_s + ROOM_POLL_S
        headers = {"waiting-place": shopper.place} if shopper.place else {}
        answer = await self._ask(client, tally, "waiting room", "GET", shopper.room, headers=headers)
        if answer is None or answer.status != 200:
            return
        told = msgspec.json.decode(answer.body, type=dict[str, object])
        if told.get("state") == "enter":
            tally.facts["waiting"] -= bool(shopper.room)
            tally.facts["let_in"] += bool(shopper.room)
            shopper.entry, shopper.room, shopper.place = str(told.get("pass", "")), "", ""
        else:
            shopper.place = str(told.get("place", shopper.place))

    async def _add(self, client: HttpClient, shopper: Shopper, tally: Tally, *, flash: bool) -> None:
        chance = clock.random()
        products = self._products[:FLASH_PRODUCTS] if flash else self._products
        path = f"/commerce/api/products/{chance.choice(products)}"
        found = await self._ask(client, tally, "product api", "GET", path, shopper=shopper)
        if found is None or found.status != 200:
            return
        stock = [sku for sku, count in msgspec.json.decode(found.body)["stock"].items() if count > 0]
        if not stock:
            tally.facts["sold_out"] += 1
            return
        shopper.cart = shopper.cart or ids.capability()
        body = {"sku": chance.choice(stock), "quantity": chance.choice((1, 1, 1, 2)), "operation": ids.capability(8)}
        path = f"/commerce/api/carts/{shopper.cart}/lines?country={shopper.country}"
        answer = await self._ask(client, tally, "add to cart", "POST", path, body, shopper=shopper)
        if answer is not None and answer.status == 200:
            shopper.filled += 1

    async def _buy(self, client: HttpClient, shopper: Shopper, tally: Tally) -> None:
        """Order what is in the cart; an answer that got lost is asked for once more with the same key."""
        cart, shopper.cart, shopper.filled = shopper.cart, "", 0
        body = {
            "address": ADDRESS | {"country": shopper.country},
            "method": clock.random().choice(CARDS),
            "shipping": clock.random().choice(("standard", "standard", "express")),
        }
        key = {"idempotency-key": ids.capability()}
        for _ in range(2):
            answer = await self._ask(client, tally, "checkout", "POST", f"/commerce/api/carts/{cart}/orders", body, key)
            if answer is None:
                continue
            if answer.status == 201:
                tally.facts["orders"] += 1
                _count_money(tally, answer.body)
            elif answer.status == 402:
                tally.facts["declined"] += 1
            elif answer.status == 409:
                tally.facts["sold_out"] += 1
            return

    async def _ask(  # noqa: PLR0917 - one line per request reads best
        self,
        client: HttpClient,
        tally: Tally,
        action: str,
        method: str,
        path: str,
        body: object = None,
        headers: dict[str, str] | None = None,
        *,
        shopper: Shopper | None = None,
    ) -> HttpResponse | None:
        began = clock.monotonic_s()
        sent = {"content-type": "application/json", "accept": "*/*"} | (headers or {})
        if shopper is not None and shopper.entry:
            sent["waiting-pass"] = shopper.entry
        try:
            answer = await client.request(
                method, path, body=b"" if body is None else msgspec.json.encode(body), headers=sent, timeout_s=15.0
            )
        except FourplaneError as error:
            tally.failed(error.reason)
            return None
        if shopper is not None:
            shopper.turned_away = answer.status == 503
            if room := _room_of(answer):
                tally.facts["waiting"] += not shopper.room  # another of its requests may have told so already
                shopper.room, shopper.entry, shopper.turned_away = room, "", False
                return answer
        if answer.status >= 500 or answer.status == 429:
            tally.failed(f"http_{answer.status}")
        else:
            tally.done(action, clock.monotonic_s() - began)
        return answer


def _count_money(tally: Tally, order: bytes) -> None:
    """What was sold, in a fact per currency."""
    told = msgspec.json.decode(order, type=_Ordered)
    fact = f"sold {told.currency}"
    tally.facts[fact] = tally.facts.get(fact, 0.0) + told.total / 100


def _room_of(answer: HttpResponse) -> str:
    """Where this answer sends a shopper to take a place; nothing for any other answer."""
    if answer.status == 303:
        room = answer.headers.get("location", "").partition("?")[0]
        return f"{room}/place" if room.endswith("/waiting-room") else ""
    if answer.status == 503 and b'"waiting_room"' in answer.body:
        return str(msgspec.json.decode(answer.body)["error"]["fields"]["place"])
    return ""


def _flash(plan: Plan, elapsed_s: float) -> bool:
    """Whether the rush is on: from a fifth to three fifths of the time."""
    return plan.shape == "flash-sale" and 0.2 <= elapsed_s / (plan.duration_s or 60.0) % 1.0 < 0.6

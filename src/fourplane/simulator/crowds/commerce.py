"""Shoppers: they look around, search, open products, fill carts, and some of them buy.

One loop draws the next action over all shoppers at the plan's rate, so the load does not slow down with the shop (an open
loop); at most `OPEN_MAX` actions run at once, what comes on top is counted as `missed`. Shapes: `steady`; `flash-sale`, quiet for
a fifth of the time, then ten times the rate on a handful of products, then quiet again. Every addition and every order carries
an idempotency key; what the storefront's page sends again is sent again here (`again.py`), pages that a browser opens are not.
`audit` asks the shop afterwards whether each order somebody was told of is there, once. Whoever is turned away opens a page
next, as people do. Where that leads into the waiting room, a shopper takes a place, asks again from time to time without doing
anything else, and goes on with the pass it is let in with.
"""

import asyncio
from collections import deque

import msgspec

from fourplane.edge.http_client import HttpClient, HttpClientSettings, HttpResponse
from fourplane.foundation import clock, ids
from fourplane.foundation.errors import FourplaneError
from fourplane.simulator.crowds import Plan, Progress, Tally, Target
from fourplane.simulator.crowds.again import Again

OPEN_MAX = 400
ORDERS_KEPT = 1_000  # for the audit
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


class _Line(msgspec.Struct):
    quantity: int


class _Quote(msgspec.Struct):
    lines: list[_Line]


class _Ordered(msgspec.Struct):
    """What of an order is counted."""

    id: str
    total: int
    currency: str
    quote: _Quote


class Attempt:
    """One order of a shopper, as it was sent, and the number it was told; empty while it has none."""

    __slots__ = ("body", "cart", "key", "order", "tries")

    def __init__(self, cart: str, body: dict[str, object]) -> None:
        self.cart = cart
        self.body = body
        self.key = ids.capability()
        self.order = ""
        self.tries = 0


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
        self._attempts: deque[Attempt] = deque(maxlen=ORDERS_KEPT)
        self.pieces = 0  # in the orders that somebody was told of

    async def drive(self, target: Target, plan: Plan, tally: Tally, progress: Progress) -> None:
        """Shop until the plan is over."""
        client = HttpClient(
            target.host, target.http_port, settings=HttpClientSettings(connections_max=min(200, max(8, plan.users)))
        )
        for name in ("orders", "sold_out", "declined", "missed", "waiting", "let_in", "asked_again"):
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
        key = ids.capability(8)
        body = {"sku": chance.choice(stock), "quantity": chance.choice((1, 1, 1, 2)), "operation": key}
        path = f"/commerce/api/carts/{shopper.cart}/lines?country={shopper.country}"
        answer = await self._ask(client, tally, "add to cart", "POST", path, body, shopper=shopper, key=key)
        if answer is not None and answer.status == 200:
            shopper.filled += 1

    async def _buy(self, client: HttpClient, shopper: Shopper, tally: Tally) -> None:
        """Order what is in the cart."""
        cart, shopper.cart, shopper.filled = shopper.cart, "", 0
        attempt = Attempt(
            cart,
            {
                "address": ADDRESS | {"country": shopper.country},
                "method": clock.random().choice(CARDS),
                "shipping": clock.random().choice(("standard", "standard", "express")),
            },
        )
        self._attempts.append(attempt)
        answer = await self._order(client, attempt, tally)
        if answer is None:
            return
        if answer.status == 201:
            tally.facts["orders"] += 1
            told = msgspec.json.decode(answer.body, type=_Ordered)
            attempt.order = told.id
            self.pieces += sum(line.quantity for line in told.quote.lines)
            fact = f"sold {told.currency}"
            tally.facts[fact] = tally.facts.get(fact, 0.0) + told.total / 100
        elif answer.status == 402:
            tally.facts["declined"] += 1
        elif answer.status == 409:
            tally.facts["sold_out"] += 1

    async def _order(self, client: HttpClient, attempt: Attempt, tally: Tally) -> HttpResponse | None:
        attempt.tries += 1
        path = f"/commerce/api/carts/{attempt.cart}/orders"
        return await self._ask(client, tally, "checkout", "POST", path, attempt.body, key=attempt.key)

    async def audit(self, target: Target) -> tuple[int, list[str]]:
        """How many orders were looked at, and what is wrong with them: one that was told of and is gone, or became two.

        Attempts that were never answered are asked for once more, as their buyers would do: the key tells what became of them.
        """
        client, broken, carts = HttpClient(target.host, target.http_port), list[str](), dict[str, str]()
        attempts = list(self._attempts)
        try:
            for attempt in attempts:
                if attempt.order:
                    path = f"/commerce/api/orders/{attempt.order}"
                    seen = await client.request("GET", path, headers={"x-cart": attempt.cart})
                    if seen.status != 200:
                        broken.append(f"order {attempt.order} was confirmed and cannot be seen: {seen.status}")
                answer = await self._order(client, attempt, Tally())
                if answer is None:
                    broken.append(f"nobody answers for the attempt of cart {attempt.cart}")
                    continue
                told = msgspec.json.decode(answer.body, type=_Ordered) if answer.status == 201 else None
                number = "" if told is None else told.id
                if told is not None and not attempt.order:
                    self.pieces += sum(line.quantity for line in told.quote.lines)
                if attempt.order and number != attempt.order:
                    broken.append(f"order {attempt.order} asked for again is {number or f'http {answer.status}'}")
                if number and carts.setdefault(number, attempt.cart) != attempt.cart:
                    broken.append(f"order {number} was told to two buyers")
        finally:
            client.close()
        return len(attempts), broken

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
        key: str = "",
    ) -> HttpResponse | None:
        """Ask as a page does; what may be sent twice (`key`, or a GET that is no page) is, while there is patience."""
        began, again = clock.monotonic_s(), Again()
        sent = {"content-type": "application/json", "accept": "*/*"} | (headers or {})
        if key:
            sent["idempotency-key"] = key
        if shopper is not None and shopper.entry:
            sent["waiting-pass"] = shopper.entry
        data = b"" if body is None else msgspec.json.encode(body)
        is_safe = bool(key) or (method == "GET" and headers is not PAGE)
        while True:
            try:
                answer = await client.request(method, path, body=data, headers=sent, timeout_s=15.0)
            except FourplaneError as error:
                if is_safe and await again.after_error(error):
                    continue
                tally.failed(error.reason)
                return None
            if is_safe and not _room_of(answer) and await again.after_answer(answer.status, answer.headers):
                continue
            break
        if again.tries:
            tally.facts["asked_again"] = tally.facts.get("asked_again", 0.0) + 1
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

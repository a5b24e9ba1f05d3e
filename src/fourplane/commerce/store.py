"""What a shop can do, for pages and API alike: look, put into the cart, order, follow, cancel.

Every operation passes the switch of the box it stands for in the study's diagram, so an operator who stops a box sees what
depends on it. Looking has fallbacks: without search the shelves come from the catalog's rows, without the
inventory everything counts as available until the checkout, which never guesses.
"""

from collections.abc import Callable, Mapping, Sequence

import msgspec

from fourplane.commerce.cart import Cart, Stamp
from fourplane.commerce.cart_store import ACCOUNT, CartStore
from fourplane.commerce.catalog import Catalog, Product
from fourplane.commerce.checkout import CartView, Checkout, PlaceOrder
from fourplane.commerce.credits import Credit, Credits, taken_from
from fourplane.commerce.inventory import Inventory
from fourplane.commerce.orders import Order, OrderEvent, Orders
from fourplane.commerce.payment import Payments
from fourplane.commerce.pricing import market_of
from fourplane.commerce.shipping import BuiltInCarrier, TrackingEvent
from fourplane.control.nodes import Figures, Switch
from fourplane.edge.routes import Identity
from fourplane.foundation import clock, ids
from fourplane.foundation.errors import (
    DeadlineExceeded,
    FourplaneError,
    NotFound,
    Overloaded,
    Rejected,
    Unavailable,
)
from fourplane.foundation.money import Money
from fourplane.foundation.telemetry import Histogram
from fourplane.service.call import CallPolicy, CallSettings
from fourplane.service.circuit_breaker import BreakerSettings
from fourplane.service.concurrency_limit import LimitSettings
from fourplane.state.contracts import Query

COUNTING = CallSettings(
    deadline_s=2.0, limit=LimitSettings(initial=128, at_least=64), breaker=BreakerSettings(open_s=0.5, open_s_max=5.0)
)
ADD_MAX = 999
SHELF = 12


class Meter:
    """A switch and the figures of one box."""

    __slots__ = ("errors", "latency", "requests", "switch")

    def __init__(self, name: str) -> None:
        self.switch = Switch(name)
        self.requests = self.errors = 0
        self.latency = Histogram()

    def enter(self) -> float:
        """Count one piece of work and when it began; raises Unavailable while stopped."""
        self.count()
        return clock.monotonic_s()

    def count(self) -> None:
        """Count one piece of work; raises Unavailable while stopped."""
        self.requests += 1
        if not self.switch.on:
            self.errors += 1
            self.switch.check()

    def leave(self, began: float) -> None:
        """The work that began then is done."""
        self.latency.record(clock.monotonic_s() - began)

    def figures(self, **facts: float | str) -> Figures:
        """As the console reads it."""
        return Figures(self.requests, self.errors, 0.0, self.latency, dict(facts))


class Boxes:
    """The boxes of the diagram that do the work here."""

    def __init__(self) -> None:
        self.catalog = Meter("CATALOG")
        self.search = Meter("ELASTICSEARCH")
        self.cart = Meter("CART")
        self.order = Meter("ORDER")
        self.inventory = Meter("INVENTORY")
        self.payment = Meter("PAYMENT")
        self.shipping = Meter("SHIPPING")


class Store:
    """The shop's operations."""

    def __init__(
        self,
        *,
        boxes: Boxes,
        catalog: Catalog,
        carts: CartStore,
        inventory: Inventory,
        orders: Orders,
        payments: Payments,
        checkout: Checkout,
        carrier: BuiltInCarrier,
        paybacks: Credits,
    ) -> None:
        self.boxes = boxes
        for box in (boxes.order, boxes.payment, boxes.shipping):
            box.latency = checkout.seconds  # one checkout is the work of all three, told once
        self.catalog = catalog
        self.carts = carts
        self.inventory = inventory
        self.orders = orders
        self.payments = payments
        self.checkout = checkout
        self.carrier = carrier
        self.credits = paybacks
        self.counting = CallPolicy("inventory", COUNTING)
        self._told: Callable[[Product], None] = _nobody
        self._shelves: tuple[float, list[Product], list[Product]] | None = None

    def when_changed(self, told: Callable[[Product], None]) -> None:
        """Who wants to know when a product looks different."""
        self._told = told

    def changed(self, product: Product) -> None:
        """A product was changed by an operator."""
        self._told(product)

    # -- looking

    def departments(self) -> Mapping[str, Mapping[str, int]]:
        """Departments with their styles and counts; known even when everything else is away."""
        return self.catalog.departments

    def in_stock(self, product: Product) -> bool:
        """As last heard from the inventory."""
        return self.catalog.in_stock(product)

    async def home_shelves(self) -> tuple[list[Product], list[Product], str]:
        """Popular products, offers, and what is missing; remembered for ten seconds."""
        now = clock.monotonic_s()
        if self._shelves is not None and now - self._shelves[0] < 10.0 and self.boxes.search.switch.on:
            return self._shelves[1], self._shelves[2], ""
        popular, _, _, missing = await self.browse(
            Query(facets={"in_stock": ["yes"]}, sort="popularity", descending=True, limit=SHELF)
        )
        offers, _, _, _ = await self.browse(
            Query(facets={"on_sale": ["yes"], "in_stock": ["yes"]}, sort="popularity", descending=True, limit=SHELF)
        )
        if not missing:
            self._shelves = (now, popular, offers)
        return popular, [] if missing else offers, missing

    async def browse(self, query: Query) -> tuple[list[Product], int, Mapping[str, Mapping[str, int]], str]:
        """Products, how many in all, facet counts, and what is missing when search is away."""
        began = self.boxes.catalog.enter()
        missing = ""
        try:
            searched = self.boxes.search.enter()
            products, found = await self.catalog.find(query)
            self.boxes.search.leave(searched)
            total, counts = found.total, found.facet_counts
        except (Unavailable, Overloaded, DeadlineExceeded):
            products = await self.catalog.page("", query.limit)
            total, counts = len(products), {}
            missing = "Search is away for a moment; here is a part of the catalog."
        self.boxes.catalog.leave(began)
        return products, total, counts, missing

    async def product(self, product_id: str) -> Product:
        """One product; raises NotFound."""
        began = self.boxes.catalog.enter()
        product = await self.catalog.fetch(product_id)
        self.boxes.catalog.leave(began)
        return product

    async def sold_product(self, sku: str) -> Product:
        """The product of a sku; raises NotFound."""
        product = await self.catalog.find_by_sku(sku[:200])
        if product is None:
            raise NotFound("we do not sell that", code="no_such_sku", sku=sku[:60])
        return product

    async def around(self, product: Product) -> tuple[dict[str, int], list[Product], str]:
        """Stock by sku, related products, and what is missing."""
        missing = ""
        try:
            began = self.boxes.inventory.enter()
            skus = [variant.sku for variant in product.variants]
            stock = dict(await self.counting.run(lambda: self.inventory.available_of(skus)))
            self.boxes.inventory.leave(began)
        except (Unavailable, Overloaded, DeadlineExceeded):
            stock = {variant.sku: 10 for variant in product.variants}
            missing = "Stock is being counted; the checkout will know."
        query = Query(
            facets={"style": [product.style], "in_stock": ["yes"]}, sort="popularity", descending=True, limit=7
        )
        try:
            self.boxes.search.switch.check()
            related, _ = await self.catalog.find(query)
        except FourplaneError:
            related = []
        return stock, [one for one in related if one.id != product.id][:6], missing

    # -- cart

    async def cart(self, cart_id: str) -> Cart:
        """The cart as it is kept."""
        began = self.boxes.cart.enter()
        cart = await self.carts.find(cart_id)
        self.boxes.cart.leave(began)
        return cart

    async def view(self, cart_id: str, country: str, *, shipping: str = "standard") -> CartView:
        """The cart as it can be bought."""
        return await self.checkout.view(cart_id, await self.cart(cart_id), country, shipping=shipping)

    async def add(self, cart_id: str, sku: str, quantity: int, *, operation: str, country: str) -> Cart:
        """Put so many more in; the same operation counts once. Raises NotFound for a sku that is not sold."""
        if not 1 <= quantity <= ADD_MAX:
            raise Rejected(f"a quantity is 1 to {ADD_MAX}, not {quantity}", code="bad_quantity")
        unit, currency = await self._unit(sku, country)

        def edit(cart: Cart, stamp: Stamp) -> None:
            cart.add(sku, quantity, operation=operation, stamp=stamp, price=unit, currency=currency)

        return await self._change(cart_id, edit)

    async def set_quantity(self, cart_id: str, sku: str, quantity: int, *, operation: str, country: str) -> Cart:
        """Make a line so many; 0 removes it, also one that is no longer sold."""
        if not 0 <= quantity <= ADD_MAX:
            raise Rejected(f"a quantity is 0 to {ADD_MAX}, not {quantity}", code="bad_quantity")
        unit, currency = await self._unit(sku, country) if quantity else (0, "")

        def edit(cart: Cart, stamp: Stamp) -> None:
            cart.set(sku, quantity, operation=operation, stamp=stamp, price=unit, currency=currency)

        return await self._change(cart_id, edit)

    async def code(self, cart_id: str, code: str, *, on: bool) -> Cart:
        """Enter or withdraw a promotion code."""
        word = code.strip().upper()
        if not (1 <= len(word) <= 30 and word.isascii() and word.isprintable()):
            raise Rejected("a code has up to 30 letters and digits", code="bad_code")

        def edit(cart: Cart, stamp: Stamp) -> None:
            cart.apply_code(word, on=on, stamp=stamp)

        return await self._change(cart_id, edit)

    async def account_cart(self, account: int, guest: str) -> str:
        """The cart of an account; what a guest put in before logging in is merged once."""
        mine = f"{ACCOUNT}{account:012d}"
        if guest and guest != mine:
            before = await self.carts.find(guest)
            if before.entries or before.codes:
                await self.carts.absorb(mine, before)

                def leave(cart: Cart, stamp: Stamp) -> None:
                    cart.clear(list(before.entries), stamp=stamp)
                    cart.codes = {}

                await self.carts.change(guest, leave)
        return mine

    # -- orders

    async def place(self, cart_id: str, attempt: str, request: PlaceOrder, *, account: int = 0) -> Order:
        """Order and pay, exactly once per attempt."""
        boxes = self.boxes
        for box in (boxes.order, boxes.inventory, boxes.payment, boxes.shipping):
            box.count()
        try:
            order, _ = await self.checkout.place(cart_id, attempt, request, account=account)
        except FourplaneError as error:
            if error.http_status >= 500:
                boxes.order.errors += 1
            raise
        return order

    async def order(self, order_id: str, cart_id: str, identity: Identity | None) -> Order:
        """An order for whoever made it: the same guest's cart, the same account, or an operator. Raises NotFound for all others.

        The cart of an account has a number for a name, so it proves nothing.
        """
        try:
            number = ids.decode("order", order_id)
        except Rejected:
            raise NotFound("no such order", code="no_such_order") from None
        if number >= 1 << 63:
            raise NotFound("no such order", code="no_such_order")
        order = await self.orders.fetch(number)
        mine = (order.cart == cart_id and not cart_id.startswith(ACCOUNT)) or (
            identity is not None and (order.account == identity.account_id or "operator" in identity.roles)
        )
        if not mine or order.state in ("placing", "failed"):
            raise NotFound("no such order", code="no_such_order")
        return order

    async def order_story(
        self, order_id: str, cart_id: str, identity: Identity | None
    ) -> tuple[Order, list[OrderEvent], list[TrackingEvent], str]:
        """An order, its story, its parcel's stations and tracking number."""
        order = await self.order(order_id, cart_id, identity)
        story = await self.orders.story(order.number)
        handed = next((event for event in story if event.state == "shipped"), None)
        if handed is None:
            return order, story, [], ""
        warehouse, number = handed.note.split(" ", 1) if " " in handed.note else ("", handed.note)
        parcel = self.carrier.track(
            number, handed_us=handed.at_us, now_us=clock.now_us(), warehouse=warehouse, place=order.body.address.city
        )
        return order, story, parcel, number

    async def cancel(self, order_id: str, cart_id: str, identity: Identity | None) -> Order:
        """Cancel an order that has not left: its state first, then the money and the stock, each once. Repeating finishes it."""
        order = await self.order(order_id, cart_id, identity)
        if order.state != "cancelled":
            await self.orders.advance(order.number, "cancelled", "cancelled by the buyer")
        quote = order.body.quote
        credited = await self.credits.of(order.number)
        if quote.total > 0:
            left = quote.total - sum(credit.amount for credit in credited)
            await self.payments.cancel(order.number, Money(left, quote.currency))
        await self._restock(order, credited)
        return await self.orders.fetch(order.number)

    async def _restock(self, order: Order, credited: Sequence[Credit]) -> None:
        """What a cancelled order had taken goes back, except what credits have brought back already."""
        back: dict[str, int] = {}
        for credit in credited:
            if credit.what.restock:
                for sku, count in credit.what.lines.items():
                    back[sku] = back.get(sku, 0) + count
        levels: dict[str, int] = {}
        for shard in self.inventory.shards:
            sold = await shard.sold_in(order.number)
            wanted = {piece.sku: 0 for piece in sold}
            for piece in sold:
                wanted[piece.sku] += piece.quantity
            pieces = taken_from(sold, {sku: count - back.get(sku, 0) for sku, count in wanted.items()})
            if pieces:
                await shard.give_back(order.id, pieces, "cancelled")
                levels |= await self.inventory.available_of([piece.sku for piece in pieces])
        await self.catalog.stock_changed(levels)

    async def _unit(self, sku: str, country: str) -> tuple[int, str]:
        product, market = await self.sold_product(sku), market_of(country)
        return product.item(sku, 1, market).unit, market.currency

    async def _change(self, cart_id: str, edit: Callable[[Cart, Stamp], object]) -> Cart:
        began = self.boxes.cart.enter()
        cart = await self.carts.change(cart_id, edit)
        self.boxes.cart.leave(began)
        return cart


def _nobody(_: Product) -> None:
    """Before anybody asked to be told."""


class StoreStatistics(msgspec.Struct, frozen=True):
    """The shop in numbers, for console and tests."""

    products: int
    placed: int
    repeated: int
    open: int
    refused: dict[str, int]
    sold: int
    races: int
    captured: int
    declined: int

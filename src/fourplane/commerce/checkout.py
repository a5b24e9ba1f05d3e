"""One request turns a cart into an order, exactly once.

    read the cart -> current prices -> promotions -> shipping -> tax -> two-phase commit:
        wave 0   attempt and cart content are claimed among those under way, limited codes are looked at, pieces are set
                 aside (a hold in every stock shard that has a store of its own; the card's intent where it is charged later)
        wave 1   the card is authorised
        decision one durable row, and in its commit the order, paid, and the stock, sold
        answer   the order stands; the buyer hears so and sees the cart empty (stock sold where it has a store of its own)
        behind   money captured, cart emptied: for all checkouts of the moment together, repeated until done

An attempt is named by the buyer's idempotency key. The same key hears the same answer, whether it arrives at the same
moment, after the answer was lost, or after a crash. Two different keys for the same content of the same cart meet at the order's
claim, so a second tab cannot buy the same things twice. What the buyer saw (`expected_total`) is what is charged, or the
checkout stops and says what changed. `Coordinator.start` settles everything a crash left behind before the doors open.

Orders, stock and decisions in one store: two commits in a row, the card network's and the decision's. With stock in stores of
its own each shard has two more. All are shared with every other checkout of the moment.
"""

import asyncio
from collections.abc import Mapping, Sequence
from hashlib import blake2b

import msgspec

from fourplane.commerce.cart import Cart
from fourplane.commerce.cart_clearing import CartClearing, Emptying
from fourplane.commerce.cart_store import CartStore, Copy
from fourplane.commerce.catalog import Catalog
from fourplane.commerce.inventory import HoldRequest, Inventory, OutOfStock, Wanted
from fourplane.commerce.orders import Address, Order, OrderBody, Orders, Placing
from fourplane.commerce.payment import Charge, PaymentDeclined, Payments
from fourplane.commerce.pricing import Item, Market, Quote, market_of, price
from fourplane.commerce.promotions import Promotion
from fourplane.commerce.shipping import BuiltInCarrier, Rate
from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, FourplaneError, NotFound, Rejected
from fourplane.foundation.money import Money
from fourplane.foundation.telemetry import Histogram
from fourplane.service.two_phase_commit import Branch, Coordinator

KEY_MAX = 80
QUOTES_MAX = 4_096
FEW = 10  # below it a page shows the count, so its kept copy goes


class CheckoutSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Business rules and bounds."""

    line_max: int = 20
    open_max: int = 5_000


class Notice(msgspec.Struct, frozen=True):
    """Something the buyer should know about a line."""

    sku: str
    kind: str  # gone, limited, price_changed, few_left
    text: str


class CartLine(msgspec.Struct, frozen=True):
    """A line as it can be bought now."""

    sku: str
    product: str
    name: str
    options: dict[str, str]
    quantity: int
    unit: int
    image: str
    available: int


class CartView(msgspec.Struct, frozen=True):
    """A cart after the business rules: what can be bought, what it costs, and what changed since it was put in."""

    id: str
    lines: list[CartLine]
    notices: list[Notice]
    codes: list[str]
    quote: Quote | None
    rates: list[Rate]
    shipping: str
    operations: list[str]


class PlaceOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything a checkout needs besides the cart."""

    address: Address
    method: str = "card_ok"
    shipping: str = "standard"
    expected_total: int | None = None


class CheckoutStatistics(msgspec.Struct, frozen=True):
    """What became of attempts."""

    placed: int
    repeated: int
    refused: dict[str, int]
    open: int
    seconds: Histogram


class Checkout:
    """Prices carts and places orders."""

    def __init__(
        self,
        settings: CheckoutSettings,
        *,
        carts: CartStore,
        catalog: Catalog,
        inventory: Inventory,
        orders: Orders,
        coordinator: Coordinator,
        carrier: BuiltInCarrier,
        payments: Payments,
        clearing: CartClearing,
    ) -> None:
        self._settings = settings
        self._carts = carts
        self._clearing = clearing
        self._catalog = catalog
        self._inventory = inventory
        self._orders = orders
        self._coordinator = coordinator
        self._carrier = carrier
        self._payments = payments
        self._open: dict[str, asyncio.Future[Order]] = {}
        self.promotions: list[Promotion] = []
        self._quotes: dict[tuple[object, ...], Quote] = {}  # what carts of these shapes cost, while the rules stay
        self._rules: list[Promotion] | None = None
        self.touched: dict[str, None] = {}
        self.placed = self.repeated = 0
        self.refused: dict[str, int] = {}
        self.seconds = Histogram()

    async def view(self, cart_id: str, cart: Cart, country: str, *, shipping: str = "standard") -> CartView:
        """The cart as it can be bought now, for one country."""
        market = market_of(country)
        lines, items, notices = await self._settle(cart, market)
        quote, rates = None, []
        if items:
            rates = self._rates(items, market)
            if all(rate.id != shipping for rate in rates):
                shipping = rates[0].id
            quote = self._price(items, market, self._carrier.choose(shipping, rates), cart.active_codes())
        return CartView(cart_id, lines, notices, cart.active_codes(), quote, rates, shipping, sorted(cart.entries))

    async def place(self, cart_id: str, attempt: str, request: PlaceOrder, *, account: int = 0) -> tuple[Order, bool]:
        """The order of this attempt, and whether it is new; raises what made it impossible (nothing was charged then)."""
        if not 8 <= len(attempt) <= KEY_MAX or not attempt.isascii() or not attempt.isprintable():
            raise Rejected(f"an idempotency key has 8 to {KEY_MAX} printable characters", code="bad_key")
        key = f"{cart_id}:{attempt}" if account == 0 else f"{account}:{attempt}"
        key = blake2b(key.encode(), digest_size=24).hexdigest()
        running = self._open.get(key)
        if running is not None:
            self.repeated += 1
            return await asyncio.shield(running), False
        if len(self._open) >= self._settings.open_max:
            raise Conflict("too many checkouts at once", code="checkout_full")
        future: asyncio.Future[Order] = asyncio.get_running_loop().create_future()
        self._open[key] = future
        began = clock.monotonic_s()
        try:
            order, new = await self._place(cart_id, key, request, account)
        except BaseException as error:
            reason = error.reason if isinstance(error, FourplaneError) else "cancelled"
            self.refused[reason] = self.refused.get(reason, 0) + 1
            future.set_exception(error if isinstance(error, FourplaneError) else Conflict("interrupted; ask again"))
            future.exception()
            raise
        finally:
            del self._open[key]
        future.set_result(order)
        self.placed += new
        self.repeated += not new
        self.seconds.record(clock.monotonic_s() - began)
        return order, new

    def statistics(self) -> CheckoutStatistics:
        """What became of attempts so far."""
        return CheckoutStatistics(self.placed, self.repeated, dict(self.refused), len(self._open), self.seconds)

    def _answer_again(self, order: Order) -> Order:
        if order.state == "placing":
            raise Conflict("this order is still being placed; ask again", code="in_progress")
        if order.state == "failed":
            code, _, text = order.reason.partition("|")
            if code == PaymentDeclined.code:
                raise PaymentDeclined(text, order=order.id)
            raise Conflict(text or order.reason, code=code if text else "checkout_failed", order=order.id)
        return order

    async def _place(self, cart_id: str, key: str, request: PlaceOrder, account: int) -> tuple[Order, bool]:
        """The attempt's order and whether it is new. An attempt that was made before is only looked for when something
        is in its way; then it hears what it heard before.
        """
        try:
            self._payments.ready()
            copy, order, items, market = await self._prepare(cart_id, key, request, account)
            holds = await self._holds(items, market)
        except FourplaneError:
            known = await self._orders.find_attempt(key)
            if known is None:
                raise
            return self._answer_again(known), False
        try:
            placed = await self._commit(order, holds, Emptying(cart_id, order.body.operations, copy))
        except FourplaneError as error:
            known = await self._orders.find_attempt(key)
            if known is None:
                if error.reason == "duplicate_order":
                    await self._was_it_ordered(order.claim)
                if isinstance(error, PaymentDeclined):  # anything else may go better with the same key
                    await self._orders.remember_failure(order, f"{error.reason}|{error.message}")
                raise
            return self._answer_again(known), False
        self._clearing.ordered(placed.number)
        self.touched.update((item.sku, None) for item in items)  # fewer now
        return placed, True

    async def _prepare(
        self, cart_id: str, key: str, request: PlaceOrder, account: int
    ) -> tuple[Copy, Order, list[Item], Market]:
        """The cart as an order to be placed, repriced; raises what the buyer must hear first."""
        if problems := request.address.problems():
            raise Rejected("the address needs another look", code="bad_address", **problems)
        market = market_of(request.address.country)
        copy = await self._carts.load(cart_id)
        cart = copy.cart
        claim = _claim(cart_id, cart)
        items, lost = await self._items(cart, market)
        if not items and not lost:
            await self._was_it_ordered(claim)
            raise Rejected("the cart is empty", code="empty_cart")
        if lost:
            raise Conflict(lost[0].text, code="cart_changed", lines=", ".join(notice.sku for notice in lost))
        codes = cart.active_codes()
        rate = self._carrier.choose(request.shipping, self._rates(items, market))
        quote = self._price(items, market, rate, codes)
        if request.expected_total is not None and request.expected_total != quote.total:
            raise Conflict(
                "the total has changed since you saw it",
                code="price_changed",
                total=quote.total,
                currency=quote.currency,
            )
        body = OrderBody(
            schema=1,
            quote=quote,
            address=request.address,
            shipping=rate.id,
            method=request.method,
            operations=sorted(cart.entries),
            codes=self._limited(quote, account, request.address.email) if codes else [],
        )
        now = clock.now_us()
        return copy, Order(0, key, cart_id, claim, account, "placing", "", now, now, body), items, market

    async def _commit(self, order: Order, holds: Mapping[int, HoldRequest], emptying: Emptying) -> Order:
        quote = order.body.quote
        charge = Charge(Money(quote.total, quote.currency), order.body.method)
        free = quote.total == 0
        mine = {rule.code: rule.uses_per_buyer for rule in self.promotions} if order.body.codes else {}
        per_buyer = {code: mine.get(code.partition("|")[0], 1) for code in order.body.codes if "|" in code}
        placing = Placing(order, self._payments.intent(charge), not free, per_buyer)
        branches = [Branch("order", placing), Branch("cart", emptying)]
        branches += [Branch(f"inventory-{shard}", hold) for shard, hold in holds.items()]
        if not free:
            branches.append(Branch("payment", charge, wave=1))
        outcome = await self._coordinator.run(branches)
        return msgspec.structs.replace(order, number=outcome.transaction.id, state="paid")

    def _limited(self, quote: Quote, account: int, email: str) -> list[str]:
        """Codes of this quote whose uses are counted, for everybody or for this buyer."""
        buyer = str(account) if account else email.strip().lower()
        mark = blake2b(buyer.encode(), digest_size=4).hexdigest()
        rules = {rule.code: rule for rule in self.promotions if rule.code}
        used = [rules[discount.code] for discount in quote.discounts if discount.code in rules]
        return [
            *(rule.code for rule in used if rule.uses_max),
            *(f"{rule.code}|{mark}" for rule in used if rule.uses_per_buyer),
        ]

    async def _was_it_ordered(self, claim: str) -> None:
        """Tell a second tab, or a buyer back after a crash, that this very cart has been bought."""
        order = await self._orders.find_claim(claim)
        if order is not None and order.state not in ("placing", "failed"):
            await self._clearing.empty(order)
            raise Conflict("this cart has been ordered already", code="already_ordered", order=order.id)

    async def _holds(self, items: Sequence[Item], market: Market) -> dict[int, HoldRequest]:
        """Where to take the lines from; refuses early what cannot be held, the hold itself decides."""
        try:
            return await self._inventory.requests([Wanted(item.sku, item.quantity) for item in items], market.zone)
        except OutOfStock as error:
            name = next(item.name for item in items if item.sku == error.fields["sku"])
            left = error.fields["available"]
            raise OutOfStock(
                f"{name}: only {left} left" if left else f"{name} is sold out",
                sku=error.fields["sku"],
                wanted=error.fields["wanted"],
                available=left,
            ) from error

    async def tell_stock(self) -> list[str]:
        """Let catalog and search know what the last orders left; the products concerned. Called several times a second."""
        skus, self.touched = self.touched, {}
        levels = await self._inventory.roughly_of(list(skus), FEW)
        await self._catalog.stock_changed(levels)
        products = [await self._catalog.find_by_sku(sku) for sku, count in levels.items() if count < FEW]
        return [product.id for product in products if product is not None]

    async def _items(self, cart: Cart, market: Market) -> tuple[list[Item], list[Notice]]:
        """The lines at their current price, and those that cannot be ordered as they are."""
        items: list[Item] = []
        lost: list[Notice] = []
        for sku, wanted in cart.quantities().items():
            product = await self._catalog.find_by_sku(sku)
            if product is None:
                lost.append(Notice(sku, "gone", f"{sku} is no longer sold"))
                continue
            try:
                item = product.item(sku, min(wanted, self._settings.line_max), market)
            except (NotFound, Rejected) as error:
                lost.append(Notice(sku, "gone", f"{product.name}: {error.message}"))
                continue
            if wanted > self._settings.line_max:
                lost.append(Notice(sku, "limited", f"{item.name}: at most {self._settings.line_max} per order"))
            items.append(item)
        return items, lost

    async def _settle(self, cart: Cart, market: Market) -> tuple[list[CartLine], list[Item], list[Notice]]:
        """The business rules: what is gone leaves, what is too much is clamped, what costs otherwise now is told."""
        lines: list[CartLine] = []
        items: list[Item] = []
        notices: list[Notice] = []
        for sku, wanted in cart.quantities().items():
            product = await self._catalog.find_by_sku(sku)
            if product is None:
                notices.append(Notice(sku, "gone", f"{sku} is no longer sold"))
                continue
            try:
                item = product.item(sku, min(wanted, self._settings.line_max), market)
            except (NotFound, Rejected) as error:
                notices.append(Notice(sku, "gone", f"{product.name}: {error.message}"))
                continue
            if wanted > self._settings.line_max:
                notices.append(Notice(sku, "limited", f"{item.name}: at most {self._settings.line_max} per order"))
            available = await self._inventory.available(sku)
            if available < item.quantity:
                text = f"{item.name}: only {available} left" if available else f"{item.name} is sold out"
                notices.append(Notice(sku, "few_left", text))
            if cart.seen_price(sku, market.currency) not in {0, item.unit}:
                notices.append(Notice(sku, "price_changed", f"{item.name} has a new price"))
            lines.append(
                CartLine(
                    sku,
                    product.id,
                    product.name,
                    product.variant(sku).options,
                    item.quantity,
                    item.unit,
                    product.image(),
                    available,
                )
            )
            items.append(item)
        return lines, items, notices

    def _rates(self, items: Sequence[Item], market: Market) -> list[Rate]:
        return self._carrier.rates(
            zone=market.zone,
            currency=market.currency,
            weight_g=sum(item.weight_g * item.quantity for item in items),
            goods=sum(item.unit * item.quantity for item in items),
        )

    def _price(self, items: Sequence[Item], market: Market, rate: Rate, codes: Sequence[str]) -> Quote:
        """What it costs; the same answer again for the same items while the same rules hold, unless one begins or ends."""
        rules = self.promotions
        if rules is not self._rules:
            self._quotes.clear()
            self._rules = None if any(rule.starts_us or rule.ends_us for rule in rules) else rules
        shape = (market.country, rate.amount, *items, *codes)
        quote = self._quotes.get(shape)
        if quote is None:
            quote = price(items, market, shipping=rate.amount, promotions=rules, codes=codes, now_us=clock.now_us())
            if self._rules is not None:
                if len(self._quotes) >= QUOTES_MAX:
                    del self._quotes[next(iter(self._quotes))]
                self._quotes[shape] = quote
        return quote


def _claim(cart_id: str, cart: Cart) -> str:
    """Names one content of one cart. It begins with when something was put in last, so that claims of one moment are neighbours
    in their index: a commit of many then writes few pages of it.
    """
    content = "\n".join([cart_id, *sorted(cart.entries)])
    last_us = max([entry.stamp.wall_us for entry in cart.entries.values()], default=0)
    return f"{last_us:014x}{blake2b(content.encode(), digest_size=16).hexdigest()}"

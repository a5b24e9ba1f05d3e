"""The JSON API of the shop: `/commerce/api/...`, typed, with ETags, cursors and idempotency keys.

A cart is named by an id that `POST /commerce/api/carts` hands out (a capability; other forms are refused). Changes carry
`operation` (any id of the client's choice), orders the header `Idempotency-Key`; sending either again does nothing twice.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import blake2b
from typing import Annotated, TypeVar

import msgspec

from fourplane.commerce.cart_store import ACCOUNT, CART_ID
from fourplane.commerce.catalog import FACETS, SORTS, Product, plain
from fourplane.commerce.checkout import CartView, PlaceOrder
from fourplane.commerce.orders import Order, OrderEvent
from fourplane.commerce.pricing import Market, Quote, market_of
from fourplane.commerce.shipping import TrackingEvent
from fourplane.commerce.store import Store
from fourplane.edge.routes import Call, Door, Priority, Reply, Route
from fourplane.foundation import ids
from fourplane.foundation.errors import Forbidden, Overloaded, Rejected
from fourplane.state.contracts import Query

LIMIT_MAX = 60
NEWEST = (1 << 63) - 1
B = TypeVar("B")


CartId = Annotated[
    str,
    msgspec.Meta(
        pattern=f"^(?:{CART_ID.pattern})$",
        description="128 random bits as 32 hexadecimal digits in lower case; a cart of another form is refused (bad_cart_id)",
        examples=["ee8cdd0c777c1689eb6c88951fa2a8ba"],
    ),
]


class NewCart(msgspec.Struct, frozen=True):
    """A cart's id; whoever knows it may read and change the cart, so keep it like a password."""

    id: CartId


class AddLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Put so many more of a sku in; `operation` makes repeating it harmless."""

    sku: str
    quantity: int = 1
    operation: str = ""


class SetLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Make a line so many."""

    quantity: int
    operation: str = ""


class SetCode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Enter or withdraw a promotion code."""

    code: str
    on: bool = True


class ProductView(msgspec.Struct, frozen=True):
    """A product as clients see it."""

    id: str
    name: str
    department: str
    style: str
    price: int
    currency: str
    image: str
    in_stock: bool


class ProductPage(msgspec.Struct, frozen=True):
    """One page of a search; `next` asks for the following one."""

    products: list[ProductView]
    total: int
    facets: dict[str, dict[str, int]]
    next: str = ""


class ProductDetail(msgspec.Struct, frozen=True):
    """One product with the stock of each sku."""

    product: Product
    stock: dict[str, int]


class OrderView(msgspec.Struct, frozen=True):
    """An order as its buyer sees it."""

    id: str
    state: str
    total: int
    currency: str
    created_us: int
    quote: Quote
    story: list[OrderEvent] = []
    parcel: list[TrackingEvent] = []
    tracking_number: str = ""


class OrderPage(msgspec.Struct, frozen=True):
    """One page of an account's orders."""

    orders: list[OrderView]
    next: str = ""


class Category(msgspec.Struct, frozen=True):
    """A place in the tree: its path from the root, and how many products are there or below."""

    path: list[str]
    products: int


class CategoryTree(msgspec.Struct, frozen=True):
    """All places, parents before their children."""

    categories: list[Category]


class Suggested(msgspec.Struct, frozen=True):
    """Phrases of the catalog, likeliest first."""

    suggestions: list[str]


class Noticed(msgspec.Struct, frozen=True):
    """Whether a notice was new; one that was heard before changes nothing."""

    new: bool


class Level(msgspec.Struct, frozen=True):
    """What is available of a sku."""

    sku: str
    available: int


class Api:
    """Handlers over one `Store`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def doors(self) -> list[Door]:
        """All verbs of the API."""
        base = "/commerce/api"
        user, critical = Priority.USER, Priority.CRITICAL
        return [
            Route("GET", f"{base}/products", self.products, "Search products", answer=ProductPage, priority=Priority.DEGRADED),
            Route("GET", f"{base}/categories", self.categories, "The tree of categories with counts", answer=CategoryTree),
            Route("GET", f"{base}/suggestions", self.suggestions, "What may be meant by a few letters", answer=Suggested,
                  priority=Priority.DEGRADED),
            Route("GET", f"{base}/products/{{product_id}}", self.product, "One product", answer=ProductDetail),
            Route("GET", f"{base}/stock/{{sku}}", self.stock, "What is available of a sku", answer=Level),
            Route("POST", f"{base}/payments/notices", self.notice, "The card network tells something (signed)", body=bytes,
                  body_max=16_384, answer=Noticed, priority=critical),
            Route("POST", f"{base}/carts", self.new_cart, "A new cart", answer=NewCart, priority=user),
            Route("GET", f"{base}/carts/{{cart_id}}", self.cart, "A cart, priced", answer=CartView),
            Route("POST", f"{base}/carts/{{cart_id}}/lines", self.add, "Put into a cart", body=AddLine, answer=CartView),
            Route("PUT", f"{base}/carts/{{cart_id}}/lines/{{sku}}", self.put, "Set a line", body=SetLine, answer=CartView),
            Route("DELETE", f"{base}/carts/{{cart_id}}/lines/{{sku}}", self.remove, "Remove a line", answer=CartView),
            Route("POST", f"{base}/carts/{{cart_id}}/codes", self.code, "A promotion code", body=SetCode, answer=CartView),
            Route("POST", f"{base}/carts/{{cart_id}}/orders", self.place, "Order and pay a cart",
                  body=PlaceOrder, answer=OrderView, priority=critical, body_max=16_384),
            Route("GET", f"{base}/orders", self.orders, "My orders", answer=OrderPage, access="user"),
            Route("GET", f"{base}/orders/{{order_id}}", self.order, "An order and its parcel", answer=OrderView),
            Route("POST", f"{base}/orders/{{order_id}}/cancel", self.cancel, "Cancel an order", answer=OrderView),
        ]  # fmt: skip

    async def products(self, call: Call[None]) -> ProductPage:
        """Search by words and facets, with a cursor (`facets=none` counts none); or several products at once by `ids`."""
        market = market_of(call.query.get("country", "US"))
        limit = _whole(call.query.get("limit", "20"), 1, LIMIT_MAX)
        words = call.query.get("q", "")
        sort = call.query.get("sort", "relevance" if words else "popular")
        if sort not in SORTS:
            raise Rejected("unknown sort", code="bad_sort", known=", ".join(sorted(SORTS)))
        if call.query.get("ids"):
            several = await self._store.catalog.many(call.query["ids"].split(",")[:LIMIT_MAX])
            return ProductPage([self._seen(product, market) for product in several], len(several), {})
        field, descending = SORTS[sort]
        offset = _cursor(call.query.get("cursor", ""))
        facets = {facet: [call.query[facet][:60]] for facet in FACETS if call.query.get(facet)}
        counted = (
            ("in_stock",) if call.query.get("facets") == "none" else FACETS
        )  # one at least: counting is off the loop
        query = Query(words, facets, {}, field, descending, offset, limit, counted)
        products, total, counts, missing = await self._store.browse(query)
        if missing:  # a page shows a part of the catalog and says so; a program must not take it for an answer
            raise Overloaded("the search is away for a moment", retry_after_s=1.0, code="search_away")
        views = [self._seen(product, market) for product in products]
        more = offset + limit
        following = urlsafe_b64encode(str(more).encode()).decode() if more < total else ""
        return ProductPage(views, total, {name: dict(values) for name, values in counts.items()}, following)

    def _seen(self, product: Product, market: Market) -> ProductView:
        return ProductView(
            id=product.id,
            name=product.name,
            department=product.department,
            style=product.style,
            price=product.least_price(market.currency),
            currency=market.currency,
            image=product.image(),
            in_stock=self._store.in_stock(product),
        )

    async def product(self, call: Call[None]) -> Reply:
        """One product; 304 when the client's copy is still right."""
        product = await self._store.product(call.params["product_id"])
        stock, _, _ = await self._store.around(product)
        return _tagged(call, msgspec.json.encode(ProductDetail(plain(product), stock)))

    async def stock(self, call: Call[None]) -> Level:
        """What is available now."""
        sku = call.params["sku"][:200]
        return Level(sku, await self._store.inventory.available(sku))

    async def new_cart(self, call: Call[None]) -> NewCart:
        """An id for a new cart; nothing is stored until something is put in."""
        if call.identity is not None:
            return NewCart(await self._store.account_cart(call.identity.account_id, ""))
        return NewCart(ids.capability())

    async def cart(self, call: Call[None]) -> Reply:
        """The cart, priced; 304 when unchanged."""
        return _tagged(call, msgspec.json.encode(await self._view(call)))

    async def add(self, call: Call[AddLine]) -> CartView | None:
        """Put into a cart; `Prefer: return=minimal` (RFC 7240) saves pricing it for an answer."""
        body = call.body
        operation = body.operation or call.request_id[:80]
        cart_id, country = _cart_id(call), _country(call)
        cart = await self._store.add(cart_id, body.sku, body.quantity, operation=operation, country=country)
        if call.headers.get("prefer") == "return=minimal":
            return None
        return await self._store.checkout.view(cart_id, cart, country)

    async def put(self, call: Call[SetLine]) -> CartView:
        """Set a line."""
        await self._set(call, call.body.quantity, call.body.operation)
        return await self._view(call)

    async def remove(self, call: Call[None]) -> CartView:
        """Remove a line; one that is not there is fine."""
        await self._set(call, 0, "")
        return await self._view(call)

    async def code(self, call: Call[SetCode]) -> CartView:
        """Enter or withdraw a code."""
        await self._store.code(_cart_id(call), call.body.code, on=call.body.on)
        return await self._view(call)

    async def place(self, call: Call[PlaceOrder]) -> Reply:
        """Order and pay; 201 with the order, the same again for the same key."""
        attempt = call.headers.get("idempotency-key", "")
        if not attempt:
            raise Rejected("an order needs the header Idempotency-Key", code="key_missing")
        account = call.identity.account_id if call.identity else 0
        order = await self._store.place(_cart_id(call), attempt, call.body, account=account)
        view = order_view(order)
        body = msgspec.json.encode(view)
        headers = {"location": f"/commerce/api/orders/{view.id}", "cache-control": "no-store"}
        return Reply(body, status=201, media_type="application/json", headers=headers)

    async def orders(self, call: Call[None]) -> OrderPage:
        """An account's orders, newest first."""
        assert call.identity is not None, "the gateway lets only accounts in"
        cursor = call.query.get("cursor", "")
        before = min(ids.decode("order", cursor), NEWEST) if cursor else NEWEST
        limit = _whole(call.query.get("limit", "20"), 1, LIMIT_MAX)
        found = await self._store.orders.of_account(call.identity.account_id, before=before, limit=limit)
        return OrderPage([order_view(order) for order in found], found[-1].id if len(found) == limit else "")

    async def order(self, call: Call[None]) -> OrderView:
        """An order with its story and parcel; a guest proves it with the cart's id in the header X-Cart."""
        order, story, parcel, number = await self._store.order_story(
            call.params["order_id"], call.headers.get("x-cart", ""), call.identity
        )
        return order_view(order, story, parcel, number)

    async def cancel(self, call: Call[None]) -> OrderView:
        """Cancel, refund, restock."""
        order = await self._store.cancel(call.params["order_id"], call.headers.get("x-cart", ""), call.identity)
        return order_view(order)

    async def categories(self, call: Call[None]) -> Reply:
        """The tree; 304 when unchanged."""
        tree = sorted(self._store.catalog.tree.items())
        found = CategoryTree([Category(path.split(" > "), count) for path, count in tree])
        return _tagged(call, msgspec.json.encode(found))

    async def suggestions(self, call: Call[None]) -> Suggested:
        """For a field that completes while somebody types."""
        limit = _whole(call.query.get("limit", "8"), 1, 20)
        return Suggested(self._store.catalog.suggest(call.query.get("q", ""), limit=limit))

    async def notice(self, call: Call[bytes]) -> Noticed:
        """Signed like our own webhooks; a wrong or old signature is 401, one heard before changes nothing."""
        return Noticed(await self._store.payments.noticed(call.body, call.headers.get("fourplane-signature", "")))

    async def _view(self, call: Call[B]) -> CartView:
        shipping = call.query.get("shipping", "standard")
        return await self._store.view(_cart_id(call), _country(call), shipping=shipping)

    async def _set(self, call: Call[B], quantity: int, operation: str) -> None:
        await self._store.set_quantity(
            _cart_id(call),
            call.params["sku"][:200],
            quantity,
            operation=operation or call.request_id[:80],
            country=_country(call),
        )


def _cart_id(call: Call[B]) -> str:
    cart_id = call.params["cart_id"]
    if cart_id.startswith(ACCOUNT):
        mine = f"{ACCOUNT}{call.identity.account_id:012d}" if call.identity else ""
        if cart_id != mine:
            raise Forbidden("this cart belongs to an account", code="not_your_cart")
    return cart_id


def _country(call: Call[B]) -> str:
    return call.query.get("country", "US")


def order_view(
    order: Order, story: list[OrderEvent] | None = None, parcel: list[TrackingEvent] | None = None, number: str = ""
) -> OrderView:
    quote = order.body.quote
    return OrderView(
        order.id, order.state, quote.total, quote.currency, order.created_us, quote, story or [], parcel or [], number
    )


def _tagged(call: Call[None], body: bytes) -> Reply:
    tag = f'"{blake2b(body, digest_size=12).hexdigest()}"'
    headers = {"etag": tag, "cache-control": "no-cache"}
    if tag in call.headers.get("if-none-match", ""):
        return Reply(status=304, headers=headers)
    return Reply(body, media_type="application/json", headers=headers)


def _whole(text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 6 and least <= int(text) <= most):
        raise Rejected(f"limit is {least} to {most}", code="bad_limit")
    return int(text)


def _cursor(text: str) -> int:
    if not text:
        return 0
    try:
        return int(urlsafe_b64decode(text.encode("ascii")))
    except (ValueError, UnicodeEncodeError):
        raise Rejected("not a cursor of this API", code="bad_cursor") from None

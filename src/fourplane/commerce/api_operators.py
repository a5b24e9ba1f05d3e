"""What only operators may do: catalog files, prices, stock, credits, webhooks. All below `/commerce/api/`."""

import msgspec

from fourplane.commerce.api import Level, OrderView, order_view
from fourplane.commerce.catalog import Product, plain
from fourplane.commerce.catalog_import import FORMATS, MEDIA_TYPES, ImportReport, export_rows, import_rows, parse
from fourplane.commerce.inventory import Adjustment
from fourplane.commerce.media import Media
from fourplane.commerce.store import Store
from fourplane.commerce.webhooks import Endpoint, Webhooks
from fourplane.edge.routes import Call, Door, Priority, Reply, Route
from fourplane.foundation.errors import Rejected

UPLOAD_MAX = 10 << 20


class NewWebhook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where to post what happens to orders."""

    url: str


class NewPrice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A list price in minor units."""

    currency: str
    amount: int


class NewStock(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is on hand now, and why it is told; without a warehouse it is spread over all."""

    on_hand: int
    reason: str = "count"
    warehouse: str = ""


class NewCredit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Pieces of an order to be paid back, by sku; `restock` puts them on the shelf again."""

    lines: dict[str, int]
    restock: bool = True
    reason: str = ""


class CreditView(msgspec.Struct, frozen=True):
    """What was given back, and the order as it stands."""

    key: str
    amount: int
    currency: str
    order: OrderView


class OperatorApi:
    """Handlers over one `Store`."""

    def __init__(self, store: Store, webhooks: Webhooks, media: Media) -> None:
        self._store = store
        self._webhooks = webhooks
        self._media = media

    def doors(self) -> list[Door]:
        """All verbs; access is checked by the gateway before a body is read."""
        base = "/commerce/api"
        return [
            Route("GET", f"{base}/webhooks", self.webhooks, "Who hears of orders (operators)", access="operator"),
            Route("POST", f"{base}/webhooks", self.new_webhook, "Tell an address of orders (operators)", body=NewWebhook,
                  answer=Endpoint, access="operator"),
            Route("DELETE", f"{base}/webhooks/{{webhook_id}}", self.remove_webhook, "Forget an address (operators)",
                  access="operator"),
            Route("POST", f"{base}/catalog/import", self.import_catalog, "Import a catalog file (operators)", body=bytes,
                  body_max=256 << 20, answer=ImportReport, access="operator", priority=Priority.BULK),
            Route("GET", f"{base}/catalog/export", self.export_catalog, "The catalog as a file (operators)",
                  access="operator", priority=Priority.BULK),
            Route("PUT", f"{base}/prices/{{sku}}", self.price, "Change a price (operators)", body=NewPrice, answer=Product,
                  access="operator"),
            Route("PUT", f"{base}/stock/{{sku}}", self.stock, "Count stock (operators)", body=NewStock, answer=Level,
                  access="operator"),
            Route("POST", f"{base}/products/{{product_id}}/images", self.image, "Upload a picture (operators)", body=bytes,
                  body_max=UPLOAD_MAX, answer=Product, access="operator"),
            Route("POST", f"{base}/orders/{{order_id}}/credits", self.credit, "Pay back a part of an order (operators)",
                  body=NewCredit, answer=CreditView, access="operator", priority=Priority.CRITICAL),
        ]  # fmt: skip

    async def import_catalog(self, call: Call[bytes]) -> ImportReport:
        """Import YAML, JSON, JSON lines or CSV; `?dry_run=1` only reports."""
        rows = parse(call.body, call.query.get("format", "yaml"))
        dry = call.query.get("dry_run", "") not in ("", "0", "false")
        return await import_rows(rows, catalog=self._store.catalog, inventory=self._store.inventory, dry_run=dry)

    async def export_catalog(self, call: Call[None]) -> Reply:
        """The whole catalog in a form that can be imported again."""
        kind = call.query.get("format", "jsonl")
        if kind not in FORMATS:
            raise Rejected(f"a catalog is written as {', '.join(FORMATS)}, not {kind[:20]!r}", code="unknown_format")
        return Reply(export_rows(self._store.catalog, self._store.inventory, kind), media_type=MEDIA_TYPES[kind])

    async def price(self, call: Call[NewPrice]) -> Product:
        """From now on; carts are told, orders keep theirs, search knows within a second."""
        product = await self._store.catalog.change_price(call.params["sku"], call.body.currency, call.body.amount)
        self._store.changed(product)
        return product

    async def stock(self, call: Call[NewStock]) -> Level:
        """Set what is on hand; the difference goes into the ledger with its reason."""
        sku, told = call.params["sku"], call.body
        product = await self._store.sold_product(sku)
        await self._store.inventory.set_stock([Adjustment(sku, told.on_hand, told.reason[:40], told.warehouse)])
        available = await self._store.inventory.available(sku)
        await self._store.catalog.stock_changed({sku: available})
        self._store.changed(product)
        return Level(sku, available)

    async def image(self, call: Call[bytes]) -> Product:
        """Keep a picture in several sizes and show it first."""
        product = plain(await self._store.product(call.params["product_id"]))
        name = await self._media.keep(call.body)
        images = (name, *(one for one in product.images if one != name))[: self._media.per_product_max]
        changed = msgspec.structs.replace(product, images=images)
        await self._store.catalog.put([changed])
        self._store.changed(changed)
        return changed

    async def credit(self, call: Call[NewCredit]) -> CreditView:
        """Once per Idempotency-Key: the money, the pieces, a line in the order's story."""
        key = call.headers.get("idempotency-key", "")
        if not key:
            raise Rejected("a credit needs the header Idempotency-Key", code="key_missing")
        order = await self._store.order(call.params["order_id"], "", call.identity)
        body = call.body
        credit = await self._store.credits.give(order, key, body.lines, restock=body.restock, reason=body.reason)
        again, story, parcel, number = await self._store.order_story(order.id, "", call.identity)
        return CreditView(key, credit.amount, order.body.quote.currency, order_view(again, story, parcel, number))

    async def webhooks(self, call: Call[None]) -> list[Endpoint]:
        """Who hears of orders; secrets are not shown again."""
        assert call.identity is not None, "the gateway lets only operators in"
        return self._webhooks.endpoints()

    async def new_webhook(self, call: Call[NewWebhook]) -> Endpoint:
        """Register an address; the answer holds the secret that signs what it gets."""
        return await self._webhooks.register(call.body.url)

    async def remove_webhook(self, call: Call[None]) -> None:
        """Forget an address."""
        await self._webhooks.remove(call.params["webhook_id"])

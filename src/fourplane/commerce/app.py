"""The commerce system: its rooms put together, its doors, its boxes on the diagram.

Start: tables, the inventory's epoch, recovery of the two-phase commit; then the doors open. Search answers from what the last
process left on disk while everything is indexed anew behind it; without such an index it says so until it is there. A store
without products gets a catalog of its own (see catalog_seed.py), so a first visit finds a shop and not an empty shelf.
"""

import asyncio
import contextlib
import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import msgspec

from fourplane.commerce.api import Api
from fourplane.commerce.api_operators import OperatorApi
from fourplane.commerce.cart_clearing import CartClearing
from fourplane.commerce.cart_store import CartSettings, CartStore
from fourplane.commerce.catalog import Catalog, CatalogSettings, Product
from fourplane.commerce.catalog_import import ImportReport, Progress, import_rows, parse
from fourplane.commerce.catalog_seed import enriched, generated_rows
from fourplane.commerce.checkout import Checkout, CheckoutSettings
from fourplane.commerce.credits import Credits
from fourplane.commerce.diagram import boxes_of
from fourplane.commerce.fulfilment import Fulfilment, FulfilmentSettings
from fourplane.commerce.inventory import Inventory, InventorySettings
from fourplane.commerce.media import Media, MediaSettings
from fourplane.commerce.orders import Orders
from fourplane.commerce.page_cache import PageCache, PageCacheSettings
from fourplane.commerce.payment import Payments, PaymentSettings
from fourplane.commerce.promotion_book import STANDING, PromotionBook
from fourplane.commerce.schema import MARK, MONEY, SHARD, STORE
from fourplane.commerce.shipping import BuiltInCarrier, ShippingSettings
from fourplane.commerce.store import Boxes, Store, StoreStatistics
from fourplane.commerce.stored_ids import StoredIds
from fourplane.commerce.storefront import Storefront
from fourplane.commerce.webhooks import Webhooks, WebhookSettings
from fourplane.control.nodes import Node
from fourplane.edge.admission import Admission
from fourplane.edge.http_request import HotHandler
from fourplane.edge.routes import Door
from fourplane.edge.waiting_room import WaitingRoom
from fourplane.foundation import clock
from fourplane.foundation.blocking import Pool
from fourplane.foundation.errors import FourplaneError
from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Registry
from fourplane.service.payment_gateway import PaymentGateway
from fourplane.service.two_phase_commit import CommitSettings, Coordinator
from fourplane.state import schema
from fourplane.state.contracts import Blobs, Records, Search, Sql

TELL_S = 0.25
RENEW_S = 0.05
SNAPSHOT_S = 1.0
INDEX_WAIT_S = 0.3
INDEX_RETRY_S = 2.0


class CommerceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that can be set about the shop."""

    cart: CartSettings = CartSettings()
    catalog: CatalogSettings = CatalogSettings()
    checkout: CheckoutSettings = CheckoutSettings()
    inventory: InventorySettings = InventorySettings()
    payment: PaymentSettings = PaymentSettings()
    shipping: ShippingSettings = ShippingSettings()
    fulfilment: FulfilmentSettings = FulfilmentSettings()
    commit: CommitSettings = CommitSettings()
    pages: PageCacheSettings = PageCacheSettings()
    webhooks: WebhookSettings = WebhookSettings()
    media: MediaSettings = MediaSettings()
    name: str = "commerce"
    catalog_file: str = ""
    generated_products: int = 1_200
    standing_offers: bool = True


class Commerce:
    """A lifecycle part: the whole shop."""

    def __init__(
        self,
        settings: CommerceSettings,
        *,
        sql: Sql,
        records: Records,
        search: Search,
        payments: PaymentGateway,
        ids: IdGenerator,
        registry: Registry,
        shards: Sequence[Sql] = (),
        blobs: Blobs | None = None,
        snapshot: Path | None = None,
    ) -> None:
        self._settings = settings
        self._sql = sql
        self._registry = registry
        self._shards = list(shards) or [sql]
        self._ids = ids = StoredIds(ids)
        boxes = Boxes()
        self.catalog = Catalog(settings.catalog, sql=sql, search=search, snapshot=snapshot)
        self.inventory = Inventory(settings.inventory, shards=self._shards, ids=ids)
        self.carts = CartStore(settings.cart, records=records, replica=settings.name)
        self.webhooks = Webhooks(settings.webhooks, sql=sql, ids=ids)
        self.orders = Orders(sql=sql, announce=self.webhooks.announce)
        self.payments = Payments(
            settings.payment, sql=sql, records=records, gateway=payments, switch=boxes.payment.switch,
            placed=self.orders.placed,
        )  # fmt: skip
        self._clearing = clearing = CartClearing(carts=self.carts, orders=self.orders)
        carrier = BuiltInCarrier(settings.shipping)
        participants = {f"inventory-{number}": shard for number, shard in enumerate(self.inventory.shards)}
        self.coordinator = Coordinator(
            sql,
            settings.name,
            {"order": self.orders, "payment": self.payments, "cart": clearing, **participants},
            ids=ids,
            settings=settings.commit,
        )
        self.checkout = Checkout(
            settings.checkout,
            carts=self.carts,
            catalog=self.catalog,
            inventory=self.inventory,
            orders=self.orders,
            coordinator=self.coordinator,
            carrier=carrier,
            payments=self.payments,
            clearing=clearing,
        )
        self.credits = Credits(sql=sql, orders=self.orders, payments=self.payments, inventory=self.inventory)
        self.media = Media(settings.media, blobs=blobs)
        self.promotions = PromotionBook(sql=sql, checkout=self.checkout)
        self.store = Store(
            boxes=boxes,
            catalog=self.catalog,
            carts=self.carts,
            inventory=self.inventory,
            orders=self.orders,
            payments=self.payments,
            checkout=self.checkout,
            carrier=carrier,
            paybacks=self.credits,
        )
        self.fulfilment = Fulfilment(
            settings.fulfilment,
            orders=self.orders,
            payments=self.payments,
            carrier=carrier,
            inventory=self.inventory,
            paybacks=self.credits,
        )
        self.pages = PageCache(settings.pages)
        self._packer = Pool("pages", threads=1)
        self.store.when_changed(self._changed)
        self.admission: Admission | None = None
        self.room: WaitingRoom | None = None
        self.storefront = Storefront(self.store, self.pages, self.media)
        self._api = Api(self.store)
        self._operators = OperatorApi(self.store, self.webhooks, self.media)

    async def start(self, tasks: Tasks) -> None:
        """Be open: tables, ownership, recovery, catalog, search."""
        await schema.ensure(self._sql, "commerce", STORE)
        await schema.ensure(self._sql, "commerce-money", MONEY)
        await schema.ensure(self._sql, "commerce-mark", MARK)
        for shard in self._shards:
            await schema.ensure(shard, "commerce-inventory", SHARD)
        await self.inventory.open()
        await self._go_on()
        await self.webhooks.open()
        if await self.payments.open():
            await self._clearing.empty_last()
        await self.coordinator.start(tasks)
        await self.promotions.open(STANDING if self._settings.standing_offers else ())
        await self.catalog.open()
        if self.catalog.products_count == 0:
            await self.fill()
        else:
            indexing = tasks.start(self._index_anew(), "index")
            if not self.catalog.index.ready:
                await asyncio.wait({indexing}, timeout=INDEX_WAIT_S)  # a small one is there before the first visitor
        tasks.start(self.fulfilment.run(), "fulfilment")
        tasks.start(self._tell_stock(), "stock")
        tasks.start(self._keep_pages(), "pages")
        tasks.start(self._keep_snapshot(), "snapshot")
        tasks.start(self.webhooks.run(), "webhooks")

    async def _go_on(self) -> None:
        """Ids come behind what is stored, whatever the clock says."""
        stored = (("orders", "id"), ("payment_intents", "transaction_id"), ("webhook_deliveries", "id"))
        await self._ids.go_on_behind(self._sql, *stored)
        for shard in self._shards:
            await self._ids.go_on_behind(shard, ("stock_ledger", "id"))

    async def drain(self) -> None:
        """Finish every checkout that has begun."""
        await self.coordinator.drain()

    async def stop(self) -> None:
        """Nothing to release: the stores are closed by whoever opened them."""
        await self.coordinator.stop()
        self.catalog.close()
        self._packer.close()

    async def fill(self, progress: Progress | None = None) -> ImportReport:
        """Import the configured catalog file, or make a believable catalog."""
        path = Path(self._settings.catalog_file) if self._settings.catalog_file else None
        if path is not None and path.is_file():
            reader = Pool("catalog", threads=1)
            try:
                rows = await reader.run(lambda: [enriched(row) for row in parse(path.read_bytes(), path.suffix)])
            finally:
                reader.close()
        else:
            rows = generated_rows(self._settings.generated_products)
        report = await self.import_rows(rows, progress=progress)
        self._registry.event("info", "commerce", f"The shelves are filled: {report.taken:,} products")
        return report

    async def import_rows(
        self, rows: Sequence[Mapping[str, object]], *, progress: Progress | None = None, dry_run: bool = False
    ) -> ImportReport:
        """Import checked rows into catalog, inventory and search."""
        return await import_rows(
            rows, catalog=self.catalog, inventory=self.inventory, progress=progress, dry_run=dry_run
        )

    async def _index_anew(self) -> None:
        """Search follows the rows, whatever the last process left behind."""
        while True:
            try:
                await self.catalog.reindex(self.inventory.available_of)
            except FourplaneError as error:
                self._registry.event("warning", "commerce", f"the catalog could not be indexed: {error.message}")
                await clock.sleep(INDEX_RETRY_S)
            else:
                return

    async def _tell_stock(self) -> None:
        """Availability reaches catalog and search within a quarter of a second of an order."""
        while True:
            await clock.sleep(TELL_S)
            with contextlib.suppress(FourplaneError):  # the next round tells what is left untold
                changed = await self.checkout.tell_stock()
                self.pages.drop(f"/commerce/p/{quote(product)}" for product in changed)

    async def _keep_pages(self) -> None:
        """Popular pages before anybody asks; then what has grown old, behind everybody's back."""
        with contextlib.suppress(FourplaneError):
            await self.storefront.warm(self._settings.pages.warm)
        while True:
            await clock.sleep(RENEW_S)
            for path in self.pages.take_due(self._settings.pages.renew_at_once):
                with contextlib.suppress(FourplaneError):  # the old page goes on being sent
                    await self.storefront.render(path)
            plain = self.pages.take_plain(self._settings.pages.pack_at_once)
            if plain:
                small = await self._packer.run(
                    lambda bodies=[body for _, body in plain]: [_packed(body) for body in bodies]
                )
                for (path, body), packed in zip(plain, small, strict=True):
                    self.pages.pack(path, body, packed)

    async def _keep_snapshot(self) -> None:
        """What the processes of this machine share follows the rows."""
        while True:
            with contextlib.suppress(FourplaneError, OSError):
                await self.catalog.renew_snapshot()
            await clock.sleep(SNAPSHOT_S)

    def behind(self, admission: Admission, room: WaitingRoom | None = None) -> None:
        """The door all of it stands behind and the room in front of that, for the boxes that show who is let in."""
        self.admission, self.room = admission, room

    def doors(self) -> list[Door]:
        """Pages and API."""
        return [*self.storefront.doors(), *self._api.doors(), *self._operators.doors()]

    def _changed(self, product: Product) -> None:
        """A product looks different now: no kept page shows the old one."""
        self.pages.drop([f"/commerce/p/{quote(product.id)}"])

    def hot_routes(self) -> list[tuple[str, str, HotHandler]]:
        """Pages that are answered inside the protocol: method, path, handler."""
        return [("GET", "/commerce/p/*", self.pages.hot), ("GET", "/commerce/", self.pages.hot)]

    def nodes(self) -> list[Node]:
        """The boxes of the study's diagrams."""
        return boxes_of(self)

    def statistics(self) -> StoreStatistics:
        """The shop in numbers."""
        checkout, inventory = self.checkout.statistics(), self.inventory.statistics()
        return StoreStatistics(
            products=self.catalog.products_count,
            placed=checkout.placed,
            repeated=checkout.repeated,
            open=checkout.open,
            refused=checkout.refused,
            sold=inventory.sold,
            races=inventory.races,
            captured=self.payments.captured,
            declined=self.payments.declined,
        )


def _packed(body: bytes) -> bytes:
    return gzip.compress(body, 6, mtime=0)

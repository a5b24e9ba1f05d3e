"""Products, their variants and prices: kept in Sql, decoded once, found through Search.

A product is one row with one msgpack body (its schema number first), so reading a page of products is one query and one
decode each. Decoded products stay in a bounded dictionary; a change writes the row, replaces the entry and tells the search
index, in this order, so that a reader never sees a newer index than row.

The doors do not wait for menus, suggestions and search: `reindex` goes through all rows behind them, at most half of the time.

Cost: a decoded product 0.1 us, one of the shared table 1.3 us, a cold one about 30 us; search see catalog_index.py.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

import msgspec
from msgspec.structs import astuple

from fourplane.commerce.catalog_index import CatalogIndex, IndexSettings, paths_of
from fourplane.commerce.pricing import CURRENCIES, Item, Market
from fourplane.commerce.snapshot import Snapshot, Writer
from fourplane.commerce.suggestions import Suggestions, Synonyms
from fourplane.foundation import clock
from fourplane.foundation.blocking import Pool
from fourplane.foundation.errors import NotFound, Rejected
from fourplane.service.shared_commit import Row, Template, rendered
from fourplane.state.contracts import Found, Query, Search, Sql

FACETS = ("department", "style", "category", "color", "in_stock", "on_sale")
SORTS = {
    "relevance": ("", False),
    "price": ("price", False),
    "price-desc": ("price", True),
    "popular": ("popularity", True),
}
PRICE_MAX = 100_000_000
SNAPSHOT_S = 10.0
SYNONYMS = (
    ("sneaker", "trainer", "running shoe"),
    ("sofa", "couch"),
    ("trousers", "pants"),
    ("jumper", "sweater", "pullover"),
    ("torch", "flashlight"),
    ("backpack", "rucksack", "daypack"),
    ("headphones", "earphones", "headset"),
    ("fridge", "refrigerator"),
    ("television", "tv"),
    ("watch", "timepiece"),
    ("bag", "handbag", "tote"),
    ("lamp", "light"),
)


_PUT = Template(
    "INSERT INTO products (id, reference, department, style, active, updated_us, body) VALUES ",
    "({}, {}, {}, {}, {}, {}, {})",
    " ON CONFLICT (id) DO UPDATE SET reference = excluded.reference, department = excluded.department, "
    "style = excluded.style, active = excluded.active, updated_us = excluded.updated_us, body = excluded.body",
)
_PUT_VARIANT = Template(
    "INSERT INTO variants (sku, product_id) VALUES ",
    "({}, {})",
    " ON CONFLICT (sku) DO UPDATE SET product_id = excluded.product_id",
)


class Variant(msgspec.Struct, frozen=True, gc=False):
    """What is bought: a sku with its options and list prices in minor units by currency."""

    sku: str
    options: dict[str, str] = {}
    prices: dict[str, int] = {}
    was: dict[str, int] = {}  # the price before a sale
    weight_g: int = 500


class Product(msgspec.Struct, frozen=True, gc=False):
    """What is shown. `id` is readable and stable over imports; `reference` is the source's own key.

    Nothing in it is tracked by the garbage collector once that has seen it (tuples of texts and of untracked structs, dicts of
    texts and numbers): 50,000 of them, held for long, cost a full collection nothing.
    """

    schema: int
    id: str
    reference: str
    name: str
    description: str
    department: str
    style: str
    variants: tuple[Variant, ...]
    attributes: dict[str, str] = {}
    aliases: tuple[str, ...] = ()
    tax_class: str = "standard"
    popularity: int = 0
    active: bool = True
    categories: tuple[str, ...] = ()  # the path in the tree, where it is longer than the department
    images: tuple[str, ...] = ()  # names of uploaded pictures, the first is shown

    def variant(self, sku: str) -> Variant:
        """The variant of this sku; raises NotFound."""
        for variant in self.variants:
            if variant.sku == sku:
                return variant
        raise NotFound(f"{self.id} has no variant {sku[:60]!r}", code="no_such_sku")

    def least_price(self, currency: str) -> int:
        """The cheapest variant's price; 0 where it is not sold in that currency."""
        return min((v.prices[currency] for v in self.variants if currency in v.prices), default=0)

    def image(self) -> str:
        """The address of its picture; it says everything the picture depends on."""
        if self.images:
            return f"/commerce/media/{self.images[0]}/480.jpg"
        return _image(self.department, self.id, self.style, self.attributes.get("color", "any"))

    def item(self, sku: str, quantity: int, market: Market) -> Item:
        """One line to be priced; raises Rejected where the variant has no price in the market's currency."""
        variant = self.variant(sku)
        unit = variant.prices.get(market.currency)
        if unit is None:
            raise Rejected(f"{self.name} is not sold in {market.currency}", code="not_sold_here", sku=sku)
        name = " / ".join([self.name, *variant.options.values()])
        return Item(sku, name, quantity, unit, self.tax_class, self.department, variant.weight_g)


class SharedVariant(Variant, frozen=True, gc=False, array_like=True):
    """A variant as the shared table holds it."""


class SharedProduct(Product, frozen=True, gc=False, array_like=True):
    """A product as the shared table holds it: without the names of its fields, which take half the time to read.

    Whoever writes a product anywhere else writes `plain` of it.
    """

    variants: tuple[SharedVariant, ...]


def plain(product: Product) -> Product:
    """The same product in the form that rows and clients know."""
    if type(product) is Product:
        return product
    values = {name: getattr(product, name) for name in Product.__struct_fields__}
    return Product(**values | {"variants": tuple(Variant(*astuple(variant)) for variant in product.variants)})


def for_all(product: Product) -> bytes:
    """A product as the shared table holds it; defaults at the end are not written, since they need not be read then."""
    values = _without_defaults(product, _NO_PRODUCT)
    values[_VARIANTS] = [_without_defaults(variant, _NO_VARIANT) for variant in product.variants]
    return _ENCODE(values)


def shared_from(table: Path) -> Snapshot[SharedProduct]:
    """The products of a shared table. Raises Corrupt for another file."""
    return Snapshot(table, msgspec.msgpack.Decoder(SharedProduct).decode)


def _without_defaults(of: msgspec.Struct, blank: tuple[object, ...]) -> list[object]:
    """Its values in order of the fields, up to the last one that is not the default."""
    values, wanted = list(astuple(of)), len(blank) - len(of.__struct_defaults__)
    while len(values) > wanted and values[-1] == blank[len(values) - 1]:
        values.pop()
    return values


_ENCODE = msgspec.msgpack.Encoder().encode
_NO_VARIANT = astuple(Variant(""))
_NO_PRODUCT = astuple(Product(0, "", "", "", "", "", "", ()))
_VARIANTS = Product.__struct_fields__.index("variants")


class CatalogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of the catalog."""

    decoded_max: int = 50_000
    page_max: int = 60
    offset_max: int = 2_000
    batch: int = 200
    suggestions_max: int = 50_000
    absent_s: float = 2.0
    absent_max: int = 10_000
    synonyms: tuple[tuple[str, ...], ...] = SYNONYMS
    index: IndexSettings = IndexSettings()


class CatalogStatistics(msgspec.Struct, frozen=True):
    """What the decoded cache and the search did."""

    decoded: int
    hits: int
    misses: int
    searches: int
    shared_hits: int = 0
    snapshot: bool = False


@lru_cache(maxsize=20_000)
def _image(department: str, product_id: str, style: str, color: str) -> str:
    return f"/commerce/image/{quote(department)}/{quote(product_id)}.{quote(style, safe='')}.{quote(color)}.svg"


class Catalog:
    """The owner of products in this process."""

    def __init__(self, settings: CatalogSettings, *, sql: Sql, search: Search, snapshot: Path | None = None) -> None:
        self._settings = settings
        self._sql = sql
        self._decoded: dict[str, Product] = {}
        self._by_sku: dict[str, str] = {}
        self._decoder = msgspec.msgpack.Decoder(Product)
        self._encoder = msgspec.msgpack.Encoder()
        self._stock: dict[str, int] = {}
        self._hits = self._shared_hits = self._misses = self._searches = 0
        self._absent: dict[
            str, float
        ] = {}  # products that were asked for and do not exist, until when that is believed
        self._snapshot_path = snapshot
        self._snapshot: Snapshot[SharedProduct] | None = None
        self._newer: set[str] = set()  # changed since the snapshot was read
        self._newer_while: set[str] = set()  # changed while the next one is written
        self._snapshot_s = 0.0  # how long writing the last one took
        self._snapshot_at_s = 0.0
        self._disk = Pool("catalog", threads=1)
        self.departments: dict[str, dict[str, int]] = {}
        self.tree: dict[str, int] = {}
        self.products_count = 0
        self.index = CatalogIndex(
            settings.index, search=search, synonyms=Synonyms(settings.synonyms), in_stock=self.in_stock
        )
        self._touched: set[str] | None = None  # changed while everything is indexed anew
        self._phrases: dict[str, int] = {}
        self._suggestions = Suggestions({}, most=0)

    async def open(self) -> None:
        """Read what the menus need and look what the search index still knows; call once before serving."""
        await self._count()
        await self.index.open()

    async def fetch(self, product_id: str) -> Product:
        """The product; raises NotFound."""
        product = self._decoded.get(product_id)
        if product is not None:
            self._hits += 1
            return product
        if self._snapshot is not None and product_id not in self._newer:
            found = self._snapshot.find(product_id)
            if found is not None:
                self._shared_hits += 1
                return self._remember(found)
        now = clock.monotonic_s()
        if self._absent.get(product_id, 0.0) > now:
            self._hits += 1
            raise NotFound("no such product", code="no_such_product", id=product_id[:80])
        self._misses += 1
        rows = await self._sql.read("SELECT body FROM products WHERE id = ?1 AND active = 1", product_id[:200])
        if not rows:
            if len(self._absent) >= self._settings.absent_max:
                self._absent.clear()
            self._absent[product_id[:200]] = now + self._settings.absent_s
            raise NotFound("no such product", code="no_such_product", id=product_id[:80])
        return self._remember(self._decode(rows[0][0]))

    async def renew_snapshot(self) -> int:
        """Write what has changed into the table that all processes of the machine read, if it is time; how many it holds.

        Not before twenty times as long as the last one took has gone by, so that it never costs more than a twentieth.
        """
        path, now = self._snapshot_path, clock.monotonic_s()
        if path is None or (self._snapshot is not None and not self._newer):
            return 0
        if self._snapshot_s and now < self._snapshot_at_s + max(SNAPSHOT_S, 20 * self._snapshot_s):
            return 0
        self._newer_while = set()
        writer = await self._disk.run(lambda: Writer(path))
        try:
            after = ""
            while rows := await self._sql.read(
                "SELECT id, body FROM products WHERE id > ?1 AND active = 1 ORDER BY id LIMIT 500", after
            ):
                chunk = [(str(name), body) for name, body in rows if isinstance(body, bytes)]
                await self._disk.run(
                    lambda chunk=chunk: writer.add([(name, for_all(self._decode(body))) for name, body in chunk])
                )
                after = chunk[-1][0]
            count = await self._disk.run(writer.finish)
        except BaseException:
            writer.give_up()
            raise
        self._snapshot = await self._disk.run(lambda: shared_from(path))
        self._newer = self._newer_while
        self._newer_while = set()
        self._snapshot_at_s = clock.monotonic_s()
        self._snapshot_s = self._snapshot_at_s - now
        return count

    def close(self) -> None:
        """End the thread for snapshots and suggestions."""
        self._disk.close()

    async def find_by_sku(self, sku: str) -> Product | None:
        """The product a sku belongs to, or None."""
        known = self._by_sku.get(sku)
        if known is not None and (product := self._decoded.get(known)) is not None:
            self._hits += 1
            return product
        self._misses += 1
        rows = await self._sql.read(
            "SELECT p.body FROM variants v JOIN products p ON p.id = v.product_id WHERE v.sku = ?1 AND p.active = 1",
            sku[:200],
        )
        return self._remember(self._decode(rows[0][0])) if rows else None

    async def find(self, query: Query) -> tuple[list[Product], Found]:
        """Products for a search, with facet counts; products that vanished meanwhile are left out."""
        if query.limit > self._settings.page_max or query.offset > self._settings.offset_max:
            raise Rejected("that is past the last page we show", code="page_out_of_range")
        self._searches += 1
        found = await self.index.find(query)
        missing = [hit.id for hit in found.hits if hit.id not in self._decoded]
        if missing:
            await self._load(missing)
        return [self._decoded[hit.id] for hit in found.hits if hit.id in self._decoded], found

    async def page(self, after: str, limit: int) -> list[Product]:
        """Products in order of id behind `after`: for exports and cursor paging."""
        rows = await self._sql.read(
            "SELECT body FROM products WHERE id > ?1 AND active = 1 ORDER BY id LIMIT ?2", after[:200], limit
        )
        return [self._decode(row[0]) for row in rows]

    async def ids(self, after: str, limit: int) -> list[str]:
        """The same, their ids alone: a tenth of the time."""
        rows = await self._sql.read(
            "SELECT id FROM products WHERE id > ?1 AND active = 1 ORDER BY id LIMIT ?2", after[:200], limit
        )
        return [str(row[0]) for row in rows]

    async def put(self, products: Sequence[Product]) -> None:
        """Add or replace products durably, then let search know. At most `batch` at once."""
        now = clock.now_us()
        rows: list[Row] = []
        for product in products:
            body = self._encoder.encode(plain(product))
            values = (product.id, product.reference, product.department, product.style, int(product.active), now, body)
            rows.append(Row(_PUT, values))
            rows += [Row(_PUT_VARIANT, (variant.sku, product.id)) for variant in product.variants]
        await self._sql.commit(rendered(rows))
        for product in products:
            self._absent.pop(product.id, None)
            self._newer.add(product.id)
            self._newer_while.add(product.id)
            if self._touched is not None:
                self._touched.add(product.id)
            self._remember(product)
        await self.index.write(products)

    async def change_price(self, sku: str, currency: str, amount: int) -> Product:
        """Give a variant a new price from now on; carts are told, orders keep theirs. Raises NotFound or Rejected."""
        if currency not in CURRENCIES:
            raise Rejected(f"we do not sell in {currency[:10]!r}", code="unknown_currency", known=sorted(CURRENCIES))
        if not 0 <= amount <= PRICE_MAX:
            raise Rejected(f"a price is 0 to {PRICE_MAX} minor units, not {amount}", code="bad_price")
        product = await self.find_by_sku(sku)
        if product is None:
            raise NotFound("we do not sell that", code="no_such_sku", sku=sku[:60])
        product = plain(product)
        variants = tuple(
            msgspec.structs.replace(variant, prices={**variant.prices, currency: amount})
            if variant.sku == sku
            else variant
            for variant in product.variants
        )
        changed = msgspec.structs.replace(product, variants=variants)
        await self.put([changed])
        return changed

    async def many(self, product_ids: Sequence[str]) -> list[Product]:
        """Those of these products that exist, in this order, with one query for all that are not at hand."""
        missing = [one for one in dict.fromkeys(product_ids) if one not in self._decoded]
        if missing:
            await self._load(missing)
        return [self._decoded[one] for one in dict.fromkeys(product_ids) if one in self._decoded]

    async def stock_changed(self, available: Mapping[str, int]) -> list[str]:
        """Note availability by sku; products that went in or out of stock are searched anew. Returns their ids."""
        changed: dict[str, Product] = {}
        for sku, count in available.items():
            before = self._stock.get(sku)
            self._stock[sku] = count
            if before is None or (before > 0) != (count > 0):
                product = await self.find_by_sku(sku)
                if product is not None:
                    changed[product.id] = product
        if changed:
            await self.index.write(list(changed.values()))
        return list(changed)

    def in_stock(self, product: Product) -> bool:
        """Whether any variant is available, as last heard; unknown counts as available."""
        return any(self._stock.get(variant.sku, 1) > 0 for variant in product.variants)

    def suggest(self, typed: str, *, limit: int = 8) -> list[str]:
        """What may be meant by these letters, likeliest first."""
        return self._suggestions.find(typed[:60], limit=limit)

    async def reindex(self, levels: Callable[[Sequence[str]], Awaitable[Mapping[str, int]]] | None = None) -> int:
        """Write every product into the search index, with its stock as `levels` tells; how many there are.

        May run while people buy: what changes meanwhile is newer than what is read here and is left alone.
        """
        after, count = "", 0
        self._phrases, self.tree, self._touched = {}, {}, set()
        try:
            while rows := await self.page(after, self._settings.batch):
                began = clock.monotonic_s()
                if levels is not None:
                    await self.seed_stock(await levels([variant.sku for one in rows for variant in one.variants]))
                fresh = [product for product in rows if product.id not in self._touched]
                for product in fresh:
                    self._remember(product)
                    self._count_words(product)
                await self.index.write(fresh)
                after, count = rows[-1].id, count + len(rows)
                await clock.sleep(clock.monotonic_s() - began)
            await self.index.refresh()
        finally:
            self._touched = None
        self.index.completed()
        await self._suggest_anew()
        return count

    async def seed_stock(self, available: Mapping[str, int], *, known: bool = False) -> None:
        """Note availability without searching anything anew; of what was heard before only where it is `known` better."""
        if known:
            self._stock.update(available)
        else:
            for sku, count in available.items():
                self._stock.setdefault(sku, count)

    async def refresh_menus(self) -> None:
        """Count departments, styles and words again, after an import."""
        await self._count()
        self._phrases, self.tree, after = {}, {}, ""
        while rows := await self.page(after, self._settings.batch):
            for product in rows:
                self._count_words(product)
            after = rows[-1].id
            await clock.sleep(0)
        await self._suggest_anew()
        await self.index.refresh()
        self.index.completed()

    def statistics(self) -> CatalogStatistics:
        """What the decoded cache and the search did so far."""
        return CatalogStatistics(
            len(self._decoded), self._hits, self._misses, self._searches, self._shared_hits, self._snapshot is not None
        )

    async def _suggest_anew(self) -> None:
        """Sort the phrases on a thread: a million products have some seconds' worth of them."""
        phrases, most = self._phrases, self._settings.suggestions_max
        self._suggestions = await self._disk.run(lambda: Suggestions(phrases, most=most))
        self._phrases = {}

    def _count_words(self, product: Product) -> None:
        """What the suggestions and the tree of categories know of a product."""
        phrases = self._phrases
        for phrase, weight in ((product.department, 500), (product.style, 200), (product.name, product.popularity)):
            if phrase in phrases or len(phrases) < 4 * self._settings.suggestions_max:
                phrases[phrase] = phrases.get(phrase, 0) + weight
        for path in paths_of(product):
            self.tree[path] = self.tree.get(path, 0) + 1

    def _remember(self, product: Product) -> Product:
        if len(self._decoded) >= self._settings.decoded_max and product.id not in self._decoded:
            oldest = next(iter(self._decoded))
            for variant in self._decoded.pop(oldest).variants:
                self._by_sku.pop(variant.sku, None)
        if not product.active:
            self._decoded.pop(product.id, None)
            return product
        self._decoded[product.id] = product
        for variant in product.variants:
            self._by_sku[variant.sku] = product.id
        return product

    async def _load(self, ids: Sequence[str]) -> None:
        marks = ", ".join(f"?{number}" for number in range(1, len(ids) + 1))
        rows = await self._sql.read(f"SELECT body FROM products WHERE id IN ({marks}) AND active = 1", *ids)  # noqa: S608 - only placeholders
        for row in rows:
            self._remember(self._decode(row[0]))

    async def _count(self) -> None:
        rows = await self._sql.read(
            "SELECT department, style, COUNT(*) FROM products WHERE active = 1 "
            "GROUP BY department, style ORDER BY department, style"
        )
        self.departments = {}
        for department, style, count in rows:
            assert isinstance(count, int)
            self.departments.setdefault(str(department), {})[str(style)] = count
        self.products_count = sum(sum(styles.values()) for styles in self.departments.values())

    def _decode(self, body: object) -> Product:
        assert isinstance(body, bytes)
        product = self._decoder.decode(body)
        assert product.schema == 1, "a product of a newer schema"
        return product

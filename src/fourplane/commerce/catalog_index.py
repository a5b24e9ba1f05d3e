"""The shop's side of search: products as documents, hot answers kept, and an honest no while there is no index.

A start does not wait for the index. What the last process left on disk answers at once (`open` looks whether anything is
there), everything is written anew behind it by `Catalog.reindex`, and an engine that keeps nothing says `search_preparing` until
it is filled.

An answer is kept `kept_s` whatever happens, which is less than a change may take to be seen (a second, of which telling and
committing take 0.6), and `calm_s` while nothing changes at all. Whoever asks the same at the same moment waits for the one
who asked first. The engine is called under a policy: a deadline, a bound of calls under way, a breaker.

Invariant: no answer is older than `kept_s`, unless no document has changed since `SEEN_S` before it was made.
Cost: a kept answer 3 us; what is asked newly costs what the engine takes.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from fourplane.commerce.suggestions import Synonyms
from fourplane.foundation import clock
from fourplane.foundation.errors import Overloaded
from fourplane.service.call import CallPolicy, CallSettings
from fourplane.service.circuit_breaker import BreakerSettings
from fourplane.service.concurrency_limit import LimitSettings
from fourplane.state.contracts import Document, Found, Query, Search

if TYPE_CHECKING:
    from fourplane.commerce.catalog import Product

SEEN_S = 1.0  # a change is seen by searches within this
POLICY = CallSettings(
    deadline_s=3.0, limit=LimitSettings(initial=128, at_least=64), breaker=BreakerSettings(open_s=0.5, open_s_max=5.0)
)


class IndexSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long answers are kept, and how many."""

    kept_s: float = 0.3
    calm_s: float = 30.0
    kept_max: int = 2_000
    calls: CallSettings = POLICY


class IndexPreparing(Overloaded):
    """There is no index yet; it is being made."""

    code = "search_preparing"


class IndexStatistics(msgspec.Struct, frozen=True):
    """What was asked, what kept answers saved, and whether the index is whole."""

    asked: int
    kept: int
    ready: bool
    whole: bool


class CatalogIndex:
    """One search index and the answers it gave lately."""

    def __init__(
        self, settings: IndexSettings, *, search: Search, synonyms: Synonyms, in_stock: "Callable[[Product], bool]"
    ) -> None:
        self._settings = settings
        self._search = search
        self._synonyms = synonyms
        self._in_stock = in_stock
        self._kept: dict[bytes, tuple[float, Found]] = {}
        self._running: dict[bytes, asyncio.Future[None]] = {}
        self._key = msgspec.msgpack.Encoder().encode
        self._changed_s = clock.monotonic_s()
        self._asked = self._saved = 0
        self.ready = self.whole = False
        self.calls = CallPolicy("search", settings.calls)

    async def open(self) -> None:
        """Look whether an index was left behind."""
        self.ready = (await self._search.find(Query(limit=1))).total > 0

    def completed(self) -> None:
        """Every product has been written since the start."""
        self.ready = self.whole = True

    async def write(self, products: "Sequence[Product]") -> None:
        """Add or replace the active ones, take away the others; seen within a second."""
        self._changed_s = clock.monotonic_s()
        if documents := [self._document(product) for product in products if product.active]:
            await self._search.index(documents)
        if gone := [product.id for product in products if not product.active]:
            await self._search.remove(gone)

    async def refresh(self) -> None:
        """Everything written is seen from now on."""
        await self._search.refresh()
        self._kept.clear()
        self._changed_s = clock.monotonic_s()

    async def find(self, query: Query) -> Found:
        """The engine's answer, or the same one given a moment ago. Raises IndexPreparing while there is no index."""
        if not self.ready:
            raise IndexPreparing("the search is being prepared; try again soon", retry_after_s=1.0)
        self._asked += 1
        key = self._key(query)
        while True:
            kept = self._kept.get(key)
            if kept is not None and self._holds(kept[0], clock.monotonic_s()):
                self._saved += 1
                return kept[1]
            running = self._running.get(key)
            if running is None:
                return await self._ask(key, query)
            await asyncio.shield(running)

    def statistics(self) -> IndexStatistics:
        """What was asked so far."""
        return IndexStatistics(self._asked, self._saved, self.ready, self.whole)

    async def _ask(self, key: bytes, query: Query) -> Found:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._running[key] = done
        asked_s = clock.monotonic_s()
        try:
            found = await self.calls.run(lambda: self._search.find(query))
        finally:
            del self._running[key]
            done.set_result(None)
        self._kept.pop(key, None)
        if len(self._kept) >= self._settings.kept_max:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = (asked_s, found)
        return found

    def _holds(self, made_s: float, now_s: float) -> bool:
        settings, age_s = self._settings, now_s - made_s
        return age_s < settings.kept_s or (age_s < settings.calm_s and made_s > self._changed_s + SEEN_S)

    def _document(self, product: "Product") -> Document:
        said = " ".join([product.name, product.style, product.department, *product.categories, *product.aliases])
        values = [value for variant in product.variants for value in variant.options.values()]
        return Document(
            id=product.id,
            text={
                "title": product.name,
                "aliases": " ".join(
                    [product.style, product.department, *product.categories, *product.aliases, *self._synonyms.of(said)]
                ),
                "body": " ".join([product.description, *product.attributes.values(), *dict.fromkeys(values)]),
            },
            facets={
                "department": [product.department],
                "style": [product.style],
                "category": paths_of(product),
                "color": [product.attributes["color"]] if "color" in product.attributes else [],
                "in_stock": ["yes" if self._in_stock(product) else "no"],
                "on_sale": ["yes"] if any(variant.was for variant in product.variants) else [],
            },
            numbers={"price": product.least_price("USD") / 100, "popularity": float(product.popularity)},
        )


def paths_of(product: "Product") -> list[str]:
    """The product's place in the tree of categories and every place above it."""
    path = product.categories or [product.department]
    return [" > ".join(path[:depth]) for depth in range(1, len(path) + 1)]

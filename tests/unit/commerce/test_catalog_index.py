"""Search as the shop asks it: one question for many, answers kept for a moment, an honest no while there is no index."""

import asyncio

import pytest
from tests.journeys.commerce.rig import ADDRESS, COLD, CommerceSettings, shop

from fourplane.commerce.catalog import Catalog, CatalogSettings
from fourplane.commerce.catalog_index import CatalogIndex, IndexPreparing, IndexSettings
from fourplane.commerce.catalog_rows import draft
from fourplane.commerce.checkout import PlaceOrder
from fourplane.commerce.orders import Address
from fourplane.commerce.suggestions import Synonyms
from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError, Unavailable
from fourplane.state.contracts import Query
from fourplane.state.embedded.memory_search import MemorySearch

LAMP = draft({"name": "Copper Lamp", "category": "home", "price": "40", "current_stock": 5}).product
TABLE = draft({"name": "Copper Table", "category": "home", "price": "90", "current_stock": 5}).product


class Still(clock.MachineSource):
    now = 100.0

    def monotonic_s(self) -> float:
        return self.now


class Counted(MemorySearch):
    """Counts questions, and answers none while `broken`."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.broken = 0, False

    async def find(self, query):
        self.asked += 1
        await asyncio.sleep(0)
        if self.broken:
            raise Unavailable("the engine is away")
        return await super().find(query)


def made(search, **settings) -> CatalogIndex:
    return CatalogIndex(
        IndexSettings(**settings), search=search, synonyms=Synonyms(()), in_stock=lambda product: product is not None
    )


def test_the_same_question_is_asked_once_and_its_answer_kept_for_a_moment() -> None:
    async def main() -> None:
        source, search = Still(), Counted()
        with clock.installed(source):
            index = made(search)
            await index.write([LAMP])
            await index.open()
            source.now, search.asked = 102.0, 0
            answers = await asyncio.gather(*(index.find(Query(words="copper")) for _ in range(20)))
            assert {found.total for found in answers} == {1}
            assert search.asked == 1
            source.now = 120.0  # nothing has changed
            assert (await index.find(Query(words="copper"))).total == 1
            assert search.asked == 1
            await index.write([TABLE])
            source.now = 120.1  # the kept answer is older than the change
            assert (await index.find(Query(words="copper"))).total == 2
            source.now = 120.3
            await index.find(Query(words="copper"))
            assert search.asked == 2
            source.now = 120.5  # so near to a change no answer is kept for long
            await index.find(Query(words="copper"))
            assert search.asked == 3

    asyncio.run(main())


def test_an_engine_that_fails_is_left_alone_and_tried_again() -> None:
    async def main() -> None:
        source, search = Still(), Counted()
        with clock.installed(source):
            index = made(search)
            await index.write([LAMP])
            await index.open()
            search.broken, search.asked = True, 0
            for number in range(60):
                with pytest.raises(FourplaneError):
                    await index.find(Query(words=f"copper {number}"))
            assert search.asked <= 25
            assert index.calls.statistics().breaker == "open"
            search.broken = False
            source.now += 6.0
            for number in range(4):
                assert (await index.find(Query(words="copper", limit=number + 1))).total == 1
            assert index.calls.statistics().breaker == "closed"

    asyncio.run(main())


def test_without_an_index_a_search_says_so_and_a_reindex_leaves_newer_things_alone() -> None:
    async def main() -> None:
        async with shop(settings=CommerceSettings(generated_products=5, pages=COLD)) as s:
            search = MemorySearch()
            catalog = Catalog(CatalogSettings(batch=2), sql=s.stores._open["sql.commerce"], search=search)
            await catalog.open()
            with pytest.raises(IndexPreparing):
                await catalog.find(Query(limit=1))
            first = (await catalog.page("", 1))[0]
            sku = first.variants[0].sku

            async def levels(skus):
                if catalog._touched is not None and first.id not in catalog._touched:
                    await catalog.change_price(sku, "USD", 77_700)  # while everything is indexed anew
                return dict.fromkeys(skus, 1)

            assert await catalog.reindex(levels) == 5
            assert catalog.index.statistics().whole
            products, _ = await catalog.find(Query(sort="price", descending=True, limit=1))
            assert products[0].variants[0].prices["USD"] == 77_700
            catalog.close()

    asyncio.run(main())


def test_a_shop_sells_while_its_search_is_prepared() -> None:
    async def main() -> None:
        async with shop(settings=CommerceSettings(generated_products=5, pages=COLD)) as s:
            sku = await s.some_sku(stock=3)
            s.commerce.catalog.index.ready = False
            status, told = await s.call("GET", "/commerce/api/products?q=lamp")
            assert (status, told["error"]["code"]) == (503, "search_away")
            answer = await s.client.request("GET", "/commerce/search?q=lamp", headers={"accept": "text/html"})
            assert answer.status == 200
            assert b"part of the catalog" in answer.body
            assert (await s.order(await s.cart_with(sku), "attempt-1"))[0] == 201

    asyncio.run(main())


def test_a_silent_card_network_is_not_asked_again_and_again_and_nothing_is_held_for_it() -> None:
    async def main() -> None:
        async with shop(settings=CommerceSettings(generated_products=5, pages=COLD)) as s:
            sku = await s.some_sku(stock=50)
            payments, holds = s.commerce.payments, s.commerce.inventory
            for _ in range(20):
                payments.breaker.failed(clock.monotonic_s())
            cart = await s.cart_with(sku)
            before = holds.statistics().holds
            request = PlaceOrder(address=Address(**ADDRESS))
            with pytest.raises(Unavailable) as refused:
                await s.commerce.store.place(cart, "attempt-1", request)
            assert refused.value.reason == "payment_unavailable"
            assert holds.statistics().holds == before
            payments.breaker._until = 0.0  # its time is over: probes may pass
            assert (await s.commerce.store.place(cart, "attempt-1", request)).state == "paid"

    asyncio.run(main())

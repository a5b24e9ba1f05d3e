"""What answers when much is asked and something is away: objects at hand, one render for many, pages in every failure."""

import asyncio

import msgspec
import numpy as np
import pytest
from tests.journeys.commerce.rig import build, shop

from fourplane.commerce.app import CommerceSettings
from fourplane.commerce.catalog import Catalog, CatalogSettings, plain, shared_from
from fourplane.commerce.page_cache import PageCacheSettings
from fourplane.edge.waiting_room import WaitingRoom, WaitingRoomSettings
from fourplane.foundation.errors import NotFound, Unavailable
from fourplane.foundation.telemetry import Registry
from fourplane.service.key_ring import KeyRing
from fourplane.service.tokens import Signer

PAGES = (
    "/commerce/",
    "/commerce/search?q=lamp",
    "/commerce/search?department=books",
    "/commerce/p/{product}",
    "/commerce/cart",
)
WITH_A_CART = {"cookie": "fp_cart=" + "a" * 32, "accept": "text/html"}
CROWD = 12  # fewer than the edge lets run at once when the processor is busy


@pytest.mark.parametrize("box", ["catalog", "search", "cart", "order", "inventory", "payment", "shipping"])
@pytest.mark.parametrize("visitor", [{"accept": "text/html"}, WITH_A_CART])
def test_every_page_answers_while_a_dependency_is_away(box, visitor):
    async def main():
        async with shop(settings=CommerceSettings(generated_products=20, pages=PageCacheSettings(warm=20))) as s:
            product = (await s.commerce.catalog.page("", 1))[0]
            for path in PAGES:  # somebody was here before
                await s.client.request("GET", path.format(product=product.id), headers={"accept": "text/html"})
            getattr(s.commerce.store.boxes, box).switch.on = False
            for path in PAGES:
                answer = await s.client.request("GET", path.format(product=product.id), headers=visitor)
                kind = answer.headers.get("content-type", "")
                assert kind.startswith("text/html"), (box, path, answer.status)
                away = {"catalog": ("search", "cart"), "cart": ("cart",)}.get(box, ())
                if not any(word in path for word in away):
                    assert answer.status == 200, (box, path)
                    assert b"</html>" in answer.body

    asyncio.run(main())


def test_a_crawler_is_told_every_product_by_its_address_page_by_page():
    async def main():
        async with shop(settings=CommerceSettings(generated_products=20)) as s:
            products = [product.id for product in await s.commerce.catalog.page("", 100)]
            assert await s.commerce.catalog.ids("", 100) == products
            told = (await s.client.request("GET", "/commerce/sitemap.txt")).body.decode().split()
            rest = await s.client.request("GET", f"/commerce/sitemap.txt?after={products[11]}")
            return products, told, rest.body.decode().split()

    products, told, rest = asyncio.run(main())
    assert len(told) == len(products) >= 20
    assert all(address.endswith(f"/commerce/p/{product}") for address, product in zip(told, products, strict=True))
    assert rest == told[12:]


class Failing:
    """A store whose reads can be made to fail."""

    def __init__(self, store):
        self.store, self.broken = store, False

    def __getattr__(self, name):
        return getattr(self.store, name)

    async def read(self, *arguments):
        if self.broken:
            raise Unavailable("the store is away", code="away")
        return await self.store.read(*arguments)

    async def get(self, *arguments):
        if self.broken:
            raise Unavailable("the store is away", code="away")
        return await self.store.get(*arguments)

    async def find(self, *arguments):
        return await self.store.find(*arguments)


def test_pages_answer_while_the_stores_themselves_are_away():
    async def main():
        wrapped = []

        def wrap(store):
            wrapped.append(Failing(store))
            return wrapped[-1]

        s = await build(settings=CommerceSettings(generated_products=20), wrap=wrap)
        for method, path, handler in s.commerce.hot_routes():
            s.server.hot(method, path, handler)
        product = (await s.commerce.catalog.page("", 1))[0]
        path = f"/commerce/p/{product.id}"
        for one in ("/commerce/", path):
            assert (await s.client.request("GET", one)).status == 200
        for store in wrapped:
            store.broken = True
        for one in ("/commerce/", path):
            for _ in range(3):
                assert (await s.client.request("GET", one)).status == 200
        with_cart = await s.client.request("GET", path, headers=WITH_A_CART)
        assert with_cart.status == 200
        refused = await s.order("b" * 32, "attempt-1")
        assert refused[0] == 503
        for store in wrapped:
            store.broken = False
        s.client.close()
        await s.life.drain()
        await s.life.stop()
        s.gateway.close()

    asyncio.run(main())


def test_a_crowd_at_a_cold_page_renders_it_once():
    async def main():
        async with shop(settings=CommerceSettings(generated_products=20, pages=PageCacheSettings(warm=0))) as s:
            product = (await s.commerce.catalog.page("", 1))[0]
            slow = asyncio.Event()
            around = s.commerce.store.around

            async def waiting(one):
                await slow.wait()
                return await around(one)

            s.commerce.store.around = waiting
            asked = [asyncio.ensure_future(s.client.request("GET", f"/commerce/p/{product.id}")) for _ in range(CROWD)]
            async with asyncio.timeout(20):
                while s.commerce.storefront.shared < CROWD - 1:
                    await asyncio.sleep(0)
            slow.set()
            answers = await asyncio.gather(*asked)
            assert {answer.status for answer in answers} == {200}
            assert len({answer.body for answer in answers}) == 1

    asyncio.run(main())


def test_popular_pages_are_there_before_anybody_asks():
    async def main():
        async with shop(settings=CommerceSettings(generated_products=20, pages=PageCacheSettings(warm=10))) as s:
            for _ in range(2_000):
                if s.commerce.pages.statistics().pages >= 11:
                    break
                await asyncio.sleep(0)
            assert s.commerce.pages.statistics().pages == 11

    asyncio.run(main())


def test_999_of_1000_reads_of_a_zipf_crowd_are_answered_from_memory(tmp_path):
    async def main():
        async with shop(settings=CommerceSettings(generated_products=1_000, pages=PageCacheSettings(warm=0))) as s:
            catalog = Catalog(
                CatalogSettings(decoded_max=200), sql=s.stores._open["sql.commerce"], search=s.stores._open["search.commerce"],
                snapshot=tmp_path / "products.snapshot",
            )  # fmt: skip
            ids = [product.id for product in await s.commerce.catalog.page("", 1_000)]
            assert await catalog.renew_snapshot() == len(ids)
            numbers = np.minimum(np.random.default_rng(3).zipf(1.1, 20_000) - 1, len(ids) - 1)
            for number in numbers.tolist():
                await catalog.fetch(ids[number])
            told = catalog.statistics()
            assert told.decoded <= 200
            assert (told.hits + told.shared_hits) / len(numbers) >= 0.999
            catalog.close()

    asyncio.run(main())


def test_the_snapshot_never_shows_an_old_price(tmp_path):
    async def main():
        async with shop() as s:
            catalog = Catalog(
                CatalogSettings(decoded_max=1), sql=s.stores._open["sql.commerce"], search=s.stores._open["search.commerce"],
                snapshot=tmp_path / "products.snapshot",
            )  # fmt: skip
            first, second = await s.commerce.catalog.page("", 2)
            await catalog.renew_snapshot()
            await catalog.change_price(first.variants[0].sku, "USD", 4_242)
            await catalog.fetch(second.id)  # pushes the first one out of memory
            assert (await catalog.fetch(first.id)).variants[0].prices["USD"] == 4_242
            catalog.close()

    asyncio.run(main())


def test_a_table_that_an_older_release_left_is_written_anew(tmp_path):
    async def main():
        async with shop() as s:
            catalog = s.commerce.catalog
            product = (await catalog.page("", 1))[0]
            catalog._snapshot_path = path = tmp_path / "products.snapshot"
            path.write_bytes(b"FPSNAP01" + bytes(208))
            assert await catalog.fetch(product.id) == product
            assert await catalog.renew_snapshot() == catalog.products_count
            with shared_from(path) as table:
                assert plain(table.find(product.id)) == product

    asyncio.run(main())


def test_a_product_of_the_shared_table_is_told_and_changed_like_any_other(tmp_path):
    async def main():
        async with shop() as s:
            catalog = s.commerce.catalog
            product = (await catalog.page("", 1))[0]
            path = f"/commerce/api/products/{product.id}"
            before = await s.call("GET", path)
            catalog._snapshot_path = tmp_path / "products.snapshot"
            await catalog.renew_snapshot()
            catalog._decoded.clear()
            shared = await catalog.fetch(product.id)
            assert catalog.statistics().shared_hits == 1
            assert plain(shared) == product
            assert await s.call("GET", path) == before
            changed = await catalog.change_price(product.variants[0].sku, "USD", 4_242)
            assert changed == (await catalog.page("", 1))[0] == plain(changed)

    asyncio.run(main())


def test_a_shared_product_of_another_colour_has_another_picture_and_another_tag(tmp_path):
    async def main():
        async with shop() as s:
            catalog = s.commerce.catalog
            product = (await catalog.page("", 1))[0]
            catalog._snapshot_path = tmp_path / "products.snapshot"
            await catalog.renew_snapshot()
            catalog._decoded.clear()
            assert (await catalog.fetch(product.id)).image() == product.image()
            assert catalog.statistics().shared_hits == 1
            page, path = f"/commerce/p/{product.id}", f"/commerce/api/products/{product.id}"
            told, shown = await s.client.request("GET", path), await s.client.request("GET", page)
            drawn = await s.client.request("GET", product.image())
            assert product.image().encode() in shown.body

            painted = "red" if product.attributes.get("color") != "red" else "blue"
            changed = msgspec.structs.replace(product, attributes=product.attributes | {"color": painted})
            await catalog.put([changed])
            s.commerce.store.changed(changed)

            assert changed.image() != product.image()
            again = await s.client.request("GET", path, headers={"if-none-match": told.headers["etag"]})
            assert (again.status, again.headers["etag"] != told.headers["etag"]) == (200, True)
            assert msgspec.json.decode(again.body)["product"]["attributes"]["color"] == painted
            seen = await s.client.request("GET", page)
            assert changed.image().encode() in seen.body
            assert product.image().encode() not in seen.body
            fresh = await s.client.request("GET", changed.image())
            assert (fresh.status, fresh.headers["content-type"]) == (200, "image/svg+xml")
            assert fresh.body != drawn.body
            assert (await s.client.request("GET", product.image())).body == drawn.body, "an address keeps its picture"

    asyncio.run(main())


def test_every_box_of_the_diagrams_has_figures_and_the_door_tells_who_waits():
    async def main():
        async with shop() as s:
            room = WaitingRoom(WaitingRoomSettings(), Signer(KeyRing.in_memory()), Registry())
            s.commerce.behind(s.server.admission, room)
            boxes = {node.id: node.figures() for node in s.commerce.nodes()}
            assert {"PRIORITY", "SHED", "QUEUE", "CIRCUIT", "ELASTICSEARCH"} <= boxes.keys()
            assert boxes["QUEUE"].facts["waiting room"] == "closed"
            room.turn()
            room.turn(crowded=True)
            room.line.join()
            waiting = next(node for node in s.commerce.nodes() if node.id == "QUEUE").figures()
            assert (waiting.facts["waiting room"], waiting.facts["people waiting"]) == ("open", 1)
            assert boxes["CIRCUIT"].facts["card network"] == boxes["CIRCUIT"].facts["search"] == "closed"

    asyncio.run(main())


def test_what_does_not_exist_is_asked_once_in_a_while():
    async def main():
        async with shop() as s:
            before = s.commerce.catalog.statistics().misses
            for _ in range(20):
                with pytest.raises(NotFound):
                    await s.commerce.catalog.fetch("nothing-like-this")
            assert s.commerce.catalog.statistics().misses == before + 1

    asyncio.run(main())

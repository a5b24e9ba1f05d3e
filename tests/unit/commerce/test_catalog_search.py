"""What the shop's search finds, in which order, and how soon it knows."""

import asyncio

import pytest
from tests.journeys.commerce.rig import COLD, shop

from fourplane.commerce.app import CommerceSettings
from fourplane.state.contracts import Query
from fourplane.state.stores import StoresSettings

EMPTY = CommerceSettings(generated_products=1, pages=COLD)
ROWS = [
    {"name": "Copper Lamp", "category": "home > light", "price": "40", "current_stock": 5, "popularity": 1},
    {"name": "Oak Table", "category": "home > furniture", "price": "300", "current_stock": 5, "popularity": 900,
     "description": "Looks best under a copper lamp."},
    {"name": "Canvas Sneakers", "category": "shoes", "price": "50", "current_stock": 5, "popularity": 10, "was": "70"},
    {"name": "Leather Boots", "category": "shoes", "price": "150", "current_stock": 0, "popularity": 20},
    {"name": "Café Table", "category": "home > furniture", "price": "90", "current_stock": 5, "popularity": 30},
]  # fmt: skip
ENGINES = ["memory", "tantivy"]


async def found(s, words="", **more):
    products, result = await s.commerce.catalog.find(Query(words=words, **more))
    return [product.name for product in products], result


def in_a_shop(engine, tmp_path, body):
    async def main():
        stores = StoresSettings(
            sql="memory://",
            records="memory://",
            search=f"{engine}:///{tmp_path}" if engine != "memory" else "memory://",
        )
        async with shop(settings=EMPTY, stores_settings=stores) as s:
            await s.commerce.import_rows(ROWS)
            await body(s)

    asyncio.run(main())


@pytest.mark.parametrize("engine", ENGINES)
def test_titles_weigh_more_than_text(engine, tmp_path):
    async def body(s):
        names, _ = await found(s, "copper lamp")
        assert names[:2] == ["Copper Lamp", "Oak Table"]

    in_a_shop(engine, tmp_path, body)


WRITTEN = {
    "trainer": "Canvas Sneakers",  # a synonym
    "running shoe": "Canvas Sneakers",  # one of two words
    "snea": "Canvas Sneakers",  # the beginning of a word
    "snaekers": "Canvas Sneakers",  # letters exchanged
    "lether boots": "Leather Boots",  # a letter missing
    "CAFE": "Café Table",  # accents and capitals
}


@pytest.mark.parametrize("engine", ENGINES)
def test_people_find_it_however_they_write_it(engine, tmp_path):
    async def body(s):
        assert {words: (await found(s, words))[0][0] for words in WRITTEN} == WRITTEN

    in_a_shop(engine, tmp_path, body)


@pytest.mark.parametrize("engine", ENGINES)
def test_facets_count_filter_and_follow_the_tree(engine, tmp_path):
    async def body(s):
        _, result = await found(s, count_facets=("category", "on_sale"), limit=0)
        counts = result.facet_counts["category"]
        assert (counts["home"], counts["home > furniture"], counts["shoes"]) == (3, 2, 2)
        assert result.facet_counts["on_sale"]["yes"] >= 1
        names, result = await found(s, facets={"category": ["home > furniture"], "in_stock": ["yes"]}, sort="price")
        assert names == ["Café Table", "Oak Table"]
        names, _ = await found(s, sort="popularity", descending=True, limit=1, facets={"department": ["home", "shoes"]})
        assert names == ["Oak Table"]

    in_a_shop(engine, tmp_path, body)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_new_price_and_the_last_piece_reach_search(engine, tmp_path):
    async def body(s):
        product = next(one for one in await s.commerce.catalog.page("", 50) if one.name == "Copper Lamp")
        sku = product.variants[0].sku
        await s.commerce.catalog.change_price(sku, "USD", 99_900)
        await s.set_stock(sku, 0)
        await s.commerce.catalog.stock_changed({sku: 0})
        await s.stores._open["search.commerce"].refresh()
        names, _ = await found(s, sort="price", descending=True, limit=1, facets={"department": ["home", "shoes"]})
        assert names == ["Copper Lamp"]
        names, _ = await found(s, "copper", facets={"in_stock": ["yes"]})
        assert "Copper Lamp" not in names

    in_a_shop(engine, tmp_path, body)


def test_the_pause_until_search_knows_is_shorter_than_a_second():
    from fourplane.commerce.app import TELL_S
    from fourplane.state.embedded.search import SearchSettings

    assert TELL_S + SearchSettings().commit_s <= 0.6


HOSTILE = ('"', "title:x OR *", "a" * 257, "((((", "\\", "' OR 1=1 --", "\x00\x01", "🦆" * 50, "^" * 200, "*")


@pytest.mark.parametrize("engine", ENGINES)
def test_hostile_words_are_words(engine, tmp_path):
    async def body(s):
        for words in HOSTILE:
            asked = "".join(f"%{b:02x}" for b in words.encode())
            status, answer = await s.call("GET", f"/commerce/api/products?q={asked}")
            assert status == (200 if len(words) <= 256 else 400), (words, answer)

    in_a_shop(engine, tmp_path, body)


def test_the_tree_the_suggestions_and_several_products_at_once_are_in_the_api():
    async def main():
        async with shop(settings=EMPTY) as s:
            await s.commerce.import_rows(ROWS)
            _, tree = await s.call("GET", "/commerce/api/categories")
            counts = {tuple(one["path"]): one["products"] for one in tree["categories"]}
            assert counts["home",] == 3
            assert counts["home", "furniture"] == 2
            _, typed = await s.call("GET", "/commerce/api/suggestions?q=ta")
            assert typed["suggestions"][:2] == ["Oak Table", "Café Table"]
            ids = [one.id for one in await s.commerce.catalog.page("", 3)]
            _, several = await s.call("GET", f"/commerce/api/products?ids={ids[2]},{ids[0]},nobody")
            assert [one["id"] for one in several["products"]] == [ids[2], ids[0]]

    asyncio.run(main())

"""Files of any quality: good rows are taken, bad ones are named, and a dry run touches nothing."""

import asyncio
from pathlib import Path

import pytest
from tests.journeys.commerce.rig import shop

from fourplane.commerce.app import CommerceSettings
from fourplane.commerce.catalog import CatalogSettings
from fourplane.commerce.catalog_import import parse
from fourplane.commerce.catalog_index import IndexSettings
from fourplane.commerce.catalog_rows import draft
from fourplane.commerce.catalog_seed import enriched, generated_rows
from fourplane.foundation.errors import Rejected
from fourplane.state.contracts import Query

ROW = {"name": "Blue Mug", "category": "housewares", "price": "12.50", "current_stock": 4}
SHARED = Path(__file__).resolve().parents[4] / "shared" / "data" / "commerce" / "products.yaml"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": None}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"name": ["a"]}, "name"),
        ({"category": None}, "category"),
        ({"price": "-1"}, "price"),
        ({"price": "free"}, "price"),
        ({"price": "1.234"}, "price"),
        ({"price": "NaN"}, "price"),
        ({"price": "1e99"}, "price"),
        ({"current_stock": -1}, "current_stock"),
        ({"current_stock": "many"}, "current_stock"),
        ({"current_stock": 10**12}, "current_stock"),
        ({"sizes": "S S"}, "sizes"),
        ({"sizes": "<b>"}, "sizes"),
        ({"price_eur": "x"}, "price_eur"),
    ],
)
def test_a_bad_row_names_its_field(change: dict[str, object], field: str) -> None:
    with pytest.raises(Rejected) as refusal:
        draft(ROW | change)
    assert refusal.value.fields["field"] == field


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\xff\xfe", "yaml"),
        (b"a: [", "yaml"),
        (b"{", "json"),
        (b"7", "json"),
        (b"x", "exe"),
        (b"!!python/object:os.system {}", "yaml"),
    ],
)
def test_a_file_that_cannot_be_read_says_so(content: bytes, kind: str) -> None:
    with pytest.raises(Rejected):
        parse(content, kind)


def test_sizes_become_variants_that_share_the_stock() -> None:
    made = draft(ROW | {"sizes": "S M L", "current_stock": 10})
    assert [variant.options["size"] for variant in made.product.variants] == ["S", "M", "L"]
    assert sorted(made.stock.values()) == [3, 3, 4]


def test_the_same_row_makes_the_same_product() -> None:
    assert draft(ROW) == draft(dict(ROW))
    assert draft(ROW).product.variants[0].prices["USD"] == 1_250


def test_a_dry_run_reports_and_writes_nothing_then_the_import_does_and_a_second_changes_nothing() -> None:
    rows = [ROW, {"name": "Broken"}, ROW, ROW | {"name": "Red Mug", "price": "9.00"}]

    async def main() -> None:
        async with shop() as s:
            before = s.commerce.catalog.products_count
            report = await s.commerce.import_rows(rows, dry_run=True)
            assert (report.rows, report.taken, [(e.row, e.field) for e in report.errors]) == (
                4,
                2,
                [(2, "category"), (3, "id")],
            )
            assert s.commerce.catalog.products_count == before
            for _ in range(2):
                await s.commerce.import_rows(rows)
                assert s.commerce.catalog.products_count == before + 2
                await s.commerce.inventory.check()
            found, _ = await s.commerce.catalog.find(Query(words="mug"))
            assert {product.name for product in found} >= {"Blue Mug", "Red Mug"}
            levels = [await s.commerce.inventory.available(draft(ROW).product.variants[0].sku)]
            assert levels == [4]

    asyncio.run(main())


def test_stock_changes_reach_the_search() -> None:
    async def main() -> None:
        at_once = CommerceSettings(generated_products=5, catalog=CatalogSettings(index=IndexSettings(kept_s=0.0)))
        async with shop(settings=at_once) as s:
            await s.commerce.import_rows([ROW | {"current_stock": 1}])
            sku = draft(ROW).product.variants[0].sku
            cart = await s.cart_with(sku)
            query = Query(words="mug", facets={"in_stock": ["yes"]})
            assert (await s.commerce.catalog.find(query))[1].total == 1
            assert (await s.order(cart, "attempt-1"))[0] == 201
            await s.commerce.checkout.tell_stock()
            assert (await s.commerce.catalog.find(query))[1].total == 0

    asyncio.run(main())


def test_the_generated_catalog_is_believable_and_always_the_same() -> None:
    rows = generated_rows(300)
    assert rows == generated_rows(300)
    drafts = [draft(row) for row in rows]
    assert len({made.product.id for made in drafts}) == 300
    assert len({made.product.department for made in drafts}) == 15
    assert any(len(made.product.variants) > 1 for made in drafts)


@pytest.mark.skipif(not SHARED.is_file(), reason="the shared product list is not on this machine")
def test_every_row_of_the_shared_list_is_taken() -> None:
    drafts = [draft(enriched(row)) for row in parse(SHARED.read_bytes(), "yaml")]
    assert len(drafts) == len({made.product.id for made in drafts}) == 2_465

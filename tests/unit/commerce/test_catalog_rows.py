"""Options, variants, attributes and paths of a catalog row, and the way back into a file."""

import asyncio
import csv
import io

import msgspec
import pytest
from tests.journeys.commerce.rig import shop

from fourplane.commerce.catalog_import import export_rows, parse
from fourplane.commerce.catalog_rows import as_row, draft
from fourplane.foundation.errors import Rejected

ROW = {"name": "Trail Shirt", "category": "Clothing > Shirts", "price": "20.00", "current_stock": 10}


def test_every_combination_of_options_is_a_variant_and_they_share_the_stock():
    made = draft(ROW | {"options": {"size": ["S", "M"], "colour": ["red", "blue"]}})
    assert [variant.options for variant in made.product.variants] == [
        {"size": "S", "colour": "red"},
        {"size": "S", "colour": "blue"},
        {"size": "M", "colour": "red"},
        {"size": "M", "colour": "blue"},
    ]
    assert sorted(made.stock.values()) == [2, 2, 3, 3]


def test_a_table_has_a_column_per_option_and_attribute():
    made = draft(ROW | {"option_size": "S|M", "attribute_material": "wool", "attribute_fit": ""})
    assert [variant.options["size"] for variant in made.product.variants] == ["S", "M"]
    assert made.product.attributes == {"material": "wool"}


def test_named_variants_have_their_own_sku_price_and_stock():
    given = [
        {"sku": "A-1", "price": "5", "current_stock": 3},
        {"sku": "A-2", "options": {"size": "L"}, "price_eur": "7"},
    ]
    made = draft(ROW | {"variants": given})
    first, second = made.product.variants
    assert (first.sku, first.prices["USD"], made.stock["A-1"]) == ("A-1", 500, 3)
    assert (second.options, second.prices["USD"], second.prices["EUR"], made.stock["A-2"]) == (
        {"size": "L"},
        2_000,
        700,
        0,
    )


def test_a_price_is_in_the_currency_its_row_names():
    prices = draft(ROW | {"price": "39.90", "currency": "eur", "price_gbp": "34"}).product.variants[0].prices
    assert prices == {"USD": 4_299, "EUR": 3_990, "GBP": 3_400}
    assert draft(ROW | {"price": "10", "was": "12", "currency": "EUR"}).product.variants[0].was == {"EUR": 1_200}


def test_a_product_without_options_keeps_the_sku_of_its_row():
    made = draft(ROW | {"sku": "SHIRT-1"})
    assert [variant.sku for variant in made.product.variants] == ["SHIRT-1"]
    assert made.stock == {"SHIRT-1": 10}


def test_a_category_is_a_path_in_the_tree():
    product = draft(ROW).product
    assert (product.department, product.style, product.categories) == ("clothing", "shirts", ("clothing", "shirts"))
    assert draft(ROW | {"category": "books"}).product.categories == ()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"options": ["S"]}, "options"),
        ({"options": {"size": ["S", "S"]}}, "options"),
        ({"options": {"size": ["S", "s"]}}, "options"),
        ({"options": {"a": [str(n) for n in range(11)], "b": [str(n) for n in range(11)]}}, "options"),
        ({"variants": {"sku": "x"}}, "variants"),
        ({"variants": [{"sku": "<script>"}]}, "variants.sku"),
        ({"variants": [{"sku": "a"}, {"sku": "a"}]}, "variants.sku"),
        ({"variants": [{"sku": "a", "price": "-1"}]}, "variants.price"),
        ({"attributes": "wool"}, "attributes"),
        ({"category": " > "}, "category"),
        ({"category": "a > b > c > d > e > f > g"}, "category"),
        ({"tax_class": "none"}, "tax_class"),
        ({"currency": "CHF"}, "currency"),
        ({"sku": "a b"}, "sku"),
        ({"sku": "A-1", "options": {"size": ["S", "M"]}}, "sku"),
    ],
)
def test_a_wrong_option_names_its_field(change, field):
    with pytest.raises(Rejected) as refusal:
        draft(ROW | change)
    assert refusal.value.fields["field"] == field


def test_a_product_survives_the_way_out_and_in():
    made = draft(
        ROW | {"options": {"size": ["S", "M"]}, "attributes": {"material": "wool"}, "aliases": ["tee"], "was": "30"}
    )
    again = draft(msgspec.json.decode(msgspec.json.encode(as_row(made.product, made.stock))))
    assert again == made


@pytest.mark.parametrize("kind", ["yaml", "json", "jsonl", "csv"])
def test_an_exported_catalog_can_be_imported_again(kind):
    async def main():
        async with shop() as s:
            await s.commerce.import_rows([ROW | {"name": "=1+1", "description": '\'-said; she, "twice"'}])
            parts = [part async for part in export_rows(s.commerce.catalog, s.commerce.inventory, kind)]
            rows = parse(b"".join(parts), kind)
            assert len(rows) == s.commerce.catalog.products_count
            before = [await s.commerce.catalog.page("", 100), await s.commerce.inventory.levels()]
            report = await s.commerce.import_rows(rows)
            assert (report.taken, report.errors_total) == (len(rows), 0)
            assert [await s.commerce.catalog.page("", 100), await s.commerce.inventory.levels()] == before
            await s.commerce.inventory.check()

    asyncio.run(main())


def test_a_table_for_people_has_a_line_per_variant_and_no_formulas():
    async def main():
        async with shop() as s:
            await s.commerce.import_rows([ROW | {"name": "=cmd|' /C calc'!A0"}])
            parts = [part async for part in export_rows(s.commerce.catalog, s.commerce.inventory, "csv")]
            lines = list(csv.DictReader(io.StringIO(b"".join(parts).decode())))
            assert len(lines) == sum(len(one.variants) for one in await s.commerce.catalog.page("", 100))
            assert not any(line["name"].startswith("=") for line in lines)
            assert {line["price"] for line in lines if "cmd" in line["name"]} == {"20.00"}

    asyncio.run(main())


def test_a_sku_in_two_rows_is_refused_in_the_second():
    async def main():
        async with shop() as s:
            rows = [ROW | {"id": name, "name": name, "variants": [{"sku": "same"}]} for name in ("one", "two")]
            report = await s.commerce.import_rows(rows)
            assert report.taken == 1
            assert [(error.row, error.field) for error in report.errors] == [(2, "sku")]

    asyncio.run(main())

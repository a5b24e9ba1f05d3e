"""A product in the form in which the processes of a machine share it, and what many of them cost the garbage collector."""

import gc

import msgspec
import pytest

from fourplane.commerce.catalog import Product, SharedProduct, Variant, for_all, plain
from fourplane.commerce.catalog_rows import draft
from fourplane.commerce.suggestions import Suggestions

BARE = Product(1, "id", "", "", "", "", "", (Variant(""),))
FULL = Product(
    1, "tea-1", "t1", "Tea", "Green leaves.", "groceries", "tea",
    (Variant("S", {"size": "S"}, {"EUR": 100}, {"EUR": 120}, 90), Variant("L", {"size": "L"}, {"EUR": 300})),
    {"color": "green"}, ("leaves",), "reduced", 12, True, ("groceries", "tea"), ("a", "b"),
)  # fmt: skip
ROW = {"name": "A shirt", "category": "clothing > shirts", "price": "12.50", "sizes": "S M", "aliases": "top tee"}


def read(product):
    return msgspec.msgpack.decode(for_all(product), type=SharedProduct)


@pytest.mark.parametrize(
    "product",
    [
        BARE,
        FULL,
        draft(ROW).product,
        msgspec.structs.replace(BARE, variants=()),
        msgspec.structs.replace(BARE, images=("only",)),
        msgspec.structs.replace(FULL, active=False, images=(), categories=()),
    ],
)
def test_a_shared_product_is_the_same_product(product):
    shared = read(product)
    assert plain(shared) == product
    assert plain(product) is product
    assert all(type(variant) is Variant for variant in plain(shared).variants)
    assert msgspec.structs.astuple(read(plain(shared))) == msgspec.structs.astuple(shared)


def test_defaults_at_the_end_are_not_written():
    assert len(msgspec.msgpack.decode(for_all(BARE))) == 8
    assert msgspec.msgpack.decode(for_all(BARE))[7] == [[""]]
    assert len(for_all(FULL)) < len(msgspec.msgpack.encode(FULL)) // 2


@pytest.mark.parametrize("kept", [SharedProduct, Product])
def test_the_garbage_collector_has_nothing_to_look_at_in_products(kept):
    encoded = for_all(FULL) if kept is SharedProduct else msgspec.msgpack.encode(FULL)
    products = [msgspec.msgpack.decode(encoded, type=kept) for _ in range(50)]
    gc.collect()
    for product in products:
        parts = [product, *product.variants, *msgspec.structs.astuple(product)]
        parts += [value for variant in product.variants for value in msgspec.structs.astuple(variant)]
        assert not any(gc.is_tracked(part) for part in parts)


def test_nor_in_suggestions():
    suggestions = Suggestions({"coffee pot": 3, "tea pot": 2}, most=10)
    gc.collect()
    assert not any(gc.is_tracked(getattr(suggestions, name)) for name in suggestions.__slots__)

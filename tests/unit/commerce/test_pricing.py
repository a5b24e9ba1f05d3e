"""Prices explain themselves, discounts never exceed what they discount, sums add up."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourplane.commerce.pricing import MARKETS, Item, market_of, price
from fourplane.commerce.promotions import Promotion
from fourplane.foundation.errors import Rejected

US, DE = MARKETS["US"], MARKETS["DE"]


def test_tax_comes_on_top_in_an_exclusive_market() -> None:
    quote = price([Item("a", "Tea", 2, 1_000)], US, shipping=499)
    assert (quote.goods, quote.lines[0].tax, quote.tax) == (2_000, 165, 165 + 41)
    assert quote.total == 2_000 + 499 + 206


def test_tax_is_inside_the_price_in_an_inclusive_market() -> None:
    quote = price([Item("a", "Tea", 1, 1_190)], DE)
    assert (quote.total, quote.tax, quote.lines[0].net) == (1_190, 190, 1_000)


def test_every_line_says_why() -> None:
    rule = Promotion("p", "Ten off", "percent", percent=10)
    quote = price([Item("a", "Tea", 3, 1_000)], US, promotions=[rule])
    assert quote.lines[0].why == ["3 x $10.00", "Ten off: -3.00", "8.25 % tax added"]


def test_stackable_rules_apply_one_after_the_other() -> None:
    rules = [Promotion("a", "A", "percent", percent=10), Promotion("b", "B", "percent", percent=10)]
    assert price([Item("a", "Tea", 1, 1_000)], US, promotions=rules).discount == 190


def test_the_better_of_exclusive_and_stacked_rules_wins() -> None:
    rules = [Promotion("a", "A", "percent", percent=10), Promotion("b", "B", "percent", percent=30, stacks=False)]
    quote = price([Item("a", "Tea", 1, 1_000)], US, promotions=rules)
    assert (quote.discount, [d.promotion for d in quote.discounts]) == (300, ["b"])


def test_buy_two_get_one_free() -> None:
    rule = Promotion("a", "3 for 2", "buy_x_get_y", buy=2, free=1)
    assert price([Item("a", "Tea", 7, 100)], US, promotions=[rule]).discount == 200


def test_a_code_that_does_nothing_says_why() -> None:
    rules = [
        Promotion("a", "A", "order_fixed", amounts={"EUR": 500}, code="FIVE"),
        Promotion("b", "B", "percent", percent=5, code="OLD", ends_us=5),
        Promotion("c", "C", "percent", percent=5, code="BIG", least={"USD": 99_999}),
    ]
    quote = price([Item("a", "Tea", 1, 1_000)], US, promotions=rules, codes=["five", "old", "big", "none"], now_us=10)
    assert {r.code: r.reason for r in quote.refused_codes} == {
        "FIVE": "not valid in USD",
        "OLD": "expired",
        "BIG": "the order is too small for it",
        "NONE": "no such code",
    }


def test_free_shipping_comes_with_its_code() -> None:
    rule = Promotion("a", "Free delivery", "free_shipping", code="SHIP")
    quote = price([Item("a", "Tea", 1, 1_000)], DE, shipping=549, promotions=[rule], codes=["ship"])
    assert (quote.shipping, quote.shipping_discount, quote.total) == (0, 549, 1_000)


@pytest.mark.parametrize("country", ["", "XX", "usa", "U", "ÜS", "'; DROP TABLE orders; --"])
def test_a_country_we_do_not_know_is_refused(country: str) -> None:
    with pytest.raises(Rejected):
        market_of(country)


def test_a_line_of_nothing_is_refused() -> None:
    with pytest.raises(Rejected):
        price([Item("a", "Tea", 0, 100)], US)


RULES = st.builds(
    Promotion,
    id=st.sampled_from("abcdef"),
    name=st.just("rule"),
    kind=st.sampled_from(["percent", "fixed", "buy_x_get_y", "order_percent", "order_fixed", "free_shipping"]),
    percent=st.integers(0, 100),
    amounts=st.fixed_dictionaries({"USD": st.integers(0, 5_000), "EUR": st.integers(0, 5_000)}),
    buy=st.integers(0, 3),
    free=st.integers(0, 2),
    stacks=st.booleans(),
    rank=st.integers(0, 3),
)
ITEMS = st.builds(
    Item,
    sku=st.sampled_from("xyz"),
    name=st.just("thing"),
    quantity=st.integers(1, 20),
    unit=st.integers(0, 9_999),
    tax_class=st.sampled_from(["standard", "reduced", "zero"]),
)


@given(
    st.lists(ITEMS, min_size=1, max_size=5),
    st.lists(RULES, max_size=5, unique_by=lambda rule: rule.id),
    st.sampled_from([US, DE]),
    st.integers(0, 2_000),
)
@settings(max_examples=200, deadline=None)
def test_an_order_always_adds_up(items, rules, market, shipping) -> None:
    quote = price(items, market, shipping=shipping, promotions=rules)
    assert quote.total >= 0
    assert all(line.total >= 0 and 0 <= line.discount <= line.gross for line in quote.lines)
    assert quote.goods - quote.discount == sum(line.gross - line.discount for line in quote.lines)
    net = sum(line.net for line in quote.lines)
    if market.inclusive:
        assert quote.total == quote.goods - quote.discount + quote.shipping
        assert net + sum(line.tax for line in quote.lines) == quote.goods - quote.discount
    else:
        assert quote.total == net + quote.tax + quote.shipping
    assert quote.discount + quote.shipping_discount == sum(d.amount for d in quote.discounts)

"""Money: exact, one currency at a time, nothing lost in a division."""

from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourplane.foundation.errors import Rejected
from fourplane.foundation.money import AMOUNT_MAX, Money


@pytest.mark.parametrize(
    ("text", "currency", "minor"),
    [
        ("12.34", "EUR", 1234),
        ("12.3", "EUR", 1230),
        ("-0.05", "USD", -5),
        ("1200", "JPY", 1200),
        ("1.234", "KWD", 1234),
    ],
)
def test_text_of_each_currency_becomes_its_minor_units(text, currency, minor):
    assert Money.parse(text, currency) == Money(minor, currency)


@pytest.mark.parametrize(
    ("text", "currency"),
    [
        ("12.345", "EUR"),
        ("1.0", "JPY"),
        ("1,00", "EUR"),
        ("", "EUR"),
        ("1e3", "EUR"),
        ("12 USD", "EUR"),
        ("١٢", "EUR"),
        ("1", "XXQ"),
    ],
)
def test_what_is_not_an_amount_of_the_currency_is_refused(text, currency):
    with pytest.raises(Rejected):
        Money.parse(text, currency)


@given(st.integers(-AMOUNT_MAX, AMOUNT_MAX), st.sampled_from(["EUR", "JPY", "KWD", "CLF"]))
def test_text_reads_back_as_the_same_amount(minor, currency):
    money = Money(minor, currency)
    assert Money.parse(money.text()) == money
    assert Money.parse(money.digits(), currency) == money


def test_different_currencies_never_mix():
    for mix in (lambda a, b: a + b, lambda a, b: a - b, lambda a, b: a < b, lambda a, b: a >= b):
        with pytest.raises(Rejected) as refused:
            mix(Money(1, "EUR"), Money(1, "USD"))
        assert refused.value.reason == "currency_mismatch"


@given(st.integers(-(10**12), 10**12), st.lists(st.integers(0, 1000), min_size=1, max_size=12).filter(any))
def test_shares_add_up_and_each_is_within_one_unit_of_exact(minor, weights):
    shares = Money(minor, "EUR").allocate(weights)
    assert sum(share.amount for share in shares) == minor
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share.amount - Fraction(minor * weight, sum(weights))) < 1


def test_remaining_cents_go_to_the_earlier_of_equal_shares():
    assert [share.amount for share in Money(100, "EUR").allocate([1, 1, 1])] == [34, 33, 33]


def test_weights_that_divide_nothing_are_refused():
    for weights in ([0, 0], [2, -1]):
        with pytest.raises(Rejected):
            Money(5, "EUR").allocate(weights)


@pytest.mark.parametrize(
    ("rounding", "plus", "minus"),
    [("half_even", 2, -2), ("half_up", 3, -3), ("up", 3, -3), ("down", 2, -2), ("ceiling", 3, -2), ("floor", 2, -3)],
)
def test_a_half_cent_goes_where_the_rounding_says(rounding, plus, minus):
    assert Money(5, "EUR").times(Fraction(1, 2), rounding).amount == plus
    assert Money(-5, "EUR").times(Fraction(1, 2), rounding).amount == minus


def test_total_of_nothing_is_zero_of_its_currency():
    assert Money.total([], "EUR") == Money.zero("EUR")
    assert Money.total([Money(2, "EUR"), Money(3, "EUR")], "EUR") == Money(5, "EUR")


def test_decoding_checks_the_currency():
    with pytest.raises((Rejected, msgspec.ValidationError)):
        msgspec.json.decode(b'{"amount": 1, "currency": "???"}', type=Money)


def test_an_amount_past_the_bound_is_refused():
    with pytest.raises(Rejected):
        Money(AMOUNT_MAX, "EUR") + Money(1, "EUR")

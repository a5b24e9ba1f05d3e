"""What an order costs, line by line, with the reason for every figure.

Pure: the lines, the market, the promotions and the shipping rate go in, a `Quote` comes out; the same input gives the same
quote on every machine. All amounts are integers in minor units of one currency. Order of work: line price, promotions
(see promotions.py), tax per line (rounded half up per line, the rule most tax offices accept), shipping with its own tax.
In an inclusive market (most of Europe) the listed price contains the tax and the quote says how much; in an exclusive one
(the United States) the tax comes on top.

Invariants: total = sum(line.net) + sum(taxes) + shipping; no line and no total is negative; the lines' discounts add up to the
order's. Cost: about 20 us for three lines.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec

from fourplane.commerce.promotions import Discount, Promotion, Refusal, apply_promotions
from fourplane.foundation.errors import Rejected

TaxClass = Literal["standard", "reduced", "zero"]


class Market(msgspec.Struct, frozen=True):
    """Where something is sold: currency, whether listed prices contain tax, and the rates per class in 1/100 percent."""

    country: str
    name: str
    currency: str
    inclusive: bool
    standard: int
    reduced: int
    zone: str

    def rate(self, tax_class: str) -> int:
        """Basis points of a tax class."""
        return {"standard": self.standard, "reduced": self.reduced}.get(tax_class, 0)


MARKETS: dict[str, Market] = {
    market.country: market
    for market in (
        Market("US", "United States", "USD", inclusive=False, standard=825, reduced=200, zone="us"),
        Market("GB", "United Kingdom", "GBP", inclusive=True, standard=2000, reduced=0, zone="europe"),
        Market("DE", "Germany", "EUR", inclusive=True, standard=1900, reduced=700, zone="europe"),
        Market("FR", "France", "EUR", inclusive=True, standard=2000, reduced=550, zone="europe"),
        Market("PT", "Portugal", "EUR", inclusive=True, standard=2300, reduced=600, zone="europe"),
        Market("ES", "Spain", "EUR", inclusive=True, standard=2100, reduced=1000, zone="europe"),
        Market("IT", "Italy", "EUR", inclusive=True, standard=2200, reduced=1000, zone="europe"),
        Market("NL", "Netherlands", "EUR", inclusive=True, standard=2100, reduced=900, zone="europe"),
        Market("CA", "Canada", "USD", inclusive=False, standard=1300, reduced=500, zone="us"),
    )
}
CURRENCIES: dict[str, str] = {"USD": "$", "EUR": "€", "GBP": "£"}


def market_of(country: str) -> Market:
    """The market of a two-letter country; Rejected where the store does not sell."""
    market = MARKETS.get(country.upper()[:2]) if country.isascii() else None
    if market is None or len(country) != 2:
        raise Rejected(
            f"we do not deliver to {country[:20]!r} yet",
            code="unknown_country",
            country=country[:20],
            known=", ".join(sorted(MARKETS)),
        )
    return market


class Item(msgspec.Struct, frozen=True):
    """One line to be priced: a variant at its current price."""

    sku: str
    name: str
    quantity: int
    unit: int
    tax_class: str = "standard"
    category: str = ""
    weight_g: int = 0


class PricedLine(msgspec.Struct, frozen=True):
    """One line with everything that made its price."""

    sku: str
    name: str
    quantity: int
    unit: int
    gross: int  # unit x quantity, as listed
    discount: int
    net: int  # without tax
    tax: int
    total: int
    tax_rate: int  # basis points
    why: list[str] = []


class Quote(msgspec.Struct, frozen=True):
    """What the buyer pays, explained."""

    currency: str
    country: str
    inclusive: bool
    lines: list[PricedLine]
    goods: int  # listed prices
    discount: int
    tax: int
    shipping: int  # with its tax where inclusive
    shipping_discount: int
    total: int
    discounts: list[Discount] = []
    refused_codes: list[Refusal] = []


def price(
    items: Sequence[Item],
    market: Market,
    *,
    shipping: int = 0,
    promotions: Sequence[Promotion] = (),
    codes: Sequence[str] = (),
    now_us: int = 0,
) -> Quote:
    """Price an order; raises Rejected for an empty or impossible one."""
    for item in items:
        if item.quantity < 1 or item.unit < 0:
            raise Rejected(f"{item.sku} cannot be priced", code="bad_quantity", sku=item.sku)
    sums = [item.unit * item.quantity for item in items]
    outcome = apply_promotions(
        items,
        promotions,
        currency=market.currency,
        codes=codes,
        shipping=shipping,
        now_us=now_us,
    )
    lines = [
        _line(item, gross, market, outcome.by_line[index], outcome.why[index])
        for index, (item, gross) in enumerate(zip(items, sums, strict=True))
    ]
    shipping_paid = shipping - outcome.shipping
    shipping_tax = _tax(shipping_paid, market.standard, inclusive=market.inclusive)
    tax = sum(line.tax for line in lines) + shipping_tax
    total = sum(line.total for line in lines) + shipping_paid + (0 if market.inclusive else shipping_tax)
    quote = Quote(
        currency=market.currency,
        country=market.country,
        inclusive=market.inclusive,
        lines=lines,
        goods=sum(sums),
        discount=sum(outcome.by_line),
        tax=tax,
        shipping=shipping_paid,
        shipping_discount=outcome.shipping,
        total=total,
        discounts=outcome.discounts,
        refused_codes=outcome.refused,
    )
    assert total >= 0, "an order that would pay the buyer"
    return quote


def _line(item: Item, gross: int, market: Market, discount: int, why: list[str]) -> PricedLine:
    paid = gross - discount
    assert paid >= 0, "a discount larger than its line"
    rate = market.rate(item.tax_class)
    tax = _tax(paid, rate, inclusive=market.inclusive)
    reasons = [f"{item.quantity} x {amount_text(item.unit, market.currency)}", *why]
    reasons.append(f"{rate / 100:g} % tax {'included' if market.inclusive else 'added'}")
    return PricedLine(
        sku=item.sku,
        name=item.name,
        quantity=item.quantity,
        unit=item.unit,
        gross=gross,
        discount=discount,
        net=paid - tax if market.inclusive else paid,
        tax=tax,
        total=paid if market.inclusive else paid + tax,
        tax_rate=rate,
        why=reasons,
    )


def _tax(amount: int, rate: int, *, inclusive: bool) -> int:
    """Tax in or on `amount`, half a minor unit rounds up."""
    if inclusive:
        whole = 10_000 + rate
        return amount - (20_000 * amount + whole) // (2 * whole)
    return (amount * rate + 5_000) // 10_000


def amount_text(amount: int, currency: str) -> str:
    """`$1,234.50` as a shop writes it."""
    sign = "-" if amount < 0 else ""
    whole, rest = divmod(abs(amount), 100)
    return f"{sign}{CURRENCIES.get(currency, currency + ' ')}{whole:,}.{rest:02d}"

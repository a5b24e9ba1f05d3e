"""Amounts of money: whole minor units of one ISO 4217 currency, never a float.

Sums of different currencies are refused, a product names its rounding, and a division into shares loses nothing:
`allocate` gives every share its floor and hands the remaining units out by the largest remainder, so the shares add
up to the amount to the last cent. Amounts stay within 2**53 - 1, which JavaScript and every store keep exactly.
"""

import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Literal

import msgspec

from fourplane.foundation.errors import Rejected

AMOUNT_MAX = 2**53 - 1

Rounding = Literal["half_even", "half_up", "up", "down", "ceiling", "floor"]

_CODES = frozenset(
    "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CLF CLP "
    "CNY COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL HTG HUF "
    "IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL MGA MKD "
    "MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB "
    "RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD TZS UAH UGX USD "
    "UYU UZS VED VES VND VUV WST XAF XCD XOF XPF YER ZAR ZMW ZWG".split()
)
_DIGITS = dict.fromkeys("BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF".split(), 0)
_DIGITS |= dict.fromkeys("BHD IQD JOD KWD LYD OMR TND".split(), 3) | {"CLF": 4}
_TEXT = re.compile(r"([+-]?)(\d{1,16})(?:\.(\d{1,4}))?", re.ASCII)


class Money(msgspec.Struct, frozen=True):
    """`amount` minor units (cents, fils, whole yen) of `currency`; may be negative. Bad values raise Rejected."""

    amount: int
    currency: str

    def __post_init__(self) -> None:
        if self.currency not in _CODES:
            raise Rejected(f"no such currency: {self.currency[:8]!r}", code="bad_currency")
        if not -AMOUNT_MAX <= self.amount <= AMOUNT_MAX:
            raise Rejected(f"an amount past {AMOUNT_MAX} minor units", code="bad_amount")

    @classmethod
    def parse(cls, text: str, currency: str = "") -> "Money":
        """`("12.34", "EUR")` or `("12.34 EUR")`; more decimals than the currency has, or anything else, is Rejected."""
        number, _, named = text.strip().partition(" ")
        code = named.strip() or currency
        match = _TEXT.fullmatch(number)
        if match is None or (currency and code != currency):
            raise Rejected(f"not an amount of {currency or 'money'}: {text[:40]!r}", code="bad_amount")
        sign, whole, part = match[1], match[2], match[3] or ""
        digits = _DIGITS.get(code, 2)
        if len(part) > digits:
            raise Rejected(f"{code} has {digits} decimals, not {len(part)}: {text[:40]!r}", code="bad_amount")
        minor = int(whole + part.ljust(digits, "0"))
        return cls(-minor if sign == "-" else minor, code)

    @classmethod
    def zero(cls, currency: str) -> "Money":
        return cls(0, currency)

    @classmethod
    def total(cls, amounts: "Iterable[Money]", currency: str) -> "Money":
        """The sum of `amounts`, zero of `currency` for none; all must be of that currency."""
        return sum(amounts, start=cls(0, currency))

    def digits(self) -> str:
        """The number alone: `12.34`, `-0.05`, `1200` for yen."""
        places = _DIGITS.get(self.currency, 2)
        sign, minor = ("-", -self.amount) if self.amount < 0 else ("", self.amount)
        if places == 0:
            return f"{sign}{minor}"
        whole, part = divmod(minor, 10**places)
        return f"{sign}{whole}.{part:0{places}d}"

    def text(self) -> str:
        """`12.34 EUR`; `parse` reads it back."""
        return f"{self.digits()} {self.currency}"

    def __add__(self, other: "Money") -> "Money":
        self._same(other)
        return Money(self.amount + other.amount, self.currency)

    def __sub__(self, other: "Money") -> "Money":
        self._same(other)
        return Money(self.amount - other.amount, self.currency)

    def __neg__(self) -> "Money":
        return Money(-self.amount, self.currency)

    def negate(self) -> "Money":
        """The same amount the other way round: a refund of a charge."""
        return -self

    def __lt__(self, other: "Money") -> bool:
        self._same(other)
        return self.amount < other.amount

    def __le__(self, other: "Money") -> bool:
        self._same(other)
        return self.amount <= other.amount

    def __gt__(self, other: "Money") -> bool:
        self._same(other)
        return self.amount > other.amount

    def __ge__(self, other: "Money") -> bool:
        self._same(other)
        return self.amount >= other.amount

    def times(self, factor: Fraction | int, rounding: Rounding = "half_even") -> "Money":
        """The amount times an exact factor, rounded to minor units as `rounding` says."""
        return Money(_rounded(Fraction(self.amount) * factor, rounding), self.currency)

    def allocate(self, weights: Sequence[int | Fraction]) -> "list[Money]":
        """Shares in proportion to `weights` that add up exactly; ties of the remainder go to the earlier share."""
        total = sum(weights)
        if total <= 0 or min(weights) < 0:
            raise Rejected("weights must not be negative, and one must be positive", code="bad_weights")
        exact = [Fraction(self.amount) * weight / total for weight in weights]
        floors = [share.numerator // share.denominator for share in exact]
        by_remainder = sorted(range(len(exact)), key=lambda place: (floors[place] - exact[place], place))
        for place in by_remainder[: self.amount - sum(floors)]:
            floors[place] += 1
        return [Money(share, self.currency) for share in floors]

    def _same(self, other: "Money") -> None:
        if self.currency != other.currency:
            raise Rejected(f"{self.currency} and {other.currency} do not mix", code="currency_mismatch")


def _rounded(exact: Fraction, rounding: Rounding) -> int:
    floor = exact.numerator // exact.denominator
    rest = exact - floor
    if rest == 0:
        return floor
    match rounding:
        case "floor":
            return floor
        case "ceiling":
            return floor + 1
        case "down":
            return floor if exact > 0 else floor + 1
        case "up":
            return floor + 1 if exact > 0 else floor
        case "half_even":
            return round(exact)
        case "half_up":  # half away from zero, as shops and tax offices mean it
            half = Fraction(1, 2)
            return floor + 1 if rest > half or (rest == half and exact > 0) else floor

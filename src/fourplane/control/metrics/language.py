"""The query language: select, group, rate, quantile, arithmetic. One page, a strict subset of what PromQL users write.

    fourplane_edge_requests_total{system="commerce", status=~"5.."}    increase of a counter in each step, or a gauge's value
    rate(x[5m])  increase(x[5m])        per second, and in all, over the last five minutes (without [..]: over one step)
    quantile(0.99, x[5m]) by (route)    of a histogram, from its `x_bucket` series
    over(0.5, x[5m]) by (route)         how many observations of a histogram were above 0.5
    sum(e) by (a, b)   avg min max count   top(5, e)
    e + e   e - e   e * e   e / e       numbers, or series whose labels are the same; one series without labels fits all
    e > 0.01   e < 1   e >= 2   e <= 2    only the points for which it holds

Bounded: TEXT_MAX characters, DEPTH_MAX nested expressions. Errors say where.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

import msgspec

from fourplane.control.metrics.series import Matcher
from fourplane.foundation.errors import Rejected

TEXT_MAX = 2_000
DEPTH_MAX = 30
PARSED_MAX = 512  # texts whose expressions are kept: the same few are asked every second
RANGE_S_MAX = 90 * 86_400
UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?![smhd\w]))|(?P<range>\[\s*\d+\s*[smhd]\s*\])"
    r'|(?P<name>[A-Za-z_:][\w:]*)|(?P<text>"(?:[^"\\]|\\.)*")|(?P<sign>=~|!~|!=|>=|<=|[-+*/(){},=<>]))'
)

Aggregate = Literal["sum", "avg", "min", "max", "count"]
AGGREGATES: tuple[Aggregate, ...] = ("sum", "avg", "min", "max", "count")
Sign = Literal["+", "-", "*", "/", ">", "<", ">=", "<="]


class Number(msgspec.Struct, frozen=True):
    """A constant."""

    value: float


class Selector(msgspec.Struct, frozen=True):
    """Series by name and labels, over `range_s` seconds (0: one step)."""

    name: str
    matchers: tuple[Matcher, ...] = ()
    range_s: int = 0


class Rate(msgspec.Struct, frozen=True):
    """Increase over the selector's range, `per_second` or in all."""

    of: Selector
    per_second: bool


class Quantile(msgspec.Struct, frozen=True):
    """A quantile of a histogram, over all series of a group together."""

    share: float
    of: Selector
    by: tuple[str, ...] = ()


class Over(msgspec.Struct, frozen=True):
    """How many observations of a histogram lie above an edge, over all series of a group together."""

    edge: float
    of: Selector
    by: tuple[str, ...] = ()


class Grouped(msgspec.Struct, frozen=True):
    """Series of a group as one."""

    function: Aggregate
    of: "Expression"
    by: tuple[str, ...] = ()


class Top(msgspec.Struct, frozen=True):
    """The `count` series with the highest mean."""

    count: int
    of: "Expression"


class Operation(msgspec.Struct, frozen=True):
    """Arithmetic, or a comparison that drops points."""

    sign: Sign
    left: "Expression"
    right: "Expression"


Expression = Number | Selector | Rate | Quantile | Over | Grouped | Top | Operation


class _Token(msgspec.Struct, frozen=True):
    kind: str
    text: str
    at: int


@lru_cache(maxsize=PARSED_MAX)
def parse(text: str) -> Expression:
    """The expression written in `text`. Raises Rejected with the place of what is wrong."""
    if len(text) > TEXT_MAX:
        raise Rejected(f"a query has at most {TEXT_MAX} characters", code="bad_query")
    parser = _Parser(list(_tokens(text)))
    expression = parser.comparison(0)
    if parser.peek().kind != "end":
        raise parser.unexpected("an operator or the end")
    return expression


def _tokens(text: str) -> Iterator[_Token]:
    at = 0
    while at < len(text) and text[at:].strip():
        match = TOKEN.match(text, at)
        if match is None:
            raise Rejected(f"{text[at:].strip()[:12]!r} at {at} is nothing a query may hold", code="bad_query")
        kind = str(match.lastgroup)
        yield _Token(kind, match.group(kind), match.start(kind))
        at = match.end()
    yield _Token("end", "", len(text))


class _Parser:
    """Recursive descent: comparison > sum > product > unit."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._next = 0

    def peek(self) -> _Token:
        return self._tokens[self._next]

    def unexpected(self, wanted: str) -> Rejected:
        token = self.peek()
        found = f"{token.text!r}" if token.text else "the end"
        return Rejected(f"expected {wanted} at {token.at}, found {found}", code="bad_query")

    def comparison(self, depth: int) -> Expression:
        if depth > DEPTH_MAX:
            raise Rejected(f"a query nests at most {DEPTH_MAX} expressions", code="bad_query")
        return self._chain(depth, (">", "<", ">=", "<="), self._sum)

    def _sum(self, depth: int) -> Expression:
        return self._chain(depth, ("+", "-"), self._product)

    def _product(self, depth: int) -> Expression:
        return self._chain(depth, ("*", "/"), self._unit)

    def _chain(self, depth: int, signs: tuple[Sign, ...], below) -> Expression:  # type: ignore[no-untyped-def] # noqa: ANN001
        left: Expression = below(depth)
        while self.peek().kind == "sign" and self.peek().text in signs:
            taken = self._take().text
            sign = next(one for one in signs if one == taken)
            left = Operation(sign, left, below(depth))
        return left

    def _unit(self, depth: int) -> Expression:
        token = self.peek()
        if token.kind == "number":
            return Number(float(self._take().text))
        if token.text == "-":
            self._take()
            return Operation("-", Number(0.0), self._unit(depth + 1))
        if token.text == "(":
            self._take()
            inner = self.comparison(depth + 1)
            self._expect(")")
            return inner
        if token.kind != "name":
            raise self.unexpected("a metric, a function or a number")
        name = self._take().text
        if name in AGGREGATES or name in {"rate", "increase", "quantile", "over", "top"}:
            return self._function(name, depth)
        return self._selector(name)

    def _function(self, name: str, depth: int) -> Expression:
        by = self._by()
        self._expect("(")
        match name:
            case "rate" | "increase":
                selector = self._selector(self._name())
                self._expect(")")
                return Rate(selector, per_second=name == "rate")
            case "quantile" | "over":
                number = self._number(0.0, 1.0 if name == "quantile" else 1e12)
                self._expect(",")
                selector = self._selector(self._name())
                self._expect(")")
                made = Quantile if name == "quantile" else Over
                return made(number, selector, by or self._by())
            case "top":
                count = int(self._number(1.0, 1_000.0))
                self._expect(",")
                inner = self.comparison(depth + 1)
                self._expect(")")
                return Top(count, inner)
        inner = self.comparison(depth + 1)
        self._expect(")")
        function = next(one for one in AGGREGATES if one == name)
        return Grouped(function, inner, by or self._by())

    def _by(self) -> tuple[str, ...]:
        if self.peek().text != "by":
            return ()
        self._take()
        self._expect("(")
        labels = [self._name()]
        while self.peek().text == ",":
            self._take()
            labels.append(self._name())
        self._expect(")")
        return tuple(labels)

    def _selector(self, name: str) -> Selector:
        matchers: list[Matcher] = []
        if self.peek().text == "{":
            self._take()
            while self.peek().text != "}":
                matchers.append(self._matcher())
                if self.peek().text != ",":
                    break
                self._take()
            self._expect("}")
        range_s = 0
        if self.peek().kind == "range":
            inside = self._take().text[1:-1].strip()
            range_s = int(inside[:-1].strip()) * UNITS[inside[-1]]
            if not 0 < range_s <= RANGE_S_MAX:
                raise Rejected("a range is between 1 s and 90 d", code="bad_query")
        return Selector(name, tuple(matchers), range_s)

    def _matcher(self) -> Matcher:
        label = self._name()
        token = self._take()
        if token.kind != "sign" or token.text not in {"=", "!=", "=~", "!~"}:
            self._next -= 1
            raise self.unexpected("= or != or =~ or !~")
        if self.peek().kind != "text":
            raise self.unexpected('a text in "quotes"')
        text = re.sub(r"\\(.)", r"\1", self._take().text[1:-1]) if "~" not in token.text else self._take().text[1:-1]
        return Matcher(label, next(one for one in ("=", "!=", "=~", "!~") if one == token.text), text)

    def _number(self, least: float, most: float) -> float:
        if self.peek().kind != "number" or not least <= float(self.peek().text) <= most:
            raise self.unexpected(f"a number from {least:g} to {most:g}")
        return float(self._take().text)

    def _name(self) -> str:
        if self.peek().kind != "name":
            raise self.unexpected("a name")
        return self._take().text

    def _expect(self, sign: str) -> None:
        if self.peek().text != sign:
            raise self.unexpected(f"{sign!r}")
        self._take()

    def _take(self) -> _Token:
        token = self._tokens[self._next]
        if token.kind != "end":
            self._next += 1
        return token

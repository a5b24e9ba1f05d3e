"""Which discounts an order gets, how they stack, and why a code was refused.

Rules come in classes. Within one class the best exclusive rule stands alone, or all stackable ones apply one after the other in
order of `rank` (each to what the one before left), whichever saves the buyer more. Line rules (percentage, fixed per
piece, buy-x-get-y) run before order rules (percentage or fixed on the rest, spread over the lines by largest remainder, so
that tax per line stays right), free shipping last. A discount never exceeds what is left of a line.

Limited codes (`uses_max`, `uses_per_buyer`) are only judged here by date and currency; whether a use is still free is decided
inside the checkout's transaction, where it is safe in a race (see orders.py).

Pure; cost about 2 us per rule and line.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

Kind = Literal["percent", "fixed", "buy_x_get_y", "order_percent", "order_fixed", "free_shipping"]
_LINE_KINDS = ("percent", "fixed", "buy_x_get_y")
_GROUP: dict[Kind, int] = {
    "percent": 0,
    "fixed": 0,
    "buy_x_get_y": 0,
    "order_percent": 1,
    "order_fixed": 1,
    "free_shipping": 2,
}


class Promotion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rule. Amounts are minor units by currency; empty `categories` and `skus` mean everything."""

    id: str
    name: str
    kind: Kind
    percent: int = 0
    amounts: dict[str, int] = {}
    code: str = ""
    categories: frozenset[str] = frozenset()
    skus: frozenset[str] = frozenset()
    buy: int = 0
    free: int = 0
    least: dict[str, int] = {}  # the order's goods must reach this
    stacks: bool = True
    rank: int = 100
    starts_us: int = 0
    ends_us: int = 0  # 0 = open
    uses_max: int = 0  # 0 = unlimited
    uses_per_buyer: int = 0


class Buyable(Protocol):
    """What a rule needs to know of a line."""

    @property
    def sku(self) -> str: ...
    @property
    def category(self) -> str: ...
    @property
    def quantity(self) -> int: ...
    @property
    def unit(self) -> int: ...


class Discount(msgspec.Struct, frozen=True):
    """One rule that applied, and how much it saved."""

    promotion: str
    name: str
    code: str
    amount: int


class Refusal(msgspec.Struct, frozen=True):
    """A code that did nothing, and why."""

    code: str
    reason: str


class Outcome(msgspec.Struct):
    """Discount per line, on shipping, and the story of each."""

    by_line: list[int]
    why: list[list[str]]
    shipping: int = 0
    discounts: list[Discount] = []
    refused: list[Refusal] = []


def apply_promotions(
    lines: Sequence[Buyable],
    promotions: Sequence[Promotion],
    *,
    currency: str,
    codes: Sequence[str] = (),
    shipping: int = 0,
    now_us: int = 0,
) -> Outcome:
    """The best legal combination for the buyer."""
    outcome = Outcome([0] * len(lines), [[] for _ in lines], 0, [], [])
    if not promotions and not codes:
        return outcome
    goods = sum([line.quantity * line.unit for line in lines])
    entered = {code.strip().upper() for code in codes} if codes else frozenset()
    groups: tuple[list[Promotion], list[Promotion], list[Promotion]] = ([], [], [])
    for rule in promotions:
        if rule.code and rule.code not in entered:
            continue
        reason = _unfit(rule, lines, goods, currency, now_us)
        if not reason:
            groups[_GROUP[rule.kind]].append(rule)
        elif rule.code:
            outcome.refused.append(Refusal(rule.code, reason))
    if entered:
        known = {rule.code for rule in promotions if rule.code}
        outcome.refused += [Refusal(code, "no such code") for code in sorted(entered - known)]
    for rules in groups:
        if rules:
            rules.sort(key=_order)
            _run(rules, lines, outcome, currency, shipping)
    return outcome


def _order(rule: Promotion) -> tuple[int, str]:
    return (rule.rank, rule.id)


def _unfit(rule: Promotion, lines: Sequence[Buyable], goods: int, currency: str, now_us: int) -> str:
    if now_us < rule.starts_us:
        return "not yet valid"
    if rule.ends_us and now_us >= rule.ends_us:
        return "expired"
    if rule.kind in ("fixed", "order_fixed") and currency not in rule.amounts:
        return f"not valid in {currency}"
    if rule.least and goods < rule.least.get(currency, 1 << 62):
        return "the order is too small for it"
    if (rule.skus or rule.categories) and not any(_covers(rule, line) for line in lines):
        return "nothing in the cart qualifies"
    return ""


def _covers(rule: Promotion, line: Buyable) -> bool:
    if rule.skus and line.sku not in rule.skus:
        return False
    return not rule.categories or line.category in rule.categories


def _run(rules: list[Promotion], lines: Sequence[Buyable], outcome: Outcome, currency: str, shipping: int) -> None:
    """Apply the better of: all stackable rules in turn, or one exclusive rule alone."""
    if len(rules) == 1 or all(rule.stacks for rule in rules):
        for rule in rules:
            _apply(rule, lines, outcome, currency, shipping)
        _refuse_idle(rules, outcome)
        return
    choices = [[rule for rule in rules if rule.stacks], *([rule] for rule in rules if not rule.stacks)]
    best: Outcome | None = None
    for choice in choices:
        if not choice:
            continue
        trial = Outcome(list(outcome.by_line), [list(w) for w in outcome.why], outcome.shipping, [*outcome.discounts])
        for rule in choice:
            _apply(rule, lines, trial, currency, shipping)
        if best is None or _saved(trial) > _saved(best):
            best = trial
    if best is None:
        return
    outcome.by_line, outcome.why, outcome.shipping = best.by_line, best.why, best.shipping
    outcome.discounts = best.discounts
    _refuse_idle(rules, outcome)


def _refuse_idle(rules: list[Promotion], outcome: Outcome) -> None:
    """Say of every code that saved nothing that others were better."""
    if not any(rule.code for rule in rules):
        return
    applied = {discount.promotion for discount in outcome.discounts}
    for rule in rules:
        if rule.code and rule.id not in applied:
            outcome.refused.append(Refusal(rule.code, "cannot be combined with a better offer"))


def _saved(outcome: Outcome) -> int:
    return sum(outcome.by_line) + outcome.shipping


def _apply(rule: Promotion, lines: Sequence[Buyable], outcome: Outcome, currency: str, shipping: int) -> None:
    before = _saved(outcome)
    if rule.kind == "free_shipping":
        outcome.shipping = shipping
    elif rule.kind in _LINE_KINDS:
        for index, line in enumerate(lines):
            if _covers(rule, line):
                left = line.quantity * line.unit - outcome.by_line[index]
                _take(outcome, index, min(left, _line_saving(rule, line, left, currency)), rule)
    else:
        _spread(rule, lines, outcome, currency)
    saved = _saved(outcome) - before
    if saved > 0:
        outcome.discounts.append(Discount(rule.id, rule.name, rule.code, saved))


def _line_saving(rule: Promotion, line: Buyable, left: int, currency: str) -> int:
    if rule.kind == "percent":
        return (left * rule.percent + 50) // 100
    if rule.kind == "fixed":
        return rule.amounts[currency] * line.quantity
    group = rule.buy + rule.free
    return (line.quantity // group) * rule.free * line.unit if group else 0


def _spread(rule: Promotion, lines: Sequence[Buyable], outcome: Outcome, currency: str) -> None:
    """An order discount over its lines in proportion; the cents that are left go to the largest remainders."""
    if len(lines) == 1:
        line = lines[0]
        base = line.quantity * line.unit - outcome.by_line[0]
        wanted = (base * rule.percent + 50) // 100 if rule.kind == "order_percent" else rule.amounts[currency]
        if base > 0 and _covers(rule, line):
            _take(outcome, 0, min(wanted, base), rule)
        return
    fit = [index for index, line in enumerate(lines) if _covers(rule, line)]
    left = {index: lines[index].quantity * lines[index].unit - outcome.by_line[index] for index in fit}
    base = sum(left.values())
    if base <= 0:
        return
    wanted = (base * rule.percent + 50) // 100 if rule.kind == "order_percent" else rule.amounts[currency]
    wanted = min(wanted, base)
    shares = {index: wanted * left[index] // base for index in fit}
    order = sorted(fit, key=lambda index: (-(wanted * left[index] % base), index))
    for index in order[: wanted - sum(shares.values())]:
        shares[index] += 1
    for index in fit:
        _take(outcome, index, shares[index], rule)


def _take(outcome: Outcome, index: int, amount: int, rule: Promotion) -> None:
    if amount > 0:
        outcome.by_line[index] += amount
        outcome.why[index].append(f"{rule.name}: -{amount / 100:.2f}")

"""A cart that accepts every change anywhere and still converges.

A cart is a set of operations, each under an id its client chose (so a repeated request is the same operation). Merging two
copies is a union, which is why order, grouping and repetition of merges do not matter:

    add(sku, n)   a "+n" press: a counter entry; concurrent presses add up, repeated ones do not
    set(sku, n)   "make it n": takes the place of every operation on that line it has seen; of several concurrent ones
                  the latest on the hybrid logical clock counts, and "+n" presses it had not seen come on top
    remove(sku)   takes away exactly the operations it has seen (observed remove); a concurrent add wins

Invariants: `entries` and `gone` are disjoint; what is in `gone` never returns; a line exists while one of its entries does.
Cost: linear in the operations that are alive; `gone` is bounded by `compact`, which forgets the oldest removed ids, so a
copy that was cut off for longer than the last `gone_max` removals may bring a removed line back, never lose an added one.
Source: Dynamo (2007) for always-writable carts; Shapiro et al., "A comprehensive study of CRDTs" (2011), OR-set, PN-counter.
"""

from collections.abc import Callable, Iterable
from typing import Literal, TypeVar

import msgspec

from fourplane.foundation.errors import Rejected

QUANTITY_MAX = 9_999
OPERATION_ID_MAX = 80
Kind = Literal["add", "set"]
V = TypeVar("V")


class Stamp(msgspec.Struct, frozen=True, order=True, array_like=True):
    """A point on the hybrid logical clock: wall microseconds, a counter inside one, and who."""

    wall_us: int
    counter: int = 0
    replica: str = ""


class HybridClock:
    """Stamps that never go back, stay near the wall clock and follow every stamp they have seen."""

    __slots__ = ("_last", "_replica")

    def __init__(self, replica: str) -> None:
        self._replica = replica
        self._last = Stamp(0, 0, replica)

    def tick(self, now_us: int) -> Stamp:
        """The stamp of something that happens now."""
        last = self._last
        self._last = (
            Stamp(now_us, 0, self._replica)
            if now_us > last.wall_us
            else Stamp(last.wall_us, last.counter + 1, self._replica)
        )
        return self._last

    def observe(self, seen: Stamp) -> None:
        """Let the coming stamps be later than `seen`."""
        if (seen.wall_us, seen.counter) > (self._last.wall_us, self._last.counter):
            self._last = Stamp(seen.wall_us, seen.counter, self._replica)


class Entry(msgspec.Struct, frozen=True, array_like=True, order=True):
    """One living operation on one line. `price` is what the buyer saw, in minor units of `currency`, to tell of a change."""

    stamp: Stamp
    sku: str
    kind: Kind
    quantity: int
    price: int = 0
    currency: str = ""  # older releases did not say


class Choice(msgspec.Struct, frozen=True, array_like=True, order=True):
    """A last-write-wins value: a promotion code that is on or off."""

    stamp: Stamp
    on: bool


class Cart(msgspec.Struct):
    """The replicated state of one cart; `schema` is first in what is stored."""

    schema: int = 1
    entries: dict[str, Entry] = {}
    gone: dict[str, Stamp] = {}
    codes: dict[str, Choice] = {}

    def add(self, sku: str, quantity: int, *, operation: str, stamp: Stamp, price: int = 0, currency: str = "") -> bool:
        """Put `quantity` more of `sku` in; False when this operation is already known."""
        _check(quantity, operation, least=1)
        return self._enter(operation, Entry(stamp, sku, "add", quantity, price, currency))

    def set(self, sku: str, quantity: int, *, operation: str, stamp: Stamp, price: int = 0, currency: str = "") -> bool:
        """Make the line `quantity`, in place of everything seen on it; 0 removes it. False when already known."""
        _check(quantity, operation, least=0)
        if operation in self.entries or operation in self.gone:
            return False
        self.remove(sku, stamp=stamp)
        if quantity == 0:
            self.gone[operation] = stamp
            return True
        return self._enter(operation, Entry(stamp, sku, "set", quantity, price, currency))

    def remove(self, sku: str, *, operation: str = "", stamp: Stamp) -> bool:
        """Take away what is seen of `sku`; doing it again, or for a line that is not there, changes nothing."""
        if operation in self.gone or operation in self.entries:
            return False
        seen = [known for known, entry in self.entries.items() if entry.sku == sku]
        for known in seen:
            del self.entries[known]
            self.gone[known] = stamp
        if operation and seen:
            self.gone[operation] = stamp
        return bool(seen)

    def clear(self, operations: Iterable[str], *, stamp: Stamp) -> None:
        """Take away exactly these operations: what an order was made of. Later additions stay."""
        for operation in operations:
            self.entries.pop(operation, None)
            self.gone[operation] = stamp

    def apply_code(self, code: str, *, on: bool, stamp: Stamp) -> None:
        """Enter or withdraw a promotion code."""
        choice = Choice(stamp, on)
        before = self.codes.get(code)
        if before is None or before < choice:
            self.codes[code] = choice

    def quantities(self) -> dict[str, int]:
        """Quantity by sku, in the order in which the lines were first put in."""
        base: dict[str, Entry] = {}
        more: dict[str, int] = {}
        order: list[str] = []
        for _, entry in sorted(self.entries.items(), key=_by_stamp):
            if entry.sku not in more:
                more[entry.sku] = 0
                order.append(entry.sku)
            if entry.kind == "add":
                more[entry.sku] += entry.quantity
            elif entry.sku not in base or base[entry.sku] < entry:
                base[entry.sku] = entry
        return {sku: min(more[sku] + (base[sku].quantity if sku in base else 0), QUANTITY_MAX) for sku in order}

    def active_codes(self) -> list[str]:
        """Codes that are entered now, oldest first."""
        return [code for code, choice in sorted(self.codes.items(), key=lambda item: item[1]) if choice.on]

    def seen_price(self, sku: str, currency: str) -> int:
        """The price the buyer saw last on this line, or 0 where that was in another currency."""
        last = max((entry for entry in self.entries.values() if entry.sku == sku), default=None)
        return last.price if last is not None and last.currency in {"", currency} else 0

    def merge(self, other: "Cart") -> "Cart":
        """Both carts as one; neither changes."""
        gone = _join(self.gone, other.gone, max)
        entries = _join(self.entries, other.entries, max)
        return Cart(
            entries={known: entry for known, entry in entries.items() if known not in gone},
            gone=gone,
            codes=_join(self.codes, other.codes, max),
        )

    def compact(self, gone_max: int) -> None:
        """Forget the oldest removed operations beyond `gone_max`."""
        surplus = len(self.gone) - gone_max
        if surplus > 0:
            for known, _ in sorted(self.gone.items(), key=lambda item: (item[1], item[0]))[:surplus]:
                del self.gone[known]

    def latest(self) -> Stamp:
        """The latest stamp anywhere in it, for a clock to observe."""
        stamps = [entry.stamp for entry in self.entries.values()]
        stamps += self.gone.values()
        stamps += [choice.stamp for choice in self.codes.values()]
        return max(stamps, default=Stamp(0))

    def check(self) -> None:
        """Assert the invariants."""
        assert not self.entries.keys() & self.gone.keys(), "a removed operation is alive"
        assert all(entry.quantity >= 1 for entry in self.entries.values()), "an entry without quantity"

    def _enter(self, operation: str, entry: Entry) -> bool:
        if operation in self.entries or operation in self.gone:
            return False
        self.entries[operation] = entry
        return True


def _by_stamp(item: tuple[str, Entry]) -> tuple[Stamp, str]:
    return (item[1].stamp, item[0])


def _join(left: dict[str, V], right: dict[str, V], pick: Callable[[V, V], V]) -> dict[str, V]:
    joined = dict(left)
    for key, value in right.items():
        mine = joined.get(key)
        joined[key] = value if mine is None else pick(mine, value)
    return joined


def _check(quantity: int, operation: str, *, least: int) -> None:
    if not least <= quantity <= QUANTITY_MAX:
        raise Rejected(
            f"a quantity is {least} to {QUANTITY_MAX}, not {quantity}", code="bad_quantity", quantity=quantity
        )
    if not 0 < len(operation) <= OPERATION_ID_MAX:
        raise Rejected(f"an operation id has 1 to {OPERATION_ID_MAX} characters", code="bad_operation_id")

"""The shop: nothing sold that was not there, nobody charged twice or for nothing, carts as large as people were told.

Facts come from two sides: what shoppers were answered, and what the stores say when everything has settled.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec


class Placed(msgspec.Struct, frozen=True):
    """An order as its buyer was told of it."""

    key: str  # of idempotency
    order: str
    sku: str
    quantity: int
    total: int


def oversold(stock: Mapping[str, int], placed: list[Placed]) -> list[str]:
    """More pieces promised than there were."""
    sold: dict[str, int] = {}
    for order in {(one.order, one.sku): one for one in placed}.values():
        sold[order.sku] = sold.get(order.sku, 0) + order.quantity
    return [
        f"shop: {count} of {sku} sold, {stock[sku]} were there" for sku, count in sold.items() if count > stock[sku]
    ]


def doubled(placed: list[Placed]) -> list[str]:
    """One attempt of a buyer became two orders, or two attempts one."""
    by_key: dict[str, set[str]] = {}
    by_order: dict[str, set[str]] = {}
    for one in placed:
        by_key.setdefault(one.key, set()).add(one.order)
        by_order.setdefault(one.order, set()).add(one.key)
    broken = [f"shop: attempt {key} became {len(found)} orders" for key, found in by_key.items() if len(found) > 1]
    return broken + [
        f"shop: order {one} was told to {len(found)} buyers" for one, found in by_order.items() if len(found) > 1
    ]


def ordered_twice(carts: Sequence[str]) -> list[str]:
    """The carts of all orders, of which each may stand there once: a buyer of ours orders a cart once, however often they ask."""
    return [f"shop: cart {cart} became {count} orders" for cart, count in Counter(carts).items() if count > 1]


def not_given_back(left: Mapping[str, int], stock: Mapping[str, int], sold: Mapping[str, int]) -> list[str]:
    """Pieces that were neither sold nor can be bought after everything settled."""
    return [
        f"shop: {count} of {sku} can be bought, {stock[sku] - sold.get(sku, 0)} were not sold"
        for sku, count in left.items()
        if sku in stock and count != stock[sku] - sold.get(sku, 0)
    ]


def unbalanced(balances: Mapping[str, Mapping[str, int]]) -> list[str]:
    """The ledger does not add up, or holds money of nobody."""
    broken = []
    for currency, accounts in balances.items():
        if sum(accounts.values()):
            broken.append(f"shop: the ledger in {currency} is off by {sum(accounts.values())}")
        if accounts.get("held"):
            broken.append(f"shop: {accounts['held']} {currency} are held after everything settled")
    return broken


def charged_wrong(placed: list[Placed], captured: int, *, other_orders: int) -> list[str]:
    """What cards paid differs from what orders cost; `other_orders` cost too, though their buyers lost the answer."""
    totals: dict[str, int] = {}
    for one in placed:
        totals[one.order] = max(one.total, totals.get(one.order, 0))
    told = sum(totals.values())
    wanted = told + other_orders
    return [f"shop: cards were charged {captured}, orders cost {wanted}"] if captured != wanted else []


def cart_lost(cart: str, promised: Mapping[str, int], shown: Mapping[str, int]) -> list[str]:
    """Pieces that were put into a cart and are not there; what was asked twice for lack of an answer may be there more often."""
    return [
        f"shop: cart {cart} shows {shown.get(sku, 0)} of {sku}, {count} were put there"
        for sku, count in promised.items()
        if shown.get(sku, 0) < count
    ]

"""Carts are emptied of what was ordered: the last part of a checkout, behind its answer.

A participant that has nothing to promise, since an order's row says what to take out of which cart and that can always be done.
From the answer on the cart shows empty here (`ahead` in the store), and it is written with those of the other checkouts of the
moment. A crash in between loses neither: the decision waits for this part, so the next start empties the carts before
its doors open.
"""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from fourplane.commerce.cart import Cart, Stamp
from fourplane.commerce.cart_store import CartStore, Copy
from fourplane.commerce.orders import Order, Orders
from fourplane.foundation.errors import FourplaneError
from fourplane.service.participants import Transaction

LAST = 200


class Emptying(NamedTuple):
    """What a checkout takes out of its cart, and the copy of the cart that it read."""

    cart: str
    operations: Sequence[str]
    copy: Copy


class CartClearing:
    """The participant."""

    votes_in_time = True

    def __init__(self, *, carts: CartStore, orders: Orders) -> None:
        self._carts = carts
        self._orders = orders
        self._known: dict[int, Emptying] = {}

    async def prepare(self, transaction: Transaction, work: object) -> None:
        """Nothing to promise."""
        assert isinstance(work, Emptying), "a cart is emptied"
        self._known[transaction.id] = work

    def ordered(self, number: int) -> None:
        """The order stands: its cart shows empty from now on, also before it is written."""
        work = self._known.get(number)
        if work is not None:
            self._carts.ahead(work.cart, work.operations)

    async def commit(self, transaction: Transaction) -> None:
        """Write the cart without what was ordered; may be repeated."""
        work = self._known.pop(transaction.id, None)
        if work is None:
            order = await self._orders.find(transaction.id)
            if order is not None:
                await self.empty(order)
            return
        await self._write(work)

    async def empty(self, order: Order) -> None:
        """Take what was ordered out of its cart, also one that an older release left full."""
        await self._write(Emptying(order.cart, order.body.operations, await self._carts.load(order.cart)))

    async def empty_last(self) -> None:
        """Where an older release may have died between an order and its cart: see to the last of them, once."""
        for order in await self._orders.last(LAST):
            if not (await self._carts.find(order.cart)).entries.keys().isdisjoint(order.body.operations):
                await self.empty(order)

    async def commit_many(self, transactions: Sequence[Transaction]) -> Sequence[Transaction]:
        """All at once; those whose write failed are done alone."""
        written = await asyncio.gather(*(self._try(transaction) for transaction in transactions))
        return [transaction for transaction, done in zip(transactions, written, strict=True) if not done]

    async def abort(self, transaction: Transaction) -> None:
        """The cart stays as it is."""
        self._known.pop(transaction.id, None)

    async def in_doubt(self, coordinator: str) -> list[Transaction]:  # noqa: ARG002 - one shape for all
        """Never: nothing is promised."""
        return []

    async def _try(self, transaction: Transaction) -> bool:
        try:
            await self.commit(transaction)
        except FourplaneError:
            return False
        return True

    async def _write(self, work: Emptying) -> None:
        def clear(cart: Cart, stamp: Stamp) -> None:
            cart.clear(work.operations, stamp=stamp)

        self._carts.ahead(work.cart, work.operations)
        await self._carts.change(work.cart, clear, known=work.copy)
        self._carts.caught_up(work.cart, work.operations)

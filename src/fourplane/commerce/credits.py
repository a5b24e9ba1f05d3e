"""Money back for a part of an order: a line that cannot be sent, a piece that came back.

A credit names lines and quantities under a key of the caller's choice, so that repeating it pays nothing twice. What a line's
pieces are worth follows from what was paid for the line, tax and discounts included, rounded so that all pieces together are the
line exactly. The row is written first (under the condition that no other credit came between), then the money goes back, then
the pieces return to the shelf; what a crash leaves at `wanted` is finished by `finish`, every step of it repeatable.

Where cards are charged at shipment (`payment.capture`), a credit before that moment simply makes the capture smaller.
Invariant: per line never more pieces than were ordered, in all an amount no larger than the order's goods.
"""

from collections.abc import Mapping, Sequence

import msgspec

from fourplane.commerce.inventory import Inventory
from fourplane.commerce.orders import Order, Orders
from fourplane.commerce.payment import Payments
from fourplane.commerce.shelf import Piece
from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, Rejected
from fourplane.foundation.money import Money
from fourplane.state.contracts import Sql, Statement

ATTEMPTS_MAX = 8
_PUT = (
    "INSERT INTO order_credits (order_id, key, amount, lines, state, at_us) "
    "SELECT CAST(?1 AS BIGINT), CAST(?2 AS VARCHAR(100)), CAST(?3 AS BIGINT), ?4, 'wanted', CAST(?5 AS BIGINT) "
    "WHERE (SELECT COUNT(*) FROM order_credits WHERE order_id = ?1) = CAST(?6 AS BIGINT)"
)


class CreditLines(msgspec.Struct, frozen=True):
    """Which pieces, and whether they go back on the shelf."""

    schema: int
    lines: dict[str, int]
    restock: bool
    reason: str = ""


class Credit(msgspec.Struct, frozen=True):
    """One credit of an order."""

    order: int
    key: str
    amount: int
    what: CreditLines
    state: str  # wanted, done
    at_us: int


class Credits:
    """The owner of credits."""

    def __init__(self, *, sql: Sql, orders: Orders, payments: Payments, inventory: Inventory) -> None:
        self._sql = sql
        self._orders = orders
        self._payments = payments
        self._inventory = inventory
        self._decoder = msgspec.msgpack.Decoder(CreditLines)

    async def of(self, order: int) -> list[Credit]:
        """An order's credits, oldest first."""
        rows = await self._sql.read(
            "SELECT order_id, key, amount, lines, state, at_us FROM order_credits WHERE order_id = ?1 ORDER BY at_us, key",
            order,
        )
        return [self._credit(row) for row in rows]

    async def give(
        self, order: Order, key: str, lines: Mapping[str, int], *, restock: bool, reason: str = ""
    ) -> Credit:
        """Credit these pieces once per key; raises Rejected for more than there are, Conflict for a key of another credit."""
        if not 8 <= len(key) <= 80 or not key.isprintable():
            raise Rejected("a credit's key has 8 to 80 printable characters", code="bad_key")
        if order.state not in ("paid", "packed", "shipped", "delivered"):
            raise Conflict(
                f"an order that is {order.state} has nothing to credit", code="wrong_state", state=order.state
            )
        what = CreditLines(1, dict(lines), restock, reason[:200])
        for _ in range(ATTEMPTS_MAX):
            before = await self.of(order.number)
            known = next((one for one in before if one.key == key), None)
            if known is not None:
                if known.what.lines != what.lines:
                    raise Conflict("this key was used for another credit", code="key_reused")
                return await self._finish(order, known)
            amount = credit_of(order, before, lines)
            now = clock.now_us()
            values = (order.number, key, amount, msgspec.msgpack.encode(what), now, len(before))
            try:
                await self._sql.commit([Statement(_PUT, values, expect_rows=1)])
            except Conflict:
                continue  # another credit of this order was first
            return await self._finish(order, Credit(order.number, key, amount, what, "wanted", now))
        raise Conflict("too many credits of this order at once", code="credit_contended")

    async def finish(self, *, limit: int = 50) -> int:
        """Finish credits that were interrupted; how many."""
        rows = await self._sql.read(
            "SELECT order_id, key, amount, lines, state, at_us FROM order_credits WHERE state = 'wanted' ORDER BY at_us LIMIT ?1",
            limit,
        )
        for row in rows:
            credit = self._credit(row)
            await self._finish(await self._orders.fetch(credit.order), credit)
        return len(rows)

    async def total(self, order: int) -> int:
        """What all credits of an order add up to."""
        return sum(credit.amount for credit in await self.of(order))

    async def _finish(self, order: Order, credit: Credit) -> Credit:
        if credit.state == "done":
            return credit
        if credit.amount:
            await self._payments.give_back(order.number, Money(credit.amount, order.body.quote.currency), credit.key)
        if credit.what.restock:
            reference = f"{order.id}:{credit.key}"
            for shard in self._inventory.shards:
                pieces = taken_from(await shard.sold_in(order.number), credit.what.lines)
                if pieces:
                    await shard.give_back(reference, pieces, "credited")
        text = ", ".join(f"{count} x {sku}" for sku, count in credit.what.lines.items())
        done = "UPDATE order_credits SET state = 'done' WHERE order_id = ?1 AND key = ?2"
        note = self._orders.note(
            order.number, "credited", f"{text}: {Money(credit.amount, order.body.quote.currency).text()}"
        )
        await self._sql.commit([Statement(done, (order.number, credit.key)), note])
        return msgspec.structs.replace(credit, state="done")

    def _credit(self, row: Sequence[object]) -> Credit:
        order, key, amount, lines, state, at_us = row
        assert isinstance(lines, bytes)
        return Credit(
            int(str(order)), str(key), int(str(amount)), self._decoder.decode(lines), str(state), int(str(at_us))
        )


def credit_of(order: Order, before: Sequence[Credit], lines: Mapping[str, int]) -> int:
    """What these pieces are worth after earlier credits; raises Rejected for unknown lines and too many pieces."""
    quote = order.body.quote
    paid = {line.sku: line for line in quote.lines}
    if not lines:
        raise Rejected("a credit names at least one line", code="bad_quantity")
    amount = 0
    for sku, count in lines.items():
        line = paid.get(sku)
        if line is None:
            raise Rejected(f"the order has no line {sku[:60]!r}", code="no_such_line", sku=sku[:60])
        gone = sum(credit.what.lines.get(sku, 0) for credit in before)
        if not 1 <= count <= line.quantity - gone:
            left = line.quantity - gone
            raise Rejected(
                f"1 to {left} pieces of {line.name} can be credited", code="bad_quantity", sku=sku, left=left
            )
        amount += line.total * (gone + count) // line.quantity - line.total * gone // line.quantity
    return amount


def taken_from(pieces: Sequence[Piece], lines: Mapping[str, int]) -> list[Piece]:
    """As many pieces as the lines say, from where they came."""
    left = dict(lines)
    taken = []
    for piece in pieces:
        count = min(piece.quantity, left.get(piece.sku, 0))
        if count:
            taken.append(Piece(piece.sku, piece.warehouse, count))
            left[piece.sku] -= count
    return taken

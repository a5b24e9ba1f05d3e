"""Orders: their states, and the participant that writes them in a checkout.

    placing --> paid --> packed --> shipped --> delivered
       |          |         |
       v          v         v
    failed    cancelled  cancelled            (a paid order that is cancelled is refunded and its stock goes back)

An order that lies beside the coordinator's decisions is written by the decision itself, as `paid`, under the condition that its
attempt and the content of its cart are new; before that they are claimed in memory. Elsewhere `placing` is the prepared state
of the two-phase commit: the row exists, attempt and cart are claimed, limited codes are counted; nobody sees it as an order yet.
A failed order keeps its attempt only, so that the same attempt hears the same answer.
Every change is one commit: the row under the condition of its old state, and one event of its story.
"""

import re
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from fourplane.commerce.pricing import Quote
from fourplane.foundation import clock, ids
from fourplane.foundation.errors import Conflict, NotFound
from fourplane.service.participants import Draft, Transaction
from fourplane.service.shared_commit import Row, Template, Work, rendered
from fourplane.state import contracts
from fourplane.state.contracts import Sql, Statement

State = Literal["placing", "paid", "packed", "shipped", "delivered", "cancelled", "failed"]
NEXT: dict[State, tuple[State, ...]] = {
    "placing": ("paid", "failed"),
    "paid": ("packed", "cancelled"),
    "packed": ("shipped", "cancelled"),
    "shipped": ("delivered",),
    "delivered": (),
    "cancelled": (),
    "failed": (),
}
OPEN: tuple[State, ...] = ("placing", "paid", "packed", "shipped")
# As the index `orders_open` says it: a state that is given later proves nothing to a plan.
_AMONG_OPEN = "AND state IN ('placing', 'paid', 'packed', 'shipped') "
_SELECT = "SELECT id, attempt, cart, claim, account, state, reason, created_us, changed_us, body FROM orders "

_FIELDS = (
    "number",
    "attempt",
    "cart",
    "claim",
    "account",
    "state",
    "reason",
    "created_us",
    "changed_us",
    "body",
)
REFUSED_MAX = 1_000
AT_ONCE = 200
_UNPRINTABLE = re.compile(r"[\x00-\x1f<>]")
_PUT = Template(
    "INSERT INTO orders (id, attempt, cart, claim, account, state, reason, created_us, changed_us, body, currency, total, "
    "coordinator, epoch) VALUES ",
    "({}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {})",
    label="order",
)
_PUT_FAILED = Template(_PUT.head, _PUT.row, " ON CONFLICT DO NOTHING", counted=False)
_NEW = Template(
    "SELECT 1 FROM (VALUES ",
    "(CAST({} AS VARCHAR(100)), CAST({} AS VARCHAR(100)))",
    ") AS v WHERE COALESCE((SELECT 1 FROM orders WHERE attempt = v.column1), 0) = 0 "  # by the index, never by a join
    "AND COALESCE((SELECT 1 FROM orders WHERE claim = v.column2), 0) = 0",
    label="new",
)
_PAID = Template("UPDATE orders SET state = 'paid' WHERE state = 'placing' AND id IN (", "{}", ")", label="paid")
_PUT_EVENT = (
    "INSERT INTO order_events (order_id, number, state, at_us, note) SELECT CAST(?1 AS BIGINT), COUNT(*) + 1, "
    "CAST(?2 AS VARCHAR(20)), CAST(?3 AS BIGINT), CAST(?4 AS VARCHAR(200)) FROM order_events WHERE order_id = ?1"
)


class Address(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the parcel goes."""

    name: str
    street: str
    city: str
    postcode: str
    country: str
    email: str

    def problems(self) -> dict[str, str]:
        """What is wrong, by field; empty when it can be delivered to."""
        wrong: dict[str, str] = {}
        for field, least, most in (("name", 2, 80), ("street", 3, 120), ("city", 1, 80), ("postcode", 3, 12)):
            text = getattr(self, field)
            if not least <= len(text.strip()) <= most:
                wrong[field] = f"between {least} and {most} characters, please"
            elif _UNPRINTABLE.search(text):
                wrong[field] = "contains characters we cannot print on a label"
        head, _, domain = self.email.partition("@")
        if not head or "." not in domain or len(self.email) > 120 or " " in self.email or not self.email.isprintable():
            wrong["email"] = "please enter an e-mail address"
        return wrong


class OrderBody(msgspec.Struct, frozen=True):
    """What never changes about an order."""

    schema: int
    quote: Quote
    address: Address
    shipping: str
    method: str
    operations: list[str] = []  # of the cart it was made from
    codes: list[str] = []  # limited codes it uses


class Order(msgspec.Struct, frozen=True):
    """An order as it stands; its number is that of the transaction that made it."""

    number: int
    attempt: str
    cart: str
    claim: str
    account: int
    state: State
    reason: str
    created_us: int
    changed_us: int
    body: OrderBody

    @property
    def id(self) -> str:
        """How people and clients name it."""
        return ids.encode("order", self.number)


class Placing(msgspec.Struct, frozen=True):
    """An order to be prepared, what else is written in the same commit, and whether a card will be asked for it."""

    order: Order
    along: Callable[[Transaction], Sequence[Work]] = lambda _: ()
    asks: bool = False
    per_buyer: dict[str, int] = {}  # how often this buyer may use a code: by its name in `codes`, "CODE|buyer"


class OrderEvent(msgspec.Struct, frozen=True):
    """One step of an order's story."""

    state: str
    at_us: int
    note: str


Announce = Callable[[int, str], Sequence[Statement]]  # rows that tell others, for the commit of a new state


class Orders:
    """The owner of order rows."""

    def __init__(self, *, sql: Sql, announce: Announce = lambda _order, _state: ()) -> None:
        self._sql = sql
        self._announce = announce
        self._decoder = msgspec.msgpack.Decoder(OrderBody)
        self._encoder = msgspec.msgpack.Encoder()
        self._underway: set[str] = set()  # attempts and claims of checkouts that have begun
        self._enlisted: dict[int, Order] = {}
        self._refused: dict[int, str] = {}  # attempts that failed lately, by transaction

    @property
    def store(self) -> Sql:
        """Where orders lie; the coordinator writes into it itself where it can."""
        return self._sql

    async def prepare(self, transaction: Transaction, work: object) -> None:
        """Write the order as `placing`; raises Conflict when attempt or cart are taken or a limited code is used up."""
        assert isinstance(work, Placing), "what is prepared here is an order"
        codes = [_use(code, work.per_buyer.get(code)) for code in work.order.body.codes]
        works = [*codes, self._put(transaction, work.order, "placing"), *work.along(transaction)]
        try:
            await self._sql.commit(rendered(works))
        except Conflict as conflict:
            await self.conflicted(transaction, work, conflict)

    # -- as a last agent: written by the decision's commit

    async def enlist(self, transaction: Transaction, work: object, attempt: int) -> Sequence[Work]:
        """Claim attempt and cart among those under way; what must be known before the card is asked.

        With nothing to be written that is what is under way here; the decision itself refuses what was ordered before.
        """
        assert isinstance(work, Placing), "what is placed here is an order"
        order = work.order
        if attempt:
            return ()
        if not self._underway.isdisjoint((order.attempt, order.claim)):
            raise _duplicate()
        self._underway.update((order.attempt, order.claim))
        self._enlisted[transaction.id] = order
        if not work.asks:
            return ()
        along = work.along(transaction)
        codes = [_unused(code, work.per_buyer.get(code)) for code in order.body.codes]
        return [*codes, Row(_NEW, (order.attempt, order.claim)), *along] if along or codes else ()

    def complete(self, transaction: Transaction, work: object) -> Draft:
        """The order as `paid`, its codes counted, and whoever listens is told."""
        assert isinstance(work, Placing), "what is placed here is an order"
        works: list[Work] = [_use(code, work.per_buyer.get(code)) for code in work.order.body.codes]
        works.append(self._put(transaction, work.order, "paid"))
        works += self._announce(transaction.id, "paid")
        return Draft(works)

    async def conflicted(self, transaction: Transaction, work: object, conflict: Conflict) -> bool:
        """Raise when a code is used up, or attempt or cart are taken; another try would not help."""
        assert isinstance(work, Placing), "what is placed here is an order"
        label = str(conflict.fields.get("label", ""))
        if label.startswith("code:"):
            code, mine, _ = label.partition(":")[2].partition("|")
            text = f"you have used the code {code} already" if mine else f"the code {code} has been used up"
            raise Conflict(text, code="code_used_up", promotion=code) from conflict
        if label == "new" or (not label and await self.find(transaction.id) is None):
            raise _duplicate() from conflict
        return False

    def completed(self, transaction: Transaction) -> None:
        """It is an order."""
        self.release(transaction)
        self._refused.pop(transaction.id, None)

    def release(self, transaction: Transaction) -> None:
        """Attempt and cart are free; the number is kept a while for the reason."""
        order = self._enlisted.pop(transaction.id, None)
        if order is None:
            return
        self._underway.difference_update((order.attempt, order.claim))
        if len(self._refused) >= REFUSED_MAX:
            del self._refused[next(iter(self._refused))]
        self._refused[transaction.id] = order.attempt

    async def remember_failure(self, order: Order, reason: str) -> None:
        """Keep why an attempt was refused after it had begun, for whoever asks again."""
        number = next((one for one, attempt in reversed(self._refused.items()) if attempt == order.attempt), None)
        if number is None:
            return  # refused before anything was asked for: it may be tried again
        del self._refused[number]
        failed = msgspec.structs.replace(order, reason=reason[:200], claim=f"failed:{number}")
        row = self._put(Transaction(number, "", 0), failed, "failed")
        await self._sql.commit(rendered([Row(_PUT_FAILED, row.values)]))

    def _put(self, transaction: Transaction, order: Order, state: State) -> Row:
        quote, when, body = order.body.quote, order.created_us, self._encoder.encode(order.body)
        who = (transaction.id, order.attempt, order.cart, order.claim, order.account, state, order.reason)
        by = (transaction.coordinator, transaction.epoch)
        return Row(_PUT, (*who, when, when, body, quote.currency, quote.total, *by))

    # -- of an order that was prepared

    async def commit(self, transaction: Transaction) -> None:
        """`placing` becomes `paid`; may be repeated."""
        try:
            paid: list[Work] = [Row(_PAID, (transaction.id,)), *self._announce(transaction.id, "paid")]
            await self._sql.commit(rendered(paid))
        except Conflict:
            order = await self.fetch(transaction.id)
            assert order.state not in ("placing", "failed"), f"{order.id} is {order.state} and was to become paid"

    async def abort(self, transaction: Transaction) -> None:
        """`placing` becomes `failed`, its claim and codes are free again; may be repeated, also for one never written."""
        order = await self.find(transaction.id)
        if order is not None and order.state == "placing":
            release = Statement("UPDATE orders SET claim = ?2 WHERE id = ?1", (order.number, f"failed:{order.number}"))
            more = (release, *_free(order.body.codes))
            await self._write(order.number, "placing", "failed", "it could not be completed", more)

    async def in_doubt(self, coordinator: str) -> list[Transaction]:
        """Transactions of this coordinator whose order is still `placing`."""
        rows = await self._sql.read(
            "SELECT id, epoch FROM orders WHERE state = 'placing' AND coordinator = ?1 ORDER BY id",
            coordinator,
        )
        return [Transaction(int(number or 0), coordinator, int(epoch or 0)) for number, epoch in rows]

    async def advance(self, number: int, state: State, note: str = "") -> None:
        """Take the next step; raises Conflict where the order's state does not allow it."""
        order = await self.fetch(number)
        if state not in NEXT[order.state]:
            raise Conflict(
                f"an order that is {order.state} cannot become {state}", code="wrong_state", state=order.state
            )
        await self._write(
            order.number, order.state, state, note, _free(order.body.codes) if state == "cancelled" else ()
        )

    async def find(self, number: int) -> Order | None:
        """The order of this number, or None."""
        rows = await self._sql.read(_SELECT + "WHERE id = ?1", number)
        return self._order(rows[0]) if rows else None

    async def fetch(self, number: int) -> Order:
        """The order; raises NotFound."""
        order = await self.find(number)
        if order is None:
            raise NotFound("no such order", code="no_such_order")
        return order

    async def find_attempt(self, attempt: str) -> Order | None:
        """What an attempt led to, or None when it was never made."""
        rows = await self._sql.read(_SELECT + "WHERE attempt = ?1", attempt)
        return self._order(rows[0]) if rows else None

    async def find_claim(self, claim: str) -> Order | None:
        """The order that was made of exactly this cart content, or None."""
        rows = await self._sql.read(_SELECT + "WHERE claim = ?1", claim)
        return self._order(rows[0]) if rows else None

    async def placed(self, numbers: Sequence[int]) -> set[int]:
        """Those of these transactions that became orders."""
        found: set[int] = set()
        for begin in range(0, len(numbers), AT_ONCE):
            part = numbers[begin : begin + AT_ONCE]
            marks = ", ".join(f"?{place}" for place in range(1, len(part) + 1))
            rows = await self._sql.read(
                f"SELECT id FROM orders WHERE id IN ({marks}) AND state NOT IN ('placing', 'failed')",  # noqa: S608 - only marks
                *part,
            )
            found.update(int(number or 0) for (number,) in rows)
        return found

    async def of_account(self, account: int, *, before: int, limit: int) -> list[Order]:
        """Orders of an account, newest first, older than number `before`."""
        rows = await self._sql.read(
            _SELECT + "WHERE account = ?1 AND account <> 0 AND id < ?2 AND state <> 'placing' "
            "AND state <> 'failed' ORDER BY id DESC LIMIT ?3",
            account,
            before,
            limit,
        )
        return [self._order(row) for row in rows]

    async def story(self, number: int) -> list[OrderEvent]:
        """What happened to an order, oldest first."""
        rows = await self._sql.read(
            "SELECT state, at_us, note FROM order_events WHERE order_id = ?1 ORDER BY number", number
        )
        made = await self._sql.read("SELECT created_us FROM orders WHERE id = ?1", number)
        placed = OrderEvent("paid", int(made[0][0] or 0) if made else ids.created_us(number), "payment accepted")
        return [placed, *(OrderEvent(str(state), int(at_us or 0), str(note)) for state, at_us, note in rows)]

    async def in_state(self, state: State, *, limit: int = 100) -> list[Order]:
        """Orders in a state, oldest first; an open one finds them in the index of those that are under way."""
        among = _AMONG_OPEN if state in OPEN else ""
        rows = await self._sql.read(_SELECT + f"WHERE state = ?1 {among}ORDER BY id LIMIT ?2", state, limit)
        return [self._order(row) for row in rows]

    async def last(self, limit: int) -> list[Order]:
        """The last orders, newest first."""
        rows = await self._sql.read(
            _SELECT + "WHERE state NOT IN ('placing', 'failed') ORDER BY id DESC LIMIT ?1", limit
        )
        return [self._order(row) for row in rows]

    def note(self, number: int, state: str, text: str) -> Statement:
        """A line of an order's story that is no state of it, for somebody's commit."""
        return Statement(_PUT_EVENT, (number, state, clock.now_us(), text[:200]))

    async def counts(self) -> dict[str, int]:
        """How many orders are in each state."""
        rows = await self._sql.read("SELECT state, COUNT(*) FROM orders GROUP BY state")
        return {str(state): int(count or 0) for state, count in rows}

    async def _write(self, number: int, before: State, state: State, note: str, more: Sequence[Statement]) -> None:
        now = clock.now_us()
        told = self._announce(number, state) if state != "failed" else ()
        change = Statement(
            "UPDATE orders SET state = ?2, reason = ?3, changed_us = ?4 WHERE id = ?1 AND state = ?5",
            (number, state, note[:200], now, before),
            expect_rows=1,
            label="state",
        )
        await self._sql.commit([change, Statement(_PUT_EVENT, (number, state, now, note[:200])), *more, *told])

    def _order(self, row: contracts.Row) -> Order:
        *columns, stored = row
        assert isinstance(stored, bytes)
        body = self._decoder.decode(stored)
        assert body.schema == 1, "an order of a newer schema"
        return msgspec.convert(dict(zip(_FIELDS, (*columns, body), strict=True)), Order)


def _duplicate() -> Conflict:
    return Conflict("this cart is already being ordered", code="duplicate_order")


def _unused(code: str, per_buyer: int | None) -> Statement:
    """The same condition, only looked at: nobody is asked to pay for what cannot be had any more."""
    if per_buyer is None:
        sql = "SELECT 1 FROM code_uses WHERE code = ?1 AND (uses_max = 0 OR used < uses_max)"
        return Statement(sql, (code,), expect_rows=1, label=f"code:{code}")
    sql = "SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM code_uses WHERE code = ?1 AND used >= ?2)"
    return Statement(sql, (code, per_buyer), expect_rows=1, label=f"code:{code}")


def _use(code: str, per_buyer: int | None) -> Statement:
    """One more use of a limited code, of all or of one buyer's, under the condition that it is allowed."""
    if per_buyer is None:
        sql = "UPDATE code_uses SET used = used + 1 WHERE code = ?1 AND (uses_max = 0 OR used < uses_max)"
        return Statement(sql, (code,), expect_rows=1, label=f"code:{code}")
    sql = (
        "INSERT INTO code_uses (code, used, uses_max) VALUES (?1, 1, ?2) ON CONFLICT (code) DO UPDATE SET "
        "used = code_uses.used + 1, uses_max = excluded.uses_max WHERE code_uses.used < excluded.uses_max"
    )
    return Statement(sql, (code, per_buyer), expect_rows=1, label=f"code:{code}")


def _free(codes: Sequence[str]) -> tuple[Statement, ...]:
    return tuple(
        Statement("UPDATE code_uses SET used = used - 1 WHERE code = ?1 AND used > 0", (code,)) for code in codes
    )

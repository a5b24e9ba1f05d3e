"""The payment's part in a checkout: authorise is prepare, capture is commit, void is abort.

A buyer hears of the order when it is decided and the money is held; the capture follows at once, together with those of the other
checkouts of the moment (`commit_many`). Whoever gives money back before that captures it first, under the same key.

Keys name this shop (`mark`, kept twice) and the transaction. Where cards are charged with the order nothing is written down
before the gateway is asked: after a crash, and once a minute, the gateway tells what it holds for this shop (`held`); what no
order stands for and nobody drives is let go. Where cards are charged at the shipment every order waits among what is held, so
there an intent is written first (in a commit before the card is asked) and removed later. A lost answer is asked for once more
with the same key. Where an abort cannot learn whether the money is held (the gateway is away), that is noted as `void_wanted`
and `sweep` asks until it knows: the buyer need not wait for that, and no hold on a card is forgotten.
While the gateway does not answer at all the breaker is open: a checkout hears so before anything is held for it (`ready`).

What outlived its capture is found in doubt after a crash and aborted: the gateway says `captured`, and nothing happens.

Invariants: at most one capture per order (its key is the transaction); a captured payment belongs to a committed transaction;
what an order stands for is never let go by an abort.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Literal

import msgspec

from fourplane.commerce.webhooks import verify
from fourplane.control.nodes import Switch
from fourplane.foundation import clock, ids
from fourplane.foundation.errors import (
    Conflict,
    DeadlineExceeded,
    FourplaneError,
    Rejected,
    Unauthenticated,
    Unavailable,
)
from fourplane.foundation.money import Money
from fourplane.service.circuit_breaker import BreakerSettings, CircuitBreaker
from fourplane.service.participants import Transaction
from fourplane.service.payment_gateway import Authorisation, Capture, Notice, Payment, PaymentGateway
from fourplane.service.shared_commit import Row, Template, Work
from fourplane.state.contracts import Put, Records, Sql, Statement


class PaymentSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long the gateway may take, and how long an unknown authorisation is looked for."""

    authorise_s: float = 3.0
    attempts: int = 2
    look_for_s: float = 86_400.0
    sweep_max: int = 100
    capture: Literal["order", "shipment"] = "order"  # when the card is charged; it is authorised with the order
    notice_secret: str = ""  # signs what the card network tells afterwards; empty: nobody is listened to
    notices_keep_s: float = 30 * 86_400.0
    breaker: BreakerSettings = BreakerSettings(calls_min=20, trip_share=0.5, open_s=1.0, open_s_max=10.0)


_INTEND = Template(
    "INSERT INTO payment_intents (transaction_id, coordinator, epoch, currency, amount, method, state, asked_us) VALUES ",
    "({}, {}, {}, {}, {}, {}, 'asked', {})",
    " ON CONFLICT (transaction_id) DO NOTHING",
    counted=False,
)
_OVER = Template("DELETE FROM payment_intents WHERE transaction_id IN (", "{}", ")", counted=False)
_FORGET = "DELETE FROM payment_intents WHERE transaction_id = ?1"
_WANT_VOID = (
    "INSERT INTO payment_intents (transaction_id, coordinator, epoch, currency, amount, method, state, asked_us) "
    "VALUES (?1, ?2, ?3, '', 0, '', 'void_wanted', ?4) ON CONFLICT (transaction_id) DO UPDATE SET state = 'void_wanted'"
)
_COPY = (b"payments", b"mark")  # partition and sort key
OVER_MAX = 20
SWEEP_MAX = 5_000


class Charge(msgspec.Struct, frozen=True):
    """What a checkout wants to be paid."""

    amount: Money
    method: str


class PaymentDeclined(Rejected):
    """The card said no; `reason` is for the buyer."""

    code = "card_declined"
    http_status = 402


class Payments:
    """The participant, and refunds afterwards."""

    votes_in_time = True  # `authorise_s`, `attempts` times

    def __init__(
        self,
        settings: PaymentSettings,
        *,
        sql: Sql,
        records: Records,
        gateway: PaymentGateway,
        switch: Switch,
        placed: Callable[[Sequence[int]], Awaitable[set[int]]],
    ) -> None:
        self._settings = settings
        self._placed = placed  # those of these transactions that orders stand for
        self._mark = ""
        self._looked = False
        self._sql = sql
        self._records = records
        self._gateway = gateway
        self._switch = switch
        self.breaker = CircuitBreaker(settings.breaker)
        self._authorised: dict[int, str] = {}
        self._over: list[int] = []
        self.captured = self.declined = self.voided = self.noticed_count = 0

    @property
    def charges_at_shipment(self) -> bool:
        """Whether an order only holds the money until its parcel leaves."""
        return self._settings.capture == "shipment"

    async def open(self) -> bool:
        """Learn what this shop's keys begin with; whether that was not written down here yet.

        Without its mark a shop would find none of its payments. So there are two: the row, and a record in another store, each
        made again from the other. While neither can be read the shop does not open.
        """
        self._mark = await self._marked()
        if self._mark:
            with suppress(FourplaneError):  # the next start sees to the copy
                await self._keep_copy(await self._copied())
            return False
        copied = await self._copied()
        put = "INSERT INTO payment_mark (id, mark) VALUES (1, ?1) ON CONFLICT (id) DO NOTHING"
        await self._sql.commit([Statement(put, (copied or ids.capability(5),))])
        self._mark = await self._marked()
        await self._keep_copy(copied)
        return True

    async def _marked(self) -> str:
        rows = await self._sql.read("SELECT mark FROM payment_mark")
        return str(rows[0][0]) if rows else ""

    async def _copied(self) -> str:
        record = await self._records.get(*_COPY)
        return "" if record is None else record.value.decode()

    async def _keep_copy(self, copied: str) -> None:
        if copied != self._mark:
            await self._records.write(_COPY[0], [Put(_COPY[1], self._mark.encode())])

    def intent(self, charge: Charge) -> Callable[[Transaction], Sequence[Work]]:
        """What must be durable before `prepare` may ask the gateway; written one wave earlier. Nothing where `held` will tell.

        The removal of intents that are over rides along.
        """
        if not self.charges_at_shipment:
            return lambda _: ()

        def rows(transaction: Transaction) -> Sequence[Work]:
            over, self._over = self._over[:OVER_MAX], self._over[OVER_MAX:]
            values = (transaction.id, transaction.coordinator, transaction.epoch, charge.amount.currency)
            return [
                Row(_INTEND, (*values, charge.amount.amount, charge.method, clock.now_us())),
                *(Row(_OVER, (number,)) for number in over),
            ]

        return rows

    def ready(self) -> None:
        """Raise Unavailable while the gateway is known not to answer: early, before stock is held for a buyer."""
        wait_s = self.breaker.retry_after_s(clock.monotonic_s())
        if wait_s > 0:
            raise _silent(wait_s)

    async def prepare(self, transaction: Transaction, work: object) -> Authorisation:
        """Have the money held; raises PaymentDeclined or Unavailable."""
        assert isinstance(work, Charge), "a payment prepares a charge"
        self._switch.check()
        answer = await self._ask(transaction.id, work)
        if answer.state == "declined":
            self.declined += 1
            raise PaymentDeclined(f"the card was declined: {answer.reason}", reason=answer.reason)
        self._authorised[transaction.id] = answer.id
        return answer

    async def commit(self, transaction: Transaction) -> None:
        """Take the money, or leave it held until the shipment; may be repeated."""
        if self._settings.capture == "shipment":
            self._authorised.pop(transaction.id, None)
            self._over.append(transaction.id)
            return
        known = self._authorised.get(transaction.id)
        key = self._key(transaction.id)
        if known is None:
            key, payment = await self._find(transaction.id)
            if payment is None:
                raise Unavailable("the gateway does not know this payment yet", code="payment_unknown")
            self._over.append(transaction.id)  # an intent may be there
            if payment.state != "authorised":
                return  # committed before
            known = payment.id
        await self._gateway.capture(f"{key}-capture", known)
        self._authorised.pop(transaction.id, None)
        self.captured += 1

    async def commit_many(self, transactions: Sequence[Transaction]) -> Sequence[Transaction]:
        """The same for many, in one call of the gateway; those it could not take, or that were authorised before a crash."""
        if self._settings.capture == "shipment":
            for transaction in transactions:
                await self.commit(transaction)
            return ()
        known = [(one, self._authorised.get(one.id)) for one in transactions]
        captures = [Capture(f"{self._key(one.id)}-capture", payment) for one, payment in known if payment is not None]
        refused = set(await self._gateway.capture_many(captures)) if captures else set()
        left: list[Transaction] = []
        for one, payment in known:
            if payment is None or f"{self._key(one.id)}-capture" in refused:
                left.append(one)
                continue
            self._authorised.pop(one.id, None)
            self.captured += 1
        return left

    async def abort(self, transaction: Transaction) -> None:
        """Let the money go, now or as soon as the gateway answers; may be repeated."""
        if await self._placed((transaction.id,)):
            return  # it waits for its shipment
        rows = await self._sql.read("SELECT 1 FROM payment_intents WHERE transaction_id = ?1", transaction.id)
        try:
            async with asyncio.timeout(self._settings.authorise_s):
                if await self._let_go(transaction.id, noted=bool(rows)):
                    return
        except (FourplaneError, TimeoutError):
            pass  # noted below: the sweep goes on asking
        who = (transaction.id, transaction.coordinator, transaction.epoch)
        await self._sql.commit([Statement(_WANT_VOID, (*who, clock.now_us()))])

    async def in_doubt(self, coordinator: str) -> list[Transaction]:
        """Transactions of this coordinator for which the gateway was asked, or holds money, and nothing is decided."""
        rows = await self._sql.read(
            "SELECT transaction_id, epoch FROM payment_intents WHERE coordinator = ?1 AND state = 'asked' "
            "ORDER BY transaction_id",
            coordinator,
        )
        found = {
            int(number or 0): Transaction(int(number or 0), coordinator, int(epoch or 0)) for number, epoch in rows
        }
        if not self.charges_at_shipment or not self._looked:
            for number in await self._held():
                found.setdefault(number, Transaction(number, coordinator, 0))
        return list(found.values())

    async def sweep(self) -> int:
        """Void what should be void and could not be asked about; how many are still unknown."""
        rows = await self._sql.read(
            "SELECT transaction_id, asked_us FROM payment_intents WHERE state = 'void_wanted' ORDER BY asked_us LIMIT ?1",
            self._settings.sweep_max,
        )
        over, self._over = self._over, []
        if over:
            await self._sql.commit([Statement(_FORGET, (number,)) for number in over[:SWEEP_MAX]])
            self._over += over[SWEEP_MAX:]
        left = 0
        for number, asked in rows:
            assert isinstance(number, int)
            if await self._let_go(number, noted=True):
                continue
            if int(asked or 0) < clock.now_us() - int(self._settings.look_for_s * 1e6):
                await self._forget(number)
            else:
                left += 1
        return left

    async def capture_part(self, transaction: int, amount: Money) -> None:
        """Charge this much of what an order authorised, once, and release the rest; nothing where that has been done.

        With nothing left to charge the hold is let go.
        """
        self._switch.check()
        key, payment = await self._payment(transaction)
        if payment.state != "authorised":
            return
        if amount.amount <= 0:
            await self._gateway.void(f"{key}-void", payment.id)
            return
        await self._gateway.capture(f"{key}-capture", payment.id, amount)
        self.captured += 1

    async def give_back(self, transaction: int, amount: Money, key: str) -> None:
        """Give back a part of what an order paid, once per key; nothing where it is charged at the shipment."""
        self._switch.check()
        base, payment = await self._charged(transaction)
        if payment.state in ("captured", "refunded"):
            await self._gateway.refund(f"{base}-refund-{key}", payment.id, amount)

    async def cancel(self, transaction: int, amount: Money) -> None:
        """Give back all that is left of an order's payment, or let its hold go; may be repeated."""
        self._switch.check()
        key, payment = await self._charged(transaction)
        if payment.state == "authorised":
            await self._gateway.void(f"{key}-void", payment.id)
        elif payment.state in ("captured", "refunded") and amount.amount > 0:
            await self._gateway.refund(f"{key}-refund-cancel", payment.id, amount)

    async def noticed(self, body: bytes, signature: str) -> bool:
        """The card network tells something: True when it is news. Raises Unauthenticated for any other sender, Rejected for
        what is no notice.
        """
        if not self._settings.notice_secret:
            raise Unauthenticated("no card network is configured to tell us anything", code="notices_off")
        verify(self._settings.notice_secret, signature, body, clock.now_us() // 1_000_000)
        try:
            notice = msgspec.json.decode(body, type=Notice)
        except msgspec.DecodeError as error:
            raise Rejected("this is no notice of a payment", code="bad_notice") from error
        now = clock.now_us()
        put = (
            "INSERT INTO payment_notices (id, payment_id, state, at_us) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (id) DO NOTHING "
            "RETURNING id"
        )
        rows = await self._sql.commit(
            [
                Statement(put, (notice.id[:100], notice.payment_id[:60], notice.state, now)),
                Statement(
                    "DELETE FROM payment_notices WHERE at_us < ?1", (now - int(self._settings.notices_keep_s * 1e6),)
                ),
            ]
        )
        self.noticed_count += len(rows[0])
        return bool(rows[0])

    def _key(self, transaction: int) -> str:
        return f"commerce-{self._mark}-{transaction}"

    async def _find(self, transaction: int) -> tuple[str, Payment | None]:
        """A payment as the gateway sees it and its key; older releases had keys without a mark."""
        for key in (self._key(transaction), f"commerce-{transaction}"):
            payment = await self._gateway.find_by_key(key)
            if payment is not None:
                return key, payment
        return key, None

    async def _held(self) -> list[int]:
        """Transactions of this shop for which the gateway holds money and no order stands; none where it does not answer."""
        prefix = self._key(0)[:-1]
        try:
            async with asyncio.timeout(self._settings.authorise_s):
                keys = await self._gateway.held(prefix)
        except (FourplaneError, TimeoutError):
            return []  # the next time
        self._looked = True
        numbers = [int(key[len(prefix) :]) for key in keys]
        placed = await self._placed(numbers)
        return [number for number in numbers if number not in placed]

    async def _payment(self, transaction: int) -> tuple[str, Payment]:
        key, payment = await self._find(transaction)
        if payment is None:
            raise Conflict("this order has no payment", code="no_payment")
        return key, payment

    async def _charged(self, transaction: int) -> tuple[str, Payment]:
        """The payment of a placed order; what is still to be captured for it is captured first."""
        key, payment = await self._payment(transaction)
        if payment.state == "authorised" and not self.charges_at_shipment:
            payment = await self._gateway.capture(f"{key}-capture", payment.id)
        return key, payment

    async def of_order(self, transaction: int) -> Payment | None:
        """The payment of an order as the gateway sees it."""
        return (await self._find(transaction))[1]

    async def _ask(self, number: int, charge: Charge) -> Authorisation:
        """The gateway's answer, asked for again with the same key when it got lost."""
        for attempt in range(1, self._settings.attempts + 1):
            if not self.breaker.admit(clock.monotonic_s()):
                raise _silent(self.breaker.retry_after_s(clock.monotonic_s()))
            try:
                async with asyncio.timeout(self._settings.authorise_s):
                    answer = await self._gateway.authorise(self._key(number), charge.amount, charge.method)
            except (TimeoutError, Unavailable, DeadlineExceeded) as error:
                self.breaker.failed(clock.monotonic_s())
                if attempt == self._settings.attempts:
                    raise _silent(1.0) from error
            except FourplaneError:
                self.breaker.succeeded(clock.monotonic_s())  # a no is an answer
                raise
            except BaseException:
                self.breaker.abandoned()
                raise
            else:
                self.breaker.succeeded(clock.monotonic_s())
                return answer
        raise AssertionError("the loop above answers or raises")

    async def _let_go(self, number: int, *, noted: bool) -> bool:
        key, payment = await self._find(number)
        if payment is None:
            return False
        if payment.state == "authorised":
            await self._gateway.void(f"{key}-void", payment.id)
            self.voided += 1
        self._authorised.pop(number, None)
        if noted:
            await self._forget(number)
        return True

    async def _forget(self, number: int) -> None:
        self._authorised.pop(number, None)
        await self._sql.commit([Statement(_FORGET, (number,))])


def _silent(retry_after_s: float) -> Unavailable:
    return Unavailable(
        "the card network does not answer; nothing was charged",
        code="payment_unavailable",
        retry_after_s=round(retry_after_s, 1),
    )

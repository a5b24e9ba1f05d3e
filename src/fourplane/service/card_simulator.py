"""A card network in a box: real state, real idempotency, a ledger that balances, and cards that misbehave.

    card_ok        authorised at once               card_slow      authorised after `slow_s`
    card_declined  declined, insufficient funds     card_expired   declined, card expired
    card_failing   Unavailable, nothing happened    card_flaky     Unavailable for the first try of a key, then authorised
    card_silent    authorised, but the answer is lost: DeadlineExceeded after `silent_s`; ask again with the same key
    card_double    authorised, and every notice is delivered twice

The outcome of a key is written in the same commit as payment and ledger, so a crash anywhere leaves all or nothing; payments
that meet share one commit.
Ledger: the row of an operation says what it moves between `card`, `held` and `merchant`: they add up to zero in every row, so
every currency does. Older releases wrote lines of their own (`payment_ledger`), which count along. Concurrent operations on one
payment meet at its version and the loser looks again.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

import msgspec

from fourplane.foundation import clock, ids
from fourplane.foundation.errors import (
    Conflict,
    DeadlineExceeded,
    FourplaneError,
    NotFound,
    Overloaded,
    Rejected,
    Unavailable,
)
from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.money import Money
from fourplane.service.payment_gateway import Authorisation, Capture, Notice, Payment, PaymentState
from fourplane.service.rpc import idempotent
from fourplane.service.schema import PAYMENTS, PAYMENTS_MIGRATIONS
from fourplane.service.shared_commit import Row, SharedCommit, Template, Work
from fourplane.state import contracts, schema
from fourplane.state.contracts import Sql

DECLINED = {"card_declined": "insufficient funds", "card_expired": "card expired"}
METHODS = frozenset({"card_ok", "card_slow", "card_failing", "card_flaky", "card_silent", "card_double", *DECLINED})
COUNTED = {"capture": "captured", "void": "voided", "refund": "refunded"}
KEY_MAX = 200
ATTEMPTS_MAX = 8
PROMPT = frozenset({"card_ok", "card_double", *DECLINED})  # answered at once, also for the first time
RECENT_MAX = 10_000
ACCOUNTS = ("card", "held", "merchant")
SELECT_PAYMENT = (
    "SELECT id, method, state, reason, currency, authorised, captured, refunded, version FROM payments WHERE id = ?1"
)
SELECT_HELD = (
    "SELECT p.id, o.key FROM payments p JOIN payment_operations o ON o.payment_id = p.id AND o.kind = 'authorise' "
    "WHERE p.state = 'authorised' AND p.id > ?1 AND SUBSTR(o.key, 1, ?2) = ?3 ORDER BY p.id LIMIT 1000"
)
PAY = Template(
    "INSERT INTO payments (id, method, state, reason, currency, authorised, captured, refunded, version, created_us) VALUES ",
    "({}, {}, {}, {}, {}, {}, 0, 0, 1, {})",
    label="payment",
)
CHANGE = Template(
    "UPDATE payments SET state = v.column2, captured = v.column3, refunded = v.column4, version = version + 1 FROM (VALUES ",
    "(CAST({} AS BIGINT), CAST({} AS TEXT), CAST({} AS BIGINT), CAST({} AS BIGINT), CAST({} AS BIGINT))",
    ") AS v WHERE payments.id = v.column1 AND payments.version = v.column5",
    label="payment",
)
OPERATE = Template(
    "INSERT INTO payment_operations (key, payment_id, kind, request, at_us, currency, card, held, merchant) VALUES ",
    "({}, {}, {}, {}, {}, {}, {}, {}, {})",
    label="key",
)
BALANCES = (  # an account appears when something has moved there
    "SELECT currency, SUM(card), COUNT(NULLIF(card, 0)), SUM(held), COUNT(NULLIF(held, 0)), SUM(merchant), "
    "COUNT(NULLIF(merchant, 0)) FROM payment_operations GROUP BY currency"
)
OLDER_BALANCES = "SELECT currency, account, SUM(amount) FROM payment_ledger GROUP BY currency, account"
Listener = Callable[[Notice], Awaitable[None]]
Transfer = tuple[str, str, int]  # from account, to account, amount


class CardSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    slow_s: float = 2.0
    silent_s: float = 30.0
    notices_max: int = 10_000
    notice_retry_s: float = 1.0
    flaky_keys_max: int = 10_000


class CardStatistics(msgspec.Struct, frozen=True):
    authorised: int
    declined: int
    captured: int
    voided: int
    refunded: int
    repeated: int
    failed: int
    notices_waiting: int


class _State(msgspec.Struct, frozen=True):
    """One row of `payments`."""

    id: int
    method: str
    state: PaymentState
    reason: str
    currency: str
    authorised: int
    captured: int
    refunded: int
    version: int

    def payment(self) -> Payment:
        return Payment(
            ids.encode("pay", self.id),
            self.state,
            Money(self.authorised, self.currency),
            Money(self.captured, self.currency),
            Money(self.refunded, self.currency),
            self.reason,
        )


class CardSimulator:
    """Implements PaymentGateway over Sql. A lifecycle part."""

    def __init__(
        self, sql: Sql, *, ids: IdGenerator, settings: CardSettings | None = None, on_notice: Listener | None = None
    ) -> None:
        self._sql = sql
        self._shared = SharedCommit(sql)
        self._ids = ids
        self._settings = settings or CardSettings()
        self.on_notice = on_notice
        self._notices: deque[Notice] = deque()
        self._flaky_keys: dict[str, None] = {}
        self._recent: dict[str, _State] = {}  # authorised here and not touched since: the next step need not read them
        self._counts = dict.fromkeys(
            ("authorised", "declined", "captured", "voided", "refunded", "repeated", "failed"), 0
        )
        self._tasks: Tasks | None = None
        self._delivering = False

    async def start(self, tasks: Tasks) -> None:
        """Make the tables."""
        await schema.ensure(self._sql, "payments", PAYMENTS, PAYMENTS_MIGRATIONS)
        self._tasks = tasks
        self._shared.open(tasks)

    async def drain(self) -> None:
        """Deliver the notices that wait."""
        await self._deliver()

    async def stop(self) -> None:
        self._tasks = None
        self._shared.close()

    @idempotent
    async def authorise(self, key: str, amount: Money, method: str) -> Authorisation:
        """See PaymentGateway; `method` is one of this module's cards."""
        if method not in METHODS:
            raise Rejected(f"unknown payment method {method[:40]!r}", code="bad_method")
        if amount.amount <= 0:
            raise Rejected("an authorisation is for more than nothing", code="bad_amount")
        request = f"authorise {amount.amount} {amount.currency} {method}"
        _check_key(key)
        if method not in PROMPT:
            repeated = await self._earlier(key, request)
            if repeated is not None:
                return _authorisation(repeated)
            await self._before_answer(method, key)
        reason = DECLINED.get(method, "")
        state = _State(
            self._ids.next(),
            method,
            "declined" if reason else "authorised",
            reason,
            amount.currency,
            amount.amount,
            0,
            0,
            1,
        )
        values = (state.id, method, state.state, reason, amount.currency, amount.amount, clock.now_us())
        moves: list[Transfer] = [] if reason else [("card", "held", amount.amount)]
        try:
            await self._shared.commit([Row(PAY, values), _operation(key, "authorise", request, state, moves)])
        except Conflict:  # the same key at the same moment: its answer is ours
            repeated = await self._earlier(key, request)
            assert repeated is not None, "only the key can conflict"
            return _authorisation(repeated)
        self._note("declined" if reason else "authorised", state)
        if not reason:
            if len(self._recent) >= RECENT_MAX:
                del self._recent[next(iter(self._recent))]
            self._recent[ids.encode("pay", state.id)] = state
        if method == "card_silent":
            await clock.sleep(self._settings.silent_s)
            raise DeadlineExceeded("the card network did not answer", code="gateway_silent")
        return _authorisation(state)

    @idempotent
    async def capture(self, key: str, authorisation_id: str, amount: Money | None = None) -> Payment:
        """See PaymentGateway."""
        request = f"capture {authorisation_id} {amount.text() if amount else 'all'}"
        return await self._change(key, "capture", request, authorisation_id, lambda before: _captured(before, amount))

    @idempotent
    async def capture_many(self, captures: list[Capture]) -> list[str]:
        """See PaymentGateway: those authorised here a moment ago are one commit."""
        works: list[Work] = []
        together: list[tuple[Capture, _State]] = []
        alone: list[Capture] = []
        for one in captures:
            _check_key(one.key)
            before = self._recent.pop(one.authorisation_id, None)
            if before is None:
                alone.append(one)
                continue
            after, moves = _captured(before, None)
            works.append(Row(CHANGE, (before.id, after.state, after.captured, after.refunded, before.version)))
            works.append(_operation(one.key, "capture", f"capture {one.authorisation_id} all", after, moves))
            together.append((one, msgspec.structs.replace(after, version=before.version + 1)))
        if works:
            try:
                await self._shared.commit(works)
            except Conflict:  # somebody was first at one of them: each is looked at for itself
                alone += [one for one, _ in together]
            else:
                for _, done in together:
                    self._note("captured", done)
        answers = await asyncio.gather(*(self._take(one) for one in alone))
        return [one.key for one, taken in zip(alone, answers, strict=True) if not taken]

    async def _take(self, one: Capture) -> bool:
        try:
            await self.capture(one.key, one.authorisation_id)
        except FourplaneError:
            return False
        return True

    @idempotent
    async def void(self, key: str, authorisation_id: str) -> Payment:
        """See PaymentGateway."""

        def change(before: _State) -> tuple[_State, list[Transfer]]:
            if before.state in {"voided", "declined"}:
                return before, []
            if before.state != "authorised":
                raise Conflict(
                    f"a payment that is {before.state} cannot be voided", code="wrong_state", state=before.state
                )
            return msgspec.structs.replace(before, state="voided"), [("held", "card", before.authorised)]

        return await self._change(key, "void", f"void {authorisation_id}", authorisation_id, change)

    @idempotent
    async def refund(self, key: str, authorisation_id: str, amount: Money) -> Payment:
        """See PaymentGateway."""

        def change(before: _State) -> tuple[_State, list[Transfer]]:
            given = _amount(before, amount)
            if before.state not in {"captured", "refunded"}:
                raise Conflict(
                    f"a payment that is {before.state} cannot be refunded", code="wrong_state", state=before.state
                )
            total = before.refunded + given
            if total > before.captured:
                raise Rejected("more than was captured", code="bad_amount")
            state: PaymentState = "refunded" if total == before.captured else "captured"
            return msgspec.structs.replace(before, state=state, refunded=total), [("merchant", "card", given)]

        return await self._change(key, "refund", f"refund {authorisation_id} {amount.text()}", authorisation_id, change)

    @idempotent
    async def find(self, authorisation_id: str) -> Payment | None:
        """See PaymentGateway."""
        state = await self._state(ids.decode("pay", authorisation_id))
        return None if state is None else state.payment()

    @idempotent
    async def find_by_key(self, key: str) -> Payment | None:
        """See PaymentGateway."""
        rows = await self._sql.read("SELECT payment_id FROM payment_operations WHERE key = ?1", key)
        if not rows:
            return None
        state = await self._state(_int(rows[0][0]))
        return None if state is None else state.payment()

    @idempotent
    async def held(self, prefix: str) -> list[str]:
        """See PaymentGateway."""
        keys: list[str] = []
        last = 0
        while rows := await self._sql.read(SELECT_HELD, last, len(prefix), prefix):
            keys += [str(key) for _, key in rows]
            last = _int(rows[-1][0])
        return keys

    async def story(self, authorisation_id: str) -> list[str]:
        """What happened to one payment, oldest first."""
        rows = await self._sql.read(
            "SELECT at_us, request, key FROM payment_operations WHERE payment_id = ?1 ORDER BY at_us, key",
            ids.decode("pay", authorisation_id),
        )
        return [f"{_int(at_us)} {request!s} ({key!s})" for at_us, request, key in rows]

    async def balances(self) -> dict[str, dict[str, int]]:
        """Minor units per currency and account (`card`, `held`, `merchant`); each currency adds up to zero."""
        found: dict[str, dict[str, int]] = {}
        for currency, account, amount in await self._sql.read(OLDER_BALANCES):
            found.setdefault(str(currency), {})[str(account)] = int(amount or 0)
        for currency, *figures in await self._sql.read(BALANCES):
            for account, total, moves in zip(ACCOUNTS, figures[::2], figures[1::2], strict=True):
                if moves:
                    money = found.setdefault(str(currency), {})
                    money[account] = money.get(account, 0) + _int(total)
        return found

    def statistics(self) -> CardStatistics:
        return CardStatistics(**self._counts, notices_waiting=len(self._notices))

    async def _before_answer(self, method: str, key: str) -> None:
        match method:
            case "card_slow":
                await clock.sleep(self._settings.slow_s)
            case "card_failing":
                self._counts["failed"] += 1
                raise Unavailable("the card network is down", code="gateway_down")
            case "card_flaky" if key not in self._flaky_keys:
                if len(self._flaky_keys) >= self._settings.flaky_keys_max:
                    del self._flaky_keys[next(iter(self._flaky_keys))]
                self._flaky_keys[key] = None
                self._counts["failed"] += 1
                raise Unavailable("the card network failed this time", code="gateway_down")

    async def _change(
        self,
        key: str,
        kind: str,
        request: str,
        authorisation_id: str,
        change: Callable[[_State], tuple[_State, list[Transfer]]],
    ) -> Payment:
        _check_key(key)
        known = self._recent.pop(authorisation_id, None)
        number = ids.decode("pay", authorisation_id) if known is None else known.id
        for _ in range(ATTEMPTS_MAX):
            before, known = known, None
            if before is None:
                repeated = await self._earlier(key, request)
                if repeated is not None:
                    return repeated.payment()
                before = await self._state(number)
            if before is None:
                raise NotFound("no such payment", code="no_payment")
            after, moves = change(before)
            values = (number, after.state, after.captured, after.refunded, before.version)
            try:
                await self._shared.commit([Row(CHANGE, values), _operation(key, kind, request, after, moves)])
            except Conflict:
                continue  # another operation on this payment, or this key, was first
            done = msgspec.structs.replace(after, version=before.version + 1)
            self._note(COUNTED[kind], done)
            return done.payment()
        raise Overloaded("too many operations on one payment at once", code="payment_contended")

    async def _earlier(self, key: str, request: str) -> _State | None:
        _check_key(key)
        rows = await self._sql.read("SELECT payment_id, request FROM payment_operations WHERE key = ?1", key)
        if not rows:
            return None
        if rows[0][1] != request:
            raise Conflict("this key was used for another request", code="key_reused")
        self._counts["repeated"] += 1
        return await self._state(_int(rows[0][0]))

    async def _state(self, number: int) -> _State | None:
        rows = await self._sql.read(SELECT_PAYMENT, number)
        return _read_state(rows[0]) if rows else None

    def _note(self, counted: str, state: _State) -> None:
        self._counts[counted] += 1
        if self.on_notice is None or self._tasks is None:
            return
        notice = Notice(
            f"{ids.encode('pay', state.id)}.{state.version}.{state.state}", ids.encode("pay", state.id), state.state
        )
        copies = 2 if state.method == "card_double" else 1
        if len(self._notices) + copies > self._settings.notices_max:
            self._notices.popleft()
        self._notices.extend([notice] * copies)
        if not self._delivering:
            self._tasks.start(self._deliver(), "notices")

    async def _deliver(self) -> None:
        if self._delivering or self.on_notice is None:
            return
        self._delivering = True
        try:
            while self._notices:
                try:
                    await self.on_notice(self._notices[0])
                except FourplaneError:  # the receiver is not well: later, and again, as a real network does
                    await clock.sleep(self._settings.notice_retry_s)
                    continue
                self._notices.popleft()
        finally:
            self._delivering = False


def _captured(before: _State, amount: Money | None) -> tuple[_State, list[Transfer]]:
    """The payment with this much of it taken, or all, and what moves; raises where that cannot be."""
    taken = before.authorised if amount is None else _amount(before, amount)
    if before.state != "authorised":
        raise Conflict(f"a payment that is {before.state} cannot be captured", code="wrong_state", state=before.state)
    if taken > before.authorised:
        raise Rejected("more than was authorised", code="bad_amount")
    moves = [("held", "merchant", taken), ("held", "card", before.authorised - taken)]
    return msgspec.structs.replace(before, state="captured", captured=taken), moves


def _authorisation(state: _State) -> Authorisation:
    outcome: Literal["authorised", "declined"] = "declined" if state.state == "declined" else "authorised"
    return Authorisation(ids.encode("pay", state.id), outcome, state.reason)


def _operation(key: str, kind: str, request: str, state: _State, moves: Sequence[Transfer]) -> Row:
    """The key with what it was used for, and what that moves between the accounts."""
    card = held = merchant = 0
    for source, target, amount in moves:
        card += amount * ((target == "card") - (source == "card"))
        held += amount * ((target == "held") - (source == "held"))
        merchant += amount * ((target == "merchant") - (source == "merchant"))
    return Row(OPERATE, (key, state.id, kind, request, clock.now_us(), state.currency, card, held, merchant))


def _check_key(key: str) -> None:
    if not 0 < len(key) <= KEY_MAX:
        raise Rejected(f"an idempotency key has 1 to {KEY_MAX} letters", code="bad_key")


def _amount(before: _State, amount: Money) -> int:
    if amount.currency != before.currency or amount.amount <= 0:
        raise Rejected(f"not an amount above zero in {before.currency}: {amount.text()}", code="bad_amount")
    return amount.amount


def _int(value: object) -> int:
    assert isinstance(value, int), "a whole number"
    return value


def _read_state(row: contracts.Row) -> _State:
    return msgspec.convert(dict(zip(_State.__struct_fields__, row, strict=True)), _State)

"""Money is held for a ride only as long as there is one, whatever dies between the payment and the trip's first record.

Two stores cannot commit together, so a durable intent (who, how much, by which card) stands in the trip's partition before
the money is held, and goes in the very batch that writes the trip's first event. An intent that is left, by a crash, a
cancelled call or an answer that never came, is undone: it is *condemned* (its version grows, so a first event that is
still on its way fails), then the hold is asked for once more under its key and voided, then a tombstone takes its place.
Asking again, instead of looking whether it was held, is what makes a slow network harmless: the key is used up, so a first
call that arrives late holds nothing.

    intended --first event--> (gone)        intended --condemn--> condemned --void--> buried for a day

Whoever repeats a request under its Idempotency-Key takes up an intent that still stands, and begins anew past a tombstone.
"""

import asyncio

from fourplane.dispatch.trip_store import Intent, TripStore
from fourplane.dispatch.trips import Trip
from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, FourplaneError, Overloaded, Rejected
from fourplane.service.payment_gateway import PaymentGateway

LEFT_MAX = 10_000
AT_ONCE = 16
RETRY_S, RETRY_S_MAX = 0.5, 300.0


class Holds:
    """Holds money for trips that are about to be, and gives back what no trip came of."""

    def __init__(self, store: TripStore, payments: PaymentGateway) -> None:
        self._store, self._payments = store, payments
        self._left: dict[int, tuple[Intent, int, float]] = {}  # trip: intent, tries, when next
        self.undone = 0

    @property
    def left(self) -> int:
        """Intents that wait to be undone."""
        return len(self._left)

    async def restore(self) -> None:
        """What the last owner left behind."""
        for trip_id, intent in await self._store.load_intents():
            self.leave(trip_id, intent)

    def leave(self, trip_id: int, intent: Intent) -> None:
        """As far as anybody knows, nothing came of it: have it undone."""
        self._left[trip_id] = (intent, 0, 0.0)

    async def take(self, trip_id: int, intent: Intent) -> str:
        """Hold the money; the authorisation. Raises Rejected when it is declined; what fails is left to be undone."""
        if len(self._left) >= LEFT_MAX:
            raise Overloaded("too many payments wait to be undone", retry_after_s=5)
        try:
            await self._store.intend(trip_id, intent)
            self._left.pop(trip_id, None)  # a first try left it, this one takes it up
        except Conflict:
            raise  # somebody else's intent stands there
        except BaseException:
            self.leave(trip_id, intent)
            raise
        try:
            held = await self._payments.authorise(f"trip:{trip_id}", intent.amount, intent.method)
            if held.state != "authorised":
                raise Rejected(f"the payment was declined: {held.reason}", code="payment_declined")
        except BaseException:
            self.leave(trip_id, intent)
            raise
        return held.id

    async def undo_some(self) -> list[Trip]:
        """Give back what was left; the trips that turned out to be there after all."""
        now = clock.monotonic_s()
        due = [trip_id for trip_id, (_, _, next_s) in self._left.items() if next_s <= now]
        found = await asyncio.gather(*(self._try_undo(trip_id) for trip_id in due[:AT_ONCE]))
        return [trip for trip in found if trip is not None]

    async def _try_undo(self, trip_id: int) -> Trip | None:
        intent, tries, _ = self._left[trip_id]
        try:
            trip = await self._undo(trip_id, intent)
        except FourplaneError:
            if trip_id in self._left:
                pause_s = min(RETRY_S_MAX, RETRY_S * 2 ** min(tries, 20))
                self._left[trip_id] = (intent, tries + 1, clock.monotonic_s() + pause_s)
            return None
        self._left.pop(trip_id, None)
        return trip

    async def _undo(self, trip_id: int, intent: Intent) -> Trip | None:
        if not await self._store.condemn(trip_id):
            return await self._store.find(trip_id)  # it was made, though whoever made it was told otherwise
        try:
            held = await self._payments.authorise(f"trip:{trip_id}", intent.amount, intent.method)
            if held.state == "authorised":
                await self._payments.void(f"trip:{trip_id}:end", held.id)
                self.undone += 1
        except Rejected:
            pass  # such a payment cannot be, so nothing is held
        await self._store.bury(trip_id)
        return None

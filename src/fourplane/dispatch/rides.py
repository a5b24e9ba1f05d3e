"""Rides under way: what riders and drivers may do, one at a time per trip, each step durable before anybody hears of it.

Every verb has the same shape: take the ride's lock, let `trips` decide, write the events, then let the effects follow:
the driver is bound or freed, money moves, those who watch are told. A verb that fails before the write changed nothing;
one that fails after it is repaired by the next restart, because everything in here follows from the stored events.
The driver is bound (`Drivers.reserve`) before the offer is written, so no second offer can reach a driver meanwhile.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from fourplane.dispatch import trips
from fourplane.dispatch.drivers import Drivers
from fourplane.dispatch.eta import Eta
from fourplane.dispatch.holds import Holds
from fourplane.dispatch.matching import Decision, MatchingSettings
from fourplane.dispatch.pricing import Fare, PricingSettings, driver_part, find_product
from fourplane.dispatch.push import Push
from fourplane.dispatch.ride_news import DriverNews, OfferNews, RideStatistics, TripNews
from fourplane.dispatch.roads import Snapped
from fourplane.dispatch.trip_store import Intent, TripStore
from fourplane.dispatch.trips import Event, Place, Trip
from fourplane.foundation import clock, ids
from fourplane.foundation.errors import Conflict, Forbidden, FourplaneError, NotFound, Overloaded, Unavailable
from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.money import Money
from fourplane.foundation.telemetry import Histogram, Registry
from fourplane.service.payment_gateway import PaymentGateway
from fourplane.state.contracts import Put, Records

CLOSED_KEPT = 5_000
DECISIONS_KEPT = 12
CLAIMS_MAX = 5
SETTLE_AT_ONCE = 32
DAY_S = 86_400.0


class Ending(msgspec.Struct, frozen=True):
    """Rides that end soon, as columns: their drivers, where they will be, in how many seconds."""

    drivers: NDArray[np.int64]
    lats: NDArray[np.float64]
    lngs: NDArray[np.float64]
    left_s: NDArray[np.float64]

    @classmethod
    def none(cls) -> "Ending":
        return cls(np.empty(0, np.int64), np.empty(0), np.empty(0), np.empty(0))


class Ride:
    """One trip with what is only needed while it is under way."""

    __slots__ = (
        "decisions",
        "expected_s",
        "lock",
        "lost_since_us",
        "matched_us",
        "node",
        "track",
        "trip",
        "waiting_since_us",
    )

    def __init__(self, trip: Trip, node: Snapped | None) -> None:
        self.trip = trip
        self.lock = asyncio.Lock()
        self.node = node
        self.decisions: deque[Decision] = deque(maxlen=DECISIONS_KEPT)
        self.waiting_since_us = trip.requested_us
        self.matched_us = 0
        self.expected_s = 0.0
        self.lost_since_us = 0  # since when nothing is heard of the driver, 0: they are on the map
        self.track: list[tuple[int, float, float]] = []  # (us, lat, lng) of the driver, every few seconds


class Rides:
    """All rides of this owner."""

    def __init__(
        self,
        store: TripStore,
        drivers: Drivers,
        *,
        records: Records,
        eta: Eta,
        payments: PaymentGateway,
        push: Push,
        registry: Registry,
        ids: IdGenerator,
        matching: MatchingSettings,
        pricing: PricingSettings,
    ) -> None:
        self._store, self._drivers, self._records = store, drivers, records
        self._eta, self._payments, self._push = eta, payments, push
        self._holds = Holds(store, payments)
        self._registry, self._ids = registry, ids
        self._matching, self._pricing = matching, pricing
        self.active: dict[int, Ride] = {}
        self.searching: dict[int, Ride] = {}
        self.riding: dict[int, Ride] = {}  # those with the rider aboard
        self.closed: OrderedDict[int, Ride] = OrderedDict()
        self._by_rider: dict[str, int] = {}
        self._offers: deque[tuple[int, int, int]] = deque()  # (expires_us, trip, driver), in order
        self._unsettled: dict[int, Ride] = {}
        self._counts = dict.fromkeys(
            ("requested", "accepted", "completed", "cancelled", "unserved", "offers", "declined", "expired", "settled",
             "payment_failures", "earned", "lost"), 0,
        )  # fmt: skip
        self.wake: Callable[[], None] = lambda: None
        self.match_seconds = registry.histogram(
            "fourplane_dispatch_match_seconds", "from a rider's request to a driver's acceptance"
        )
        self.write_seconds: Histogram = registry.histogram(
            "fourplane_dispatch_trip_write_seconds", "one durable trip event"
        )
        self.settle_seconds = registry.histogram("fourplane_dispatch_settle_seconds", "capture or void of a fare")

    async def restore(self) -> int:
        """Take up the trips that were under way; how many."""
        for trip in await self._store.load_open():
            ride = Ride(trip, self._eta.roads.find_node(trip.pickup.lat, trip.pickup.lng))
            if trip.closed:
                self._keep_closed(ride)
                continue
            self.active[trip.id] = ride
            if not trip.ended:
                self._by_rider[trip.rider] = trip.id
            holder = trip.driver if trip.driver >= 0 and not trip.ended else trip.offered_to
            if holder >= 0:
                self._drivers.reserve(holder, trip.id)
                if trip.status == "in_progress":
                    self._drivers.ride(holder)
                    self.riding[trip.id] = ride
            if trip.status == "processing":
                self.searching[trip.id] = ride
            elif trip.status == "offered":
                self._offers.append((trip.offer_expires_us, trip.id, trip.offered_to))
            elif trip.ended:
                self._unsettled[trip.id] = ride
        self._offers = deque(sorted(self._offers))
        self._drivers.check()
        await self._holds.restore()
        return len(self.active)

    async def request(
        self, rider: str, fare: Fare, pickup: Place, dropoff: Place, *, method: str, key: str = "", pin: str = ""
    ) -> Trip:
        """A new ride: money held, then searched for. The same key returns the same trip; raises Rejected when declined."""
        if len(self.searching) >= self._matching.waiting_max:
            raise Overloaded("too many riders are waiting for a driver", retry_after_s=5)
        node = self._eta.snap(pickup.lat, pickup.lng, "the pick-up")
        trip_id = self._ids.next()
        if key:
            trip_id = await self._claim(rider, key, trip_id)
            known = await self._find(trip_id)
            if known is not None:
                return known.trip
        if rider in self._by_rider:
            raise Conflict(
                "you have a ride under way", code="ride_under_way", trip=ids.encode("trip", self._by_rider[rider])
            )
        self._by_rider[rider] = trip_id
        ride, intent = Ride(Trip(trip_id), node), Intent(rider, fare.total, method)
        sandbox = rider.startswith(trips.SANDBOX)
        try:
            authorisation = "sandbox" if sandbox else await self._holds.take(trip_id, intent)
            first = trips.Requested(clock.now_us(), rider, pickup, dropoff, fare, authorisation, method, pin)
            try:
                await self._append(ride, [first], intended=not sandbox)
            except BaseException:
                if not sandbox:
                    self._holds.leave(trip_id, intent)
                raise
        except BaseException:
            self._by_rider.pop(rider, None)
            raise
        self._begin(ride)
        return ride.trip

    async def undo_holds(self) -> None:
        """Give back what is held for trips that never were; a trip that was made unknown to all is taken up, or ended."""
        for trip in await self._holds.undo_some():
            if trip.id in self.active:
                continue
            ride = Ride(trip, self._eta.roads.find_node(trip.pickup.lat, trip.pickup.lng))
            asked_again = trip.rider in self._by_rider
            self._by_rider.setdefault(trip.rider, trip.id)
            self._begin(ride)
            if asked_again:
                await self.cancel(trip.id, trip.rider)

    async def find(self, trip_id: int) -> Ride:
        """The ride, also an old one; raises NotFound."""
        ride = await self._find(trip_id)
        if ride is None:
            raise NotFound("no such ride", code="no_ride")
        return ride

    async def look_up(self, trip_id: int) -> Trip | None:
        """The trip as it stands, None when there is none."""
        ride = await self._find(trip_id)
        return None if ride is None else ride.trip

    async def history(self, trip_id: int) -> Sequence[Event]:
        """Everything that happened, in order."""
        return await self._store.history(trip_id)

    def ending(self, within_s: float, now_us: int) -> Ending:
        """Rides under way that should end within so many seconds, by the fare's expected time."""
        rows = []
        for ride in self.riding.values():
            trip = ride.trip
            assert trip.fare is not None
            left_s = trip.fare.seconds - (now_us - trip.started_us) / 1e6
            if -within_s <= left_s <= within_s:
                rows.append((trip.driver, trip.dropoff.lat, trip.dropoff.lng, max(left_s, 5.0)))
        if not rows:
            return Ending.none()
        drivers, lats, lngs, left = zip(*rows, strict=True)
        return Ending(np.array(drivers, np.int64), np.array(lats), np.array(lngs), np.array(left))

    def of_rider(self, rider: str) -> Ride | None:
        """The rider's ride under way."""
        return self.active.get(self._by_rider.get(rider, -1))

    def of_driver(self, driver: int) -> Ride | None:
        """The ride or offer that holds a driver."""
        return self.active.get(int(self._drivers.trips[driver])) if driver < self._drivers.count else None

    def news_of(self, first: int, end: int) -> Iterator[OfferNews | DriverNews]:
        """The offers and trips of drivers first..end - 1 as they are when each is asked for: for who begins to listen."""
        held = self._drivers.trips[first : min(end, self._drivers.count)]
        for driver in (np.flatnonzero(held) + first).tolist():
            ride = self.of_driver(driver)
            if ride is None or ride.trip.fare is None:
                continue
            if ride.trip.offered_to == driver:
                yield self.offer_news(ride)
            elif ride.trip.driver == driver:
                yield DriverNews(driver, ids.encode("trip", ride.trip.id), ride.trip.status)

    async def offer(self, ride: Ride, driver: int, eta_s: float) -> bool:
        """Ask a driver; False when either is no longer free. Waits for the write."""
        trip = ride.trip
        async with ride.lock:
            if trip.status != "processing" or not self._drivers.available(driver):
                return False
            now = clock.now_us()
            self._drivers.reserve(driver, trip.id)
            try:
                expires = now + int(self._matching.offer_s * 1e6)
                await self._append(ride, trips.offer(trip, driver, now_us=now, expires_us=expires, eta_s=eta_s))
            except BaseException:
                self._drivers.release(driver, trip.id, now)
                raise
            self.searching.pop(trip.id, None)
            self._offers.append((expires, trip.id, driver))
            self._counts["offers"] += 1
            self._push.driver(driver, self.offer_news(ride))
            self._tell(ride)
            return True

    def offer_news(self, ride: Ride) -> OfferNews:
        """The open offer of a ride in a driver's words."""
        trip = ride.trip
        assert trip.fare is not None
        product = find_product(trip.fare.product_id)
        earned = driver_part(trip.fare.total, product.booking_fee, self._pricing)
        left_s = max(0.0, (trip.offer_expires_us - clock.now_us()) / 1e6)
        return OfferNews(
            trip.offered_to, ids.encode("trip", trip.id), trip.pickup, trip.dropoff, round(trip.eta_s, 1),
            round(left_s, 1), earned.text(), product.name, bool(trip.pin),
        )  # fmt: skip

    async def accept(self, trip_id: int, driver: int) -> Trip:
        """The driver takes the offer."""
        ride = await self.find(trip_id)
        async with ride.lock:
            events = trips.accept(ride.trip, driver, now_us=clock.now_us())
            if events:
                await self._append(ride, events)
                self._counts["accepted"] += 1
                ride.matched_us = ride.trip.accepted_us
                self.match_seconds.record((ride.trip.accepted_us - ride.waiting_since_us) / 1e6)
                self._tell(ride)
        return ride.trip

    async def decline(self, trip_id: int, driver: int) -> Trip:
        """The driver does not want it; the search goes on without them."""
        return await self._close_offer(trip_id, driver, "declined")

    async def expire_offers(self) -> int:
        """Close the offers whose time is over; how many."""
        now, count = clock.now_us(), 0
        while self._offers and self._offers[0][0] < now:
            _, trip_id, driver = self._offers.popleft()
            ride = self.active.get(trip_id)
            if ride is not None and ride.trip.status == "offered" and ride.trip.offered_to == driver:
                await self._close_offer(trip_id, driver, "expired")
                count += 1
        return count

    async def arrive(self, trip_id: int, driver: int) -> Trip:
        """The driver waits at the pick-up."""
        ride = await self.find(trip_id)
        async with ride.lock:
            if await self._append(ride, trips.arrive(ride.trip, driver, now_us=clock.now_us())):
                took_s = (ride.trip.arrived_us - ride.trip.accepted_us) / 1e6
                self._eta.learn(ride.trip.eta_s, took_s)
                self._tell(ride)
        return ride.trip

    async def start(self, trip_id: int, driver: int, pin: str = "") -> Trip:
        """The rider is in."""
        ride = await self.find(trip_id)
        async with ride.lock:
            if await self._append(ride, trips.start(ride.trip, driver, pin, now_us=clock.now_us())):
                self._drivers.ride(driver)
                self.riding[trip_id] = ride
                self._tell(ride)
        return ride.trip

    async def finish(self, trip_id: int, driver: int) -> Trip:
        """The ride is over; the fare is captured soon after."""
        ride = await self.find(trip_id)
        async with ride.lock:
            if await self._append(ride, trips.finish(ride.trip, driver, now_us=clock.now_us())):
                self._counts["completed"] += 1
                self._ended(ride)
        return ride.trip

    async def cancel(self, trip_id: int, rider: str) -> Trip:
        """The rider gives up."""
        ride = await self.find(trip_id)
        trip = ride.trip
        if trip.rider != rider:
            raise Forbidden("this is not your ride", code="not_your_ride")
        async with ride.lock:
            fee = self._fee(trip)
            held = trip.offered_to
            events = trips.cancel_by_rider(
                trip, now_us=clock.now_us(), free_cancel_s=self._pricing.free_cancel_s, fee=fee
            )
            if await self._append(ride, events):
                self._counts["cancelled"] += 1
                self._ended(ride, held)
        return trip

    async def give_back(self, trip_id: int, driver: int) -> Trip:
        """The driver cancels: a new search, or a no-show when the rider did not come."""
        ride = await self.find(trip_id)
        trip = ride.trip
        async with ride.lock:
            events = trips.cancel_by_driver(
                trip, driver, now_us=clock.now_us(), no_show_s=self._pricing.no_show_s, fee=self._fee(trip)
            )
            if await self._append(ride, events):
                if trip.ended:
                    self._counts["cancelled"] += 1
                    self._ended(ride)
                else:
                    self._drivers.release(driver, trip.id, clock.now_us())
                    self._search_again(ride)
        return trip

    async def lose(self, ride: Ride, *, lost_s: float) -> bool:
        """Nothing was heard for long of a driver on the way to the pick-up: the search begins again without them."""
        trip = ride.trip
        async with ride.lock:
            now = clock.now_us()
            if trip.status != "accepted" or not ride.lost_since_us or now - ride.lost_since_us < lost_s * 1e6:
                return False
            driver = trip.driver
            await self._append(ride, trips.lose(trip, now_us=now))
            ride.lost_since_us = 0
            self._counts["lost"] += 1
            self._drivers.release(driver, trip.id, now)
            self._push.driver(driver, DriverNews(driver, ids.encode("trip", trip.id), "lost"))
            self._search_again(ride)
            return True

    async def give_up(self, ride: Ride) -> None:
        """Nobody came."""
        async with ride.lock:
            if ride.trip.status != "processing":
                return
            reason = ride.decisions[-1].story().text if ride.decisions else "no free driver near"
            await self._append(ride, trips.give_up(ride.trip, now_us=clock.now_us(), reason=reason))
            self._counts["unserved"] += 1
            self._ended(ride)

    async def rate(self, trip_id: int, by: Literal["rider", "driver"], who: str, stars: int) -> Trip:
        """Stars from one side for the other."""
        ride = await self.find(trip_id)
        trip = ride.trip
        if who != (trip.rider if by == "rider" else str(trip.driver)):
            raise Forbidden("this is not your ride", code="not_your_ride")
        async with ride.lock:
            if await self._append(ride, trips.rate(trip, by, stars, now_us=clock.now_us())) and by == "rider":
                await self._drivers.rate(trip.driver, stars)
        return trip

    async def settle_some(self) -> int:
        """Capture or void what ended trips owe; those that fail are tried again next time."""
        batch = list(self._unsettled.values())[:SETTLE_AT_ONCE]
        done = await asyncio.gather(*(self._settle(ride) for ride in batch))
        return sum(done)

    async def close_some(self) -> None:
        """Forget closed trips whose events everybody has."""
        done = [ride for ride in self.active.values() if ride.trip.closed]
        left = self._store.waiting
        while left > 0:
            left -= await self._store.relay()
        for ride in done:
            del self.active[ride.trip.id]
            self._keep_closed(ride)
        await asyncio.gather(*(self._store.close(ride.trip, ride.track) for ride in done))

    def statistics(self) -> RideStatistics:
        return RideStatistics(
            **self._counts, active=len(self.active), searching=len(self.searching),
            holds_undone=self._holds.undone, holds_left=self._holds.left,
        )  # fmt: skip

    def check(self) -> None:
        """One driver per trip, one trip per driver, in both directions; an AssertionError is a bug."""
        self._drivers.check()
        for ride in self.active.values():
            trip = ride.trip
            trips.check(trip)
            holder = -1 if trip.ended else max(trip.driver, trip.offered_to)
            assert holder < 0 or self._drivers.trips[holder] == trip.id, "a trip's driver does not know of it"
            assert (trip.id in self.searching) == (trip.status == "processing"), "the search disagrees with the trip"
        for driver in np.flatnonzero(self._drivers.trips).tolist():
            held = self.active.get(int(self._drivers.trips[driver]))
            assert held is not None, "a driver is held by a trip that is over"
            holds = not held.trip.ended and driver in {held.trip.driver, held.trip.offered_to}
            assert holds or held.lock.locked(), "a driver is held by somebody else's trip"

    def _begin(self, ride: Ride) -> None:
        ride.waiting_since_us = ride.trip.requested_us
        self.active[ride.trip.id] = self.searching[ride.trip.id] = ride
        self._counts["requested"] += 1
        self.wake()

    async def _append(self, ride: Ride, events: list[Event], *, intended: bool = False) -> bool:
        if not events:
            return False
        began = clock.monotonic_s()
        await self._store.append(ride.trip, events, intended=intended)
        self.write_seconds.record(clock.monotonic_s() - began)
        return True

    async def _close_offer(self, trip_id: int, driver: int, reason: Literal["declined", "expired"]) -> Trip:
        ride = await self.find(trip_id)
        async with ride.lock:
            if await self._append(ride, trips.close_offer(ride.trip, driver, reason, now_us=clock.now_us())):
                self._counts[reason] += 1
                self._drivers.release(driver, trip_id, clock.now_us())
                self._push.driver(driver, DriverNews(driver, ids.encode("trip", trip_id), reason))
                self._search_again(ride)
        return ride.trip

    def _search_again(self, ride: Ride) -> None:
        self.searching[ride.trip.id] = ride
        self._tell(ride)
        self.wake()

    def _ended(self, ride: Ride, held: int = -1) -> None:
        trip = ride.trip
        self.searching.pop(trip.id, None)
        self.riding.pop(trip.id, None)
        if self._by_rider.get(trip.rider) == trip.id:
            del self._by_rider[trip.rider]
        for driver in (trip.driver, held):
            if driver >= 0:
                self._drivers.release(driver, trip.id, clock.now_us())
        if held >= 0 and held != trip.driver:  # `_tell` tells the trip's own driver
            self._push.driver(held, DriverNews(held, ids.encode("trip", trip.id), trip.status))
        self._unsettled[trip.id] = ride
        self._tell(ride)

    async def _settle(self, ride: Ride) -> bool:
        trip, began = ride.trip, clock.monotonic_s()
        assert trip.due is not None
        assert trip.fare is not None
        product = find_product(trip.fare.product_id)
        kind: Literal["captured", "voided"]
        try:
            if trip.sandbox:
                earned, kind = Money.zero(trip.due.currency), "voided"
            elif trip.due.amount > 0:
                await self._payments.capture(f"trip:{trip.id}:end", trip.authorisation, trip.due)
                earned = driver_part(trip.due, product.booking_fee, self._pricing)
                kind = "captured"
            else:
                await self._payments.void(f"trip:{trip.id}:end", trip.authorisation)
                earned, kind = Money.zero(trip.due.currency), "voided"
            async with ride.lock:
                await self._append(ride, trips.settle(trip, kind, trip.due, earned, now_us=clock.now_us()))
        except (Unavailable, Overloaded, TimeoutError) as error:
            self._counts["payment_failures"] += 1
            self._registry.event("warning", "dispatch", f"a fare waits for the payment gateway: {error}")
            return False
        except FourplaneError as error:
            self._counts["payment_failures"] += 1
            self._registry.event(
                "error", "dispatch", f"a fare could not be settled: {error}", trip=ids.encode("trip", trip.id)
            )
            return False
        self._unsettled.pop(trip.id, None)
        self._counts["settled"] += 1
        self._counts["earned"] += 0 if trip.sandbox else trip.due.amount
        self.settle_seconds.record(clock.monotonic_s() - began)
        self._tell(ride)
        return True

    def _tell(self, ride: Ride) -> None:
        trip = ride.trip
        text = ids.encode("trip", trip.id)
        self._push.trip(trip.id, TripNews(text, trip.status, trip.driver))
        if trip.driver >= 0:
            self._push.driver(trip.driver, DriverNews(trip.driver, text, trip.status))

    def _fee(self, trip: Trip) -> Money:
        assert trip.fare is not None
        fee = Money(find_product(trip.fare.product_id).cancellation_fee, trip.fare.total.currency)
        return min(fee, trip.fare.total)

    async def _find(self, trip_id: int) -> Ride | None:
        ride = self.active.get(trip_id) or self.closed.get(trip_id)
        if ride is None:
            trip = await self._store.find(trip_id)
            if trip is None:
                return None
            ride = self.active.get(trip_id) or Ride(trip, None)
            if trip.closed:
                self._keep_closed(ride)
        return ride

    def _keep_closed(self, ride: Ride) -> None:
        self.closed[ride.trip.id] = ride
        while len(self.closed) > CLOSED_KEPT:
            self.closed.popitem(last=False)

    async def _claim(self, rider: str, key: str, trip_id: int) -> int:
        """The trip that this rider's key stands for; the first to ask decides."""
        partition, sort = f"dispatch/riders/{rider}".encode(), b"k/" + key.encode()[:200]
        mine, version = trip_id.to_bytes(8, "big"), 0
        for _ in range(CLAIMS_MAX):
            try:
                await self._records.write(partition, [Put(sort, mine, expect_version=version, ttl_s=DAY_S)])
                return trip_id
            except Conflict:
                row = await self._records.get(partition, sort)
            if row is not None:
                known = int.from_bytes(row.value, "big")
                if not await self._store.buried(known):
                    return known
            version = 0 if row is None else row.version  # the first try was undone: this one takes its place
        raise Conflict("too many requests under one key", code="try_again")

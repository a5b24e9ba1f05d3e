"""The matching loop: every window it gives the waiting riders their drivers.

Thin shell around `matching`: it asks the index for the free drivers around each waiting rider, the roads for their
times, the pure part for the pairs, and then makes the offers. A slice of requests is searched, then the loop gets a
breath, so that nothing else waits longer than a few milliseconds.
"""

import asyncio

import msgspec
import numpy as np

from fourplane.control.nodes import Switch
from fourplane.dispatch.blocks import Blocks
from fourplane.dispatch.cells import distances_m
from fourplane.dispatch.driver_index import DriverIndex
from fourplane.dispatch.drivers import Drivers
from fourplane.dispatch.eta import Eta, Ranked
from fourplane.dispatch.index_layout import AVAILABLE, STATUS_MASK, VEHICLE_MASK, VEHICLE_SHIFT
from fourplane.dispatch.matching import Decision, MatchingSettings, choose_pairs, costs
from fourplane.dispatch.pricing import find_product
from fourplane.dispatch.rides import Ending, Ride, Rides
from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError
from fourplane.foundation.telemetry import Registry

OFFERS_AT_ONCE = 64  # who waited longest is offered first, and is not to wait for the rest
RETRY_S = 0.25
AWAITED_MAX, FASTEST_MPS = 3, 25.0
SPARE = 12  # candidates more than are kept, for those who refused or drive another kind


class MatcherStatistics(msgspec.Struct, frozen=True):
    """Cumulative counts of the loop."""

    rounds: int
    considered: int  # requests times rounds
    candidates: int
    offered: int
    unmatched: int
    awaited: int  # decisions to wait for a driver about to be free


class _Found:
    """One request with its candidates, nearest by line first; the last `soon` of them still have a rider aboard."""

    __slots__ = ("costs", "drivers", "etas", "idle_s", "metres", "ratings", "ride", "soon")

    def __init__(self, ride: Ride) -> None:
        self.ride, self.soon = ride, 0
        self.drivers = np.empty(0, np.int64)
        self.metres = self.etas = self.ratings = self.idle_s = self.costs = np.empty(0)


class Matcher:
    """Runs as one task; `wake` tells it that somebody waits."""

    def __init__(
        self,
        rides: Rides,
        drivers: Drivers,
        *,
        index: DriverIndex,
        eta: Eta,
        settings: MatchingSettings,
        registry: Registry,
        switches: tuple[Switch, ...],
        blocks: Blocks,
    ) -> None:
        self._rides, self._drivers, self._index, self._eta = rides, drivers, index, eta
        self._settings, self._registry, self._switches = settings, registry, switches
        self._blocks = blocks
        self._ending = Ending.none()
        self._wanted = asyncio.Event()
        self._rounds = self._considered = self._candidates = self._offered = self._unmatched = self._awaited = 0
        self.search_seconds = registry.histogram(
            "fourplane_dispatch_search_seconds", "candidates and road ETA of one request"
        )
        self.round_seconds = registry.histogram("fourplane_dispatch_round_seconds", "one round of matching")

    def wake(self) -> None:
        """Somebody waits."""
        self._wanted.set()

    async def run(self) -> None:
        """Match until cancelled. Windows follow each other without a gap: a round's own time counts into the next."""
        took_s = 0.0
        while True:
            if not self._rides.searching:
                self._wanted.clear()
                await self._wanted.wait()
                took_s = 0.0
            await clock.sleep(max(0.0, self._settings.window_s - took_s))
            began = clock.monotonic_s()
            if all(switch.on for switch in self._switches):
                try:
                    await self.match_once()
                except FourplaneError as error:
                    self._registry.event("warning", "dispatch", f"a round of matching failed: {error}")
            took_s = clock.monotonic_s() - began
            if self._rides.searching and self._settings.window_s < RETRY_S:
                await clock.sleep(RETRY_S)  # who got nobody now will hardly get somebody in no time

    async def match_once(self) -> int:
        """One round over everybody who waits now; how many offers were made."""
        began, now = clock.monotonic_s(), clock.now_us()
        self._rounds += 1
        found: list[_Found] = []
        waiting = list(self._rides.searching.values())
        self._ending = self._rides.ending(self._settings.horizon_s, now) if self._settings.horizon_s else Ending.none()
        for at in range(0, len(waiting), self._settings.slice_count):
            asking = []
            for ride in waiting[at : at + self._settings.slice_count]:
                if now - ride.waiting_since_us > self._settings.patience_s * 1e6:
                    await self._rides.give_up(ride)
                elif ride.trip.status == "processing" and not ride.trip.sandbox:
                    asking.append(ride)
            found += self._search(asking, now)
            await clock.sleep(0)
        chosen = self._choose(found, now)
        made = 0
        for at in range(0, len(chosen), OFFERS_AT_ONCE):
            answers = await asyncio.gather(*(self._rides.offer(*one) for one in chosen[at : at + OFFERS_AT_ONCE]))
            made += sum(answers)
        self._offered += made
        self._unmatched += len(found) - made
        self.round_seconds.record(clock.monotonic_s() - began)
        return made

    def statistics(self) -> MatcherStatistics:
        return MatcherStatistics(
            self._rounds, self._considered, self._candidates, self._offered, self._unmatched, self._awaited
        )

    def _search(self, rides: list[Ride], now_us: int) -> list[_Found]:
        """Candidates of a slice of requests; those that look for the same in the same radius go together."""
        began, groups = clock.monotonic_s(), dict[tuple[int, int, float], list[Ride]]()
        for ride in rides:
            groups.setdefault(self._wish(ride, now_us), []).append(ride)
        found = []
        for (mask, wanted, radius), group in groups.items():
            ranked = self._eta.rank_many(
                self._index,
                np.array([ride.trip.pickup.lat for ride in group]),
                np.array([ride.trip.pickup.lng for ride in group]),
                radius_m=radius,
                count=self._settings.candidates + SPARE,
                mask=mask,
                wanted=wanted,
                limit_s=self._settings.eta_s_max,
            )
            found += [self._fit(ride, one, now_us) for ride, one in zip(group, ranked, strict=True)]
        if rides:
            self.search_seconds.record((clock.monotonic_s() - began) / len(rides))
        return found

    def _wish(self, ride: Ride, now_us: int) -> tuple[int, int, float]:
        """State mask, wanted state and radius of a request."""
        assert ride.trip.fare is not None
        kinds = find_product(ride.trip.fare.product_id).vehicles
        mask, wanted = STATUS_MASK, AVAILABLE
        if len(kinds) == 1:
            mask, wanted = STATUS_MASK | VEHICLE_MASK, AVAILABLE | kinds[0] << VEHICLE_SHIFT
        late = now_us - ride.waiting_since_us > self._settings.widen_s * 1e6
        return mask, wanted, self._settings.radius_wide_m if late else self._settings.radius_m

    def _fit(self, ride: Ride, ranked: Ranked, now_us: int) -> _Found:
        """Keep who may serve the request, and what each would cost."""
        trip, found = ride.trip, _Found(ride)
        assert trip.fare is not None
        kinds = find_product(trip.fare.product_id).vehicles
        fit = (
            np.isin(self._drivers.kinds[ranked.drivers], kinds)
            if len(kinds) == 2
            else np.ones(len(ranked.drivers), bool)
        )
        refused = [*trip.refused_by, *self._blocks.of(trip.rider)]
        if refused:
            fit &= ~np.isin(ranked.drivers, refused)
        keep = np.flatnonzero(fit)[: self._settings.candidates]
        self._considered += 1
        self._candidates += len(keep)
        if len(keep):
            drivers = ranked.drivers[keep]
            found.drivers, found.metres, found.etas = drivers, ranked.metres[keep], ranked.etas[keep]
            found.idle_s = (now_us - self._drivers.idle_since_us[drivers]) / 1e6
            found.ratings = self._drivers.ratings[drivers].astype(np.float64)
            found.costs = costs(found.etas, found.ratings, found.idle_s, self._settings)
        if len(self._ending.drivers):
            self._await(found, refused, now_us)
        return found

    def _await(self, found: _Found, refused: list[int], now_us: int) -> None:
        """Add who ends a ride near within the horizon, if sooner at the rider than the best of the free ones.

        Nobody is promised: the request just is not given away this round, and the driver is free in the next or the one after.
        """
        ride, ending, settings = found.ride, self._ending, self._settings
        trip = ride.trip
        if now_us - ride.waiting_since_us > settings.patience_s * 5e5 or trip.fare is None:
            return  # half of the patience is used: take whom there is
        kinds = find_product(trip.fare.product_id).vehicles
        metres = distances_m(trip.pickup.lat, trip.pickup.lng, ending.lats, ending.lngs)
        best = float(found.costs.min(initial=np.inf))
        ratings = self._drivers.ratings[ending.drivers].astype(np.float64)
        least = ending.left_s + metres / FASTEST_MPS + settings.rating_s * (5 - ratings)  # no road is quicker
        near = (metres <= settings.radius_m) & (least < best) & np.isin(self._drivers.kinds[ending.drivers], kinds)
        if refused:
            near &= ~np.isin(ending.drivers, refused)
        some = np.flatnonzero(near)
        some = some[np.argsort(least[some])][:AWAITED_MAX]
        if len(some) == 0:
            return
        etas = ending.left_s[some] + self._eta.to_pickup(
            trip.pickup.lat, trip.pickup.lng, ending.lats[some], ending.lngs[some], limit_s=settings.eta_s_max
        )
        cost, idle = costs(etas, ratings[some], np.zeros(len(some)), settings), np.zeros(len(some))
        keep = np.flatnonzero(cost < best)
        found.soon = len(keep)
        for name, more in (("drivers", ending.drivers[some]), ("metres", metres[some]), ("etas", etas),
                           ("ratings", ratings[some]), ("idle_s", idle), ("costs", cost)):  # fmt: skip
            setattr(found, name, np.concatenate([getattr(found, name), more[keep]]))

    def _choose(self, found: list[_Found], now_us: int) -> list[tuple[Ride, int, float]]:
        if not found:
            return []
        requests = np.repeat(np.arange(len(found)), [len(one.drivers) for one in found])
        drivers = np.concatenate([one.drivers for one in found])
        starts = np.cumsum([0, *(len(one.drivers) for one in found)])
        pairs = choose_pairs(requests, drivers, np.concatenate([one.costs for one in found]), self._settings)
        given = {int(requests[edge]): edge for edge in pairs}
        chosen = []
        for number, one in enumerate(found):
            edge = given.get(number)
            driver = -1 if edge is None else int(drivers[edge])
            columns = (one.drivers, one.metres, one.etas, one.ratings, one.idle_s, one.costs)
            place = -1 if edge is None else int(edge - starts[number])
            if place >= len(one.drivers) - one.soon and edge is not None:
                at = int(np.flatnonzero(self._ending.drivers == driver)[0])
                wait_s = max(1.0, float(self._ending.left_s[at]))
                one.ride.decisions.append(Decision(columns, driver, now_us, self._settings, wait_s=wait_s))
                self._awaited += 1
                continue
            one.ride.decisions.append(Decision(columns, driver, now_us, self._settings))
            if edge is not None:
                chosen.append((one.ride, driver, float(one.etas[edge - starts[number]])))
        return chosen

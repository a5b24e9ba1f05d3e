"""Riders and drivers of a small city: rides are asked for, offered, accepted or declined, driven and paid."""

import asyncio
from typing import Any

import msgspec
import numpy as np

from fourplane.dispatch.app import Dispatch
from fourplane.foundation import clock
from fourplane.simulator.checkers.rides import RideBook
from fourplane.simulator.checkers.shop import unbalanced
from fourplane.simulator.deployment import SimulatedDeployment
from fourplane.simulator.loop import World
from fourplane.simulator.people import Caller, Felt, Pace
from fourplane.simulator.sites import Sites

EVERY_S = 3.0
STEP_S = 1.5
HUNG_S = 30.0  # what a call between sites may hang on a connection to a host that vanished, before a ride begins late
POSITION_EVERY = 3  # steps: about as often as a phone in a car tells where it is
AFTERWARDS = 1.6  # times as long a step while only rides under way are seen through; shorter than an offer
NEAR = 0.012
SETTLE_S = 45.0
LATE_S = 40.0  # a clock that was set back makes a rider wait longer for the end of a search
DECLINE_SHARE = 0.2
IGNORE_SHARE = 0.1
BOLD_SHARE = 0.04  # of the moments without a trip, in which a driver takes one that nobody offers him
OVERHEARD = 3  # rides asked for last, of which he may have heard
NEXT = {"accepted": "arrive", "arriving": "start", "in_progress": "finish"}
OVER = frozenset({"completed", "no_drivers_available", "rider_canceled", "driver_canceled"})


class DispatchPeople:
    """Drives the rider's and the driver's API of a system; every third person drives. Everybody stays in one city."""

    def __init__(self, world: World, sites: Sites, hosts: list[str], count: int) -> None:
        self.felt = Felt()
        self.book = RideBook()
        self._world = world
        self._sites = sites
        self._hosts = hosts
        self._callers = [Caller(world, sites.of(place), self.felt, host) for place, host in enumerate(hosts)]
        self._riders = max(1, count * 2 // 3)
        self._drivers = max(2, count - self._riders)
        self.pace = Pace(EVERY_S)
        self._places: list[tuple[float, float]] = []
        self._rides: dict[str, tuple[int, str]] = {}  # trip -> its rider's place and token
        self._ignored: set[tuple[str, str]] = set()
        self._settled = False

    async def begin(self) -> None:
        system = _dispatch(self._sites.home)
        assert system is not None
        roads = system.eta.roads
        lat, lng = roads.center
        near = np.flatnonzero(np.hypot(roads.lat - lat, roads.lng - lng) < NEAR)
        chosen = np.random.default_rng(clock.random().getrandbits(32)).choice(near, 40, replace=False)
        self._places = [(float(roads.lat[node]), float(roads.lng[node])) for node in chosen]

    async def drive(self, duration_s: float) -> None:
        until_s = clock.monotonic_s() + duration_s
        async with asyncio.TaskGroup() as group:
            for number in range(self._drivers + self._riders):
                place = number % len(self._hosts)
                with self._world.on(self._hosts[place]):
                    if number < self._drivers:
                        # Drivers stay until the rides under way have ended.
                        group.create_task(self._work(place, number, until_s + SETTLE_S))
                    else:
                        group.create_task(self._ride(place, until_s))

    async def settle(self) -> None:
        if len(self._sites.all) > 1:
            await clock.sleep(HUNG_S)
        until_s = clock.monotonic_s() + LATE_S
        for trip, (place, token) in self._rides.items():
            while True:
                answer = await self._ask(place, "status", "GET", f"/requests/{trip}", {"x-rider-token": token})
                ended = answer is not None and (answer["_status"] == 404 or answer.get("status") in OVER)
                if ended or clock.monotonic_s() > until_s:
                    break
                await clock.sleep(2.0)
            if answer is not None and answer.get("_status") == 404:
                self.book.unknown(trip)
            elif answer is not None and answer.get("status") in OVER:
                self.book.ended(trip)
            elif answer is not None:
                self.felt.violated(f"rides: {trip} is still {answer.get('status')} after everything settled")
        self._settled = True

    async def check(self) -> list[str]:
        broken = self.felt.violations + self.book.check()
        for site in self._sites.all:
            system = _dispatch(site)
            if system is not None and site.is_up:
                try:
                    system.rides.check()
                except AssertionError as error:
                    broken.append(f"rides: {error}")
        home = self._sites.home
        if self._settled and home.platform is not None and home.is_up:
            self.felt.facts |= self.book.counts
            with self._world.on(home.host):
                broken += unbalanced(await home.platform.payments.cards.balances())
        return broken

    def surge(self, factor: float) -> None:
        self.pace.factor = factor

    async def _ask(  # noqa: PLR0917 - one line per request reads best
        self, place: int, action: str, method: str, path: str, headers: dict[str, str], body: object = None
    ) -> dict[str, Any] | None:
        """The answer's content with its `_status`; None when there was none."""
        answer = await self._callers[place].call(action, method, f"/dispatch/api{path}", body=body, headers=headers)
        if answer is None or answer.status >= 500 or answer.status == 429:
            return None
        content = msgspec.json.decode(answer.body) if answer.body else {}
        return {**content, "_status": answer.status} if isinstance(content, dict) else None

    async def _ride(self, place: int, until_s: float) -> None:
        token = ""
        while clock.monotonic_s() < until_s:
            await self.pace.wait()
            if not token:
                made = await self._ask(place, "guest", "POST", "/guests", {}, {})
                token = str(made["token"]) if made is not None and made["_status"] < 300 else ""
                continue
            start, end = clock.random().sample(self._places, 2)
            wish = {"product_id": "go", "start_latitude": start[0], "start_longitude": start[1]}
            wish |= {"end_latitude": end[0], "end_longitude": end[1]}
            rider = {"x-rider-token": token}
            fare = await self._ask(place, "estimate", "POST", "/requests/estimate", rider, wish)
            if fare is None or fare["_status"] >= 300:
                continue
            asked = {"fare_id": fare["fare"]["fare_id"], "payment_method": "card_ok"}
            ride = await self._ask(place, "request", "POST", "/requests", rider, asked)
            if ride is not None and ride["_status"] < 300:
                await self._see_through(place, str(ride["request_id"]), token, until_s)

    async def _see_through(self, place: int, trip: str, token: str, until_s: float) -> None:
        self.book.requested(trip)
        self._rides[trip] = place, token
        while clock.monotonic_s() < until_s:
            await clock.sleep(2.0)
            shown = await self._ask(place, "status", "GET", f"/requests/{trip}", {"x-rider-token": token})
            if shown is not None and shown["_status"] == 404:
                self.book.unknown(trip)
                return
            if shown is not None and shown.get("status") in OVER:
                self.book.ended(trip)
                return

    async def _work(self, place: int, number: int, until_s: float) -> None:
        home, token, steps = self._places[number % len(self._places)], "", 0
        while (now := clock.monotonic_s()) < until_s:
            hurry = 1.0 if now < until_s - SETTLE_S else AFTERWARDS
            await clock.sleep(STEP_S * hurry * (0.5 + clock.random().random()))
            if not token:
                made = await self._ask(place, "driver", "POST", "/drivers", {}, {"name": f"D{number}", "vehicle": 0})
                token = str(made["token"]) if made is not None and made["_status"] < 300 else ""
                continue
            me = {"x-driver-token": token}
            state = await self._ask(place, "driver state", "GET", "/drivers/me", me)
            if state is None:
                continue
            if state["_status"] in {401, 403, 404}:
                self.felt.violated(f"rides: driver D{number} was registered and is unknown")
                return
            await self._step(place, f"D{number}", me, state)
            if steps % POSITION_EVERY == 0:
                spot = {"latitude": home[0], "longitude": home[1]}
                await self._ask(place, "position", "POST", "/drivers/me/position", me, spot)
            steps += 1

    async def _step(self, place: int, name: str, me: dict[str, str], state: dict[str, Any]) -> None:
        """Go online, answer an offer, or bring the trip one step further."""
        offer, trip = state.get("offer"), state.get("trip")
        if offer:
            if (name, offer["trip"]) in self._ignored or clock.random().random() < IGNORE_SHARE:
                self._ignored.add((name, offer["trip"]))  # the offer lapses
                return
            decline = clock.random().random() < DECLINE_SHARE
            verb = "decline" if decline else "accept"
            told = await self._ask(place, verb, "POST", f"/drivers/me/{verb}", me, {"trip": offer["trip"]})
            if told is not None and told["_status"] < 300 and not decline:
                self._has(name, offer["trip"])
        elif trip:
            verb = NEXT.get(trip["status"], "finish")
            told = await self._ask(place, verb, "POST", f"/drivers/me/{verb}", me, {"trip": trip["trip"]})
            if told is not None and told["_status"] < 300 and verb == "finish":
                self.book.ended(trip["trip"])
        else:
            if not state.get("online"):
                await self._ask(place, "online", "POST", "/drivers/me/online", me, {"trip": ""})
            if clock.random().random() < BOLD_SHARE:
                await self._grab(place, name, me)

    async def _grab(self, place: int, name: str, me: dict[str, str]) -> None:
        """Accept what was offered to somebody else, or to nobody any more; the system has to refuse it."""
        site = self._sites.of(place)
        heard = [trip for trip, (asked_at, _) in self._rides.items() if self._sites.of(asked_at) is site][-OVERHEARD:]
        if heard:
            trip = clock.random().choice(heard)
            told = await self._ask(place, "grab", "POST", "/drivers/me/accept", me, {"trip": trip})
            if told is not None and told["_status"] < 300:
                self._has(name, trip)

    def _has(self, name: str, trip: str) -> None:
        self._world.note(f"{name} has {trip}")
        self.book.accepted(trip, name)


def _dispatch(site: SimulatedDeployment) -> Dispatch | None:
    """What runs at a site now."""
    return site.system if isinstance(site.system, Dispatch) else None

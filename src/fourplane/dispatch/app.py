"""Dispatch: from a driver's position to a paid ride (the Uber study).

This wires the system's parts and keeps its loops: matching, offers that expire, money that settles, surge that moves,
events that leave. Everything a caller may do stands in `rider_api`, `driver_api`, `live` and `location_feed`.
"""

import socket
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from fourplane.control.nodes import Node, Switch
from fourplane.dispatch.blocks import Blocks
from fourplane.dispatch.cells import parents
from fourplane.dispatch.diagram import make_nodes
from fourplane.dispatch.driver_api import DriverApi
from fourplane.dispatch.driver_index import DriverIndex, IndexStatistics, open_index
from fourplane.dispatch.driver_verbs import DriverDesk
from fourplane.dispatch.drivers import CARS, Drivers
from fourplane.dispatch.eta import Eta, EtaStatistics
from fourplane.dispatch.index_layout import AVAILABLE, ON_TRIP, RESERVED, STATUS_MASK, VEHICLE_MASK, VEHICLE_SHIFT
from fourplane.dispatch.live import Live, heat_cells
from fourplane.dispatch.location_feed import FeedStatistics, LocationFeed
from fourplane.dispatch.maps import Maps
from fourplane.dispatch.matcher import Matcher, MatcherStatistics
from fourplane.dispatch.near import Near
from fourplane.dispatch.operations_api import UNDER_WAY, OperationsApi
from fourplane.dispatch.osm_import import Progress
from fourplane.dispatch.pages import page_doors
from fourplane.dispatch.partner_api import PartnerApi
from fourplane.dispatch.pricing import Product, Surge, SurgeMap
from fourplane.dispatch.push import Push
from fourplane.dispatch.ride_news import RideStatistics
from fourplane.dispatch.rider_api import RiderApi
from fourplane.dispatch.rides import Rides
from fourplane.dispatch.settings import DispatchSettings
from fourplane.dispatch.trip_processor import ProcessorStatistics, TripProcessor
from fourplane.dispatch.trip_store import TripStore
from fourplane.dispatch.trips import Trip
from fourplane.dispatch.webhooks import Webhooks, WebhookStatistics
from fourplane.edge.http_request import HotHandler
from fourplane.edge.routes import Call, Door, Route, SocketSession
from fourplane.foundation import clock
from fourplane.foundation.blocking import Worker
from fourplane.foundation.errors import FourplaneError
from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Registry
from fourplane.service.payment_gateway import PaymentGateway
from fourplane.service.tokens import Signer
from fourplane.state.contracts import Blobs, EventLog, Records

T = TypeVar("T")
PICKUP_CANDIDATES = 5
TRACK_S, TRACK_MAX, TRACKED_MAX = 2.0, 1_800, 5_000


class Switches:
    """What an operator can stop, by what it is here."""

    def __init__(self) -> None:
        self.location = Switch("location service")
        self.matching = Switch("matching service")
        self.trips = Switch("trip service")
        self.pricing = Switch("pricing service")
        self.payments = Switch("payment service")
        self.events = Switch("trip event stream")
        self.processor = Switch("trip state processor")


class DispatchStatistics(msgspec.Struct, frozen=True):
    """Everything at a glance."""

    index: IndexStatistics
    feed: FeedStatistics
    eta: EtaStatistics
    matcher: MatcherStatistics
    rides: RideStatistics
    processor: ProcessorStatistics
    webhooks: WebhookStatistics
    drivers: int
    available: int
    reserved: int
    riding: int
    viewers: int
    pushed: int
    surging_cells: int
    match_p50_s: float
    match_p99_s: float


class Dispatch:
    """The system as a part of a process."""

    def __init__(
        self,
        settings: DispatchSettings,
        *,
        records: Records,
        log: EventLog,
        blobs: Blobs,
        payments: PaymentGateway,
        signer: Signer,
        ids: IdGenerator,
        registry: Registry,
        work: Path | None = None,
        inherited: socket.socket | None = None,
    ) -> None:
        self.settings, self.records, self.log, self.signer = settings, records, log, signer
        self.payments, self.ids, self.registry = payments, ids, registry
        self._inherited = inherited  # the feed's socket, bound by the parent process
        self.maps = Maps(blobs, work if work is not None else Path(tempfile.gettempdir()) / "fourplane-maps")
        self.switches = Switches()
        self.index: DriverIndex = open_index(settings.index)
        self.push = Push()
        self.drivers = Drivers(self.index, records, drivers_max=settings.index.drivers_max)
        self.surge = SurgeMap(settings.pricing)
        self.blocks = Blocks(records)
        self.store = TripStore(records, log)
        self.live = Live(self)
        self._rider_api, self._driver_api = RiderApi(self), DriverApi(self)
        self._operations_api = OperationsApi(self)
        self._near = Near(self)
        self._partner_api = PartnerApi(self, self._rider_api)
        self._heavy = Worker("dispatch-heavy", queue_max=100)
        self.estimates = 0
        self.eta: Eta
        self.rides: Rides
        self.matcher: Matcher
        self.desk: DriverDesk
        self.feed: LocationFeed
        self.processor: TripProcessor
        self.webhooks: Webhooks

    async def start(self, tasks: Tasks) -> None:
        """Load the map, take up the trips under way, listen for positions."""
        self.eta = Eta(await self.maps.load(self.settings.map))
        self._go_by_the_hour()
        await self.drivers.load()
        await self.blocks.load()
        self.rides = Rides(
            self.store, self.drivers, records=self.records, eta=self.eta, payments=self.payments, push=self.push,
            registry=self.registry, ids=self.ids, matching=self.settings.matching, pricing=self.settings.pricing,
        )  # fmt: skip
        restored = await self.rides.restore()
        self.matcher = Matcher(
            self.rides, self.drivers, index=self.index, eta=self.eta, settings=self.settings.matching,
            registry=self.registry, switches=(self.switches.matching, self.switches.location, self.switches.trips),
            blocks=self.blocks,
        )  # fmt: skip
        self.rides.wake = self.matcher.wake
        self.desk = DriverDesk(self.drivers, self.rides, trips_switch=self.switches.trips)
        self.feed = LocationFeed(
            self.settings.feed, index=self.index, drivers=self.drivers, desk=self.desk, log=self.log,
            signer=self.signer, push=self.push, registry=self.registry, switch=self.switches.location,
            inherited=self._inherited,
        )  # fmt: skip
        self.processor = TripProcessor(
            self.rides.look_up, self.log, self.records, registry=self.registry, switch=self.switches.processor
        )
        self.webhooks = Webhooks(
            self.settings.webhooks, records=self.records, log=self.log, ids=self.ids, find=self.rides.look_up
        )
        await self.webhooks.load()
        await self.feed.start(tasks)
        for work in (
            self.matcher.run(),
            self._offers(),
            self._money(),
            self._undo_holds(),
            self._surge(),
            self._follow(),
            self.processor.run(),
            self.webhooks.run(),
        ):
            tasks.start(work)
        self.matcher.wake()
        if restored:
            self.registry.event("info", "dispatch", f"{restored} rides under way were taken up again")
        roads = self.eta.roads
        self.registry.event(
            "info",
            "dispatch",
            f"dispatching in {roads.name}: {len(roads.lat):,} junctions, feed on port {self.feed.port}",
        )

    async def drain(self) -> None:
        """Take no new gateways; rides under way are durable at every step."""
        await self.feed.drain()

    async def stop(self) -> None:
        """Close the feed and send what waits."""
        if hasattr(self, "feed"):
            await self.feed.stop()
            while await self.store.relay():
                pass
        self._heavy.close()

    def doors(self) -> list[Door]:
        """The API under /dispatch/api and the pages under /dispatch/."""
        statistics = Route(
            "GET", "/dispatch/api/statistics", self._statistics, "Figures of dispatch", answer=DispatchStatistics
        )
        return [
            *self._rider_api.routes(),
            *self._near.routes(),
            *self._partner_api.routes(),
            *self._operations_api.routes(),
            *self._driver_api.doors(),
            *self.live.doors(),
            statistics,
            *page_doors(),
        ]

    def hot_routes(self) -> list[tuple[str, str, HotHandler]]:
        """What is answered inside the protocol: method, path, handler."""
        return self._near.hot_routes()

    def nodes(self) -> list[Node]:
        """The boxes of the study's diagrams."""
        return make_nodes(self)

    def statistics(self) -> DispatchStatistics:
        match = self.rides.match_seconds
        return DispatchStatistics(
            self.index.statistics(), self.feed.statistics(), self.eta.statistics(), self.matcher.statistics(),
            self.rides.statistics(), self.processor.statistics(), self.webhooks.statistics(),
            self.drivers.count,
            *self._by_status(), self.live.viewers, self.push.sent,
            len(self.surge.cells), round(match.quantile(0.5), 3), round(match.quantile(0.99), 3),
        )  # fmt: skip

    def _by_status(self) -> tuple[int, int, int]:
        counts = np.bincount(self.index.snapshot().states & np.uint32(STATUS_MASK), minlength=16)
        return int(counts[AVAILABLE]), int(counts[RESERVED]), int(counts[ON_TRIP])

    async def import_map(self, source: Path, progress: Progress) -> str:
        """Import an OpenStreetMap extract and use it from the next start on."""
        return await self.maps.import_file(source, progress)

    async def serve_feed(self, socket: SocketSession) -> None:
        """The location feed's WebSocket."""
        await self.feed.serve_socket(socket)

    async def run_heavy(self, work: Callable[[], T]) -> T:
        """Run what takes longer than the loop may be held."""
        return await self._heavy.submit(work)

    def place_of(self, driver: int) -> tuple[float, float] | None:
        """Where a driver is now, None off the map."""
        if driver < 0:
            return None
        lat, lng = self.index.places(np.array([driver], np.uint32))
        return None if np.isnan(lat[0]) else (float(lat[0]), float(lng[0]))

    def pickup_s(self, lat: float, lng: float, product: Product) -> int | None:
        """Seconds until the nearest free driver for a product is there; None when nobody is near."""
        best, all_kinds = np.inf, len(product.vehicles) == len(CARS)
        for kind in product.vehicles[:1] if all_kinds else product.vehicles:
            (ranked,) = self.eta.rank_many(
                self.index, np.array([lat]), np.array([lng]),
                radius_m=self.settings.matching.radius_m, count=PICKUP_CANDIDATES,
                mask=STATUS_MASK if all_kinds else STATUS_MASK | VEHICLE_MASK,
                wanted=AVAILABLE if all_kinds else AVAILABLE | kind << VEHICLE_SHIFT,
            )  # fmt: skip
            best = min(best, float(ranked.etas.min(initial=np.inf)))
        return None if best == np.inf else round(best)

    def remaining_s(self, trip: Trip) -> float | None:
        """Seconds until the next stop of a trip, None where that makes no sense."""
        goal = {"accepted": trip.pickup, "in_progress": trip.dropoff}.get(trip.status)
        place = self.place_of(trip.driver)
        if goal is None or place is None:
            return None
        try:
            seconds = self.eta.to_pickup(goal.lat, goal.lng, np.array([place[0]]), np.array([place[1]]), limit_s=7_200)
        except FourplaneError:
            return None
        return round(float(seconds[0]), 1) if np.isfinite(seconds[0]) else None

    def count_estimate(self, _cell: int) -> None:
        """A rider looked at a price."""
        self.estimates += 1

    def heat(self) -> list[tuple[int, int, Surge]]:
        """Surge cells with free drivers, asks and factor."""
        free, surge = heat_cells(self), self.surge
        cells = sorted(free.keys() | surge.cells.keys() | surge.demand.keys())
        return [(cell, free.get(cell, 0), surge.seen(cell, free.get(cell, 0))) for cell in cells]

    async def _statistics(self, _call: Call[None]) -> DispatchStatistics:
        return self.statistics()

    async def _offers(self) -> None:
        while True:
            await clock.sleep(0.25)
            await self._attempt("an offer could not expire", self.rides.expire_offers)

    async def _follow(self) -> None:
        """Where the drivers under way are, for the replay; and who is not heard of any more."""
        while True:
            await clock.sleep(TRACK_S)
            rides = [
                ride for ride in self.rides.active.values() if ride.trip.status in UNDER_WAY and not ride.trip.sandbox
            ][:TRACKED_MAX]
            if not rides:
                continue
            now = clock.now_us()
            lats, lngs = self.index.places(np.array([ride.trip.driver for ride in rides], np.uint32))
            for ride, lat, lng in zip(rides, lats.tolist(), lngs.tolist(), strict=True):
                if lat == lat:  # noqa: PLR0124 - NaN: off the map
                    ride.lost_since_us = 0
                    if len(ride.track) < TRACK_MAX:
                        ride.track.append((now, round(lat, 6), round(lng, 6)))
                elif not ride.lost_since_us:
                    ride.lost_since_us = now
                elif now - ride.lost_since_us > self.settings.pricing.lost_s * 1e6:
                    lost_s = self.settings.pricing.lost_s
                    await self._attempt("a lost driver keeps a ride", partial(self.rides.lose, ride, lost_s=lost_s))

    def _go_by_the_hour(self) -> None:
        """The hour of the local day by the sun: an hour for 15 degrees, unless the settings say otherwise."""
        offset = self.settings.utc_offset_h
        offset_h = self.eta.roads.center[1] / 15 if offset is None else offset
        self.eta.at_hour(int(clock.now_us() / 3.6e9 + offset_h) % 24)

    async def _money(self) -> None:
        while True:
            await clock.sleep(0.2)
            if self.switches.payments.on:
                await self._attempt("fares wait", self.rides.settle_some)
            if self.switches.events.on:
                await self._attempt("trip events wait", self.rides.close_some)

    async def _undo_holds(self) -> None:
        while True:
            await clock.sleep(0.5)
            if self.switches.payments.on:
                await self._attempt("held money waits to be given back", self.rides.undo_holds)

    async def _surge(self) -> None:
        while True:
            await clock.sleep(self.settings.pricing.surge_refresh_s)
            self._go_by_the_hour()
            before = len(self.surge.cells)
            self.surge.refresh(heat_cells(self), clock.now_us())
            if bool(before) != bool(self.surge.cells):
                text = "surge began in parts of the city" if self.surge.cells else "surge is over"
                self.registry.event("info", "dispatch", text)
            await self._attempt(
                "old hours stay listed", lambda: self.store.forget_hours(clock.now_us() - 86_400_000_000)
            )

    async def _attempt(self, what: str, work: Callable[[], object]) -> None:
        try:
            await work()  # type: ignore[misc]
        except FourplaneError as error:
            self.registry.event("warning", "dispatch", f"{what}: {error}")


__all__ = ["Dispatch", "DispatchSettings", "DispatchStatistics", "parents"]

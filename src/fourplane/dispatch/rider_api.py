"""The rider's doors, in the shape of Uber's public rides API v1.2: products, estimates, requests.

A rider is an account, or a guest with a signed token (`POST /dispatch/api/guests`, then `Authorization: Bearer` or
`X-Rider-Token`). An estimate answers with a `fare_id`: the fare itself, signed, good for two minutes, so that no server has
to remember it and the price a rider saw is the price a ride costs, whatever the surge does meanwhile.
"""

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from fourplane.dispatch import trips
from fourplane.dispatch.cells import cell_id
from fourplane.dispatch.driver_index import check_point
from fourplane.dispatch.drivers import Profile
from fourplane.dispatch.near import bearer, point
from fourplane.dispatch.pricing import PRODUCTS, SURGE_LEVEL, Fare, FareLine, Product, find_product, price
from fourplane.dispatch.remembered import Remembered
from fourplane.dispatch.rides import Ride
from fourplane.dispatch.trip_processor import read_history
from fourplane.dispatch.trips import Place
from fourplane.edge.routes import Call, Priority, Reply, Route
from fourplane.foundation import clock, ids
from fourplane.foundation.errors import Forbidden, NotFound, Rejected, Unauthenticated

if TYPE_CHECKING:
    from fourplane.dispatch.app import Dispatch

API = "/dispatch/api"
RIDER, FARE = "dispatch-rider", "dispatch-fare"
GUEST_S = 7 * 86_400.0
KM_MAX = 200.0
KNOWN_S, KNOWN_MAX = 30.0, 10_000  # how long, and how many, tokens and fares are remembered as genuine


class Guest(msgspec.Struct, frozen=True):
    rider: str
    token: str


class ProductList(msgspec.Struct, frozen=True):
    products: tuple[Product, ...]


class PriceEstimate(msgspec.Struct, frozen=True):
    product_id: str
    display_name: str
    currency_code: str
    estimate: str
    low_estimate: str
    high_estimate: str
    surge_multiplier: float
    duration: int  # seconds
    distance: float  # km


class Prices(msgspec.Struct, frozen=True):
    prices: list[PriceEstimate]


class TimeEstimate(msgspec.Struct, frozen=True):
    product_id: str
    display_name: str
    estimate: int | None  # seconds until the nearest free driver is there, null: none near


class Times(msgspec.Struct, frozen=True):
    times: list[TimeEstimate]


class EstimateBody(msgspec.Struct, frozen=True):
    start_latitude: float
    start_longitude: float
    end_latitude: float
    end_longitude: float
    product_id: str = PRODUCTS[0].id
    start_name: str = ""
    end_name: str = ""


class FareAnswer(msgspec.Struct, frozen=True):
    fare_id: str
    value: str
    currency_code: str
    display: str
    expires_at: int
    breakdown: tuple[FareLine, ...]
    surge_multiplier: float
    surge_reason: str


class TripAnswer(msgspec.Struct, frozen=True):
    distance_unit: str
    distance_estimate: float
    duration_estimate: int
    line: list[tuple[float, float]]


class Estimate(msgspec.Struct, frozen=True):
    fare: FareAnswer
    trip: TripAnswer
    pickup_estimate: int | None  # minutes


class RequestBody(msgspec.Struct, frozen=True):
    """A ride at the price of an estimate."""

    fare_id: str
    payment_method: str = "card_ok"
    pin: bool = False


class RatingBody(msgspec.Struct, frozen=True):
    stars: int


class DriverAnswer(msgspec.Struct, frozen=True):
    profile: Profile
    lat: float | None
    lng: float | None


class RideAnswer(msgspec.Struct, frozen=True):
    """A ride as its rider sees it."""

    request_id: str
    product_id: str
    status: str
    pickup: Place
    destination: Place
    fare: Fare
    eta_s: float | None
    driver: DriverAnswer | None
    pin: str
    requested_at: int
    paid: str
    reason: str
    stars: int | None
    mds_state: str


class ReceiptAnswer(msgspec.Struct, frozen=True):
    request_id: str
    total_charged: str
    currency_code: str
    charges: tuple[FareLine, ...]
    distance_km: float
    duration_s: int
    driver: str
    vehicle: str
    payment: str


class _SignedFare(msgspec.Struct, frozen=True, array_like=True):
    rider: str
    start: Place
    end: Place
    fare: Fare


class RiderApi:
    """Handlers over a running `Dispatch`."""

    def __init__(self, dispatch: "Dispatch") -> None:
        self._d = dispatch
        self._riders: Remembered[str] = Remembered(KNOWN_MAX)
        self._fares: Remembered[_SignedFare] = Remembered(KNOWN_MAX)

    def routes(self) -> list[Route]:
        """All doors a rider needs."""
        urgent = Priority.CRITICAL
        return [
            Route("POST", f"{API}/guests", self.guest, "A rider without an account", answer=Guest,
                  rate_per_s=self._d.settings.guests_per_s),
            Route("GET", f"{API}/products", self.products, "Kinds of rides", answer=ProductList),
            Route("GET", f"{API}/products/{{product_id}}", self.product, "One kind of ride", answer=Product),
            Route("GET", f"{API}/estimates/price", self.prices, "What a way would cost, per product", answer=Prices),
            Route("GET", f"{API}/estimates/time", self.times, "How soon a driver could be there", answer=Times),
            Route("POST", f"{API}/requests/estimate", self.estimate, "An upfront fare: fare_id, good for two minutes",
                  body=EstimateBody, answer=Estimate, priority=urgent, rate_per_s=self._d.settings.ride_calls_per_s),
            Route("POST", f"{API}/requests", self.request, "Ask for a ride (Idempotency-Key repeats safely)",
                  body=RequestBody, answer=RideAnswer, priority=urgent, rate_per_s=self._d.settings.ride_calls_per_s),
            Route("GET", f"{API}/requests/current", self.current, "My ride under way", answer=RideAnswer, priority=urgent),
            Route("DELETE", f"{API}/requests/current", self.cancel_current, "Cancel my ride", answer=RideAnswer, priority=urgent),
            Route("GET", f"{API}/requests/{{request_id}}", self.show, "One ride", answer=RideAnswer, priority=urgent),
            Route("DELETE", f"{API}/requests/{{request_id}}", self.cancel, "Cancel a ride", answer=RideAnswer, priority=urgent),
            Route("GET", f"{API}/requests/{{request_id}}/map", self.map, "Lines for the map: driver's way and ride"),
            Route("GET", f"{API}/requests/{{request_id}}/receipt", self.receipt, "What was charged", answer=ReceiptAnswer),
            Route("GET", f"{API}/requests/{{request_id}}/story", self.story, "Why this driver: candidates, costs, reasons"),
            Route("POST", f"{API}/requests/{{request_id}}/rating", self.rate, "Rate the driver", body=RatingBody,
                  answer=RideAnswer),
            Route("POST", f"{API}/requests/{{request_id}}/block", self.block, "Not this driver again"),
            Route("GET", f"{API}/history", self.history, "My rides, newest first"),
        ]  # fmt: skip

    def rider_of(self, call: Call[Any]) -> str:
        """Who asks; raises Unauthenticated."""
        if token := call.headers.get("x-rider-token", ""):
            return self._said(token)
        if call.identity is not None:
            return f"account-{call.identity.account_id}"
        if token := bearer(call):
            return self._said(token)
        raise Unauthenticated(
            "say who you are: log in, or Authorization: Bearer with the token of POST /dispatch/api/guests",
            code="no_rider",
        )

    def _said(self, token: str) -> str:
        now_s = clock.monotonic_s()
        rider = self._riders.find(token, now_s)
        if rider is None:
            rider = self._d.signer.verify(RIDER, token)["rider"]
            self._riders.put(token, rider, now_s + KNOWN_S)
        return rider

    def _fare(self, fare_id: str) -> _SignedFare:
        """What a `fare_id` stands for; raises Unauthenticated."""
        known = self._fares.find(fare_id, clock.monotonic_s())
        if known is None:
            known = msgspec.json.decode(self._d.signer.verify(FARE, fare_id)["fare"], type=_SignedFare)
        return known

    async def guest(self, _call: Call[None]) -> Guest:
        rider = f"guest-{ids.capability(8)}"
        return Guest(rider, self._d.signer.sign(RIDER, {"rider": rider}, GUEST_S))

    async def products(self, _call: Call[None]) -> ProductList:
        return ProductList(PRODUCTS)

    async def product(self, call: Call[None]) -> Product:
        return find_product(call.params["product_id"])

    async def prices(self, call: Call[None]) -> Prices:
        self._d.switches.pricing.check()
        start, end = point(call, "start"), point(call, "end")
        route = self._d.eta.route(*start, *end)
        surge = self._d.surge.at(cell_id(*start, SURGE_LEVEL))
        found = []
        for product in PRODUCTS:
            fare = price(
                product, metres=route.metres, seconds=route.seconds, surge=surge, settings=self._d.settings.pricing
            )
            total = fare.total
            found.append(PriceEstimate(
                product.id, product.name, total.currency, total.text(), total.digits(), total.digits(),
                surge.factor, round(route.seconds), round(route.metres / 1_000, 2),
            ))  # fmt: skip
        return Prices(found)

    async def times(self, call: Call[None]) -> Times:
        start = point(call, "start")
        self._d.eta.snap(*start, "the start")
        return Times([TimeEstimate(p.id, p.name, self._d.pickup_s(*start, p)) for p in PRODUCTS])

    async def estimate(self, call: Call[EstimateBody]) -> Estimate:
        self._d.switches.pricing.check()
        body, rider = call.body, self.rider_of(call)
        product = find_product(body.product_id)
        start = Place(body.start_latitude, body.start_longitude, body.start_name[:80])
        end = Place(body.end_latitude, body.end_longitude, body.end_name[:80])
        for place in (start, end):
            check_point(place.lat, place.lng)
        route = self._d.eta.route(start.lat, start.lng, end.lat, end.lng)
        if route.metres > KM_MAX * 1_000:
            raise Rejected(f"rides go up to {KM_MAX:.0f} km", code="too_far")
        cell = cell_id(start.lat, start.lng, SURGE_LEVEL)
        fare = price(
            product,
            metres=route.metres,
            seconds=route.seconds,
            surge=self._d.surge.at(cell),
            settings=self._d.settings.pricing,
        )
        ttl = self._d.settings.pricing.fare_ttl_s
        offered = _SignedFare(rider, start, end, fare)
        fare_id = self._d.signer.sign(FARE, {"fare": msgspec.json.encode(offered).decode()}, ttl)
        self._fares.put(fare_id, offered, clock.monotonic_s() + ttl)
        answer = FareAnswer(
            fare_id, fare.total.digits(), fare.total.currency,
            fare.total.text(), (clock.now_us() + int(ttl * 1e6)) // 1_000_000, fare.lines, fare.surge, fare.surge_reason,
        )  # fmt: skip
        self._d.count_estimate(cell)
        soon = self._d.pickup_s(start.lat, start.lng, product)
        trip = TripAnswer("km", round(route.metres / 1_000, 2), round(route.seconds), thin(route.line))
        return Estimate(answer, trip, None if soon is None else max(1, round(soon / 60)))

    async def request(self, call: Call[RequestBody]) -> Reply:
        rider = self.rider_of(call)
        self._d.switches.matching.check()
        self._d.switches.trips.check()
        signed = self._fare(call.body.fare_id)
        if signed.rider != rider:
            raise Forbidden("this fare was offered to somebody else", code="foreign_fare")
        if not rider.startswith(trips.SANDBOX):
            self._d.surge.asked(cell_id(signed.start.lat, signed.start.lng, SURGE_LEVEL), clock.now_us())
        pin = f"{int.from_bytes(clock.token_bytes(4), 'big') % 10_000:04d}" if call.body.pin else ""
        trip = await self._d.rides.request(
            rider, signed.fare, signed.start, signed.end, method=call.body.payment_method,
            key=call.headers.get("idempotency-key", "")[:100], pin=pin,
        )  # fmt: skip
        answer = self.answer(await self._d.rides.find(trip.id))
        return Reply(msgspec.json.encode(answer), status=202, media_type="application/json")

    async def current(self, call: Call[None]) -> RideAnswer:
        ride = self._d.rides.of_rider(self.rider_of(call))
        if ride is None:
            raise NotFound("you have no ride under way", code="no_ride")
        return self.answer(ride)

    async def show(self, call: Call[None]) -> RideAnswer:
        return self.answer(await self.own(call))

    async def cancel_current(self, call: Call[None]) -> RideAnswer:
        ride = self._d.rides.of_rider(self.rider_of(call))
        if ride is None:
            raise NotFound("you have no ride under way", code="no_ride")
        await self._d.rides.cancel(ride.trip.id, ride.trip.rider)
        return self.answer(ride)

    async def cancel(self, call: Call[None]) -> RideAnswer:
        ride = await self.own(call)
        await self._d.rides.cancel(ride.trip.id, ride.trip.rider)
        return self.answer(ride)

    async def map(self, call: Call[None]) -> dict[str, Any]:
        ride = await self.own(call)
        trip = ride.trip
        lines: dict[str, list[tuple[float, float]]] = {"approach": [], "ride": []}
        place = self._d.place_of(trip.driver)
        eta = self._d.eta
        if place is not None and trip.status in {"accepted", "offered"}:
            lines["approach"] = thin(eta.route(*place, trip.pickup.lat, trip.pickup.lng).line)
        start = place if place is not None and trip.status == "in_progress" else (trip.pickup.lat, trip.pickup.lng)
        if not trip.ended:
            lines["ride"] = thin(eta.route(*start, trip.dropoff.lat, trip.dropoff.lng).line)
        return dict(lines)

    async def receipt(self, call: Call[None]) -> ReceiptAnswer:
        ride = await self.own(call)
        trip = ride.trip
        if not trip.ended or trip.fare is None or trip.due is None:
            raise NotFound("the ride has not ended", code="no_receipt")
        charges = trip.fare.lines if trip.status == "completed" else (FareLine(trip.reason, trip.due),)
        driver = self._d.drivers.profile(trip.driver) if trip.driver >= 0 else None
        took = (trip.ended_us - trip.started_us) // 1_000_000 if trip.started_us else 0
        return ReceiptAnswer(
            ids.encode("trip", trip.id), trip.due.digits(), trip.due.currency, charges,
            round(trip.fare.metres / 1_000, 2) if trip.started_us else 0.0, took,
            driver.name if driver else "", f"{driver.color} {driver.vehicle}, {driver.plate}" if driver else "",
            trip.settled.payment if trip.settled else "pending",
        )  # fmt: skip

    async def story(self, call: Call[None]) -> dict[str, Any]:
        ride = await self.own(call)
        events = await self._d.rides.history(ride.trip.id)
        return {
            "request_id": ids.encode("trip", ride.trip.id),
            "events": [msgspec.to_builtins(event) for event in events],
            "decisions": [msgspec.to_builtins(decision.story()) for decision in ride.decisions],
        }

    async def rate(self, call: Call[RatingBody]) -> RideAnswer:
        ride = await self.own(call)
        await self._d.rides.rate(ride.trip.id, "rider", ride.trip.rider, call.body.stars)
        return self.answer(ride)

    async def block(self, call: Call[None]) -> dict[str, Any]:
        trip = (await self.own(call)).trip
        if trip.driver < 0:
            raise NotFound("no driver took this ride", code="no_driver")
        await self._d.blocks.add(trip.rider, trip.driver)
        return {"blocked": trip.driver}

    async def history(self, call: Call[None]) -> dict[str, Any]:
        rows = await read_history(self._d.records, f"dispatch/riders/{self.rider_of(call)}")
        return {"rides": [
            {"request_id": ids.encode("trip", row.trip), "requested_at": row.at_us // 1_000_000, "status": row.status,
             "pickup": row.pickup, "destination": row.dropoff, "total": row.total.text()}
            for row in rows
        ]}  # fmt: skip

    async def own(self, call: Call[Any]) -> Ride:
        ride = await self._d.rides.find(ids.decode("trip", call.params["request_id"]))
        if ride.trip.rider != self.rider_of(call):
            raise NotFound("no such ride", code="no_ride")
        return ride

    def answer(self, ride: Ride) -> RideAnswer:
        trip = ride.trip
        assert trip.fare is not None
        driver = None
        if trip.driver >= 0:
            place = self._d.place_of(trip.driver)
            lat, lng = place if place is not None else (None, None)
            driver = DriverAnswer(self._d.drivers.profile(trip.driver), lat, lng)
        paid = "" if trip.settled is None else trip.settled.payment
        return RideAnswer(
            ids.encode("trip", trip.id), trip.fare.product_id, "processing" if trip.status == "offered" else trip.status,
            trip.pickup, trip.dropoff, trip.fare, self._d.remaining_s(trip), driver, trip.pin, trip.requested_us // 1_000_000,
            paid, trip.reason, trip.stars.get("rider"), trips.mds_state(trip.status, heard=not ride.lost_since_us),
        )  # fmt: skip


def thin(line: list[tuple[float, float]], most: int = 400) -> list[tuple[float, float]]:
    """A line for drawing: six decimals, not more points than anybody sees."""
    step = max(1, len(line) // most)
    kept = line[::step] + ([line[-1]] if line and (len(line) - 1) % step else [])
    rounded: list[tuple[float, float]] = np.round(np.array(kept), 6).tolist() if kept else []
    return rounded

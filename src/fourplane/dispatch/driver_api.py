"""The driver's doors: register, go online, report where you are, answer offers, earn; and fleets for gateways.

A driver holds a signed token: `Authorization: Bearer`, `X-Driver-Token` beside an account's session, or `?token=` on the
WebSocket, where the same token opens the location feed for this one driver. Fleets are an operator's: thousands of numbers
and one token for their gateway.
"""

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from fourplane.dispatch.driver_index import check_point, make_updates
from fourplane.dispatch.driver_verbs import DriverVerb
from fourplane.dispatch.drivers import Profile
from fourplane.dispatch.near import bearer
from fourplane.dispatch.ride_news import OfferNews
from fourplane.dispatch.trip_processor import read_history
from fourplane.dispatch.trips import Place
from fourplane.edge.routes import Call, Priority, Route, SocketRoute
from fourplane.foundation import clock, ids
from fourplane.foundation.errors import Conflict, Forbidden, Rejected, Unauthenticated
from fourplane.foundation.money import Money

if TYPE_CHECKING:
    from fourplane.dispatch.app import Dispatch

API = "/dispatch/api"
DRIVER = "dispatch-driver"
TOKEN_S = 7 * 86_400.0
FLEET_MAX = 1_000_000
WITHOUT_TRIP = ("online", "offline", "pause")


class NewDriver(msgspec.Struct, frozen=True):
    name: str
    vehicle: int = 0


class DriverToken(msgspec.Struct, frozen=True):
    driver: int
    token: str
    feed_token: str
    profile: Profile


class NewFleet(msgspec.Struct, frozen=True):
    """Numbers for a gateway's drivers; the same name and count get the same numbers again."""

    name: str
    count: int


class FleetToken(msgspec.Struct, frozen=True):
    first: int
    count: int
    feed_token: str
    feed_port: int


class VerbBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    trip: str = ""  # the one I have or am offered where it is left out
    pin: str = ""
    stars: int = 0


class PositionBody(msgspec.Struct, frozen=True):
    latitude: float
    longitude: float


class DriverTrip(msgspec.Struct, frozen=True):
    """A trip as its driver sees it."""

    trip: str
    status: str
    pickup: Place
    dropoff: Place
    product: str
    pin: bool


class DriverState(msgspec.Struct, frozen=True):
    profile: Profile
    online: bool
    lat: float | None
    lng: float | None
    offer: OfferNews | None
    trip: DriverTrip | None


class DriverApi:
    """Handlers over a running `Dispatch`."""

    def __init__(self, dispatch: "Dispatch") -> None:
        self._d = dispatch
        self._sequences: dict[int, int] = {}

    def doors(self) -> list[Route | SocketRoute]:
        """All doors a driver needs."""
        urgent = Priority.CRITICAL
        verbs = (*WITHOUT_TRIP, "accept", "decline", "arrive", "start", "finish", "cancel", "rate")
        return [
            Route("POST", f"{API}/drivers", self.register, "Become a driver", body=NewDriver, answer=DriverToken, rate_per_s=5),
            Route("POST", f"{API}/fleets", self.fleet, "Numbers and a feed token for a gateway's drivers",
                  body=NewFleet, answer=FleetToken, access="operator"),
            Route("GET", f"{API}/drivers/me", self.me, "What I am doing", answer=DriverState, priority=urgent),
            Route("POST", f"{API}/drivers/me/position", self.position, "Where I am (the feed does this better)",
                  body=PositionBody, answer=DriverState),
            Route("POST", f"{API}/drivers/me/block", self.block, "Not this rider again", body=VerbBody),
            Route("GET", f"{API}/drivers/me/earnings", self.earnings, "My rides and what they brought"),
            *(
                Route("POST", f"{API}/drivers/me/{verb}", self._verb(verb), f"Driver: {verb}", body=VerbBody,
                      answer=DriverState, priority=urgent)
                for verb in verbs
            ),
            SocketRoute(f"{API}/feed", self._d.serve_feed, "The location feed over a WebSocket: frames or JSON"),
        ]  # fmt: skip

    def driver_of(self, call: Call[Any]) -> int:
        """Who asks; raises Unauthenticated."""
        token = call.headers.get("x-driver-token", "") or bearer(call)
        if not token:
            raise Unauthenticated(
                "say who you are: Authorization: Bearer with the token of POST /dispatch/api/drivers", code="no_driver"
            )
        return int(self._d.signer.verify(DRIVER, token)["driver"])

    async def register(self, call: Call[NewDriver]) -> DriverToken:
        name = " ".join(call.body.name.split())[:40]
        if not name:
            raise Rejected("a driver has a name", code="bad_name")
        block = await self._d.drivers.register(f"driver-{ids.capability(8)}", 1, name=name, vehicle=call.body.vehicle)
        token = self._d.signer.sign(DRIVER, {"driver": str(block.first)}, TOKEN_S)
        return DriverToken(
            block.first, token, self._d.feed.token(block.first, 1, TOKEN_S), self._d.drivers.profile(block.first)
        )

    async def fleet(self, call: Call[NewFleet]) -> FleetToken:
        if not 1 <= call.body.count <= FLEET_MAX or not call.body.name:
            raise Rejected(f"a fleet has a name and 1 to {FLEET_MAX:,} drivers", code="bad_fleet")
        block = await self._d.drivers.register(f"fleet-{call.body.name[:60]}", call.body.count)
        token = self._d.feed.token(block.first, block.count, TOKEN_S)
        return FleetToken(block.first, block.count, token, self._d.feed.port)

    async def me(self, call: Call[None]) -> DriverState:
        return self._state(self.driver_of(call))

    async def position(self, call: Call[PositionBody]) -> DriverState:
        number = self.driver_of(call)
        check_point(call.body.latitude, call.body.longitude)
        if not self._d.drivers.online(number):
            raise Conflict("say first that you are online: POST /dispatch/api/drivers/me/online", code="offline")
        sequence = clock.now_us() // 62_500 & 0xFFFFFFFF
        updates = make_updates(
            np.array([number], np.uint32), np.array([call.body.latitude]), np.array([call.body.longitude]),
            np.array([sequence], np.uint32),
        )  # fmt: skip
        self._d.feed.positions(updates, number, number + 1)
        return self._state(number)

    async def block(self, call: Call[VerbBody]) -> dict[str, Any]:
        number = self.driver_of(call)
        trip = (await self._d.rides.find(ids.decode("trip", call.body.trip))).trip
        if trip.driver != number:
            raise Forbidden("this is not your trip", code="not_your_trip")
        await self._d.blocks.add(trip.rider, number)
        return {"blocked": call.body.trip}

    async def earnings(self, call: Call[None]) -> dict[str, Any]:
        rows = await read_history(self._d.records, f"dispatch/driver/{self.driver_of(call)}", limit=200)
        currency = self._d.settings.pricing.currency
        return {
            "total": Money.total([row.earned for row in rows], currency).text(),
            "rides": [
                {
                    "trip": ids.encode("trip", row.trip),
                    "at": row.at_us // 1_000_000,
                    "status": row.status,
                    "earned": row.earned.text(),
                }
                for row in rows[:50]
            ],
        }

    def _verb(self, verb: str) -> Any:
        async def handler(call: Call[VerbBody]) -> DriverState:
            number, body = self.driver_of(call), call.body
            trip = body.trip or ("" if verb in WITHOUT_TRIP else self._own(number))
            wanted = msgspec.convert(
                {"verb": verb, "driver": number, "trip": trip, "pin": body.pin, "stars": body.stars}, DriverVerb
            )
            await self._d.desk.perform(wanted)
            return self._state(number)

        return handler

    def _own(self, number: int) -> str:
        """The ride a driver has or is offered; raises Conflict."""
        ride = self._d.rides.of_driver(number)
        if ride is None:
            raise Conflict("you have no ride and no offer", code="no_ride")
        return ids.encode("trip", ride.trip.id)

    def _state(self, number: int) -> DriverState:
        ride = self._d.rides.of_driver(number)
        place = self._d.place_of(number)
        lat, lng = place if place is not None else (None, None)
        offer = trip = None
        if ride is not None and ride.trip.fare is not None:
            if ride.trip.offered_to == number:
                offer = self._d.rides.offer_news(ride)
            elif ride.trip.driver == number:
                trip = DriverTrip(
                    ids.encode("trip", ride.trip.id), ride.trip.status, ride.trip.pickup, ride.trip.dropoff,
                    ride.trip.fare.product_id, bool(ride.trip.pin),
                )  # fmt: skip
        return DriverState(self._d.drivers.profile(number), self._d.drivers.online(number), lat, lng, offer, trip)

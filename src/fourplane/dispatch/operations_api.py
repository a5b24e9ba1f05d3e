"""An operator's doors: the latest rides, and one ride with its events, its decisions and the car's track, for the replay."""

from typing import TYPE_CHECKING, Any

import msgspec

from fourplane.dispatch.rides import Ride
from fourplane.dispatch.trips import Place
from fourplane.edge.routes import Call, Route
from fourplane.foundation import ids

if TYPE_CHECKING:
    from fourplane.dispatch.app import Dispatch

API = "/dispatch/api/operations"
LISTED = 25  # of each kind: under way, ended, waiting
UNDER_WAY = frozenset({"accepted", "arriving", "in_progress"})


class TripRow(msgspec.Struct, frozen=True):
    """One ride in the list."""

    request_id: str
    status: str
    driver: int
    requested_at: int
    total: str
    metres: float
    pickup: Place
    dropoff: Place


class TripRows(msgspec.Struct, frozen=True):
    trips: list[TripRow]


class OperationsApi:
    """Handlers over a running `Dispatch`."""

    def __init__(self, dispatch: "Dispatch") -> None:
        self._d = dispatch

    def routes(self) -> list[Route]:
        """All doors of operations."""
        return [
            Route("GET", f"{API}/trips", self.trips, "The latest rides", answer=TripRows, access="operator"),
            Route("GET", f"{API}/trips/{{request_id}}", self.trip, "One ride for the replay", access="operator"),
        ]

    async def trips(self, _call: Call[None]) -> TripRows:
        rides = self._d.rides
        under_way = [ride for ride in rides.active.values() if ride.trip.status in UNDER_WAY]
        waiting = [ride for ride in rides.active.values() if not ride.trip.ended and ride.trip.status not in UNDER_WAY]
        latest = [*under_way[-LISTED:], *list(rides.closed.values())[-LISTED:], *waiting[-LISTED:]]
        return TripRows([_row(ride) for ride in sorted(latest, key=lambda ride: -ride.trip.requested_us)])

    async def trip(self, call: Call[None]) -> dict[str, Any]:
        number = ids.decode("trip", call.params["request_id"])
        ride = await self._d.rides.find(number)
        trip = ride.trip
        return {
            "request_id": call.params["request_id"],
            "status": trip.status,
            "pickup": trip.pickup,
            "dropoff": trip.dropoff,
            "events": [msgspec.to_builtins(event) for event in await self._d.rides.history(number)],
            "decisions": [msgspec.to_builtins(decision.story()) for decision in ride.decisions],
            "track": ride.track or await self._d.store.track(number),
        }


def _row(ride: Ride) -> TripRow:
    trip = ride.trip
    assert trip.fare is not None
    return TripRow(
        ids.encode("trip", trip.id), trip.status, max(trip.driver, trip.offered_to), trip.requested_us // 1_000_000,
        trip.fare.total.text(), trip.fare.metres, trip.pickup, trip.dropoff,
    )  # fmt: skip

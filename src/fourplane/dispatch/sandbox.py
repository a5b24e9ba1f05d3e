"""Rides for programmers: a sandbox rider's ride moves when its program says so, and touches nobody.

As in Uber's v1.2 sandbox, `PUT /sandbox/requests/{id}` with a status takes the ride there, step by step, through the very
verbs a driver would use; webhooks, push and receipts follow. A sandbox ride is never matched, moves no money and does not
count for surge. Its drivers are numbers of their own that are never on the map.
"""

from typing import TYPE_CHECKING, Literal

import numpy as np

from fourplane.dispatch.rides import Ride
from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, Overloaded

if TYPE_CHECKING:
    from fourplane.dispatch.app import Dispatch

DRIVERS = 200
OFFER_S = 300.0
ORDER = ("processing", "accepted", "arriving", "in_progress", "completed")
SandboxStatus = Literal[
    "processing", "accepted", "arriving", "in_progress", "completed",
    "rider_canceled", "driver_canceled", "no_drivers_available",
]  # fmt: skip


class Sandbox:
    """Moves sandbox rides."""

    def __init__(self, dispatch: "Dispatch") -> None:
        self._d = dispatch

    async def move(self, ride: Ride, status: SandboxStatus) -> None:
        """Take a ride to a status; raises Conflict where no way leads there."""
        rides, trip = self._d.rides, ride.trip
        match status:
            case "rider_canceled":
                await rides.cancel(trip.id, trip.rider)
            case "driver_canceled":
                await rides.give_back(trip.id, trip.driver)
            case "no_drivers_available":
                await rides.give_up(ride)
            case _ if trip.status not in ORDER or ORDER.index(trip.status) > ORDER.index(status):
                raise Conflict(f"the ride is {trip.status}, no way leads to {status}", code="wrong_state")
            case _:
                while trip.status != status:
                    await self._step(ride)

    async def _step(self, ride: Ride) -> None:
        rides, trip = self._d.rides, ride.trip
        match trip.status:
            case "processing":
                driver = await self._driver()
                await rides.offer(ride, driver, OFFER_S)
                await rides.accept(trip.id, driver)
            case "accepted":
                await rides.arrive(trip.id, trip.driver)
            case "arriving":
                await rides.start(trip.id, trip.driver, trip.pin)
            case _:
                await rides.finish(trip.id, trip.driver)

    async def _driver(self) -> int:
        drivers = self._d.drivers
        block = await drivers.register("sandbox", DRIVERS, name="Sandy")
        numbers = np.arange(block.first, block.first + block.count)
        free = numbers[drivers.trips[numbers] == 0]
        if len(free) == 0:
            raise Overloaded("all sandbox drivers have a ride")
        drivers.go_online(free[:1].astype(np.uint32), clock.now_us())
        return int(free[0])

"""What a driver can do, the same from the page, from the feed and over HTTP.

online, offline, pause; for a trip: accept, decline, arrive, start (with the rider's PIN where asked), finish, cancel,
rate. Every verb may be repeated: doing again what is done changes nothing.
"""

from collections.abc import Iterator
from typing import Literal, assert_never

import msgspec
import numpy as np

from fourplane.control.nodes import Switch
from fourplane.dispatch.drivers import Drivers
from fourplane.dispatch.ride_news import DriverNews, OfferNews
from fourplane.dispatch.rides import Rides
from fourplane.dispatch.trips import Trip
from fourplane.foundation import clock, ids
from fourplane.foundation.errors import Rejected

Verb = Literal["online", "offline", "pause", "accept", "decline", "arrive", "start", "finish", "cancel", "rate"]
DRIVERS_AT_ONCE = 100_000


class DriverVerb(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One thing done by one driver, or `online`/`offline` by drivers first..first + count - 1."""

    verb: Verb
    driver: int
    count: int = 1
    trip: str = ""
    pin: str = ""
    stars: int = 0

    def numbers(self) -> tuple[int, int]:
        """The first and last driver this is about."""
        return self.driver, self.driver + self.count - 1


class DriverDesk:
    """Performs verbs; stops where the trip service was stopped by an operator."""

    def __init__(self, drivers: Drivers, rides: Rides, *, trips_switch: Switch) -> None:
        self._drivers, self._rides, self._switch = drivers, rides, trips_switch

    def news_of(self, first: int, end: int) -> Iterator[OfferNews | DriverNews]:
        """See `Rides.news_of`."""
        return self._rides.news_of(first, end)

    async def perform(self, verb: DriverVerb) -> Trip | None:  # noqa: PLR0912 - one arm per verb
        """Do it; the trip as it is then, None for online and offline. Raises what the trip's rules say."""
        number = verb.driver
        if not 1 <= verb.count <= DRIVERS_AT_ONCE:
            raise Rejected(f"count is 1 to {DRIVERS_AT_ONCE}", code="bad_count")
        match verb.verb:
            case "online":
                self._drivers.go_online(np.arange(number, number + verb.count, dtype=np.uint32), clock.now_us())
                return None
            case "offline":
                self._drivers.go_offline(np.arange(number, number + verb.count, dtype=np.uint32))
                return None
            case "pause":
                self._drivers.pause(number)
                return None
            case _:
                pass
        self._switch.check()
        trip_id = ids.decode("trip", verb.trip)
        match verb.verb:
            case "accept":
                return await self._rides.accept(trip_id, number)
            case "decline":
                return await self._rides.decline(trip_id, number)
            case "arrive":
                return await self._rides.arrive(trip_id, number)
            case "start":
                return await self._rides.start(trip_id, number, verb.pin)
            case "finish":
                return await self._rides.finish(trip_id, number)
            case "cancel":
                return await self._rides.give_back(trip_id, number)
            case "rate":
                return await self._rides.rate(trip_id, "driver", str(number), verb.stars)
            case _:
                assert_never(verb.verb)

"""A program: a dozen riders and forty drivers as fast as they can, each acknowledged step said aloud, until it is killed."""

import asyncio
import contextlib
import sys
from pathlib import Path

import numpy as np
from tests.failure.dispatch.rides_until_killed import say
from tests.journeys.dispatch.rig import City, running

from fourplane.dispatch.driver_index import make_updates
from fourplane.foundation import clock, ids
from fourplane.foundation.errors import FourplaneError

RIDERS, DRIVERS = 12, 40
NEXT = {"offered": "accept", "accepted": "arrive", "arriving": "start", "in_progress": "finish"}


async def report(city: City, numbers: np.ndarray, places: list[tuple[float, float]]) -> None:
    lat, lng = np.array(places[: len(numbers)]).T
    sequence = 1
    while True:
        sequence += 1
        updates = make_updates(numbers, lat, lng, np.full(len(numbers), sequence, np.uint32))
        city.dispatch.feed.positions(updates, int(numbers[0]), int(numbers[-1]) + 1)
        await clock.sleep(0.5)


async def drive(city: City) -> None:
    rides = city.dispatch.rides
    while True:
        for ride in list(rides.active.values()):
            trip = ride.trip
            verb, driver = NEXT.get(trip.status), max(trip.driver, trip.offered_to)
            with contextlib.suppress(FourplaneError):
                if verb is not None:
                    await getattr(rides, verb)(trip.id, driver)
                    say({"accept": "accepted", "arrive": "arriving", "start": "in_progress", "finish": "completed"}[verb],
                        ids.encode("trip", trip.id), driver)  # fmt: skip
        await clock.sleep(0.01)


async def ride(city: City, places: list[tuple[float, float]], number: int) -> None:
    rider = await city.guest()
    while True:
        asked = await rider.request(places[number], places[number + RIDERS])
        say("processing", asked["request_id"], -1)
        await rider.wait_for(asked["request_id"], lambda now: now["paid"] != "", tries=2_000)


async def main(folder: Path) -> None:
    async with running(data=folder) as city:
        places = city.points(DRIVERS + 2 * RIDERS)
        block = await city.dispatch.drivers.register("fleet", DRIVERS)
        numbers = np.arange(block.first, block.first + DRIVERS, dtype=np.uint32)
        city.dispatch.drivers.go_online(numbers, clock.now_us())
        async with asyncio.TaskGroup() as group:
            group.create_task(report(city, numbers, places))
            group.create_task(drive(city))
            for number in range(RIDERS):
                group.create_task(ride(city, places[DRIVERS:], number))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))

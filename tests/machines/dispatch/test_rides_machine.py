"""Riders, drivers and time in any order: never two drivers on a trip, never two trips on a driver, money balances."""

import contextlib

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.journeys.dispatch.rig import QUICK, City, build

from fourplane.dispatch import pricing
from fourplane.dispatch.driver_index import make_updates
from fourplane.dispatch.trips import Place
from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError
from fourplane.simulator.loop import World, run

RIDERS, DRIVERS = 4, 4
VERBS = (
    "request", "cancel", "accept", "decline", "arrive", "start", "finish", "give_back", "wait", "offline", "online"
)  # fmt: skip
STEPS = st.lists(
    st.tuples(
        st.sampled_from((*VERBS, "request", "next", "next", "next", "give_back")),
        st.integers(0, 3),
    ),
    min_size=15, max_size=40,
)  # fmt: skip


async def act(city: City, verb: str, who: int, places: list[tuple[float, float]]) -> None:
    rides, drivers = city.dispatch.rides, city.dispatch.drivers
    own = rides.of_driver(who)
    trip = own.trip.id if own is not None else 1
    match verb:
        case "request":
            start, end = Place(*places[who]), Place(*places[who + 4])
            fare = pricing.price(
                pricing.PRODUCTS[0], metres=2_000, seconds=300, surge=pricing.NO_SURGE, settings=QUICK.pricing
            )
            await rides.request(f"rider-{who}", fare, start, end, method="card_ok")
        case "cancel":
            ride = rides.of_rider(f"rider-{who}")
            if ride is not None:
                await rides.cancel(ride.trip.id, ride.trip.rider)
        case "next" if own is not None:  # what an honest driver would do now
            verbs = {"offered": "accept", "accepted": "arrive", "arriving": "start", "in_progress": "finish"}
            await getattr(rides, verbs[own.trip.status])(trip, who)
        case "next":
            pass
        case "wait":
            await clock.sleep(0.4 * (who + 1))
        case "offline":
            drivers.go_offline(np.array([who], np.uint32))
        case "online":
            drivers.go_online(np.array([who], np.uint32), clock.now_us())
            report(city, places)
        case _:
            await getattr(rides, verb)(trip, who)


def report(city: City, places: list[tuple[float, float]]) -> None:
    lat, lng = np.array(places[:DRIVERS]).T
    numbers = np.arange(DRIVERS, dtype=np.uint32)
    sequence = np.full(DRIVERS, clock.now_us() // 1_000 & 0x7FFFFFFF, np.uint32)
    city.dispatch.feed.positions(make_updates(numbers, lat, lng, sequence), 0, DRIVERS)


async def story(steps: list[tuple[str, int]]) -> None:
    city = await build(host="city")
    places = city.points(8)
    await city.dispatch.drivers.register("fleet", DRIVERS)
    city.dispatch.drivers.go_online(np.arange(DRIVERS, dtype=np.uint32), clock.now_us())
    for verb, who in steps:
        report(city, places)
        with contextlib.suppress(FourplaneError):  # refused is fine; a broken invariant is not
            await act(city, verb, who, places)
        await clock.sleep(0.1)
        city.dispatch.rides.check()
    assert sum((await city.payments.balances()).get("EUR", {}).values()) == 0
    city.client.close()
    await city.life.stop()
    city.gateway.close()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_no_order_of_events_gives_a_trip_two_drivers_or_a_driver_two_trips(steps: list[tuple[str, int]]) -> None:
    async def main(_world: World) -> None:
        await story(steps)

    run(main, seed=5)

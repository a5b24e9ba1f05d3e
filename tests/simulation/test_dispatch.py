"""The whole system in virtual time: the same seed gives the same rides, to the message."""

import asyncio

from tests.journeys.dispatch.rig import City, Driver, Refused, running

from fourplane.foundation import clock
from fourplane.simulator.loop import World, run

NEXT = {"accepted": "arrive", "arriving": "start", "in_progress": "finish"}


async def act(driver: Driver) -> None:
    """One step of a driver's evening; an offer that lapsed while they thought about it is gone."""
    state, rng = await driver.me(), clock.random()
    try:
        if state["offer"]:
            await driver.do("decline" if rng.random() < 0.3 else "accept", state["offer"]["trip"])
        elif state["trip"]:
            await driver.do(NEXT[state["trip"]["status"]], state["trip"]["trip"])
    except Refused as refused:
        if refused.code != "offer_gone":
            raise


async def ride_all(city: City) -> dict[str, int]:
    places, rng = city.points(26, seed=3, spread=0.02), clock.random()
    drivers = [await city.driver(*place, name=f"D{n}") for n, place in enumerate(places[:8])]
    riders = []
    for n in range(6):
        rider = await city.guest()
        riders.append((rider, (await rider.request(places[8 + 2 * n], places[9 + 2 * n], key=f"k{n}"))["request_id"]))
        await clock.sleep(rng.random() * 2)
    for _ in range(60):
        for driver, place in zip(drivers, places, strict=False):
            await act(driver)
            await driver.move(*place)
        city.dispatch.rides.check()
        if all([(await rider.show(ride))["paid"] for rider, ride in riders]):
            break
    counts = city.dispatch.rides.statistics()
    assert sum((await city.payments.balances())["EUR"].values()) == 0
    return {"completed": counts.completed, "unserved": counts.unserved, "declined": counts.declined}


async def evening(world: World) -> dict[str, int]:
    """A few riders, and drivers who decline now and then."""
    async with running(host="city") as city:
        return await ride_all(city)


async def make_map() -> None:
    """Once per machine, so that both runs find it made."""
    async with running():
        pass


def test_an_evening_runs_twice_to_the_same_digest() -> None:
    asyncio.run(make_map())
    first, second = run(evening, seed=11), run(evening, seed=11)
    assert first.digest == second.digest
    assert first.result == second.result
    assert first.result["completed"] + first.result["unserved"] == 6
    assert first.result["completed"] >= 4

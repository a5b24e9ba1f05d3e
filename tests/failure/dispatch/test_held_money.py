"""A crash before or after every step of a request, and again while that is cleaned up: no money is held without a ride."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from fourplane.dispatch import pricing, roads
from fourplane.dispatch.driver_index import IndexSettings, open_index
from fourplane.dispatch.drivers import Drivers
from fourplane.dispatch.eta import Eta
from fourplane.dispatch.matching import MatchingSettings
from fourplane.dispatch.pricing import PricingSettings
from fourplane.dispatch.push import Push
from fourplane.dispatch.rides import Rides
from fourplane.dispatch.trip_store import TripStore
from fourplane.dispatch.trips import Place
from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, Rejected, Unavailable
from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Registry
from fourplane.service.card_simulator import CardSimulator
from fourplane.simulator.loop import run
from fourplane.state.stores import Stores, StoresSettings

MEMORY = StoresSettings(sql="memory://", records="memory://", log="memory://", search="memory://")
STREET = roads.build(
    np.array([41.0, 41.001, 41.002]), np.array([-8.0, -8.0, -8.0]), [roads.Way((0, 1, 2), 3)], name="street"
)
START, END = Place(41.0, -8.0), Place(41.002, -8.0)
FARE = pricing.price(pricing.PRODUCTS[0], metres=222, seconds=30, surge=pricing.NO_SURGE, settings=PricingSettings())
STEPS = ("write", "authorise", "void", "capture")
PAYMENT, FIRST_EVENT = 3, 4  # after the key, the hour and the intent


class Died(BaseException):
    """The process is gone."""


class Mortal:
    """Passes everything on and dies at the step with the number `at`: before it is done (`late` False) or after."""

    def __init__(self, real: object, fate: "Fate") -> None:
        self._real, self._fate = real, fate

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        return self._fate.guard(found) if name in STEPS else found


class Fate:
    def __init__(self, at: int = -1, *, late: bool = False, error: type[BaseException] | None = Died) -> None:
        self.at, self.late, self.error, self.steps = at, late, error, 0
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()  # instead of an error: wait there

    def guard(self, work: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def guarded(*args: object, **named: object) -> object:
            step, self.steps = self.steps, self.steps + 1
            if step == self.at and self.error is None:
                self.reached.set()
                await self.go_on.wait()
            elif step == self.at and not self.late:
                raise self.error("here")
            result = await work(*args, **named)
            if step == self.at and self.error is not None:
                raise self.error("here")
            return result

        return guarded


class Ground:
    """What survives a crash: stores and the card network."""

    async def open(self) -> "Ground":
        self.stores, self.ids = Stores(MEMORY), IdGenerator()
        self.cards = CardSimulator(await self.stores.sql("payments"), ids=self.ids)
        await self.cards.start(Tasks("cards", asyncio.get_running_loop().create_future()))
        return self

    async def life(self, fate: Fate) -> Rides:
        """A process on that ground, its restart done."""
        records, index = (
            Mortal(await self.stores.records("dispatch"), fate),
            open_index(IndexSettings(engine="columns")),
        )
        registry = Registry()
        rides = Rides(
            TripStore(records, await self.stores.log("dispatch")), Drivers(index, records, drivers_max=10),
            records=records, eta=Eta(STREET), payments=Mortal(self.cards, fate), push=Push(), registry=registry,
            ids=self.ids, matching=MatchingSettings(), pricing=PricingSettings(),
        )  # fmt: skip
        await rides.restore()
        return rides

    async def held(self) -> int:
        return (await self.cards.balances()).get("EUR", {}).get("held", 0)


async def ask(rides: Rides, key: str = "", method: str = "card_ok") -> Any:
    return await rides.request("ana", FARE, START, END, method=method, key=key)


async def live_until(ground: Ground, fate: Fate, work: Callable[[Rides], Awaitable[object]]) -> bool:
    """True when the process lived through it."""
    try:
        await work(await ground.life(fate))
    except Died:
        return False
    return True


async def settled(ground: Ground) -> Rides:
    """A new process that cleaned up; money is held for the rides there are, and for nothing else."""
    rides = await ground.life(Fate())
    await rides.undo_holds()
    assert rides.statistics().holds_left == 0
    assert await ground.held() == sum(ride.trip.fare.total.amount for ride in rides.active.values())
    assert len(rides.active) <= 1
    return rides


async def request_and_clean_up(rides: Rides) -> None:
    await rides.undo_holds()
    await ask(rides, "tap")


@pytest.mark.parametrize("late", [False, True])
def test_a_crash_at_any_step_and_another_while_it_is_cleaned_up_leaves_no_money_held(*, late: bool) -> None:
    async def main(_world: object) -> tuple[int, int]:
        first = second = 0
        while True:
            ground = await Ground().open()
            if await live_until(ground, Fate(first, late=late), lambda rides: ask(rides, "tap")):
                return first, second
            ended = False
            for again in range(30):
                if await live_until(ground, Fate(again, late=late), request_and_clean_up):
                    ended = True
                    break
                second = max(second, again)
            assert ended
            rides = await settled(ground)
            assert len(rides.active) == 1, "who asks again under the same key has one ride"
            await rides.cancel(next(iter(rides.active)), "ana")
            await rides.settle_some()
            assert await ground.held() == 0
            first += 1

    steps, deepest = run(main, seed=1).result
    assert steps >= 5
    assert deepest >= 3


@pytest.mark.parametrize("error", [Unavailable, TimeoutError, asyncio.CancelledError])
def test_a_request_that_fails_on_the_way_is_undone_while_the_process_lives(error: type[BaseException]) -> None:
    async def main(_world: object) -> int:
        for step in range(20):
            for late in (False, True):
                ground = await Ground().open()
                rides = await ground.life(Fate(step, late=late, error=error))
                try:
                    await ask(rides)
                except error:
                    for _ in range(20):
                        await rides.undo_holds()
                        await clock.sleep(1)
                else:
                    assert await ground.held() == FARE.total.amount
                    return step
                rides.check()
                assert rides.statistics().holds_left == 0
                assert await ground.held() == sum(ride.trip.fare.total.amount for ride in rides.active.values())
                if not rides.active:  # else it was made though nobody heard: it is searched for
                    await ask(rides)
        return 20

    assert 3 <= run(main, seed=1).result < 20


def test_a_declined_card_holds_nothing_and_another_card_may_follow_under_the_same_key() -> None:
    async def main(_world: object) -> None:
        ground = await Ground().open()
        rides = await ground.life(Fate())
        with pytest.raises(Rejected, match="declined"):
            await ask(rides, "tap", "card_declined")
        with pytest.raises(Conflict):
            await ask(rides, "tap")  # another card under a key whose first try still stands
        await rides.undo_holds()
        assert await ground.held() == 0
        await ask(rides, "tap")
        assert await ground.held() == FARE.total.amount

    run(main, seed=1)


def test_a_first_call_that_arrives_after_all_was_undone_holds_nothing() -> None:
    async def main(_world: object) -> None:
        ground = await Ground().open()
        rides = await ground.life(Fate(at=PAYMENT))
        with pytest.raises(Died):
            await ask(rides, "tap")
        lost = next(iter((await ground.life(Fate()))._holds._left.items()))
        await settled(ground)
        trip_id, (intent, _, _) = lost
        await ground.cards.authorise(f"trip:{trip_id}", intent.amount, intent.method)
        assert await ground.held() == 0

    run(main, seed=1)


def test_a_first_event_that_is_still_on_its_way_when_its_money_is_given_back_is_refused() -> None:
    async def main(_world: object) -> None:
        ground, slow = await Ground().open(), Fate(at=FIRST_EVENT, error=None)
        asking = asyncio.ensure_future(ask(await ground.life(slow), "tap"))
        await slow.reached.wait()
        await settled(ground)
        slow.go_on.set()
        with pytest.raises(Conflict):
            await asking
        rides = await settled(ground)
        assert not rides.active
        await ask(rides, "tap")
        assert await ground.held() == FARE.total.amount

    run(main, seed=1)

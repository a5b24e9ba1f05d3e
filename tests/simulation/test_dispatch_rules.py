"""What a ride may come to besides the straight way, in virtual time over the real doors."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import msgspec
import numpy as np
import pytest
from tests.journeys.dispatch.rig import QUICK, City, Driver, Refused, Rider, running

from fourplane.dispatch import feed_frames as frames
from fourplane.dispatch.app import DispatchSettings
from fourplane.dispatch.driver_index import IndexSettings, make_updates
from fourplane.edge.webhooks import verify
from fourplane.foundation import clock, ids, network
from fourplane.foundation.errors import Unauthenticated
from fourplane.simulator.loop import World, run

PATIENT = msgspec.structs.replace(
    QUICK, matching=msgspec.structs.replace(QUICK.matching, offer_s=20.0, patience_s=600.0, window_s=1.0)
)


@pytest.fixture(scope="module", autouse=True)
def _city_is_made() -> None:
    async def main() -> None:
        async with running():
            pass

    asyncio.run(main())


def in_city(work: Callable[[City], Awaitable[None]], settings: DispatchSettings = PATIENT) -> None:
    async def main(_world: World) -> None:
        async with running(host="city", settings=settings) as city:
            await work(city)

    run(main, seed=3)


async def offered(driver: Driver, ride: str, at: tuple[float, float], tries: int = 100) -> None:
    """Wait for the offer, saying where the driver is meanwhile."""
    for _ in range(tries):
        await driver.move(*at)
        offer = (await driver.me())["offer"]
        if offer:
            assert offer["trip"] == ride
            return
        await clock.sleep(0.5)
    raise AssertionError("no offer came")


def near(city: City, place: tuple[float, float], metres: float) -> tuple[float, float]:
    """The road node that lies about so far away."""
    roads = city.dispatch.eta.roads
    away = np.hypot((roads.lng - place[1]) * roads.x_scale, (roads.lat - place[0]) * roads.y_scale)
    node = int(np.abs(away - metres).argmin())
    return float(roads.lat[node]), float(roads.lng[node])


def test_a_blocked_driver_is_not_offered_the_rider_again_even_when_nearest() -> None:
    async def work(city: City) -> None:
        start, end = city.points(2)
        rider = await city.guest()
        first = await city.driver(*near(city, start, 50))
        ride = (await rider.request(start, end))["request_id"]
        await offered(first, ride, near(city, start, 50))
        await first.drive(ride)
        await rider.call("POST", f"/requests/{ride}/block", {})
        other = await city.driver(*near(city, start, 1_200))
        again = (await rider.request(start, end))["request_id"]
        for _ in range(20):
            await first.move(*near(city, start, 50))
            await other.move(*near(city, start, 1_200))
            if (await other.me())["offer"]:
                break
        assert (await other.me())["offer"]["trip"] == again
        assert (await first.me())["offer"] is None
        with pytest.raises(Refused, match="not_your_trip"):
            await city.call("POST", "/drivers/me/block", {"trip": ride}, x_driver_token=other.token)

    in_city(work)


def test_a_driver_about_to_be_free_nearby_is_waited_for_and_the_story_says_so() -> None:
    async def work(city: City) -> None:
        start, end = city.points(2, seed=4)
        rider, second = await city.guest(), await city.guest()
        busy = await city.driver(*near(city, start, 60))
        ride = await rider.request(start, end)
        await offered(busy, ride["request_id"], near(city, start, 60))
        for verb in ("accept", "arrive", "start"):
            await busy.do(verb, ride["request_id"])
        far = await city.driver(*near(city, end, 1_900))
        await clock.sleep(max(1.0, ride["fare"]["seconds"] - 20))
        await far.move(*near(city, end, 1_900))
        waits = (await second.request(near(city, end, 30), start))["request_id"]
        await clock.sleep(3)
        await far.move(*near(city, end, 1_900))
        await clock.sleep(2)
        story = await second.call("GET", f"/requests/{waits}/story")
        assert f"waits for driver {busy.number}" in story["decisions"][-1]["text"], story["decisions"][-1]
        assert (await far.me())["offer"] is None
        await busy.move(*end)
        await busy.do("finish", ride["request_id"])
        await offered(busy, waits, end)
        assert city.dispatch.matcher.statistics().awaited > 0

    in_city(work)


def test_a_driver_of_whom_nothing_is_heard_loses_the_ride_and_the_next_one_comes() -> None:
    async def work(city: City) -> None:
        start, end = city.points(2)
        rider = await city.guest()
        silent = await city.driver(*near(city, start, 50))
        ride = (await rider.request(start, end))["request_id"]
        await offered(silent, ride, near(city, start, 50))
        await silent.do("accept", ride)
        assert (await rider.show(ride))["mds_state"] == "reserved"
        await clock.sleep(30)
        assert (await rider.show(ride))["mds_state"] == "non_contactable"
        await silent.move(*near(city, start, 50))
        await clock.sleep(3)
        assert (await rider.show(ride))["mds_state"] == "reserved"  # heard of again in time
        await clock.sleep(90)
        assert (await rider.show(ride))["status"] == "processing"
        other = await city.driver(*near(city, start, 400))
        await offered(other, ride, near(city, start, 400))
        await other.drive(ride)
        assert city.dispatch.rides.statistics().lost == 1

    in_city(work)


def test_late_cancelling_and_no_show_are_paid_for_and_both_sides_rate_once() -> None:
    async def work(city: City) -> None:
        start, end = city.points(2)
        rider, at = await city.guest(), near(city, start, 50)
        driver = await city.driver(*at)

        async def taken() -> str:
            ride = (await rider.request(start, end))["request_id"]
            await offered(driver, ride, at)
            await driver.do("accept", ride)
            return ride

        async def wait(seconds: int) -> None:
            for _ in range(seconds // 5):
                await driver.move(*at)
                await clock.sleep(5)

        late = await taken()
        await wait(130)
        await rider.call("DELETE", "/requests/current")
        paid = await rider.wait_for(late, lambda now: now["paid"] == "captured")
        assert paid["status"] == "rider_canceled"
        assert (await rider.call("GET", f"/requests/{late}/receipt"))["total_charged"] == "3.00"
        waited = await taken()
        await driver.do("arrive", waited)
        await wait(310)
        await driver.do("cancel", waited)
        assert (await rider.wait_for(waited, lambda now: now["paid"] == "captured"))[
            "reason"
        ] == "the rider did not show up"
        early = await taken()
        await rider.call("DELETE", f"/requests/{early}")
        await rider.wait_for(early, lambda now: now["paid"] == "voided")
        done = await taken()
        for verb in ("arrive", "start", "finish"):
            await driver.do(verb, done)
        before = city.dispatch.drivers.profile(driver.number).rating
        for stars in (1, 5):  # the second one changes nothing
            await rider.call("POST", f"/requests/{done}/rating", {"stars": stars})
        await driver.do("rate", done, stars=4)
        assert city.dispatch.drivers.profile(driver.number).rating < before
        trip = (await city.dispatch.rides.find(ids.decode("trip", done))).trip
        assert trip.stars == {"rider": 1, "driver": 4}
        with pytest.raises(Refused, match="bad_rating"):
            await rider.call("POST", f"/requests/{done}/rating", {"stars": 9})

    in_city(work)


class Receiver(asyncio.Protocol):
    """Somebody's server: refuses the first two deliveries, takes the rest."""

    def __init__(self, got: list[tuple[str, bytes]], refuse: list[int]) -> None:
        self._got, self._refuse, self._rest = got, refuse, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._rest += data
        while b"\r\n\r\n" in self._rest:
            head, _, body = self._rest.partition(b"\r\n\r\n")
            fields = dict(line.split(": ", 1) for line in head.decode().lower().split("\r\n")[1:])
            length = int(fields["content-length"])
            if len(body) < length:
                return
            self._rest = body[length:]
            if self._refuse[0] > 0:
                self._refuse[0] -= 1
                self._transport.write(b"HTTP/1.1 503 no\r\ncontent-length: 0\r\n\r\n")
            else:
                self._got.append((fields["fourplane-signature"], body[:length]))
                self._transport.write(b"HTTP/1.1 200 ok\r\ncontent-length: 0\r\n\r\n")


def test_a_sandbox_ride_is_told_to_a_webhook_in_order_signed_and_again_until_it_is_taken() -> None:
    async def work(city: City) -> None:
        got: list[tuple[str, bytes]] = []
        refuse = [2]
        server = await network.listen(lambda: Receiver(got, refuse), "city", 9_999)
        operator = await city.accounts.create("olga", "a long password", roles=("operator",))
        token = {"authorization": f"Bearer {await city.accounts.open_session(operator)}"}
        with pytest.raises(Refused):
            await city.call("POST", "/webhooks", {"url": "http://city:9999/hook"})
        with pytest.raises(Refused, match="bad_url"):
            await city.call("POST", "/webhooks", {"url": "ftp://city/hook"}, **token)
        hook = await city.call("POST", "/webhooks", {"url": "http://city:9999/hook?x=1"}, **token)
        start, end = city.points(2)
        near_by = await city.driver(*near(city, start, 30))
        made = await city.call("POST", "/sandbox/guests", {})
        rider = Rider(city, made["rider"], made["token"])
        ride = (await rider.request(start, end, pin=True))["request_id"]
        await clock.sleep(5)
        assert (await near_by.me())["offer"] is None  # real drivers never hear of it
        shown = await rider.call("PUT", f"/sandbox/requests/{ride}", {"status": "no_drivers_available"})
        assert shown["status"] == "no_drivers_available"
        with pytest.raises(Refused, match="wrong_state"):
            await rider.call("PUT", f"/sandbox/requests/{ride}", {"status": "accepted"})
        await rider.wait_for(ride, lambda now: now["paid"] == "voided")
        second = (await rider.request(start, end))["request_id"]
        for status in ("accepted", "completed"):
            shown = await rider.call("PUT", f"/sandbox/requests/{second}", {"status": status})
            assert shown["status"] == status
        await rider.wait_for(second, lambda now: now["paid"] == "voided")
        for _ in range(60):
            await clock.sleep(1)
            if len(got) >= 9:
                break
        told = [json.loads(body) for _, body in got]
        one, other = (
            [notice["meta"]["status"] for notice in told if notice["meta"]["resource_id"] == name]
            for name in (ride, second)
        )
        assert got, city.dispatch.webhooks.statistics()
        assert one == ["processing", "no_drivers_available", "receipt_ready"]
        assert other == ["processing", "accepted", "arriving", "in_progress", "completed", "receipt_ready"]
        for signature, body in got:
            verify(hook["secret"], signature, body, clock.now_us() // 1_000_000)
            with pytest.raises(Unauthenticated):
                verify("another", signature, body, clock.now_us() // 1_000_000)
        assert len({one["event_id"] for one in told}) == len(told)
        assert city.dispatch.webhooks.statistics().failed == 2
        assert (await city.payments.balances()).get("EUR", {}).get("merchant", 0) == 0
        assert (await city.call("GET", "/webhooks", **token))["webhooks"][0]["secret"] == ""
        await city.call("DELETE", f"/webhooks/{hook['id']}", **token)
        real = await city.guest()
        ask = (await real.request(start, end))["request_id"]
        with pytest.raises(Refused, match="not_sandbox"):
            await real.call("PUT", f"/sandbox/requests/{ask}", {"status": "accepted"})
        server.close()

    in_city(work)


def test_a_program_rides_with_bearer_tokens_and_names_no_more_than_it_must() -> None:
    async def work(city: City) -> None:
        start, end = city.points(2)
        rider = {"authorization": "Bearer " + (await city.call("POST", "/guests", {}))["token"]}
        driver = {"authorization": "Bearer " + (await city.call("POST", "/drivers", {"name": "Ana"}))["token"]}
        spot = {"latitude": start[0], "longitude": start[1]}
        with pytest.raises(Refused, match="offline"):
            await city.call("POST", "/drivers/me/position", spot, **driver)
        await city.call("POST", "/drivers/me/online", {}, **driver)
        with pytest.raises(Refused, match="no_ride"):
            await city.call("POST", "/drivers/me/accept", {}, **driver)
        await city.call("POST", "/drivers/me/position", spot, **driver)
        way = {f"{which}_{axis}": value for which, place in (("start", start), ("end", end))
               for axis, value in zip(("latitude", "longitude"), place, strict=True)}  # fmt: skip
        fare = (await city.call("POST", "/requests/estimate", way, **rider))["fare"]["fare_id"]
        ride = (await city.call("POST", "/requests", {"fare_id": fare}, **rider))["request_id"]
        for _ in range(200):
            await city.call("POST", "/drivers/me/position", spot, **driver)
            if (await city.call("GET", "/drivers/me", **driver))["offer"]:
                break
            await clock.sleep(0.1)
        for verb in ("accept", "arrive", "start", "finish"):
            await city.call("POST", f"/drivers/me/{verb}", {}, **driver)
        answer = await city.call("GET", f"/requests/{ride}", **rider)
        assert (answer["status"], answer["product_id"]) == ("completed", "go")
        first = (await city.call("GET", "/products"))["products"][0]
        assert (first["product_id"], first["display_name"]) == ("go", "Go")

    in_city(work)


def test_bad_positions_are_refused_or_ignored_counted_and_lose_nothing() -> None:
    settings = msgspec.structs.replace(PATIENT, index=IndexSettings(engine="columns"))

    async def work(city: City) -> None:
        place, *_ = city.points(2)
        driver = await city.driver(*place)
        for bad in ({"latitude": 91.0, "longitude": 0.0}, {"latitude": -8.6, "longitude": 541.1}):
            with pytest.raises(Refused, match="bad_point"):
                await city.call("POST", "/drivers/me/position", bad, x_driver_token=driver.token)
        with pytest.raises(Refused, match="bad_point"):
            await city.call("GET", f"/estimates/time?start_latitude=nan&start_longitude={place[1]}")
        index, feed, number = city.dispatch.index, city.dispatch.feed, driver.number

        def report(lat: float, lng: float, sequence: int) -> None:
            one = make_updates(*(np.array([value]) for value in (np.uint32(number), lat, lng, np.uint32(sequence))))
            feed.positions(one, number, number + 1)

        base = clock.now_us() // 62_500 & 0xFFFFFFFF
        report(*place, base + 10)
        before = index.statistics()
        report(*place, base + 10)  # replayed
        report(*place, base + 9)  # late
        report(place[1], place[0], base + 11)  # swapped: in range, but a leap
        assert index.statistics().late - before.late == 2
        assert index.statistics().jumps - before.jumps == 1
        assert city.dispatch.place_of(number) == pytest.approx(place)
        day = 86_400 * 16
        report(*place, base + 12)
        report(*place, base + day)  # a phone whose clock is a day ahead
        for step in range(30):  # and is set right again: late, until three periods are missed
            await clock.sleep(1)
            report(*place, base + 13 + 16 * step)
        assert index.statistics().stale >= 1
        assert city.dispatch.place_of(number) == pytest.approx(place)
        taken = make_updates(
            np.array([number], np.uint32), np.array([1.0]), np.array([1.0]), np.array([base + 9_999], np.uint32)
        )
        before_foreign = feed.statistics().foreign
        feed.positions(taken, number + 1, number + 5)  # somebody else's number
        assert feed.statistics().foreign == before_foreign + 1
        assert city.dispatch.place_of(number) == pytest.approx(place)

    in_city(work, settings)


def test_where_no_driver_ever_comes_the_rider_is_told_why_and_pays_nothing() -> None:
    impatient = msgspec.structs.replace(PATIENT, matching=msgspec.structs.replace(PATIENT.matching, patience_s=30.0))

    async def work(city: City) -> None:
        start, end = city.points(2)
        rider = await city.guest()
        ride = (await rider.request(start, end))["request_id"]
        await clock.sleep(40)
        told = await rider.wait_for(ride, lambda now: now["paid"] == "voided")
        assert told["status"] == "no_drivers_available"
        assert "no free driver" in told["reason"]
        assert (await rider.call("GET", "/products/go"))["display_name"] == "Go"
        found = await rider.call("POST", "/estimates/drivers", {"places": [start, end]})
        assert [one["drivers"] for one in found["near"]] == [[], []]
        with pytest.raises(Refused, match="no_road"):
            await rider.call("GET", "/estimates/drivers?start_latitude=0&start_longitude=0")
        with pytest.raises(Refused, match="bad_count"):
            await rider.call("POST", "/estimates/drivers", {"places": []})

    in_city(work, impatient)


def test_a_stream_that_is_none_ends_and_the_drivers_of_others_stay() -> None:
    async def work(city: City) -> None:
        place, *_ = city.points(2)
        driver = await city.driver(*place)
        closed = asyncio.Event()

        class Liar(asyncio.Protocol):
            def connection_lost(self, exc: Exception | None) -> None:
                closed.set()

        transport, _ = await network.connect(Liar, "city", city.dispatch.feed.port)
        transport.write(frames.frame(frames.POSITIONS, b"\0" * 16))  # no hello
        await closed.wait()
        assert city.dispatch.feed.statistics().refused >= 1
        assert city.dispatch.place_of(driver.number) == pytest.approx(place)

    in_city(work)

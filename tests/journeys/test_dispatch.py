"""Rides through the real doors: HTTP, the TCP feed, durable stores."""

import asyncio
import shutil
from pathlib import Path

import msgspec
import pytest
from tests.journeys.dispatch.rig import QUICK, Gate, Refused, gate, running

from fourplane.dispatch import feed_frames as frames
from fourplane.foundation import clock


def test_a_ride_from_request_to_receipt() -> None:
    async def main() -> None:
        async with running() as city:
            start, end, *others = city.points(8)
            drivers = [await city.driver(*place, name=f"Driver {n}") for n, place in enumerate(others)]
            rider = await city.guest()
            estimate = await rider.estimate(start, end)
            asked = await rider.request(start, end, pin=True)
            assert asked["status"] == "processing"
            assert asked["fare"]["total"] == estimate["fare"]["breakdown"][0]["amount"] | {
                "amount": sum(line["amount"]["amount"] for line in estimate["fare"]["breakdown"])
            }
            ride = asked["request_id"]
            story = None
            while not story or not story["decisions"]:
                await clock.sleep(0.02)
                story = await rider.call("GET", f"/requests/{ride}/story")
            decision = story["decisions"][0]
            assert {c["driver"] for c in decision["candidates"]} <= {d.number for d in drivers}
            assert all(c["metres"] <= 2_000 for c in decision["candidates"])
            best = min(decision["candidates"], key=lambda c: c["cost"])
            chosen = next(d for d in drivers if d.number == decision["driver"])
            assert best["driver"] == chosen.number
            assert await chosen.wait_offer() == ride
            assert (await chosen.do("accept", ride))["trip"]["status"] == "accepted"
            coming = await rider.show(ride)
            assert coming["driver"]["profile"]["number"] == chosen.number
            assert coming["eta_s"] > 0
            assert len((await rider.call("GET", f"/requests/{ride}/map"))["approach"]) >= 2
            await chosen.do("arrive", ride)
            with pytest.raises(Refused, match="wrong_pin"):
                await chosen.do("start", ride, pin="nope")
            await chosen.do("start", ride, pin=coming["pin"])
            await chosen.do("finish", ride)
            paid = await rider.wait_for(ride, lambda now: now["paid"] == "captured")
            assert paid["status"] == "completed"
            receipt = await rider.call("GET", f"/requests/{ride}/receipt")
            assert receipt["total_charged"] == estimate["fare"]["value"]
            assert (await rider.call("POST", f"/requests/{ride}/rating", {"stars": 5}))["stars"] == 5
            await chosen.do("rate", ride, stars=4)
            balances = await city.payments.balances()
            assert sum(balances["EUR"].values()) == 0
            assert balances["EUR"]["merchant"] == round(float(receipt["total_charged"]) * 100)
            while not (await rider.call("GET", "/history"))["rides"]:
                await clock.sleep(0.05)
            earned = await city.call("GET", "/drivers/me/earnings", x_driver_token=chosen.token)
            assert [one["trip"] for one in earned["rides"]] == [ride]

    asyncio.run(main())


def test_a_declined_and_an_ignored_offer_go_to_the_next_driver() -> None:
    async def main() -> None:
        async with running() as city:
            start, end, *others = city.points(5)
            drivers = {d.number: d for d in [await city.driver(*place) for place in others]}
            rider = await city.guest()
            ride = (await rider.request(start, end))["request_id"]
            asked = []
            while len(asked) < 3:
                offered = [number for number, driver in drivers.items() if (await driver.me())["offer"]]
                holder = next((number for number in offered if number not in asked), None)
                if holder is None:
                    await clock.sleep(0.05)
                    for driver in drivers.values():
                        await driver.move(*others[driver.number])
                    continue
                asked.append(holder)
                if len(asked) == 1:
                    await drivers[holder].do("decline", ride)
                elif len(asked) == 3:
                    await drivers[holder].drive(ride)
            assert len(set(asked)) == 3
            await rider.wait_for(ride, lambda now: now["paid"] == "captured")
            statistics = city.dispatch.rides.statistics()
            assert (statistics.declined, statistics.expired, statistics.accepted) == (1, 1, 1)

    asyncio.run(main())


def test_the_same_request_twice_is_one_ride_and_money_is_held_once() -> None:
    async def main() -> None:
        async with running() as city:
            start, end = city.points(2)
            rider = await city.guest()
            first = await rider.request(start, end, key="tap")
            again = await rider.request(start, end, key="tap")
            assert first["request_id"] == again["request_id"]
            with pytest.raises(Refused, match="ride_under_way"):
                await rider.request(start, end)
            assert city.payments.statistics().authorised == 1
            cancelled = await rider.call("DELETE", f"/requests/{first['request_id']}")
            assert cancelled["status"] == "rider_canceled"
            await rider.wait_for(first["request_id"], lambda now: now["paid"] == "voided")

    asyncio.run(main())


def test_a_fleet_gateway_drives_over_the_feed_and_is_told_what_goes_on_when_it_comes_back() -> None:
    async def main() -> None:
        async with running() as city:
            block = await city.dispatch.drivers.register("fleet-test", 20)
            token = city.dispatch.feed.token(block.first, block.count, 60)
            fleet = await gate(city, token)

            async def away() -> Gate:
                fleet.transport.close()
                return await gate(city, token)

            start, end, *places = city.points(22)
            fleet.send(frames.VERBS, msgspec.json.encode({"verb": "online", "driver": block.first, "count": 20}))
            while city.dispatch.index.state_of(block.first) == 0:
                await clock.sleep(0.01)
            fleet.positions(block.first, places, 1)
            while city.dispatch.index.statistics().live < 20:
                await clock.sleep(0.01)
            rider = await city.guest()
            ride = (await rider.request(start, end))["request_id"]
            offer = await fleet.wait(lambda _, news: news["kind"] == "offer")
            assert offer["trip"] == ride
            fleet = await away()
            assert (await fleet.wait(lambda _, news: news["kind"] == "offer"))["driver"] == offer["driver"]
            for verb in ("accept", "arrive", "start", "finish"):
                fleet.send(frames.VERBS, msgspec.json.encode({"verb": verb, "driver": offer["driver"], "trip": ride}))
                wanted = {"accept": "accepted", "arrive": "arriving", "start": "in_progress", "finish": "completed"}[
                    verb
                ]
                if verb == "arrive":
                    await rider.wait_for(ride, lambda now: now["status"] == "arriving")
                    fleet = await away()
                await fleet.wait(lambda _, news, wanted=wanted: news.get("status") == wanted)
            await rider.wait_for(ride, lambda now: now["paid"] == "captured")

    asyncio.run(main())


def test_rides_under_way_survive_a_restart(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(data=tmp_path) as city:
            start, end, place = city.points(3)
            driver, rider = await city.driver(*place), await city.guest()
            ride = (await rider.request(start, end))["request_id"]
            await driver.wait_offer()
            await driver.do("accept", ride)
            number, keys = driver.number, city.dispatch.signer
        async with running(data=tmp_path) as city:
            city.dispatch.signer = city.dispatch.feed.signer = keys
            rider.city = driver.city = city
            again = await rider.show(ride)
            assert (again["status"], again["driver"]["profile"]["number"]) == ("accepted", number)
            await driver.do("online")
            await driver.move(*place)
            assert not city.dispatch.drivers.available(number)
            for verb in ("arrive", "start", "finish"):
                await driver.do(verb, ride)
            await rider.wait_for(ride, lambda now: now["paid"] == "captured")
            assert city.dispatch.drivers.available(number)

    asyncio.run(main())


def test_bad_requests_are_refused_with_what_is_wrong() -> None:
    async def main() -> None:
        async with running() as city:
            (lat, lng), end = city.points(2)
            rider = await city.guest()
            for start, code in (
                ((lng, lat), "no_road"),
                ((0.0, 0.0), "no_road"),
                ((200.0, 10.0), "bad_point"),
                ((-20.0, 142.5), "no_road"),
            ):
                with pytest.raises(Refused) as refused:
                    await rider.estimate(start, end)
                assert refused.value.code == code, start
            with pytest.raises(Refused, match="payment_declined"):
                await rider.request((lat, lng), end, method="card_declined")
            with pytest.raises(Refused, match="401"):
                await city.call("GET", "/requests/current")
            stranger = await city.guest()
            ride = (await rider.request((lat, lng), end))["request_id"]
            with pytest.raises(Refused, match="no_ride"):
                await stranger.show(ride)
            with pytest.raises(Refused, match="no_product"):
                await rider.estimate((lat, lng), end, product="rocket")

    asyncio.run(main())


def test_garbage_and_foreign_drivers_on_the_feed_are_answered_and_counted() -> None:
    async def main() -> None:
        async with running() as city:
            block = await city.dispatch.drivers.register("fleet-test", 4)
            fleet = await gate(city, city.dispatch.feed.token(block.first, 2, 60))
            foreign = msgspec.json.encode({"verb": "online", "driver": block.first + 3})
            fleet.transport.write(frames.frame(frames.VERBS, b"{not json") + frames.frame(frames.VERBS, foreign))
            assert (await fleet.wait(lambda kind, _: kind == frames.ERROR))["code"] == "bad_message"
            assert (await fleet.wait(lambda kind, _: kind == frames.ERROR))["code"] == "foreign_driver"
            fleet.positions(block.first, city.points(4), 1)
            while city.dispatch.feed.statistics().foreign < 2:
                await clock.sleep(0.01)
            fleet.transport.write(b"GET / HTTP/1.1\r\n\r\n")
            assert (await fleet.wait(lambda kind, _: kind == frames.ERROR))["code"] == "bad_frame"
            await fleet.closed.wait()
            liar = await gate(city, city.dispatch.feed.token(0, 1, 60))
            liar.send(frames.HELLO, b"not a token")
            assert (await liar.wait(lambda kind, _: kind == frames.ERROR))["code"] == "bad_token"
            assert city.dispatch.feed.statistics().refused >= 4

    asyncio.run(main())


def test_a_stopped_matching_service_lets_riders_wait_and_a_started_one_serves_them() -> None:
    async def main() -> None:
        async with running() as city:
            start, end, place = city.points(3)
            driver, rider = await city.driver(*place), await city.guest()
            nodes = {node.id: node for node in city.dispatch.nodes()}
            ride = (await rider.request(start, end))["request_id"]
            await driver.wait_offer()
            await driver.do("decline", ride)
            nodes["MATCHING_SVC"].switch.on = False
            other, second = await city.driver(*place), await city.guest()
            with pytest.raises(Refused, match="stopped_by_operator"):
                await second.request(start, end)
            await clock.sleep(0.3)
            assert (await other.me())["offer"] is None
            nodes["MATCHING_SVC"].switch.on = True
            assert await other.wait_offer() == ride
            assert all(node.figures() is not None for node in nodes.values())

    asyncio.run(main())


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
def test_a_rider_and_a_driver_complete_a_ride_in_the_browser() -> None:
    from playwright.async_api import async_playwright

    patient = msgspec.structs.replace(
        QUICK, matching=msgspec.structs.replace(QUICK.matching, offer_s=20.0, patience_s=60.0)
    )

    async def main() -> None:
        async with running(settings=patient) as city, async_playwright() as tools:
            browser = await tools.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            base, wrong = f"http://127.0.0.1:{city.server.port}/dispatch", []
            people = await browser.new_context(reduced_motion="reduce", viewport={"width": 1_200, "height": 700})
            driver, rider = [await people.new_page() for _ in range(2)]
            for page in (driver, rider):
                page.on("pageerror", lambda error: wrong.append(str(error)))
            await driver.goto(f"{base}/drive")
            await driver.fill("input[name=name]", "Dora")
            await driver.get_by_role("button", name="Start driving").click()
            await driver.get_by_role("button", name="Go online").click()
            await driver.get_by_text("Online, Dora").wait_for()
            await rider.goto(f"{base}/")
            while await rider.evaluate("window.cityView?.cars.size") != 1:
                await clock.sleep(0.1)
            await rider.mouse.click(640, 380)  # within two kilometres of the car
            await rider.get_by_text("Now tap where you want to go").wait_for()
            await rider.mouse.click(750, 290)
            await rider.locator("#ask").click()
            await driver.get_by_role("button", name="Accept").click()
            await rider.get_by_text("Your driver is coming").wait_for()
            assert await rider.get_by_text("Dora").count() >= 1
            await driver.get_by_role("button", name="I am here").click()
            await rider.get_by_text("Your driver is here").wait_for()
            await driver.get_by_role("button", name="Start the ride").click()
            await rider.get_by_text("On your way").wait_for()
            await driver.get_by_role("button", name="Finish the ride").click()
            await rider.get_by_text("You have arrived").wait_for()
            await rider.get_by_text("Charged to your card").wait_for()
            await rider.get_by_role("button", name="5 stars").click()
            await rider.locator(".stars .on").nth(4).wait_for()
            operator = await city.accounts.create("olga", "a long password", roles=("operator",))
            token = await city.accounts.open_session(operator)
            await rider.set_extra_http_headers({"authorization": f"Bearer {token}"})
            await rider.goto(f"{base}/operations")
            await rider.locator(".trip").click()
            await rider.get_by_text("rider aboard").wait_for()
            assert wrong == []
            assert city.dispatch.rides.statistics().completed == 1
            await browser.close()

    asyncio.run(main())

"""What is remembered ends in time and in number; what is forgotten is found out anew."""

import asyncio

from tests.journeys.dispatch.rig import running

from fourplane.dispatch.remembered import Remembered


def test_an_entry_ends_with_its_time_and_the_oldest_goes_first() -> None:
    known: Remembered[int] = Remembered(2)
    known.put("a", 1, 10.0)
    known.put("b", 2, 20.0)
    assert (known.find("a", 10.0), known.find("a", 10.1), known.find("a", 5.0)) == (1, None, None)
    known.put("c", 3, 20.0)
    known.put("d", 4, 20.0)
    assert (known.find("b", 1.0), known.find("d", 1.0), len(known)) == (None, 4, 2)


def test_a_fare_nobody_remembers_is_believed_by_its_signature() -> None:
    async def main() -> None:
        async with running() as city:
            start, end = city.points(2)
            rider = await city.guest()
            fare = (await rider.estimate(start, end))["fare"]
            city.dispatch._rider_api._fares = Remembered(1)
            city.dispatch._rider_api._riders = Remembered(1)
            asked = await rider.call("POST", "/requests", {"fare_id": fare["fare_id"]})
            assert asked["fare"]["total"] == fare["breakdown"][0]["amount"] | {
                "amount": sum(line["amount"]["amount"] for line in fare["breakdown"])
            }

    asyncio.run(main())

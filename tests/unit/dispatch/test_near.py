"""The nearest drivers over HTTP: inside the protocol or through the gateway, the answer is the same."""

import asyncio

import msgspec
import numpy as np
import pytest
from tests.journeys.dispatch.rig import QUICK, City, running

from fourplane.dispatch import compiled
from fourplane.dispatch.driver_index import IndexSettings, make_updates
from fourplane.edge.http_client import HttpResponse

COMPILED = msgspec.structs.replace(QUICK, index=IndexSettings())
PATH = "/dispatch/api/estimates/drivers"


async def ask(city: City, place: tuple[float, float], **headers: str) -> HttpResponse:
    query = f"start_latitude={place[0]:.7f}&start_longitude={place[1]:.7f}"
    return await city.client.request("GET", f"{PATH}?{query}", headers=headers)


async def settle(city: City, places: list[tuple[float, float]]) -> None:
    await city.dispatch.drivers.register("fleet", len(places))
    numbers = np.arange(len(places), dtype=np.uint32)
    city.dispatch.drivers.go_online(numbers, 1)
    lats, lngs = np.array(places).T
    city.dispatch.feed.positions(make_updates(numbers, lats, lngs, numbers + 1), 0, len(places))


def hot(city: City) -> int:
    return city.server.statistics().hot


@pytest.mark.skipif(not compiled.ready(), reason="the kernels are not compiled")
def test_a_plain_question_is_answered_in_the_protocol_as_the_gateway_would() -> None:
    async def main() -> None:
        async with running(settings=COMPILED) as city:
            place, *others = city.points(8)
            await settle(city, others)
            first = await ask(city, place)
            assert (first.status, hot(city)) == (200, 0)  # a Host nobody has let in yet
            again = await ask(city, place)
            assert (again.status, hot(city)) == (200, 1)
            assert again.body == first.body
            assert sorted(msgspec.json.decode(again.body)["drivers"]) == list(range(7))
            told, before = dict(again.headers), dict(first.headers)
            assert told.keys() == before.keys()
            for name in (
                "content-type",
                "cache-control",
                "content-length",
                "ratelimit-limit",
                "x-content-type-options",
            ):
                assert told[name] == before[name]
            for particular in ({"cookie": "a=b"}, {"authorization": "Bearer x"}, {"x-request-id": "mine"}):
                assert (await ask(city, place, **particular)).body == first.body
            assert hot(city) == 1
            async with asyncio.TaskGroup() as group:
                group.create_task(refused(city, (91.0, 0.0), "bad_point"))
                group.create_task(refused(city, (0.0, 0.0), "no_road"))
            wrong = await city.client.request("GET", f"{PATH}?start_latitude=x", headers={"host": "elsewhere"})
            assert wrong.status == 400

    asyncio.run(main())


async def refused(city: City, place: tuple[float, float], code: str) -> None:
    answer = await ask(city, place)
    assert (answer.status, msgspec.json.decode(answer.body)["error"]["code"]) == (400, code)


@pytest.mark.skipif(not compiled.ready(), reason="the kernels are not compiled")
def test_who_asks_too_often_is_told_when_to_come_back() -> None:
    async def main() -> None:
        async with running(settings=msgspec.structs.replace(COMPILED, ride_calls_per_s=2.0)) as city:
            place, *others = city.points(3)
            await settle(city, others)
            answers = [await ask(city, place) for _ in range(7)]
            assert [one.status for one in answers].count(200) <= 6
            last = answers[-1]
            assert (last.status, dict(last.headers)["retry-after"]) == (429, "1")
            assert msgspec.json.decode(last.body)["error"]["code"] == "rate_limited"

    asyncio.run(main())

"""A region is emptied by one command while viewers watch, and nobody's play fails."""

import asyncio

import msgspec
import pytest
from tests.journeys.streaming.rig import QUICK, house

from fourplane.edge.http_client import HttpClient
from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, Misconfigured
from fourplane.simulator.crowds import Plan, Tally, Target
from fourplane.simulator.crowds.streaming import StreamingCrowd
from fourplane.streaming import ffmpeg
from fourplane.streaming.clip import generate_clip
from fourplane.streaming.settings import TREE, StreamingSettings

GRACE_S = 3.0
MOVED_WITHIN_S = 30.0


def settings():
    tree = tuple(msgspec.structs.replace(node, port=0) for node in TREE)
    longer = msgspec.structs.replace(QUICK, duration_s_max=0.0)  # than what players fetch ahead
    return StreamingSettings(cdn=tree, origin_port=0, encoding=longer, evacuation_grace_s=GRACE_S)


async def film(here, folder):
    try:
        encoder = await ffmpeg.find()
    except Misconfigured:
        pytest.skip("no ffmpeg on this machine")
    clip = folder / "film.mp4"
    await generate_clip(encoder, clip, duration_s=48.0, size="320x180")
    job = await here.rooms.submit(clip, "A film")
    assert (await here.rooms.jobs.wait_ended(job.id)).state == "done"


async def evacuate(here, region, evacuated):
    client = HttpClient("127.0.0.1", here.port)
    body = msgspec.json.encode({"evacuated": evacuated})
    headers = {"content-type": "application/json", "authorization": f"Bearer {here.operator}"}
    answer = await client.request("POST", f"/streaming/api/regions/{region}", body=body, headers=headers)
    client.close()
    return answer.status, msgspec.json.decode(answer.body)


@pytest.mark.slow
def test_a_region_is_emptied_while_plays_go_on(tmp_path):
    async def main():
        async with house(tmp_path, settings=settings()) as here:
            await film(here, tmp_path)
            nodes = here.rooms.delivery.nodes
            ours = [node for name, node in nodes.items() if name in {"EDGE1", "ISP1", "ISP2"}]
            crowd, tally = StreamingCrowd(), Tally()
            plan = Plan(users=8, rate_per_s=8.0, duration_s=14.0)
            target = Target(http_port=here.port, operator_token=here.operator)
            driving = asyncio.create_task(crowd.drive(target, plan, tally, lambda *_: None))
            while not all(node.requests for node in nodes.values()):  # every edge and every ISP's cache has viewers
                await clock.sleep(0.1)
            await clock.sleep(1.0)
            status, facts = await evacuate(here, "us", True)
            assert status == 200
            assert {node["id"] for node in facts["nodes"] if node["evacuated"]} == {"EDGE1", "ISP1", "ISP2"}
            began_s, moved_s, served = clock.monotonic_s(), 0.0, -1
            while not driving.done():
                now = sum(node.hits + node.misses for node in ours)
                if now != served:
                    served, moved_s = now, clock.monotonic_s() - began_s
                await clock.sleep(0.05)
            await driving
            assert tally.errors == {}
            assert tally.facts["moved"] >= 2
            assert moved_s <= min(MOVED_WITHIN_S, GRACE_S + 1.0)
            assert (await evacuate(here, "us", False))[0] == 200
            assert here.rooms.playback.order("viewer", "us")[0] == "EDGE1"

    asyncio.run(asyncio.wait_for(main(), 90))


def test_an_evacuation_is_refused_where_it_would_leave_nobody(tmp_path):
    async def main():
        async with house(tmp_path, settings=settings()) as here:
            assert (await evacuate(here, "nowhere", True))[0] == 404
            assert (await evacuate(here, "us", True))[0] == 200
            assert (await evacuate(here, "eu", True))[0] == 200
            status, told = await evacuate(here, "asia", True)
            assert (status, told["error"]["code"]) == (Conflict("").http_status, "last_region")

    asyncio.run(asyncio.wait_for(main(), 30))

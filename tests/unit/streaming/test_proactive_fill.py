"""What is put on the nodes before anybody asks, and how much of it."""

import asyncio

import msgspec
import pytest
from tests.journeys.streaming.rig import QUICK, house

from fourplane.edge.http_client import HttpClient
from fourplane.foundation import clock
from fourplane.foundation.errors import Misconfigured
from fourplane.streaming import ffmpeg
from fourplane.streaming.packaging import MediaSegment, TitleIndex, Track
from fourplane.streaming.proactive_fill import plan
from fourplane.streaming.settings import TREE, FillSettings, StreamingSettings


def index(title, count=4, size=100):
    segments = tuple(MediaSegment(n * size, size, 2, 10) for n in range(count))
    return TitleIndex(title, "v", 8.0, (Track("360p", "video", "avc1", 1, 10, segments),))


def test_what_is_watched_more_comes_first_and_beginnings_before_ends():
    items = plan({"a": 1.0, "b": 5.0}, [index("a"), index("b")], bytes_max=10_000)
    paths = [item.path for item in items]
    assert paths.index("/v/b/v/360p/3.m4s") < paths.index("/v/a/v/360p/0.m4s")
    assert paths.index("/v/a/v/360p/0.m4s") < paths.index("/v/a/v/360p/1.m4s")
    assert len(items) == 10


@pytest.mark.parametrize("room", [0, 9, 10, 110, 350, 1_000])
def test_a_plan_never_exceeds_its_room(room):
    assert sum(item.bytes for item in plan({"a": 1.0}, [index("a")], bytes_max=room)) <= room


def test_what_nobody_watched_is_not_filled():
    assert plan({"a": 0.0}, [index("a"), index("b")], bytes_max=10_000) == []


def test_after_a_fill_the_first_viewer_of_an_isp_costs_the_origin_nothing(tmp_path):
    async def main():
        try:
            encoder = await ffmpeg.find()
        except Misconfigured:
            pytest.skip("no ffmpeg on this machine")
        tree = tuple(msgspec.structs.replace(node, port=0) for node in TREE)
        night = FillSettings(from_hour=0, to_hour=24)
        settings = StreamingSettings(cdn=tree, origin_port=0, encoding=QUICK, fill=night)
        async with house(tmp_path, settings=settings) as here:
            clip = tmp_path / "film.mp4"
            picture, sound = "testsrc2=size=160x90:rate=24", "sine=frequency=440:sample_rate=48000"
            made = (
                "-f",
                "lavfi",
                "-i",
                picture,
                "-f",
                "lavfi",
                "-i",
                sound,
                "-t",
                "4",
                "-c:v",
                "libx264",
                "-preset",
                "ultrafast",
            )
            await encoder.run([*made, "-pix_fmt", "yuv420p", "-g", "24", "-c:a", "aac", str(clip)])
            job = await here.rooms.submit(clip, "A film")
            assert (await here.rooms.jobs.wait_ended(job.id)).state == "done"
            play = await here.rooms.playback.play(job.title, None, host="127.0.0.1", region="us", isp="ISP1")
            client = HttpClient("127.0.0.1", here.port)
            path, headers = "/streaming/api/fill", {"authorization": f"Bearer {here.operator}"}
            assert (await client.request("POST", path)).status == 401
            assert (await client.request("POST", path, headers=headers)).status == 200
            while not here.rooms.fill.statistics().nights:
                await clock.sleep(0.02)
            client.close()
            seen = here.rooms.fill.statistics()
            assert (seen.failed, seen.objects % len(here.rooms.delivery.nodes)) == (0, 0)
            assert (seen.running, seen.node, seen.node_done) == (False, "", seen.node_planned)
            assert seen.node_planned * len(here.rooms.delivery.nodes) == seen.objects
            before = here.rooms.delivery.origin_requests
            node = HttpClient("127.0.0.1", here.rooms.delivery.nodes["ISP1"].port)
            address = play.base.split("/", 3)[3]
            for name in ("init.mp4", "0.m4s", "1.m4s"):
                answer = await node.request("GET", f"/{address}{play.tracks[0].name}/{name}")
                assert (answer.status, "hit" in answer.headers["cache-status"]) == (200, True)
            node.close()
            assert here.rooms.delivery.origin_requests == before
            assert here.rooms.fill.statistics().nights == 1, "it was asked for at night: that was the night's"

    asyncio.run(asyncio.wait_for(main(), 40))

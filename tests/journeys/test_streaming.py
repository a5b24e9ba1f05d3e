"""A studio file becomes a film on a screen: real ffmpeg, real ports, a real Chromium."""

import json
import re
from urllib.parse import urlsplit

import msgspec
import pytest
from tests.journeys.streaming.rig import QUICK, ROOT, house, run, served

from fourplane.edge.http_client import HttpClient
from fourplane.foundation.errors import Misconfigured
from fourplane.streaming import ffmpeg
from fourplane.streaming.clip import generate_clip

SEEN = """() => {
  const video = document.querySelector('video'), player = document.querySelector('.player');
  if (!video || !player) return null;
  return {
    engine: player.dataset.engine, failed: player.dataset.failed || '', at: video.currentTime,
    frames: video.getVideoPlaybackQuality().totalVideoFrames, width: video.videoWidth, start: window.player.totals.start_ms,
  };
}"""
PAST = """(seconds) => {
  const video = document.querySelector('video');
  return video && (video.currentTime > seconds || document.querySelector('.player').dataset.failed);
}"""


@pytest.fixture(scope="module")
def encoder():
    try:
        return run(ffmpeg.find)
    except Misconfigured:
        pytest.skip("no ffmpeg on this machine")


@pytest.fixture(scope="module")
def film(encoder, shared_data, tmp_path_factory):
    file = shared_data / "video" / "big_buck_bunny_trailer_720p.mp4"
    if not file.is_file():
        pytest.skip("the trailer is not here (../shared/data/video)")
    encoding = msgspec.structs.replace(QUICK, duration_s_max=8.0, height_max=360)
    with served(tmp_path_factory.mktemp("film"), file, encoding=encoding) as found:
        yield found


@pytest.fixture(scope="module")
def generated(encoder, tmp_path_factory):
    with served(tmp_path_factory.mktemp("generated"), size="320x180") as found:
        yield found


def watch(chromium, here, title, engine, *, past_s=2.0):
    page = chromium.new_page()
    heard = []
    page.on("console", lambda message: heard.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: heard.append(str(error)))
    try:
        page.goto(f"{here.address}/streaming/watch/{title}?engine={engine}")
        page.wait_for_function(PAST, arg=past_s, timeout=30_000)
        page.evaluate("() => window.player.beacon()")  # waits until it was heard
        return page.evaluate(SEEN), heard
    finally:
        page.close()


@pytest.mark.parametrize("engine", ["hls", "mse"])
def test_the_trailer_plays_in_chromium(chromium, film, engine):
    if engine == "hls" and not (ROOT / "node_modules/hls.js").is_dir():
        pytest.skip("hls.js is not installed (npm)")
    here, title = film
    starts, came = here.rooms.quality.starts.count, here.rooms.quality.bytes
    seen, heard = watch(chromium, here, title, engine)
    assert seen["engine"] == engine
    assert seen["failed"] == ""
    assert seen["frames"] > 20
    assert seen["width"] > 0
    assert seen["at"] > 2
    assert seen["start"] > 0
    assert heard == []
    assert here.rooms.quality.starts.count == starts + 1  # what the player measured reaches the figures
    assert here.rooms.quality.bytes > came


def test_a_generated_clip_plays_where_there_is_no_film(chromium, generated):
    here, title = generated
    seen, heard = watch(chromium, here, title, "mse", past_s=1.0)
    assert seen["failed"] == ""
    assert seen["frames"] > 10
    assert heard == []


def test_a_stopped_node_moves_its_viewers_and_the_film_goes_on(chromium, film):
    here, title = film
    page = chromium.new_page()
    try:

        def stop(route):
            here.rooms.delivery.switches["EDGE1"].on = False
            route.continue_()

        first = here.rooms.delivery.nodes["EDGE1"].port
        page.route(re.compile(rf":{first}/.*/[2-9]\.m4s"), stop)
        page.goto(f"{here.address}/streaming/watch/{title}?engine=mse")
        page.wait_for_function("() => document.querySelector('video')?.currentTime > 0.5", timeout=30_000)
        page.evaluate("() => { document.querySelector('video').playbackRate = 2; }")
        page.wait_for_function("() => document.querySelector('video').currentTime > 6", timeout=30_000)
        assert page.evaluate("() => window.player.play.node") != "EDGE1"
        assert page.evaluate("() => document.querySelector('.player').dataset.failed") is None
    finally:
        here.rooms.delivery.switches["EDGE1"].on = True
        page.close()


async def told(client, method, path, body=None, *, token=""):
    headers = {"authorization": f"Bearer {token}"} if token else {}
    if body is not None:
        headers["content-type"] = "application/json"
    content = b"" if body is None else json.dumps(body).encode()
    answer = await client.request(method, path, body=content, headers=headers)
    return answer.status, json.loads(answer.body) if answer.body else None


async def what_comes_along_is_what_a_node_serves(client, title):
    """The answer of `start` holds the segments a player shows first, those of the moment it goes on at."""
    headers = {"content-type": "application/json"}
    body = json.dumps({"title": title, "at_s": 2.5}).encode()
    answer = await client.request("POST", "/streaming/api/start", body=body, headers=headers)
    size = int.from_bytes(answer.body[:4], "big")
    told, rest = json.loads(answer.body[4 : 4 + size]), answer.body[4 + size :]
    assert [(piece["track"], piece["number"]) for piece in told["pieces"]] == [("180p", 1), ("audio_0", 1)]
    place = urlsplit(told["play"]["base"])
    node = HttpClient(place.hostname, place.port)
    for piece in told["pieces"]:
        served_by_node = await node.request("GET", f"{place.path}{piece['track']}/{piece['number']}.m4s")
        assert rest[: piece["bytes"]] == served_by_node.body
        rest = rest[piece["bytes"] :]
    node.close()
    assert rest == b""


def test_an_upload_in_pieces_becomes_a_title(encoder, tmp_path):
    async def main():
        clip = tmp_path / "clip.mp4"
        await generate_clip(encoder, clip, duration_s=4.0, size="320x180")
        content = clip.read_bytes()
        async with house(tmp_path / "data") as here:
            client = HttpClient("127.0.0.1", here.port)
            announced = {"name": "clip.mp4", "size": len(content)}
            dropped = {"name": "A clip", "path": "Colours/Season 2/03 clip.mp4"}
            assert (await told(client, "POST", "/streaming/api/uploads", announced))[0] == 401
            status, upload = await told(client, "POST", "/streaming/api/uploads", announced, token=here.operator)
            assert status == 200
            half = len(content) // 2
            path = f"/streaming/api/uploads/{upload['id']}"
            pieces = [(0, content[:half]), (0, content[:half]), (half, content[half:])]
            headers = {"authorization": f"Bearer {here.operator}"}
            sent = [await client.request("PUT", f"{path}/{at}", body=part, headers=headers) for at, part in pieces]
            assert [answer.status for answer in sent] == [200, 409, 200]
            status, job = await told(client, "POST", f"{path}/import", dropped, token=here.operator)
            assert status == 200
            assert job["file"] == "clip.mp4"
            assert (await here.rooms.jobs.wait_ended(job["id"])).state == "done"
            _, listed = await told(client, "GET", "/streaming/api/titles?q=clip")
            assert [title["name"] for title in listed["titles"]] == ["A clip"]
            about = listed["titles"][0]["about"]
            assert (about["series"], about["season"], about["episode"]) == ("Colours", 2, 3)
            assert listed["titles"][0]["height"] == 180
            status, play = await told(
                client, "POST", "/streaming/api/play", {"title": listed["titles"][0]["id"], "region": "asia"}
            )
            assert (status, play["node"]) == (200, "EDGE3")
            await what_comes_along_is_what_a_node_serves(client, listed["titles"][0]["id"])
            client.close()

    run(main)


def test_another_screen_goes_on_and_the_fifth_is_refused(generated):
    async def main():
        here, title = generated
        client = HttpClient("127.0.0.1", here.port)
        wanted, sessions = {"title": title, "region": "eu"}, []
        for _ in range(4):
            status, play = await told(client, "POST", "/streaming/api/play", wanted, token=here.operator)
            assert (status, play["resume_s"]) == (200, 0.0)
            sessions.append(play["session"])
        status, refused = await told(client, "POST", "/streaming/api/play", wanted, token=here.operator)
        assert (status, refused["error"]["code"]) == (403, "too_many_streams")
        last = {"session": sessions[0], "played_s": 7.5, "at_s": 7.5, "ended": True}
        assert (await told(client, "POST", "/streaming/api/beacons", last))[0] == 204
        status, play = await told(client, "POST", "/streaming/api/play", wanted, token=here.operator)
        assert (status, play["resume_s"]) == (200, 7.5)
        _, listed = await told(client, "GET", "/streaming/api/continue", token=here.operator)
        assert [(one["title"]["id"], one["at_s"]) for one in listed["begun"]] == [(title, 7.5)]
        assert (await told(client, "GET", "/streaming/api/continue"))[1] == {"begun": []}
        described = {"name": "Living colours", "about": {"regions": ["us"], "genres": ["Short"]}}
        assert (await told(client, "PUT", f"/streaming/api/titles/{title}", described, token=here.operator))[0] == 200
        status, refused = await told(client, "POST", "/streaming/api/play", wanted)
        assert (status, refused["error"]["code"]) == (403, "not_in_region")
        assert (await told(client, "GET", "/streaming/api/titles?region=eu"))[1] == {"titles": []}
        client.close()

    run(main)

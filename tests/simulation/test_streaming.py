"""Origin, edge, ISP cache and viewers in virtual time: the same seed gives the same run, byte for byte."""

import asyncio
from pathlib import Path

import msgspec
from tests.unit.streaming import boxes

from fourplane.edge.http_client import HttpClient
from fourplane.foundation import clock
from fourplane.foundation.errors import NotFound
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry
from fourplane.service.key_ring import KeyRing
from fourplane.service.tokens import Signer
from fourplane.simulator import loop
from fourplane.state.contracts import BlobInfo
from fourplane.streaming.delivery import Delivery
from fourplane.streaming.origin import Origin
from fourplane.streaming.packaging import TitleIndex, blob_key, index_track
from fourplane.streaming.playback import AUDIENCE, MediaGuard
from fourplane.streaming.settings import CdnSettings, StreamingSettings

TREE = (CdnSettings("EDGE1", 8101, "us"), CdnSettings("ISP1", 8104, "us", "EDGE1"))


class Shelf:
    """Published files in memory: the disk is not what this journey is about."""

    def __init__(self):
        self.files = {}

    async def get(self, key, *, start=0, end=None):
        await clock.sleep(0.004)
        if key not in self.files:
            raise NotFound(key)
        return self.files[key][start:end]

    async def put(self, key, content, *, media_type=""):
        self.files[key] = content
        return BlobInfo(key, len(content), "", 0)


async def published(folder):
    shelf = Shelf()
    tracks = []
    for name, content in {"360p": boxes.video_file(), "audio_0": boxes.audio_file()}.items():
        (folder / f"{name}.mp4").write_bytes(content)
        tracks.append(index_track(folder / f"{name}.mp4", name, fps=24.0))
        await shelf.put(blob_key("t", "v", f"{name}.mp4"), content)
    index = TitleIndex("t", "v", 8.0, tuple(tracks))
    await shelf.put(blob_key("t", "v", "index.json"), msgspec.json.encode(index))
    return shelf


async def viewer(port, token, number, seen):
    client = HttpClient("127.0.0.1", port)
    await clock.sleep(0.01 * number)
    base = f"/t/{token}/v/t/v/"
    for path in ["master.m3u8", "360p.m3u8", "360p/init.mp4", *[f"360p/{n}.m4s" for n in range(4)]]:
        answer = await client.request("GET", base + path)
        seen.append((answer.status, len(answer.body)))
        if path.endswith("m4s"):
            await clock.sleep(2.0)
    client.close()


def journey(folder):
    async def main(world):
        registry = Registry()
        signer = Signer(KeyRing.open(folder / "keys.json"))
        settings = StreamingSettings(cdn=TREE, cache_folder=None)
        delivery = Delivery(
            settings, origin=Origin(await published(folder)), guard=MediaGuard(signer), registry=registry, sockets={}
        )
        lifecycle = Lifecycle(registry)
        lifecycle.add("delivery", delivery)
        await lifecycle.start()
        token = signer.sign(AUDIENCE, {"path": "/v/t/v/", "session": "s"}, 3_600)
        seen = []
        async with asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(viewer(delivery.nodes["ISP1"].port, token, number, seen))
        facts = {name: node.statistics() for name, node in delivery.nodes.items()}
        origin = delivery.origin_requests
        world.note(f"{origin} {facts['ISP1'].hits}")
        for node in delivery.nodes.values():
            node.store.check()
        await lifecycle.drain()
        await lifecycle.stop()
        assert not [event for event in registry.events if event.level == "error"], list(registry.events)
        return seen, origin, facts["ISP1"].requests, facts["EDGE1"].requests

    return main


def test_a_seed_gives_the_same_run_twice_and_the_tree_absorbs_the_crowd(tmp_path):
    for name in ("first", "second", "third"):
        (tmp_path / name).mkdir()
    KeyRing.open(tmp_path / "first" / "keys.json")
    keys = (tmp_path / "first" / "keys.json").read_bytes()
    for name in ("second", "third"):
        path = Path(tmp_path / name / "keys.json")
        path.write_bytes(keys)
        path.chmod(0o600)
    first = loop.run(journey(tmp_path / "first"), 11)
    second = loop.run(journey(tmp_path / "second"), 11)
    seen, origin, isp, edge = first.result
    assert [status for status, _ in seen] == [200] * 8 * 7
    assert isp == 8 * 7
    assert edge == origin == 7, "each object left the origin once, whoever asked"
    assert first.digest == second.digest
    assert loop.run(journey(tmp_path / "third"), 12).digest != first.digest


def test_an_origin_that_is_down_for_a_while_costs_no_viewer_what_is_cached(tmp_path):
    async def main(world):
        registry = Registry()
        signer = Signer(KeyRing.open(tmp_path / "keys.json"))
        delivery = Delivery(
            StreamingSettings(cdn=TREE, cache_folder=None),
            origin=Origin(await published(tmp_path)),
            guard=MediaGuard(signer),
            registry=registry,
            sockets={},
        )
        lifecycle = Lifecycle(registry)
        lifecycle.add("delivery", delivery)
        await lifecycle.start()
        token = signer.sign(AUDIENCE, {"path": "/v/t/v/", "session": "s"}, 3_600)
        warm, cold = [], []
        await viewer(delivery.nodes["ISP1"].port, token, 0, warm)
        delivery.origin_switch.on = False
        delivery.switches["EDGE1"].on = False
        await viewer(delivery.nodes["ISP1"].port, token, 1, cold)
        answer = await HttpClient("127.0.0.1", delivery.nodes["ISP1"].port).request(
            "GET", f"/t/{token}/v/t/v/audio_0/0.m4s"
        )
        refused = await HttpClient("127.0.0.1", delivery.nodes["ISP1"].port).request("GET", "/v/t/v/360p/0.m4s")
        forged = await HttpClient("127.0.0.1", delivery.nodes["ISP1"].port).request(
            "GET", f"/t/x{token}/v/t/v/360p/0.m4s"
        )
        other = await HttpClient("127.0.0.1", delivery.nodes["ISP1"].port).request(
            "GET", f"/t/{token}/v/u/v/360p/0.m4s"
        )
        await lifecycle.stop()
        return warm, cold, answer.status, refused.status, forged.status, other.status

    warm, cold, missing, refused, forged, other = loop.run(main, 5).result
    assert cold == warm
    assert missing >= 500
    assert (refused, forged, other) == (403, 401, 403)

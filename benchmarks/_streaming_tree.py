"""What the tree is for: a ladder at the pace of the film, nodes filled ahead, a region lost without a failed play."""

import asyncio
import sys
import tempfile
import time
from collections import OrderedDict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LADDER_S = 24.0


def ladder():
    """Seconds of film per second of three rungs of 720p24, x264 veryfast: the fixed ladder, without the search before it."""
    from fourplane.streaming import ffmpeg
    from fourplane.streaming.clip import generate_clip
    from fourplane.streaming.encoding import Encode
    from fourplane.streaming.settings import EncodingSettings

    shared = ROOT.parent / "shared" / "data" / "video" / "big_buck_bunny_trailer_720p.mp4"

    async def main(folder):
        encoder = await ffmpeg.find()
        film = shared
        if not film.is_file():
            film = folder / "film.mp4"
            await generate_clip(encoder, film, duration_s=LADDER_S)
        settings = EncodingSettings(per_title=False, rungs_max=3, nice=0, duration_s_max=LADDER_S)
        return await Encode(encoder, film, folder / "work", settings).run()

    with tempfile.TemporaryDirectory() as folder:
        encoded = asyncio.run(main(Path(folder)))
    speed = encoded.plan.duration_s / encoded.took_s
    rungs = ", ".join(rung.name for rung in encoded.plan.rungs)
    return {
        "film_s": encoded.plan.duration_s,
        "rungs": rungs,
        "speed": round(speed, 2),
        "bar": 1.0,
        "met": speed >= 1.0,
    }


def per_title():
    """The rate that a ladder of the title's own saves against the fixed one, at the look of the fixed one's top rung."""
    from fourplane.streaming import ffmpeg, per_title
    from fourplane.streaming.encoding import Encode
    from fourplane.streaming.settings import EncodingSettings

    shared = ROOT.parent / "shared" / "data" / "video" / "big_buck_bunny_trailer_720p.mp4"
    if not shared.is_file():
        return {"skipped": "no film (../shared/data/video)"}

    async def main(folder):
        encoder = await ffmpeg.find()
        if "libvmaf" not in encoder.filters:
            return None
        began = time.monotonic()
        encode = Encode(encoder, shared, folder, EncodingSettings(rungs_max=5, nice=0))
        source = await encoder.probe(shared)
        plan = encode_plan_of(shared, source)
        encode._adopt(plan)
        found = await encode._search(plan, encode._search_steps(plan))
        return found.rungs, time.monotonic() - began

    def encode_plan_of(file, source):
        from fourplane.streaming.encode_plan import make_plan

        return make_plan(file, source, EncodingSettings(rungs_max=5), judged=True)

    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(main(Path(folder)))
    if found is None:
        return {"skipped": "this ffmpeg has no VMAF"}
    rungs, took = found
    said = ", ".join(f"{rung.name} crf {rung.crf:g} VMAF {rung.vmaf:g}" for rung in rungs)
    return {"rungs": said, "search_s": round(took, 1), "windows": len(per_title.windows(55.0))}


class Lru:
    """Bytes by least recent use, as nginx's proxy_cache counts them, without its slack."""

    def __init__(self, bytes_max):
        self.left, self.kept = bytes_max, OrderedDict()

    def ask(self, path, size):
        if path in self.kept:
            self.kept.move_to_end(path)
            return True
        self.kept[path] = size
        self.left -= size
        while self.left < 0:
            self.left += self.kept.popitem(last=False)[1]
        return False


def fill(titles=120, segments=12, requests=6_000):
    """Byte hit ratio of a real node filled ahead from yesterday's plays, and of LRU on demand with the same bytes."""
    sys.path.insert(0, str(ROOT))
    import random

    rng = random.Random(7)
    sizes = {(title, number): rng.randint(20_000, 60_000) for title in range(titles) for number in range(segments)}
    room = sum(sizes.values()) // 10
    yesterday = [1 / (place + 1) ** 0.9 for place in range(titles)]
    order = list(range(titles))
    for _ in range(titles // 8):  # some titles rise and fall overnight
        one, other = rng.sample(range(titles), 2)
        order[one], order[other] = order[other], order[one]
    today = [yesterday[order.index(title)] for title in range(titles)]

    def day(weights, count):
        asked = []
        while len(asked) < count:
            title = rng.choices(range(titles), weights)[0]
            watched = min(segments, 1 + int(rng.expovariate(1 / 8)))
            asked += [(title, number) for number in range(watched)]
        return asked

    first, second = day(yesterday, requests), day(today, requests)
    lru = Lru(room)
    for one in first:
        lru.ask(one, sizes[one])
    lru_hits = sum(sizes[one] for one in second if lru.ask(one, sizes[one]))
    ours = asyncio.run(_filled(sizes, room, first, second))
    asked = sum(sizes[one] for one in second)
    ratio, other = ours / asked, lru_hits / asked
    return {
        "byte_hit_ratio": round(ratio, 4),
        "lru_on_demand": round(other, 4),
        "bytes_of_catalogue": 0.1,
        "bar": ">= LRU",
        "met": ratio >= other,
    }


async def _filled(sizes, room, first, second):
    """Bytes of the second day that a real node had: on demand the first day, filled at night, on demand again."""
    from fourplane.edge.cache_node import CacheNode, CacheNodeSettings
    from fourplane.edge.cache_origin import OriginSettings
    from fourplane.edge.http_client import HttpClient
    from fourplane.edge.listener import ListenerSettings
    from fourplane.foundation.lifecycle import Lifecycle
    from fourplane.foundation.telemetry import Registry
    from fourplane.streaming.packaging import MediaSegment, TitleIndex, Track
    from fourplane.streaming.proactive_fill import plan

    async def answer(reader, writer):
        while head := await reader.readuntil(b"\r\n\r\n"):
            parts = head.split(b" ")[1].decode().removesuffix(".m4s").split("/")
            body = bytes(sizes[int(parts[2]), int(parts[5])])
            fields = f'Content-Length: {len(body)}\r\nCache-Control: max-age=86400\r\nETag: "x"\r\n'
            writer.write(f"HTTP/1.1 200 OK\r\n{fields}\r\n".encode() + body)
            await writer.drain()

    async def guarded(reader, writer):
        try:
            await answer(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            writer.close()

    def path_of(one):
        return f"/v/{one[0]}/v/t/{one[1]}.m4s"

    origin = await asyncio.start_server(guarded, "127.0.0.1", 0)
    registry = Registry()
    lifecycle = Lifecycle(registry)
    settings = CacheNodeSettings(
        listener=ListenerSettings(port=0),
        origin=OriginSettings(port=origin.sockets[0].getsockname()[1]),
        bytes_max=room,
        key_host=False,
    )
    node = CacheNode(settings, registry=registry)
    lifecycle.add("node", node)
    await lifecycle.start()
    client = HttpClient("127.0.0.1", node.port)
    try:
        plays = {}
        for one in first:
            await client.request("GET", path_of(one))
            plays[str(one[0])] = plays.get(str(one[0]), 0.0) + (one[1] == 0)
        count = max(number for _, number in sizes) + 1
        indexes = [
            TitleIndex(title, "v", 2.0 * count, (_track(title, count, sizes, MediaSegment, Track),)) for title in plays
        ]
        chosen = plan(plays, indexes, bytes_max=room)
        for item in reversed(chosen):
            if item.path.endswith(".m4s"):
                under_way = node.prefetch(item.path.encode())
                while under_way is not None and not under_way.done:
                    await under_way.changed()
                if under_way is not None and under_way.entry is not None:
                    under_way.entry.visited = True  # as `ProactiveFill` does
        before, had = node.statistics().hits, 0
        for one in second:
            await client.request("GET", path_of(one))
            hits = node.statistics().hits
            had += sizes[one] if hits > before else 0
            before = hits
        return had
    finally:
        client.close()
        await lifecycle.drain()
        await lifecycle.stop()
        origin.close()


def _track(title, count, sizes, segment, track):
    segments = tuple(segment(0, sizes[int(title), number], 2, 0) for number in range(count))
    return track("t", "video", "avc1", 1, 0, segments)


def region(users=24, seconds=45.0):
    """One region is emptied while a crowd watches: how long until its nodes serve nobody, and whose play failed."""
    sys.path.insert(0, str(ROOT))
    import msgspec
    from tests.journeys.streaming.rig import QUICK, house

    from fourplane.foundation import clock
    from fourplane.simulator.crowds import Plan, Tally, Target
    from fourplane.simulator.crowds.streaming import StreamingCrowd
    from fourplane.streaming import ffmpeg
    from fourplane.streaming.clip import generate_clip
    from fourplane.streaming.settings import TREE, StreamingSettings

    tree = tuple(msgspec.structs.replace(node, port=0) for node in TREE)
    longer = msgspec.structs.replace(QUICK, duration_s_max=0.0)  # than what players fetch ahead
    settings = StreamingSettings(cdn=tree, origin_port=0, encoding=longer)

    async def main(folder):
        async with house(folder, settings=settings) as here:
            clip = folder / "film.mp4"
            await generate_clip(await ffmpeg.find(), clip, duration_s=60.0, size="320x180")
            job = await here.rooms.submit(clip, "A film")
            await here.rooms.jobs.wait_ended(job.id)
            crowd, tally = StreamingCrowd(), Tally()
            target = Target(http_port=here.port, operator_token=here.operator)
            wanted = Plan(users=users, rate_per_s=float(users), duration_s=seconds)
            driving = asyncio.create_task(crowd.drive(target, wanted, tally, lambda *_: None))
            await clock.sleep(seconds / 4)
            ours = [here.rooms.delivery.nodes[name] for name in ("EDGE1", "ISP1", "ISP2")]
            before = sum(node.hits + node.misses for node in ours)
            here.rooms.delivery.evacuate("us")
            began, moved, served = clock.monotonic_s(), 0.0, before
            while not driving.done():
                now = sum(node.hits + node.misses for node in ours)
                if now != served:
                    served, moved = now, clock.monotonic_s() - began
                await clock.sleep(0.05)
            await driving
            failed = sum(tally.errors.values())
            return {
                "viewers": users,
                "moved": int(tally.facts.get("moved", 0)),
                "all_moved_s": round(moved, 1),
                "failed": failed,
                "bar": "<= 30 s, 0 failed",
                "met": moved <= 30.0 and failed == 0 and before > 0,
            }

    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(main(Path(folder)))

"""Riders who ask at a steady rate and a fleet that accepts at once: the load for the whole path.

Latency counts from the moment a rider's request leaves until the fleet hears that its acceptance is durable, so the
pool's window is in it. Positions flow over a connection of their own, as from a gateway of phones: an acceptance never
stands in line behind four megabytes of them, and a sweep is left out while the last one is still unsent. Every
accepted trip is driven through to its end at once, which frees the car. Positions are counted where they arrive.
"""

import asyncio
import time

import msgspec
import numpy as np

from fourplane.dispatch import feed_frames as frames
from fourplane.dispatch.driver_index import make_updates
from fourplane.dispatch.roads import Roads
from fourplane.dispatch.traffic import Traffic, pick_nodes
from fourplane.edge.http_client import HttpClient, HttpClientSettings
from fourplane.foundation import network
from fourplane.foundation.errors import FourplaneError
from fourplane.simulator.crowds.dispatch import Gateway

NEXT = {"accepted": "arrive", "arriving": "start", "in_progress": "finish"}
REPEATS = 26  # each position is sent this often a quarter second, with new sequence numbers: 1.04M/s from 10,000 cars
UNSENT_MAX = 1 << 20


class Refused(Exception):
    """The deployment said no."""


class Bulk(asyncio.Protocol):
    """The connection the positions flow over; news come over the other."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        pass


async def drive(target: dict, rate: float, seconds: float, cars: int) -> dict[str, float]:
    client = HttpClient("127.0.0.1", target["http"], settings=HttpClientSettings(connections_max=64))
    asked: dict[str, float] = {}
    waits: list[float] = []
    counts = {"failed": 0}
    ended: set[str] = set()
    refused: dict[str, int] = {}

    async def call(method: str, path: str, body: object = None, **headers: str) -> dict:
        sent = {name.replace("_", "-"): value for name, value in headers.items()} | {"content-type": "application/json"}
        answer = await client.request(
            method, f"/dispatch/api{path}", body=msgspec.json.encode(body), headers=sent, timeout_s=30
        )
        if answer.status >= 300:
            error = msgspec.json.decode(answer.body)["error"]
            why = f"{path.rpartition('/')[2]}: {error['message'][:48]}"
            refused[why] = refused.get(why, 0) + 1
            raise Refused(why)
        return msgspec.json.decode(answer.body)

    roads = Roads.from_bytes((await client.request("GET", "/dispatch/api/map/network")).body)
    rng = np.random.default_rng(1)
    traffic = Traffic(roads, cars, rng)
    fleet = await call("POST", "/fleets", {"name": "bench", "count": cars}, authorization=f"Bearer {target['token']}")
    _, gate = await network.connect(Gateway, "127.0.0.1", target["feed"])
    gate.send(frames.HELLO, fleet["feed_token"].encode())
    await gate.news.get()
    _, bulk = await network.connect(Bulk, "127.0.0.1", target["feed"])
    bulk.transport.write(frames.frame(frames.HELLO, fleet["feed_token"].encode()))
    gate.send(frames.VERBS, msgspec.json.encode({"verb": "online", "driver": fleet["first"], "count": cars}))

    async def move() -> None:
        sequence, numbers = 1, np.arange(cars, dtype=np.uint32) + np.uint32(fleet["first"])
        due = time.monotonic()
        while True:
            due = max(due + 0.25, time.monotonic() - 1.0)  # a little late is made up for
            traffic.step(0.25)
            lat, lng = traffic.places()
            for _ in range(REPEATS):
                if bulk.transport.get_write_buffer_size() > UNSENT_MAX:
                    await asyncio.sleep(0.01)
                    continue
                sequence += 1
                updates = make_updates(numbers, lat, lng, np.full(cars, sequence, np.uint32))
                for at in range(0, cars, 4_096):
                    bulk.transport.write(frames.frame(frames.POSITIONS, updates[at : at + 4_096].tobytes()))
                await asyncio.sleep(0)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def hear() -> None:
        while (news := await gate.news.get()) is not None:
            if news.kind == "offer":
                verb = "accept"
            elif news.kind == "driver_trip" and news.status in NEXT:
                verb = NEXT[news.status]
                if news.status == "accepted":
                    waits.append(time.monotonic() - asked.pop(news.trip, time.monotonic()))
            else:
                ended.add(news.trip) if news.status == "completed" else None
                continue
            gate.send(frames.VERBS, msgspec.json.encode({"verb": verb, "driver": news.driver, "trip": news.trip}))

    async def ride(token: str, start: int, end: int) -> None:
        places = {
            "start_latitude": float(roads.lat[start]), "start_longitude": float(roads.lng[start]),
            "end_latitude": float(roads.lat[end]), "end_longitude": float(roads.lng[end]),
        }  # fmt: skip
        try:
            fare = await call("POST", "/requests/estimate", {"product_id": "go", **places}, x_rider_token=token)
            began = time.monotonic()
            made = await call("POST", "/requests", {"fare_id": fare["fare"]["fare_id"]}, x_rider_token=token)
            asked[made["request_id"]] = began
        except (Refused, FourplaneError):
            counts["failed"] += 1

    async def seen() -> tuple[float, dict]:
        """The deployment's own figures, and when it told them."""
        while True:
            answer = await client.request("GET", "/dispatch/api/statistics", timeout_s=60)
            if answer.status == 200:
                return time.monotonic(), msgspec.json.decode(answer.body)
            await asyncio.sleep(0.05)

    tokens = [(await call("POST", "/guests", {}))["token"] for _ in range(int(rate * 12))]
    background = [asyncio.create_task(move()), asyncio.create_task(hear())]
    await asyncio.sleep(2)
    nodes = pick_nodes(roads, 4_000, rng, spread_m=1_800.0)
    (first, before), open_rides, made = await seen(), set(), 0
    began = time.monotonic()
    while (now := time.monotonic() - began) < seconds:
        while made < now * rate:
            start, end = int(nodes[made % 4_000]), int(nodes[(made * 7 + 1) % 4_000])
            task = asyncio.create_task(ride(tokens[made % len(tokens)], start, end))
            open_rides.add(task)
            task.add_done_callback(open_rides.discard)
            made += 1
        await asyncio.sleep(0.005)
    wall = time.monotonic() - began
    last, after = await seen()
    flowing = (after["feed"]["positions"] - before["feed"]["positions"]) / (last - first)
    await asyncio.gather(*open_rides)
    await asyncio.sleep(4)
    for task in background:
        task.cancel()
    await asyncio.gather(*background, return_exceptions=True)
    _, told = await seen()
    gate.close()
    bulk.transport.close()
    client.close()
    return {
        "server p50 s": told["match_p50_s"], "server p99 s": told["match_p99_s"], "unserved": told["rides"]["unserved"],
        "searched again": told["matcher"]["unmatched"],
        "matches per hour": len(waits) / wall * 3_600, "asked per s": made / wall, "completed": len(ended),
        "failed": counts["failed"], "p50 s": float(np.quantile(waits, 0.5)), "p99 s": float(np.quantile(waits, 0.99)),
        **{f"refused {why}": count for why, count in refused.items()}, "positions per s": flowing, "wall s": wall,
    }  # fmt: skip

"""Road times through the HTTP API: the door OSRM is measured through.

Twenty thousand cars of one fleet stand on the roads; sixteen kept connections ask for the twenty nearest free drivers and
their road times, one request at a time each, at places where people are. The figure is per CPU second of the server.
"""

import asyncio
import time
from collections.abc import Callable

import msgspec
import numpy as np

from fourplane.dispatch import feed_frames as frames
from fourplane.dispatch.driver_index import make_updates
from fourplane.dispatch.roads import Roads
from fourplane.dispatch.traffic import Traffic, pick_nodes
from fourplane.edge.http_client import HttpClient
from fourplane.foundation import network
from fourplane.simulator.crowds.dispatch import Gateway

CONNECTIONS = 16


class Asker(asyncio.Protocol):
    """Sends its requests one after the other and counts the answers and the drivers in them."""

    def __init__(self, requests: list[bytes], tick: asyncio.Queue[float]) -> None:
        self._requests, self._tick, self._rest = requests, tick, b""
        self.answers = self.drivers = self.refused = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._ask()

    def _ask(self) -> None:
        self._asked = time.perf_counter()
        self.transport.write(self._requests[self.answers % len(self._requests)])

    def data_received(self, data: bytes) -> None:
        self._rest += data
        head, _, body = self._rest.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
        if not length or len(body) < int(length):
            return
        if not head.startswith(b"HTTP/1.1 200"):  # too much at the moment: ask again, it does not count
            self.refused += 1
            self._rest = b""
            self._ask()
            return
        self._tick.put_nowait(time.perf_counter() - self._asked)
        self.answers += 1
        told = msgspec.json.decode(body)
        self.drivers += sum(len(one["drivers"]) for one in told.get("near", [told]))
        self._rest = b""
        self._ask()


async def ask(target: dict, seconds: float, cars: int, cpu: Callable[[], float], together: int = 1) -> dict[str, float]:
    client = HttpClient("127.0.0.1", target["http"])
    roads = Roads.from_bytes((await client.request("GET", "/dispatch/api/map/network")).body)
    rng = np.random.default_rng(3)
    fleet = msgspec.json.decode((await client.request(
        "POST", "/dispatch/api/fleets", body=msgspec.json.encode({"name": "eta", "count": cars}),
        headers={"authorization": f"Bearer {target['token']}", "content-type": "application/json"},
    )).body)  # fmt: skip
    _, gate = await network.connect(Gateway, "127.0.0.1", target["feed"])
    gate.send(frames.HELLO, fleet["feed_token"].encode())
    await gate.news.get()
    gate.send(frames.VERBS, msgspec.json.encode({"verb": "online", "driver": fleet["first"], "count": cars}))
    await asyncio.sleep(0.5)
    numbers = np.arange(cars, dtype=np.uint32) + np.uint32(fleet["first"])
    lat, lng = Traffic(roads, cars, rng).places()
    sequence = 0

    def report() -> None:
        nonlocal sequence
        sequence += 1
        updates = make_updates(numbers, lat, lng, np.full(cars, sequence, np.uint32))
        for at in range(0, cars, 4_096):
            gate.send(frames.POSITIONS, updates[at : at + 4_096].tobytes())

    report()
    nodes = pick_nodes(roads, 1_500, rng)
    requests = [
        f"GET /dispatch/api/estimates/drivers?start_latitude={roads.lat[n]:.6f}&start_longitude={roads.lng[n]:.6f} HTTP/1.1\r\n"
        "host: bench\r\n\r\n".encode()
        for n in nodes
    ]  # fmt: skip
    if together > 1:
        requests = [
            _post([(round(float(roads.lat[n]), 6), round(float(roads.lng[n]), 6)) for n in nodes[at : at + together]])
            for at in range(0, len(nodes) - together, together)
        ]
    ticks: asyncio.Queue[float] = asyncio.Queue()
    await asyncio.sleep(0.5)
    made = [
        (
            await network.connect(
                lambda part=part: Asker(requests[part::CONNECTIONS], ticks), "127.0.0.1", target["http"]
            )
        )[1]
        for part in range(CONNECTIONS)
    ]
    await asyncio.sleep(0.5)
    while not ticks.empty():
        ticks.get_nowait()
    began, spent = time.monotonic(), cpu()
    while time.monotonic() - began < seconds:
        await asyncio.sleep(2.0)
        report()  # who is silent drops off the map
    wall, spent, waits = time.monotonic() - began, cpu() - spent, []
    while not ticks.empty():
        waits.append(ticks.get_nowait())
    for one in made:
        one.transport.close()
    gate.send(frames.VERBS, msgspec.json.encode({"verb": "offline", "driver": fleet["first"], "count": cars}))
    await asyncio.sleep(0.5)  # who asks next finds no car of this fleet
    gate.close()
    client.close()
    return {
        "per CPU s": together * len(waits) / spent, "per s": together * len(waits) / wall,
        "p50 ms": float(np.quantile(waits, 0.5)) * 1e3,
        "p99 ms": float(np.quantile(waits, 0.99)) * 1e3,
        "refused": sum(one.refused for one in made),
        "candidates": sum(one.drivers for one in made) / sum(one.answers for one in made) / together,
    }  # fmt: skip


def _post(places: list[tuple[float, float]]) -> bytes:
    body = msgspec.json.encode({"places": places})
    head = "POST /dispatch/api/estimates/drivers HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body

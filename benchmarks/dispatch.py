"""Dispatch: positions a second, nearest drivers, road times, and the whole path from a request to a ride.

Updates: a child process sends frames of 4,096 positions over loopback TCP, random drivers first, each moved about 8 m; this
process receives them through the real `FeedConnection` into the real index. The figure is per CPU second of the receiver.
The peer is a redis-server on the same machine in the same run (`GEOADD` of 100 members a command, pipelined;
`GEOSEARCH ... COUNT 20`), per CPU second of the server. Searches run in batches and one by one between updates.
Road times: 20 candidates of 20,000 cars, search included, Python call included. Rides: a whole deployment in a child
process (durable stores, HTTP, feed), asked for `--rides` a second while positions flow; drivers accept at once.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np

from fourplane.control.nodes import Switch
from fourplane.dispatch import compiled, feed_frames, osm_import
from fourplane.dispatch.city import make_city
from fourplane.dispatch.driver_index import IndexSettings, make_updates, open_index
from fourplane.dispatch.drivers import Drivers
from fourplane.dispatch.eta import Eta
from fourplane.dispatch.location_feed import FeedConnection, FeedSettings, LocationFeed
from fourplane.dispatch.push import Push
from fourplane.dispatch.roads import Roads
from fourplane.dispatch.traffic import Traffic, pick_nodes
from fourplane.foundation.telemetry import Registry
from fourplane.service.key_ring import KeyRing
from fourplane.service.tokens import Signer

ROOT = Path(__file__).parents[1]
PORTO = ROOT.parent / "shared/data/maps/porto.osm.pbf"
BOX = (40.5, 41.0, -74.3, -73.7)
FRAME = 4_096
BARS = {
    "updates 100k per CPU s": 10e6, "updates 1M per CPU s": 10e6, "updates 2.5M per CPU s": 10e6, "updates against redis": 30,
    "nearest 20 per CPU s": 100e3, "search and ETA per CPU s": 8_000,
}  # fmt: skip


def frames_of(drivers: int, sweeps: int, seed: int) -> bytes:
    """`sweeps` positions of every driver as one stream of frames."""
    rng = np.random.default_rng(seed)
    lat, lng = rng.uniform(*BOX[:2], drivers), rng.uniform(*BOX[2:], drivers)
    out = []
    for sweep in range(sweeps):
        order = rng.permutation(drivers).astype(np.uint32)
        lat, lng = lat + rng.normal(0, 5e-5, drivers), lng + rng.normal(0, 5e-5, drivers)
        updates = make_updates(order, lat[order], lng[order], np.full(drivers, sweep + 1, np.uint32))
        out += [feed_frames.positions_frame(updates[at : at + FRAME]) for at in range(0, drivers, FRAME)]
    return b"".join(out)


def feed_for(drivers: int) -> LocationFeed:
    index = open_index(IndexSettings())
    numbers = np.arange(drivers, dtype=np.uint32)
    index.set_states(numbers, np.ones(drivers, np.uint32))
    return LocationFeed(
        FeedSettings(port=0), index=index, drivers=Drivers(index, None, drivers_max=1), desk=None, log=None,
        signer=Signer(KeyRing.in_memory()), push=Push(), registry=Registry(), switch=Switch("location"),
    )  # fmt: skip


async def receive(drivers: int, sweeps: int) -> dict[str, float]:
    """CPU time of taking a stream of frames from a child process over loopback."""
    feed, done = feed_for(drivers), asyncio.Event()

    class Receiver(FeedConnection):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self._session.first, self._session.end = 0, drivers
            self._buffer.most = feed_frames.BUFFER_MAX
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            done.set()

    server = await asyncio.get_running_loop().create_server(lambda: Receiver(feed), "127.0.0.1", 0)
    sender = subprocess.Popen(
        [sys.executable, __file__, "send", str(server.sockets[0].getsockname()[1]), str(drivers), str(sweeps)]
    )
    while feed.statistics().positions < drivers:
        await asyncio.sleep(0.01)
    began, cpu, had = time.monotonic(), time.process_time(), feed.statistics().positions
    await done.wait()
    took, wall, count = time.process_time() - cpu, time.monotonic() - began, feed.statistics().positions - had
    sender.wait()
    server.close()
    stats = feed.index.statistics()
    assert stats.live == drivers, stats
    return {"per CPU s": count / took, "per s": count / wall, "frame p99 ms": feed.apply_seconds.quantile(0.99) * 1e3}


def send(port: int, drivers: int, sweeps: int) -> None:
    """The child: everything is made before the first byte leaves."""
    stream = memoryview(frames_of(drivers, sweeps + 1, 1))
    with socket.create_connection(("127.0.0.1", port)) as out:
        for at in range(0, len(stream), 1 << 20):
            out.sendall(stream[at : at + (1 << 20)])


def searches(drivers: int = 100_000) -> dict[str, float]:
    """Nearest 20 within 2 km: in batches, and one by one while updates flow."""
    feed, rng = feed_for(drivers), np.random.default_rng(2)
    index = feed.index
    stream = [
        feed_frames.read_positions(payload) for _, payload in feed_frames.FrameReader().feed(frames_of(drivers, 3, 1))
    ]
    for updates in stream[: len(stream) // 3]:
        index.update(updates, 0)
    lats, lngs = rng.uniform(40.52, 40.98, 4_000), rng.uniform(-74.28, -73.72, 4_000)
    index.nearest_many(lats[:10], lngs[:10], radius_m=2_000, count=20)
    rates = []
    for _ in range(5):
        began = time.thread_time()
        index.nearest_many(lats, lngs, radius_m=2_000, count=20)
        rates.append(len(lats) / (time.thread_time() - began))
    waits = []
    for tick, updates in enumerate(stream[len(stream) // 3 :]):
        for at in range(0, len(updates), 1_024):
            asked = time.perf_counter()
            index.update(updates[at : at + 1_024], tick * 10)
            n = (tick * 4 + at) % 4_000
            index.nearest(float(lats[n]), float(lngs[n]), radius_m=2_000, count=20)
            waits.append(time.perf_counter() - asked)
    return {"per CPU s": statistics.median(rates), "p99 ms with updates": float(np.quantile(waits, 0.99)) * 1e3}


def city() -> Roads:
    if PORTO.exists():
        with contextlib.suppress(ImportError):
            return osm_import.read_roads(PORTO, lambda _share, _text: None)
    return make_city()


def road_times(cars: int = 20_000) -> dict[str, float]:
    """Nearest 20 and their road times, one request after the other."""
    roads, rng = city(), np.random.default_rng(3)
    eta, index = Eta(roads), open_index(IndexSettings())
    lat, lng = Traffic(roads, cars, rng).places()
    numbers = np.arange(cars, dtype=np.uint32)
    index.set_states(numbers, np.ones(cars, np.uint32))
    index.update(make_updates(numbers, lat, lng, np.ones(cars, np.uint32)), 0)
    nodes = pick_nodes(roads, 1_500, rng)
    rates, found = [], 0
    for _ in range(3):
        began = time.thread_time()
        for at in range(0, len(nodes), 50):
            some = nodes[at : at + 50]
            ranked = eta.rank_many(index, roads.lat[some], roads.lng[some], radius_m=2_000, count=20, mask=15, wanted=1)
            found += sum(int(np.isfinite(one.etas).sum()) for one in ranked)
        rates.append(len(nodes) / (time.thread_time() - began))
    return {"per CPU s": statistics.median(rates), "candidates": found / 3 / len(nodes), "nodes": len(roads.lat)}  # fmt: skip


class Redis:
    """A redis-server of our own on a free port, and just enough of its protocol."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.process = subprocess.Popen(
            ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
            stdout=subprocess.DEVNULL,
        )
        for _ in range(100):
            with contextlib.suppress(OSError):
                self.link = socket.create_connection(("127.0.0.1", port))
                return
            time.sleep(0.05)

    def cpu(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def run(self, commands: list[list[bytes]]) -> None:
        """Send all, wait until the answer of a final PING is back."""
        self.link.sendall(b"".join(pack(command) for command in commands) + pack([b"PING", b"the end"]))
        tail = b""
        while not tail.endswith(b"the end\r\n"):
            tail = (tail + self.link.recv(1 << 20))[-64:]

    def close(self) -> None:
        self.link.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def pack(command: list[bytes]) -> bytes:
    return b"*%d\r\n" % len(command) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in command)


def redis_peer(drivers: int = 100_000) -> dict[str, float]:
    """The same updates and searches against Redis, per CPU second of the server."""
    redis, rng = Redis(), np.random.default_rng(1)
    try:
        lat, lng = rng.uniform(*BOX[:2], drivers), rng.uniform(*BOX[2:], drivers)
        rates = []
        for _ in range(3):
            lat, lng = lat + rng.normal(0, 5e-5, drivers), lng + rng.normal(0, 5e-5, drivers)
            order = rng.permutation(drivers)
            commands = []
            for at in range(0, drivers, 100):
                members = [p for n in order[at : at + 100] for p in (b"%.6f" % lng[n], b"%.6f" % lat[n], b"%d" % n)]
                commands.append([b"GEOADD", b"drivers", *members])
            cpu = redis.cpu()
            for at in range(0, len(commands), 20):
                redis.run(commands[at : at + 20])
            rates.append(drivers / (redis.cpu() - cpu))
        ask = [
            [
                b"GEOSEARCH",
                b"drivers",
                b"FROMLONLAT",
                b"%.6f" % b,
                b"%.6f" % a,
                b"BYRADIUS",
                b"2",
                b"km",
                b"ASC",
                b"COUNT",
                b"20",
            ]
            for a, b in zip(rng.uniform(40.52, 40.98, 2_000), rng.uniform(-74.28, -73.72, 2_000), strict=True)
        ]
        cpu = redis.cpu()
        for at in range(0, len(ask), 50):
            redis.run(ask[at : at + 50])
        return {
            "updates per CPU s": statistics.median(rates[1:]),
            "nearest 20 per CPU s": len(ask) / (redis.cpu() - cpu),
        }
    finally:
        redis.close()


def matching(seeds: int) -> dict[str, dict[str, float]]:
    """Seeded evenings by three rules of matching, on the generated city wherever this runs."""
    from benchmarks.peers.dispatch_demand import compare

    return compare(make_city(), seeds=seeds)


def rides(rate: float, seconds: float, cars: int) -> dict[str, float]:
    """A deployment in a child process, a fleet and riders here."""
    folder = Path(tempfile.mkdtemp(prefix="dispatch-bench-"))
    program = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.peers.dispatch_server", str(folder)], stdout=subprocess.PIPE, text=True,
        cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
    )  # fmt: skip
    try:
        assert program.stdout is not None
        target = json.loads(program.stdout.readline())
        from benchmarks.peers.dispatch_riders import drive

        before = cpu_of(program.pid)
        figures = asyncio.run(drive(target, rate, seconds, cars))
        figures["server CPU share"] = (cpu_of(program.pid) - before) / figures.pop("wall s")
        return figures
    finally:
        program.send_signal(signal.SIGTERM)
        program.wait()
        shutil.rmtree(folder, ignore_errors=True)


def cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def run(options: argparse.Namespace) -> dict:
    if getattr(options, "only", "") == "matching":
        return matching(getattr(options, "seeds", 5))
    compiled.compile_all()
    rounds, quick = getattr(options, "rounds", 3), getattr(options, "quick", False)
    figures: dict = {
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        }
    }
    for label, drivers, sweeps in (("100k", 100_000, 30), ("1M", 1_000_000, 4), ("2.5M", 2_500_000, 2)):
        if quick and drivers > 1_000_000:
            continue
        runs = []
        for _ in range(1 if quick else rounds):
            with asyncio.Runner(loop_factory=new_loop) as runner:
                runs.append(runner.run(receive(drivers, sweeps)))
        figures[f"updates {label}"] = {name: statistics.median(one[name] for one in runs) for name in runs[0]}
    figures["nearest 20"] = searches()
    figures["search and ETA"] = road_times()
    if shutil.which("redis-server"):
        figures["redis"] = redis_peer()
        figures["updates against redis"] = figures["updates 100k"]["per CPU s"] / figures["redis"]["updates per CPU s"]
        figures["nearest against redis"] = figures["nearest 20"]["per CPU s"] / figures["redis"]["nearest 20 per CPU s"]
    figures |= matching(2 if quick else getattr(options, "seeds", 5))
    figures["rides"] = rides(getattr(options, "rides", 280.0), 10.0 if quick else 30.0, 10_000)
    return figures


def main() -> None:
    if sys.argv[1:2] == ["send"]:
        send(*map(int, sys.argv[2:5]))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rides", type=float, default=280.0)
    parser.add_argument("--seeds", type=int, default=5, help="evenings of the matching comparison")
    parser.add_argument("--only", choices=("", "matching"), default="", help="run only this part")
    figures = run(parser.parse_args())
    results = ROOT / "benchmarks/results/dispatch.json"
    results.parent.mkdir(exist_ok=True)
    results.write_bytes(msgspec.json.format(msgspec.json.encode(figures)))
    for name, value in figures.items():
        for inner, number in value.items() if isinstance(value, dict) else {"": value}.items():
            print(f"{name + ' ' + inner:44} {number if isinstance(number, str) else f'{number:,.2f}'}")


if __name__ == "__main__":
    main()

"""Dispatch: positions a second, nearest drivers, road times, and the whole path from a request to a ride.

Updates: a child process sends frames of 4,096 positions over loopback TCP, random drivers first, each moved about 8 m; this
process receives them through the real `FeedConnection` into the real index. The figure is per CPU second of the receiver;
`visible` is the time from just before a frame is sent until a search would find its drivers there, with the sender
going as fast as it can. Beside it: one position per frame, and one per UDP datagram (the ceiling of single messages).
The peer is a redis-server on the same machine in the same run (`GEOADD` of 100 members a command, pipelined;
`GEOSEARCH ... COUNT 20`), per CPU second of the server. Searches run in batches and one by one between updates.
Road times: 20 candidates of 20,000 cars, search included, called from Python, and the same through the HTTP API of a
deployment, beside what OSRM's table service reached on another day (441 requests of 20 x 1 per CPU second over HTTP).
Rides: a whole deployment in a child process (durable stores, HTTP, feed), asked for `--rides` a second while positions flow;
drivers accept at once. `bars` at the end holds each figure against what it must reach.
"""

import argparse
import asyncio
import contextlib
import functools
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
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

import msgspec
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # `bench` loads this file by its path

from fourplane.control.nodes import Switch
from fourplane.dispatch import compiled, feed_frames, osm_import
from fourplane.dispatch.city import make_city
from fourplane.dispatch.driver_index import IndexSettings, make_updates, open_index
from fourplane.dispatch.drivers import Drivers
from fourplane.dispatch.eta import Eta
from fourplane.dispatch.location_feed import FeedConnection, FeedSession, FeedSettings, LocationFeed
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
OSRM_PER_CPU_S = 441.0  # recorded: OSRM 26.10, contraction hierarchies, the same extract, table 20 x 1 over HTTP
# Figure, where it stands, what it must reach (below zero: at most that).
BARS: tuple[tuple[str, str, str, float], ...] = (
    *((f"updates, {label}", f"updates {label}", "per CPU s", 10e6) for label in ("100k", "1M", "2.5M")),
    *((f"visible p99 ms, {label}", f"updates {label}", "visible p99 ms", -50) for label in ("100k", "1M", "2.5M")),
    ("updates against Redis", "updates against redis", "", 30),
    ("nearest 20", "nearest 20", "per CPU s", 100e3),
    ("nearest 20, p99 ms while updates flow", "nearest 20", "p99 ms with updates", -1),
    ("search and ETA", "search and ETA", "per CPU s", 8_000),
    ("ETA over HTTP against OSRM", "ETA over HTTP", "against OSRM", 10),
    ("the same, 20 places a request", "ETA over HTTP, 20 places a request", "against OSRM", 10),
    ("matches an hour", "rides", "matches per hour", 1e6),
    ("match p99 s", "rides", "p99 s", -3),
    ("positions a second meanwhile", "rides", "positions per s", 1e6),
    ("served, cheapest pair over FIFO, points", "match scarce cheapest - fifo", "served", 5),
)


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


class NobodyDrives:
    """A desk without rides."""

    def news_of(self, first: int, end: int):
        return iter(())


def feed_for(drivers: int) -> LocationFeed:
    index = open_index(IndexSettings())
    numbers = np.arange(drivers, dtype=np.uint32)
    index.set_states(numbers, np.ones(drivers, np.uint32))
    return LocationFeed(
        FeedSettings(port=0), index=index, drivers=Drivers(index, None, drivers_max=1), desk=NobodyDrives(), log=None,
        signer=Signer(KeyRing.in_memory()), push=Push(), registry=Registry(), switch=Switch("location"),
    )  # fmt: skip


async def receive(drivers: int, sweeps: int) -> dict[str, float]:
    """CPU time of taking a stream of frames from a child process over loopback."""
    feed, done = feed_for(drivers), asyncio.Event()

    delays: list[float] = []

    class Receiver(FeedConnection):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self._session.first, self._session.end = 0, drivers
            self._buffer.most = feed_frames.BUFFER_MAX
            take = self._session.take

            def taken(kind: int, payload: memoryview) -> None:
                take(kind, payload)
                sent_us = int.from_bytes(payload[12:16], "little")
                delays.append((time.monotonic_ns() // 1_000 - sent_us & 0xFFFFFFFF) / 1e3)

            self._session = _Session(self._session, taken)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            done.set()

    server = await asyncio.get_running_loop().create_server(lambda: Receiver(feed), "127.0.0.1", 0)
    sender = subprocess.Popen(
        [sys.executable, __file__, "send", str(server.sockets[0].getsockname()[1]), str(drivers), str(sweeps)]
    )
    while feed.statistics().positions < drivers + 500_000:  # all are on the map, and what queued up meanwhile is read
        await asyncio.sleep(0.002)
    delays.clear()
    began, cpu, had = time.monotonic(), time.process_time(), feed.statistics().positions
    await done.wait()
    took, wall, count = time.process_time() - cpu, time.monotonic() - began, feed.statistics().positions - had
    sender.wait()
    server.close()
    stats = feed.index.statistics()
    assert stats.live == drivers, stats
    return {
        "per CPU s": count / took, "per s": count / wall, "visible p50 ms": float(np.quantile(delays, 0.5)),
        "visible p99 ms": float(np.quantile(delays, 0.99)),
    }  # fmt: skip


class _Session:
    """A feed session whose frames are clocked."""

    def __init__(self, session: FeedSession, take: Callable[[int, memoryview], None]) -> None:
        self._session, self.take = session, take

    def __getattr__(self, name: str) -> object:
        return getattr(self._session, name)


def send(port: int, drivers: int, sweeps: int) -> None:
    """The child: everything is made before the first byte leaves, but for the clock in each frame's first record.

    That record is of a driver of its own, the last one, so that nobody's order is disturbed.
    """
    stream = bytearray(frames_of(drivers, sweeps + 1, 1))
    view, at = memoryview(stream), 0
    with socket.create_connection(("127.0.0.1", port)) as out:
        out.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        while at < len(stream):
            length = int.from_bytes(stream[at + 4 : at + 8], "little")
            stream[at + 8 : at + 12] = (drivers - 1).to_bytes(4, "little")
            stream[at + 20 : at + 24] = (time.monotonic_ns() // 1_000 & 0xFFFFFFFF).to_bytes(4, "little")
            out.sendall(view[at : at + 8 + length])
            at += 8 + length


async def one_by_one(count: int, *, datagrams: bool) -> dict[str, float]:
    """One position per frame over TCP, or per UDP datagram: what a message costs."""
    drivers = 10_000
    feed, done = feed_for(drivers), asyncio.Event()
    loop = asyncio.get_running_loop()
    if datagrams:

        class Datagrams(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, addr: object) -> None:
                if len(data) < 16:
                    done.set()
                else:
                    feed.positions(feed_frames.read_positions(data), 0, drivers)

        transport, _ = await loop.create_datagram_endpoint(Datagrams, ("127.0.0.1", 0))
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        port = transport.get_extra_info("sockname")[1]
    else:

        class Receiver(FeedConnection):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                super().connection_made(transport)
                self._session.first, self._session.end = 0, drivers
                self._buffer.most = feed_frames.BUFFER_MAX

            def connection_lost(self, exc: Exception | None) -> None:
                super().connection_lost(exc)
                done.set()

        transport = await loop.create_server(lambda: Receiver(feed), "127.0.0.1", 0)
        port = transport.sockets[0].getsockname()[1]
    cpu = time.process_time()
    kind = "datagrams" if datagrams else "frames"
    sender = subprocess.Popen([sys.executable, __file__, "single", kind, str(port), str(count)])
    await done.wait()
    took, got = time.process_time() - cpu, feed.statistics().positions
    sender.wait()
    transport.close()
    return {"per CPU s": got / took, "arrived share": got / count}


def send_singles(kind: str, port: int, count: int) -> None:
    """The child of `one_by_one`."""
    rng = np.random.default_rng(1)
    numbers = np.arange(count, dtype=np.uint32)
    updates = make_updates(
        numbers % 10_000, rng.uniform(40.5, 40.501, count), rng.uniform(-74.3, -74.299, count), numbers // 10_000 + 1
    )
    records = [updates[n : n + 1].tobytes() for n in range(count)]
    if kind == "frames":
        with socket.create_connection(("127.0.0.1", port)) as out:
            out.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            head = feed_frames.positions_frame(updates[:1])[:8]
            for record in records:
                out.send(head + record)
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.connect(("127.0.0.1", port))
        for record in records:
            out.send(record)
        for _ in range(20):
            time.sleep(0.05)
            with contextlib.suppress(OSError):
                out.send(b"end")


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
    """A fleet and riders here, a deployment beside."""
    from benchmarks.peers.dispatch_riders import drive

    with deployment() as (program, target):
        before = cpu_of(program.pid)
        figures = asyncio.run(drive(target, rate, seconds, cars))
        figures["server CPU share"] = (cpu_of(program.pid) - before) / figures.pop("wall s")
        return figures


def http_eta(seconds: float, cars: int = 20_000) -> dict[str, dict[str, float]]:
    """Road times over HTTP, one place a request and twenty, and how many times OSRM's recorded figure that is."""
    from benchmarks.peers.dispatch_eta import ask

    figures = {}
    with deployment(str(PORTO) if PORTO.exists() else "") as (program, target):
        for name, together in (("ETA over HTTP", 1), ("ETA over HTTP, 20 places a request", 20)):
            found = asyncio.run(ask(target, seconds, cars, lambda: cpu_of(program.pid), together))
            figures[name] = found | {"against OSRM": found["per CPU s"] / OSRM_PER_CPU_S}
    return figures


@contextlib.contextmanager
def deployment(city: str = "") -> Iterator[tuple[subprocess.Popen[str], dict]]:
    """A deployment in a child process, and where it listens."""
    folder = Path(tempfile.mkdtemp(prefix="dispatch-bench-"))
    program = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.peers.dispatch_server", str(folder), city], stdout=subprocess.PIPE, text=True,
        cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
    )  # fmt: skip
    try:
        assert program.stdout is not None
        yield program, json.loads(program.stdout.readline())
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


PARTS = ("updates", "singles", "nearest", "eta", "http", "redis", "matching", "rides")


def run(options: argparse.Namespace) -> dict:
    compiled.compile_all()
    rounds, quick = getattr(options, "rounds", 3), getattr(options, "quick", False)
    only = getattr(options, "only", "")
    figures: dict = {}

    def wanted(part: str) -> bool:
        return only in {"", part}

    def each(work: Callable[[], Coroutine[object, object, dict[str, float]]], most: int = 3) -> dict[str, float]:
        runs = []
        for _ in range(1 if quick else min(rounds, most)):
            with asyncio.Runner(loop_factory=new_loop) as runner:
                runs.append(runner.run(work()))
        return {name: statistics.median(one[name] for one in runs) for name in runs[0]}

    if wanted("updates"):
        for label, drivers, sweeps in (("100k", 100_000, 40), ("1M", 1_000_000, 6), ("2.5M", 2_500_000, 3)):
            if not quick or drivers <= 1_000_000:
                figures[f"updates {label}"] = each(
                    functools.partial(receive, drivers, sweeps), 3 if drivers < 2e6 else 1
                )
    if wanted("singles"):
        figures["one update per frame"] = each(functools.partial(one_by_one, 200_000, datagrams=False), 1)
        figures["one update per datagram"] = each(functools.partial(one_by_one, 200_000, datagrams=True), 1)
    if wanted("nearest"):
        figures["nearest 20"] = searches()
    if wanted("eta"):
        figures["search and ETA"] = road_times()
    if wanted("http"):
        figures |= http_eta(4.0 if quick else 8.0)
    if wanted("redis") and shutil.which("redis-server"):
        figures["redis"] = redis_peer()
        if not only:
            redis = figures["redis"]
            figures["updates against redis"] = figures["updates 100k"]["per CPU s"] / redis["updates per CPU s"]
            figures["nearest against redis"] = figures["nearest 20"]["per CPU s"] / redis["nearest 20 per CPU s"]
    if wanted("matching"):
        figures |= matching(2 if quick else getattr(options, "seeds", 5))
    if wanted("rides"):
        figures["rides"] = rides(getattr(options, "rides", 290.0), 10.0 if quick else 20.0, 10_000)
    figures["bars"] = dict(bars(figures))
    return figures


def bars(figures: dict) -> Iterator[tuple[str, str]]:
    """Each figure of this run beside its bar."""
    for name, part, field, bar in BARS:
        if part in figures:
            value = figures[part][field] if field else figures[part]
            reached = value >= bar if bar >= 0 else value <= -bar
            sign = "at least" if bar >= 0 else "at most"
            yield name, f"{value:,.4g} ({sign} {abs(bar):,.4g}: {'reached' if reached else 'NOT reached'})"


def main() -> None:
    match sys.argv[1:]:
        case ["send", *rest]:
            send(*map(int, rest))
            return
        case ["single", kind, port, count]:
            send_singles(kind, int(port), int(count))
            return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--peers", action="store_true", help="with the peers (they run wherever they are installed)")
    parser.add_argument("--rides", type=float, default=290.0)
    parser.add_argument("--seeds", type=int, default=5, help="evenings of the matching comparison")
    parser.add_argument("--only", choices=("", *PARTS), default="", help="run only this part")
    options = parser.parse_args()
    figures = run(options)
    results = ROOT / "benchmarks/results/dispatch.json"
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    if not options.only:
        results.parent.mkdir(exist_ok=True)
        results.write_bytes(msgspec.json.format(msgspec.json.encode({"machine": machine, "figures": figures})))
    for name, value in figures.items():
        for inner, number in value.items() if isinstance(value, dict) else {"": value}.items():
            print(f"{name + ' ' + inner:52} {number if isinstance(number, str) else f'{number:,.2f}'}")


if __name__ == "__main__":
    main()

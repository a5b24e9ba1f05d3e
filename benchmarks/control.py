"""What the control plane takes in and what it costs, beside numpy's own addition in the same run.

A child process serves; this one sends over loopback TCP, so the figures are of sockets. Points are spread over a million series.
`in memory`: binary frames into the open step. `durable`: the same with the store writing each closed step of a second to the
blobs (compressed, synced), the way it does every ten seconds by default. `text`: a target of 100,000 lines, scraped over HTTP by
the store's own reader. `telemetry`: what a request pays for one counter and one histogram.
CPU seconds are the child's; rounds alternate, the median counts.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np

from fourplane.control.metrics.exposition import TextReader
from fourplane.control.metrics.query import Span
from fourplane.control.metrics.query import run as run_query
from fourplane.control.metrics.series import SeriesEntry, SeriesTable
from fourplane.control.metrics.store import MetricsSettings, MetricsStore
from fourplane.control.metrics.windows import TierSettings, Windows
from fourplane.control.metrics.wire import ADD, define_frame, points_frame
from fourplane.control.plan.scalability import Scalability, fit
from fourplane.edge.http_client import HttpClient
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry
from fourplane.state.embedded.blobs import EmbeddedBlobs

SERIES = 1_000_000
FRAME_POINTS = 65_536
SECONDS = 2.0
FIT_SIZES, ASKED_SIZE = (1, 2, 4, 8, 16), 32
LOAD_S = 0.8
DURABLE_S = 4.0
LINES = 100_000
SCRAPES = 8
ROUNDS = 3
RECORDS = 300_000
BARS = {"in_memory": 10e6, "durable": 2e6, "text": 0.8e6}


def run(options: argparse.Namespace) -> dict[str, object]:
    """Measure, print a table, return the figures."""
    rounds = getattr(options, "rounds", None) or ROUNDS
    found: dict[str, list[float]] = {name: [] for name in (*BARS, "numpy_add")}
    for _ in range(rounds):
        found["in_memory"].append(points_per_cpu_s("", SECONDS))
        with tempfile.TemporaryDirectory() as folder:
            found["durable"].append(points_per_cpu_s(folder, DURABLE_S))
        found["text"].append(asyncio.run(lines_per_cpu_s()))
        found["numpy_add"].append(additions_per_cpu_s())
    medians = {name: statistics.median(values) for name, values in found.items()}
    telemetry = telemetry_ns()
    group_s = group_by_s()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, medians of {rounds} rounds, per CPU second"
    )
    print(f"{'figure':<44}{'reached':>14}{'bar':>14}")
    for name, bar in BARS.items():
        print(
            f"{name.replace('_', ' ') + ' points/s, 1M series, sockets':<44}{medians[name] / 1e6:>12.2f} M{bar / 1e6:>12.1f} M"
        )
    print(f"{'numpy addition by index (probe)':<44}{medians['numpy_add'] / 1e6:>12.2f} M")
    print(f"{'counter + histogram per request':<44}{telemetry:>11.0f} ns{'1000 ns':>15}")
    print(f"{'sum by label, 1M series, 20 steps':<44}{group_s * 1e3:>11.0f} ms")
    sys.path.insert(0, str(Path(__file__).parent))
    import _control_watch

    traced, plain = asyncio.run(_control_watch.request_ns())
    print(f"{'the same traced, two calls of stores inside':<44}{traced - plain:>11.0f} ns{'5000 ns':>15}")
    died = asyncio.run(_control_watch.death()).figures()
    print(f"{'worker killed under load: page out':<44}{died['paged_after_s']:>12.1f} s{'10 s':>15}")
    print(f"{'errors users saw meanwhile':<44}{died['failed_share'] * 100:>12.3f} %{'0.1 %':>15}")
    law, predicted, reached = saturation(rounds)
    print(
        f"{'plan: saturation at 32 from sizes to 16':<44}{predicted:>9,.0f} /s foretold, {reached:,.0f} /s measured: "
        f"{abs(predicted / reached - 1) * 100:.0f} % off (bar 20 %)"
    )
    return {
        **medians,
        "telemetry_ns": telemetry,
        "traced_ns": traced - plain,
        "request_ns": plain,
        "death": died,
        "group_by_s": group_s,
        "scalability": msgspec.to_builtins(law),
        "foretold_per_s": predicted,
        "reached_per_s": reached,
    }


def saturation(rounds: int) -> tuple[Scalability, float, float]:
    """The law fitted to small sizes, what it foretells for a larger one, and what that one really does.

    Size is the number of requests in flight at an HTTP server of ours (`bench edge`'s gateway route) on one core, this client on
    the other.
    """
    sizes = (*FIT_SIZES, ASKED_SIZE)
    seen: dict[int, list[float]] = {size: [] for size in sizes}
    edge = str(Path(__file__).parent / "edge.py")
    child = subprocess.Popen(
        [sys.executable, edge, "--serve", "gateway"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    mine = os.sched_getaffinity(0)
    try:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        if len(mine) > 1:
            first, second = sorted(mine)[:2]
            os.sched_setaffinity(child.pid, {first})
            os.sched_setaffinity(0, {second})
        for _ in range(rounds):
            for size in sizes:
                seen[size].append(in_flight(port, size))
    finally:
        os.sched_setaffinity(0, mine)
        child.terminate()
        child.wait()
    law = fit([(float(size), statistics.median(seen[size])) for size in FIT_SIZES])
    return law, law.throughput(ASKED_SIZE), statistics.median(seen[ASKED_SIZE])


def in_flight(port: int, size: int) -> float:
    """Answers a second with so many requests under way at any time, each on a connection of its own."""
    request = b"GET /a/api/items/5 HTTP/1.1\r\nhost: localhost\r\n\r\n"
    with selectors.DefaultSelector() as ready, contextlib.ExitStack() as stack:
        for _ in range(size):
            talk = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            talk.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ready.register(talk, selectors.EVENT_READ)
            talk.sendall(request)
        began, answers = time.monotonic(), 0
        while (took := time.monotonic() - began) < LOAD_S:
            for key, _ in ready.select(1.0):
                talk = key.fileobj
                assert isinstance(talk, socket.socket)
                assert talk.recv(65_536).startswith(b"HTTP/1.1 200")
                answers += 1
                talk.sendall(request)
    return answers / took


def points_per_cpu_s(folder: str, seconds: float) -> float:
    """Send frames for so long to a child; points in closed steps per CPU second of it."""
    child = subprocess.Popen(
        [sys.executable, __file__, "--serve", folder], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdin is not None
        port = int(child.stdout.readline())
        with socket.create_connection(("127.0.0.1", port)) as talk:
            ids = defined(talk)
            ones = np.ones(FRAME_POINTS)
            frames = [
                points_frame(ADD, ids[at : at + FRAME_POINTS], ones[: len(ids) - at])
                for at in range(0, SERIES, FRAME_POINTS)
            ]
            child.stdin.write("begin\n")
            child.stdin.flush()
            ends, sent = time.monotonic() + seconds, 0
            while time.monotonic() < ends:
                for frame in frames:
                    talk.sendall(frame)
                sent += SERIES
        child.stdin.write(f"{sent}\n")
        child.stdin.flush()
        facts = json.loads(child.stdout.readline())
        assert facts["points"] == sent, (facts, sent)
        return sent / float(facts["cpu_s"])
    finally:
        child.terminate()
        child.wait()


def defined(talk: socket.socket) -> "np.ndarray[tuple[int], np.dtype[np.uint32]]":
    """Make the series known; their numbers."""
    numbers = []
    for first in range(0, SERIES, 20_000):
        entries = [
            SeriesEntry("load_total", (("host", f"h{number % 1_000}"), ("n", str(number))), "counter")
            for number in range(first, first + 20_000)
        ]
        talk.sendall(define_frame(entries))
        want, got = 4 * len(entries), b""
        while len(got) < want:
            got += talk.recv(want - len(got))
        numbers.append(np.frombuffer(got, dtype="<u4"))
    return np.concatenate(numbers).astype(np.uint32)


async def serve(folder: str) -> None:
    """The child: a store with a points port; reports CPU seconds between `begin` and the count that was sent."""
    stored = bool(folder)
    tiers = (TierSettings(1, 20, stored=stored), TierSettings(10, 6, stored=False))
    settings = MetricsSettings(series_max=SERIES + 1_000, tiers=tiers, points_port=0)
    blobs = await EmbeddedBlobs(Path(folder)).open() if folder else None
    store = MetricsStore(settings, registry=Registry(), blobs=blobs)
    lifecycle = Lifecycle(Registry())
    lifecycle.add("metrics", store)
    await lifecycle.start()
    print(store.port, flush=True)
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, sys.stdin.readline)
    began = time.process_time()
    sent = int(await loop.run_in_executor(None, sys.stdin.readline))
    while store.windows.points < sent:
        await asyncio.sleep(0.005)
    if folder:
        await asyncio.sleep(1.2)  # until the last step is on the disk
    print(json.dumps({"points": store.windows.points, "cpu_s": time.process_time() - began}), flush=True)
    await asyncio.sleep(60)


async def lines_per_cpu_s() -> float:
    """Scrape a target of LINES lines over HTTP, served by a child; lines read per CPU second of this process."""
    child = subprocess.Popen([sys.executable, __file__, "--target"], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        client = HttpClient("127.0.0.1", int(child.stdout.readline()))
        reader, windows = None, Windows(SeriesTable())
        windows.advance(1_000)
        reader = TextReader(windows.table)
        reader.read((await client.request("GET", "/")).body)
        began = time.process_time()
        for second in range(SCRAPES):
            counters, grown, gauges, now = reader.read((await client.request("GET", "/")).body)
            windows.add(counters, grown)
            windows.set(gauges, now)
            windows.advance(1_001 + second)
        took = time.process_time() - began
        client.close()
        return SCRAPES * LINES / took
    finally:
        child.terminate()
        child.wait()


def target() -> None:
    """The child: answers every request with LINES lines whose numbers grow."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        talk, _ = server.accept()
        for scrape in range(SCRAPES + 1):
            talk.recv(65_536)
            rows = [
                f'http_requests_total{{method="GET",handler="/api/v1/{number % 500}",instance="h{number}"}} {scrape * 7 + number}'
                for number in range(LINES - 1)
            ]
            body = ("# TYPE http_requests_total counter\n" + "\n".join(rows) + "\n").encode()
            talk.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        talk.recv(1)


def additions_per_cpu_s() -> float:
    """The probe: numpy alone."""
    total, ids, ones = np.zeros(SERIES), np.arange(FRAME_POINTS, dtype=np.uint32), np.ones(FRAME_POINTS)
    began = time.process_time()
    for _ in range(100):
        np.add.at(total, ids, ones)
    return 100 * FRAME_POINTS / (time.process_time() - began)


def telemetry_ns() -> float:
    """Nanoseconds for one counter and one histogram."""
    registry = Registry()
    counter, histogram = registry.counter("a_total"), registry.histogram("b_seconds")
    began = time.process_time()
    for _ in range(RECORDS):
        counter.value += 1
        histogram.record(0.000_123)
    return (time.process_time() - began) / RECORDS * 1e9


def group_by_s() -> float:
    """Seconds for a sum by label over a million series and twenty steps."""
    table = SeriesTable(SERIES + 1)
    for number in range(SERIES):
        table.id_of("load_total", (("host", f"h{number % 1_000}"), ("n", str(number))), "counter")
    windows = Windows(table)
    windows.advance(1_000)
    ids, ones = np.arange(SERIES, dtype=np.uint32), np.ones(SERIES)
    for second in range(20):
        windows.add(ids, ones)
        windows.advance(1_001 + second)
    began = time.process_time()
    frame = run_query(windows, "sum(rate(load_total)) by (host)", Span(1_000, 1_020, 1))
    assert frame.values.shape == (1_000, 20)
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", nargs="?", const="")
    parser.add_argument("--target", action="store_true")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    if options.target:
        target()
    elif options.serve is not None:
        asyncio.run(serve(options.serve))
    else:
        run(options)


if __name__ == "__main__":
    main()

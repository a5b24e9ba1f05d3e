"""What the control plane takes in and what it costs, beside numpy's own addition in the same run.

A child process serves; this one sends over loopback TCP, so the figures are of sockets. Points are spread over a million series.
`in memory`: binary frames into the open step. `durable`: the same with the store writing each closed step of a second to the
blobs (compressed, synced), the way it does every ten seconds by default. `text`: a target of 100,000 lines, scraped over HTTP by
the store's own reader.
`telemetry`: what a request pays for one counter and one histogram, and for a trace. `killed`: a shop's worker dies while people
order. `region`: a region's label is lost while people watch. `leases`: experiments whose runners are killed. `plan`: a size that
was not used for the fit.
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
from collections.abc import Callable
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
from fourplane.foundation.errors import Rejected
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry
from fourplane.state.embedded.blobs import EmbeddedBlobs

sys.path.insert(0, str(Path(__file__).parent))
import _control_leases
import _control_watch
import chaos

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
    """Measure all rows, or the one `--only` names; print the table with each bar, return the figures."""
    rounds = getattr(options, "rounds", None) or ROUNDS
    only = getattr(options, "only", "")
    if only and only not in ROWS:
        raise Rejected(f"there is no row {only!r}; there are {', '.join(ROWS)}", code="bad_arguments")
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, medians of {rounds} rounds, per CPU second"
    )
    print(f"{'figure':<50}{'reached':>24}{'bar':>12}", flush=True)
    found: dict[str, object] = {}
    for name, measure in ROWS.items():
        if only in ("", name):
            found |= measure(rounds)
    return found


def row(figure: str, reached: str, bar: str = "") -> None:
    """One line of the table, as soon as it is known."""
    print(f"{figure:<50}{reached:>24}{bar:>12}", flush=True)


def points(rounds: int) -> dict[str, object]:
    """Points of a million series in memory, durable, and as text."""
    found: dict[str, list[float]] = {name: [] for name in (*BARS, "numpy_add")}
    for _ in range(rounds):
        found["in_memory"].append(points_per_cpu_s("", SECONDS))
        with tempfile.TemporaryDirectory() as folder:
            found["durable"].append(points_per_cpu_s(folder, DURABLE_S))
        found["text"].append(asyncio.run(lines_per_cpu_s()))
        found["numpy_add"].append(additions_per_cpu_s())
    medians = {name: statistics.median(values) for name, values in found.items()}
    for name, bar in BARS.items():
        row(
            f"{name.replace('_', ' ')} points/s, 1M series, sockets",
            f"{medians[name] / 1e6:.2f} M",
            f"{bar / 1e6:.1f} M",
        )
    row("numpy addition by index (probe)", f"{medians['numpy_add'] / 1e6:.2f} M")
    group_s = group_by_s()
    row("sum by label, 1M series, 20 steps", f"{group_s * 1e3:.0f} ms")
    return {**medians, "group_by_s": group_s}


def telemetry(_: int) -> dict[str, object]:
    """What a request pays."""
    cells = telemetry_ns()
    row("counter + histogram per request", f"{cells:.0f} ns", "1000 ns")
    traced, plain = asyncio.run(_control_watch.request_ns())
    row("the same traced, two calls of stores inside", f"{traced - plain:.0f} ns", "5000 ns")
    return {"telemetry_ns": cells, "traced_ns": traced - plain, "request_ns": plain}


def killed(_: int) -> dict[str, object]:
    """A shop's worker dies under shoppers who order."""
    died = asyncio.run(_control_watch.death())
    figures = died.figures()
    row("worker killed under load: page out", f"{figures['paged_after_s']:.1f} s", "10 s")
    share = f"{figures['failed_share'] * 100:.3f} % of {figures['requests']:,.0f}"
    row("errors users saw in these seconds", share, "0.1 %")
    row("requests sent again by the page itself", f"{figures['sent_again']:.0f}")
    row("orders lost or doubled", f"{figures['orders_broken']:.0f} of {figures['orders_looked_at']:.0f}", "0")
    return {"death": figures | {"errors": died.tally.errors, "broken": died.broken}}


def region(_: int) -> dict[str, object]:
    """A region's label is taken away under players."""
    found = chaos.region_lost()
    row("region lost: players moved after", "never" if found is None else f"{found:.1f} s", f"{chaos.MOVED_S_BAR:g} s")
    return {"region_moved_s": found}


def leases(_: int) -> dict[str, object]:
    """Experiments whose runners were killed at some moment."""
    begun, left = _control_leases.killed_experiments()
    row("faults left by killed experiments", f"{left} of {begun}", "0")
    return {"leases": {"experiments": begun, "left": left}}


def plan(rounds: int) -> dict[str, object]:
    """What the fit to small sizes foretells for a larger one."""
    law, predicted, reached = saturation(rounds)
    off = abs(predicted / reached - 1) * 100
    row("plan: saturation at 32, fitted to sizes up to 16", f"{predicted:,.0f} for {reached:,.0f}: {off:.0f} %", "20 %")
    return {"scalability": msgspec.to_builtins(law), "foretold_per_s": predicted, "reached_per_s": reached}


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


ROWS: dict[str, Callable[[int], dict[str, object]]] = {
    "points": points, "telemetry": telemetry, "killed": killed, "region": region, "leases": leases, "plan": plan,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", nargs="?", const="")
    parser.add_argument("--target", action="store_true")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", default="", metavar="ROW", help=", ".join(ROWS))
    options = parser.parse_args()
    if options.target:
        target()
    elif options.serve is not None:
        asyncio.run(serve(options.serve))
    else:
        run(options)


if __name__ == "__main__":
    main()

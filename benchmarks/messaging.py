"""Messages per CPU second of one server process, beside ejabberd and Prosody where Debian's packages are installed.

Every server is alone on core 0 (no TLS, no archive but in its own row), the clients share one epoll loop on core 1 and are the
same for all. `per_cpu_s` is work per second of the server's own CPU time, which other load changes least; `wall` is what the
clock says. Rounds alternate between the servers; every figure is the median of `--rounds` runs.

    python -m benchmarks.messaging [--peers] [--seconds 3] [--rounds 3] [--sessions 200] [--idle 15000]
"""

import argparse
import asyncio
import gc
import json
import os
import platform
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.peers import xmpp_clients as load
from benchmarks.peers.xmpp_clients import Client, drain
from benchmarks.peers.xmpp_servers import PASSWORD, Fourplane, Server, installed

from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry
from fourplane.messaging.app import Messaging
from fourplane.messaging.settings import MessagingSettings
from fourplane.service.accounts import Accounts, NewAccount
from fourplane.state.stores import Stores

USERS = 20_000
PEER_USERS = 420
ROOMS = 4
ABSENT = 200  # accounts from here on never come
COMERS = 220  # accounts from here on only log in and go
Row = dict[str, float]


async def serve(folder: Path, users: int, *, archive: bool) -> None:
    registry, ids, stores = Registry(), IdGenerator(0), Stores(data=folder)
    accounts = Accounts(await stores.sql("accounts"), ids=ids)
    settings = MessagingSettings(port=0, tls_port=0, tls_required=False, archive=archive, offline_max=10_000_000)
    messaging = Messaging(
        settings, records=await stores.records("messaging"), accounts=accounts, ids=ids, registry=registry
    )
    life = Lifecycle(registry)
    for name, part in (("stores", stores), ("accounts", accounts), ("messaging", messaging)):
        life.add(name, part)
    await life.start()
    keys = await accounts.derive_keys(PASSWORD)
    if await accounts.find("u0") is None:
        await accounts.create_many([NewAccount(f"u{number}", keys=keys) for number in range(users)])
    gc.collect()
    gc.freeze()
    print(json.dumps({"port": messaging.port}), flush=True)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    await life.stop()


def measure(server: Server, work: Callable[[], int]) -> Row:
    cpu, wall = server.cpu_s(), time.perf_counter()
    done = work()
    cpu, wall = server.cpu_s() - cpu, time.perf_counter() - wall
    return {"per_cpu_s": round(done / max(cpu, 0.01)), "wall": round(done / wall)}


class Course:
    """One server and its clients, row by row."""

    def __init__(self, server: Server, options: argparse.Namespace) -> None:
        self.server = server
        self.seconds: float = options.seconds
        self.count: int = options.sessions
        self.clients: list[Client] = []

    def prepare(self, row: str) -> None:
        """Fresh sessions, and for groups and presence what stands between them."""
        for client in self.clients:
            client.sock.close()
        time.sleep(0.3)
        managed = "stream management" in row
        self.clients = [Client(self.server.port, f"u{number}", sm=managed) for number in range(self.count)]
        drain(self.clients, sm=managed)
        if row == "group fan-out, deliveries":
            load.make_rooms(self.clients, ROOMS)
        if row == "presence fan-out, deliveries":
            load.make_watchers(self.clients[0], self.clients[1:])

    def run(self, row: str) -> Row:
        clients, seconds = self.clients, self.seconds
        works: dict[str, Callable[[], int]] = {
            "one-to-one, 1 in flight": lambda: load.converse(clients, 1, seconds),
            "one-to-one, 16 in flight": lambda: load.converse(clients, 16, seconds),
            "one-to-one with stream management, 1 in flight": lambda: load.converse(clients, 1, seconds, sm=True),
            "group fan-out, deliveries": lambda: load.speak(clients, ROOMS, seconds),
            "presence fan-out, deliveries": lambda: load.show(clients[0], clients[1:], seconds),
            "offline messages stored": lambda: load.store_offline(clients, seconds, ABSENT),
            "logins (SCRAM, roster, presence)": lambda: load.logins(self.server.port, seconds, COMERS, 180),
        }
        found = measure(self.server, works[row])
        drain(clients, sm="stream management" in row)
        return found


ROWS = (
    "one-to-one, 1 in flight",
    "one-to-one, 16 in flight",
    "one-to-one with stream management, 1 in flight",
    "group fan-out, deliveries",
    "presence fan-out, deliveries",
    "offline messages stored",
    "logins (SCRAM, roster, presence)",
)


def run(options: argparse.Namespace) -> dict:
    options = argparse.Namespace(**{**vars(parser().parse_args([])), **vars(options)})
    if getattr(options, "quick", False):
        options.rounds, options.seconds, options.sessions, options.idle = 1, 0.5, 20, 200
    signal.signal(signal.SIGTERM, _asked_to_end)
    os.sched_setaffinity(0, {1 if (os.cpu_count() or 1) > 1 else 0})
    rows: dict[str, dict[str, Row]] = {}
    with ExitStack() as ends:
        courses = [Course(started(kind, ends, options), options) for kind in (Fourplane, *_peers(options))]
        for row in options.only or ROWS:
            for course in courses:
                course.prepare(row)
            found: dict[str, list[Row]] = {course.server.name: [] for course in courses}
            for _ in range(options.rounds):
                for course in courses:
                    found[course.server.name].append(course.run(row))
            rows[row] = {name: _median(several) for name, several in found.items()}
            if len(courses) > 1:
                best = max(rows[row][course.server.name]["per_cpu_s"] for course in courses[1:])
                rows[row]["fourplane"]["times_best_peer"] = round(rows[row]["fourplane"]["per_cpu_s"] / max(1, best), 2)
            print(f"{row}: {json.dumps(rows[row])}", file=sys.stderr, flush=True)
        half = rows.get(ROWS[0], {}).get("fourplane", {}).get("wall", 1_000) / 2
        courses[0].prepare("")
        times = load.latencies(courses[0].clients, half, options.seconds)
        rows["latency at half load, ms"] = {"fourplane": _quantiles(times)}
    if options.idle:
        rows["bytes per idle session"] = {"fourplane": idle(options)}
    described = f"{platform.processor() or platform.machine()}, Python {platform.python_version()}"
    return {"machine": described, "load": os.getloadavg()[0], "rows": rows}


def started(kind: type, ends: ExitStack, options: argparse.Namespace) -> Server:
    """A server on a folder of its own; both go when `ends` is left."""
    folder = Path(tempfile.mkdtemp(prefix="fourplane-bench-"))
    folder.chmod(0o755)
    ends.callback(shutil.rmtree, folder, ignore_errors=True)
    server: Server = (
        Fourplane(folder, USERS, profile=options.profile) if kind is Fourplane else kind(folder, PEER_USERS)
    )
    ends.callback(server.stop)
    return server


def idle(options: argparse.Namespace) -> Row:
    """Memory of a fresh process with many sessions that have logged in and say nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(options.idle, USERS, hard - 500)
    with ExitStack() as ends:
        server = started(Fourplane, ends, options)
        time.sleep(2)
        before = server.rss()
        clients = [Client(server.port, f"u{number}") for number in range(count)]
        time.sleep(3)
        grown = server.rss() - before
        for client in clients:
            client.sock.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return {"bytes": round(grown / count), "sessions": count}


def _asked_to_end(_signal: int, _frame: object) -> None:
    """Leave in order, so that no server stays behind."""
    raise SystemExit(1)


def _peers(options: argparse.Namespace) -> list[type[Server]]:
    return installed() if options.peers else []


def _median(found: list[Row]) -> Row:
    return {key: statistics.median(one[key] for one in found) for key in found[0]}


def _quantiles(times: list[float]) -> Row:
    if not times:
        return {}
    return {
        f"p{share}": round(times[min(len(times) - 1, len(times) * share // 100)] * 1_000, 2) for share in (50, 95, 99)
    }


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    made.add_argument("--users", type=int, default=USERS, help=argparse.SUPPRESS)
    made.add_argument("--archive", action="store_true", help=argparse.SUPPRESS)
    made.add_argument("--peers", action="store_true", help="measure ejabberd and Prosody too, where they are installed")
    made.add_argument("--only", action="append", choices=ROWS, help="one row (may be repeated)")
    made.add_argument("--profile", default="", help="write a cProfile of the server there")
    made.add_argument("--seconds", type=float, default=3.0)
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--sessions", type=int, default=200)
    made.add_argument(
        "--idle", type=int, default=15_000, help="idle sessions whose memory is measured; 0 to leave it out"
    )
    return made


def main() -> None:
    options = parser().parse_args()
    if options.serve is not None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(options.serve, options.users, archive=options.archive))
        return
    result = run(options)
    target = Path("benchmarks/results/messaging.json")
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=2))
    print(result["machine"], f"load {result['load']:.1f}")
    for name, row in result["rows"].items():
        print(name)
        for server, figures in row.items():
            print(f"  {server:12}", "  ".join(f"{key} {value:,}" for key, value in figures.items()))


if __name__ == "__main__":
    main()

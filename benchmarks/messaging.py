"""Messages per CPU second of one server process, beside ejabberd and Prosody where Debian's packages are installed.

Every server is alone on core 0 (no TLS, no archive but in its own row), the clients share one epoll loop on core 1 and are the
same for all. `per_cpu_s` is work per second of the server's own CPU time, which other load changes least; `wall` is what the
clock says. Rounds alternate between the servers; every figure is the median of `--rounds` runs.

    python -m benchmarks.messaging [--peers] [--rounds 3] [--seconds 0.75] [--sessions 200] [--idle 15000] [--many 200000]
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

import msgspec
import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.peers import xmpp_clients as load
from benchmarks.peers import xmpp_crowd
from benchmarks.peers.xmpp_clients import Client, drain
from benchmarks.peers.xmpp_servers import PASSWORD, Forwarder, Fourplane, Server, installed

from fourplane.edge import certificate
from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry
from fourplane.messaging.app import Messaging
from fourplane.messaging.authentication import certificate_binding
from fourplane.messaging.settings import MessagingSettings
from fourplane.service.accounts import Accounts, NewAccount
from fourplane.state.stores import Stores

USERS = 20_000
PEER_USERS = 580
ROOMS = 4
ABSENT = 200  # accounts from here on never come
ROW_S = 2.25  # measured of each row and server, in all rounds together
IDLE_PEERS = 5_000  # sessions of a peer whose memory is measured: a third, as one takes about the same among fewer
COMERS = 400  # accounts from here on only log in and go
Row = dict[str, float]


async def serve(folder: Path, users: int, *, archive: bool, first: int, changed: list[str]) -> None:
    registry, ids, stores = Registry(), IdGenerator(0), Stores(data=folder)
    accounts = Accounts(await stores.sql("accounts"), ids=ids)
    settings = MessagingSettings(port=0, tls_port=0, tls_required=False, archive=archive, offline_max=10_000_000)
    wanted = dict(one.split("=", 1) for one in changed)
    settings = msgspec.convert({**msgspec.to_builtins(settings), **wanted}, MessagingSettings, strict=False)
    paths = certificate.ensure_certificate(folder / "secrets")
    messaging = Messaging(
        settings,
        records=await stores.records("messaging"),
        accounts=accounts,
        ids=ids,
        registry=registry,
        tls=certificate.server_context(*paths, alpn=()),
        certificate_hash=certificate_binding(paths[0].read_bytes()),
    )
    life = Lifecycle(registry)
    for name, part in (("stores", stores), ("accounts", accounts), ("messaging", messaging)):
        life.add(name, part)
    await life.start()
    keys = await accounts.derive_keys(PASSWORD)
    if await accounts.find(f"u{first}") is None:
        await accounts.create_many([NewAccount(f"u{number}", keys=keys) for number in range(first, first + users)])
    gc.collect()
    gc.freeze()
    print(json.dumps({"port": messaging.port, "tls_port": messaging.tls_port}), flush=True)
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

    def __init__(self, server: Server, options: argparse.Namespace, *, tls: bool = False) -> None:
        self.server = server
        self.seconds: float = options.seconds
        self.count: int = options.sessions
        self.port = server.tls_port if tls and isinstance(server, Fourplane) else server.port
        self.tls = tls
        self.clients: list[Client] = []
        self.tokens: dict[str, bytes] = {}

    def prepare(self, row: str) -> None:
        """Fresh sessions, and for groups and presence what stands between them."""
        for client in self.clients:
            client.sock.close()
        time.sleep(0.3)
        managed = MANAGED in row
        names = [f"u{number}" for number in range(self.count)]
        self.clients = [Client(self.port, name, sm=managed, tls=self.tls) for name in names]
        if row == GROUPS:
            load.make_rooms(self.clients, ROOMS)
        if row == PRESENCE:
            load.make_watchers(self.clients[0], self.clients[1:])
        if row == RECONNECTS:
            comers = [f"u{COMERS + number}" for number in range(180)]
            self.tokens = {name: load.fast_token(self.server.port, name) for name in comers}
        drain(self.clients, sm=managed)

    def run(self, row: str) -> Row:
        clients, seconds, port = self.clients, self.seconds, self.server.port
        managed = MANAGED in row
        works: dict[str, Callable[[], int]] = {
            GROUPS: lambda: load.speak(clients, ROOMS, seconds),
            PRESENCE: lambda: load.show(clients[0], clients[1:], seconds),
            OFFLINE: lambda: load.store_offline(clients, seconds, ABSENT),
            LOGINS: lambda: load.logins(port, seconds, COMERS, 180),
            RECONNECTS: lambda: load.reconnects(port, seconds, self.tokens),
        }
        window = 16 if "16 in flight" in row else 1
        found = measure(self.server, works.get(row, lambda: load.converse(clients, window, seconds, sm=managed)))
        drain(clients, sm=managed)
        return found


MANAGED = "stream management"
ALL_ON = ("one-to-one, 1 in flight", "one-to-one, 16 in flight", f"one-to-one with {MANAGED}, 1 in flight")
GROUPS, PRESENCE = "group fan-out, deliveries", "presence fan-out, deliveries"
OFFLINE, LOGINS = "offline messages stored", "logins (SCRAM, roster, presence)"
ARCHIVED = (
    f"archived and acknowledged with {MANAGED}, 16 in flight",
    "archived, 1 in flight",
    "archived, 16 in flight",
)
RECONNECTS = "reconnects (token, one round trip)"
LATENCY, DURABLE, IDLE = "latency at half capacity, ms", "durable write, ms", "bytes per idle session"
TLS = tuple(f"{row}, over TLS" for row in ALL_ON)
COMPARED = (*ALL_ON, GROUPS, PRESENCE, OFFLINE, LOGINS)
ROWS = (*COMPARED, *ARCHIVED, RECONNECTS, LATENCY, DURABLE, *TLS, IDLE)


def run(options: argparse.Namespace) -> dict:
    options = argparse.Namespace(**{**vars(parser().parse_args([])), **vars(options)})
    if getattr(options, "quick", False):
        options.rounds, options.seconds, options.sessions, options.idle = 1, 0.5, 20, 200
    options.seconds = options.seconds or max(0.4, ROW_S / options.rounds)
    signal.signal(signal.SIGTERM, _asked_to_end)
    os.sched_setaffinity(0, {1 if (os.cpu_count() or 1) > 1 else 0})
    wanted = options.only or ROWS
    rows: dict[str, dict[str, Row]] = {}
    with ExitStack() as ends:
        plain = [row for row in (*COMPARED, RECONNECTS) if row in wanted]
        needed = {*wanted} - {*ARCHIVED, IDLE}
        courses = _courses(ends, options, compared=not {*plain} <= {RECONNECTS}) if needed else []
        for row in plain:
            rows[row] = compare(row, courses[:1] if row == RECONNECTS else courses, options)
        if {LATENCY, DURABLE} & {*wanted}:
            rows |= latency(courses[0], options, rows.get(ALL_ON[0]))
        over_tls = [row for row in TLS if row in wanted]
        for row in over_tls:
            rows[row] = compare(row, [Course(courses[0].server, options, tls=True)], options)
    archived = [row for row in ARCHIVED if row in wanted]
    if archived:
        with ExitStack() as ends:
            courses = _courses(ends, options, archive=True)
            for row in archived:
                rows[row] = compare(row, courses, options)
    if options.idle and IDLE in wanted:
        rows[IDLE] = idle(options)
        print(f"{IDLE}: {json.dumps(rows[IDLE])}", file=sys.stderr, flush=True)
    if options.many:
        rows["many sessions"] = {"fourplane": xmpp_crowd.many(options.many)}
    described = f"{platform.processor() or platform.machine()}, Python {platform.python_version()}"
    return {"machine": described, "load": os.getloadavg()[0], "rows": rows}


def compare(row: str, courses: list[Course], options: argparse.Namespace) -> dict[str, Row]:
    """One row on every server in turn, round by round; medians."""
    for course in courses:
        course.prepare(row)
    found: dict[str, list[Row]] = {course.server.name: [] for course in courses}
    for _ in range(options.rounds):
        for course in courses:
            found[course.server.name].append(course.run(row))
    for course in courses:
        for client in course.clients:
            client.sock.close()
        course.clients = []
    medians = {name: _median(several) for name, several in found.items()}
    if len(courses) > 1:
        best = max(medians[course.server.name]["per_cpu_s"] for course in courses[1:])
        if best:  # a peer may get nothing done in so short a time on a busy machine
            medians["fourplane"]["times_best_peer"] = round(medians["fourplane"]["per_cpu_s"] / best, 2)
    print(f"{row}: {json.dumps(medians)}", file=sys.stderr, flush=True)
    return medians


def latency(course: Course, options: argparse.Namespace, full: dict[str, Row] | None) -> dict[str, dict[str, Row]]:
    """One-way times at half of what was carried with 1 in flight, and the time of a durable write on an idle server.

    The same clients at the same rate through a process that only hands on (`floor`) say how much of that is the machine's.
    """
    course.prepare("")
    half = (full["fourplane"]["wall"] if full else 20_000) / 2
    seconds = max(1.5, options.seconds)
    several: dict[str, list[Row]] = {}
    with ExitStack() as ends:
        floor = Forwarder()
        ends.callback(floor.stop)
        names = [f"u{number}" for number in range(options.sessions)]
        through = [Client(floor.port, name, later=True) for name in names]
        for client in through:
            client.ask(client.name.encode(), b"id='p'")
            client.sock.setblocking(False)
        for _ in range(options.rounds):
            for server, clients in ((course.server, course.clients), (floor, through)):
                row = _quantiles(load.latencies(clients, half, seconds)) | {"per_s": half}
                several.setdefault(server.name, []).append(row)
        for client in through:
            client.sock.close()
    found = {LATENCY: {name: _median(rows) for name, rows in several.items()}}
    found[DURABLE] = {"fourplane": _quantiles(load.durable_writes(course.clients[0], f"u{ABSENT + 199}", 500))}
    for row, figures in found.items():
        print(f"{row}: {json.dumps(figures)}", file=sys.stderr, flush=True)
    return found


def _courses(
    ends: ExitStack, options: argparse.Namespace, *, archive: bool = False, compared: bool = True
) -> list[Course]:
    kinds = (Fourplane, *(_peers(options) if compared else ()))
    return [Course(started(kind, ends, options, archive=archive), options) for kind in kinds]


def started(kind: type, ends: ExitStack, options: argparse.Namespace, *, archive: bool = False) -> Server:
    """A server on a folder of its own; both go when `ends` is left."""
    folder = _folder(ends)
    server: Server
    if kind is Fourplane:
        server = Fourplane(folder, USERS, profile=options.profile, archive=archive, changed=options.set)
    else:
        server = kind(folder, PEER_USERS, archive=archive)
    ends.callback(server.stop)
    return server


def idle(options: argparse.Namespace) -> dict[str, Row]:
    """Memory of fresh processes with many sessions that have logged in, shown themselves and say nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(options.idle, USERS, hard - 500)
    found: dict[str, Row] = {}
    for kind in (Fourplane, *_peers(options)):
        with ExitStack() as ends:
            plain = kind is not Fourplane
            made = {"plain": True} if plain else {}
            here = min(count, IDLE_PEERS) if plain else count
            server: Server = kind(_folder(ends), here, **made)
            ends.callback(server.stop)
            time.sleep(1)
            before = server.rss()
            clients = xmpp_crowd.come(server.port, 0, here, local=[""], plain=plain)
            time.sleep(2)
            found[server.name] = {"bytes": round((server.rss() - before) / here), "sessions": here}
            for client in clients:
                client.sock.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return found


def _folder(ends: ExitStack) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fourplane-bench-"))
    folder.chmod(0o755)
    ends.callback(shutil.rmtree, folder, ignore_errors=True)
    return folder


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
    made.add_argument(
        "--many", type=int, default=0, help="so many sessions at once, a process per 18,000 on both sides"
    )
    made.add_argument("--set", action="append", default=[], help="a setting of our server, such as no_delay=false")
    made.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    made.add_argument("--profile", default="", help="write a cProfile of the server there")
    made.add_argument(
        "--seconds", type=float, default=0.0, help=f"of one round (default: {ROW_S} shared by the rounds)"
    )
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
            work = serve(
                options.serve, options.users, archive=options.archive, first=options.first, changed=options.set
            )
            runner.run(work)
        return
    result = run(options)
    target = Path("benchmarks/results/messaging.json")
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=2))
    print(result["machine"], f"load {result['load']:.1f}")
    for name, row in result["rows"].items():
        print(name)
        for server, figures in row.items():
            print(f"  {server:12}", "  ".join(f"{key} {value}" for key, value in figures.items()))


if __name__ == "__main__":
    main()

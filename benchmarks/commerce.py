"""Full guest checkouts over HTTP: one server process, durable stores, pricing, a promotion, tax, two-phase commit.

A checkout is two requests on a kept connection: put a piece into a new cart, then order and pay it (priced with an
order promotion, delivery and tax, held, authorised, decided, captured; all on disk when the 201 comes). The server runs in a
child on embedded stores in a folder of its own, stock beside orders as in a deployment without further settings; the client
is a bare socket protocol, so that on shared cores the server gets what there is. Three figures per round: checkouts per second
of wall time, per CPU second of the server, and the order request's latency. `race` lets ten thousand buyers fight for ten
pieces. `page` asks for one product page. After the rounds the books must balance: stock ledger, orders and money tell the same
story. With `--peers` the same checkouts run on PostgreSQL, open shops' beside them (`commerce_peers`). `read` times one product
from memory and from the snapshot that the processes of a machine share.

    python benchmarks/commerce.py [--rounds 3] [--seconds 4] [--connections 64] [--peers] [--profile FILE]
"""

import argparse
import asyncio
import collections
import contextlib
import gc
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from pathlib import Path

import msgspec
import numpy as np

from fourplane.commerce.app import Commerce, CommerceSettings
from fourplane.commerce.catalog import Product, Variant, for_all, shared_from
from fourplane.commerce.inventory import Adjustment
from fourplane.commerce.promotions import Promotion
from fourplane.commerce.snapshot import write
from fourplane.control.fleet import COLLECT_AFTER
from fourplane.edge.gateway import Gateway, GatewaySettings
from fourplane.edge.http_server import HttpServer, HttpServerSettings
from fourplane.edge.listener import ListenerSettings
from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry
from fourplane.service.accounts import Accounts
from fourplane.service.card_simulator import CardSimulator
from fourplane.state.stores import Stores, StoresSettings

ROUNDS = 3
SECONDS = 4.0
CONNECTIONS = 64
PRODUCTS = 400
BUYERS = 10_000
PIECES = 10
BARS = {"checkouts/s": 1_000, "p99 ms": 100, "pages/cpu s": 20_000}
BODY = {
    "address": {
        "name": "Ada Vale",
        "street": "12 Harbour Road",
        "city": "Porto",
        "postcode": "4000-001",
        "country": "PT",
        "email": "ada@example.org",
    },
    "method": "card_ok",
}


# -- the server, in a child


class Sampler:
    """Where CPU time goes, by file and function, looked at 500 times per second of it; costs nothing between looks."""

    def __init__(self):
        self.own, self.within, self.files = collections.Counter(), collections.Counter(), collections.Counter()

    def look(self, _signal, frame):
        seen, first = set(), True
        while frame is not None:
            code = frame.f_code
            place = f"{Path(code.co_filename).name}:{code.co_name}"
            if first:
                self.own[place] += 1
                self.files[Path(code.co_filename).name] += 1
                first = False
            if place not in seen:
                seen.add(place)
                self.within[place] += 1
            frame = frame.f_back

    def enable(self):
        signal.signal(signal.SIGPROF, self.look)
        signal.setitimer(signal.ITIMER_PROF, 0.002, 0.002)

    def disable(self):
        signal.setitimer(signal.ITIMER_PROF, 0)

    def dump_stats(self, path):
        total = sum(self.own.values()) or 1
        lines = [f"{total} looks"]
        for title, counts in (("file", self.files), ("own", self.own), ("within", self.within)):
            lines += [
                f"-- {title}",
                *(f"{100 * count / total:6.2f} %  {place}" for place, count in counts.most_common(70)),
            ]
        Path(path).write_text("\n".join(lines))


async def serve(folder, profile, database):
    gc.set_threshold(*COLLECT_AFTER)  # as every worker does, and the freeze below
    registry, ids = Registry(), IdGenerator()
    engines = {"sql": database, "records": database} if database else {}
    stores = Stores(StoresSettings(**engines), data=Path(folder))
    cards = CardSimulator(await stores.sql("payments"), ids=ids)
    accounts = Accounts(await stores.sql("accounts"), ids=ids)
    commerce = Commerce(
        CommerceSettings(generated_products=PRODUCTS, standing_offers=False),
        sql=await stores.sql("commerce"),
        records=await stores.records("commerce"),
        search=await stores.search("commerce"),
        payments=cards,
        ids=ids,
        registry=registry,
    )
    settings = GatewaySettings(rate_per_s=1e9)
    gateway = Gateway(commerce.doors(), accounts, registry=registry, settings=settings)
    server = HttpServer(
        HttpServerSettings(listener=ListenerSettings(host="127.0.0.1", port=0)),
        gateway,
        registry=registry,
        classify=gateway.classify,
        first_lines=gateway.first_lines,
    )
    life = Lifecycle(registry)
    for name, part in (
        ("stores", stores),
        ("accounts", accounts),
        ("cards", cards),
        ("commerce", commerce),
        ("http", server),
    ):
        life.add(name, part)
    await life.start()
    if hasattr(commerce, "hot_routes"):
        for method, path, handler in commerce.hot_routes():
            server.hot(method, path, handler)
    await commerce.promotions.put(Promotion("all", "Five percent off", "order_percent", percent=5))
    products = await commerce.catalog.page("", PRODUCTS)
    skus = [variant.sku for product in products for variant in product.variants]
    await commerce.inventory.set_stock([Adjustment(sku, 9_000_000, "bench") for sku in skus[1:400]])
    await commerce.inventory.set_stock([Adjustment(skus[0], PIECES, "bench")])
    pages = [f"/commerce/p/{product.id}" for product in products]
    gc.collect()
    gc.freeze()
    print(json.dumps({"port": server.port, "skus": skus[1:400], "rare": skus[0], "pages": pages}), flush=True)
    profiler = Sampler() if profile else None
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        match line.strip():
            case "cpu":
                print(json.dumps(time.process_time()), flush=True)
            case "profile" if profiler:
                profiler.enable()
                print("1", flush=True)
            case "profiled" if profiler:
                profiler.disable()
                profiler.dump_stats(profile)
                print("1", flush=True)
            case "admission":
                print(msgspec.json.encode(server.admission.statistics()).decode(), flush=True)
            case "check":
                print(json.dumps(await books(commerce, cards)), flush=True)
    await life.drain()
    await life.stop()
    gateway.close()


async def books(commerce, cards):
    """The facts after everything, also what follows the answers: they must agree."""
    await commerce.coordinator.settle()
    await commerce.inventory.check()
    counts = await commerce.orders.counts()
    sold = await commerce.orders._sql.read("SELECT SUM(total) FROM orders WHERE state NOT IN ('failed', 'placing')")
    balances = await cards.balances()
    return {
        "orders": sum(count for state, count in counts.items() if state not in ("failed", "placing")),
        "placing": counts.get("placing", 0),
        "rare left": min((await commerce.inventory.levels()).values()),
        "charged is ordered": balances["EUR"]["merchant"] == (sold[0][0] or 0) and balances["EUR"]["held"] == 0,
        "races": commerce.statistics().races,
        "per commit": per_commit(commerce.coordinator._shared),
        "per payment commit": per_commit(cards._shared),
    }


def per_commit(shared):
    """How many callers shared a commit."""
    figures = shared.statistics()
    return round(figures.callers / max(1, figures.commits), 1)


class Server:
    """The child and its pipe."""

    def __init__(self, folder, profile="", database=""):
        arguments = [sys.executable, __file__, "--serve", folder, *(["--profile", profile] if profile else [])]
        arguments += ["--database", database] if database else []
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts = json.loads(self.process.stdout.readline())

    def ask(self, word):
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def stop(self):
        self.process.stdin.close()
        self.process.wait(60)


# -- the client


class Connection(asyncio.Protocol):
    """One kept connection: send a request, wait for status and body."""

    def __init__(self):
        self.buffer = b""
        self.waiter = None

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.buffer[:end].lower()
        at = head.find(b"content-length:")  # a 204 has none
        length = int(head[at + 15 : head.find(b"\r\n", at) if head.find(b"\r\n", at) > 0 else None]) if at > 0 else 0
        if len(self.buffer) >= end + 4 + length and self.waiter is not None:
            answer, self.buffer = (
                (int(head[9:12]), self.buffer[end + 4 : end + 4 + length]),
                self.buffer[end + 4 + length :],
            )
            waiter, self.waiter = self.waiter, None
            waiter.set_result(answer)

    def ask(self, request):
        self.waiter = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self.waiter


def request(method, path, body=b"", extra=""):
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{extra}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


ORDER = msgspec.json.encode(BODY)


async def connections(port, count):
    loop = asyncio.get_running_loop()
    return [(await loop.create_connection(Connection, "127.0.0.1", port))[1] for _ in range(count)]


def fill(cart, sku):
    body = b'{"sku":"%b","quantity":1}' % sku.encode()
    return request("POST", f"/commerce/api/carts/{cart}/lines?country=PT", body, "Prefer: return=minimal\r\n")


def pay(cart, attempt):
    return request("POST", f"/commerce/api/carts/{cart}/orders", ORDER, f"Idempotency-Key: attempt-{attempt}\r\n")


async def checkouts(facts, seconds, count, seed):
    """As many checkouts as fit; how many, the order request's latencies, other statuses."""
    skus, done, late, other = facts["skus"], 0, [], {}
    ends = time.perf_counter() + seconds

    async def buyer(connection, number):
        nonlocal done
        turn = 0
        while time.perf_counter() < ends:
            turn += 1
            cart = f"{seed:06d}{number:06d}{turn:020d}"
            status, body = await connection.ask(fill(cart, skus[(number * 31 + turn * 7) % len(skus)]))
            if status == 503:  # turned away at the door: counted, and the next buyer comes
                other[status] = other.get(status, 0) + 1
                continue
            assert status == 204, body
            began = time.perf_counter()
            status, body = await connection.ask(pay(cart, cart))
            late.append(time.perf_counter() - began)
            if status == 201:
                done += 1
            else:
                other[status] = other.get(status, 0) + 1

    opened = await connections(facts["port"], count)
    began = time.perf_counter()
    await asyncio.gather(*(buyer(connection, number) for number, connection in enumerate(opened)))
    took = time.perf_counter() - began
    for connection in opened:
        connection.transport.close()
    return done, took, sorted(late), other


async def race(facts, buyers, count):
    """All carts are filled with the rare piece first, then everybody pays at once."""
    opened = await connections(facts["port"], count)
    statuses = {}

    async def each(step):
        async def run(connection, numbers):
            for number in numbers:
                status, _ = await connection.ask(step(number))
                statuses[status] = statuses.get(status, 0) + 1

        await asyncio.gather(*(run(one, range(at, buyers, count)) for at, one in enumerate(opened)))

    await each(lambda number: fill(f"ace{number:029d}", facts["rare"]))
    assert set(statuses) == {204}, f"carts that could not be filled: {statuses}"
    statuses.clear()
    await each(lambda number: pay(f"ace{number:029d}", f"race{number:06d}"))
    for connection in opened:
        connection.transport.close()
    return statuses


async def pages(facts, seconds, count):
    """One product page after the other; how many."""
    opened = await connections(facts["port"], count)
    asked = [request("GET", path) for path in facts["pages"][:50]]
    for one in asked:  # each is rendered once
        status, _ = await opened[0].ask(one)
        assert status == 200
    ends, done = time.perf_counter() + seconds, 0

    async def reader(connection, number):
        nonlocal done
        while time.perf_counter() < ends:
            status, body = await connection.ask(asked[(number + done) % len(asked)])
            assert status == 200
            assert body
            done += 1

    await asyncio.gather(*(reader(connection, number) for number, connection in enumerate(opened)))
    for connection in opened:
        connection.transport.close()
    return done


def reads(products=100_000, looks=200_000, rounds=5):
    """One product by id, Zipf 1.1 over all: from the decoded objects of a process, and from the machine's shared snapshot.

    A name is new for every read, as one out of a request is. Medians of rounds that take turns, and the p99 of each. `one
    product` is the shared read of a single one, without the memory that is far away; `clock alone` no read at all: what the
    figures include of the two looks at the clock and of what interrupts them. Nothing is subtracted.
    """
    numbers = np.minimum(np.random.default_rng(1).zipf(1.1, looks) - 1, products - 1).tolist()
    product = Product(
        1, "x", "x", "A plain thing", "What it is.", "things", "plain", (Variant("x", {}, {"EUR": 1_000}),)
    )
    names = (f"product-{number:06d}" for number in range(products))
    decoded = {name: msgspec.structs.replace(product, id=name) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "products.snapshot"
        write(path, ((one.id, for_all(one)) for one in decoded.values()))
        with shared_from(path) as snapshot:
            kinds = {
                "in process": (decoded.get, numbers),
                "shared": (snapshot.find, numbers),
                "shared, one product": (snapshot.find, [1] * looks),
                "clock alone": (lambda name: name, numbers),
            }
            spent = {title: [] for title in kinds}
            for _ in range(rounds):
                for title, (find, asked) in kinds.items():
                    spent[title].append(spent_us(find, asked))
    return {
        title: {
            "p50 us": statistics.median(p50 for p50, _ in each),
            "p99 us": statistics.median(p99 for _, p99 in each),
            "p99 us of rounds": [p99 for _, p99 in each],
        }
        for title, each in spent.items()
    }


def spent_us(find, numbers):
    """p50 and p99 of one read after the other."""
    spent = array("q", bytes(8 * len(numbers)))
    for at, number in enumerate(numbers):
        name = f"product-{number:06d}"
        began = time.perf_counter_ns()
        find(name)
        spent[at] = time.perf_counter_ns() - began
    return [float(one) / 1e3 for one in np.percentile(np.frombuffer(spent, dtype=np.int64), (50, 99))]


def quantile(sorted_values, share):
    return sorted_values[min(len(sorted_values) - 1, int(share * len(sorted_values)))] * 1e3


def measured(options, database=""):
    """Rounds of checkouts, the race, pages and the books of one server."""
    rounds, profile = [], getattr(options, "profile", "")
    seconds = getattr(options, "seconds", 0.5 if getattr(options, "quick", False) else SECONDS)
    connections_count = getattr(options, "connections", CONNECTIONS)
    buyers = getattr(options, "buyers", 500 if getattr(options, "quick", False) else BUYERS)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(folder, profile, database)
        try:
            asyncio.run(checkouts(server.facts, 1.0, connections_count, 999_999))
            if profile:
                server.ask("profile")
            for number in range(min(options.rounds, ROUNDS)):
                cpu = server.ask("cpu")
                done, took, late, other = asyncio.run(checkouts(server.facts, seconds, connections_count, number))
                cpu = server.ask("cpu") - cpu
                rounds.append(
                    {
                        "checkouts/s": done / took,
                        "checkouts/cpu s": done / cpu,
                        "server cpu share": cpu / took,
                        "p50 ms": quantile(late, 0.5),
                        "p99 ms": quantile(late, 0.99),
                        "other": other,
                    }
                )
            if profile:
                server.ask("profiled")
            statuses = asyncio.run(race(server.facts, buyers, connections_count))
            cpu = server.ask("cpu")
            shown = asyncio.run(pages(server.facts, seconds / 2, connections_count))
            page_rate = shown / (server.ask("cpu") - cpu)
            checked = server.ask("check")
        finally:
            server.stop()
    middle = {key: statistics.median(one[key] for one in rounds) for key in rounds[0] if key != "other"}
    return {
        "connections": connections_count,
        "median": middle | {"pages/cpu s": page_rate},
        "other": [one["other"] for one in rounds],
        "race": {"buyers": buyers, "pieces": PIECES, "statuses": statuses},
        "books": checked,
    }


def run(options: argparse.Namespace) -> dict:
    """Measure and return the table."""
    figures = measured(options)
    began = time.process_time()
    sum(number * number for number in range(1_000_000))
    probe_ns = (time.process_time() - began) * 1e3
    middle = figures["median"]
    result = {
        "system": "commerce",
        "machine": {"python": platform.python_version(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "probe ns": probe_ns,  # one turn of a generator loop on this machine now; about 60 where nothing else runs
        **figures,
        "read": reads(),
        "bars": BARS,
        "passed": {
            "checkouts/s": middle["checkouts/s"] >= BARS["checkouts/s"],
            "p99 ms": middle["p99 ms"] <= BARS["p99 ms"],
            "pages/cpu s": middle["pages/cpu s"] >= BARS["pages/cpu s"],
            "no oversell": figures["race"]["statuses"].get(201) == PIECES,
            "books": figures["books"]["charged is ordered"] and figures["books"]["placing"] == 0,
        },
    }
    if getattr(options, "peers", False):
        sys.path.insert(0, str(Path(__file__).parent))
        import commerce_peers

        result["peers"] = commerce_peers.run(options)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--buyers", type=int, default=BUYERS)
    parser.add_argument("--profile", default="")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--serve", default="")
    parser.add_argument("--database", default="")
    options = parser.parse_args()
    if options.serve:
        with contextlib.suppress(ImportError):
            import uvloop

            uvloop.install()
        asyncio.run(serve(options.serve, options.profile, options.database))
        return
    result = run(options)
    path = Path(__file__).parent / "results" / "commerce.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2))
    for key, value in result["median"].items():
        bar = BARS.get(key)
        verdict = "" if bar is None else f"  (bar {bar:,}: {'held' if result['passed'][key] else 'MISSED'})"
        print(f"{key:>18}  {value:12,.2f}{verdict}")
    print(f"{'probe ns':>18}  {result['probe ns']:12,.2f}  (a turn of a bare loop; the machine's speed at the moment)")
    for title, read in result["read"].items():
        print(f"{title:>20}  p50 {read['p50 us']:.2f} us, p99 {read['p99 us']:.2f} us")
    print(f"{'race':>18}  {result['race']}")
    print(f"{'books':>18}  {result['books']}")


if __name__ == "__main__":
    main()

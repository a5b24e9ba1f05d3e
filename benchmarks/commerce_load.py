"""Ten times too much: what a shop still sells, and how soon it is well again.

Drivers in processes of their own send an open loop (requests leave when their time has come, whatever the answers do) of five
classes to one server process: orders of filled carts (critical), putting into carts and product pages (user), searches
(degraded), the sitemap (bulk). It goes in rounds, each the same phases one right after the other. First each class alone tells
what one request of it costs; all sums are then in shares of the server's capacity, so that a dear order and a cheap page add up.
Then the mix at a fifth of the capacity (`calm`); at ten times the capacity with orders at 60 % of it (`flood`) and at 0.4 of it
again; around the capacity twice (the best is the round's peak). A round compares only what it measured itself, within seconds,
because the machine's own pace may change from minute to minute; p99 and goodput are the medians of the rounds' ratios, the orders
answered are of all rounds, the recovery is the worst one's: when the last person was refused in the six seconds after the flood
(crawlers are told apart, they are refused whenever somebody stands in line).

The two drivers stay the same from the first phase to the last: who orders has one of his own beside that of the crowd, because
a driver that sends ten times what the server can do is busy, and would measure its own delay with every order; for the same
reason that of the crowd stands behind it on their processor (`CROWD_NICE`). An answer counts when it is the wanted one within a
second of the moment the request was due. Where there are two processors the server has the first for itself and the drivers the
second (`pinned`): a driver that takes the server's time away measures itself, also where it only keeps a thread of the server
from giving the interpreter's lock back. `stolen` tells which share of the server's processor the machine's host gave to somebody
else in a phase.

A processor shared with strangers is twice as fast in one second as in the next, and a share of the capacity means nothing when
it was measured in another one. So a bare loop of Python is timed fifty times a second on the server's processor (`Pace`), what a
request costs is told in turns of it, the rates of a phase are those of the last seconds' pace, and goodput is compared at the
pace of each phase. A bar speaks of orders that are at most 70 % of the capacity: rounds in which the machine became so slow
that they were more are told, and are not in the median of their p99.

    python benchmarks/commerce_load.py [--rounds 5] [--seconds 3] [--factor 10]
"""

import argparse
import asyncio
import collections
import contextlib
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from _open_loop import Crowd
from commerce import Server, fill, pay, request

CONNECTIONS = {"order": 120, "cart": 400, "page": 120, "search": 40, "crawl": 20}
# Shares of the work. Crawlers had 0.2 when a list of addresses cost ten times as much: 0.04 are as many requests as that was.
MIX = {"order": 0.06, "cart": 0.24, "page": 0.40, "search": 0.26, "crawl": 0.04}
ALONE_S = 0.8  # each class, in each round
AFTER_S = 6.0  # of the load after the flood: longer than a recovery may take
PEAKS = (0.9, 1.1)  # offered, of the capacity; for two thirds of the seconds of the others
GOOD = {"order": 201, "cart": 204, "page": 200, "search": 200, "crawl": 200}
ORDERS = 0.6  # of the capacity, in the flood
ORDERS_MAX = 0.7  # what the bar speaks of
PACE_S = 15.0  # the pace expected of a phase is that of so many seconds before
CROWD_NICE = 4  # its driver is busy all the time; that of those who order must not wait for it to read an answer
SERVERS = []  # the processor that is the server's own
BARS = {"goodput at overload / peak": 0.9, "orders answered": 0.999, "order p99 / unloaded": 2.0, "recovery s": 5.0}


class Messages:
    """Writes the requests of each class."""

    def __init__(self, facts, carts):
        self.facts, self.carts, self.turn = facts, carts, 0
        self.random = random.Random(7)
        self.pages = [bodiless(page, "Cookie: seen=1\r\n") for page in facts["pages"]]
        self.searches = [bodiless(f"/commerce/search?q={word}") for word in ("lamp", "tent", "blue", "chiar")]
        self.crawl = bodiless("/commerce/sitemap.txt")

    def __call__(self, kind):
        self.turn += 1
        match kind:
            case "order":
                if not self.carts:
                    return None
                cart = self.carts.pop()
                return pay(cart, cart)
            case "cart":
                return fill(f"{os.getpid():012d}{self.turn:020d}", self.random.choice(self.facts["skus"]))
            case "page":
                return self.random.choice(self.pages)
            case "search":
                return self.random.choice(self.searches)
        return self.crawl


def bodiless(path, extra=""):
    """A GET as browsers send it."""
    return request("GET", path, extra=extra).replace(b"Content-Length: 0\r\n", b"")


class Asker(asyncio.Protocol):
    """One kept connection that asks and waits."""

    def connection_made(self, transport):
        self.transport, self.buffer, self.waiter = transport, b"", None

    def ask(self, message):
        self.waiter = asyncio.get_running_loop().create_future()
        self.transport.write(message)
        return self.waiter

    def data_received(self, data):
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        at = self.buffer.find(b"content-length: ", 0, end)
        length = int(self.buffer[at + 16 : self.buffer.find(b"\r", at)]) if at > 0 else 0
        if len(self.buffer) >= end + 4 + length:
            status, self.buffer = int(self.buffer[9:12]), b""
            self.waiter.set_result(status)

    def connection_lost(self, exc):
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(0)


async def asker(facts):
    return (await asyncio.get_running_loop().create_connection(Asker, "127.0.0.1", facts["port"]))[1]


async def closed(facts, kind, carts, seconds, count=32):
    """As many of one class as fit, or as there are carts."""
    messages, done = Messages(facts, carts), 0
    ends = time.perf_counter() + seconds

    async def one():
        nonlocal done
        wire = await asker(facts)
        while time.perf_counter() < ends and (message := messages(kind)) is not None:
            status = await wire.ask(message)
            done += status == GOOD[kind]
        wire.transport.close()

    await asyncio.gather(*(one() for _ in range(count)))
    return done


async def filled(facts, count, seed):
    """Carts with one piece each, ready to be ordered."""
    carts = [f"{seed:08d}{number:024d}" for number in range(count)]
    waiting = list(carts)

    async def one():
        wire = await asker(facts)
        while waiting:
            await wire.ask(fill(waiting.pop(), facts["skus"][len(waiting) % len(facts["skus"])]))
        wire.transport.close()

    await asyncio.gather(*(one() for _ in range(32)))
    return carts


async def drive(order):
    """The driver's side: one word of work at a time."""
    facts, word, began_s = order["facts"], order["word"], time.process_time()
    if word == "cost":
        carts = await filled(facts, int(4_000 * order["seconds"]) if "order" in order["kinds"] else 0, order["seed"])
        hear("ready")
        return {kind: await closed(facts, kind, carts, order["seconds"]) for kind in order["kinds"]}
    rates, seconds = order["rates"], order["seconds"]
    orders = rates.get("order", 0.0) * seconds + order["after"].get("order", 0.0) * AFTER_S
    carts = await filled(facts, int(orders * 1.2) + 50 if orders else 0, order["seed"])
    crowd = Crowd(facts["port"], {kind: CONNECTIONS[kind] for kind in rates}, Messages(facts, carts), GOOD)
    await crowd.open()
    gentle, after = {kind: rate * 0.05 for kind, rate in rates.items()}, order["after"]
    plans = [crowd.plan(gentle, 1.0), crowd.plan(rates, seconds), crowd.plan(after, AFTER_S)]
    gc.collect()
    gc.disable()
    await crowd.drive(gentle, 1.0, plans[0])
    hear("ready")
    found = await crowd.drive(rates, seconds, plans[1])
    if after:
        hear("flooded")
        found["after"] = await crowd.drive(after, AFTER_S, plans[2])
    gc.enable()
    crowd.close()
    return found | {"driver cpu s": time.process_time() - began_s}


def hear(word):
    """Say how far the driver is and wait until the server's CPU time was read."""
    print(json.dumps(word), flush=True)
    sys.stdin.readline()


def pin(server):
    """Give the server's threads one processor and ourselves, and so the drivers, the other; whether that was possible."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return False
    SERVERS.append(cores[0])
    for thread in Path(f"/proc/{server}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores[:1])
    os.sched_setaffinity(0, cores[1:])
    return True


class Pace:
    """What a turn of a bare loop takes on the server's processor, in ns of CPU time; a process that looks 50 times a second."""

    PROBE = """
import os, sys, time
for core in sys.argv[1:]:
    os.sched_setaffinity(0, [int(core)])
while True:
    time.sleep(0.02)
    began = time.thread_time_ns()
    for _ in range(5_000):
        pass
    print(time.time(), (time.thread_time_ns() - began) / 5_000, flush=True)
"""

    def __init__(self):
        arguments = [sys.executable, "-c", self.PROBE, *map(str, SERVERS)]
        self.process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        self.looks = collections.deque(maxlen=50_000)
        threading.Thread(target=self._read, daemon=True).start()
        time.sleep(1.0)

    def _read(self):
        for line in self.process.stdout:
            at, ns = line.split()
            self.looks.append((float(at), float(ns)))

    def between(self, began, ended):
        """Its mean in this time."""
        return statistics.fmean([ns for at, ns in list(self.looks) if began <= at <= ended] or [self.looks[-1][1]])

    def lately(self):
        """Its mean in the last seconds."""
        return self.between(time.time() - PACE_S, time.time())

    def end(self):
        self.process.kill()
        self.process.wait(10)
        self.process.stdout.close()


class Driver:
    """One process that sends; it says a word and waits to be told to go on, until it has found something."""

    def __init__(self, facts, *, nice=0):
        self.facts = facts
        arguments = [sys.executable, __file__, "--drive", "--nice", str(nice)]
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def tell(self, what):
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()

    def hear(self):
        return json.loads(self.process.stdout.readline())

    def end(self):
        self.process.stdin.close()
        self.process.wait(10)


def drive_on():
    """The driver's process: one piece of work after the other, until nobody asks for more."""
    while line := sys.stdin.readline():
        print(json.dumps(asyncio.run(drive(json.loads(line)))), flush=True)


def drivers(server, them):
    """What each driver found; from their first word to the next the server's CPU seconds, the share stolen, and when that was."""
    for one, order in them:
        one.tell(order | {"facts": one.facts})
    marks = []
    answers = [one.hear() for one, _ in them]
    while isinstance(answers[0], str):
        marks.append((server.ask("cpu"), ticks(), time.time()))
        for one, _ in them:
            one.tell("go")
        answers = [one.hear() for one, _ in them]
    marks.append((server.ask("cpu"), ticks(), time.time()))
    (used_s, before, began), (used_then_s, then, ended) = marks[:2]
    return answers, used_then_s - used_s, (then[0] - before[0]) / max(1, then[1] - before[1]), (began, ended)


def ticks():
    """Of the server's processor: those the machine's host gave to somebody else, and all."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return 0, 0
    name = f"cpu{SERVERS[0]} " if SERVERS else "cpu "
    counts = next(([int(count) for count in line.split()[1:9]] for line in lines if line.startswith(name)), [0] * 8)
    return counts[7], sum(counts)


def together(found):
    """What several drivers found of one phase."""
    first, *others = found
    for other in others:
        first["kinds"] |= other["kinds"]
        first["driver late ms"] = max(first["driver late ms"], other["driver late ms"])
        first["driver cpu s"] = first.get("driver cpu s", 0.0) + other.get("driver cpu s", 0.0)
    if "after" in first:
        first["after"] = together([one["after"] for one in found])
    return first


def work(found, cost):
    """Good answers as a share of the capacity."""
    return sum(told["good/s"] / cost[kind] for kind, told in found["kinds"].items())


class Shop:
    """The server under test, its two drivers, and what a request of each class costs."""

    def __init__(self, server, seconds):
        self.server, self.seconds, self.seed, self.pace = server, seconds, 0, Pace()
        self.buyers, self.crowd = Driver(server.facts), Driver(server.facts, nice=CROWD_NICE)
        self.turns = {kind: [] for kind in MIX}  # of the bare loop that a request costs, in thousands, by round
        self.cost, self.cpu = {}, {}

    def end(self):
        self.pace.end()
        self.buyers.end()
        self.crowd.end()

    def alone(self):
        """Each class alone: what a request costs."""
        for kind in MIX:
            found, used, when = self.asks([kind], ALONE_S)
            self.turns[kind].append(used / found[kind] / self.pace.between(*when) * 1e6)

    def expect(self):
        """Requests per second and CPU seconds per request of each class at the pace of the last seconds; that pace."""
        pace = self.pace.lately()
        self.cpu = {kind: statistics.median(turns) * 1e-6 * pace for kind, turns in self.turns.items()}
        self.cost = {kind: 1 / cpu for kind, cpu in self.cpu.items()}
        return pace

    def asks(self, kinds, seconds):
        self.seed += 1
        word = {"word": "cost", "kinds": kinds, "seconds": seconds, "seed": self.seed}
        [found], used, _, when = drivers(self.server, [(self.buyers, word)])
        return found, used, when

    def phase(self, share, seconds, orders=None, after=None):
        """The mix at this share of the capacity (`orders`: theirs), perhaps then at another."""
        expected = self.expect()
        cost = self.cost
        self.seed += 1
        rates = {kind: cost[kind] * part * share for kind, part in MIX.items()}
        if orders is not None:
            rates["order"] = cost["order"] * orders
        afterwards = {kind: cost[kind] * part * after for kind, part in MIX.items()} if after else {}

        def only(kinds):
            return {
                "word": "drive",
                "rates": {kind: rates[kind] for kind in kinds},
                "seconds": seconds,
                "seed": self.seed,
                "after": {kind: rate for kind, rate in afterwards.items() if kind in kinds},
            }

        theirs = [(self.crowd, only([kind for kind in MIX if kind != "order"])), (self.buyers, only(["order"]))]
        several, used, stolen, when = drivers(self.server, theirs)
        order_late = several[1]["driver late ms"]
        found = together(several)
        found["order driver late ms"] = order_late
        found["offered"] = sum(rate / cost[kind] for kind, rate in rates.items())
        found["pace"], found["capacity"] = self.pace.between(*when), expected / self.pace.between(*when)
        found["work"] = work(found, cost) / found["capacity"]
        found["server cpu s"], found["stolen"] = used, stolen
        found["work per cpu s"] = (
            sum(told["good/s"] * self.cpu[kind] for kind, told in found["kinds"].items()) * seconds / used
        )
        return found

    def round(self, factor):
        """One round: its phases and what they say of each other."""
        self.alone()
        calm = self.phase(0.2, self.seconds, orders=0.1)  # enough of them that their p99 is not the slowest one
        flood = self.phase(factor, self.seconds, orders=ORDERS, after=0.4)
        peaks = [self.phase(share, self.seconds * 2 / 3) for share in PEAKS]
        order, quiet, after = flood["kinds"]["order"], calm["kinds"]["order"], flood["after"]["kinds"]
        return {
            "goodput at overload / peak": flood["work"] / max(one["work"] for one in peaks),
            "orders answered": order["good share"],
            "order p99 / unloaded": order["p99 ms"] / quiet["p99 ms"],
            "orders / capacity": ORDERS / flood["capacity"],
            "recovery s": max(told["last refusal s"] for kind, told in after.items() if kind != "crawl"),
            "last crawler refused s": after["crawl"]["last refusal s"],
            "capacity alone, per s": dict(self.cost),
            "order p99 ms": order["p99 ms"],
            "order p99 ms, unloaded": quiet["p99 ms"],
            "work per cpu s at overload / peak": flood["work per cpu s"] / max(one["work per cpu s"] for one in peaks),
            "calm": calm,
            "flood": flood,
            "peaks": [
                {name: one[name] for name in ("offered", "work", "work per cpu s", "stolen", "pace")} for one in peaks
            ],
        }


def together_of(rounds):
    """The figures of all rounds."""

    def median(name):
        return statistics.median(one[name] for one in rounds)

    orders = [one["flood"]["kinds"]["order"] for one in rounds]
    meant = [one for one in rounds if one["orders / capacity"] <= ORDERS_MAX] or rounds
    return {
        "goodput at overload / peak": median("goodput at overload / peak"),
        "orders answered": sum(one["good share"] * one["sent"] for one in orders) / sum(one["sent"] for one in orders),
        "order p99 / unloaded": statistics.median(one["order p99 / unloaded"] for one in meant),
        "recovery s": max(one["recovery s"] for one in rounds),
    }


def run(options: argparse.Namespace) -> dict:
    """Measure and return the table."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(folder, options.profile)
        pinned = pin(server.process.pid)
        shop = Shop(server, options.seconds)
        try:
            shop.asks(list(MIX), 0.3)
            if options.profile:
                server.ask("profile")
            rounds = [shop.round(options.factor) for _ in range(options.rounds)]
            if options.profile:
                server.ask("profiled")
            admission = server.ask("admission")
        finally:
            shop.end()
            server.stop()
    figures = together_of(rounds)
    middle = sorted(rounds, key=lambda one: one["order p99 / unloaded"])[(len(rounds) - 1) // 2]
    return {
        "system": "commerce_load",
        "machine": {"cores": os.cpu_count(), "load": os.getloadavg()[0], "pinned": pinned},
        "capacity alone, per s": middle["capacity alone, per s"],
        "offered / capacity": middle["flood"]["offered"],
        "median": figures,
        "rounds": rounds,
        "calm": middle["calm"],
        "peaks": middle["peaks"],
        "work per cpu s at overload / peak": middle["work per cpu s at overload / peak"],
        "flood": middle["flood"],
        "admission": admission,
        "bars": BARS,
        "passed": {
            name: value >= BARS[name]
            if name in ("goodput at overload / peak", "orders answered")
            else value <= BARS[name]
            for name, value in figures.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--factor", type=float, default=10.0)
    parser.add_argument("--profile", default="", help="where the server's time goes in the rounds, into this file")
    parser.add_argument("--drive", action="store_true")
    parser.add_argument("--nice", type=int, default=0)
    options = parser.parse_args()
    if options.drive:
        os.nice(options.nice)
        with contextlib.suppress(ImportError):
            import uvloop

            uvloop.install()
        drive_on()
        return
    result = run(options)
    path = Path(__file__).parent / "results" / "commerce_load.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2))
    print(
        "alone, per second, in the middle round  "
        + "  ".join(f"{kind} {rate:,.0f}" for kind, rate in result["capacity alone, per s"].items())
    )
    for name in ("calm", "flood"):
        print(
            f"{name} of the middle round: offered {result[name]['offered']:.1f}x, good work {result[name]['work']:.2f}x"
        )
        for kind, told in result[name]["kinds"].items():
            told.pop("last refusal s", None)
            print(f"{kind:>8}  " + "  ".join(f"{key} {value:,.2f}" for key, value in told.items() if value is not None))
    flood = result["flood"]
    print(
        f"flood: server {flood['server cpu s']:.1f} CPU s, drivers {flood['driver cpu s']:.1f}"
        f" and {flood['driver late ms']:.1f} ms late (p99), that of orders {flood['order driver late ms']:.1f}"
    )
    print(f"work per CPU second of the server, overload / peak: {result['work per cpu s at overload / peak']:.2f}")
    for number, one in enumerate(result["rounds"], 1):
        print(
            f"round {number}: {one['capacity alone, per s']['order']:,.0f} orders/s alone; order p99"
            f" {one['order p99 ms']:.1f} ms, unloaded {one['order p99 ms, unloaded']:.1f}"
            f" = {one['order p99 / unloaded']:.2f}x; goodput {one['flood']['work']:.2f} of"
            f" {[round(peak['work'], 2) for peak in one['peaks']]} = {one['goodput at overload / peak']:.2f}x; orders"
            f" {one['orders answered']:.4f}; driver of orders late {one['flood']['order driver late ms']:.1f} ms; stolen"
            f" {[round(phase['stolen'], 2) for phase in (one['calm'], one['flood'], *one['peaks'])]}; pace"
            f" {[round(phase['pace']) for phase in (one['calm'], one['flood'], *one['peaks'])]} ns, orders"
            f" {one['orders / capacity']:.0%} of the capacity; recovered after {one['recovery s']:.1f} s (crawlers"
            f" {one['last crawler refused s']:.1f})"
        )
    print("admission", result["admission"])
    for key, value in result["median"].items():
        print(f"{key:>28}  {value:8.3f}  (bar {BARS[key]}: {'held' if result['passed'][key] else 'MISSED'})")
    print("load", os.getloadavg(), "pinned" if result["machine"]["pinned"] else "not pinned")


if __name__ == "__main__":
    main()

"""Ten times too much: what a shop still sells, and how soon it is well again.

A driver in a process of its own sends an open loop (requests leave when their time has come, whatever the answers do) of five
classes to one server process: orders of filled carts (critical), putting into carts and product pages (user), searches
(degraded), the sitemap (bulk). First each class alone tells what one request of it costs; all sums are then in shares of
the server's capacity, so that a dear order and a cheap page add up. Then the same mix at a fifth of the capacity, around the
capacity (the best of three is the peak), at ten times the capacity with orders at 60 % of it, and at 0.4 of it again. What finds
all of the driver's connections busy is not sent, and is told so. An answer counts when it is the wanted one within a second of
the moment the request was due. Where there are two processors the server has the first for itself and the driver the
second (`pinned`): a driver that takes the server's time away measures itself, also where it only keeps a thread of the
server from giving the interpreter's lock back. On a machine that is busy with something else the capacity itself moves:
look at `load`.

    python benchmarks/commerce_load.py [--seconds 6] [--factor 10]
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from commerce import Server, fill, pay, quantile, request

DEADLINE_S = 1.0
CONNECTIONS_MAX = 300
MIX = {"order": 0.06, "cart": 0.24, "page": 0.30, "search": 0.20, "crawl": 0.20}  # shares of the work
GOOD = {"order": 201, "cart": 204, "page": 200, "search": 200, "crawl": 200}
BARS = {"goodput at overload / peak": 0.9, "orders answered": 0.999, "order p99 / unloaded": 2.0, "recovery s": 5.0}


class Wire(asyncio.Protocol):
    """One kept connection of the driver; counts the answer of what it sent last."""

    def __init__(self, crowd):
        self.crowd = crowd
        self.buffer = b""
        self.kind = None

    def connection_made(self, transport):
        self.transport = transport
        self.crowd.idle.append(self)

    def send(self, kind, due, message):
        self.kind, self.due = kind, due
        self.transport.write(message)

    def data_received(self, data):
        self.buffer = self.buffer + data if self.buffer else data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        at = self.buffer.find(b"content-length: ", 0, end)
        length = int(self.buffer[at + 16 : self.buffer.find(b"\r", at)]) if at > 0 else 0
        if len(self.buffer) < end + 4 + length:
            return
        status = int(self.buffer[9:12])
        self.buffer = b""
        self.crowd.answered(self.kind, self.due, status)
        self.kind = None
        self.crowd.idle.append(self)

    def connection_lost(self, exc):
        self.crowd.open -= 1
        if self.kind is not None:
            self.crowd.answered(self.kind, self.due, 0)
        elif self in self.crowd.idle:
            self.crowd.idle.remove(self)


class Crowd:
    """Requests by class at their times."""

    def __init__(self, facts, carts):
        self.facts = facts
        self.carts = carts
        self.idle, self.open = [], 0
        self.random = random.Random(7)
        self.turn = 0
        self.dialling = set()
        self.log = []

    def message(self, kind):
        self.turn += 1
        skus, pages = self.facts["skus"], self.facts["pages"]
        match kind:
            case "order":
                cart = self.carts.pop()
                return pay(cart, cart)
            case "cart":
                return fill(f"{os.getpid():012d}{self.turn:020d}", self.random.choice(skus))
            case "page":
                return request("GET", self.random.choice(pages), extra="Cookie: seen=1\r\n").replace(
                    b"Content-Length: 0\r\n", b""
                )
            case "search":
                return request(
                    "GET", f"/commerce/search?q={self.random.choice(('lamp', 'tent', 'blue', 'chiar'))}"
                ).replace(b"Content-Length: 0\r\n", b"")
        return request("GET", "/commerce/sitemap.txt").replace(b"Content-Length: 0\r\n", b"")

    def answered(self, kind, due, status):
        self.log.append((kind, due, time.perf_counter(), status))

    def plan(self, rates, seconds):
        """Every request of an open loop, written out beforehand so that the driver has little to do: when, class, bytes."""
        found = []
        for kind, rate in rates.items():
            at = self.random.expovariate(rate) if rate > 0 else seconds
            while at < seconds and not (kind == "order" and not self.carts):
                found.append((at, kind, self.message(kind)))
                at += self.random.expovariate(rate)
        return sorted(found)

    async def drive(self, rates, seconds):
        """An open loop; what was asked, what came."""
        loop = asyncio.get_running_loop()
        planned = self.plan(rates, seconds)
        self.log, sent, missed = [], dict.fromkeys(rates, 0), dict.fromkeys(rates, 0)
        began = time.perf_counter()
        for after, kind, message in planned:
            at = began + after
            while (wait := at - time.perf_counter()) > 0:
                await asyncio.sleep(max(0.0005, wait))
            sent[kind] += 1
            if self.idle:
                self.idle.pop().send(kind, at, message)
            elif self.open < CONNECTIONS_MAX:
                self.open += 1
                dialling = loop.create_task(self.dial(kind, at, message))
                self.dialling.add(dialling)
                dialling.add_done_callback(self.dialling.discard)
            else:
                missed[kind] += 1
                if missed[kind] % 16 == 0:
                    await asyncio.sleep(0)  # behind the plan: answers are read all the same
        ends = time.perf_counter() + 3.0
        while len(self.log) + sum(missed.values()) < sum(sent.values()) and time.perf_counter() < ends:
            await asyncio.sleep(0.05)
        return self.report(sent, missed, began, seconds)

    async def connect(self):
        """One more connection, kept ready."""
        self.open += 1
        await asyncio.get_running_loop().create_connection(lambda: Wire(self), "127.0.0.1", self.facts["port"])

    async def dial(self, kind, at, message):
        try:
            _, wire = await asyncio.get_running_loop().create_connection(
                lambda: Wire(self), "127.0.0.1", self.facts["port"]
            )
        except OSError:
            self.open -= 1
            self.answered(kind, at, 0)
            return
        self.idle.remove(wire)
        wire.send(kind, at, message)

    def report(self, sent, missed, began, seconds):
        told = {}
        for kind in sent:
            mine = [(due, at, status) for one, due, at, status in self.log if one == kind]
            late = sorted(at - due for due, at, status in mine if status == GOOD[kind])
            told[kind] = {
                "sent": sent[kind],
                "not sent": missed[kind],
                "good/s": sum(one <= DEADLINE_S for one in late) / seconds,
                "good share": sum(one <= DEADLINE_S for one in late) / max(1, sent[kind] - missed[kind]),
                "p50 ms": quantile(late, 0.5) if late else None,
                "p99 ms": quantile(late, 0.99) if late else None,
                "shed": sum(status == 503 for _, _, status in mine),
                "other": sum(status not in (503, GOOD[kind]) for _, _, status in mine),
            }
        refused = [due - began for _, due, _, status in self.log if status != GOOD["page"] and status in (0, 503)]
        return {"kinds": told, "last refusal s": max(refused, default=0.0)}


async def closed(facts, kind, carts, seconds, count=32):
    """As many of one class as fit; per second."""
    crowd = Crowd(facts, carts)
    loop = asyncio.get_running_loop()
    done = 0
    ends = time.perf_counter() + seconds

    async def one():
        nonlocal done
        waiter = None

        class Turn:
            idle, open = [], 0

            @staticmethod
            def answered(kind, _, status):
                nonlocal done
                done += status == GOOD[kind]
                waiter.set_result(None)

        _, wire = await loop.create_connection(lambda: Wire(Turn), "127.0.0.1", facts["port"])
        while time.perf_counter() < ends and (kind != "order" or carts):
            waiter = loop.create_future()
            wire.send(kind, 0.0, crowd.message(kind))
            await waiter
        wire.kind = None
        wire.transport.close()

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(count)))
    return done / (time.perf_counter() - began)


async def filled(facts, count, seed):
    """Carts with one piece each, ready to be ordered."""
    carts = [f"{seed:08d}{number:024d}" for number in range(count)]
    waiting = list(carts)
    loop = asyncio.get_running_loop()

    async def one():
        waiter = None

        class Turn:
            idle, open = [], 0

            @staticmethod
            def answered(*_):
                waiter.set_result(None)

        _, wire = await loop.create_connection(lambda: Wire(Turn), "127.0.0.1", facts["port"])
        while waiting:
            waiter = loop.create_future()
            wire.send("cart", 0.0, fill(waiting.pop(), facts["skus"][len(waiting) % len(facts["skus"])]))
            await waiter
        wire.kind = None
        wire.transport.close()

    await asyncio.gather(*(one() for _ in range(32)))
    return carts


async def drive(order):
    """The driver's side: one word of work at a time."""
    facts, word = order["facts"], order["word"]
    if word == "cost":
        carts = await filled(facts, int(1_000 * order["seconds"]), order["seed"])
        return {kind: await closed(facts, kind, carts, order["seconds"]) for kind in MIX}
    carts = await filled(facts, int(order["rates"]["order"] * order["seconds"] * 1.2) + 50, order["seed"])
    crowd = Crowd(facts, carts)
    warm = (
        await crowd.drive({kind: rate * 0.05 for kind, rate in order["rates"].items()}, 1.0) if order["warm"] else None
    )
    found = await crowd.drive(order["rates"], order["seconds"])
    if order.get("after"):
        found["after"] = await crowd.drive(order["after"], order["seconds"])
    return found | {"warm": warm is not None, "driver cpu s": time.process_time()}


def pin(server):
    """Give the server's threads one processor and ourselves, and so the driver, the other; whether that was possible."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return False
    for thread in Path(f"/proc/{server}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores[:1])
    os.sched_setaffinity(0, cores[1:])
    return True


def driver(**order):
    child = subprocess.run(
        [sys.executable, __file__, "--drive"], input=json.dumps(order), capture_output=True, text=True, check=True
    )
    return json.loads(child.stdout)


def work(found, cost):
    """Good answers as a share of the capacity."""
    return sum(told["good/s"] / cost[kind] for kind, told in found["kinds"].items())


def run(options: argparse.Namespace) -> dict:
    """Measure and return the table."""
    seconds = options.seconds
    with tempfile.TemporaryDirectory() as folder:
        server = Server(folder)
        facts, pinned = server.facts, pin(server.process.pid)

        def phase(share, seed, orders=None, after=None):
            def at(times):
                return {kind: cost[kind] * part * times for kind, part in MIX.items()}

            rates = at(share)
            if orders is not None:
                rates["order"] = cost["order"] * orders
            begun = server.ask("cpu")
            found = driver(
                facts=facts, word="drive", rates=rates, seconds=seconds, seed=seed, warm=True, after=after and at(after)
            )
            found["offered"] = sum(rate / cost[kind] for kind, rate in rates.items())
            found["work"] = work(found, cost)
            found["server cpu s"] = server.ask("cpu") - begun
            return found

        try:
            driver(facts=facts, word="cost", seconds=0.5, seed=1)
            cost = driver(facts=facts, word="cost", seconds=1.5, seed=2)
            calm = phase(0.2, 10)
            peaks = [phase(share, 20 + number) for number, share in enumerate((0.7, 0.9, 1.1))]
            flood = phase(options.factor, 30, orders=0.6, after=0.4)
            admission = server.ask("admission")
        finally:
            server.stop()
    peak = max(one["work"] for one in peaks)
    order, quiet = flood["kinds"]["order"], calm["kinds"]["order"]
    figures = {
        "goodput at overload / peak": flood["work"] / peak,
        "orders answered": order["good share"],
        "order p99 / unloaded": order["p99 ms"] / quiet["p99 ms"],
        "recovery s": flood["after"]["last refusal s"],
    }
    return {
        "system": "commerce_load",
        "machine": {"cores": os.cpu_count(), "load": os.getloadavg()[0], "pinned": pinned},
        "capacity alone, per s": cost,
        "offered / capacity": flood["offered"],
        "median": figures,
        "calm": calm,
        "peaks": [{"offered": one["offered"], "work": one["work"]} for one in peaks],
        "flood": flood,
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
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--factor", type=float, default=10.0)
    parser.add_argument("--drive", action="store_true")
    options = parser.parse_args()
    if options.drive:
        with contextlib.suppress(ImportError):
            import uvloop

            uvloop.install()
        print(json.dumps(asyncio.run(drive(json.loads(sys.stdin.read())))))
        return
    result = run(options)
    path = Path(__file__).parent / "results" / "commerce_load.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2))
    print(
        "alone, per second  "
        + "  ".join(f"{kind} {rate:,.0f}" for kind, rate in result["capacity alone, per s"].items())
    )
    for name in ("calm", "flood"):
        print(f"{name}: offered {result[name]['offered']:.1f}x, good work {result[name]['work']:.2f}x")
        for kind, told in result[name]["kinds"].items():
            print(f"{kind:>8}  " + "  ".join(f"{key} {value:,.2f}" for key, value in told.items() if value is not None))
    print(f"flood: server {result['flood']['server cpu s']:.1f} CPU s, driver {result['flood']['driver cpu s']:.1f}")
    print("peaks", [f"{one['offered']:.1f}x -> {one['work']:.2f}" for one in result["peaks"]])
    print("admission", result["admission"])
    for key, value in result["median"].items():
        print(f"{key:>28}  {value:8.3f}  (bar {BARS[key]}: {'held' if result['passed'][key] else 'MISSED'})")
    print("load", os.getloadavg(), "pinned" if result["machine"]["pinned"] else "not pinned")


if __name__ == "__main__":
    main()

"""The same checkouts on PostgreSQL, and open shops' beside them, turn by turn: what they do in the same minute.

Each has a PostgreSQL of its own with fsync on. Ours is one server process with everything the main row has (pricing, promotion,
tax, two-phase commit); django-oscar is its own shop under gunicorn with two workers, without payment, promotion and tax; Vendure
is one node process with tax and its built-in test payment. They are asked in turns, so that a machine whose speed changes
changes it for all; besides checkouts per second of the clock the CPU time of a checkout is told. Each is asked by as many buyers
at a time as it is best with: before the rounds each number in `CROWDS` is tried, and a side keeps the one with most checkouts per
second (`buyers`; of ours only one whose slowest percent stays below `P99_MS`); what was tried is told too. Then all sell ten
pieces to a crowd.

What peers need is installed and filled once, into `benchmarks/results/peers` (minutes: pip and npm, then hundreds of migrations);
after that a run takes about a minute. What cannot be installed is skipped with its reason.

    python benchmarks/commerce_peers.py [--prepare] [--rounds 2] [--only django-oscar] [--seconds 4]
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import commerce
from peers import commerce_oscar, commerce_vendure, postgres

FOLDER = Path(__file__).parent / "results" / "peers"
BUYERS, RACERS = 500, 40
WARM_S, TRY_S = 1.0, 2.0
CROWDS = {"ours": (32, 64, 96, 128), "peers": (2, 4, 8, 16)}
P99_MS = 100.0  # of ours; a peer may be as slow as it likes
OURS = "ours on PostgreSQL"
PEERS = {"django-oscar": commerce_oscar, "vendure": commerce_vendure}
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s(root):
    """CPU time so far of a process and everything below it."""
    parents, spent = {}, {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            number = int(entry.name)
            parents[number] = int(fields[1])
            spent[number] = sum(map(int, fields[11:15])) / TICKS  # also of its children that have ended
    total = 0.0
    for number, used in spent.items():
        above = number
        while above not in (root, 0, 1):
            above = parents.get(above, 0)
        total += used if above == root else 0.0
    return total


class Side:
    """One shop: how it is asked, and which processes work for it."""

    def __init__(self, pids, ask, crowds, p99_ms=float("inf")):
        self.pids, self.ask, self.crowds, self.p99_ms = pids, ask, crowds, p99_ms
        self.rounds, self.tried, self.buyers = [], {}, crowds[-1]

    def attempt(self, at, seconds):
        """A short turn of another crowd."""
        crowd = self.crowds[at % len(self.crowds)]
        figures = self.ask(seconds, crowd)
        self.tried[crowd] = {key: figures[key] for key in ("checkouts/s", "p99 ms")}

    def choose(self):
        """Keep the crowd with most checkouts among those that are answered in time."""
        rates = {crowd: one["checkouts/s"] for crowd, one in self.tried.items() if one["p99 ms"] < self.p99_ms}
        self.buyers = max(rates, key=rates.get, default=min(self.crowds))

    def turn(self, seconds):
        """One round of checkouts."""
        before = [cpu_s(pid) for pid in self.pids]
        figures = self.ask(seconds, self.buyers)
        used = [cpu_s(pid) - past for pid, past in zip(self.pids, before, strict=True)]
        count = max(1, figures.pop("count"))
        self.rounds.append(
            figures | {"server cpu ms": used[0] * 1e3 / count, "postgresql cpu ms": used[1] * 1e3 / count}
        )

    def middle(self):
        """Medians over the rounds, for how many buyers at a time, and what was tried."""
        middle = {key: statistics.median(one[key] for one in self.rounds) for key in self.rounds[0]}
        return middle | {"buyers": self.buyers, "tried": self.tried}


def ours(server):
    """Our server's turn."""
    turns = itertools.count(1)

    def ask(seconds, crowd):
        done, took, late, _ = asyncio.run(commerce.checkouts(server.facts, seconds, crowd, next(turns)))
        figures = {"p50 ms": commerce.quantile(late, 0.5), "p99 ms": commerce.quantile(late, 0.99)}
        return {"count": done, "checkouts/s": done / took} | figures

    return ask


def measured(*, rounds, seconds, crowds, only=""):
    """All in turns; figures by name."""
    found = {}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        database = stack.enter_context(postgres.running())
        server = commerce.Server(folder, "", database.url)
        stack.callback(server.stop)
        sides = {OURS: Side((server.process.pid, database.pid), ours(server), crowds["ours"], P99_MS)}
        shops = {}
        for name, peer in PEERS.items():
            if only not in ("", name):
                continue
            try:
                prepared = peer.prepare(FOLDER)
                beside = stack.enter_context(postgres.running())
                shop = shops[name] = stack.enter_context(peer.serving(prepared, beside))
                sides[name] = Side((shop.pid, beside.pid), shop.checkouts, crowds["peers"])
            except (postgres.CannotRun, OSError, subprocess.SubprocessError) as error:
                found[name] = {"skipped": repr(error)[-300:]}
        for shop in shops.values():
            postgres.wait_for(shop.port)
        for side in sides.values():
            side.ask(WARM_S, side.buyers)
        for at in range(max(map(len, crowds.values()))):
            for side in sides.values():
                side.attempt(at, TRY_S)
        for side in sides.values():
            side.choose()
        for _ in range(rounds):
            for side in sides.values():
                side.turn(seconds)
        for name, side in sides.items():
            found[name] = side.middle()
        statuses = asyncio.run(commerce.race(server.facts, BUYERS, commerce.CONNECTIONS))
        found[OURS] |= {"race buyers": BUYERS, "sold of 10": statuses.get(201, 0), "books": server.ask("check")}
        for name, shop in shops.items():
            found[name] |= {"race buyers": RACERS, "sold of 10": shop.race(RACERS)}
            found[f"times {name}"] = times(sides[OURS].rounds, sides[name].rounds)
    return found


def times(mine, theirs):
    """How often ours fits into theirs, turn by turn, by the clock and by CPU time."""

    def whole(one):
        return one["server cpu ms"] + one["postgresql cpu ms"]

    pairs = list(zip(mine, theirs, strict=True))
    return {
        "by the clock": statistics.median(a["checkouts/s"] / max(0.01, b["checkouts/s"]) for a, b in pairs),
        "by CPU time": statistics.median(whole(b) / whole(a) for a, b in pairs),
    }


def run(options: argparse.Namespace) -> dict:
    """Measure and return both rows, or why there is none."""
    if not getattr(options, "peers", False):
        return {"skipped": "asked for with --peers"}
    quick = getattr(options, "quick", False)
    try:
        return measured(
            rounds=1 if quick else min(getattr(options, "rounds", 2), 2),
            seconds=1.0 if quick else getattr(options, "seconds", 4.0),
            crowds={side: tried[-2:-1] if quick else tried for side, tried in CROWDS.items()},
            only=only if (only := getattr(options, "only", "")) in PEERS else "",
        )
    except FileNotFoundError as error:
        return {"skipped": str(error)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--only", default="", choices=("", *PEERS))
    options = parser.parse_args()
    options.peers = True
    began = time.perf_counter()
    if options.prepare:
        for peer in PEERS.values():
            peer.prepare(FOLDER)
    else:
        print(json.dumps(run(options), indent=2))
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()

"""The embedded engines beside bare probes on the same disk in the same run.

Every round measures each probe and each engine once, in turn, for `--seconds`; files stay and grow over the rounds, so
folding the log into the main file is part of every figure. Probes: SQLite through apsw with the system's own file layer, WAL and
synchronous=FULL, committing as many rows at a time as the engine's writers are; SQLite point reads; write and
fdatasync of the same batches to a plain file; "raw journal": what 50 records come to there, one write over zeros that is
durable when it returns. `--present` rows with random keys are there before records are written to (put
into both tables in key order). At the end `--sustained` seconds of such writes on end, with everything they cause behind them,
in windows of 5 s; meanwhile 4 readers look up keys from before and scan, and their waits are told. `--only records` measures
these alone. A Redis server, where one is installed, is started for the cache's 50 callers. A bar holds by its absolute figure
or by its share of the probe (the median of the rounds' shares). On a busy machine the figures per second of CPU time are the
steadier ones.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import apsw

from fourplane.foundation.errors import Unavailable
from fourplane.state.contracts import Put, Statement
from fourplane.state.embedded.database import Database
from fourplane.state.embedded.levels import create
from fourplane.state.stores import Stores, StoresSettings

ROUNDS = 5
SECONDS = 1.0
WRITERS = 50
PRODUCERS = 8
READ_ROWS = 100_000
PRESENT = 1_000_000
FILL_ROWS = 10_000
JOURNAL_BYTES = 16 << 20
SUSTAINED = 25.0
WINDOW_S = 5.0
READERS = 4
READ_EVERY_S = 0.004
VALUE = b"x" * 200
BATCH = [b"x" * 100] * 1_000
CREATE = "CREATE TABLE item (id BIGINT PRIMARY KEY, v BLOB)"
INSERT = "INSERT INTO item (id, v) VALUES (?1, ?2)"
READ = "SELECT v FROM item WHERE id=?1"
# engine: what must be reached per second, the probe, or this share of it
BARS = {
    "sql appends": (40_000, "raw appends", 0.5),
    "records random": (40_000, "raw random", 0.5),
    "records sustained": (40_000, None, None),
    "cache redis": (60_000, None, None),
    "sql reads": (80_000, "raw reads", 0.6),
    "records reads": (80_000, "raw reads", 0.6),
    "log events": (1_000_000, "raw events", 0.7),
}


def raw(path, page_bytes=4_096):
    connection = apsw.Connection(str(path))
    for pragma in (f"page_size={page_bytes}", "journal_mode=WAL", "synchronous=FULL", "cache_size=-32768"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    return connection


class Bench:
    """Everything that is measured, on files of one folder."""

    def __init__(self, folder, seconds, present=0):
        self.folder, self.seconds = folder, seconds
        self.present = present
        self.server = None
        self.stores = Stores(data=folder)
        self.rng = random.Random(1)
        self.next_id = 0
        self.raw_id = 0
        self.waits = {"get": [], "get alone": [], "scan": []}
        self.present_keys = []
        self.kinds = {
            "raw appends": self.raw_appends,
            "sql appends": self.sql_appends,
            "raw random": self.raw_random,
            "raw journal": self.raw_journal,
            "records random": self.records_random,
            "raw reads": self.raw_reads,
            "sql reads": self.sql_reads,
            "records reads": self.records_reads,
            "raw fdatasync": self.raw_fdatasync,
            "raw events": self.raw_events,
            "log events": self.log_events,
        }

    async def prepare(self, kinds=()):
        self.raw, self.raw_log = raw(self.folder / "raw.db"), raw(self.folder / "raw-log.db", 32_768)
        self.plain = os.open(self.folder / "plain", os.O_WRONLY | os.O_CREAT)
        self.journal = os.open(self.folder / "journal", os.O_WRONLY | os.O_CREAT)
        os.pwrite(self.journal, bytes(JOURNAL_BYTES), 0)
        os.fsync(self.journal)
        await self.fill()
        self.sql, self.records = await self.stores.sql("bench"), await self.stores.records("bench")
        self.log = await self.stores.log("bench")
        await self.sql.commit([Statement(CREATE)])
        self.raw.execute(CREATE).fetchall()
        self.raw_log.execute("CREATE TABLE batch (id INTEGER PRIMARY KEY, body BLOB)").fetchall()
        self.keys = [b"%06d" % number for number in range(READ_ROWS)]
        for start in range(0, READ_ROWS if not kinds or "sql reads" in kinds else 0, 1_000):
            await self.sql.commit([Statement(INSERT, (n, VALUE)) for n in range(start, start + 1_000)])
            self.raw.execute("BEGIN").fetchall()
            for number in range(start, start + 1_000):
                self.raw.execute(INSERT, (number, VALUE)).fetchall()
            self.raw.execute("COMMIT").fetchall()
            for at in range(start, start + 1_000, 100):
                await self.records.write(b"read", [Put(key, VALUE) for key in self.keys[at : at + 100]])
        self.next_id = self.raw_id = READ_ROWS
        await self.records.fold()
        while self.present and not self.records.statistics().filtered_keys:
            await asyncio.sleep(0.05)  # what an opening reads in the background is no part of a figure
        if not kinds or "cache redis" in kinds:
            await self.start_redis()

    async def fill(self):
        """Rows with random keys in the tables of the records and of the raw probe, in key order."""
        began = time.perf_counter()
        keys = self.present_keys = sorted(self.rng.randbytes(16) for _ in range(self.present))
        (self.folder / "state").mkdir()
        database = await Database(self.folder / "state" / "records-bench.db").open()
        await database.transact(create)
        self.raw.execute("CREATE TABLE pair (k BLOB PRIMARY KEY, v BLOB) WITHOUT ROWID").fetchall()
        insert = "INSERT INTO record (partition, sort, value, version) VALUES (?1, ?2, ?3, 1)"
        for at in range(0, len(keys), FILL_ROWS):
            some = keys[at : at + FILL_ROWS]
            rows = [(key, b"s", VALUE) for key in some]
            await database.transact(lambda writer, rows=rows: writer.executemany(insert, rows).fetchall())
            self.raw.execute("BEGIN").fetchall()
            self.raw.executemany("INSERT INTO pair VALUES (?1, ?2)", [(key, VALUE) for key in some]).fetchall()
            self.raw.execute("COMMIT").fetchall()
        await database.close()
        self.filled_s = time.perf_counter() - began

    async def start_redis(self):
        binary = shutil.which("redis-server") or shutil.which("valkey-server")
        if binary is None:
            return
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        argv = [binary, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(self.folder)]
        self.server = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
        stores = Stores(StoresSettings(cache=f"redis://127.0.0.1:{port}/0"), data=self.folder)
        for _ in range(100):
            try:
                self.cache = await stores.cache("bench")
                break
            except Unavailable:
                await asyncio.sleep(0.05)
        self.kinds["cache redis"] = self.cache_redis

    async def close(self):
        await self.stores.stop()
        if self.server is not None:
            await self.cache.close()
            self.server.terminate()
            self.server.wait()
        self.raw.close()
        self.raw_log.close()
        os.close(self.plain)
        os.close(self.journal)

    async def measure(self, kind):
        """Operations per second of one kind, and per second of this process's CPU time."""
        began, cpu = time.perf_counter(), time.process_time()
        done = await self.kinds[kind](began + self.seconds)
        return done / (time.perf_counter() - began), done / (time.process_time() - cpu)

    def grouped(self, connection, until, rows, insert):
        done = 0
        while time.perf_counter() < until:
            connection.execute("BEGIN").fetchall()
            for _ in range(rows):
                insert()
            connection.execute("COMMIT").fetchall()
            done += rows
        return done

    async def raw_appends(self, until):
        def insert():
            self.raw_id += 1
            self.raw.execute(INSERT, (self.raw_id, VALUE)).fetchall()

        return self.grouped(self.raw, until, WRITERS, insert)

    async def raw_random(self, until):
        def insert():
            self.raw.execute("INSERT INTO pair VALUES (?1, ?2)", (self.rng.randbytes(16), VALUE)).fetchall()

        return self.grouped(self.raw, until, WRITERS, insert)

    async def raw_events(self, until):
        def insert():
            self.raw_log.execute("INSERT INTO batch (body) VALUES (?1)", (b"".join(BATCH),)).fetchall()

        return self.grouped(self.raw_log, until, PRODUCERS, insert) * len(BATCH)

    async def raw_fdatasync(self, until):
        body, done = b"".join(BATCH) * PRODUCERS, 0
        while time.perf_counter() < until:
            os.write(self.plain, body)
            os.fdatasync(self.plain)
            done += PRODUCERS * len(BATCH)
        return done

    async def raw_journal(self, until):
        """Groups of 50 rows to a plain file, as the journal of records writes them: over zeros, durable with the call."""
        body = b"".join(self.rng.randbytes(16) + b"s" + VALUE for _ in range(WRITERS))
        done, at, once = 0, 0, getattr(os, "RWF_DSYNC", 0)
        while time.perf_counter() < until:
            os.pwritev(self.journal, [body], at, once)
            if not once:
                os.fdatasync(self.journal)
            at = (at + len(body)) % (JOURNAL_BYTES - len(body))
            done += WRITERS
        return done

    async def raw_reads(self, until):
        done = 0
        while time.perf_counter() < until:
            for number in range(1_000):
                self.raw.execute(READ, ((done + number * 7_919) % READ_ROWS,)).fetchall()
            done += 1_000
        return done

    async def sql_reads(self, until):
        done = 0
        while time.perf_counter() < until:
            for number in range(1_000):
                await self.sql.read(READ, (done + number * 7_919) % READ_ROWS)
            done += 1_000
        return done

    async def records_reads(self, until):
        done = 0
        while time.perf_counter() < until:
            for number in range(1_000):
                await self.records.get(b"read", self.keys[(done + number * 7_919) % READ_ROWS])
            done += 1_000
        return done

    async def together(self, until, callers, one):
        done = 0

        async def caller(number):
            nonlocal done
            while time.perf_counter() < until:
                count = await one(number)  # on a line of its own: += would read `done` before waiting
                done += count

        await asyncio.gather(*[caller(number) for number in range(callers)])
        return done

    async def sql_appends(self, until):
        async def one(_number):
            self.next_id += 1
            await self.sql.commit([Statement(INSERT, (self.next_id, VALUE))])
            return 1

        return await self.together(until, WRITERS, one)

    async def records_random(self, until):
        async def one(_number):
            await self.records.write(self.rng.randbytes(16), [Put(b"s", VALUE)])
            return 1

        return await self.together(until, WRITERS, one)

    async def sustained(self, seconds):
        """Writes a second on end, window by window, with readers beside them; (mean, per CPU second), windows."""
        windows, done, until = [], 0, time.perf_counter() + seconds
        began, cpu, ran = time.perf_counter(), time.process_time(), _scheduled_s()
        readers = [asyncio.create_task(self.reader(number, until)) for number in range(READERS)]
        while (now := time.perf_counter()) < until:
            count = await self.records_random(min(until, now + WINDOW_S))
            windows.append(count / (time.perf_counter() - now))
            done += count
        await asyncio.gather(*readers)
        wall = time.perf_counter() - began
        mean = done / wall, done / (time.process_time() - cpu)
        self.loop = [(after - before) / wall for before, after in zip(ran, _scheduled_s(), strict=True)]
        return [(window, mean[1]) for window in windows], mean

    async def reader(self, number, until):
        """Look up what was there before, and what was not; each wait counts from when it was wanted."""
        rng = random.Random(number)
        keys = self.present_keys or [b"none"]
        while time.perf_counter() < until:
            due = time.perf_counter() + READ_EVERY_S
            await asyncio.sleep(READ_EVERY_S)
            began = time.perf_counter()
            key = rng.choice(keys)
            if rng.random() < 0.1:
                await self.records.scan(key, limit=10)
                self.waits["scan"].append(time.perf_counter() - began)
            else:
                await self.records.get(key, b"s")
                self.waits["get"].append(time.perf_counter() - due)
                self.waits["get alone"].append(time.perf_counter() - began)

    async def cache_redis(self, until):
        async def one(number):
            await self.cache.get(f"key {number}")
            return 1

        return await self.together(until, WRITERS, one)

    async def log_events(self, until):
        async def one(number):
            await self.log.append("events", number, BATCH)
            return len(BATCH)

        return await self.together(until, PRODUCERS, one)


def rows(rounds, present=PRESENT, sustained=SUSTAINED):
    """The kinds that the runtime's table names too, by round; the sustained one by windows."""
    kinds = ("raw random", "raw journal", "records random", "cache redis")
    found, _ = _loop_run(measured(rounds, SECONDS, present, sustained, kinds=kinds))
    return {kind: [wall for wall, _ in figures] for kind, figures in found.items()}


def _loop_run(work):
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


async def measured(rounds, seconds, present, sustained, kinds=()):
    folder = Path(tempfile.mkdtemp(prefix="fourplane-bench-"))
    try:
        bench = Bench(folder, seconds, present)
        await bench.prepare(kinds)
        found = {kind: [] for kind in bench.kinds if not kinds or kind in kinds}
        for _ in range(rounds):
            for kind, figures in found.items():
                figures.append(await bench.measure(kind))
        counted = {"records.bench": bench.stores.statistics()["records.bench"].database}
        counted["log.bench"] = bench.stores.statistics()["log.bench"].writer
        counted["sql.bench"] = bench.stores.statistics()["sql.bench"]
        groups = {
            key: {"p50_ms": each.group_s_p50 * 1e3, "p99_ms": each.group_s_p99 * 1e3} for key, each in counted.items()
        }
        if sustained:
            found["records sustained"], _ = await bench.sustained(sustained)
            levels = bench.records.statistics().levels
            print(
                f"sustained: {levels.runs} runs, {levels.flushes} flushes, {levels.merged_rows} merged; the loop ran"
                f" {bench.loop[0]:.0%} of the time and waited {bench.loop[1]:.0%} of it for a core that others had",
                file=sys.stderr,
            )
            for kind, waits in bench.waits.items():
                waits.sort()
                groups[f"read under load, {kind}"] = (
                    {"p50_ms": waits[len(waits) // 2] * 1e3, "p99_ms": waits[len(waits) * 99 // 100] * 1e3}
                    if waits
                    else {"p50_ms": 0.0, "p99_ms": 0.0}
                )
        print(f"filled in {bench.filled_s:.0f} s", file=sys.stderr)
        await bench.close()
    finally:
        shutil.rmtree(folder)
    return found, groups


def run(options: argparse.Namespace) -> dict:
    rounds, seconds = getattr(options, "rounds", ROUNDS), getattr(options, "seconds", SECONDS)
    present, sustained = getattr(options, "present", PRESENT), getattr(options, "sustained", SUSTAINED)
    kinds = ("raw random", "raw journal", "records random") if getattr(options, "only", "") == "records" else ()
    found, groups = _loop_run(measured(rounds, seconds, present, sustained, kinds))
    found = {kind: figures for kind, figures in found.items() if figures}
    per_cpu = {kind: statistics.median(cpu for _, cpu in figures) for kind, figures in found.items()}
    found = {kind: [wall for wall, _ in figures] for kind, figures in found.items()}
    medians = {kind: statistics.median(figures) for kind, figures in found.items()}
    bars = {}
    for kind, (least, probe, share) in BARS.items():
        if kind not in found:
            continue
        if probe is None:
            bars[kind] = {"at_least": least, "holds": medians[kind] >= least}
            continue
        shares = statistics.median(one / bare for one, bare in zip(found[kind], found[probe], strict=True))
        holds = medians[kind] >= least or shares >= share
        bars[kind] = {"at_least": least, "probe": probe, "or_share": share, "share": round(shares, 3), "holds": holds}
    return {
        "system": "state",
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "model": _model()},
        "rounds": rounds,
        "writers": WRITERS,
        "figures": {
            kind: {
                "per_s": round(medians[kind]),
                "lowest": round(min(figures)),
                "highest": round(max(figures)),
                "per_cpu_s": round(per_cpu[kind]),
            }
            for kind, figures in found.items()
        },
        "groups": groups,
        "bars": bars,
    }


def _scheduled_s():
    """How long this thread has run, and how long it has waited for a core; zeros where the system does not say."""
    try:
        ran, waited, _ = Path("/proc/thread-self/schedstat").read_text().split()
    except (OSError, ValueError):
        return 0.0, 0.0
    return int(ran) / 1e9, int(waited) / 1e9


def _model():
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--present", type=int, default=PRESENT, help="rows with random keys before the first round")
    parser.add_argument(
        "--sustained", type=float, default=SUSTAINED, help="seconds of random writes on end, beside readers"
    )
    parser.add_argument(
        "--only", default="", choices=["", "records"], help="measure nothing but records with random keys"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = run(options)
    place = Path(__file__).parent / "results"
    place.mkdir(exist_ok=True)
    (place / "state.json").write_text(json.dumps(result, indent=1))
    if options.json:
        print(json.dumps(result))
        return
    for kind, figures in result["figures"].items():
        bar = result["bars"].get(kind)
        verdict = ""
        if bar is not None:
            held = "holds" if bar["holds"] else "MISSED"
            verdict = f"  bar {bar['at_least']:,}: {held}"
            if "probe" in bar:
                verdict = f"  {bar['share']:>5.0%} of {bar['probe']}; bar {bar['at_least']:,} or {bar['or_share']:.0%}: {held}"
        print(
            f"{kind:15} {figures['per_s']:>10,}/s ({figures['lowest']:,} to {figures['highest']:,}),"
            f" {figures['per_cpu_s']:,} per CPU s{verdict}"
        )
    for store, group in result["groups"].items():
        print(
            f"{store:28} {'' if 'read' in store else 'group commit '}p50 {group['p50_ms']:.2f} ms, p99 {group['p99_ms']:.2f} ms"
        )


if __name__ == "__main__":
    main()

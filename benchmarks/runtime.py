"""The runtime's own costs: actors, calls, policies, timers, two-phase commits, tokens; killed workers, two cores against one.

Each figure alternates with a bare probe in the same round (a bare await, the loop's `call_later`), so that a noisy machine
moves both; the medians of all rounds are shown. Work that waits for nothing is measured in CPU time, commits in both. Records and
the cache on Redis are measured by benchmarks/state.py.

    ./fourplane bench runtime        python -m benchmarks.runtime [--rounds 5] [--actors 1000000]
"""

import argparse
import asyncio
import contextlib
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

from fourplane.control.fleet import COLLECT_AFTER
from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry
from fourplane.service.actor import Actor, Dispatcher
from fourplane.service.call import CallPolicy
from fourplane.service.key_ring import KeyRing
from fourplane.service.timer_wheel import TimerWheel
from fourplane.service.tokens import Signer
from fourplane.service.two_phase_commit import Branch, Coordinator
from fourplane.state.embedded.database import Database
from fourplane.state.embedded.sql import EmbeddedSql

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import runtime_cores as cores
from benchmarks import runtime_processes as processes
from benchmarks import state
from benchmarks.peers import rpc_peers

BARS = {
    "actors_mb_per_million": ("at most", 250),
    "actor_messages_per_s": ("at least", 1_000_000),
    "policy_in_bare_awaits": ("at most", 4),
    "timer_rearm_us": ("at most", 0.2),
    "calls_50_in_flight_per_s": ("at least", 100_000),
    "calls_50_in_flight_p50_ms": ("at most", 1.0),
    "call_alone_us": ("at most", 100),
    "records_random_per_s": ("at least", 40_000),
    "records_sustained_per_s": ("at least", 40_000),
    "cache_redis_per_s": ("at least", 60_000),
    "killed_worker_first_answer_ms": ("at most", 1_000),
    "killed_worker_errors_until_then": ("at most", 0),
    "killed_shard_first_answer_ms": ("at most", 1_000),
    "killed_shard_messages_lost": ("at most", 0),
    "two_cores_messages_ratio": ("at least", 1.8),
    "two_cores_messages_unarchived_ratio": ("at least", 1.8),
    "two_cores_requests_ratio": ("at least", 1.8),
}


class Counting(Actor):
    __slots__ = ("count",)

    def __init__(self):
        self.count = 0

    def receive(self, message):
        self.count += message


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def actor_memory(count):
    """Bytes per spawned actor, its place in a list of all included."""
    dispatcher = Dispatcher()
    gc.collect()
    before = resident_bytes()
    actors = [Counting() for _ in range(count)]
    for actor in actors:
        dispatcher.spawn(actor)
    return (resident_bytes() - before) / count, actors, dispatcher


async def actor_messages(actors, dispatcher, *, per_actor):
    """Messages per second through many actors, told and received."""
    began = time.process_time()
    for actor in actors:
        tell = actor.tell
        for _ in range(per_actor):
            tell(1)
    while dispatcher.statistics().ready:
        await asyncio.sleep(0)
    return len(actors) * per_actor / (time.process_time() - began)


async def nothing():
    return None


async def policy_overhead(calls=50_000):
    """Microseconds of a bare await, and of the same under a policy."""
    policy = CallPolicy("bench")
    began = time.process_time()
    for _ in range(calls):
        await nothing()
    bare = time.process_time() - began
    run = policy.run
    began = time.process_time()
    for _ in range(calls):
        await run(nothing)
    under = time.process_time() - began
    return bare / calls * 1e6, under / calls * 1e6


def timers(count=100_000):
    """Microseconds of arming, pushing back and cancelling on the wheel, and of `call_later` and cancel on the loop."""
    loop = asyncio.get_running_loop()
    wheel = TimerWheel(loop.time, on_error=print)
    now = loop.time()
    began = time.process_time()
    armed = [wheel.at(now + 30, print) for _ in range(count)]
    arm = time.process_time() - began
    later = now + 31
    began = time.process_time()
    for timer in armed:
        timer.rearm_at(later)
    rearm = time.process_time() - began
    began = time.process_time()
    for timer in armed:
        timer.cancel()
    cancel = time.process_time() - began
    began = time.process_time()
    for _ in range(count):
        loop.call_later(30, print).cancel()
    bare = time.process_time() - began
    return [seconds / count * 1e6 for seconds in (arm, rearm, cancel, bare)]


class Voting:
    """A participant that only says yes: what is left is the coordinator."""

    async def prepare(self, transaction, work):
        return None

    async def commit(self, transaction):
        return None

    async def abort(self, transaction):
        return None

    async def in_doubt(self, coordinator):
        return ()


async def commits(folder, *, count, at_once):
    """Transactions per second with a durable decision each, and how many writes they shared."""
    database = await Database(folder / f"decisions-{at_once}.db").open()
    coordinator = Coordinator(EmbeddedSql(database), "bench", {"a": Voting(), "b": Voting()}, ids=IdGenerator())
    lifecycle = Lifecycle(Registry())
    lifecycle.add("coordinator", coordinator)
    await lifecycle.start()
    branches = [Branch("a", None), Branch("b", None)]

    async def buyer(turns):
        for _ in range(turns):
            await coordinator.run(branches)

    began, began_cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(buyer(count // at_once) for _ in range(at_once)))
    rate = count / (time.perf_counter() - began)
    cpu_us = (time.process_time() - began_cpu) / count * 1e6
    writes = coordinator.statistics().decision_writes
    await lifecycle.stop()
    await database.close()
    return rate, cpu_us, count / writes


def tokens(count=20_000):
    """Microseconds to sign and to verify."""
    signer = Signer(KeyRing.in_memory())
    claims = {"title": "ttl_0c2t9"}
    began = time.process_time()
    for _ in range(count):
        token = signer.sign("media", claims, 60)
    sign = time.process_time() - began
    began = time.process_time()
    for _ in range(count):
        signer.verify("media", token)
    return sign / count * 1e6, (time.process_time() - began) / count * 1e6


def actors_count(options):
    return getattr(options, "actors", 0) or (100_000 if getattr(options, "quick", False) else 1_000_000)


async def one_round(options, figures):
    def note(name, value):
        figures.setdefault(name, []).append(value)

    per_actor, actors, dispatcher = await actor_memory(actors_count(options))
    if not figures:  # later rounds reuse what the first one gave back
        note("actors_mb_per_million", per_actor)
    note("actor_messages_cold_per_s", await actor_messages(actors, dispatcher, per_actor=1))
    note("actor_messages_per_s", await actor_messages(actors[: actors_count(options) // 10], dispatcher, per_actor=10))
    began = time.perf_counter()
    gc.collect()
    note("full_gc_with_actors_ms", (time.perf_counter() - began) * 1e3)
    del actors
    bare, under = await policy_overhead()
    note("bare_await_us", bare)
    note("policy_us", under)
    note("policy_in_bare_awaits", under / bare)
    for name, value in zip(("arm", "rearm", "cancel"), (found := timers())[:3], strict=True):
        note(f"timer_{name}_us", value)
    note("loop_call_later_us", found[3])
    with tempfile.TemporaryDirectory() as folder:
        for at_once in (1, 64):
            rate, cpu_us, shared = await commits(Path(folder), count=500 if at_once == 1 else 6_400, at_once=at_once)
            note(f"commits_{at_once}_at_once_per_s", rate)
            note(f"commits_{at_once}_cpu_us", cpu_us)
            note(f"commits_{at_once}_per_write", shared)
    sign, verify = tokens()
    note("token_sign_us", sign)
    note("token_verify_us", verify)


def run(options: argparse.Namespace) -> dict:
    figures: dict[str, list[float]] = {}
    with contextlib.suppress(ImportError):
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    gc.set_threshold(*COLLECT_AFTER)  # as every worker does
    rounds = getattr(options, "rounds", None) or 5
    for _ in range(rounds):
        asyncio.run(one_round(options, figures))
    with processes.serving() as folder:
        for _ in range(rounds):
            asyncio.run(
                processes.measure(folder, figures, calls=10_000 if getattr(options, "quick", False) else 50_000)
            )
    rpc_peers.run(figures)
    for _ in range(1 if getattr(options, "quick", False) else rounds):
        processes.killed_worker(figures)
        cores.killed_shard(figures)
        cores.two_cores(figures)
    short = {"present": 50_000, "sustained": 3.0} if getattr(options, "quick", False) else {}
    for kind, values in state.rows(rounds, **short).items():
        if values:  # there is an engine for it here
            figures[kind.replace(" ", "_") + "_per_s"] = values
    medians = {name: statistics.median(values) for name, values in figures.items()}
    bars = {}
    for name, (kind, bar) in BARS.items():
        if name not in medians:  # no Redis here
            continue
        reached = medians[name] <= bar if kind == "at most" else medians[name] >= bar
        bars[name] = {"bar": f"{kind} {bar}", "median": medians[name], "reached": reached}
    machine = {"python": platform.python_version(), "cpus": os.cpu_count(), "machine": platform.machine()}
    return {
        "system": "runtime",
        "machine": machine,
        "rounds": len(figures["bare_await_us"]),
        "medians": medians,
        "bars": bars,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--actors", type=int, default=0)
    result = run(parser.parse_args())
    for name, value in result["medians"].items():
        bar = result["bars"].get(name)
        print(f"{name:32} {value:14,.2f}" + (f"   {bar['bar']}: {'yes' if bar['reached'] else 'NO'}" if bar else ""))
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / "runtime.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

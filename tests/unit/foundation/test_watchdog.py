"""Callbacks that compute too long are counted and named; many short ones, and those that only wait, are not."""

import asyncio
import signal
import threading
import time

import pytest

from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Registry
from fourplane.foundation.watchdog import Watchdog, WatchdogSettings


def compute(seconds):
    """Use CPU time, in Python."""
    until_s = time.thread_time() + seconds
    while time.thread_time() < until_s:
        pass


def compute_in_c(numbers):
    return sum(range(numbers))


async def holds_the_loop():
    compute(0.08)


async def steps(count, seconds):
    for _ in range(count):
        compute(seconds)
        await asyncio.sleep(0)


def watched(work, **settings):
    """The watchdog and its events after `work()` ran on a loop of its own."""

    async def main():
        registry = Registry()
        dog = Watchdog(registry, WatchdogSettings(**settings))
        await dog.start(Tasks("watchdog", asyncio.get_running_loop().create_future()))
        await work()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        found = dog.statistics()
        await dog.stop()
        return found, [event for event in registry.events if event.source == "watchdog"]

    return asyncio.run(main())


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_callback_that_computes_too_long_is_counted_and_named(loop):
    async def work():
        await asyncio.create_task(holds_the_loop())

    if loop == "uvloop":
        pytest.importorskip("uvloop").install()
    try:
        found, [event] = watched(work)
    finally:
        asyncio.set_event_loop_policy(None)
    assert found.watching
    assert found.held_total == 1
    [place] = found.places
    assert "holds_the_loop" in place
    assert "test_watchdog.py" in place
    assert "holds_the_loop" in event.text
    assert 20 < int(event.fields["held_ms"]) <= 80


def test_a_plain_callback_is_named_too():
    async def work():
        asyncio.get_running_loop().call_soon(compute, 0.08)
        await asyncio.sleep(0)

    found, _ = watched(work)
    assert [name.split()[0] for name in found.places] == ["compute"]


def test_one_long_call_into_c_is_seen_when_it_returns():
    began_s = time.thread_time()
    compute_in_c(1_000_000)
    numbers = int(1_000_000 * 0.15 / (time.thread_time() - began_s))

    async def work():
        asyncio.get_running_loop().call_soon(compute_in_c, numbers)
        await asyncio.sleep(0)

    found, _ = watched(work)
    assert found.held_total == 1
    assert "compute_in_c" in next(iter(found.places))


def test_many_short_steps_of_one_task_are_no_hold():
    found, events = watched(lambda: steps(100, 0.002))
    assert (found.held_total, events) == (0, [])


def test_many_short_steps_of_many_tasks_are_no_hold():
    async def work():
        async with asyncio.TaskGroup() as group:
            for _ in range(50):
                group.create_task(steps(3, 0.001))

    found, events = watched(work)
    assert (found.held_total, events) == (0, [])


def test_a_callback_that_only_waits_is_no_hold():
    async def work():
        time.sleep(0.05)  # noqa: ASYNC251 - what a machine does that runs others meanwhile

    found, events = watched(work)
    assert (found.held_total, events) == (0, [])


def test_one_place_is_told_once_a_minute():
    async def work():
        for _ in range(3):
            await asyncio.create_task(holds_the_loop())

    found, events = watched(work)
    assert found.held_total == 3
    assert len(events) == 1


def test_the_timer_ends_with_the_watchdog():
    watched(holds_the_loop)
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGPROF) is signal.SIG_IGN


def test_outside_of_the_main_thread_it_stays_off():
    seen = []
    thread = threading.Thread(target=lambda: seen.append(watched(holds_the_loop)))
    thread.start()
    thread.join()
    [(found, events)] = seen
    assert (found.watching, found.held_total, events) == (False, 0, [])

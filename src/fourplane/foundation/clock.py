"""Time, sleep, randomness: one of the four seams to the outside world.

Everything that asks for the time or for chance asks here, so that the simulator can answer instead of the machine.
A `Source` is installed once per process (live) or per world (simulated); the functions below only forward to it, and
`monotonic_s` is its very own, so that a live process asks the machine directly. Cost: 0.05 us a call live, 0.1 us for the others.
"""

import asyncio
import random as _random
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Source(Protocol):
    """Where time and chance come from; the live machine and the simulator's world implement it."""

    def now_us(self) -> int: ...
    def monotonic_s(self) -> float: ...
    def cpu_s(self) -> float: ...
    def random(self) -> _random.Random: ...
    def token_bytes(self, count: int) -> bytes: ...


class MachineSource:
    """The real clock and the operating system's randomness."""

    __slots__ = ("_random",)

    def __init__(self) -> None:
        self._random = _random.Random(secrets.randbits(128))

    def now_us(self) -> int:
        return time.time_ns() // 1_000

    monotonic_s = staticmethod(time.monotonic)

    def cpu_s(self) -> float:
        return time.process_time()

    def random(self) -> _random.Random:
        return self._random

    def token_bytes(self, count: int) -> bytes:
        return secrets.token_bytes(count)


_source: Source = MachineSource()

# Seconds on a clock that never goes back; its zero means nothing. Written `clock.monotonic_s()` always: who keeps the function
# itself keeps a source.
monotonic_s: Callable[[], float] = _source.monotonic_s


def now_us() -> int:
    """UTC wall clock in microseconds since 1970; may jump, so never measure with it."""
    return _source.now_us()


def cpu_s() -> float:
    """CPU seconds this process has used."""
    return _source.cpu_s()


def thread_cpu_s() -> float:
    """CPU seconds the calling thread has used, of the machine always: virtual time has none. For the watchdog."""
    return time.thread_time()


async def sleep(seconds: float) -> None:
    """Wait on the running loop, virtual or real."""
    await asyncio.sleep(seconds)


def pause(seconds: float) -> None:
    """Block the whole thread: only for a process that has no loop."""
    time.sleep(seconds)


def random() -> _random.Random:
    """The generator for everything that is not a secret: jitter, sampling, workloads."""
    return _source.random()


def token_bytes(count: int) -> bytes:
    """Bytes nobody can guess (live) or that the seed decides (simulated): secrets, capabilities, nonces."""
    return _source.token_bytes(count)


def reseed_after_fork() -> None:
    """Give a forked child its own randomness; without it siblings would draw the same numbers."""
    if isinstance(_source, MachineSource):
        _source.random().seed(secrets.randbits(128))


def source() -> Source:
    """Who answers now; for a source that wraps it."""
    return _source


@contextmanager
def installed(source: Source) -> Iterator[Source]:
    """Let `source` answer within the block; used by the simulator and by tests that hold the clock still."""
    global _source, monotonic_s
    before, _source = _source, source
    monotonic_s = source.monotonic_s
    try:
        yield source
    finally:
        _source, monotonic_s = before, before.monotonic_s

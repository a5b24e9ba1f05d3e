"""Coarse deadlines: one timer for all connections of a server, one for all running handlers.

A connection sits in one bucket of a wheel; pushing its deadline further is one assignment, and the wheel finds out when
the bucket comes up. So a deadline costs nothing while requests flow, and a slow client is noticed within one tick.
Invariant: a connection is in exactly one bucket from `add` until it expires or is closed.
"""

import asyncio
from typing import Any, Protocol

from fourplane.foundation import clock

TICK_S = 0.5


class Deadlined(Protocol):
    """Something that must be asked when its time is up."""

    deadline_tick: int
    gone: bool

    def expire(self) -> None:
        """The deadline passed: close, or set `deadline_tick` further into the future."""


class Deadlines:
    """The wheel; it ticks only while somebody is on it, so an idle server (and the simulator) has no timer."""

    def __init__(self, tick_s: float = TICK_S) -> None:
        self.now = 0
        self._tick_s = tick_s
        self._buckets: dict[int, list[Deadlined]] = {}
        self._handle: asyncio.TimerHandle | None = None

    def ticks(self, seconds: float) -> int:
        """The tick that lies at least `seconds` ahead."""
        return self.now + int(seconds / self._tick_s) + 1

    def add(self, item: Deadlined) -> None:
        """Watch `item` from now on."""
        self._buckets.setdefault(max(item.deadline_tick, self.now + 1), []).append(item)
        if self._handle is None:
            self._handle = asyncio.get_running_loop().call_later(self._tick_s, self._tick)

    def close(self) -> None:
        """Forget everybody."""
        self._buckets.clear()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _tick(self) -> None:
        self._handle = None
        self.now += 1
        for item in self._buckets.pop(self.now, ()):
            if not item.gone and item.deadline_tick <= self.now:
                item.expire()
            if not item.gone:
                self._buckets.setdefault(max(item.deadline_tick, self.now + 1), []).append(item)
        if self._buckets and self._handle is None:
            self._handle = asyncio.get_running_loop().call_later(self._tick_s, self._tick)


class HandlerClock:
    """Cancels handlers that run past one common bound.

    All share the same bound, so the oldest entry is always the next to lapse: a dict in order of entry is the whole queue,
    and a handler that ends in time costs an insert and a delete.
    """

    def __init__(self, seconds_max: float) -> None:
        self._seconds_max = seconds_max
        self._running: dict[asyncio.Task[Any], float] = {}
        self._lapsed: dict[asyncio.Task[Any], None] = {}
        self._handle: asyncio.TimerHandle | None = None

    def enter(self, task: "asyncio.Task[Any]", now: float) -> None:
        """`task` begins a handler at `now`, in loop or monotonic seconds."""
        self._running[task] = now + self._seconds_max
        if self._handle is None:
            self._handle = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def leave(self, task: "asyncio.Task[Any]") -> bool:
        """The handler is through; True when it was this clock that cancelled it."""
        if self._running.pop(task, None) is not None:
            return False
        return self._lapsed.pop(task, False) is None

    def close(self) -> None:
        """Watch nobody any more."""
        self._running.clear()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _tick(self) -> None:
        now = clock.monotonic_s()
        while self._running:
            task = next(iter(self._running))
            if self._running[task] > now:
                break
            del self._running[task]
            self._lapsed[task] = None
            task.cancel()
        self._handle = asyncio.get_running_loop().call_later(TICK_S, self._tick) if self._running else None

"""One coarse timer for all connections of a server.

A connection sits in one bucket of a wheel; pushing its deadline further is one assignment, and the wheel finds out when
the bucket comes up. So a deadline costs nothing while requests flow, and a slow client is noticed within one tick.
Invariant: a connection is in exactly one bucket from `add` until it expires or is closed.
"""

import asyncio
from typing import Protocol

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

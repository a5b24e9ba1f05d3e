"""Work that a machine gives to threads, in virtual time: one job after the other per host and worker, each after a latency.

A job of a disk takes longer where its volume is replicated: it waits for a majority of the replicas (`volumes` says how long that
takes now, or None while no majority answers; then the jobs stay in line and are tried again). The result of every job exists only
when its time has come, so a crash in between loses it.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fourplane.simulator.loop import SimulatorLoop

BLOCKING_S = (0.000_1, 0.000_6)
AGAIN_S = 0.2
DISKS = ("database ", "frames ")
Volume = Callable[[], float | None]
Job = tuple["asyncio.Future[Any]", Callable[[], Any]]


class Workers:
    """All workers of a world."""

    def __init__(self, loop: "SimulatorLoop", chance: Random) -> None:
        self.stall_s: dict[str, float] = {}  # by host: how much longer each job takes
        self.volumes: dict[str, Volume] = {}  # by host: what a write waits for its replicas
        self._loop = loop
        self._chance = chance
        self._free: dict[tuple[str, str], float] = {}
        self._lines: dict[tuple[str, str], deque[Job]] = {}

    def submit(self, host: str, name: str, work: Callable[[], Any]) -> "asyncio.Future[Any]":
        """Run `work` after a virtual latency, in order per host and worker."""
        key = (host, name)
        now = self._loop.calendar.now_s
        delay = self._chance.uniform(*BLOCKING_S) + self.stall_s.get(host, 0.0)
        if self.volumes and name.startswith(DISKS) and host in self.volumes:
            delay += self.volumes[host]() or 0.0
        done = self._free[key] = max(now, self._free.get(key, 0.0)) + delay
        future = self._loop.create_future()
        self._lines.setdefault(key, deque()).append((future, work))
        self._loop.call_at(done, self._next, key, self._lines[key])
        return future

    def forget(self, host: str) -> None:
        """The host crashed: what waits there is never done."""
        self._free = {key: free for key, free in self._free.items() if key[0] != host}
        self._lines = {key: line for key, line in self._lines.items() if key[0] != host}

    def _next(self, key: tuple[str, str], line: deque[Job]) -> None:
        """Do the first job in line, or look again later while its replicas do not answer."""
        volume = self.volumes.get(key[0])
        if volume is not None and key[1].startswith(DISKS) and volume() is None:
            self._loop.call_later(AGAIN_S, self._next, key, line)
            return
        future, work = line.popleft()
        if future.cancelled():
            return
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - it belongs to whoever awaits
            future.set_exception(error)
        else:
            future.set_result(result)

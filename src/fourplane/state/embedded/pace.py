"""When work that can wait takes its steps: while the loop has nothing to do but to wait for the disk.

A group of writes that the disk has leaves the loop idle for a tenth of a millisecond and more. Whoever waits for its turn goes on
then, not before: what runs earlier holds up the thread that brings the group to the disk. A turn has twice as many rows as
the group had: what is paid for while it is caused never falls behind. Without writes a turn comes every `QUIET_S`.
"""

import asyncio
import math
from collections.abc import Callable
from functools import partial

from fourplane.foundation import clock

QUIET_S = 0.02
BUSY_PER_S = 5_000  # more rows written than this, over about `MEMORY_S`: no quiet moment
MEMORY_S = 0.25  # long enough that a disk that hangs does not look like writers that rest
ROWS_QUIET = 200
SHARE = 2  # a row is placed, written and let go of in 1.4 steps
ROWS_LEAST, ROWS_MOST = 32, 1_000


class Pace:
    """Hands out turns; the answer of each is how many rows a step may have."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[int]] = []
        self._rows = 0.0  # written lately; each counts less the longer ago it was
        self._rows_at = clock.monotonic_s()

    def sent(self, rows: int) -> Callable[[], None] | None:
        """A group of so many rows is on its way; what to call when the disk has it, None when nobody waits for that."""
        self._rows = self._lately() + rows
        return partial(self._go_on, rows) if self._waiting else None

    def hurry(self) -> None:
        """Whoever waits goes on at once."""
        self._go_on(0)

    def _go_on(self, rows: int) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(min(ROWS_MOST, max(ROWS_LEAST, SHARE * rows)))
        self._waiting.clear()

    async def at_once(self) -> int:
        """Let others run, no more."""
        await clock.sleep(0)
        return ROWS_QUIET

    async def in_passing(self) -> int:
        """Wait for a group on its way to the disk, or for `QUIET_S`."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[int] = loop.create_future()
        self._waiting.append(waiting)
        timer = loop.call_later(QUIET_S, _set, waiting)
        try:
            return await waiting
        finally:
            timer.cancel()

    async def look(self) -> bool:
        """Wait for `QUIET_S`; whether it was quiet."""
        await clock.sleep(QUIET_S)
        self._rows = self._lately()
        return self._rows <= BUSY_PER_S * MEMORY_S

    def _lately(self) -> float:
        now_s, before_s = clock.monotonic_s(), self._rows_at
        self._rows_at = now_s
        return self._rows * math.exp((before_s - now_s) / MEMORY_S)


def _set(waiting: "asyncio.Future[int]") -> None:
    if not waiting.done():
        waiting.set_result(ROWS_QUIET)

"""When work that can wait takes its steps: while the loop has nothing to do but to wait for the disk.

A group of writes that was handed to the disk leaves the loop idle for a tenth of a millisecond and more. `sent` is called
then, and whoever waits for its turn goes on, with three times as many rows as the group had: what is paid for while it is caused
never falls behind. Without writes a turn comes every `QUIET_S`.
"""

import asyncio
import math

from fourplane.foundation import clock

QUIET_S = 0.02
BUSY_PER_S = 5_000  # more rows written than this, over about `MEMORY_S`: no quiet moment
MEMORY_S = 0.25  # long enough that a disk that hangs does not look like writers that rest
ROWS_QUIET = 200
ROWS_LEAST, ROWS_MOST = 32, 1_000


class Pace:
    """Hands out turns; the answer of each is how many rows a step may have."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[int]] = []
        self._rows = 0.0  # written lately; each counts less the longer ago it was
        self._rows_at = clock.monotonic_s()

    def sent(self, rows: int) -> None:
        """A group of so many rows is on its way to the disk."""
        self._rows = self._lately() + rows
        if self._waiting:
            for waiting in self._waiting:
                if not waiting.done():
                    waiting.set_result(min(ROWS_MOST, max(ROWS_LEAST, 3 * rows)))
            self._waiting.clear()

    def hurry(self) -> None:
        """Whoever waits goes on at once."""
        self.sent(0)

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

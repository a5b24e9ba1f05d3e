"""The connections of one kind to one PostgreSQL, opened as they are needed.

Commits take a connection for themselves (`idle`), because one waits for another's locks; whoever finds none waits for the
next that is free. Reads share (`shared`): a read goes to a connection where nothing is under way, to a new one while there may be
more, or behind the fewest others.
Bounds: `most` connections, `waiting_max` callers; nobody waits longer than `timeout_s` for a connection.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from fourplane.foundation.errors import Overloaded
from fourplane.state.engines.postgres_line import Line, LineLost


class Lines:
    """Connections as `opener` makes them."""

    def __init__(self, opener: Callable[[], Awaitable[Line]], *, most: int, waiting_max: int, timeout_s: float) -> None:
        self._opener = opener
        self._most = most
        self._waiting_max = waiting_max
        self._timeout_s = timeout_s
        self._lines: list[Line] = []
        self._free: list[Line] = []
        self._opening = 0
        self._first = asyncio.Lock()
        self._waiting: deque[asyncio.Future[Line | None]] = deque()
        self._quiet = asyncio.Event()
        self._closed = False

    @property
    def count(self) -> int:
        """Connections that are open."""
        return len(self._lines)

    @property
    def idle_count(self) -> int:
        """Those where nothing is under way."""
        return sum(line.underway == 0 for line in self._lines)

    @property
    def waiting(self) -> int:
        """Callers without a connection, and exchanges behind others on theirs."""
        return len(self._waiting) + sum(max(0, line.underway - 1) for line in self._lines)

    async def idle(self) -> Line:
        """A connection that nobody else uses until its next exchange has ended; the caller begins one at once.

        Raises Overloaded, TimeoutError, or what opening raises.
        """
        async with asyncio.timeout(self._timeout_s):
            while True:
                self._refuse_closed()
                if self._free:
                    return self._free.pop()
                if len(self._lines) + self._opening < self._most:
                    return await self._open()
                if (line := await self._turn()) is not None:
                    return line

    async def shared(self) -> Line:
        """The connection with the least to do. Raises Overloaded, TimeoutError, or what opening raises."""
        self._refuse_closed()
        best = min(self._lines, key=_underway, default=None)
        if best is not None and best.underway == 0:
            return best
        if self.waiting >= self._waiting_max:
            raise self._too_many()
        async with asyncio.timeout(self._timeout_s):
            if best is None:
                async with self._first:
                    return self._lines[0] if self._lines else await self._open()
            return best if len(self._lines) + self._opening >= self._most else await self._open()

    async def close(self) -> None:
        """Wait until nothing is under way, then say goodbye everywhere."""
        self._closed = True
        while any(line.underway for line in self._lines):
            self._quiet.clear()
            await self._quiet.wait()
        for line in list(self._lines):
            line.close()

    def abort(self) -> None:
        """Cut all connections."""
        self._closed = True
        for line in list(self._lines):
            line.abort()

    async def _open(self) -> Line:
        self._opening += 1
        try:
            line = await self._opener()
        except BaseException:
            self._wake(None)
            raise
        finally:
            self._opening -= 1
        if self._closed:
            line.close()
            self._refuse_closed()
        line.on_idle, line.on_lost = self._is_idle, self._is_lost
        self._lines.append(line)
        return line

    async def _turn(self) -> Line | None:
        if len(self._waiting) >= self._waiting_max:
            raise self._too_many()
        future: asyncio.Future[Line | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and (line := future.result()) is not None:
                self._is_idle(line)
            raise

    def _is_idle(self, line: Line) -> None:
        self._quiet.set()
        if not line.lost and not self._wake(line):
            self._free.append(line)

    def _is_lost(self, line: Line) -> None:
        self._quiet.set()
        if line in self._lines:
            self._lines.remove(line)
        if line in self._free:
            self._free.remove(line)
        self._wake(None)

    def _wake(self, line: Line | None) -> bool:
        """Give the one who waits longest a connection, or (None) a reason to look again; False when nobody waits."""
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(line)
                return True
        return False

    def _refuse_closed(self) -> None:
        if self._closed:
            raise LineLost("the store is closed")

    def _too_many(self) -> Overloaded:
        return Overloaded(f"{self.waiting} callers wait for PostgreSQL", retry_after_s=0.2)


def _underway(line: Line) -> int:
    return line.underway

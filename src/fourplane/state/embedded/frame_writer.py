"""Many callers' frames as few writes: whatever waits while the disk is busy goes to it as one write and one sync.

The worker's one job a group is `FrameStore.write`; meanwhile the next group gathers. A write that failed (a full disk) refuses
its group and everything behind it, because owners may have numbered that on top; then writing goes on. A failed sync
is final, as in `database`. Bounds: `queue_bytes_max` waiting bytes, then Overloaded.
"""

import asyncio
import errno
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.blocking import Worker
from fourplane.foundation.errors import FourplaneError, Overloaded, Unavailable
from fourplane.foundation.telemetry import Histogram
from fourplane.state.embedded.segments import Frame, FrameStore, SyncFailed

T = TypeVar("T")
_FRAME_COST_BYTES = 100


class WriterSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of one writer of frames."""

    segment_bytes: int = 64 << 20
    group_bytes_max: int = 8 << 20
    queue_bytes_max: int = 64 << 20


class WriterStatistics(msgspec.Struct, frozen=True):
    """What one writer of frames did; durations in seconds."""

    groups: int
    waiting: int
    waiting_bytes: int
    group_s_p50: float
    group_s_p99: float
    failed: str


class _Waiting(msgspec.Struct, Generic[T], gc=False):
    owner: T
    size: int
    futures: "list[asyncio.Future[None]]"
    key: int = 0
    count: int = 0
    body: bytes = b""


class FrameWriter(Generic[T]):
    """Writes frames for owners. `written(owners, frames)` before callers hear; `refused(owners)` before theirs hear.

    Who `share`s makes one frame with all who share it: `gather` is its owner, made when the first one comes, and `joined` says
    what it has become when it is its turn, count and body. `sent(count)`: a group is on its way; what it returns, if anything, is
    called on the loop when the disk has it, which leaves the loop a moment.
    """

    def __init__(
        self,
        frames: FrameStore,
        name: str,
        settings: WriterSettings,
        *,
        written: Callable[[Sequence[T], Sequence[Frame]], None],
        refused: Callable[[Sequence[T]], None],
        gather: Callable[[], T] | None = None,
        joined: Callable[[T], tuple[int, bytes]] | None = None,
        sent: Callable[[int], Callable[[], None] | None] | None = None,
    ) -> None:
        self.frames = frames
        self.worker = Worker(f"frames of {name}", queue_max=64)
        self.failed: FourplaneError | None = None
        self._name = name
        self._settings = settings
        self._on_written = written
        self._on_refused = refused
        self._gather = gather
        self._joined = joined
        self._gathering: _Waiting[T] | None = None  # the last of the queue, while it may be shared
        self._loop: asyncio.AbstractEventLoop
        self._on_sent = sent
        self._queue: deque[_Waiting[T]] = deque()
        self._queue_bytes = self._groups = 0
        self._busy = self._scheduled = self._open = False
        self._idle: asyncio.Future[None] | None = None
        self._next: asyncio.Future[None] | None = None
        self._group_s = Histogram()

    async def open(self, start: int) -> list[Frame]:
        """Check the frames from `start` on and return them; raises Corrupt or Unavailable."""
        try:
            found = await self.worker.submit(self.frames.open, start)
        except OSError as error:
            raise Unavailable(f"{self._name}: {error}", code="disk_failed", file=self._name) from error
        self._open = True
        self._loop = asyncio.get_running_loop()
        return found

    def check(self) -> None:
        """Raise what `put` would raise, before the owner numbers anything."""
        if self.failed is not None:
            raise self.failed
        if not self._open:
            raise Unavailable(f"{self._name} is closed", code="closed")
        if self._queue_bytes > self._settings.queue_bytes_max:
            raise Overloaded(f"{len(self._queue)} writes wait for {self._name}", retry_after_s=0.1)

    def put(self, owner: T, key: int, count: int, body: bytes) -> "asyncio.Future[None]":
        """Queue one frame; the future is done when it is durable."""
        self.check()
        future: asyncio.Future[None] = self._loop.create_future()
        size = len(body) + _FRAME_COST_BYTES
        self._queue.append(_Waiting(owner, size, [future], key, count, body))
        self._queue_bytes += size
        if not self._scheduled and not self._busy:
            self._scheduled = True
            self._loop.call_soon(self._flush)
        return future

    def share(self, size: int) -> "tuple[T, asyncio.Future[None]]":
        """`size` bytes in the frame that gathers: its owner, to be added to at once, and a future for when it is durable."""
        if self.failed is not None or not self._open or self._queue_bytes > self._settings.queue_bytes_max:
            self.check()
        gathering = self._gathering
        if gathering is None or gathering.size >= self._settings.group_bytes_max:
            assert self._gather is not None
            gathering = self._gathering = _Waiting(self._gather(), 0, [])
            self._queue.append(gathering)
            if not self._scheduled and not self._busy:
                self._scheduled = True
                self._loop.call_soon(self._flush)
        gathering.size += size
        self._queue_bytes += size
        future: asyncio.Future[None] = self._loop.create_future()
        gathering.futures.append(future)
        return gathering.owner, future

    @property
    def busy(self) -> bool:
        """Whether anything is not durable yet."""
        return self._busy or bool(self._queue)

    async def settle(self) -> None:
        """Wait until what is queued now is durable or refused (a queue of many groups: the next two of them)."""
        wanted = self._groups + 2
        while self.busy and self._groups < wanted:
            self._next = self._next or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._next)

    async def drain(self) -> None:
        """Wait until nothing is queued."""
        while self._busy or self._queue:
            self._idle = self._idle or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._idle)

    async def close(self) -> None:
        """Finish what is queued and let go of the files."""
        if not self._open:
            return
        await self.drain()
        self._open = False
        try:
            await self.worker.submit(self.frames.close)
        finally:
            self.worker.close()

    def abandon(self) -> None:
        """Let go without finishing anything, as a killed process would."""
        self._open = False
        self._fail(Unavailable(f"{self._name} was abandoned", code="closed"))
        self.worker.close()
        self.frames.close()

    def statistics(self) -> WriterStatistics:
        return WriterStatistics(
            groups=self._groups,
            waiting=len(self._queue),
            waiting_bytes=self._queue_bytes,
            group_s_p50=self._group_s.quantile(0.5),
            group_s_p99=self._group_s.quantile(0.99),
            failed=self.failed.message if self.failed else "",
        )

    def _flush(self) -> None:
        """Send what waits to the disk, or say that there is nothing."""
        self._scheduled = False
        if self._busy:
            return
        queue = self._queue
        if not queue:
            if self._idle is not None and not self._idle.done():
                self._idle.set_result(None)
            self._idle = None
            return
        self._busy = True
        stall_s = self.frames.take_stall_s()
        if stall_s:
            asyncio.get_running_loop().call_later(stall_s, self._send)
        else:
            self._send()

    def _send(self) -> None:
        queue = self._queue
        group = [queue.popleft()]
        size = group[0].size
        if self._joined is None:
            while queue and size + queue[0].size <= self._settings.group_bytes_max:
                group.append(queue.popleft())
                size += group[-1].size
            bodies = [(each.key, each.count, each.body) for each in group]
        else:
            if not queue:
                self._gathering = None
            bodies = [(0, *self._joined(group[0].owner))]
        self._queue_bytes -= size
        resting = self._on_sent(sum([count for _, count, _ in bodies])) if self._on_sent is not None else None
        begun = None if resting is None else partial(self._loop.call_soon_threadsafe, resting)
        done = self.worker.submit(self.frames.write, bodies, begun)
        done.add_done_callback(partial(self._written, group, clock.monotonic_s()))

    def _written(self, group: list[_Waiting[T]], began: float, done: "asyncio.Future[list[Frame]]") -> None:
        self._busy = False
        self._groups += 1
        self._group_s.record(clock.monotonic_s() - began)
        error = Unavailable("the loop has ended") if done.cancelled() else done.exception()
        if error is not None:
            told = self._told(error)
            self._refuse(group, told)
            if isinstance(error, SyncFailed):
                self.failed = told
        else:
            self._on_written([waiting.owner for waiting in group], done.result())
            for waiting in group:
                for future in waiting.futures:
                    if not future.done():
                        future.set_result(None)
        if self._next is not None:
            self._next.set_result(None)
            self._next = None
        self._flush()

    def _refuse(self, group: list[_Waiting[T]], told: FourplaneError) -> None:
        """Also those behind the group: their owners numbered them on top of it."""
        group = [*group, *self._queue]
        self._queue.clear()
        self._queue_bytes = 0
        self._gathering = None
        self._on_refused([waiting.owner for waiting in group])
        for waiting in group:
            for future in waiting.futures:
                if not future.done():
                    future.set_exception(told)

    def _fail(self, told: FourplaneError) -> None:
        self.failed = told
        self._refuse([], told)

    def _told(self, error: BaseException) -> FourplaneError:
        name = self._name
        if isinstance(error, SyncFailed):
            return Unavailable(f"{name} could not be synced ({error}); open it again", code="sync_failed", file=name)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return Unavailable(f"the disk is full: {name}", code="disk_full", file=name)
        return Unavailable(f"the disk failed: {name}: {error}", code="disk_failed", file=name)

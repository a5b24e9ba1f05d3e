"""Work that would hold the loop: one of the four seams to the outside world.

Live, a `Worker` is one named thread with a bounded queue; in the simulator the same call runs inline after a virtual
latency, so that order and time stay those of the seed. Which of the two is decided by the running loop: a loop that
has an attribute `blocking_inline` runs it itself.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar, cast

from fourplane.foundation.errors import Overloaded, Unavailable

T = TypeVar("T")
Tell = Callable[[Any, BaseException | None], object]
Job = tuple[Callable[..., Any], tuple[Any, ...], asyncio.AbstractEventLoop, Tell]


class InlineLoop(Protocol):
    """What the simulator's loop offers instead of threads."""

    def blocking_inline(self, name: str, work: Callable[[], T]) -> "asyncio.Future[T]": ...


class Worker:
    """One named thread that runs jobs in the order they were given; at most `queue_max` wait."""

    def __init__(self, name: str, *, queue_max: int = 10_000) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()  # in C: 10 us there and back, 13 with `Queue`
        self._queue_max = queue_max
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, work: Callable[..., T], *args: object) -> "asyncio.Future[T]":
        """Queue one job and return its future at once; raises Overloaded when the queue is full."""
        if self._closed:
            raise Unavailable(f"worker {self._name} is closed")
        loop = asyncio.get_running_loop()
        inline = getattr(loop, "blocking_inline", None)
        if inline is not None:
            return cast("InlineLoop", loop).blocking_inline(self._name, lambda: work(*args))
        future: asyncio.Future[T] = loop.create_future()
        self._put((work, args, loop, partial(_settle, future)))
        return future

    def call(self, then: Callable[[BaseException | None], object], work: Callable[..., object], *args: object) -> None:
        """Queue one job; `then` hears how it ended in the very turn of the loop that learns of it.

        A future tells a turn later, and under load a turn is milliseconds. Raises Overloaded like `submit`.
        """
        if self._closed:
            raise Unavailable(f"worker {self._name} is closed")
        loop = asyncio.get_running_loop()
        if getattr(loop, "blocking_inline", None) is not None:
            self.submit(work, *args).add_done_callback(lambda done: then(_error_of(done)))
            return
        self._put((work, args, loop, lambda _, error: then(error)))

    def _put(self, job: Job) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        if self._jobs.qsize() >= self._queue_max:
            raise Overloaded(f"worker {self._name} has {self._queue_max} jobs waiting")
        self._jobs.put(job)

    def close(self) -> None:
        """Finish what is queued, then end the thread; waits for it."""
        if self._closed:
            return
        self._closed = True
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, args, loop, tell = job
            try:
                result = work(*args)
            except BaseException as error:  # noqa: BLE001 - carried to the caller, whatever it is
                _deliver(loop, tell, None, error)
            else:
                _deliver(loop, tell, result, None)


def _deliver(loop: asyncio.AbstractEventLoop, tell: Tell, result: object, error: BaseException | None) -> None:
    if loop.is_closed():
        return
    loop.call_soon_threadsafe(tell, result, error)


def _error_of(done: "asyncio.Future[Any]") -> BaseException | None:
    return asyncio.CancelledError() if done.cancelled() else done.exception()


def _settle(future: "asyncio.Future[Any]", result: object, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


class Pool:
    """A few named threads for jobs that need no order; the least loaded takes the next."""

    def __init__(self, name: str, *, threads: int = 2, queue_max: int = 1_000) -> None:
        self._workers = [Worker(f"{name}-{slot}", queue_max=queue_max) for slot in range(threads)]
        self._pending = [0] * threads

    async def run(self, work: Callable[..., T], *args: object) -> T:
        """Run `work(*args)` off the loop and return its result or raise its error."""
        slot = self._pending.index(min(self._pending))
        self._pending[slot] += 1
        try:
            return await self._workers[slot].submit(work, *args)
        finally:
            self._pending[slot] -= 1

    def close(self) -> None:
        """Finish what is queued and end the threads."""
        for worker in self._workers:
            worker.close()

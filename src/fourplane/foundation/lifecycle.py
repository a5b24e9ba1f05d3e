"""Start in order, be ready, drain, stop in reverse: the life of a process.

A part is any object with the three methods below. The lifecycle starts parts one after the other and gives each a
task group of its own; a part whose task fails stops the whole process in order (its parent restarts it), because
half a process
is worse than none. Draining lets every part finish what it accepted before the first one stops. A start that fails stops what
already stands. Every step is bounded by `step_s_max`.
"""

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any, Protocol

from fourplane.foundation import clock
from fourplane.foundation.prompt_task import Begun
from fourplane.foundation.telemetry import Registry

STEP_S_MAX = 30.0


class Tasks:
    """The background tasks of one part: start them here, they end when the part stops."""

    def __init__(self, name: str, failed: "asyncio.Future[BaseException]") -> None:
        self._name = name
        self._failed = failed
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None], name: str = "") -> asyncio.Task[None]:
        """Run `work` until it ends or the part stops; an error in it ends the process."""
        task = asyncio.get_running_loop().create_task(
            work, name=f"{self._name}.{name or getattr(work, '__name__', 'task')}"
        )
        return self._kept(task)

    def start_now(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """The same, with its first step taken at once (`prompt_task`)."""
        begun, context = Begun(work), contextvars.copy_context()
        task = asyncio.get_running_loop().create_task(begun, name=f"{self._name}.{name}", context=context)
        begun.begin_as(task, context)
        return self._kept(task)

    async def cancel(self) -> None:
        """End all tasks and wait until they are gone."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _kept(self, task: "asyncio.Task[None]") -> "asyncio.Task[None]":
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        if not self._failed.done():
            error = task.exception()
            assert error is not None
            self._failed.set_result(error)


class Part(Protocol):
    """Something that lives as long as the process."""

    async def start(self, tasks: Tasks) -> None:
        """Be ready when this returns; long-running work goes to `tasks`."""

    async def drain(self) -> None:
        """Take nothing new, finish what was accepted."""

    async def stop(self) -> None:
        """Release everything; called once, also after a failed start of a later part."""


class Lifecycle:
    """The parts of one process in the order in which they start."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._parts: list[tuple[str, Part]] = []
        self._running: list[tuple[str, Part, Tasks]] = []
        self._failed: asyncio.Future[BaseException] | None = None
        self.ready = False

    def add(self, name: str, part: Part) -> None:
        """Put `part` behind everything added before."""
        assert not self._running, "the lifecycle has started"
        self._parts.append((name, part))

    async def start(self) -> None:
        """Start all parts in order; on a failure stop the started ones and raise."""
        self._failed = asyncio.get_running_loop().create_future()
        try:
            for name, part in self._parts:
                began = clock.monotonic_s()
                tasks = Tasks(name, self._failed)
                self._running.append((name, part, tasks))
                await part.start(tasks)
                took_ms = (clock.monotonic_s() - began) * 1e3
                self._registry.event("debug", "lifecycle", f"{name} started", took_ms=f"{took_ms:.0f}")
        except BaseException:
            await self.stop()
            raise
        self.ready = True

    async def wait_failed(self) -> BaseException:
        """Wait until a background task of any part fails; returns its error."""
        assert self._failed is not None
        return await asyncio.shield(self._failed)

    async def drain(self) -> None:
        """Let every part finish what it accepted, edge parts (added last) first."""
        self.ready = False
        for name, part, _ in reversed(self._running):
            await self._bounded(name, "drain", part.drain())

    async def stop(self) -> None:
        """Stop all parts in reverse order; one that fails or hangs does not keep the others from stopping."""
        self.ready = False
        while self._running:
            name, part, tasks = self._running.pop()
            await self._bounded(name, "stop", part.stop())
            await self._bounded(name, "end the tasks of", tasks.cancel())

    async def _bounded(self, name: str, step: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            async with asyncio.timeout(STEP_S_MAX):
                await work
        except TimeoutError:
            self._registry.event("error", "lifecycle", f"{name} did not {step} within {STEP_S_MAX:.0f} s")
        except Exception as error:  # noqa: BLE001 - the other parts must still stop; the error is told
            self._registry.event("error", "lifecycle", f"could not {step} {name}: {error!r}")

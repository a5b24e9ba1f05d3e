"""A task that begins where it is started, not in the next turn of the loop.

What is started in a turn full of others' work waits for all of it before its first step, however short that is. With this the
first step, up to where the work first waits, is taken at once, in the task's own context and as the current task (what it sets
up there, such as a timeout, is its own); from there on it is a task like any other. An error or the end of the first step is
told as ever, by the task in the next turn.

So whoever starts one (`lifecycle.Tasks.start_now`) must be done with its own books by then. Python 3.12 has the same as eager
tasks. Source: docs.python.org/3/library/asyncio-extending.html.
"""

import asyncio
import contextvars
from collections.abc import Coroutine, Generator
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")


class Begun(Coroutine[Any, Any, T]):
    """What is left of work whose first step was taken: first what it waits for, then the rest."""

    __slots__ = ("_ended", "_waits", "_work")

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self._work = work
        self._waits: list[Any] = []
        self._ended: BaseException | None = None  # StopIteration with the result, or an error

    def begin_as(self, task: "asyncio.Task[T]", context: contextvars.Context) -> None:
        """Take the first step, as `task`, which was made for this and has that context."""
        loop = task.get_loop()
        current = asyncio.current_task(loop)
        if current is not None:
            asyncio.tasks._leave_task(loop, current)  # noqa: SLF001 - documented for those who run tasks themselves
        asyncio.tasks._enter_task(loop, task)  # noqa: SLF001 - as above
        try:
            context.run(self._step)
        finally:
            asyncio.tasks._leave_task(loop, task)  # noqa: SLF001 - as above
            if current is not None:
                asyncio.tasks._enter_task(loop, current)  # noqa: SLF001 - as above

    def _step(self) -> None:
        try:
            self._waits.append(self._work.send(None))
        except BaseException as error:  # noqa: BLE001 - the task raises it
            self._ended = error

    def send(self, value: Any, /) -> Any:
        if self._ended is not None:
            raise self._ended
        return self._waits.pop() if self._waits else self._work.send(value)

    def throw(self, kind: Any, value: Any = None, trace: TracebackType | None = None, /) -> Any:
        self._waits.clear()
        if self._ended is not None:
            raise self._ended
        return self._work.throw(kind, value, trace) if value is not None else self._work.throw(kind)

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, T]:
        return self._work.__await__()

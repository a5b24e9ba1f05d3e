"""A future whose waiter goes on in the turn of the loop in which it is done, not in the one after.

asyncio wakes a task in the next turn. On a loop that many share a turn is full of others' work: a request that waits four times,
each time for something of a microsecond, waits four turns of milliseconds. With this the waiter goes on where the result is
set, in its own context and as its own current task, before `set_result` returns.

So whoever sets the result must be done with its own books by then: the waiter may come back and ask for the next thing. One
waiter goes on so; others that wait for the same are woken as usual, and so is one whose wait is cancelled.
Source: docs.python.org/3/library/asyncio-extending.html (`_enter_task`, `_leave_task`).
"""

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")


class PromptFuture(asyncio.Future[T]):
    """See above; made for the running loop."""

    _first: tuple[Callable[[Any], object], Context | None] | None = None

    def add_done_callback(self, fn: Callable[[Any], object], /, *, context: Context | None = None) -> None:
        if self._first is None and not self.done():
            self._first = (fn, context)
        else:
            super().add_done_callback(fn, context=context)

    def remove_done_callback(self, fn: Callable[[Any], object], /) -> int:
        mine = self._first is not None and self._first[0] == fn
        if mine:
            self._first = None
        return mine + super().remove_done_callback(fn)

    def set_result(self, result: T, /) -> None:
        super().set_result(result)
        self._go_on()

    def set_exception(self, exception: type[BaseException] | BaseException, /) -> None:
        super().set_exception(exception)
        self._go_on()

    def cancel(self, msg: Any | None = None) -> bool:
        if not super().cancel(msg):
            return False
        first, self._first = self._first, None
        if first is not None:
            self.get_loop().call_soon(first[0], self, context=first[1])
        return True

    def _go_on(self) -> None:
        first, self._first = self._first, None
        if first is None:
            return
        loop = self.get_loop()
        current = asyncio.current_task(loop)
        if current is not None:
            asyncio.tasks._leave_task(loop, current)  # noqa: SLF001 - documented for those who run tasks themselves
        try:
            go_on, context = first
            if context is None:
                go_on(self)
            else:
                context.run(go_on, self)
        except Exception as error:  # noqa: BLE001 - as the loop does with what it calls itself
            loop.call_exception_handler({"message": "a waiter failed", "exception": error, "future": self})
        finally:
            if current is not None:
                asyncio.tasks._enter_task(loop, current)  # noqa: SLF001 - as above

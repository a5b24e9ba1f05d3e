"""What asyncio hands around, made so that a run repeats and is quick: tasks, futures and handles of a simulated world.

Tasks and futures hash by the number under which they were made, because asyncio keeps them in sets and would otherwise
iterate by memory address. Every task belongs to a life of a host. Handles are asyncio's own, built in one call.
"""

import asyncio
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar

T = TypeVar("T")

LOCAL_HOST = "local"


class Life:
    """A host from its start to its crash; what runs on it belongs to the life in which it was started."""

    __slots__ = ("dead", "host")

    def __init__(self, host: str) -> None:
        self.host = host
        self.dead = False


nowhere = Life(LOCAL_HOST)
life_now: ContextVar[Life] = ContextVar("life", default=nowhere)


def current_host() -> str:
    """The simulated host on which the caller runs."""
    return life_now.get().host


class SequencedTask(asyncio.Task[T]):
    """A task whose place in a set depends on when it was made, not on where it lies in memory."""

    sequence: int
    life: Life

    def __hash__(self) -> int:
        return self.sequence

    def __eq__(self, other: object) -> bool:
        return self is other


class SequencedFuture(asyncio.Future[T]):
    """The same for futures."""

    sequence: int

    def __hash__(self) -> int:
        return self.sequence

    def __eq__(self, other: object) -> bool:
        return self is other


class SimulatedHandle(asyncio.Handle):
    """A callback that is ready; the loop runs it itself."""

    __slots__ = ()

    def __init__(
        self, callback: Callable[..., object], args: tuple[Any, ...], loop: Any, context: Context | None
    ) -> None:
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = None
        self._source_traceback = None


class SimulatedTimer(asyncio.TimerHandle):
    """A callback at a time."""

    __slots__ = ()

    def __init__(
        self, when: float, callback: Callable[..., object], args: tuple[Any, ...], loop: Any, context: Context | None
    ) -> None:
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = None
        self._source_traceback = None
        self._when = when
        self._scheduled = False


def is_dead(handle: asyncio.Handle) -> bool:
    """Whether the host on which this was to run has crashed since."""
    context: Context = handle._context  # type: ignore[attr-defined] # noqa: SLF001 - asyncio's own loop does the same
    return context.get(life_now, nowhere).dead


def fails(handle: asyncio.Handle, error: BaseException) -> None:
    """Tell the loop what a callback raised, as `Handle._run` does; what must end the run goes on."""
    if isinstance(error, (SystemExit, KeyboardInterrupt)):
        raise error
    loop: asyncio.AbstractEventLoop = handle._loop  # type: ignore[attr-defined] # noqa: SLF001 - see is_dead
    loop.call_exception_handler({"message": f"Exception in callback {handle!r}", "exception": error, "handle": handle})

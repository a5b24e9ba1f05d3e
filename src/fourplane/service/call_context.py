"""What a call carries with it through everything it causes: how long there is still time, and how much it matters.

The context belongs to the task: a call into another process sends what is left of the deadline and the priority along, and
the code that serves it there finds both here again. Code that calls nobody need not know. Cost: 0.1 us to set.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import inf

from fourplane.foundation import clock

USUAL_PRIORITY = 1  # `edge.routes.Priority.USER`: what a person waits for

_context: ContextVar[tuple[float, int]] = ContextVar("call", default=(inf, USUAL_PRIORITY))

current = _context.get  # deadline and priority in one look
enter = _context.set  # both for the rest of this task: what a server does before it runs a call


def deadline() -> float:
    """When the work of this task must be over on the monotonic clock; infinity without a deadline."""
    return _context.get()[0]


def left_s() -> float:
    """Seconds until then, never negative."""
    return max(0.0, _context.get()[0] - clock.monotonic_s())


def priority() -> int:
    """0 critical, 1 a person waits, 2 may be left out, 3 bulk."""
    return _context.get()[1]


@contextmanager
def within(seconds: float, *, priority: int | None = None) -> Iterator[None]:
    """Give the calls of this block at most `seconds`; a deadline that was there and is earlier stays."""
    until, before = _context.get()
    token = _context.set((min(until, clock.monotonic_s() + seconds), before if priority is None else priority))
    try:
        yield
    finally:
        _context.reset(token)

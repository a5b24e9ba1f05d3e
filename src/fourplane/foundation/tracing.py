"""Spans of requests, recorded for all and kept for few: which step of which request took how long.

A request's context is a text in a context variable: `TRACE-SPAN`, 32 and 16 hex digits as in W3C Trace Context, and empty where
nothing is traced. It travels with a call into another process as it is; tasks inherit it. A step that is traced appends one
tuple to a ring; nothing is looked up, and nobody decides anything before the request is over. Then (tail sampling) it is
kept when it failed, was among the slowest, its caller had asked for it (`sampled` in traceparent), or by lot, one in `one_in`.
Keeping is a note of its id: whoever collects (`control/traces`) finds its steps in the rings of all processes.

`slow_s` follows the traffic: it rises while more than `SLOW_WANTED` requests a look are slower, and falls when fewer are.
Bounded: RING spans (older ones are overwritten), KEPT_MAX ids until they are collected. Cost: 0.05 us where nothing is
traced, about 1 us for a request and 0.5 us a step.
"""

import itertools
import re
from collections import deque
from contextvars import ContextVar
from hashlib import blake2b
from types import TracebackType

from fourplane.foundation import clock

RING = 16_384
KEPT_MAX = 500
ONE_IN = 1_000
SLOW_WANTED = 3
SLOW_S_START = 0.25
SLOW_S_MIN, SLOW_S_MAX = 0.001, 10.0
TRACE_DIGITS = 32
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_HEX16 = re.compile(r"[0-9a-f]{16}")
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16

RawSpan = tuple[str, int, str, float, float, bool]  # context of the caller, own id, name, begin, end, failed

_context: ContextVar[str] = ContextVar("trace", default="")


def current_trace() -> str:
    """The context of the request being served, or an empty string."""
    return _context.get()


def set_trace(context: str) -> None:
    """Name the request served by this task; children inherit it."""
    _context.set(context)


def trace_id_of(request_id: str) -> str:
    """The trace a request id stands for: our own ids are its last digits, any other is hashed."""
    if _HEX16.fullmatch(request_id):
        return _NO_SPAN + request_id
    return blake2b(request_id.encode(), digest_size=16).hexdigest()


class Root:
    """A request under way."""

    __slots__ = ("asked", "caller", "context", "number")

    def __init__(self, context: str, caller: str, number: int, *, asked: bool) -> None:
        self.context = context  # what its steps have as their caller
        self.caller = caller  # trace and span of whoever sent it
        self.number = number
        self.asked = asked

    @property
    def traceresponse(self) -> str:
        """W3C's header for the answer."""
        return f"00-{self.context}-{'01' if self.asked else '00'}"


class Tracer:
    """The ring of one process and the ids worth collecting."""

    def __init__(self, *, one_in: int = ONE_IN, enabled: bool = True) -> None:
        self.enabled = enabled
        self.one_in = one_in
        self.slow_s = SLOW_S_START
        self.spans: deque[RawSpan] = deque(maxlen=RING)
        self.kept: deque[tuple[str, str]] = deque(maxlen=KEPT_MAX)  # (trace id, `error`, `slow`, `asked` or `lot`)
        self.finished = 0
        self._slow = 0
        self._prefix = 0
        self.tell_apart("")
        self._count = itertools.count(1)

    def tell_apart(self, process: str) -> None:
        """Let the ids of spans differ from those of other processes; draws no chance, so that simulated worlds stay equal."""
        seed = f"{process} {clock.now_us()}".encode()
        self._prefix = int.from_bytes(blake2b(seed, digest_size=3).digest(), "big") << 40

    def begin(self, traceparent: str | None, request_id: str) -> Root | None:
        """A request came in; its steps are traced until `end`. None while tracing is off."""
        if not self.enabled:
            _context.set("")
            return None
        caller, asked = "", False
        if traceparent is not None:
            found = _TRACEPARENT.fullmatch(traceparent)
            if found is not None and found[1] != _NO_TRACE and found[2] != _NO_SPAN:
                caller, asked = f"{found[1]}-{found[2]}", int(found[3], 16) & 1 == 1
        trace = caller[:TRACE_DIGITS] or trace_id_of(request_id)
        number = self._prefix | next(self._count)
        context = f"{trace}-{number:016x}"
        _context.set(context)
        return Root(context, caller or f"{trace}-{_NO_SPAN}", number, asked=asked)

    def end(self, root: Root, name: str, began_s: float, ended_s: float, *, failed: bool) -> None:
        """The request is over; decide whether it is kept."""
        _context.set("")
        self.spans.append((root.caller, root.number, name, began_s, ended_s, failed))
        self.finished += 1
        if failed:
            reason = "error"
        elif ended_s - began_s >= self.slow_s:
            reason = "slow"
            self._slow += 1
        elif root.asked:
            reason = "asked"
        elif self.finished % self.one_in == 0:
            reason = "lot"
        else:
            return
        self.kept.append((root.context[:TRACE_DIGITS], reason))

    def number(self) -> int:
        """An id for a span."""
        return self._prefix | next(self._count)

    def record(self, context: str, name: str, began_s: float, *, failed: bool) -> None:
        """A step without steps of its own is over, now."""
        self.spans.append((context, self._prefix | next(self._count), name, began_s, clock.monotonic_s(), failed))

    def take(self) -> list[tuple[str, str]]:
        """The ids kept since the last look; `slow_s` follows how many were slow."""
        kept = list(self.kept)
        self.kept.clear()
        if self._slow > SLOW_WANTED:
            self.slow_s = min(SLOW_S_MAX, self.slow_s * 1.5)
        elif self._slow < SLOW_WANTED:
            self.slow_s = max(SLOW_S_MIN, self.slow_s * 0.9)
        self._slow = 0
        return kept


class span:  # noqa: N801 - reads as a statement: `with span(tracer, "match"):`
    """Time one step and what it calls; costs next to nothing where nothing is traced."""

    __slots__ = ("_began_s", "_context", "_name", "_number", "_tracer")

    def __init__(self, tracer: Tracer, name: str) -> None:
        self._tracer = tracer
        self._name = name
        self._context = ""

    def __enter__(self) -> None:
        context = _context.get()
        if not context:
            return
        self._context = context
        self._number = self._tracer.number()
        _context.set(f"{context[: TRACE_DIGITS + 1]}{self._number:016x}")
        self._began_s = clock.monotonic_s()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._context:
            _context.set(self._context)
            ended_s = clock.monotonic_s()
            failed = kind is not None
            self._tracer.spans.append((self._context, self._number, self._name, self._began_s, ended_s, failed))

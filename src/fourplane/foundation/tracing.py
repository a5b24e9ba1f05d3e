"""Spans of requests, recorded for all and kept for few: which step of which request took how long.

A request's `Context` stands in a context variable, None where nothing is traced; tasks inherit it. As a text, `TRACE-SPAN` in
32 and 16 hex digits as W3C Trace Context has them, it travels with a call into another process. A step that is traced appends
one tuple to a ring; no text is made, nothing is looked up, and nobody decides anything before the request is over. Then
(tail sampling) it is kept when it failed, was among the slowest, its caller had asked for it (`sampled` in traceparent), or by
lot, one in `one_in`. Keeping is a note of its id: whoever collects (`control/traces`) finds its steps in the rings of all
processes.

`slow_s` follows the traffic: it rises while more than `SLOW_WANTED` requests a look are slower, and falls when fewer are.
Bounded: RING spans (older ones are overwritten), KEPT_MAX ids until they are collected. Cost: 0.05 us where nothing is
traced, about 1 us for a request and 0.7 us a step.
"""

import itertools
import re
from collections import deque
from contextvars import ContextVar
from hashlib import blake2b
from types import TracebackType

import msgspec

from fourplane.foundation import clock

RING = 16_384
KEPT_MAX = 500
ONE_IN = 1_000
SLOW_WANTED = 3
SLOW_S_START = 0.1
SLOW_S_MIN, SLOW_S_MAX = 0.001, 10.0
TRACE_DIGITS, SPAN_DIGITS = 32, 16
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_HEX16 = re.compile(r"[0-9a-f]{16}")
_NO_TRACE, NO_SPAN = "0" * TRACE_DIGITS, "0" * SPAN_DIGITS


class Context(msgspec.Struct, gc=False):
    """Where in which request we are. `trace` has 32 digits, or the 16 of an id of ours, which are its last."""

    trace: str
    number: int
    caller: str = NO_SPAN  # who sent the request; only of its root
    asked: bool = False

    @property
    def trace_id(self) -> str:
        """All 32 digits."""
        return self.trace if len(self.trace) == TRACE_DIGITS else NO_SPAN + self.trace

    @property
    def text(self) -> str:
        """As it travels."""
        return f"{self.trace_id}-{self.number:016x}"

    @property
    def traceresponse(self) -> str:
        """W3C's header for the answer."""
        return f"00-{self.text}-{'01' if self.asked else '00'}"


RawSpan = tuple[
    Context, int, str, float, float, bool
]  # within, own id, name, begin, end, failed; a root is within itself

_context: ContextVar[Context | None] = ContextVar("trace", default=None)
current = _context.get


def current_trace() -> str:
    """The context of the request being served as a text, empty where nothing is traced."""
    context = _context.get()
    return "" if context is None else context.text


def set_trace(text: str) -> None:
    """Go on with the trace that came with a call, in this task and its children; an empty text ends it."""
    if not text:
        _context.set(None)
        return
    number = text[TRACE_DIGITS + 1 :]
    _context.set(Context(text[:TRACE_DIGITS], int(number, 16) if _HEX16.fullmatch(number) else 0))


def trace_id_of(request_id: str) -> str:
    """The trace a request id stands for: our own ids are its last digits, any other is hashed."""
    if _HEX16.fullmatch(request_id):
        return NO_SPAN + request_id
    return blake2b(request_id.encode(), digest_size=16).hexdigest()


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
        self._next = itertools.count(1).__next__
        self.tell_apart("")

    def tell_apart(self, process: str) -> None:
        """Let the ids of spans differ from those of other processes; draws no chance, so that simulated worlds stay equal."""
        seed = f"{process} {clock.now_us()}".encode()
        prefix = int.from_bytes(blake2b(seed, digest_size=3).digest(), "big") << 40
        self._next = itertools.count(prefix + 1).__next__

    def begin(self, traceparent: str | None, request_id: str, *, ours: bool = False) -> Context | None:
        """A request came in; its steps are traced until `end`. None while tracing is off. `ours`: we made the id."""
        if not self.enabled:
            _context.set(None)
            return None
        found = None if traceparent is None else _TRACEPARENT.fullmatch(traceparent)
        if found is not None and found[1] != _NO_TRACE and found[2] != NO_SPAN:
            root = Context(found[1], self._next(), found[2], asked=int(found[3], 16) & 1 == 1)
        else:
            root = Context(request_id if ours else trace_id_of(request_id), self._next())
        _context.set(root)
        return root

    def end(self, root: Context, name: str, began_s: float, ended_s: float, *, failed: bool) -> None:
        """The request is over; decide whether it is kept."""
        _context.set(None)
        self.spans.append((root, root.number, name, began_s, ended_s, failed))
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
        self.kept.append((root.trace_id, reason))

    def number(self) -> int:
        """An id for a span."""
        return self._next()

    def record(self, context: Context, name: str, began_s: float, *, failed: bool) -> None:
        """A step without steps of its own is over, now."""
        self.spans.append((context, self._next(), name, began_s, clock.monotonic_s(), failed))

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

    __slots__ = ("_began_s", "_name", "_number", "_outer", "_tracer")

    def __init__(self, tracer: Tracer, name: str) -> None:
        self._tracer = tracer
        self._name = name
        self._outer: Context | None = None

    def __enter__(self) -> None:
        outer = self._outer = _context.get()
        if outer is None:
            return
        self._number = self._tracer.number()
        _context.set(Context(outer.trace, self._number))
        self._began_s = clock.monotonic_s()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        outer = self._outer
        if outer is not None:
            _context.set(outer)
            ended_s = clock.monotonic_s()
            self._tracer.spans.append((outer, self._number, self._name, self._began_s, ended_s, kind is not None))

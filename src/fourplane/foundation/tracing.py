"""Spans of requests, recorded for all and kept for few: which step of which request took how long.

A request's `Context` stands in a context variable, None where nothing is traced; tasks inherit it. As a text, `TRACE-SPAN` in
32 and 16 hex digits as W3C Trace Context has them, it travels with a call into another process. A step without steps of its
own, a call of a store, is one tuple at the end of its context's list: no id, no text, no look-up, since its place in the list
is its id. Nobody decides anything before the request is over. Then (tail sampling) it is kept when it failed, was among the
slowest, its caller had asked for it (`sampled` in traceparent), or by lot, one in `one_in`, which the last digits of its trace's
id draw, the same in every process. Keeping is a note of the id: whoever collects (`control/traces`) finds its parts in all
processes. What is not kept goes with its steps at once, while its memory is still warm; but a part of a trace that others know
of, since its id came from elsewhere or went elsewhere, waits in a ring for what they decide.

`slow_s` follows the traffic: it rises while more than `SLOW_WANTED` requests a look are slower, and falls when fewer are.
Bounded: STEPS_MAX steps a context, RING spans wait (older parts go), KEPT_MAX ids until they are collected. Cost: 0.05 us where
nothing is traced, about 0.4 us for a request and 0.3 us a step.
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
STEPS_MAX = 254
KEPT_MAX = 500
ONE_IN = 1_000
SLOW_WANTED = 3
SLOW_S_START = 0.1
SLOW_S_MIN, SLOW_S_MAX = 0.001, 10.0
TRACE_DIGITS, SPAN_DIGITS = 32, 16
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_HEX16 = re.compile(r"[0-9a-f]{16}")
_STEPS_LEFT_FREE = ~0xFF
_NO_TRACE, NO_SPAN = "0" * TRACE_DIGITS, "0" * SPAN_DIGITS


Step = tuple[str, float, float, bool]  # name, begin, end, failed


class Context(msgspec.Struct, gc=False):
    """Our part of a request. `trace` has 32 digits, or the 16 of an id of ours, which are its last."""

    trace: str
    number: int = 0  # of our span, its steps have the next ones; 0 for a trace of ours, whose id it follows from
    caller: int = 0  # the span that caused ours, 0 where the request began
    asked: bool = False
    shared: bool = False  # others know of the trace, and may want our part of it
    steps: list[Step] | None = []  # None when it is over and nobody wants it

    @property
    def trace_id(self) -> str:
        """All 32 digits."""
        return self.trace if len(self.trace) == TRACE_DIGITS else NO_SPAN + self.trace

    @property
    def span(self) -> int:
        """The number of our span."""
        return self.number or int(self.trace[-SPAN_DIGITS:], 16) & _STEPS_LEFT_FREE | 1

    @property
    def text(self) -> str:
        """As it travels."""
        return f"{self.trace_id}-{self.span:016x}"

    @property
    def traceresponse(self) -> str:
        """W3C's header for the answer."""
        return f"00-{self.text}-{'01' if self.asked else '00'}"


Part = tuple[
    Context, str, float, float, bool, int
]  # a context, its name, begin, end, failed; spans in it when it ended

_context: ContextVar[Context | None] = ContextVar("trace", default=None)
current = _context.get
_enter = _context.set


def current_trace() -> str:
    """The context of the request being served as a text for another process, empty where nothing is traced."""
    context = _context.get()
    if context is None or context.steps is None:
        return ""
    context.shared = True
    return context.text


def set_trace(text: str) -> None:
    """Go on with the trace that came with a call, in this task and its children; an empty text ends it."""
    if not text:
        _enter(None)
        return
    number = text[TRACE_DIGITS + 1 :]
    _enter(Context(text[:TRACE_DIGITS], int(number, 16) if _HEX16.fullmatch(number) else 0))


def trace_id_of(request_id: str) -> str:
    """The trace a request id stands for: our own ids are its last digits, any other is hashed."""
    if _HEX16.fullmatch(request_id):
        return NO_SPAN + request_id
    return blake2b(request_id.encode(), digest_size=16).hexdigest()


def add_step(steps: list[Step], name: str, began_s: float, *, failed: bool) -> None:
    """A step without steps of its own is over, now."""
    if len(steps) < STEPS_MAX:
        steps.append((name, began_s, clock.monotonic_s(), failed))


class Tracer:
    """What one process recorded that others may want, and the ids worth collecting."""

    def __init__(self, *, one_in: int = ONE_IN, enabled: bool = True) -> None:
        self.enabled = enabled
        self.draw(one_in)
        self.slow_s = SLOW_S_START
        self.parts: deque[Part] = deque()
        self.waiting = 0  # spans in them
        self.kept: deque[tuple[str, str]] = deque(maxlen=KEPT_MAX)  # (trace id, `error`, `slow`, `asked` or `lot`)
        self._slow = 0
        self._next = itertools.count(1, STEPS_MAX + 2).__next__
        self.tell_apart("")

    def tell_apart(self, process: str) -> None:
        """Let the ids of spans differ from those of other processes; draws no chance, so that simulated worlds stay equal."""
        seed = f"{process} {clock.now_us()}".encode()
        prefix = int.from_bytes(blake2b(seed, digest_size=3).digest(), "big") << 40
        self._next = itertools.count(prefix + 1, STEPS_MAX + 2).__next__

    def draw(self, one_in: int) -> None:
        """Keep one in so many of the traces nothing is wrong with."""
        assert one_in >= 1
        ids = 1 << 4 * SPAN_DIGITS
        self._below_lot = (
            f"{ids - 1 - ids // one_in:0{SPAN_DIGITS}x}" if one_in > 1 else ""
        )  # the last id that draws nothing

    def begin(self, traceparent: str | None, request_id: str, *, ours: bool = False) -> Context | None:
        """A request came in; its steps are traced until `end`. None while tracing is off. `ours`: we made the id."""
        if not self.enabled:
            if _context.get() is not None:
                _enter(None)
            return None
        root = Context(request_id) if ours and traceparent is None else self._called(traceparent, request_id)
        _enter(root)
        return root

    def end(self, root: Context, name: str, began_s: float, ended_s: float, *, failed: bool) -> None:
        """The request is over; decide whether it is kept."""
        took_s, trace = ended_s - began_s, root.trace
        if not (failed or root.shared or took_s >= self.slow_s or trace > self._below_lot):
            root.steps = None
            return
        _enter(None)
        self.leave((root, name, began_s, ended_s, failed, 1 + len(root.steps or ())))
        if failed:
            reason = "error"
        elif took_s >= self.slow_s:
            reason = "slow"
            self._slow += 1
        elif root.asked:
            reason = "asked"
        elif trace[-SPAN_DIGITS:] > self._below_lot:
            reason = "lot"
        else:
            return
        self.kept.append((root.trace_id, reason))

    def within(self, outer: Context) -> Context:
        """A part of a request that is within another one."""
        outer.shared = True
        return Context(outer.trace, self._next(), outer.span)

    def leave(self, part: Part) -> None:
        """Let a part wait for who may want it."""
        self.parts.append(part)
        self.waiting += part[5]
        while self.waiting > RING:
            self.waiting -= self.parts.popleft()[5]

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

    def _called(self, traceparent: str | None, request_id: str) -> Context:
        """A request whose id others know."""
        found = None if traceparent is None else _TRACEPARENT.fullmatch(traceparent)
        if found is not None and found[1] != _NO_TRACE and found[2] != NO_SPAN:
            asked = int(found[3], 16) & 1 == 1
            return Context(found[1], self._next(), int(found[2], 16), asked, shared=True)
        return Context(trace_id_of(request_id), self._next(), shared=True)


class span:  # noqa: N801 - reads as a statement: `with span(tracer, "match"):`
    """Time one step and what it calls; costs next to nothing where nothing is traced."""

    __slots__ = ("_began_s", "_inner", "_name", "_outer", "_tracer")

    def __init__(self, tracer: Tracer, name: str) -> None:
        self._tracer = tracer
        self._name = name
        self._inner: Context | None = None

    def __enter__(self) -> None:
        outer = self._outer = _context.get()
        if outer is None or outer.steps is None:
            return
        self._inner = self._tracer.within(outer)
        _enter(self._inner)
        self._began_s = clock.monotonic_s()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        inner = self._inner
        if inner is not None:
            _enter(self._outer)
            ended_s, size = clock.monotonic_s(), 1 + len(inner.steps or ())
            self._tracer.leave((inner, self._name, self._began_s, ended_s, kind is not None, size))

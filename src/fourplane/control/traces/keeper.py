"""What one worker gives to traces: the steps of its own requests that are worth keeping, and those of others' requests.

Once in LOOK_S the ids the tracer kept are looked up in its ring, all in one pass; what is found waits, numbered, for the
worker with the console. That one asks for what is new, and asks every other worker for its steps of the same traces. Bounded:
WAITING_MAX traces wait, SPANS_MAX steps of each; the ring is the tracer's.
"""

from collections import deque
from collections.abc import Iterable

import msgspec

from fourplane.control.traces.model import SPANS_MAX, KeptTrace, SpanRecord
from fourplane.foundation import clock
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Registry
from fourplane.foundation.tracing import NO_SPAN, SPAN_DIGITS, Part
from fourplane.service.rpc import idempotent

LOOK_S = 0.5
WAITING_MAX = 500
IDS_MAX = 500


class KeeperStatistics(msgspec.Struct, frozen=True):
    """How many traces this worker kept, and from when on a request is slow."""

    kept: int
    slow_ms: float


class TraceKeeper:
    """A lifecycle part of every worker. `process` names it in waterfalls."""

    def __init__(self, registry: Registry, *, process: str) -> None:
        self.process = process
        self._tracer = registry.tracer
        self._tracer.tell_apart(process)
        self._kept: deque[KeptTrace] = deque(maxlen=WAITING_MAX)
        self._number = 0
        registry.gauge(
            "fourplane_control_trace_slow_seconds",
            "requests slower than this are kept",
            read=lambda: self._tracer.slow_s,
        )

    async def start(self, tasks: Tasks) -> None:
        tasks.start(self._watch(), "traces")

    async def drain(self) -> None:
        """Requests are traced until the end."""

    async def stop(self) -> None:
        """What nobody asked for is gone."""

    def look(self) -> None:
        """Take what was kept since the last look."""
        reasons = dict(self._tracer.take())
        if not reasons:
            return
        found = self.steps_of(reasons)
        for trace, spans in found.items():
            self._number += 1
            self._kept.append(KeptTrace(self._number, trace, reasons[trace], spans))

    def statistics(self) -> KeeperStatistics:
        return KeeperStatistics(self._number, self._tracer.slow_s * 1e3)

    def kept_after(self, number: int) -> list[KeptTrace]:
        """Those kept since the one of this number; after a restart all there are."""
        if number > self._number:
            number = 0
        return [one for one in self._kept if one.number > number]

    def steps_of(self, traces: Iterable[str]) -> dict[str, list[SpanRecord]]:
        """The steps of these traces that the ring still has, in one pass."""
        found: dict[str, list[SpanRecord]] = {trace: [] for trace in traces}
        wanted = found | {trace[SPAN_DIGITS:]: spans for trace, spans in found.items() if trace.startswith(NO_SPAN)}
        offset_s = clock.now_us() / 1e6 - clock.monotonic_s()
        for part in self._tracer.parts if wanted else ():
            spans = wanted.get(part[0].trace)
            if spans is not None:
                spans += _records(part, self.process, offset_s)[: SPANS_MAX - len(spans)]
        return {trace: spans for trace, spans in found.items() if spans}

    async def _watch(self) -> None:
        while True:
            await clock.sleep(LOOK_S)
            self.look()


class TraceDesk:
    """What the worker with the console may ask of another one, over rpc."""

    def __init__(self, keeper: TraceKeeper) -> None:
        self._keeper = keeper

    @idempotent
    async def kept(self, after: int) -> list[KeptTrace]:
        """Traces that began here and are kept, newer than number `after`."""
        return self._keeper.kept_after(after)

    @idempotent
    async def steps(self, traces: list[str]) -> dict[str, list[SpanRecord]]:
        """The steps this worker did for requests that began elsewhere."""
        return self._keeper.steps_of(traces[:IDS_MAX])


def _records(part: Part, process: str, offset_s: float) -> list[SpanRecord]:
    """The span of a part, and those of its steps."""
    context, name, began_s, ended_s, failed, _ = part
    trace, number = context.trace_id, context.span
    spans = [(number, context.caller, name, began_s, ended_s, failed)]
    spans += [(number + place, number, *step) for place, step in enumerate(context.steps or (), 1)]
    return [
        SpanRecord(trace, f"{one:016x}", f"{parent:016x}", label, process,
                   round((begin + offset_s) * 1e6), max(0, round((end - begin) * 1e6)), bad)
        for one, parent, label, begin, end, bad in spans
    ]  # fmt: skip

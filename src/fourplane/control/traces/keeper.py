"""What one worker gives to traces: the steps of its own requests that are worth keeping, and those of others' requests.

Once in LOOK_S the ids the tracer kept are looked up in its ring, all in one pass; what is found waits, numbered, for the
worker with the console. That one asks for what is new, and asks every other worker for its steps of the same traces. Bounded:
WAITING_MAX traces wait, SPANS_MAX steps of each; the ring is the tracer's.
"""

from collections import deque
from collections.abc import Iterable

from fourplane.control.traces.model import SPANS_MAX, KeptTrace, SpanRecord
from fourplane.foundation import clock
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Registry
from fourplane.foundation.tracing import NO_SPAN, SPAN_DIGITS, RawSpan
from fourplane.service.rpc import idempotent

LOOK_S = 0.5
WAITING_MAX = 500
IDS_MAX = 500


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
        for raw in list(self._tracer.spans) if wanted else ():
            spans = wanted.get(raw[0].trace)
            if spans is not None and len(spans) < SPANS_MAX:
                spans.append(_record(raw, self.process, offset_s))
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


def _record(raw: RawSpan, process: str, offset_s: float) -> SpanRecord:
    within, number, name, began_s, ended_s, failed = raw
    parent = within.caller if number == within.number else f"{within.number:016x}"
    took_us = max(0, round((ended_s - began_s) * 1e6))
    start_us = round((began_s + offset_s) * 1e6)
    return SpanRecord(within.trace_id, f"{number:016x}", parent, name, process, start_us, took_us, failed)

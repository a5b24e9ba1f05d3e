"""The traces of a deployment in one place: gathered from all workers, searched and drawn on the console.

Once in COLLECT_S this part takes what each worker decided to keep and asks all others for their steps of the same traces, so that
a waterfall shows every process a request went through. A worker that does not answer in ANSWER_S is left out of this round:
its own traces come with the next one, steps it did for others are missing (`complete` says so).

Doors: `GET /control/api/traces` (order=recent|slowest|errors, q, least_ms, limit) and `GET /control/api/traces/{id}`, where
the id may be a trace's or a request's (`x-request-id`).
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import get_args

import msgspec

from fourplane.control.traces.columns import Order, TraceColumns, TraceSummary
from fourplane.control.traces.keeper import TraceDesk, TraceKeeper
from fourplane.control.traces.model import KeptTrace, SpanRecord, TraceRecord
from fourplane.edge.routes import Call, Door, Priority, Route
from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError, Misconfigured, NotFound, Rejected
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.tracing import TRACE_DIGITS, trace_id_of
from fourplane.service import call_context

COLLECT_S = 1.0
ANSWER_S = 1.0
AT_ONCE = 200


class TraceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many traces are kept, and how many of those nothing is wrong with: one in `one_in`."""

    enabled: bool = True
    one_in: int = 1_000
    traces_max: int = 5_000
    spans_max: int = 100_000

    def __post_init__(self) -> None:
        if self.one_in < 1 or not 10 <= self.traces_max <= 1_000_000 or not 1_000 <= self.spans_max <= 10_000_000:
            raise Misconfigured("one_in from 1, traces_max from 10 to 1,000,000, spans_max from 1,000 to 10,000,000",
                                setting="traces")  # fmt: skip


class TraceStatistics(msgspec.Struct, frozen=True):
    """What is kept and what came."""

    kept: int
    traces: int
    spans: int
    memory_mb: float


class SpanFacts(msgspec.Struct, frozen=True):
    """One step, for a waterfall."""

    span: str
    parent: str
    name: str
    process: str
    start_us: int
    took_us: int
    failed: bool


class TraceAnswer(msgspec.Struct, frozen=True):
    """One trace for a waterfall."""

    trace: str
    reason: str
    complete: bool
    root: SpanFacts
    spans: list[SpanFacts]


class TraceCollector:
    """A lifecycle part of the worker with the console. `desks`: the other workers."""

    def __init__(
        self, settings: TraceSettings, keeper: TraceKeeper, desks: Callable[[], Mapping[int, TraceDesk]]
    ) -> None:
        self.columns = TraceColumns(settings.traces_max, settings.spans_max)
        self._keeper = keeper
        self._desks = desks
        self._seen: dict[int, int] = {}
        self._own_seen = 0

    async def start(self, tasks: Tasks) -> None:
        tasks.start(self._watch(), "collect")

    async def drain(self) -> None:
        """What was kept can be read until the end."""

    async def stop(self) -> None:
        """Traces are not for ever."""

    async def collect(self) -> int:
        """One round; how many traces came."""
        self._keeper.look()
        desks = self._desks()
        own = self._keeper.kept_after(self._own_seen)[:AT_ONCE]
        kept: list[tuple[int, KeptTrace]] = [(-1, one) for one in own]
        if own:
            self._own_seen = own[-1].number
        answers = await asyncio.gather(*(self._kept_of(slot, desk) for slot, desk in desks.items()))
        for (slot, _), found in zip(desks.items(), answers, strict=True):
            kept += [(slot, one) for one in found]
        if kept:
            await self._join(kept, desks)
        return len(kept)

    def find(self, name: str) -> TraceRecord:
        """The trace of this id, or of the request with this id. Raises NotFound."""
        found = self.columns.find(name) if len(name) == TRACE_DIGITS else None
        found = found or self.columns.find(trace_id_of(name))
        if found is None:
            raise NotFound("no trace of this id is kept", code="no_trace")
        return found

    def doors(self) -> list[Door]:
        return [
            Route("GET", "/control/api/traces", self._list, "Traces that were kept", answer=list, priority=Priority.DEGRADED),
            Route("GET", "/control/api/traces/{trace}", self._one, "One trace, by its or its request's id",
                  answer=TraceAnswer, priority=Priority.DEGRADED),
        ]  # fmt: skip

    def statistics(self) -> TraceStatistics:
        columns = self.columns
        return TraceStatistics(
            len(columns), columns.traces_total, columns.spans_total, round(columns.memory_bytes() / 1e6, 1)
        )

    async def _watch(self) -> None:
        while True:
            await clock.sleep(COLLECT_S)
            await self.collect()

    async def _kept_of(self, slot: int, desk: TraceDesk) -> list[KeptTrace]:
        try:
            with call_context.within(ANSWER_S):
                found = await desk.kept(self._seen.get(slot, 0))
        except FourplaneError:
            return []
        if found:
            self._seen[slot] = found[min(len(found), AT_ONCE) - 1].number
        return found[:AT_ONCE]

    async def _steps_of(self, desk: TraceDesk, traces: list[str]) -> dict[str, list[SpanRecord]]:
        try:
            with call_context.within(ANSWER_S):
                return await desk.steps(traces)
        except FourplaneError:
            return {}

    async def _join(self, kept: Sequence[tuple[int, KeptTrace]], desks: Mapping[int, TraceDesk]) -> None:
        ids = [one.trace for _, one in kept]
        own = self._keeper.steps_of(ids)
        far = await asyncio.gather(*(self._steps_of(desk, ids) for desk in desks.values()))
        for _, one in kept:
            steps = {span.span: span for span in one.spans}
            for found in (own, *far):
                steps.update({span.span: span for span in found.get(one.trace, [])})
            spans = sorted(steps.values(), key=lambda span: (span.start_us, -span.took_us))
            begun_outside = [span for span in one.spans if span.parent not in steps] or one.spans
            root = max(begun_outside, key=lambda span: span.took_us)
            self.columns.add(TraceRecord(one.trace, one.reason, root, spans))

    async def _list(self, call: Call[None]) -> list[TraceSummary]:
        order = next((one for one in get_args(Order) if one == call.query.get("order", "recent")), None)
        if order is None:
            raise Rejected(f"the order is one of {', '.join(get_args(Order))}", code="bad_order")
        least_us, limit = int(_number(call, "least_ms", 0.0) * 1e3), int(_number(call, "limit", 50.0))
        return self.columns.search(order, text=call.query.get("q", "")[:200], least_us=least_us, limit=limit)

    async def _one(self, call: Call[None]) -> TraceAnswer:
        found = self.find(call.params["trace"])
        spans = [facts(one) for one in found.spans]
        return TraceAnswer(found.trace, found.reason, found.complete, facts(found.root), spans)


def facts(one: SpanRecord) -> SpanFacts:
    """A step with names for browsers."""
    return SpanFacts(one.span, one.parent, one.name, one.process, one.start_us, one.took_us, one.failed)


def _number(call: Call[None], name: str, default: float) -> float:
    try:
        value = float(call.query.get(name, default))
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1e9:
        raise Rejected(f"{name} is a number from 0", code="bad_query")
    return value

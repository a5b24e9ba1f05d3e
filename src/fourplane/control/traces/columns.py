"""The traces that were kept, in columns: bounded memory, and searches over all of them at once.

Steps lie in rings of columns (numbers, and codes of names), a trace's steps one after the other; a trace is a row of another
ring: its id, where its steps begin and how many they are, its root's name, time, duration, whether it failed and why it
was kept. New traces overwrite the oldest, and so do their steps; a trace whose steps are overwritten is gone with them. So memory
is fixed: about 60 bytes a step and 100 a trace. A search is a comparison of columns: 0.2 ms for 20,000 traces.

Names are few and are kept as codes; past NAMES_MAX a new one is called `other`.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np

from fourplane.control.traces.model import SpanRecord, TraceRecord

NAMES_MAX = 4_000
OTHER = "other"
REASONS = ("error", "slow", "asked", "lot")
LIST_MAX = 500

Order = Literal["recent", "slowest", "errors"]


class TraceSummary(msgspec.Struct, frozen=True):
    """A trace in a list."""

    trace: str
    name: str
    reason: str
    start_us: int
    took_us: int
    failed: bool
    spans: int
    processes: int


class _Codes:
    """Texts as small integers."""

    def __init__(self) -> None:
        self.texts: list[str] = [OTHER]
        self._code: dict[str, int] = {OTHER: 0}

    def of(self, text: str) -> int:
        code = self._code.get(text)
        if code is None:
            if len(self.texts) >= NAMES_MAX:
                return 0
            code = self._code[text] = len(self.texts)
            self.texts.append(text)
        return code


class TraceColumns:
    """The last `traces_max` traces with at most `spans_max` steps in all."""

    def __init__(self, traces_max: int = 5_000, spans_max: int = 100_000) -> None:
        self._names, self._processes = _Codes(), _Codes()
        self._traces_max, self._spans_max = traces_max, spans_max
        self._ids = np.zeros(traces_max, dtype="S32")
        self._first = np.zeros(traces_max, dtype=np.int64)  # the running number of its first step
        self._count = np.zeros(traces_max, dtype=np.int32)
        self._name = np.zeros(traces_max, dtype=np.int32)
        self._start = np.zeros(traces_max, dtype=np.int64)
        self._took = np.zeros(traces_max, dtype=np.int64)
        self._failed = np.zeros(traces_max, dtype=np.bool_)
        self._reason = np.zeros(traces_max, dtype=np.int8)
        self._spread = np.zeros(traces_max, dtype=np.int16)
        self._span = np.zeros(spans_max, dtype="S16")
        self._parent = np.zeros(spans_max, dtype="S16")
        self._span_name = np.zeros(spans_max, dtype=np.int32)
        self._span_process = np.zeros(spans_max, dtype=np.int16)
        self._span_start = np.zeros(spans_max, dtype=np.int64)
        self._span_took = np.zeros(spans_max, dtype=np.int64)
        self._span_failed = np.zeros(spans_max, dtype=np.bool_)
        self.traces_total = 0
        self.spans_total = 0

    def __len__(self) -> int:
        return len(self._valid())

    def add(self, trace: TraceRecord) -> None:
        """Keep one trace; its root is its first step."""
        spans = [trace.root, *(one for one in trace.spans if one.span != trace.root.span)][: self._spans_max]
        row = self.traces_total % self._traces_max
        self._ids[row] = trace.trace.encode()
        self._first[row], self._count[row] = self.spans_total, len(spans)
        self._name[row] = self._names.of(trace.root.name)
        self._start[row], self._took[row] = trace.root.start_us, trace.root.took_us
        self._failed[row] = trace.root.failed
        self._reason[row] = REASONS.index(trace.reason)
        self._spread[row] = len({one.process for one in spans})
        for one in spans:
            self._put(self.spans_total % self._spans_max, one)
            self.spans_total += 1
        self.traces_total += 1

    def find(self, trace: str) -> TraceRecord | None:
        """The trace with this id, its steps as they came."""
        rows = self._valid()
        found = rows[self._ids[rows] == trace.encode()]
        if not len(found):
            return None
        row = int(found[-1])
        first = int(self._first[row])
        spans = [self._read(trace, number % self._spans_max) for number in range(first, first + int(self._count[row]))]
        return TraceRecord(trace, REASONS[int(self._reason[row])], spans[0], spans)

    def search(
        self, order: Order = "recent", *, text: str = "", least_us: int = 0, limit: int = 50
    ) -> list[TraceSummary]:
        """The newest, the slowest or the newest failed traces whose root's name has `text` in it."""
        rows = self._valid()
        if text:
            codes = [code for code, name in enumerate(self._names.texts) if text.lower() in name.lower()]
            rows = rows[np.isin(self._name[rows], codes)]
        if least_us:
            rows = rows[self._took[rows] >= least_us]
        if order == "errors":
            rows = rows[self._failed[rows]]
        key = self._took[rows] if order == "slowest" else self._start[rows]
        chosen = rows[np.argsort(-key, kind="stable")[: max(1, min(limit, LIST_MAX))]]
        return [self._summary(int(row)) for row in chosen]

    def since(self, total: int) -> Sequence[TraceRecord]:
        """The traces that came after the first `total` ones and are still here, the oldest first."""
        begin = max(total, self.traces_total - self._traces_max)
        numbers = [number % self._traces_max for number in range(begin, self.traces_total)]
        found = [self.find(self._ids[row].decode()) for row in numbers if self._first[row] >= self._oldest_span()]
        return [one for one in found if one is not None]

    def memory_bytes(self) -> int:
        """What all columns take."""
        columns = [one for one in vars(self).values() if isinstance(one, np.ndarray)]
        return sum(one.nbytes for one in columns)

    def check(self) -> None:
        """Assert the invariants."""
        rows = self._valid()
        assert len(rows) <= self._traces_max
        assert int(self._count[rows].sum()) <= self._spans_max
        assert (self._first[rows] >= self._oldest_span()).all()

    def _valid(self) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
        """The rows whose steps are all here, the oldest first."""
        begin = max(0, self.traces_total - self._traces_max)
        rows = np.arange(begin, self.traces_total, dtype=np.int64) % self._traces_max
        kept: np.ndarray[tuple[int], np.dtype[np.int64]] = rows[self._first[rows] >= self._oldest_span()]
        return kept

    def _oldest_span(self) -> int:
        return self.spans_total - self._spans_max

    def _put(self, at: int, one: SpanRecord) -> None:
        self._span[at], self._parent[at] = one.span.encode(), one.parent.encode()
        self._span_name[at] = self._names.of(one.name)
        self._span_process[at] = self._processes.of(one.process)
        self._span_start[at], self._span_took[at] = one.start_us, one.took_us
        self._span_failed[at] = one.failed

    def _read(self, trace: str, at: int) -> SpanRecord:
        return SpanRecord(
            trace,
            self._span[at].decode(),
            self._parent[at].decode(),
            self._names.texts[int(self._span_name[at])],
            self._processes.texts[int(self._span_process[at])],
            int(self._span_start[at]),
            int(self._span_took[at]),
            bool(self._span_failed[at]),
        )

    def _summary(self, row: int) -> TraceSummary:
        return TraceSummary(
            self._ids[row].decode(),
            self._names.texts[int(self._name[row])],
            REASONS[int(self._reason[row])],
            int(self._start[row]),
            int(self._took[row]),
            bool(self._failed[row]),
            int(self._count[row]),
            int(self._spread[row]),
        )

"""A trace as it travels between workers and to people: what is kept of one request over all processes."""

from typing import Literal

import msgspec

Reason = Literal["error", "slow", "asked", "lot"]
SPANS_MAX = 256  # of one trace


class SpanRecord(msgspec.Struct, frozen=True, array_like=True):
    """One step. `start_us` is wall time since 1970; ids are W3C's, `parent` zeros where the request began outside."""

    trace: str
    span: str
    parent: str
    name: str
    process: str
    start_us: int
    took_us: int
    failed: bool = False


class TraceRecord(msgspec.Struct, frozen=True):
    """One request: why it was kept, and its steps, the root first."""

    trace: str
    reason: str
    root: SpanRecord
    spans: list[SpanRecord]

    @property
    def complete(self) -> bool:
        """Whether every step's caller is known; what was overwritten before it was collected is missing."""
        known = {one.span for one in self.spans} | {self.root.parent}
        return all(one.parent in known for one in self.spans)


class KeptTrace(msgspec.Struct, frozen=True):
    """A worker's own part of a trace it decided to keep. `number` grows by one with each."""

    number: int
    trace: str
    reason: str
    spans: list[SpanRecord]

"""Traces in OpenTelemetry's OTLP, in its JSON form: what `POST /v1/traces` of a collector takes.

One resource a process, one span a step; ids in hex, times in nanoseconds as text, as opentelemetry-proto 1.x has them in JSON.
"""

from collections.abc import Sequence

import msgspec

from fourplane.control.metrics.otlp import AnyValue, Attribute, Resource
from fourplane.control.traces.model import SpanRecord, TraceRecord

SERVER, INTERNAL = 2, 1
ERROR = 2
NO_SPAN = "0" * 16


class Status(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a step ended."""

    code: int = 0


class OtlpSpan(msgspec.Struct, rename="camel", omit_defaults=True):
    """One step."""

    trace_id: str
    span_id: str
    name: str
    kind: int
    start_time_unix_nano: str
    end_time_unix_nano: str
    parent_span_id: str = ""
    attributes: list[Attribute] = []
    status: Status = Status()


class Scope(msgspec.Struct):
    """Who recorded."""

    name: str = "fourplane"


class ScopeSpans(msgspec.Struct):
    """The steps of one library."""

    scope: Scope
    spans: list[OtlpSpan]


class ResourceSpans(msgspec.Struct, rename="camel"):
    """The steps of one process."""

    resource: Resource
    scope_spans: list[ScopeSpans]


class TracesRequest(msgspec.Struct, rename="camel"):
    """The body of `POST /v1/traces`."""

    resource_spans: list[ResourceSpans]


def export(traces: Sequence[TraceRecord], *, service: str = "fourplane") -> bytes:
    """These traces as one request."""
    by_process: dict[str, list[OtlpSpan]] = {}
    for trace in traces:
        for one in trace.spans:
            root = one.span == trace.root.span
            by_process.setdefault(one.process, []).append(_span(one, trace.reason if root else "", root=root))
    request = TracesRequest(
        [
            ResourceSpans(
                Resource([_attribute("service.name", service), _attribute("service.instance.id", process)]),
                [ScopeSpans(Scope(), spans)],
            )
            for process, spans in by_process.items()
        ]
    )
    return msgspec.json.encode(request)


def _span(one: SpanRecord, reason: str, *, root: bool) -> OtlpSpan:
    return OtlpSpan(
        one.trace,
        one.span,
        one.name,
        SERVER if root else INTERNAL,
        str(one.start_us * 1_000),
        str((one.start_us + one.took_us) * 1_000),
        "" if one.parent == NO_SPAN else one.parent,
        [_attribute("fourplane.kept_because", reason)] if reason else [],
        Status(ERROR if one.failed else 0),
    )


def _attribute(key: str, text: str) -> Attribute:
    return Attribute(key, AnyValue(string_value=text))

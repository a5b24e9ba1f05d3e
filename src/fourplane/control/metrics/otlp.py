"""OpenTelemetry's OTLP over HTTP in its JSON form: metrics in, and this process's metrics out.

In: sums become counters (cumulative ones by difference, delta ones as they are) or gauges when not monotonic, gauges stay,
explicit-bucket histograms become `_bucket`, `_sum` and `_count`. Resource attributes become labels. Names become
`a_b` from `a.b`. Out: every cell of a registry, histograms with one bucket per power of two.
Facts after opentelemetry-proto 1.x; the binary form is not read (415 says so).
"""

import re

import msgspec
import numpy as np

from fourplane.control.metrics.series import Ids, SeriesTable
from fourplane.control.metrics.windows import Values
from fourplane.foundation.errors import Rejected
from fourplane.foundation.telemetry import SUB, Counter, Gauge, Histogram, Labels, Registry, bucket_upper

CUMULATIVE = 2
POINTS_MAX = 500_000
NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_:]")


class AnyValue(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The kinds of value that a label may have."""

    string_value: str | None = None
    int_value: str | int | None = None
    double_value: float | None = None
    bool_value: bool | None = None


class Attribute(msgspec.Struct):
    """One label."""

    key: str
    value: AnyValue = AnyValue()


class Point(msgspec.Struct, rename="camel", omit_defaults=True):
    """A number or a histogram at one time."""

    attributes: list[Attribute] = []
    time_unix_nano: str | int = "0"
    start_time_unix_nano: str | int = "0"
    as_double: float | None = None
    as_int: str | int | None = None
    count: str | int = 0
    sum: float = 0.0
    bucket_counts: list[str | int] = []
    explicit_bounds: list[float] = []


class Data(msgspec.Struct, rename="camel", omit_defaults=True):
    """The points of one metric."""

    data_points: list[Point] = []
    aggregation_temporality: int | str = 0
    is_monotonic: bool = False


class Metric(msgspec.Struct, omit_defaults=True):
    """A name and its points, of one of three kinds."""

    name: str
    description: str = ""
    unit: str = ""
    sum: Data | None = None
    gauge: Data | None = None
    histogram: Data | None = None


class Scope(msgspec.Struct, omit_defaults=True):
    """The metrics of one library."""

    metrics: list[Metric] = []


class Resource(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who sends."""

    attributes: list[Attribute] = []


class ResourceMetrics(msgspec.Struct, rename="camel", omit_defaults=True):
    """The metrics of one process."""

    resource: Resource = Resource()
    scope_metrics: list[Scope] = []


class ExportRequest(msgspec.Struct, rename="camel", omit_defaults=True):
    """The body of `POST /v1/metrics`."""

    resource_metrics: list[ResourceMetrics] = []


_decoder = msgspec.json.Decoder(ExportRequest)


class OtlpReader:
    """Points of OTLP requests as increments and values; remembers totals to make increments of them."""

    def __init__(self, table: SeriesTable) -> None:
        self._table = table
        self._totals: dict[int, float] = {}

    def read(self, body: bytes) -> tuple[Ids, Values, Ids, Values]:
        """Counters' ids and increments, gauges' ids and values. Raises Rejected for what is no such request."""
        try:
            request = _decoder.decode(body)
        except msgspec.MsgspecError as error:
            raise Rejected(f"not an OTLP metrics request in JSON: {error}", code="bad_otlp") from None
        grown: list[tuple[int, float]] = []
        now: list[tuple[int, float]] = []
        for resource in request.resource_metrics:
            common = _labels(resource.resource.attributes)
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    self._metric(metric, common, grown, now)
                    if len(grown) + len(now) > POINTS_MAX:
                        raise Rejected(f"a request has at most {POINTS_MAX:,} points", code="bad_otlp")
        return (*_columns(grown), *_columns(now))

    def _metric(
        self, metric: Metric, common: Labels, grown: list[tuple[int, float]], now: list[tuple[int, float]]
    ) -> None:
        name = NOT_IN_NAMES.sub("_", metric.name)
        for data, kind in ((metric.sum, "sum"), (metric.gauge, "gauge"), (metric.histogram, "histogram")):
            for point in data.data_points if data is not None else ():
                assert data is not None
                labels = tuple(sorted((*common, *_labels(point.attributes))))
                total = data.aggregation_temporality in {CUMULATIVE, "AGGREGATION_TEMPORALITY_CUMULATIVE"}
                if kind == "histogram":
                    self._histogram(name, labels, point, grown, total=total)
                elif kind == "sum" and data.is_monotonic:
                    self._count(name, labels, _value(point), grown, total=total)
                else:
                    now.append((self._table.id_of(name, labels, "gauge"), _value(point)))

    def _histogram(
        self, name: str, labels: Labels, point: Point, grown: list[tuple[int, float]], *, total: bool
    ) -> None:
        below = 0
        edges = [f"{bound:.10g}" for bound in point.explicit_bounds] + ["+Inf"]
        if len(point.bucket_counts) not in {0, len(edges)}:
            raise Rejected(f"{name} has {len(point.bucket_counts)} counts for {len(edges)} buckets", code="bad_otlp")
        for edge, count in zip(edges, point.bucket_counts, strict=False):
            below += int(count)
            self._count(f"{name}_bucket", tuple(sorted((*labels, ("le", edge)))), below, grown, total=total)
        self._count(f"{name}_count", labels, int(point.count), grown, total=total)
        self._count(f"{name}_sum", labels, point.sum, grown, total=total)

    def _count(self, name: str, labels: Labels, value: float, grown: list[tuple[int, float]], *, total: bool) -> None:
        number = self._table.id_of(name, labels, "counter")
        if total:
            before = self._totals.get(number)
            self._totals[number] = value
            value = 0.0 if before is None else value - before if value >= before else value
        if value > 0:
            grown.append((number, value))


def export(registry: Registry, *, now_us: int, started_us: int, resource: dict[str, str]) -> bytes:
    """All cells of `registry` as an OTLP request, cumulative since `started_us`."""

    def point(labels: Labels) -> Point:
        attributes = [Attribute(key, AnyValue(string_value=text)) for key, text in labels]
        return Point(attributes, time_unix_nano=str(now_us * 1_000), start_time_unix_nano=str(started_us * 1_000))

    metrics: dict[str, Metric] = {}
    for (name, labels), cell in list(registry.cells.items()):
        metric = metrics.setdefault(name, Metric(name, registry.help.get(name, "")))
        told = point(labels)
        match cell:
            case Counter():
                metric.sum = metric.sum or Data(aggregation_temporality=CUMULATIVE, is_monotonic=True)
                told.as_int = str(cell.value)
                metric.sum.data_points.append(told)
            case Gauge():
                metric.gauge = metric.gauge or Data()
                told.as_double = float(cell.current())
                metric.gauge.data_points.append(told)
            case Histogram():
                metric.histogram = metric.histogram or Data(aggregation_temporality=CUMULATIVE)
                _fill(told, cell)
                metric.histogram.data_points.append(told)
    own = [Attribute(key, AnyValue(string_value=text)) for key, text in sorted(resource.items())]
    request = ExportRequest([ResourceMetrics(Resource(own), [Scope(list(metrics.values()))])])
    return msgspec.json.encode(request)


def _fill(point: Point, cell: Histogram) -> None:
    powers = [sum(cell.buckets[at : at + SUB]) for at in range(0, len(cell.buckets), SUB)]
    last = max((power for power, count in enumerate(powers) if count), default=0)
    counts: list[str | int] = [str(count) for count in powers[: last + 1]]
    point.count, point.sum = str(cell.count), cell.total
    point.bucket_counts = [*counts, str(cell.count - sum(powers[: last + 1]))]
    point.explicit_bounds = [bucket_upper(power * SUB + SUB - 1) / cell.scale for power in range(last + 1)]


def _labels(attributes: list[Attribute]) -> Labels:
    return tuple((NOT_IN_NAMES.sub("_", one.key), _text(one.value)) for one in attributes)


def _text(value: AnyValue) -> str:
    for one in (value.string_value, value.int_value, value.double_value):
        if one is not None:
            return str(one)
    return "" if value.bool_value is None else str(value.bool_value).lower()


def _value(point: Point) -> float:
    if point.as_double is not None:
        return point.as_double
    return float(point.as_int or 0)


def _columns(points: list[tuple[int, float]]) -> tuple[Ids, Values]:
    ids = np.array([number for number, _ in points], dtype=np.uint32)
    return ids, np.array([value for _, value in points], dtype=np.float64)

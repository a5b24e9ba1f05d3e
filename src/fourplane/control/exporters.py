"""Metrics at the border: the registry's cells as Prometheus text, and the doors that say whether a process is well.

Prometheus text format 0.0.4: one HELP and TYPE per name, then every cell of it. A histogram is folded to one bucket per
power of two between its smallest and largest observation, so a route costs some ten lines, not 336.
Cost: about 20 us a cell, paid by whoever scrapes.
"""

from collections.abc import Awaitable, Callable, Iterable

import msgspec

from fourplane.edge.routes import Call, Priority, Reply, Route
from fourplane.foundation.errors import Unavailable
from fourplane.foundation.telemetry import SUB, Cell, Counter, Gauge, Histogram, Labels, Registry, bucket_upper

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Health(msgspec.Struct, frozen=True):
    """Answer of /healthz and /readyz."""

    status: str


def prometheus_text(registry: Registry) -> str:
    """All cells of `registry` as a scrape."""
    by_name: dict[str, list[tuple[Labels, Cell]]] = {}
    for (name, labels), cell in registry.cells.items():
        by_name.setdefault(name, []).append((labels, cell))
    lines: list[str] = []
    for name, cells in sorted(by_name.items()):
        text = registry.help.get(name, "")
        if text:
            lines.append(f"# HELP {name} {_escaped(text, quotes=False)}")
        lines.append(f"# TYPE {name} {_kind(cells[0][1])}")
        for labels, cell in cells:
            lines.extend(_cell_lines(name, labels, cell))
    return "\n".join(lines) + "\n"


def doors(
    registry: Registry, ready: Callable[[], bool], *, metrics: Callable[[], Awaitable[Registry]] | None = None
) -> list[Route]:
    """/metrics for a scraper, /healthz (the loop turns), /readyz (requests may come).

    `metrics` collects the cells of several workers; without it those of `registry` are shown.
    """

    async def scrape(_call: Call[None]) -> Reply:
        collected = registry if metrics is None else await metrics()
        return Reply(prometheus_text(collected).encode(), media_type=MEDIA_TYPE, headers={"cache-control": "no-store"})

    async def healthy(_call: Call[None]) -> Health:
        return Health("ok")

    async def prepared(_call: Call[None]) -> Health:
        if not ready():
            raise Unavailable("starting or draining", code="not_ready")
        return Health("ready")

    return [
        Route("GET", "/metrics", scrape, "All metrics in Prometheus text format", priority=Priority.CRITICAL),
        Route("GET", "/healthz", healthy, "The process is alive", answer=Health, priority=Priority.CRITICAL),
        Route("GET", "/readyz", prepared, "The process takes requests", answer=Health, priority=Priority.CRITICAL),
    ]


def _kind(cell: Cell) -> str:
    match cell:
        case Counter():
            return "counter"
        case Gauge():
            return "gauge"
        case Histogram():
            return "histogram"


def _cell_lines(name: str, labels: Labels, cell: Cell) -> Iterable[str]:
    match cell:
        case Counter():
            yield f"{name}{_labels(labels)} {cell.value}"
        case Gauge():
            yield f"{name}{_labels(labels)} {_number(cell.current())}"
        case Histogram():
            yield from _histogram_lines(name, labels, cell)


def _histogram_lines(name: str, labels: Labels, cell: Histogram) -> Iterable[str]:
    used = [index for index, count in enumerate(cell.buckets) if count]
    seen = 0
    if used:
        for begin in range(used[0] // SUB * SUB, used[-1] + 1, SUB):
            seen += sum(cell.buckets[begin : begin + SUB])
            edge = _number(bucket_upper(begin + SUB - 1) / cell.scale)
            yield f"{name}_bucket{_labels((*labels, ('le', edge)))} {seen}"
    yield f"{name}_bucket{_labels((*labels, ('le', '+Inf')))} {cell.count}"
    yield f"{name}_sum{_labels(labels)} {_number(cell.total)}"
    yield f"{name}_count{_labels(labels)} {cell.count}"


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value, quotes=True)}"' for name, value in labels) + "}"


def _escaped(text: str, *, quotes: bool) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text


def _number(value: float) -> str:
    return f"{value:.10g}"

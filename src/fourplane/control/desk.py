"""What one worker tells the others about itself: its boxes and their figures, its metrics, its doors, its events.

Every worker serves a `Desk` over rpc (`service/rpc.py`); the worker with the console asks all of them
(`control/colleagues.py`). An answer is a snapshot in plain structs, cumulative like the figures themselves, so that a lost or
repeated question changes nothing.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

import msgspec

from fourplane.control.nodes import Node, Plane
from fourplane.foundation import clock
from fourplane.foundation.errors import NotFound, Rejected
from fourplane.foundation.telemetry import Counter, Event, Gauge, Histogram, Labels, Registry
from fourplane.service.rpc import idempotent

Importer = Callable[[str, str, Callable[[dict[str, Any]], None], bool], Awaitable[object]]
EVENTS_AT_ONCE = 200


class NodeCard(msgspec.Struct, frozen=True):
    """What a box is."""

    id: str
    plane: Plane
    what: str
    source: str
    journey: str
    page: str
    built: bool
    stoppable: bool


class HistogramState(msgspec.Struct, frozen=True):
    """A histogram as it stands."""

    scale: float
    buckets: list[int]
    count: int
    total: float

    def restored(self) -> Histogram:
        """The same as a cell, for reading: it shares the buckets."""
        cell = Histogram.__new__(Histogram)
        cell.scale, cell.buckets, cell.count, cell.total = self.scale, self.buckets, self.count, self.total
        return cell


class NodeNumbers(msgspec.Struct, frozen=True):
    """The figures of a box."""

    requests: int
    errors: int
    saturation: float
    facts: dict[str, float | int | str]
    running: bool
    latency: HistogramState | None = None


class WorkerFigures(msgspec.Struct, frozen=True):
    """A worker at one moment."""

    nodes: dict[str, dict[str, NodeNumbers]]
    events_total: int
    events: list[Event]
    memory_mb: float
    cpu_s: float
    ready: bool


class CellState(msgspec.Struct, frozen=True):
    """One metric of one worker."""

    name: str
    labels: list[tuple[str, str]]
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    value: float = 0.0
    histogram: HistogramState | None = None


class Desk:
    """The answers of this worker."""

    def __init__(
        self,
        registry: Registry,
        nodes: Mapping[str, Sequence[Node]],
        *,
        memory_mb: Callable[[], float],
        ready: Callable[[], bool],
        statistics: Callable[[], Mapping[str, object]],
        importer: Importer,
    ) -> None:
        self._registry = registry
        self._nodes = {system: {node.id: node for node in known} for system, known in nodes.items()}
        self._memory_mb = memory_mb
        self._ready = ready
        self._statistics = statistics
        self._importer = importer
        self._progress: dict[str, dict[str, Any]] = {}

    @idempotent
    async def cards(self) -> dict[str, list[NodeCard]]:
        """Every box of every system here."""
        return {system: [_card(node) for node in known.values()] for system, known in self._nodes.items()}

    @idempotent
    async def figures(self, seen: int) -> WorkerFigures:
        """All figures, and the events since `seen` of them had been told (-1: none of the past)."""
        registry = self._registry
        fresh = min(registry.events_total - seen, len(registry.events), EVENTS_AT_ONCE) if seen >= 0 else 0
        return WorkerFigures(
            {
                system: {node_id: _numbers(node) for node_id, node in known.items() if node.built}
                for system, known in self._nodes.items()
            },
            registry.events_total,
            list(islice(registry.events, len(registry.events) - max(0, fresh), None)),
            self._memory_mb(),
            clock.cpu_s(),
            self._ready(),
        )

    @idempotent
    async def switch(self, system: str, node_id: str, *, running: bool) -> None:
        """Stop or start a box."""
        node = self._nodes.get(system, {}).get(node_id)
        if node is None:
            raise NotFound(f"no node {node_id} in {system}", code="no_node")
        if node.switch is None:
            raise Rejected(f"{node_id} cannot be stopped on its own", code="no_switch")
        node.switch.on = running

    @idempotent
    async def cells(self) -> list[CellState]:
        """All metrics."""
        help_texts = self._registry.help
        return [
            _cell(name, labels, cell, help_texts.get(name, "")) for (name, labels), cell in self._registry.cells.items()
        ]

    @idempotent
    async def statistics(self) -> dict[str, bytes]:
        """The statistics of every system here, as JSON."""
        return {name: msgspec.json.encode(found) for name, found in self._statistics().items()}

    async def import_file(self, kind: str, file: str, *, dry_run: bool) -> bytes:
        """Bring a file into its system; the result as JSON. `import_progress` tells how far it is."""

        def told(facts: dict[str, Any]) -> None:
            self._progress[file] = facts

        try:
            return msgspec.json.encode(await self._importer(kind, file, told, dry_run))
        finally:
            self._progress.pop(file, None)

    @idempotent
    async def import_progress(self, file: str) -> bytes:
        """What the import of this file told last, as JSON."""
        return msgspec.json.encode(self._progress.get(file, {}))


def restore(registry: Registry, cells: Sequence[CellState], worker: str) -> None:
    """Put the metrics of another worker into `registry`, told apart by a label."""
    for state in cells:
        labels: Labels = (*((name, value) for name, value in state.labels), ("worker", worker))
        cell: Counter | Gauge | Histogram
        if state.histogram is not None:
            cell = state.histogram.restored()
        else:
            cell = Counter() if state.kind == "counter" else Gauge()
            cell.value = int(state.value) if isinstance(cell, Counter) else state.value
        registry.cells[state.name, labels] = cell
        registry.help.setdefault(state.name, state.help)


def _card(node: Node) -> NodeCard:
    return NodeCard(
        node.id, node.plane, node.what, node.source, node.journey, node.page, node.built, node.switch is not None
    )


def _numbers(node: Node) -> NodeNumbers:
    figures = node.figures()
    latency = None if figures.latency is None else _state(figures.latency)
    running = node.switch is None or node.switch.on
    return NodeNumbers(figures.requests, figures.errors, figures.saturation, figures.facts, running, latency)


def _cell(name: str, labels: Labels, cell: Counter | Gauge | Histogram, text: str) -> CellState:
    match cell:
        case Counter():
            return CellState(name, list(labels), "counter", text, cell.value)
        case Gauge():
            return CellState(name, list(labels), "gauge", text, cell.current())
        case Histogram():
            return CellState(name, list(labels), "histogram", text, histogram=_state(cell))


def _state(cell: Histogram) -> HistogramState:
    return HistogramState(cell.scale, cell.buckets, cell.count, cell.total)

"""From cumulative figures to what a person sees each second: rates, quantiles over ten seconds, a minute of history.

Pure: `View.tick(now_s)` asks every node for its figures and returns one frame. A frame is small (six numbers a
node), because every open page gets one a second. Cost: about 10 us a node.
"""

from collections import deque
from collections.abc import Mapping, Sequence

import msgspec

from fourplane.control.nodes import Figures, Node
from fourplane.foundation.telemetry import quantile

WINDOW_TICKS = 10
HISTORY_TICKS = 60


class NodeFrame(msgspec.Struct, array_like=True):
    """One node in one second: rates per second, quantiles in ms over the window, saturation 0..1, running."""

    requests_per_s: float
    errors_per_s: float
    p50_ms: float
    p99_ms: float
    saturation: float
    running: bool
    facts: dict[str, float | int | str]
    requests_total: int


class _Past:
    """What one node counted in the last ticks."""

    __slots__ = ("buckets", "errors", "rates", "requests")

    def __init__(self) -> None:
        self.requests: int | None = None
        self.errors = 0
        self.buckets: deque[list[int]] = deque(maxlen=WINDOW_TICKS)
        self.rates: deque[float] = deque(maxlen=HISTORY_TICKS)


class View:
    """The nodes of all systems and their recent past."""

    def __init__(self, systems: Mapping[str, Sequence[Node]]) -> None:
        self.systems = {name: {node.id: node for node in nodes} for name, nodes in systems.items()}
        self._past = {name: {node_id: _Past() for node_id in nodes} for name, nodes in self.systems.items()}
        self._last_s: float | None = None

    def adopt(self, system: str, nodes: Sequence[Node]) -> None:
        """Watch the nodes of one more system, in place of what was known of it."""
        self.systems[system] = {node.id: node for node in nodes}
        self._past[system] = {node.id: _Past() for node in nodes}

    def tick(self, now_s: float) -> dict[str, dict[str, NodeFrame]]:
        """One frame per built node; the first tick has no rates yet."""
        elapsed = now_s - self._last_s if self._last_s is not None else 0.0
        self._last_s = now_s
        return {
            system: {
                node_id: _frame(node, self._past[system][node_id], elapsed)
                for node_id, node in nodes.items()
                if node.built
            }
            for system, nodes in self.systems.items()
        }

    def history(self) -> dict[str, dict[str, list[float]]]:
        """Requests per second of the last minute, for the sparklines of a page that just opened."""
        return {
            system: {node_id: list(past.rates) for node_id, past in pasts.items() if past.rates}
            for system, pasts in self._past.items()
        }


def _frame(node: Node, past: _Past, elapsed: float) -> NodeFrame:
    figures = node.figures()
    rate = errors = 0.0
    if past.requests is not None and elapsed > 0:
        rate = max(0, figures.requests - past.requests) / elapsed
        errors = max(0, figures.errors - past.errors) / elapsed
        past.rates.append(round(rate, 2))
    past.requests, past.errors = figures.requests, figures.errors
    p50, p99 = _quantiles(figures, past)
    return NodeFrame(
        round(rate, 2),
        round(errors, 2),
        p50,
        p99,
        round(min(1.0, max(0.0, figures.saturation)), 3),
        node.switch is None or node.switch.on,
        figures.facts,
        figures.requests,
    )


def _quantiles(figures: Figures, past: _Past) -> tuple[float, float]:
    cell = figures.latency
    if cell is None:
        return 0.0, 0.0
    now = list(cell.buckets)
    before = past.buckets[0] if past.buckets else [0] * len(now)
    recent = [count - earlier for count, earlier in zip(now, before, strict=True)]
    past.buckets.append(now)
    return round(quantile(recent, 0.5, cell.scale) * 1e3, 3), round(quantile(recent, 0.99, cell.scale) * 1e3, 3)

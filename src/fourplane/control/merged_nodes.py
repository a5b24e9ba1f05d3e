"""One box of a diagram whose work is done by several workers: figures added up, one switch for all. Pure."""

from collections.abc import Sequence

import msgspec

from fourplane.control.nodes import Figures, Node, Switch
from fourplane.foundation.telemetry import Histogram


class AllSwitch(Switch):
    """Stops and starts a box in every worker."""

    __slots__ = ("_switches",)

    def __init__(self, switches: Sequence[Switch]) -> None:
        self._switches = switches
        self.name = switches[0].name

    @property
    def on(self) -> bool:
        return all(one.on for one in self._switches)

    @on.setter
    def on(self, running: bool) -> None:
        for one in self._switches:
            one.on = running


def merged(lists: Sequence[Sequence[Node]]) -> list[Node]:
    """The boxes of one system from all workers that run it, in the order of the first."""
    by_id: dict[str, list[Node]] = {}
    for nodes in lists:
        for node in nodes:
            by_id.setdefault(node.id, []).append(node)
    return [_one(nodes) if len(nodes) > 1 else nodes[0] for nodes in by_id.values()]


def added(one: object, other: object) -> object:
    """Two statistics of the same shape, numbers added; what is no number is the first's."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {**other, **{name: added(value, other.get(name, 0)) for name, value in one.items()}}
    if isinstance(one, int | float) and isinstance(other, int | float) and not isinstance(one, bool):
        return one + other
    return one


def _one(nodes: Sequence[Node]) -> Node:
    switches = [node.switch for node in nodes if node.switch is not None]
    chosen = next((node for node in nodes if node.built), nodes[0])
    return msgspec.structs.replace(
        chosen,
        figures=lambda: _figures([node.figures() for node in nodes]),
        switch=AllSwitch(switches) if len(switches) > 1 else switches[0] if switches else None,
    )


def _figures(found: Sequence[Figures]) -> Figures:
    facts: dict[str, float | int | str] = {}
    for one in found:
        for name, value in one.facts.items():
            known = facts.get(name)
            if isinstance(value, int | float) and isinstance(known, int | float):
                facts[name] = known + value
            else:
                facts.setdefault(name, value)
    return Figures(
        sum(one.requests for one in found),
        sum(one.errors for one in found),
        max(one.saturation for one in found),
        _latency([one.latency for one in found if one.latency is not None]),
        facts,
    )


def _latency(found: Sequence[Histogram]) -> Histogram | None:
    if len(found) < 2 or any(one.scale != found[0].scale for one in found):
        return found[0] if found else None
    cell = Histogram.__new__(Histogram)
    cell.scale = found[0].scale
    cell.buckets = [sum(counts) for counts in zip(*(one.buckets for one in found), strict=True)]
    cell.count, cell.total = sum(one.count for one in found), sum(one.total for one in found)
    return cell

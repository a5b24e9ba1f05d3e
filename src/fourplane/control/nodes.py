"""The boxes of the case studies' diagrams, alive: what each one is here, its figures, and a switch.

Every system lists its nodes by the id they carry in the study's diagram (`CONN_MGR`, `MATCHING_SVC`, ...). The console asks
for `figures()` once a second; a node counts cumulatively and the console makes rates of it. A stopped switch makes
the node's work fail with `Unavailable`, so that everybody can see what depends on it.
"""

from collections.abc import Callable
from typing import Literal

import msgspec

from fourplane.foundation.errors import Unavailable
from fourplane.foundation.telemetry import Histogram

Plane = Literal["edge", "service", "state", "control", "outside"]


class Switch:
    """On unless an operator stopped it; the work behind it calls `check()` first."""

    __slots__ = ("name", "on")

    def __init__(self, name: str) -> None:
        self.name = name
        self.on = True

    def check(self) -> None:
        """Raise Unavailable while the operator has this node stopped."""
        if not self.on:
            raise Unavailable(f"{self.name} was stopped by an operator", code="stopped_by_operator")


class Figures(msgspec.Struct):
    """Cumulative numbers of one node; the console shows differences per second."""

    requests: int = 0
    errors: int = 0
    saturation: float = 0.0  # 0 idle .. 1 full: of a queue, a pool, a bound
    latency: Histogram | None = None  # seconds
    facts: dict[str, float | int | str] = {}  # what only this node has: sessions, cells, hit ratio


class Node(msgspec.Struct):
    """One box: `built` False is drawn hollow with the reason in `what`."""

    id: str
    plane: Plane
    what: str  # one sentence: what this box is here
    source: str  # "messaging/user_session.py"
    figures: Callable[[], Figures]
    switch: Switch | None = None
    journey: str = ""  # "journeys/messaging.md"
    page: str = ""  # where a person can use it: "/messaging/"
    built: bool = True


def hollow(node_id: str, plane: Plane, what: str) -> Node:
    """A box of the diagram that is not built yet, and says so."""
    return Node(id=node_id, plane=plane, what=what, source="", figures=Figures, built=False)

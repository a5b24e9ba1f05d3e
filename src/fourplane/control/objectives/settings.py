"""What is promised: the objectives of a deployment, by default and from `fourplane.toml`.

An objective counts events: `total` and `bad` are queries of the metrics language whose increase is summed over all series.
Every system has three by default: its answers are no errors, they are quick, and a probe that asks as a user does is served.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec

from fourplane.control.metrics.language import parse
from fourplane.control.objectives.budget import PERIOD_S
from fourplane.foundation.errors import Misconfigured

Kind = Literal["availability", "latency"]
PERIOD_S_MIN = 60.0
QUICK_S = 0.524288  # an edge of the histograms, so that counting under it is exact
PROBE_QUICK_S = 1.048576


class Objective(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One promise about one service."""

    name: str
    service: str
    total: str
    bad: str
    target: float = 0.999
    kind: Kind = "availability"
    what: str = ""

    def __post_init__(self) -> None:
        if not 0.5 <= self.target < 1.0:
            raise Misconfigured("a target is a share from 0.5 to below 1", setting=f"objectives.{self.name}.target")
        for query in (self.total, self.bad):
            parse(query)


class ObjectiveSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All promises. `period_s` is the time a budget lasts; all windows of its alerts shrink with it."""

    enabled: bool = True
    period_s: float = PERIOD_S
    usual: bool = True  # the three of each system
    declared: tuple[Objective, ...] = ()
    declared_max: int = 100

    def __post_init__(self) -> None:
        if self.period_s < PERIOD_S_MIN:
            raise Misconfigured(f"a period lasts at least {PERIOD_S_MIN:g} s", setting="objectives.period_s")
        names = [one.name for one in self.declared]
        if len(names) != len(set(names)) or len(names) > self.declared_max:
            raise Misconfigured(f"at most {self.declared_max} objectives, each with a name of its own",
                                setting="objectives.declared")  # fmt: skip


def chosen(settings: ObjectiveSettings, systems: Sequence[str]) -> list[Objective]:
    """The objectives of a deployment of these systems; a declared one replaces the usual one of its name."""
    found = {one.name: one for system in systems for one in usual(system)} if settings.usual else {}
    return list((found | {one.name: one for one in settings.declared}).values())


def usual(system: str) -> list[Objective]:
    """What every system is held to unless somebody says otherwise."""
    routes = f'{{route=~"[A-Z]+ /{system}/.*"}}'
    probes = f'{{system="{system}"}}'
    return [
        Objective(
            f"{system}-answers",
            system,
            total=f"sum(fourplane_edge_requests_total{routes})",
            bad=f"sum(fourplane_edge_errors_total{routes})",
            what="requests that were not answered with an error of ours",
        ),
        Objective(
            f"{system}-quick",
            system,
            total=f"sum(fourplane_edge_request_seconds_count{routes})",
            bad=f"over({QUICK_S}, fourplane_edge_request_seconds{routes})",
            target=0.99,
            kind="latency",
            what="requests answered within half a second",
        ),
        Objective(
            f"{system}-from-outside",
            system,
            total=f"sum(fourplane_control_probes_total{probes})",
            bad=f"sum(fourplane_control_probes_failed_total{probes})",
            what="probes that were served as a user is",
        ),
        Objective(
            f"{system}-from-outside-quick",
            system,
            total=f"sum(fourplane_control_probe_seconds_count{probes})",
            bad=f"over({PROBE_QUICK_S}, fourplane_control_probe_seconds{probes})",
            target=0.95,
            kind="latency",
            what="probes that were served within a second",
        ),
    ]

"""The boxes of the streaming study's chaos diagram, alive: what breaks things, where workers stand, what answers."""

from collections.abc import Callable, Mapping, Sequence

import msgspec

from fourplane.control.live_faults import FaultState
from fourplane.control.nodes import Figures, Node, Plane
from fourplane.control.places import Places
from fourplane.control.runbooks.model import Run

JOURNEY = "guides/chaos.md"
PAGE = "/control/drills"
PAGES = {"ALERT": "/control/alerts"}
CHAOS = (
    ("MONKEY", "Instances die: the kill of a drill, by a click or in working hours.", ("instance_loss",)),
    ("GORILLA", "A zone is lost: every worker that stands there is gone for a while.", ("zone_loss",)),
    ("KONG", "A region is lost: its workers die, its cache nodes go dark.", ("region_loss",)),
    ("chaos-engineering-architecture.LATENCY", "Requests wait, for all or a share of the callers.", ("latency",)),
)


def nodes(
    faults: Callable[[], Sequence[FaultState]],
    runs: Callable[[], Sequence[Run]],
    alerts: Callable[[], int],
    places: Places,
) -> list[Node]:
    """Boxes that replace the ones with the same names. `faults`: all of this worker that are, or are over."""

    def broken(kinds: Sequence[str]) -> Callable[[], Figures]:
        def figures() -> Figures:
            found = [one for one in faults() if one.kind in kinds]
            lasting = sum(not one.ended for one in found)
            return Figures(len(found), facts={"now": lasting, "so far": len(found)})

        return figures

    def acted(name: str) -> Callable[[], Figures]:
        def figures() -> Figures:
            found = [one for one in runs() if name in ("", one.runbook)]
            return Figures(
                len(found), sum(one.outcome == "escalated" for one in found),
                facts={"runs": len(found), "recovered": sum(one.outcome == "recovered" for one in found)},
            )  # fmt: skip

        return figures

    def zone(number: int) -> Callable[[], Figures]:
        def figures() -> Figures:
            there = list(dict.fromkeys(places.zones))
            name = there[number] if number < len(there) else "nobody here"
            return Figures(facts={"zone": name, "workers": sum(one == name for one in places.zones)})

        return figures

    def box(name: str, plane: Plane, what: str, source: str, figures: Callable[[], Figures]) -> Node:
        return Node(name, plane, what, source, figures, journey=JOURNEY, page=PAGES.get(name, PAGE))

    return [
        *[box(name, "control", what, "control/live_faults.py", broken(kinds)) for name, what, kinds in CHAOS],
        *[
            box(f"AZ{number + 1}", "service", "A zone: where workers stand.", "control/places.py", zone(number))
            for number in range(3)
        ],
        box("ALERT", "control", "Alerts over objectives, probes, workers, regions.", "control/alerts/desk.py",
            lambda: Figures(alerts(), facts={"told": alerts()})),
        box("RUNBOOK", "control", "What is done about an alert, step by step, verified.", "control/runbooks/desk.py", acted("")),
        box("ROLLBACK", "control", "The last change is taken back when answers became slow.", "control/changes.py",
            acted("latency")),
    ]  # fmt: skip


def with_chaos(known: Sequence[Node], own: Sequence[Node]) -> list[Node]:
    """The boxes of a system with these instead of the hollow ones of their names."""
    names = {node.id for node in own}
    return [*[node for node in known if node.id not in names], *own]


def region_of_box(name: str, regions: Mapping[str, str]) -> str:
    """The region a box stands in, or stands for as a whole: then its name ends in it, as CDN_US does; empty for neither."""
    whole = name.rpartition("_")[2].lower()
    return regions.get(name, whole if whole in regions.values() else "")


def darkening(node: Node, dark: Callable[[str], str]) -> Node:
    """The same box, which says while `dark` names the region it stands in."""
    name = node.id.rpartition(".")[2]

    def figures() -> Figures:
        found, region = node.figures(), dark(name)
        return msgspec.structs.replace(found, facts={"dark": region, **found.facts}) if region else found

    return msgspec.structs.replace(node, figures=figures) if node.built else node

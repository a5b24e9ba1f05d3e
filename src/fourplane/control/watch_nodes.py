"""The boxes of the studies that stand for watching: traces, alerts, the capacity plan. Control is what they are here."""

from collections.abc import Callable, Mapping, Sequence

from fourplane.control.alerts.desk import AlertStatistics
from fourplane.control.chaos_nodes import with_chaos
from fourplane.control.nodes import Figures, Node
from fourplane.control.traces.keeper import KeeperStatistics

TRACES, ALERTS, PLAN = "JAEGER", "ALERTS", "CAPACITY"
STANDS_IN = {TRACES: "dispatch", ALERTS: "messaging", PLAN: "commerce"}


def with_watching(
    known: Mapping[str, Sequence[Node]],
    *,
    traces: Callable[[], KeeperStatistics] | None,
    objectives: int,
    alerts: Callable[[], AlertStatistics | None],
) -> dict[str, Sequence[Node]]:
    """The boxes of all systems, with these instead of the hollow ones of their names; what is switched off stays hollow."""

    def traced() -> Figures:
        assert traces is not None
        found = traces()
        return Figures(found.kept, facts={"kept": found.kept, "slow from ms": round(found.slow_ms, 1)})

    def alerted() -> Figures:
        told = alerts()  # None in a worker without the console, which only promises
        facts: dict[str, float | int | str] = {"objectives": objectives}
        return (
            Figures(facts=facts) if told is None else Figures(told.fired_total, facts=facts | {"firing": told.firing})
        )

    own = [
        Node(PLAN, "control", "The capacity plan: what so many users need and cost, from this machine's own figures.",
             "control/plan/sizing.py", lambda: Figures(facts={"from": "bench figures"}), journey="guides/planning.md",
             page="/control/plan"),
    ]  # fmt: skip
    if traces is not None:
        own.append(
            Node(TRACES, "control", "Requests that failed or were slow, step by step over all processes.",
                 "control/traces/collector.py", traced, journey="guides/objectives.md", page="/control/traces")
        )  # fmt: skip
    if objectives:
        own.append(
            Node(ALERTS, "control", "What is promised, how fast it is spent, and who is told.", "control/alerts/desk.py",
                 alerted, journey="guides/objectives.md", page="/control/alerts")
        )  # fmt: skip
    return {
        system: with_chaos(nodes, [node for node in own if STANDS_IN[node.id] == system])
        for system, nodes in known.items()
    }

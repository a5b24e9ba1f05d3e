"""What makes one worker breakable on purpose and the deployment able to help itself, built in one place for `compose`.

Every worker has faults it can be given (live_faults.py) and values that can be changed while it runs (changes.py). The one
with the console also carries orders to the others (fault_orders.py), watches places (runbooks/watch.py), acts by runbooks
(runbooks/desk.py) and runs drills (drills.py).
"""

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from fourplane.control import chaos_nodes
from fourplane.control.alerts.book import Condition
from fourplane.control.alerts.model import Alert
from fourplane.control.changes import Changes
from fourplane.control.chaos_schedule import ScheduleSettings
from fourplane.control.drills import Drills
from fourplane.control.fault_machine import Machine, Spoilable, Vanishing
from fourplane.control.fault_orders import FaultOrders
from fourplane.control.live_faults import FaultDesk, LiveFaults
from fourplane.control.metrics.store import MetricsStore
from fourplane.control.neighbourhood import Neighbourhood
from fourplane.control.nodes import Node
from fourplane.control.objectives.ledger import Ledger
from fourplane.control.placement import CONSOLE
from fourplane.control.places import Places
from fourplane.control.runbooks.abilities import Abilities
from fourplane.control.runbooks.desk import Runbooks
from fourplane.control.runbooks.model import LIBRARY, Runbook, load
from fourplane.control.runbooks.watch import Watch
from fourplane.edge.routes import Door
from fourplane.foundation import clock
from fourplane.foundation.errors import Rejected
from fourplane.foundation.lifecycle import Lifecycle, Part
from fourplane.foundation.telemetry import Registry
from fourplane.service.accounts import Accounts
from fourplane.state.contracts import Blobs

IN_FLIGHT = "http.in_flight_max"
HEARD_MAX = 500
CHANGE_S_MAX = 600.0


class ChaosSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where workers stand, what may be broken, and what is done about it."""

    zones: tuple[str, ...] = ()  # of the worker slots, in turn; a region is the part before the dash
    runbooks: Path | None = None  # a folder of them beside the ones that come along; the same name replaces one
    acts: bool = True  # whether runbooks act at all
    schedule: ScheduleSettings = ScheduleSettings()


class Alerting(Protocol):
    """The alerts: who says what holds, and who hears of each that begins or ends."""

    watchers: list[Callable[[float], Iterable[Condition]]]
    on_change: list[Callable[[Alert], None]]


class Resilience:
    """The parts; `add_to` puts those of every worker into its life, `help_itself` those of the one with the console."""

    def __init__(
        self,
        settings: ChaosSettings,
        *,
        near: Neighbourhood,
        data: Path,
        folder: Path,
        systems: Sequence[str],
        registry: Registry,
        accounts: Accounts,
        disk: Spoilable | None,
        regions: Callable[[], Mapping[str, Sequence[Vanishing]]],
        region_of: Mapping[str, str] | None = None,
    ) -> None:
        """`folder`: of the sockets of the workers; `regions`: the cache nodes here, by region; `region_of`: of all, by id."""
        self._region_of = region_of or {}
        self._settings = settings
        self._data = data
        self._systems = systems
        self._registry = registry
        self._limits: list[Callable[[int], None]] = []
        self.places = Places(near.placement.workers, settings.zones, tuple(self._region_of.values()))

        async def tenant_of(token: str) -> str:
            found = await accounts.session(token)
            return "" if found is None else found.tenant

        self.faults = LiveFaults(
            registry, data=data, slot=near.slot, zone=self.places.zones[near.slot],
            machine=Machine(disk=disk, peers=near.peers, regions=regions), tenant_of=tenant_of,
        )  # fmt: skip
        self.desk = FaultDesk(self.faults, self._tune)
        self._orders: FaultOrders | None = None
        self.doors: list[Door] = []
        self.parts: list[tuple[str, Part]] = []  # for the end of the lifecycle, behind the doors they use
        self._heard: deque[tuple[float, Alert]] = deque(maxlen=HEARD_MAX)
        self.spent: Callable[[], dict[str, tuple[float, float]]] = dict  # bad and all events by objective
        self.runbooks: Runbooks | None = None
        self.changes: Changes | None = None
        if near.owns(CONSOLE):
            self._orders = FaultOrders(self.desk, near, self.places, systems, folder)

    def add_to(self, lifecycle: Lifecycle) -> None:
        """Start with the worker, stop with it."""
        lifecycle.add("faults", self.faults)
        if self._orders is not None:
            lifecycle.add("fault orders", self._orders)

    def limited(self, set_limit: Callable[[int], None]) -> None:
        """A server whose number of requests under way is one of the values that can be changed."""
        self._limits.append(set_limit)

    async def order(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """An order about faults, wherever it has to go; `change`, `take_back` and `incident` are answered here."""
        assert self._orders is not None
        wanted = str(arguments.get("order", ""))
        if wanted == "incident":
            return await self._incident(float(arguments.get("since_s", 0.0)))
        if wanted == "begin" and arguments.get("kind") == "change":
            return await self._change(dict(arguments.get("arguments", {})))
        if wanted == "undo_all" and self.changes is not None:
            await self.changes.take_back_lapsing()
        return await self._orders.order(arguments)

    async def _change(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """A change as an experiment wishes it: it lapses. No lease, so no id."""
        if self.changes is None:
            raise Rejected("nothing can be changed here", code="no_knob")
        lapse_after_s = min(float(wanted.get("duration_s", 60.0)), CHANGE_S_MAX)
        name, value = str(wanted.get("name", "")), float(wanted.get("value", 0.0))
        await self.changes.apply(name, value, who="experiment", lapse_after_s=lapse_after_s)
        return {"ids": []}

    async def _incident(self, since_s: float) -> dict[str, Any]:
        """What happened since then, for a report: alerts, runs of runbooks, what budgets have spent, faults that ended."""
        assert self._orders is not None
        runs = [] if self.runbooks is None else self.runbooks.runs(since_s)
        alerts = [{"at_s": at_s} | msgspec.to_builtins(one) for at_s, one in self._heard if at_s >= since_s]
        found = await self._orders.order({"order": "states"})
        values = {} if self.changes is None else {"values": self.changes.values(), "usual": self.changes.usual}
        return found | values | {"runs": msgspec.to_builtins(runs), "alerts": alerts, "budgets": self.spent()}

    def help_itself(
        self,
        *,
        blobs: Blobs,
        metrics: MetricsStore,
        alerts: Alerting,
        where: Callable[[], tuple[str, int]],
        token: Callable[[], Awaitable[str]],
        ledger: Ledger | None,
        in_flight_max: int,
    ) -> None:
        """Let alerts start runbooks, and people drills. In the worker with the console."""
        registry = self._registry
        if ledger is not None:
            self.spent = ledger.spent
        changes = self.changes = Changes(
            blobs, registry=registry, tell=self._tell, usual={IN_FLIGHT: float(in_flight_max)}
        )

        def query(text: str, seconds: float) -> list[tuple[Mapping[str, str], Sequence[float]]]:
            frame = metrics.run(text, seconds=seconds)
            return [(dict(labels), values.tolist()) for labels, values in zip(frame.labels, frame.values, strict=True)]

        def able(desk: Runbooks) -> Abilities:
            return Abilities(where=where, token=token, systems=self._systems, query=query, blobs=blobs, page=desk.page)

        runbooks = self.runbooks = Runbooks(books_of(self._settings), registry=registry, blobs=blobs, abilities=able)
        abilities = runbooks.abilities
        watch = Watch(
            registry=registry, zones=self.places.zones, nodes=abilities.nodes, answers=abilities.answers,
            medians=abilities.medians,
        )  # fmt: skip
        abilities.watch, abilities.changes = watch, changes
        changes.on_change.append(lambda change: watch.taken_back() if change.takes_back else watch.changed())
        alerts.watchers += [watch.conditions, runbooks.conditions]

        def heard(alert: Alert) -> None:
            self._heard.append((clock.now_us() / 1e6, alert))
            watch.heard(alert)
            if self._settings.acts:
                runbooks.hear(alert)

        alerts.on_change.append(heard)
        drills = Drills(
            data=self._data,
            systems=self._systems,
            order=self.order,
            registry=registry,
            schedule=self._settings.schedule,
        )
        self.doors = [*changes.doors(), *runbooks.doors(), *drills.doors()]
        self.parts = [("changes", changes), ("watch", watch), ("runbooks", runbooks), ("drills", drills)]

    def nodes(self, known: Mapping[str, Sequence[Node]]) -> dict[str, Sequence[Node]]:
        """The boxes of all systems: those that stand in a dark region say so, those of the study's chaos diagram are alive."""
        if "streaming" in known:
            known = {**known, "streaming": [chaos_nodes.darkening(one, self._dark) for one in known["streaming"]]}
        if "streaming" not in known or self.runbooks is None:
            return dict(known)
        runs = self.runbooks.runs
        own = chaos_nodes.nodes(
            lambda: [*self.faults.states(), *self.faults.over()], runs,
            lambda: sum(alert.state == "firing" for _, alert in self._heard), self.places,
        )  # fmt: skip
        return {**known, "streaming": chaos_nodes.with_chaos(known["streaming"], own)}

    def _dark(self, node_id: str) -> str:
        """The region of this box while that is dark, empty otherwise."""
        region = chaos_nodes.region_of_box(node_id, self._region_of)
        return region if region in self.faults.regions_lost() else ""

    async def _tell(self, values: Mapping[str, float]) -> None:
        await self.order({"order": "tune", "values": dict(values)})

    def _tune(self, values: Mapping[str, float]) -> None:
        """Be as these values say, in this worker."""
        for set_limit in self._limits:
            set_limit(int(values.get(IN_FLIGHT, 0)) or 2_000)
        self.faults.hold_back(
            {name.split(".")[1]: value for name, value in values.items() if name.startswith("rehearsal.")}
        )


def books_of(settings: ChaosSettings) -> list[Runbook]:
    """The runbooks of a deployment; raises Misconfigured for one that is wrong."""
    return list(({one.name: one for one in load(LIBRARY)} | _own(settings)).values())


def _own(settings: ChaosSettings) -> dict[str, Runbook]:
    return {} if settings.runbooks is None else {one.name: one for one in load(settings.runbooks)}

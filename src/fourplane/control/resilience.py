"""What makes one worker breakable on purpose and the deployment able to help itself, built in one place for `compose`.

Every worker has faults it can be given (live_faults.py) and values that can be changed while it runs (changes.py). The one
with the console also carries orders to the others (fault_orders.py), watches places (runbooks/watch.py), acts by runbooks
(runbooks/desk.py) and runs drills (drills.py).
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from fourplane.control.alerts.book import Condition
from fourplane.control.alerts.model import Alert
from fourplane.control.changes import Changes
from fourplane.control.fault_machine import Machine, Spoilable, Vanishing
from fourplane.control.fault_orders import FaultOrders
from fourplane.control.live_faults import FaultDesk, LiveFaults
from fourplane.control.metrics.store import MetricsStore
from fourplane.control.neighbourhood import Neighbourhood
from fourplane.control.placement import CONSOLE
from fourplane.control.places import Places
from fourplane.control.runbooks.abilities import Abilities, Door
from fourplane.control.runbooks.desk import Runbooks
from fourplane.control.runbooks.model import LIBRARY, Runbook, load
from fourplane.control.runbooks.watch import Watch
from fourplane.edge.routes import Door as Entrance
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry
from fourplane.service.accounts import Accounts
from fourplane.state.contracts import Blobs

IN_FLIGHT = "http.in_flight_max"


class ChaosSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where workers stand, what may be broken, and what is done about it."""

    zones: tuple[str, ...] = ()  # of the worker slots, in turn; a region is the part before the dash
    runbooks: Path | None = None  # a folder of them beside the ones that come along; the same name replaces one
    acts: bool = True  # whether runbooks act at all


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
        regions_named: Sequence[str] = (),
    ) -> None:
        """`folder`: of the sockets of the workers; `regions`: the cache nodes here, by region."""
        self._settings = settings
        self._systems = systems
        self._registry = registry
        self._limits: list[Callable[[int], None]] = []
        self.places = Places(near.placement.workers, settings.zones, regions_named)

        async def tenant_of(token: str) -> str:
            found = await accounts.session(token)
            return "" if found is None else found.tenant

        self.faults = LiveFaults(
            registry, data=data, slot=near.slot, zone=self.places.zones[near.slot],
            machine=Machine(disk=disk, peers=near.peers, regions=regions), tenant_of=tenant_of,
        )  # fmt: skip
        self.desk = FaultDesk(self.faults, self._tune)
        self._orders: FaultOrders | None = None
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
        """An order about faults, wherever it has to go."""
        assert self._orders is not None
        return await self._orders.order(arguments)

    def help_itself(
        self,
        lifecycle: Lifecycle,
        *,
        blobs: Blobs,
        metrics: MetricsStore,
        alerts: Alerting,
        door: Callable[[], Awaitable[Door]],
        in_flight_max: int,
    ) -> list[Entrance]:
        """Let alerts start runbooks; the doors of runbooks and changes. In the worker with the console."""
        registry = self._registry
        changes = self.changes = Changes(
            blobs, registry=registry, tell=self._tell, usual={IN_FLIGHT: float(in_flight_max)}
        )

        def query(text: str, seconds: float) -> list[tuple[Mapping[str, str], Sequence[float]]]:
            frame = metrics.run(text, seconds=seconds)
            return [(dict(labels), values.tolist()) for labels, values in zip(frame.labels, frame.values, strict=True)]

        def able(desk: Runbooks) -> Abilities:
            return Abilities(door=door, systems=self._systems, query=query, blobs=blobs, page=desk.page)

        runbooks = self.runbooks = Runbooks(books_of(self._settings), registry=registry, blobs=blobs, abilities=able)
        abilities = runbooks.abilities
        watch = Watch(
            registry=registry, zones=self.places.zones, nodes=abilities.nodes, answers=abilities.answers,
            medians=abilities.medians,
        )  # fmt: skip
        abilities.watch, abilities.changes = watch, changes
        changes.on_change.append(lambda change: None if change.takes_back else watch.changed())
        alerts.watchers += [watch.conditions, runbooks.conditions]

        def heard(alert: Alert) -> None:
            watch.heard(alert)
            if self._settings.acts:
                runbooks.hear(alert)

        alerts.on_change.append(heard)
        lifecycle.add("changes", changes)
        lifecycle.add("watch", watch)
        lifecycle.add("runbooks", runbooks)
        return [*changes.doors(), *runbooks.doors()]

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

"""What runbooks act on and budgets are too slow to see: a region without an answering node, a zone without a worker, and
answers that became slow when the configuration was changed. Conditions for the alerts; a few looks, no history.

Regions: every two seconds each cache node is asked as a player would; a region is dark when none of its nodes answers two looks
running. Zones: dark while all their workers are down. Slowness: a probe's median against what it was before the last change.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

from fourplane.control.alerts.book import Condition
from fourplane.control.alerts.model import Alert
from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Registry

LOOK_S = 2.0
DARK_LOOKS = 2
SLOW_RATIO = 3.0
SLOW_MORE_S = 0.2
SLOW_LOOKS = 3
CHANGE_S = 900.0

Answers = Callable[[int], Awaitable[bool]]  # whether the server on a port answers
Nodes = Callable[[], Awaitable[Sequence[tuple[str, str, int]]]]  # id, region and port of every cache node
Medians = Callable[[], Mapping[str, float]]  # of the probes of each system, seconds


class Watch:
    """A lifecycle part; `conditions` is asked by the alerts."""

    def __init__(
        self, *, registry: Registry, zones: Sequence[str], nodes: Nodes, answers: Answers, medians: Medians
    ) -> None:
        self._registry = registry
        self._zones = zones
        self._nodes = nodes
        self._answers = answers
        self._medians = medians
        self._up: dict[str, dict[str, bool]] = {}
        self._dark: dict[str, int] = {}
        self._down: set[int] = set()
        self._before: dict[str, float] = {}
        self._changed_s = 0.0
        self._slow: dict[str, int] = {}

    async def start(self, tasks: Tasks) -> None:
        """Look again and again."""
        tasks.start(self._look_forever(), "watch")

    async def drain(self) -> None:
        """Nothing to finish."""

    async def stop(self) -> None:
        """Nothing to release."""

    def heard(self, alert: Alert) -> None:
        """An alert began or ended: workers that are down make a zone dark."""
        if alert.name == "WorkerDown" and alert.labels.get("worker", "").isdigit():
            change = self._down.add if alert.state == "firing" else self._down.discard
            change(int(alert.labels["worker"]))

    def changed(self) -> None:
        """The configuration was changed: what is slow from now on is measured against now."""
        self._before, self._changed_s = dict(self._medians()), clock.now_us() / 1e6
        self._slow.clear()

    def taken_back(self) -> None:
        """The last change was taken back: what is not slow by now will not be because of it."""
        self._before = {
            system: seconds for system, seconds in self._before.items() if self._slow.get(system, 0) >= SLOW_LOOKS
        }

    def nodes_up(self, region: str) -> int:
        """How many nodes of a region answered the last look."""
        return sum(self._up.get(region, {}).values())

    def regions_up(self) -> int:
        """How many regions have a node that answers."""
        return sum(any(nodes.values()) for nodes in self._up.values())

    def slowness(self, system: str) -> float:
        """How many times slower a system's probe is than before the last change; 1 while that is not known."""
        before, now = self._before.get(system), self._medians().get(system)
        if before is None or now is None or now - before < SLOW_MORE_S:
            return 1.0
        return now / max(before, 1e-3)

    def conditions(self, now_s: float) -> Iterator[Condition]:
        """What holds now."""
        for region, looks in self._dark.items():
            if looks >= DARK_LOOKS:
                names = ", ".join(sorted(self._up[region]))
                yield Condition(
                    "RegionDark", "streaming", "page", f"no cache node of region {region} answers ({names})",
                    {"region": region}, keep_s=2.0,
                )  # fmt: skip
        for zone in dict.fromkeys(self._zones):
            slots = [slot for slot, own in enumerate(self._zones) if own == zone]
            if self._down.issuperset(slots):
                yield Condition(
                    "ZoneDark",
                    "fleet",
                    "page",
                    f"every worker of zone {zone} is down or died a moment ago",
                    {"zone": zone},
                )
        if now_s - self._changed_s < CHANGE_S:
            for system in self._before:
                ratio = self.slowness(system)
                self._slow[system] = self._slow.get(system, 0) + 1 if ratio >= SLOW_RATIO else 0
                if self._slow[system] >= SLOW_LOOKS:
                    told = f"{system} is {ratio:.1f} times slower than before the last change"
                    yield Condition("SlowSinceChange", system, "ticket", told, {"system": system})

    async def look(self) -> None:
        """Ask every cache node once."""
        nodes = await self._nodes()
        found = await asyncio.gather(*(self._answers(port) for _, _, port in nodes))
        self._up = {}
        for (name, region, _), up in zip(nodes, found, strict=True):
            self._up.setdefault(region, {})[name] = up
            self._registry.gauge(
                "fourplane_streaming_node_up", "whether a cache node answers, asked as a player asks",
                node=name, region=region,
            ).value = float(up)  # fmt: skip
        for region, ups in self._up.items():
            self._dark[region] = 0 if any(ups.values()) else self._dark.get(region, 0) + 1

    async def _look_forever(self) -> None:
        while True:
            with contextlib.suppress(FourplaneError):  # who cannot be asked for the nodes is noticed by the probes
                await self.look()
            await clock.sleep(LOOK_S)

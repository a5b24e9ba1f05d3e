"""The other workers, as the worker with the console sees them.

Once a second it asks every desk for its figures; the boxes of systems that live elsewhere become nodes here, whose figures
are the last ones heard and whose switches reach over. Events of the others join this worker's feed. A worker that does not
answer keeps its last figures, and the feed says that it is silent and when it is back.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence

import msgspec

from fourplane.control.desk import Desk, NodeCard, NodeNumbers, WorkerFigures, restore
from fourplane.control.merged_nodes import added, merged
from fourplane.control.nodes import Figures, Node, Switch
from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Registry
from fourplane.service import call_context

TICK_S = 1.0
ANSWER_S = 2.0
NOTHING = Figures()


class FarSwitch(Switch):
    """The switch of a box that lives in another worker."""

    __slots__ = ("_on", "_throw")

    def __init__(self, name: str, throw: Callable[[bool], None]) -> None:
        self._throw = throw
        self._on = True
        self.name = name

    @property
    def on(self) -> bool:
        return self._on

    @on.setter
    def on(self, running: bool) -> None:
        self._on = running
        self._throw(running)

    def heard(self, *, running: bool) -> None:
        """What the owner says it is."""
        self._on = running


class Colleague:
    """One other worker."""

    def __init__(self, slot: int, desk: Desk) -> None:
        self.slot = slot
        self.desk = desk
        self.figures: WorkerFigures | None = None
        self.cards: dict[str, list[NodeCard]] | None = None
        self.switches: dict[tuple[str, str], FarSwitch] = {}
        self.orders: list[tuple[str, str, bool]] = []
        self.silent = False

    def numbers(self, system: str, node_id: str) -> NodeNumbers | None:
        """The last figures heard of a box."""
        return None if self.figures is None else self.figures.nodes.get(system, {}).get(node_id)


class Colleagues:
    """A lifecycle part. `adopt` is called once for each system that lives elsewhere, when its owner first answers."""

    def __init__(
        self,
        desks: Mapping[int, Desk],
        *,
        registry: Registry,
        adopt: Callable[[str, Sequence[Node]], None],
        own: Mapping[str, Sequence[Node]] | None = None,
    ) -> None:
        """`own`: the boxes of this worker; a system that several workers run is adopted with figures of all."""
        self._lists = {system: [nodes] for system, nodes in (own or {}).items()}
        self._colleagues = [Colleague(slot, desk) for slot, desk in sorted(desks.items())]
        self._registry = registry
        self._adopt = adopt

    async def start(self, tasks: Tasks) -> None:
        for colleague in self._colleagues:
            tasks.start(self._listen(colleague), f"worker-{colleague.slot}")

    async def drain(self) -> None:
        """Nothing to finish."""

    async def stop(self) -> None:
        """Nothing to release."""

    def memory_mb(self) -> float:
        """Resident memory of all others."""
        return sum(one.figures.memory_mb for one in self._colleagues if one.figures is not None)

    def cpu_s(self) -> float:
        """CPU seconds all others have used; falls when one was started again."""
        return sum(one.figures.cpu_s for one in self._colleagues if one.figures is not None)

    def ready(self) -> bool:
        """Whether every other worker answers and serves."""
        return all(one.figures is not None and one.figures.ready and not one.silent for one in self._colleagues)

    async def statistics(self) -> dict[str, object]:
        """The statistics of every system that lives elsewhere."""
        found: dict[str, object] = {}
        for colleague in self._colleagues:
            for name, text in (await colleague.desk.statistics()).items():
                told = msgspec.json.decode(text)
                found[name] = added(found[name], told) if name in found else told
        return found

    async def metrics(self) -> Registry:
        """A registry with the metrics of this worker and of all others, told apart by the label `worker`."""
        merged = Registry()
        for (name, labels), cell in self._registry.cells.items():
            merged.cells[name, (*labels, ("worker", "0"))] = cell
        merged.help.update(self._registry.help)
        for colleague in self._colleagues:
            try:
                with call_context.within(ANSWER_S):
                    restore(merged, await colleague.desk.cells(), str(colleague.slot))
            except FourplaneError:
                continue  # a scrape without one worker is better than none; `up` of its target says the rest
        return merged

    async def _listen(self, colleague: Colleague) -> None:
        while True:
            began_s = clock.monotonic_s()
            try:
                heard_before = colleague.figures is not None
                with call_context.within(ANSWER_S):
                    await self._ask(colleague)
                if colleague.silent and heard_before:
                    self._registry.event("info", "fleet", f"worker {colleague.slot} answers again")
                colleague.silent = False
            except FourplaneError as error:
                if not colleague.silent and colleague.figures is not None:
                    self._registry.event("warning", "fleet", f"worker {colleague.slot} is silent: {error.message}")
                colleague.silent = True
            await clock.sleep(max(0.05, TICK_S - (clock.monotonic_s() - began_s)))

    async def _ask(self, colleague: Colleague) -> None:
        if colleague.cards is None:
            colleague.cards = await colleague.desk.cards()
            for system, cards in colleague.cards.items():
                lists = self._lists.setdefault(system, [])
                lists.append([_node(colleague, system, card) for card in cards])
                self._adopt(system, merged(lists))
        while colleague.orders:
            system, node_id, running = colleague.orders[0]
            await colleague.desk.switch(system, node_id, running=running)
            colleague.orders.pop(0)
        before = colleague.figures
        seen = before.events_total if before is not None else -1
        figures = await colleague.desk.figures(seen)
        if before is not None and figures.events_total < before.events_total:  # started again: its feed begins anew
            figures = await colleague.desk.figures(0)
        colleague.figures = figures
        for event in figures.events:
            self._registry.tell(event)
        for (system, node_id), switch in colleague.switches.items():
            numbers = colleague.numbers(system, node_id)
            if numbers is not None and not colleague.orders:
                switch.heard(running=numbers.running)


async def import_elsewhere(
    desk: Desk, kind: str, file: str, progress: Callable[[dict[str, object]], None], *, dry_run: bool, at_most_s: float
) -> object:
    """Let the owner import a file and tell how far it is."""

    async def watch() -> None:
        while True:
            await clock.sleep(0.3)
            facts = msgspec.json.decode(await desk.import_progress(file))
            if facts:
                progress(facts)

    try:
        with call_context.within(at_most_s):
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(watch())
                answer = await desk.import_file(kind, file, dry_run=dry_run)
                watching.cancel()
    except* FourplaneError as errors:
        first = errors.exceptions[0]
        assert isinstance(first, FourplaneError)
        failed: FourplaneError | None = first
    else:
        failed = None
    if failed is not None:
        raise failed
    return msgspec.json.decode(answer)


def _node(colleague: Colleague, system: str, card: NodeCard) -> Node:
    def figures() -> Figures:
        numbers = colleague.numbers(system, card.id)
        if numbers is None:
            return NOTHING
        latency = None if numbers.latency is None else numbers.latency.restored()
        return Figures(numbers.requests, numbers.errors, numbers.saturation, latency, numbers.facts)

    switch = None
    if card.stoppable:
        switch = colleague.switches[system, card.id] = FarSwitch(
            card.id, lambda running: colleague.orders.append((system, card.id, running))
        )
    return Node(
        id=card.id,
        plane=card.plane,
        what=card.what,
        source=card.source,
        figures=figures,
        switch=switch,
        journey=card.journey,
        page=card.page,
        built=card.built,
    )

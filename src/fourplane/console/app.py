"""The console: the studies' diagrams with the running system inside, for people and for their browsers.

One WebSocket (`/console/live`) sends a frame a second to every open page, made once for all of them; a click on a box
reads what it already has. Reading is open to whoever reaches the port (loopback unless configured otherwise); what
changes something (stop, start, demonstration) asks for an operator.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from fourplane import __version__
from fourplane.console import diagrams
from fourplane.console.demonstration import Demonstration
from fourplane.console.live import NodeFrame, View
from fourplane.control import pages
from fourplane.control.nodes import Node
from fourplane.edge.routes import Call, Door, Priority, Reply, Route, SocketRoute, SocketSession, StaticFolder
from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError, NotFound, Rejected
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Event, Registry
from fourplane.foundation.watchdog import Watchdog

STATIC = Path(__file__).parent / "static"
TICK_S = 1.0
SLOW_PAGE_BYTES = 1 << 20
EVENTS_AT_START = 100
DRILL_S = 10.0
DRILLS: dict[str, tuple[str, dict[str, Any]]] = {
    "kill": ("instance_loss", {"duration_s": 3.0}),
    "slow": ("latency", {"latency_s": 0.3, "jitter_s": 0.2, "duration_s": DRILL_S}),
    "errors": ("errors", {"share": 0.1, "duration_s": DRILL_S}),
}


class ConsoleSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of the console."""

    pages_max: int = 200


class SwitchOrder(msgspec.Struct, frozen=True):
    """What to do with a node."""

    running: bool


class DemoOrder(msgspec.Struct, frozen=True):
    """Whether the demonstration's crowds should run."""

    running: bool


class DrillOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fault for the system, for a few seconds; it ends by itself."""

    kind: Literal["kill", "slow", "errors"]


class NodeView(msgspec.Struct):
    """What the console tells about a box beyond its figures."""

    id: str
    plane: str
    what: str
    source: str
    journey: str
    page: str
    built: bool
    stoppable: bool


class Process(msgspec.Struct):
    """The process itself."""

    version: str
    up_s: float
    cpu_share: float
    memory_mb: float
    loop_lag_ms: float
    loop_held: int  # callbacks over 20 ms of CPU time since the start
    held_most: str  # where most of them were
    demo: bool


class Frame(msgspec.Struct):
    """One second of everything."""

    kind: str
    process: Process
    nodes: dict[str, dict[str, NodeFrame]]
    events: Sequence[Event]


class Opening(msgspec.Struct):
    """What a page gets first: drawings, what each box is, the latest figures, a minute of history."""

    kind: str
    studies: dict[str, diagrams.Study]
    nodes: dict[str, list[NodeView]]
    figures: dict[str, dict[str, NodeFrame]]
    history: dict[str, dict[str, list[float]]]
    events: Sequence[Event]
    process: Process


class Console:
    """A lifecycle part that watches all nodes and serves the pages."""

    def __init__(
        self,
        settings: ConsoleSettings,
        *,
        systems: Mapping[str, Sequence[Node]],
        registry: Registry,
        demo: Demonstration,
        memory_mb: Callable[[], float],
        watchdog: Watchdog,
        faults: Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]] | None = None,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._demo = demo
        self._memory_mb = memory_mb
        self._watchdog = watchdog
        self._faults = faults
        self.view = View(systems)
        self._pages: dict[SocketSession, None] = {}
        self._told = 0
        self._figures: dict[str, dict[str, NodeFrame]] = {}
        self._started_s = clock.monotonic_s()
        self._cpu = (clock.monotonic_s(), clock.cpu_s())
        self._process = Process(__version__, 0.0, 0.0, 0.0, 0.0, 0, "", demo=False)

    async def start(self, tasks: Tasks) -> None:
        self._started_s = clock.monotonic_s()
        tasks.start(self._watch(), "watch")

    async def drain(self) -> None:
        """Pages may stay until the server closes them."""

    async def stop(self) -> None:
        for page in list(self._pages):
            await page.close(1001, "the deployment stops")

    def doors(self) -> list[Door]:
        """The start page, its files, the live feed and the two orders an operator can give."""
        return [
            Route("GET", "/", self._page, "The console", priority=Priority.CRITICAL),
            Route(
                "PUT",
                "/console/api/drills/{system}",
                self._drill,
                "Break a system for a few seconds",
                body=DrillOrder,
                access="operator",
                priority=Priority.CRITICAL,
            ),
            pages.page("plan", STATIC),
            SocketRoute("/console/live", self._live, "A frame of all figures every second"),
            Route(
                "GET",
                "/console/api/frame",
                self._frame_now,
                "The latest figures once",
                answer=Opening,
                priority=Priority.CRITICAL,
            ),
            Route(
                "PUT",
                "/console/api/nodes/{system}/{node}",
                self._switch,
                "Stop or start a node",
                body=SwitchOrder,
                access="operator",
                priority=Priority.CRITICAL,
            ),
            Route(
                "PUT",
                "/console/api/demo",
                self._order_demo,
                "Start or stop the demo",
                body=DemoOrder,
                access="operator",
                priority=Priority.CRITICAL,
            ),
            StaticFolder("/console", STATIC, 60),
        ]

    async def _watch(self) -> None:
        due = clock.monotonic_s() + TICK_S
        while True:
            await clock.sleep(max(0.0, due - clock.monotonic_s()))
            now_s = clock.monotonic_s()
            lag_ms = max(0.0, now_s - due) * 1e3
            due = max(due + TICK_S, now_s)
            nodes = self._figures = self.view.tick(now_s)
            self._process = self._measure(now_s, lag_ms)
            events = self._new_events()
            if self._pages:
                frame = msgspec.json.encode(Frame("frame", self._process, nodes, events)).decode()
                self._send(frame)

    def _send(self, frame: str) -> None:
        for page in list(self._pages):
            if page.buffered() > SLOW_PAGE_BYTES:
                continue  # a page that cannot keep up misses seconds, it does not queue them
            try:
                page.send(frame)
            except FourplaneError:
                self._pages.pop(page, None)

    def _measure(self, now_s: float, lag_ms: float) -> Process:
        then_s, then_cpu = self._cpu
        cpu = clock.cpu_s()
        self._cpu = (now_s, cpu)
        share = (cpu - then_cpu) / (now_s - then_s) if now_s > then_s else 0.0
        up_s = round(now_s - self._started_s, 1)
        held = self._watchdog.statistics()
        return Process(
            __version__,
            up_s,
            round(share, 3),
            round(self._memory_mb(), 1),
            round(lag_ms, 1),
            held.held_total,
            next(iter(held.places), ""),
            demo=self._demo.running,
        )

    def _new_events(self) -> list[Event]:
        fresh = self._registry.events_total - self._told
        self._told = self._registry.events_total
        if fresh <= 0:
            return []
        events = list(self._registry.events)[-fresh:]
        return [event for event in events if event.level != "debug"]

    def _opening(self) -> Opening:
        nodes = {
            system: [
                NodeView(
                    node.id,
                    node.plane,
                    node.what,
                    node.source,
                    node.journey,
                    node.page,
                    node.built,
                    node.switch is not None,
                )
                for node in known.values()
            ]
            for system, known in self.view.systems.items()
        }
        shown = [event for event in self._registry.events if event.level != "debug"][-EVENTS_AT_START:]
        studies = {name: diagrams.study(name) for name in diagrams.STUDIES}
        return Opening("opening", studies, nodes, self._figures, self.view.history(), shown, self._process)

    async def _page(self, _: Call[None]) -> Reply:
        return Reply((STATIC / "index.html").read_bytes())

    async def _frame_now(self, _: Call[None]) -> Opening:
        return self._opening()

    async def _live(self, page: SocketSession) -> None:
        if len(self._pages) >= self._settings.pages_max:
            await page.close(1013, "too many open consoles")
            return
        page.send(msgspec.json.encode(self._opening()).decode())
        self._pages[page] = None
        try:
            while await page.receive() is not None:
                pass
        finally:
            self._pages.pop(page, None)

    async def _switch(self, call: Call[SwitchOrder]) -> None:
        system, node_id = call.params["system"], call.params["node"]
        node = self.view.systems.get(system, {}).get(node_id)
        if node is None:
            raise NotFound(f"no node {node_id} in {system}", code="no_node")
        if node.switch is None:
            raise Rejected(f"{node_id} cannot be stopped on its own", code="no_switch")
        if node.switch.on != call.body.running:
            node.switch.on = call.body.running
            verb = "started" if call.body.running else "stopped"
            who = call.identity.name if call.identity is not None else "somebody"
            self._registry.event("warning", system, f"{node_id} {verb} by {who}")

    async def _drill(self, call: Call[DrillOrder]) -> None:
        if self._faults is None:
            raise Rejected("nothing can be broken here", code="no_drills")
        kind, arguments = DRILLS[call.body.kind]
        await self._faults(
            {
                "order": "begin",
                "system": call.params["system"],
                "kind": kind,
                "arguments": arguments,
                "lease_s": DRILL_S,
            }
        )

    async def _order_demo(self, call: Call[DemoOrder]) -> None:
        await self._demo.order(running=call.body.running)

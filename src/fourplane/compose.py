"""The only place that knows everything: settings in, a running deployment out.

`Settings` is the root of `fourplane.toml`. A `Deployment` opens the stores, makes what the systems share (accounts, keys,
payments, ids), builds the chosen systems, and puts one HTTP server with one gateway in front of them; its lifecycle
starts all of it in this order and stops it in reverse. The parent process calls `up`, each worker runs `_serve`.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from fourplane import __version__
from fourplane.commerce.app import Commerce
from fourplane.console.app import Console
from fourplane.console.demonstration import Demonstration
from fourplane.control import exporters
from fourplane.control import takeover as takeovers
from fourplane.control.colleagues import Colleagues
from fourplane.control.desk import Desk
from fourplane.control.fleet import Fleet, Say, Worker, preload, serve_until_asked
from fourplane.control.live_faults import FaultDesk, stay_away
from fourplane.control.metrics.store import MetricsStore
from fourplane.control.moves import decide
from fourplane.control.neighbourhood import PAYMENTS, Neighbourhood
from fourplane.control.nodes import Node
from fourplane.control.observability import Observability, Place, Public
from fourplane.control.placement import ACCOUNTS, CONSOLE, Placement
from fourplane.control.plan.doors import doors as plan_doors
from fourplane.control.plan.results import bench_results
from fourplane.control.resilience import Resilience
from fourplane.control.traces.stores import TracedStores
from fourplane.dispatch.app import Dispatch
from fourplane.edge import certificate
from fourplane.edge.cache_node import CacheNode
from fourplane.edge.gateway import Gateway
from fourplane.edge.http_server import HttpServer
from fourplane.edge.passing import HttpPassing, Passing
from fourplane.edge.routes import Door, StaticFolder
from fourplane.edge.waiting_room import WaitingRoom
from fourplane.foundation import processes
from fourplane.foundation.errors import Misconfigured, Rejected
from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.lifecycle import Lifecycle, Tasks
from fourplane.foundation.processes import memory_mb, run_loop
from fourplane.foundation.telemetry import Registry
from fourplane.foundation.watchdog import Watchdog
from fourplane.messaging.app import Messaging
from fourplane.messaging.authentication import certificate_binding
from fourplane.messaging.user_shards import Spread
from fourplane.orders import Orders
from fourplane.service import call_context
from fourplane.service.accounts import Accounts
from fourplane.service.card_simulator import CardSimulator
from fourplane.service.control_socket import ControlServer
from fourplane.service.key_ring import KeyRing
from fourplane.service.shards import ShardedRecords, ShardMap
from fourplane.service.tokens import Signer
from fourplane.settings import NEIGHBOURS, SYSTEMS, Settings, has_embedded_records, placed, placement, ports_of
from fourplane.simulator.crowds import Target
from fourplane.state.contracts import Records
from fourplane.state.format import ensure_format
from fourplane.streaming.app import Streaming

CONTROL_SOCKET = "control.sock"
ANSWER_S = 0.1  # for the answer to leave before its worker does
CHECKOUT = Path(__file__).resolve().parents[2]
PRELOAD = ("numpy", "msgspec", "apsw", "tantivy", "tomllib", "uvloop")  # what is only imported where it is used
TAKEOVER_EXTRA_S = 15.0  # a step more than the drain of the version before

T = TypeVar("T")
Systems = dict[str, Streaming | Dispatch | Commerce | Messaging]


class Deployment:
    """Everything of one worker process, built but not started: `lifecycle.start()` opens the doors."""

    def __init__(
        self,
        settings: Settings,
        *,
        slot: int = 0,
        sockets: Mapping[str, socket.socket] | None = None,
        ports: Mapping[str, int] | None = None,
        demo: bool = False,
        move: Callable[[], None] | None = None,
    ) -> None:
        """`move`: starts all workers again, wherever the systems are by then."""
        self._chosen, self._move = settings.fleet.placement, move
        self.settings = settings = placed(settings)
        self.neighbourhood = Neighbourhood(placement(settings), slot, settings.data / NEIGHBOURS, ports or {})
        self.sockets = sockets or {}
        self.registry = Registry()
        self.lifecycle = Lifecycle(self.registry)
        self.stores = TracedStores(settings.stores, data=settings.data)
        self.stores.tracer = self.registry.tracer
        self.stores.register(self.registry)
        self.ids = IdGenerator(slot)
        self.systems: Systems = {}
        self.demo = Demonstration(
            processes.python("fourplane", "load", *settings.systems, "--gentle"),
            environment={"FOURPLANE_DATA": str(settings.data.absolute())},
            registry=self.registry,
            from_start=demo,
        )
        self.server: HttpServer
        self.accounts: Accounts
        self.orders: Orders
        self._payments: CardSimulator
        self._signer: Signer
        self._watchdog: Watchdog
        self._colleagues: Colleagues | None = None
        self._passing: Passing | None = None
        if "connections" in self.sockets:
            self._passing = Passing(self.sockets["connections"], self.neighbourhood.way)
        self._metrics: MetricsStore | None = None
        self._observability = self._watching()
        self._resilience: Resilience

    async def build(self) -> "Deployment":
        """Open the stores and make every part, in the order in which they will start."""
        settings, registry = self.settings, self.registry
        secrets = settings.data / "secrets"
        near = self.neighbourhood
        self.lifecycle.add("stores", self.stores)
        await near.take_shards(self.stores)
        if near.owns(ACCOUNTS):
            self.accounts = Accounts(await self.stores.sql("accounts"), ids=self.ids, settings=settings.accounts)
            self.lifecycle.add("accounts", self.accounts)
            self._payments = CardSimulator(await self.stores.sql("payments"), ids=self.ids, settings=settings.cards)
            self.lifecycle.add("payments", self._payments)
        else:
            self.accounts, self._payments = near.far_accounts(settings.accounts), near.far_payments()
        self.lifecycle.add("neighbourhood", near)
        self._signer = Signer(KeyRing.open(secrets / "keys.json"))
        builders: dict[str, Callable[[], Awaitable[Streaming | Dispatch | Commerce | Messaging]]] = {
            "streaming": self._streaming,
            "dispatch": self._dispatch,
            "commerce": self._commerce,
            "messaging": self._messaging,
        }
        for name in SYSTEMS:
            if name in settings.systems and near.runs(name):
                self.systems[name] = await builders[name]()
                self.lifecycle.add(name, self.systems[name])
        nodes: dict[str, Sequence[Node]] = {name: system.nodes() for name, system in self.systems.items()}
        if near.owns(CONSOLE) and settings.metrics.enabled:
            self._metrics = MetricsStore(
                settings.metrics, registry=registry, blobs=await self.stores.blobs("control"), collect=self._all_cells
            )
        if near.owns(CONSOLE):
            self._observability.watch(
                accounts=self.accounts, blobs=await self.stores.blobs("control"), store=self._metrics,
                collect=self._all_cells,
            )  # fmt: skip
        await self._make_resilient()
        nodes = self._observability.nodes(self._resilience.nodes(nodes))
        gateway = self._gateway(nodes)
        self.orders = Orders(
            settings, accounts=self.accounts, demo=self.demo, systems=self.systems, near=near, target=self.target,
            statistics=self._statistics, others=self._others, faults=self._resilience.order,
            reshard=self._reshard,
        )  # fmt: skip
        self.server = self._http_server(gateway, inherited=self.sockets.get("http"))
        self.lifecycle.add("gateway", gateway)
        if not near.alone:
            desk = Desk(
                registry, nodes, memory_mb=memory_mb, ready=lambda: self.lifecycle.ready, statistics=self._statistics,
                importer=lambda kind, file, told, dry_run: self.orders.import_file(kind, Path(file), told, dry_run=dry_run),
            )  # fmt: skip
            services = {ACCOUNTS: self.accounts, PAYMENTS: self._payments} if near.owns(ACCOUNTS) else {}
            calls = {
                name: one for system in self.systems.values() for name, one in getattr(system, "calls", dict)().items()
            }
            calls |= self._observability.calls()
            calls["faults"] = (FaultDesk, self._resilience.desk, None)
            near.serve(registry, self.sockets.get("calls"), desk=desk, services=services, calls=calls)
            for_others = self._http_server(gateway, inherited=self.sockets.get("requests"), name="neighbours")
            self.lifecycle.add("neighbours", for_others)
        self.lifecycle.add("http", self.server)
        self._use_the_doors()
        return self

    def _use_the_doors(self) -> None:
        """The parts that start behind the HTTP server: whoever waits for a killed worker does not wait for these."""
        settings, near = self.settings, self.neighbourhood
        if self._passing is not None:
            passing = self.server.passing = HttpPassing(self._passing, self.server, near.placement.of_path, near.slot)
            self.lifecycle.add("passing", passing)
            self.lifecycle.add("passed", self._passing)
        self.lifecycle.add("watchdog", self._watchdog)
        if self._metrics is not None:
            self.lifecycle.add("metrics", self._metrics)
        for name, part in [*self._observability.parts(), *self._resilience.parts]:
            self.lifecycle.add(name, part)
        if near.owns(CONSOLE):
            self.lifecycle.add("demonstration", self.demo)
            verbs = self.orders.verbs() | self._observability.verbs()
            self.lifecycle.add("control", ControlServer(settings.data / CONTROL_SOCKET, verbs))

    async def _make_resilient(self) -> None:
        """What lets a worker be broken on purpose, and the deployment help itself."""

        async def operator() -> str:
            return await self.orders.operator_token()

        settings, near = self.settings, self.neighbourhood
        self._resilience = Resilience(
            settings.chaos, near=near, data=settings.data, folder=settings.data / NEIGHBOURS, systems=settings.systems,
            registry=self.registry, accounts=self.accounts, disk=self.stores, regions=self._cache_nodes,
            region_of={node.id: node.region for node in settings.streaming.cdn} if "streaming" in settings.systems else {},
        )  # fmt: skip
        self._resilience.add_to(self.lifecycle)
        for name, system in self.systems.items():
            if isinstance(system, Messaging):
                self._resilience.faults.beside_http(name, system.hold_back)
        if self._metrics is not None and self._observability.alerts is not None:
            self._resilience.help_itself(
                blobs=await self.stores.blobs("control"), metrics=self._metrics, alerts=self._observability.alerts,
                where=lambda: (settings.http.listener.host, self.server.port), token=operator,
                ledger=self._observability.ledger, in_flight_max=settings.http.admission.in_flight_max,
            )  # fmt: skip

    def _gateway(self, nodes: Mapping[str, Sequence[Node]]) -> Gateway:
        """All doors of this worker behind one table; the console's where it is."""
        settings, registry, near = self.settings, self.registry, self.neighbourhood
        self._watchdog = Watchdog(registry, settings.watchdog)
        others = None
        doors: list[Door] = []
        if near.owns(CONSOLE):
            console = Console(
                settings.console, systems=nodes, registry=registry, demo=self.demo, watchdog=self._watchdog,
                faults=self._resilience.order,
                memory_mb=lambda: memory_mb() + (others.memory_mb() if others is not None else 0.0),
            )  # fmt: skip
            if not near.alone:
                others = self._colleagues = near.colleagues(registry, console.view.adopt, nodes)
                self.lifecycle.add("colleagues", others)
            self.lifecycle.add("console", console)
            doors += [*console.doors(), *_browser_libraries()]
            doors += plan_doors(lambda: bench_results(CHECKOUT / "benchmarks" / "results"))
            if self._metrics is not None:
                doors += self._metrics.doors()
        doors += [*self._observability.doors(), *self._resilience.doors]
        metrics = None if others is None else others.metrics
        doors += exporters.doors(registry, lambda: self.lifecycle.ready, metrics=metrics)
        for system in self.systems.values():
            doors += system.doors()
        elsewhere = None if near.alone else near.elsewhere
        return Gateway(
            doors, self.accounts, registry=registry, settings=settings.gateway, elsewhere=elsewhere,
            room=self._waiting_room(), version=__version__,
        )  # fmt: skip

    def _watching(self) -> Observability:
        """Objectives, probes, alerts, traces: what of them this worker has."""
        settings, near = self.settings, self.neighbourhood
        runs: dict[str, str] = {}
        for name in settings.systems:
            slots = range(settings.fleet.workers) if name in near.placement.spread else [near.placement.slot_of(name)]
            for slot in slots:
                runs[str(slot)] = ", ".join(filter(None, [runs.get(str(slot), ""), name]))
        return Observability(
            settings.observability, Place(near.slot, near.peers, runs), registry=self.registry, data=settings.data,
            public=Public(
                self.target, lambda: self.lifecycle.ready, settings.gateway.hosts, settings.messaging.domains[0]
            ),
            systems=settings.systems,
        )  # fmt: skip

    def _waiting_room(self) -> WaitingRoom | None:
        """The room in front of a system of this worker."""
        settings = self.settings.gateway.waiting_room
        if not settings.prefixes or settings.prefixes[0].split("/")[1] not in self.systems:
            return None
        return WaitingRoom(settings, self._signer, self.registry)

    def _http_server(self, gateway: Gateway, *, inherited: socket.socket | None, name: str = "http") -> HttpServer:
        """The server in front of the gateway: the public one, or the one for the other workers."""
        server = HttpServer(
            self.settings.http,
            self._resilience.faults.gate(gateway),
            registry=self.registry,
            sockets=gateway.open_socket,
            classify=gateway.classify,
            first_lines=gateway.first_lines,
            inherited=inherited,
            name=name,
            behind=name != "http",
        )
        self._resilience.limited(server.admission.set_limit)
        if gateway.room is not None:
            server.behind_room(gateway.room)
        for system in self.systems.values():
            for method, path, handler in getattr(system, "hot_routes", list)():
                self._resilience.faults.hot(server.hot, method, path, handler)
            if isinstance(system, Commerce) and name == "http":
                system.behind(server.admission, gateway.room)
        return server

    async def _all_cells(self) -> Registry:
        """The metrics of all workers."""
        return self.registry if self._colleagues is None else await self._colleagues.metrics()

    def _statistics(self) -> dict[str, object]:
        return {name: system.statistics() for name, system in self.systems.items()}

    async def _others(self) -> dict[str, Any]:
        """The figures of the systems in other workers."""
        return {} if self._colleagues is None else await self._colleagues.statistics()

    def _reshard(self, slots: dict[str, int]) -> dict[str, int]:
        """Where the systems are; with `slots`, they will be there in a moment. Raises Rejected for what cannot be."""
        near, settings = self.neighbourhood, self.settings
        here = {name: near.placement.slot_of(name) for name in settings.systems}
        if all(here.get(name) == slot for name, slot in slots.items()):
            return here
        if self._move is None or near.alone:
            raise Rejected("there is one worker and nowhere to move to", code="one_worker")
        try:
            Placement(settings.systems, settings.fleet.workers, here | slots)
        except Misconfigured as error:
            raise Rejected(error.message, code="bad_slots") from None
        decide(settings.data / NEIGHBOURS, self._chosen, here | slots)
        asyncio.get_running_loop().call_later(ANSWER_S, self._move)
        return here

    def target(self) -> Target:
        """Where the doors of this deployment really are."""
        found: dict[str, int] = {"http_port": self.server.port} | self._far_ports()
        streaming, dispatch, messaging = (self.systems.get(name) for name in ("streaming", "dispatch", "messaging"))
        if isinstance(streaming, Streaming):
            found["cdn_port"] = streaming.cdn_port
        if isinstance(dispatch, Dispatch):
            found["location_port"] = dispatch.feed.port
        if isinstance(messaging, Messaging):
            found |= {"xmpp_port": messaging.port, "xmpp_tls_port": messaging.tls_port}
        return msgspec.structs.replace(Target(host=self.settings.http.listener.host), **found)

    def _far_ports(self) -> dict[str, int]:
        """The ports whose servers are in other workers."""
        names = {"location": "location_port", "xmpp": "xmpp_port", "xmpps": "xmpp_tls_port"}
        if (cdn := next(iter(Streaming.ports(self.settings.streaming)[1:]), None)) is not None:
            names[cdn[0]] = "cdn_port"
        return {
            field: self.neighbourhood.ports[name] for name, field in names.items() if name in self.neighbourhood.ports
        }

    def _cache_nodes(self) -> dict[str, list[CacheNode]]:
        """The cache nodes of this worker by region."""
        found: dict[str, list[CacheNode]] = {}
        if isinstance(streaming := self.systems.get("streaming"), Streaming):
            delivery = streaming.rooms.delivery
            for node in delivery.ordered():
                found.setdefault(node.region, []).append(delivery.nodes[node.id])
        return found

    # -- the systems

    async def _streaming(self) -> Streaming:
        return Streaming(
            self.settings.streaming,
            sql=await self.stores.sql("streaming"),
            blobs=await self.stores.blobs("streaming"),
            search=await self.stores.search("streaming"),
            signer=self._signer,
            ids=self.ids,
            registry=self.registry,
            sockets=self.sockets,
        )

    async def _dispatch(self) -> Dispatch:
        return Dispatch(
            self.settings.dispatch,
            records=await self.stores.records("dispatch"),
            log=await self.stores.log("dispatch"),
            blobs=await self.stores.blobs("dispatch"),
            payments=self._payments,
            signer=self._signer,
            ids=self.ids,
            registry=self.registry,
            work=self.settings.data / "maps",
            inherited=self.sockets.get("location"),
        )

    async def _commerce(self) -> Commerce:
        return Commerce(
            self.settings.commerce,
            sql=await self.stores.sql("commerce"),
            records=await self.stores.records("commerce"),
            search=await self.stores.search("commerce"),
            blobs=await self.stores.blobs("commerce"),
            snapshot=self.settings.data / "shared" / "products.snapshot",
            payments=self._payments,
            ids=self.ids,
            registry=self.registry,
        )

    async def _messaging(self) -> Messaging:
        paths = certificate.ensure_certificate(self.settings.data / "secrets")
        near = self.neighbourhood
        home = near.owns("messaging")
        spread = near.placement.spread.get("messaging")
        records = await self._records("messaging", spread)
        return Messaging(
            self.settings.messaging,
            records=records,
            accounts=self.accounts,
            ids=self.ids,
            registry=self.registry,
            tls=certificate.server_context(*paths, alpn=()),
            certificate_hash=certificate_binding(paths[0].read_bytes()),
            blobs=await self.stores.blobs("messaging") if home else None,
            signer=self._signer,
            sockets=self.sockets,
            spread=None if spread is None else Spread(spread, near.slot, near.peers, self._passing),
        )

    async def _records(self, system: str, spread: ShardMap | None) -> Records:
        """The store of a system, or those of its shards that are here; an engine all workers reach holds all of them."""
        if spread is None or not has_embedded_records(self.settings):
            return await self.stores.records(system)
        here = spread.of_slot(self.neighbourhood.slot)
        names = {shard: spread.store_name(system, shard) for shard in here}
        return ShardedRecords(spread, {shard: await self.stores.records(name) for shard, name in names.items()})


def up(
    settings: Settings, *, demo: bool, say: Say, announce: Callable[[dict[str, str]], None], takeover: bool = False
) -> int:
    """Hold the data folder, bind the ports, fork the workers, and stay until they end; the exit code.

    `takeover`: from the deployment that runs there, with its sockets (control/takeover.py).
    """
    if takeover:
        preload(PRELOAD)  # before the other one stops
    wait_s = settings.fleet.drain_s + TAKEOVER_EXTRA_S
    folder, inherited = takeovers.hold(settings.data, takeover=takeover, wait_s=wait_s, say=say)
    try:
        ensure_format(settings.data, program=f"fourplane {__version__}")
        given, settings = settings, placed(settings)
        address = f"http://{settings.http.listener.host}:{settings.http.listener.port}"
        folder.announce(address)
        if "messaging" in settings.systems:
            certificate.ensure_certificate(settings.data / "secrets")  # once, for all workers
        fleet = Fleet(
            ports_of(settings),
            lambda worker: run_loop(_serve(worker, given, demo=demo)),
            say=say,
            settings=settings.fleet,
            preload=PRELOAD,
            on_ready=lambda facts: announce(facts[0]),
            neighbours=settings.data / NEIGHBOURS if settings.fleet.workers > 1 else None,
            inherited=inherited,
            give=lambda slots: takeovers.give(settings.data, slots),
            ports_moved=lambda: ports_of(placed(given)),
        )
        return fleet.run()
    finally:
        folder.release()


async def _serve(worker: Worker, settings: Settings, *, demo: bool) -> int:
    await stay_away(settings.data, worker.slot)
    worker.beat()
    deployment = await Deployment(
        settings, slot=worker.slot, sockets=worker.sockets, ports=worker.ports, demo=demo, move=worker.move
    ).build()
    facts: dict[str, str] = {}

    class Announcement:
        """The last part to start: by now the addresses are known."""

        async def start(self, _: Tasks) -> None:
            with call_context.within(settings.fleet.ready_s):  # the accounts' worker may still be starting
                link = await deployment.orders.operator_link()
            facts.update(link=link, address=link.partition("/api/")[0] + "/")
            facts.update({name: str(value) for name, value in msgspec.to_builtins(deployment.target()).items()})

        async def drain(self) -> None:
            """Nothing to finish."""

        async def stop(self) -> None:
            """Nothing to release."""

    deployment.lifecycle.add("announcement", Announcement())
    return await serve_until_asked(worker, deployment.lifecycle, lambda: facts)


def _browser_libraries() -> list[StaticFolder]:
    """What npm installed for the pages; without it they fall back to what browsers bring."""
    return [
        StaticFolder(f"/vendor/{name}/dist", base / name / "dist", 86_400)
        for base in (CHECKOUT / "node_modules", Path(__file__).parent / "vendor")
        for name in ("hls.js", "leaflet")
        if (base / name / "dist").is_dir()
    ]

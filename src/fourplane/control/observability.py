"""What watches a deployment, put together: objectives, probes, alerts, traces, and the push to a collector.

Every worker tells how long it has been up and keeps its traces; the worker with the console has the rest. `compose` makes one
`Observability` a worker and asks it for its parts, doors, calls and verbs; nothing else is to be wired.
"""

import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from fourplane.control.alerts.desk import Alerts, AlertSettings
from fourplane.control.alerts.lookout import Lookout, tell_uptime
from fourplane.control.alerts.workers import Heartbeat
from fourplane.control.metrics.store import MetricsStore
from fourplane.control.nodes import Node
from fourplane.control.objectives import settings as objectives
from fourplane.control.objectives.ledger import Ledger
from fourplane.control.objectives.probes import Doors, Guest, Probes, ProbeSettings, ProbeView
from fourplane.control.objectives.settings import ObjectiveSettings
from fourplane.control.otlp_push import OtlpPush, OtlpSettings
from fourplane.control.pages import STATIC, page
from fourplane.control.traces.collector import TraceCollector, TraceSettings
from fourplane.control.traces.keeper import TraceDesk, TraceKeeper
from fourplane.control.watch_nodes import with_watching
from fourplane.edge.routes import Call, Door, Priority, Route, StaticFolder
from fourplane.foundation import ids
from fourplane.foundation.lifecycle import Part
from fourplane.foundation.telemetry import Registry
from fourplane.service.accounts import Accounts, NewAccount
from fourplane.service.control_socket import Arguments, Progress
from fourplane.service.rpc import Caller, remote
from fourplane.state.contracts import Blobs

PROBE_ACCOUNT = "fourplane-probe"
LOCAL = frozenset({"127.0.0.1", "*"})
OF_WATCHING = ("objectives", "alerts", "traces")
Verb = Callable[[Arguments, Progress], Awaitable[object]]
T = TypeVar("T")


class ObservabilitySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What watches the deployment."""

    objectives: ObjectiveSettings = ObjectiveSettings()
    probes: ProbeSettings = ProbeSettings()
    alerts: AlertSettings = AlertSettings()
    traces: TraceSettings = TraceSettings()
    otlp: OtlpSettings = OtlpSettings()


class Place(msgspec.Struct, frozen=True):
    """Where a worker stands: its slot, the others, and what each runs."""

    slot: int
    peers: Mapping[int, Caller]
    runs: Mapping[str, str]  # worker -> "commerce, dispatch"


class Public(msgspec.Struct, frozen=True):
    """How users reach the deployment: `target` is asked once it listens."""

    target: Callable[[], object]
    ready: Callable[[], bool]
    hosts: Sequence[str]
    domain: str


class Observability:
    """Everything of one worker that watches. `console`: whether this worker has the console."""

    def __init__(
        self,
        settings: ObservabilitySettings,
        place: Place,
        *,
        registry: Registry,
        data: Path,
        public: Public,
        systems: Sequence[str],
    ) -> None:
        self.settings = settings
        self._place = place
        self._registry = registry
        self._data = data
        self._public = public
        self._systems = tuple(systems)
        self._parts: list[tuple[str, Part]] = []
        self._doors: list[Door] = []
        self._verbs: dict[str, Verb] = {}
        self.alerts: Alerts | None = None
        self.ledger: Ledger | None = None
        self.probes: Probes | None = None
        self.traces: TraceCollector | None = None
        tell_uptime(registry)
        registry.tracer.enabled = settings.traces.enabled
        registry.tracer.draw(settings.traces.one_in)
        runs = place.runs.get(str(place.slot), "")
        self.keeper = TraceKeeper(registry, process=f"worker {place.slot}" + (f" ({runs})" if runs else ""))
        self._parts.append(("traces", self.keeper))

    def watch(
        self,
        *,
        accounts: Accounts,
        blobs: Blobs,
        store: MetricsStore | None,
        collect: Callable[[], Awaitable[Registry]],
    ) -> None:
        """Make what only the worker with the console has."""
        settings, registry, public, place = self.settings, self._registry, self._public, self._place
        secrets = self._data / "secrets"
        self.traces = TraceCollector(
            settings.traces,
            self.keeper,
            lambda: {slot: remote(TraceDesk, peer, "traces") for slot, peer in place.peers.items()},
        )
        self.probes = Probes(
            self._probe_settings(),
            self._systems if settings.probes.enabled else (),
            registry=registry,
            doors=self._where,
            ready=public.ready,
            guest=lambda: _guest(accounts, secrets),
            tls=once(lambda: _own_tls(secrets / "tls-certificate.pem")),
        )
        lookout = Lookout(
            store=store,
            heartbeat=Heartbeat(self._data / "control" / "alive"),
            registry=registry,
            ready=public.ready,
            own=str(place.slot),
            systems=place.runs,
            outage=self.probes.count_outage,
        )
        self.alerts = Alerts(
            settings.alerts, registry=registry, blobs=blobs, secrets=secrets, ready=public.ready,
            watchers=[lookout.conditions, self.probes.conditions],
        )  # fmt: skip
        if store is not None and settings.objectives.enabled:
            self.ledger = Ledger(
                settings.objectives, objectives.chosen(settings.objectives, self._systems), store=store,
                registry=registry, blobs=blobs,
            )  # fmt: skip
            self.alerts.watchers.append(self.ledger.conditions)
        self._gather(lookout, collect)

    def parts(self) -> list[tuple[str, Part]]:
        """For the lifecycle, in this order, behind everything they watch."""
        return self._parts

    def doors(self) -> list[Door]:
        return self._doors

    def nodes(self, known: Mapping[str, Sequence[Node]]) -> dict[str, Sequence[Node]]:
        """The boxes of all systems; those that stand for watching are alive."""
        watched = self.settings.objectives.enabled and self.settings.alerts.enabled
        return with_watching(
            known,
            traces=self.keeper.statistics if self.settings.traces.enabled else None,
            objectives=len(objectives.chosen(self.settings.objectives, self._systems)) if watched else 0,
            alerts=lambda: None if self.alerts is None else self.alerts.statistics(),
        )

    def calls(self) -> dict[str, tuple[type, object, frozenset[str] | None]]:
        """What other workers may ask of this one."""
        return {"traces": (TraceDesk, TraceDesk(self.keeper), None)}

    def verbs(self) -> dict[str, Verb]:
        """What the owner may ask through the control socket."""
        return self._verbs

    # -- inside

    def _gather(self, lookout: Lookout, collect: Callable[[], Awaitable[Registry]]) -> None:
        """Parts in the order of starting, doors, verbs."""
        settings, traces, probes, alerts = self.settings, self.traces, self.probes, self.alerts
        assert traces is not None
        assert probes is not None
        assert alerts is not None
        self._parts += [("collector", traces), ("probes", probes), ("lookout", lookout)]
        if self.ledger is not None:
            self._parts.append(("objectives", self.ledger))
            self._doors += self.ledger.doors()
        if settings.alerts.enabled:
            self._parts.append(("alerts", alerts))
            self._doors += alerts.doors()
            self._verbs["alerts"] = self._order_alerts
        if settings.otlp.url:
            self._parts.append(
                (
                    "otlp",
                    OtlpPush(
                        settings.otlp,
                        registry=self._registry,
                        collect=collect,
                        traces=traces.columns,
                        secrets=self._data / "secrets",
                    ),
                )
            )
        self._doors += [*traces.doors(), *_pages()]
        self._doors.append(
            Route("GET", "/control/api/probes", self._probe_views, "Probes as users", answer=list,
                  priority=Priority.DEGRADED)
        )  # fmt: skip

    async def _order_alerts(self, arguments: Arguments, _: Progress) -> Any:
        assert self.alerts is not None
        return msgspec.to_builtins(await self.alerts.order(arguments))

    async def _probe_views(self, _: Call[None]) -> list[ProbeView]:
        return self.probes.views() if self.probes is not None else []

    def _where(self) -> Doors:
        facts = msgspec.to_builtins(self._public.target())
        return msgspec.structs.replace(msgspec.convert(facts, Doors), domain=self._public.domain)

    def _probe_settings(self) -> ProbeSettings:
        """With a host the deployment answers to."""
        own, hosts = self.settings.probes, self._public.hosts
        if own.host or LOCAL & set(hosts) or not hosts:
            return own
        return msgspec.structs.replace(own, host=hosts[0])


def _pages() -> list[Door]:
    """The pages of all this and what they load."""
    return [*(page(name) for name in OF_WATCHING), StaticFolder("/control/static", STATIC, 60)]


async def _guest(accounts: Accounts, secrets: Path) -> Guest:
    """The account of the probes, made on first use; its password lies in data/secrets, and is another one where that is new."""
    file = secrets / "probe"
    fresh = not file.exists()
    if fresh:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.write_text(ids.capability(), encoding="ascii")
    password = file.read_text(encoding="ascii").strip()
    account = await accounts.find(PROBE_ACCOUNT)
    if account is None:
        keys = await accounts.derive_keys(password)
        (account,) = await accounts.create_many([NewAccount(PROBE_ACCOUNT, keys=keys)])
    elif fresh:  # a database that came without its folder
        await accounts.set_password(account, password)
    return Guest(PROBE_ACCOUNT, password, await accounts.open_session(account))


def _own_tls(own: Path) -> ssl.SSLContext:
    """A client's context that believes this deployment's certificate alone; reads one file, not the system's hundred."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # also when an authority signed it
    context.load_verify_locations(own)
    return context


def once(make: Callable[[], T]) -> Callable[[], T]:
    """`make`, called when it is first needed."""
    made: list[T] = []

    def get() -> T:
        if not made:
            made.append(make())
        return made[0]

    return get

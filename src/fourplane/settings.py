"""The root of the settings, and what follows from them alone: who is where, which ports there are, which folders.

`fourplane.toml` and FOURPLANE_* are read into `Settings` (foundation/config); each section is the struct of the module that
reads it, with its bounds. Nothing here opens anything.
"""

from pathlib import Path

import msgspec

from fourplane.commerce.app import CommerceSettings
from fourplane.console.app import ConsoleSettings
from fourplane.control.fleet import ANY_SLOT, FleetSettings, Port
from fourplane.control.metrics.store import MetricsSettings
from fourplane.control.moves import moved
from fourplane.control.observability import ObservabilitySettings
from fourplane.control.placement import Placement
from fourplane.control.resilience import ChaosSettings
from fourplane.dispatch.app import DispatchSettings
from fourplane.edge.gateway import GatewaySettings
from fourplane.edge.http_server import HttpServerSettings
from fourplane.foundation.errors import Misconfigured
from fourplane.foundation.watchdog import WatchdogSettings
from fourplane.messaging.settings import MessagingSettings
from fourplane.service.accounts import AccountSettings
from fourplane.service.card_simulator import CardSettings
from fourplane.service.shards import kept_count
from fourplane.state.stores import StoresSettings
from fourplane.streaming.app import Streaming, StreamingSettings

NEIGHBOURS = "workers"  # folder of the sockets and locks of several workers, inside the data folder
SYSTEMS = ("streaming", "dispatch", "commerce", "messaging")


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The root of the settings; each section is the struct of the module that reads it."""

    data: Path = Path("data")
    systems: tuple[str, ...] = SYSTEMS
    fleet: FleetSettings = FleetSettings()
    http: HttpServerSettings = HttpServerSettings()
    gateway: GatewaySettings = GatewaySettings()
    stores: StoresSettings = StoresSettings()
    accounts: AccountSettings = AccountSettings()
    cards: CardSettings = CardSettings()
    console: ConsoleSettings = ConsoleSettings()
    metrics: MetricsSettings = MetricsSettings()
    observability: ObservabilitySettings = ObservabilitySettings()
    chaos: ChaosSettings = ChaosSettings()
    watchdog: WatchdogSettings = WatchdogSettings()
    streaming: StreamingSettings = StreamingSettings()
    dispatch: DispatchSettings = DispatchSettings()
    commerce: CommerceSettings = CommerceSettings()
    messaging: MessagingSettings = MessagingSettings()

    def __post_init__(self) -> None:
        unknown = [name for name in self.systems if name not in SYSTEMS]
        if unknown:
            raise Misconfigured(f"unknown system {unknown[0]!r}; there are {', '.join(SYSTEMS)}", code="unknown_system")


def placement(settings: Settings) -> Placement:
    """Which worker slot owns which system."""
    systems = [name for name in SYSTEMS if name in settings.systems]
    return Placement(systems, settings.fleet.workers, settings.fleet.placement, settings.fleet.shards)


def has_embedded_records(settings: Settings) -> bool:
    """Whether the records of messaging are files, which one process opens each."""
    url = settings.stores.overrides.get("records.messaging", settings.stores.records)
    return url.startswith("sqlite:")


def _sharded(settings: Settings) -> Settings:
    """The same settings with the number of shards there are."""
    if "messaging" not in settings.systems:
        return settings
    wanted, usual = settings.fleet.shards.get("messaging", 0), settings.fleet.workers
    count = wanted or usual
    if has_embedded_records(settings):
        exists = (settings.data / "state" / "records-messaging.db").exists()
        count = kept_count(settings.data, "messaging", wanted=wanted, usual=usual, exists=exists)
    fleet = msgspec.structs.replace(settings.fleet, shards={**settings.fleet.shards, "messaging": count})
    return msgspec.structs.replace(settings, fleet=fleet)


def placed(settings: Settings) -> Settings:
    """The same settings with the folders of systems inside the data folder, unless given whole, and with what was moved."""
    here, own = settings.data.absolute(), settings.streaming
    cache = None if own.cache_folder is None else here / own.cache_folder
    own = msgspec.structs.replace(own, folder=here / own.folder, cache_folder=cache)
    fleet = settings.fleet
    slots = moved(settings.data / NEIGHBOURS, fleet.placement, fleet.workers)
    fleet = msgspec.structs.replace(fleet, placement=slots)
    return _sharded(msgspec.structs.replace(settings, streaming=own, fleet=fleet))


def ports_of(settings: Settings) -> list[Port]:
    """Every port the parent binds for its workers, with the setting that names it."""
    listener, where = settings.http.listener, placement(settings).slot_of
    ports = [Port("http", listener.host, listener.port, "http.listener.port")]
    if "streaming" in settings.systems:
        ports += [Port(*port, where("streaming")) for port in Streaming.ports(settings.streaming)]
    if "dispatch" in settings.systems:
        feed = settings.dispatch.feed
        ports.append(Port("location", feed.host, feed.port, "dispatch.feed.port", where("dispatch")))
    if "messaging" in settings.systems:
        own = settings.messaging
        slot = ANY_SLOT if "messaging" in placement(settings).spread else where("messaging")
        ports.append(Port("xmpp", own.host, own.port, "messaging.port", slot))
        ports.append(Port("xmpps", own.host, own.tls_port, "messaging.tls_port", slot))
    return ports

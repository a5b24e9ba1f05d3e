"""Alerts in a deployment: conditions in once a second, notifications out, silences and acknowledgements by people.

A lifecycle part of the worker with the console. `conditions` are asked each second; the book decides what is an alert, the
grouping what is told when, a delivery per receiver takes it there. The book, the silences and what was told lie in the blobs
after every change, so that a restart neither repeats a page nor forgets to say that it is over.

Doors under `/control/api/alerts` and `/control/api/silences`; reading is open like the console, changing is an operator's.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fourplane.control.alerts import payloads, silences
from fourplane.control.alerts.book import AlertBook, BookState, Condition, Ended
from fourplane.control.alerts.delivery import Delivery, DeliveryStatistics, ReceiverSettings
from fourplane.control.alerts.grouping import Grouping, GroupingSettings, Notification
from fourplane.control.alerts.model import Alert
from fourplane.control.alerts.silences import Silence, Silences
from fourplane.edge.routes import Call, Door, Priority, Route
from fourplane.foundation import clock, ids
from fourplane.foundation.errors import Corrupt, FourplaneError, Misconfigured, NotFound, Rejected
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Level, Registry
from fourplane.state.contracts import Blobs

TICK_S = 1.0
STATE_KEY = "control/alerts/state"
HISTORY_SHOWN = 100
SILENCE_S = 3_600.0
LEVELS: dict[str, Level] = {"page": "error", "ticket": "warning", "info": "info"}


class AlertSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who is told, and how alerts are put together."""

    enabled: bool = True
    receivers: tuple[ReceiverSettings, ...] = ()
    receivers_max: int = 10
    grouping: GroupingSettings = GroupingSettings()
    external_url: str = ""  # where people reach this console, for links in pages

    def __post_init__(self) -> None:
        names = [one.name for one in self.receivers]
        if len(names) > self.receivers_max or len(set(names)) != len(names):
            raise Misconfigured(f"at most {self.receivers_max} receivers, each with a name of its own",
                                setting="alerts.receivers")  # fmt: skip


class AlertView(msgspec.Struct, frozen=True):
    """A firing alert as people see it."""

    fingerprint: str
    alert: Alert
    acknowledged_by: str = ""
    silenced_by: str = ""  # the silence's id


class AlertsView(msgspec.Struct, frozen=True):
    """What `GET /control/api/alerts` answers."""

    active: list[AlertView]
    history: list[Ended]
    silences: list[Silence]
    receivers: list[DeliveryStatistics]
    fired_total: int
    notified_total: int


class AlertStatistics(msgspec.Struct, frozen=True):
    """What fires, and what was told."""

    firing: int
    silences: int
    fired_total: int
    dropped_total: int
    notified_total: int


class SilenceOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A silence somebody wants."""

    matchers: list[str]
    duration_s: float = SILENCE_S
    comment: str = ""


class _Kept(msgspec.Struct):
    """What lies in the blobs."""

    book: BookState = msgspec.field(default_factory=BookState)
    silences: list[Silence] = []
    told: dict[str, list[Alert]] = {}
    changed_s: float = 0.0


class Alerts:
    """A lifecycle part. `watchers` say which conditions hold; `on_change` hears of each alert that begins or ends."""

    def __init__(
        self,
        settings: AlertSettings,
        *,
        registry: Registry,
        blobs: Blobs,
        secrets: Path,
        watchers: Sequence[Callable[[float], Iterable[Condition]]] = (),
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        self.settings = settings
        self.watchers = list(watchers)
        self.on_change: list[Callable[[Alert], None]] = []
        self._ready = ready
        self._registry = registry
        self._blobs = blobs
        self._secrets = secrets
        self._book = AlertBook()
        self._silences = Silences()
        self._grouping = Grouping(settings.grouping)
        self._deliveries: list[Delivery] = []
        self._routing_keys: dict[str, str] = {}
        self._changed = False
        self._fired = registry.counter("fourplane_control_alerts_total", "alerts that began")
        self._told = registry.counter("fourplane_control_notifications_total", "groups of alerts that were told")
        registry.gauge(
            "fourplane_control_alerts_firing_count", "alerts that fire", read=lambda: float(len(self._book.active()))
        )

    async def start(self, tasks: Tasks) -> None:
        """Go on where the last process ended, then look once a second."""
        key = signing_key(self._secrets) if self.settings.receivers else ""
        for one in self.settings.receivers:
            if one.kind == "pagerduty":
                self._routing_keys[one.name] = _routing_key(self._secrets / one.routing_key_file)
            self._deliveries.append(Delivery(one, key=key, registry=self._registry))
        await self._restore()
        for delivery in self._deliveries:
            tasks.start(delivery.run(), f"tell-{delivery.settings.name}")
        tasks.start(self._watch(), "alerts")

    async def drain(self) -> None:
        """Alerts go on until the end."""

    async def stop(self) -> None:
        await self._save()
        for delivery in self._deliveries:
            delivery.close()

    def tick(self, now_s: float) -> list[Alert]:
        """One look: what began and what ended now, after telling everybody."""
        held = [condition for watcher in self.watchers for condition in watcher(now_s)]
        changes = self._book.update(now_s, held)
        for alert in changes:
            self._changed = True
            self._tell_people(alert)
            for heard in self.on_change:
                heard(alert)
        firing: list[Alert] = []
        back: list[Alert] = []
        for entry in self._book.active():
            silenced = bool(entry.acknowledged_by) or self._silences.of(entry.alert, now_s) is not None
            (back if silenced else firing).append(entry.alert)
        for notification in self._grouping.flush(now_s, firing, [one.fingerprint for one in back]):
            self._changed = True
            self._told.add()
            self._notify(notification, now_s)
        return changes

    def active(self) -> list[Alert]:
        """The alerts that fire."""
        return [entry.alert for entry in self._book.active()]

    def view(self) -> AlertsView:
        """Everything there is to see."""
        now_s = clock.now_us() / 1e6
        shown = []
        for entry in self._book.active():
            silence = self._silences.of(entry.alert, now_s)
            name = silence.id if silence is not None else ""
            shown.append(AlertView(entry.alert.fingerprint, entry.alert, entry.acknowledged_by, name))
        return AlertsView(
            shown,
            list(self._book.history)[-HISTORY_SHOWN:][::-1],
            self._silences.known(),
            [one.statistics() for one in self._deliveries],
            self._book.fired_total,
            self._told.value,
        )

    def statistics(self) -> AlertStatistics:
        """What fires, and what was told."""
        silences_now = len(self._silences.active(clock.now_us() / 1e6))
        book = self._book
        return AlertStatistics(len(book.active()), silences_now, book.fired_total, book.dropped_total, self._told.value)

    def acknowledge(self, key: str, who: str) -> Alert:
        """Somebody looks after an alert: it is told to nobody again until it ends. Raises NotFound."""
        alert = self._book.acknowledge(key, who)
        if alert is None:
            raise NotFound("no alert with this fingerprint fires", code="no_alert")
        self._changed = True
        self._registry.event("info", alert.service, f"{alert.name} is looked after by {who}")
        for delivery in self._deliveries:
            if delivery.settings.kind == "pagerduty" and alert.severity in delivery.settings.severities:
                routing = self._routing_keys[delivery.settings.name]
                delivery.put(payloads.pager_acknowledgement(alert, routing_key=routing))
        return alert

    def silence(self, order: SilenceOrder, who: str) -> Silence:
        """Begin a silence. Raises Rejected for one that is none."""
        now_s = clock.now_us() / 1e6
        matchers = silences.parse(order.matchers)
        made = Silence(ids.capability()[:12], matchers, now_s, now_s + order.duration_s, who, order.comment)
        self._silences.add(made)
        self._changed = True
        told = silences.written(matchers)
        self._registry.event("info", "alerts", f"{who} silences {told} for {order.duration_s / 60:g} min")
        return made

    def expire(self, silence_id: str) -> Silence:
        """End a silence now. Raises NotFound."""
        self._changed = True
        return self._silences.expire(silence_id, clock.now_us() / 1e6)

    def doors(self) -> list[Door]:
        """Reading for everybody who reaches the console, changing for operators."""
        base = "/control/api"
        return [
            Route("GET", f"{base}/alerts", self._list, "Alerts, silences, receivers", answer=AlertsView,
                  priority=Priority.CRITICAL),
            Route("POST", f"{base}/alerts/{{fingerprint}}/acknowledge", self._acknowledge, "Look after an alert",
                  access="operator", priority=Priority.CRITICAL),
            Route("POST", f"{base}/silences", self._silence, "Silence alerts for a while", body=SilenceOrder,
                  answer=Silence, access="operator", priority=Priority.CRITICAL),
            Route("DELETE", f"{base}/silences/{{id}}", self._expire, "End a silence", answer=Silence,
                  access="operator", priority=Priority.CRITICAL),
        ]  # fmt: skip

    async def order(self, arguments: Mapping[str, Any]) -> object:
        """What `./fourplane alerts` asks through the control socket."""
        match str(arguments.get("order", "list")):
            case "list":
                return self.view()
            case "acknowledge":
                return self.acknowledge(str(arguments.get("fingerprint", "")), "the owner")
            case "silence":
                wanted = {key: arguments[key] for key in ("matchers", "duration_s", "comment") if key in arguments}
                try:
                    order = msgspec.convert(wanted, SilenceOrder)
                except msgspec.ValidationError as error:
                    raise Rejected(f"no silence: {error}", code="bad_silence") from None
                return self.silence(order, "the owner")
            case "expire":
                return self.expire(str(arguments.get("id", "")))
            case other:
                raise NotFound(f"no order {other[:40]!r} about alerts", code="no_order")

    # -- inside

    async def _watch(self) -> None:
        while True:
            now_s = clock.now_us() / 1e6
            if self._ready():  # a deployment that starts or stops is not judged
                self.tick(now_s)
            if self._changed:
                self._silences.sweep(now_s)
                await self._save()
            await clock.sleep(TICK_S)

    def _tell_people(self, alert: Alert) -> None:
        if alert.state == "firing":
            self._fired.add()
            level = LEVELS.get(alert.severity, "warning")
            self._registry.event(level, alert.service, f"alert: {alert.summary}", alert=alert.name)
        else:
            self._registry.event("info", alert.service, f"over: {alert.summary}", alert=alert.name)

    def _notify(self, told: Notification, now_s: float) -> None:
        url = self.settings.external_url.rstrip("/")
        for delivery in self._deliveries:
            wanted = delivery.settings.severities
            mine = msgspec.structs.replace(
                told,
                firing=[one for one in told.firing if one.severity in wanted],
                resolved=[one for one in told.resolved if one.severity in wanted],
            )
            if not mine.firing and not mine.resolved:
                continue
            name = delivery.settings.name
            if delivery.settings.kind == "alertmanager":
                delivery.put(payloads.webhook(mine, receiver=name, external_url=url, now_s=now_s))
                continue
            key = self._routing_keys[name]
            for body in payloads.pager_events(mine, routing_key=key, source="fourplane", external_url=url):
                delivery.put(body)

    async def _restore(self) -> None:
        try:
            kept = msgspec.msgpack.decode(await self._blobs.get(STATE_KEY), type=_Kept)
        except NotFound:
            return
        except (msgspec.MsgspecError, Corrupt) as error:
            self._registry.event("warning", "alerts", f"what was told before is lost: {error}")
            return
        now_s = clock.now_us() / 1e6
        self._book.restore(kept.book, now_s)
        self._grouping.restore(kept.told, now_s)
        for silence in kept.silences:
            if silence.ends_s > now_s:
                self._silences.add(silence)

    async def _save(self) -> None:
        kept = _Kept(self._book.state(), self._silences.known(), self._grouping.told(), clock.now_us() / 1e6)
        self._changed = False
        try:
            await self._blobs.put(STATE_KEY, msgspec.msgpack.encode(kept))
        except FourplaneError as error:  # people are paged from a full disk, too
            self._changed = True
            self._registry.event("debug", "alerts", f"the state of alerts is not stored: {error.message}")

    async def _list(self, _: Call[None]) -> AlertsView:
        return self.view()

    async def _acknowledge(self, call: Call[None]) -> dict[str, object]:
        return {"acknowledged": self.acknowledge(call.params["fingerprint"], _who(call))}

    async def _silence(self, call: Call[SilenceOrder]) -> Silence:
        return self.silence(call.body, _who(call))

    async def _expire(self, call: Call[None]) -> Silence:
        return self.expire(call.params["id"])


def signing_key(secrets: Path) -> str:
    """The key that signs what goes out; random, made once, readable by the owner only."""
    file = secrets / "alerts"
    if not file.exists():
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.write_text(ids.capability(), encoding="ascii")
    return file.read_text(encoding="ascii").strip()


def _routing_key(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise Misconfigured(f"write PagerDuty's routing key into {file}", code="no_routing_key") from None


def _who(call: Call[Any]) -> str:
    return call.identity.name if call.identity is not None else "somebody"

"""Which conditions are alerts: from what holds this second to what people are told.

Whoever watches (budgets, probes, workers) says once a second which conditions hold. A condition becomes an alert when it has
held for `for_s`; the alert ends when the condition has not held for `keep_s`, so that something flapping is one alert
and not ten. The same name, service and labels are the same alert.

Pure: `update` takes the time and the conditions and returns the alerts that began or ended. Bounded: ACTIVE_MAX alerts at one
time (what comes after is counted and dropped), HISTORY_MAX that ended.
"""

from collections import deque
from collections.abc import Iterable

import msgspec

from fourplane.control.alerts.model import Alert, Severity, fingerprint

ACTIVE_MAX = 500
HISTORY_MAX = 500


class Condition(msgspec.Struct, frozen=True):
    """Something that holds now. It is an alert once it has held for `for_s`, until it has not held for `keep_s`."""

    name: str
    service: str
    severity: Severity
    summary: str
    labels: dict[str, str] = {}
    for_s: float = 0.0
    keep_s: float = 5.0

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.name, self.service, self.labels)


class Entry(msgspec.Struct):
    """A condition that is watched: not yet, or still, an alert."""

    alert: Alert
    since_s: float
    held_s: float  # when it held last
    keep_s: float
    fired: bool = False
    acknowledged_by: str = ""


class Ended(msgspec.Struct, frozen=True):
    """An alert that is over."""

    alert: Alert
    ended_s: float
    acknowledged_by: str = ""


class BookState(msgspec.Struct):
    """What is kept over a restart."""

    entries: list[Entry] = []
    history: list[Ended] = []


class AlertBook:
    """All alerts of a deployment."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self.history: deque[Ended] = deque(maxlen=HISTORY_MAX)
        self.fired_total = 0
        self.dropped_total = 0

    def update(self, now_s: float, conditions: Iterable[Condition]) -> list[Alert]:
        """What began (`firing`) and what ended (`resolved`) with this second."""
        changes: list[Alert] = []
        for condition in conditions:
            entry = self._met(now_s, condition)
            if entry is not None and not entry.fired and now_s - entry.since_s >= condition.for_s:
                entry.fired = True
                self.fired_total += 1
                changes.append(entry.alert)
        for key, entry in list(self._entries.items()):
            if entry.held_s >= now_s or (entry.fired and now_s - entry.held_s < entry.keep_s):
                continue
            del self._entries[key]
            if entry.fired:
                over = msgspec.structs.replace(entry.alert, state="resolved")
                self.history.append(Ended(over, now_s, entry.acknowledged_by))
                changes.append(over)
        return changes

    def active(self) -> list[Entry]:
        """The alerts that fire now, the oldest first."""
        return sorted((one for one in self._entries.values() if one.fired), key=lambda one: one.alert.started_s)

    def find(self, key: str) -> Entry | None:
        """The firing alert with this fingerprint."""
        entry = self._entries.get(key)
        return entry if entry is not None and entry.fired else None

    def acknowledge(self, key: str, who: str) -> Alert | None:
        """Somebody looks after it; None when no such alert fires."""
        entry = self.find(key)
        if entry is None:
            return None
        entry.acknowledged_by = who
        return entry.alert

    def state(self) -> BookState:
        """What is needed to end after a restart what began before it."""
        return BookState([one for one in self._entries.values() if one.fired], list(self.history))

    def restore(self, state: BookState, now_s: float) -> None:
        """Go on with what fired before; what does not hold any more ends after its `keep_s`."""
        for entry in state.entries[:ACTIVE_MAX]:
            entry.held_s = now_s
            self._entries[entry.alert.fingerprint] = entry
        self.history.extend(state.history)

    def check(self) -> None:
        """Assert the invariants."""
        assert len(self._entries) <= ACTIVE_MAX
        for key, entry in self._entries.items():
            assert key == entry.alert.fingerprint
            assert entry.alert.state == "firing"
            assert entry.since_s <= entry.held_s

    def _met(self, now_s: float, condition: Condition) -> Entry | None:
        key = condition.fingerprint
        entry = self._entries.get(key)
        if entry is None:
            if len(self._entries) >= ACTIVE_MAX:
                self.dropped_total += 1
                return None
            alert = Alert(
                condition.name, condition.service, condition.severity, condition.labels, now_s, condition.summary, "firing"
            )  # fmt: skip
            entry = self._entries[key] = Entry(alert, now_s, now_s, condition.keep_s)
            return entry
        if entry.alert.summary != condition.summary or entry.alert.severity != condition.severity:
            entry.alert = msgspec.structs.replace(entry.alert, summary=condition.summary, severity=condition.severity)
        entry.held_s, entry.keep_s = now_s, condition.keep_s
        return entry

"""When which alerts are told together: Alertmanager's rules, as a pure core.

Alerts whose `group_by` labels are the same make a group. A new group waits `group_wait_s`, so that what breaks together is told
together; after that it is told again when something in it changed, `group_interval_s` after the last time at the earliest, or
when nothing changed for `repeat_interval_s`. A notification says what fires and what ended since the last one; of what was
never told as firing nobody hears the end. When nothing of a group fires any more, it is told and forgotten.

What is silenced or acknowledged is not in `firing`: it is held back, and told when that ends and it still fires.
Invariant: for every alert and group, told firings and told ends alternate.
"""

from collections.abc import Iterable, Sequence

import msgspec

from fourplane.control.alerts.model import Alert

GROUPS_MAX = 500
ALERTS_MAX = 200  # of one notification; more are counted


class GroupingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which labels make a group, and how often it is told."""

    group_by: tuple[str, ...] = ("alertname", "service")
    group_wait_s: float = 1.0
    group_interval_s: float = 15.0
    repeat_interval_s: float = 14_400.0


class Notification(msgspec.Struct, frozen=True):
    """What is told of one group: its alerts that fire, and those that ended since it was told last."""

    key: str
    labels: dict[str, str]
    firing: list[Alert]
    resolved: list[Alert]
    truncated: int = 0


class _Group:
    """One group: what it was told as last."""

    __slots__ = ("began_s", "labels", "told", "told_s")

    def __init__(self, labels: dict[str, str], began_s: float) -> None:
        self.labels = labels
        self.began_s = began_s
        self.told_s = 0.0
        self.told: dict[str, Alert] = {}


class Grouping:
    """The groups of one deployment."""

    def __init__(self, settings: GroupingSettings) -> None:
        self.settings = settings
        self._groups: dict[str, _Group] = {}

    def flush(self, now_s: float, firing: Iterable[Alert], held: Sequence[str] = ()) -> list[Notification]:
        """What is to be told now. `held`: fingerprints that fire and are kept back; their end is not told either."""
        members: dict[str, dict[str, Alert]] = {}
        for alert in firing:
            labels = self._labels(alert)
            key = group_key(labels)
            if key not in self._groups:
                if len(self._groups) >= GROUPS_MAX:
                    continue
                self._groups[key] = _Group(labels, now_s)
            members.setdefault(key, {})[alert.fingerprint] = alert
        notifications = []
        kept_back = set(held)
        for key, group in list(self._groups.items()):
            told = self._told(key, group, members.get(key, {}), kept_back, now_s)
            if told is not None:
                notifications.append(told)
            if key not in members and not group.told:
                del self._groups[key]
        return notifications

    def told(self) -> dict[str, list[Alert]]:
        """What each group was last told to fire, to be kept over a restart."""
        return {key: list(group.told.values()) for key, group in self._groups.items() if group.told}

    def restore(self, told: dict[str, list[Alert]], now_s: float) -> None:
        """Go on: their ends will be told."""
        for key, alerts in told.items():
            if alerts and len(self._groups) < GROUPS_MAX:
                group = self._groups[key] = _Group(self._labels(alerts[0]), now_s)
                group.told, group.told_s = {one.fingerprint: one for one in alerts}, now_s

    def _told(
        self, key: str, group: _Group, now: dict[str, Alert], held: set[str], now_s: float
    ) -> Notification | None:
        fresh = [one for print_, one in now.items() if print_ not in group.told]
        over = [one for print_, one in group.told.items() if print_ not in now and print_ not in held]
        settings = self.settings
        if not group.told:
            if not fresh or now_s - group.began_s < settings.group_wait_s:
                return None
        elif fresh or over:
            ends_group = not now and len(over) == len(group.told)
            if not ends_group and now_s - group.told_s < settings.group_interval_s:
                return None
        elif not now or now_s - group.told_s < settings.repeat_interval_s:
            return None
        firing = list(now.values())
        resolved = [msgspec.structs.replace(one, state="resolved") for one in over]
        kept = {print_: one for print_, one in group.told.items() if print_ in held and print_ not in now}
        group.told, group.told_s = now | kept, now_s
        truncated = max(0, len(firing) + len(resolved) - ALERTS_MAX)
        firing = firing[:ALERTS_MAX]
        return Notification(key, group.labels, firing, resolved[: ALERTS_MAX - len(firing)], truncated)

    def _labels(self, alert: Alert) -> dict[str, str]:
        known = alert.matched()
        return {label: known[label] for label in self.settings.group_by if label in known}


def group_key(labels: dict[str, str]) -> str:
    """The name of a group, in Alertmanager's form."""
    inside = ", ".join(f'{label}="{text}"' for label, text in sorted(labels.items()))
    return "{}:{" + inside + "}"

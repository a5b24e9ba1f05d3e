"""What an alert is, for everybody who makes, sends or acts on one.

An alert is one condition that holds of one service: the same name and labels are the same alert, whatever its summary says.
Its fingerprint names it in addresses and in the key by which a pager knows that two messages are about one thing.
"""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Literal

import msgspec

Severity = Literal["page", "ticket", "info"]
State = Literal["firing", "resolved"]
SEVERITIES: tuple[Severity, ...] = ("page", "ticket", "info")


class Alert(msgspec.Struct, frozen=True):
    """One condition, as it is told to others. `started_s`: seconds since 1970."""

    name: str
    service: str
    severity: str
    labels: dict[str, str]
    started_s: float
    summary: str
    state: State

    def matched(self) -> dict[str, str]:
        """Everything a matcher may look at: the labels with name, service and severity."""
        return self.labels | {"alertname": self.name, "service": self.service, "severity": self.severity}

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.name, self.service, self.labels)


def fingerprint(name: str, service: str, labels: Mapping[str, str]) -> str:
    """16 hex digits that are the same for the same condition, in every process and after every restart."""
    text = "\x00".join([name, service, *(f"{key}\x01{labels[key]}" for key in sorted(labels))])
    return blake2b(text.encode(), digest_size=8).hexdigest()

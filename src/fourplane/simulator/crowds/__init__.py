"""Realistic clients of the four systems, for `load`, for the demonstration and for simulated worlds.

A crowd speaks the public protocols only (HTTP, XMPP, location frames) through `foundation.network`, so that the same
clients run against a live deployment and inside the simulator. It is bounded in users, rate and time.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import msgspec

from fourplane.foundation.telemetry import Histogram


class Target(msgspec.Struct, frozen=True):
    """Where the deployment listens, and a token of an operator for what needs one."""

    host: str = "127.0.0.1"
    http_port: int = 8000
    xmpp_port: int = 5222
    xmpp_tls_port: int = 5223
    location_port: int = 8300
    cdn_port: int = 8101
    operator_token: str = ""


class Plan(msgspec.Struct, frozen=True):
    """How much of a crowd for how long; a gentle one is what `up --demo` runs for hours."""

    users: int = 20
    rate_per_s: float = 5.0  # actions per second over all users
    duration_s: float = 30.0  # 0 = until cancelled
    shape: str = "steady"


class Tally:
    """What the crowd saw: actions by name with latency, errors by code, and facts such as orders or frames."""

    def __init__(self) -> None:
        self.latency: dict[str, Histogram] = {}
        self.errors: dict[str, int] = {}
        self.facts: dict[str, float] = {}

    def done(self, action: str, seconds: float) -> None:
        """One action went well."""
        cell = self.latency.get(action)
        if cell is None:
            cell = self.latency[action] = Histogram()
        cell.record(seconds)

    def failed(self, code: str) -> None:
        """One action failed with this code."""
        self.errors[code] = self.errors.get(code, 0) + 1


Progress = Callable[[float, str], None]  # share 0..1 and one line


class Crowd(Protocol):
    """One system's clients: `drive` returns when the plan is over, or is cancelled."""

    async def drive(self, target: Target, plan: Plan, tally: Tally, progress: Progress) -> None: ...


@runtime_checkable
class Auditing(Protocol):
    """A crowd that remembers what it was promised."""

    async def audit(self, target: Target) -> tuple[int, list[str]]:
        """How many promises were looked at when everything was over, and which were not kept."""
        ...

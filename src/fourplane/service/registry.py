"""Discovery: who says to be where, as leases that lapse. It only tells where to try; ownership.py tells who is right.

An instance registers, renews every `renew_s`, and is evicted once it has been silent for `lease_s`. When many fall silent at
once, the registry is more likely cut off than they are dead: as long as fewer than `protect_share` (85 %) of the
renewals that are expected in a minute arrive, it evicts nobody (self-preservation) and says so. Leaving in order is not
silence: a deregistered instance lowers the expectation. Rules after Netflix's Eureka, with faster defaults.

Pure: `now` is an argument everywhere. Invariants: an instance that renews in time is never evicted; at most
`evict_share_max` of the instances (or one) go in one minute, before the renewals of that minute are known; renewals
are counted per whole minute, so a decision is at most two
minutes old. Cost: a renewal is two dictionary writes, a sweep one pass.
"""

from typing import Literal

import msgspec

from fourplane.foundation.errors import NotFound, Overloaded

WINDOW_S = 60.0
Status = Literal["up", "draining", "down"]


class RegistrySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long silence may last."""

    renew_s: float = 10.0
    lease_s: float = 30.0
    protect_share: float = 0.85
    evict_share_max: float = 0.15
    instances_max: int = 50_000


class Instance(msgspec.Struct, frozen=True):
    """One process that offers a service."""

    service: str
    id: str
    address: str
    zone: str = ""
    region: str = ""
    status: Status = "up"
    labels: dict[str, str] = {}


class RegistryStatistics(msgspec.Struct, frozen=True):
    instances: int
    renewals_last_minute: int
    renewals_expected: float
    protecting: bool
    evicted: int


class _Lease:
    __slots__ = ("instance", "renewed_s")

    def __init__(self, instance: Instance, now: float) -> None:
        self.instance = instance
        self.renewed_s = now


class DiscoveryRegistry:
    """All leases known here."""

    __slots__ = (
        "_counted", "_evicted", "_gone_in_window", "_last_minute", "_leases", "_protects_from", "_settings", "_window",
    )  # fmt: skip

    def __init__(self, settings: RegistrySettings | None = None, *, now: float = 0.0) -> None:
        self._settings = settings or RegistrySettings()
        self._leases: dict[tuple[str, str], _Lease] = {}
        self._window = now  # the beginning of the minute being counted
        self._counted = 0
        self._gone_in_window = 0
        self._last_minute = 0
        self._protects_from = now + 2 * WINDOW_S  # before, there is no whole minute to compare with
        self._evicted = 0

    def register(self, instance: Instance, now: float) -> None:
        """Begin or replace a lease; raises Overloaded past the bound."""
        key = (instance.service, instance.id)
        if key not in self._leases and len(self._leases) >= self._settings.instances_max:
            raise Overloaded("too many instances are registered", code="too_many_instances")
        self._leases[key] = _Lease(instance, now)
        self._count(now)

    def renew(self, service: str, instance_id: str, now: float) -> None:
        """Go on; raises NotFound for a lease that is over: register again."""
        lease = self._leases.get((service, instance_id))
        if lease is None:
            raise NotFound(f"no lease of {service} {instance_id}", code="no_lease")
        lease.renewed_s = max(lease.renewed_s, now)
        self._count(now)

    def deregister(self, service: str, instance_id: str) -> None:
        """Leave in order; fine when unknown."""
        self._leases.pop((service, instance_id), None)

    def set_status(self, service: str, instance_id: str, status: Status) -> None:
        """Say that an instance drains or is back; raises NotFound."""
        lease = self._leases.get((service, instance_id))
        if lease is None:
            raise NotFound(f"no lease of {service} {instance_id}", code="no_lease")
        lease.instance = msgspec.structs.replace(lease.instance, status=status)

    def find(self, service: str, *, zone: str = "") -> list[Instance]:
        """Everybody up who offers `service`, those of `zone` first, in a stable order."""
        found = [lease.instance for lease in self._leases.values() if lease.instance.service == service]
        up = [one for one in found if one.status == "up"]
        return sorted(up, key=lambda one: (one.zone != zone, one.id))

    def sweep(self, now: float) -> list[Instance]:
        """Evict who was silent for too long, the most silent first; nobody while protecting."""
        self._turn(now)
        if self.protecting(now):
            return []
        limit = now - self._settings.lease_s
        silent = sorted(
            ((lease.renewed_s, key) for key, lease in self._leases.items() if lease.renewed_s < limit),
        )
        before = len(self._leases) + self._gone_in_window
        at_most = max(1, int(before * self._settings.evict_share_max)) - self._gone_in_window
        gone = [self._leases.pop(key).instance for _, key in silent[: max(0, at_most)]]
        self._gone_in_window += len(gone)
        self._evicted += len(gone)
        return gone

    def protecting(self, now: float) -> bool:
        """Whether so few renewals arrive that the fault is probably here."""
        self._turn(now)
        return now >= self._protects_from and self._last_minute < self._expected() * self._settings.protect_share

    def statistics(self, now: float) -> RegistryStatistics:
        return RegistryStatistics(
            len(self._leases), self._last_minute, self._expected(), self.protecting(now), self._evicted
        )

    def check(self) -> None:
        """Assert the invariants."""
        assert len(self._leases) <= self._settings.instances_max
        assert all(key == (lease.instance.service, lease.instance.id) for key, lease in self._leases.items())
        assert self._counted >= 0 <= self._last_minute

    def _expected(self) -> float:
        return len(self._leases) * WINDOW_S / self._settings.renew_s

    def _count(self, now: float) -> None:
        self._turn(now)
        self._counted += 1

    def _turn(self, now: float) -> None:
        """Begin a new minute when the old one is over."""
        passed = int((now - self._window) // WINDOW_S)
        if passed >= 1:
            self._last_minute = self._counted if passed == 1 else 0
            self._counted = self._gone_in_window = 0
            self._window += passed * WINDOW_S

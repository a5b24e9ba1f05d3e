"""What a fault in a running deployment is, and whom it is for. Pure.

Scope: the paths of one system (or below one `route`), the callers of one `tenant`, the workers of one `zone` or `region`, and a
share of the callers (`percent`), always the same ones while the fault lasts. Who is in the scope of the first three and
not drawn by the last is the control group: the same time, the same paths, no fault. Both groups are counted, because a
fault that cannot be told from noise taught nothing (Netflix' FIT became ChAP for that reason).
"""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Literal, get_args

import msgspec

from fourplane.foundation import ids
from fourplane.foundation.errors import Rejected
from fourplane.foundation.telemetry import Histogram

Kind = Literal[
    "instance_loss", "zone_loss", "region_loss", "latency", "errors", "partition", "service_partition", "cpu_burn",
    "disk_full", "disk_stall", "clock_skew",
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)
OF_REQUESTS = frozenset({"latency", "errors", "partition"})
OF_PLACES = frozenset({"zone_loss", "region_loss"})
SERVER_ERRORS = 500
LATENCY_S_MAX = 60.0
SKEW_S_MAX = 86_400.0


class Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments a fault may have; each kind reads its own."""

    duration_s: float = 5.0
    zone: str = ""
    region: str = ""
    route: str = ""  # a path below the system's: only requests that begin with it
    tenant: str = ""  # only requests of people of this tenant
    percent: float = 100.0  # of the callers
    share: float = 1.0  # the same as a share
    latency_s: float = 0.0
    jitter_s: float = 0.0
    status: int = 503
    one_way: bool = False
    to: str = ""  # service_partition: the system on the other side; empty: all others
    free_bytes: int = 0
    stall_s: float = 0.5
    skew_s: float = 0.0

    def __post_init__(self) -> None:
        waits = (self.latency_s, self.jitter_s, self.stall_s)
        if not (0 < self.duration_s <= 3_600 and all(0 <= one <= LATENCY_S_MAX for one in waits)):
            raise ValueError("duration_s, latency_s, jitter_s or stall_s is out of bounds")
        if not (0 < self.share <= 1 and 0 < self.percent <= 100 and 400 <= self.status <= 599):
            raise ValueError("share is within 0..1, percent within 0..100 and status within 400..599")
        if abs(self.skew_s) > SKEW_S_MAX or self.free_bytes < 0:
            raise ValueError("skew_s is a day at most, free_bytes is not negative")

    @property
    def drawn(self) -> float:
        """The share of callers it is for."""
        return min(self.share, self.percent / 100)


class GroupState(msgspec.Struct, frozen=True):
    """What the requests of one group got."""

    requests: int = 0
    errors: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0


class FaultState(msgspec.Struct, frozen=True):
    """One fault as people see it; `ended` says why it is over, empty while it lasts."""

    id: str
    kind: str
    system: str
    ends_in_s: float
    touched: int
    told: str = ""
    ended: str = ""
    worker: int = 0
    experiment: GroupState = GroupState()
    control: GroupState = GroupState()


class Group:
    """Counts one group of requests."""

    __slots__ = ("errors", "latency", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.errors = 0
        self.latency = Histogram()

    def count(self, status: int, seconds: float) -> None:
        """One request got its answer; status 0: none."""
        self.requests += 1
        if status >= SERVER_ERRORS or not status:
            self.errors += 1
        self.latency.record(seconds)

    def state(self) -> GroupState:
        """What people read."""
        p50, p99 = (round(self.latency.quantile(share) * 1e3, 1) for share in (0.5, 0.99))
        return GroupState(self.requests, self.errors, p50, p99)


class Fault:
    """A fault under lease."""

    __slots__ = ("control", "ends_s", "experiment", "id", "kind", "prefix", "salt", "system", "wanted")

    def __init__(self, kind: Kind, system: str, wanted: Wanted, ends_s: float) -> None:
        self.id = ids.capability()[:12]
        self.kind = kind
        self.system = system
        self.prefix = f"/{system}/{wanted.route.removeprefix(f'/{system}/').lstrip('/')}"
        self.wanted = wanted
        self.ends_s = ends_s
        self.salt = self.id.encode()
        self.experiment = Group()
        self.control = Group()

    def within(self, path: str, tenant: str) -> bool:
        """Whether a request is one of those in either group."""
        return path.startswith(self.prefix) and self.wanted.tenant in ("", tenant)

    def is_whole(self, system: str) -> bool:
        """Whether it is for everybody and everything of a system."""
        wanted = self.wanted
        return self.system == system and not wanted.route and not wanted.tenant and wanted.drawn >= 1.0

    def draws(self, caller: str) -> bool:
        """Whether this caller is one of the share it is for."""
        share = self.wanted.drawn
        if share >= 1.0:
            return True
        lot = blake2b(caller.encode(), digest_size=4, key=self.salt).digest()
        return int.from_bytes(lot, "big") < share * 2**32

    def state(self, now_s: float, worker: int, ended: str = "") -> FaultState:
        """What people read."""
        return FaultState(
            self.id, self.kind, self.system, round(max(0.0, self.ends_s - now_s), 2), self.experiment.requests,
            told(self.wanted), ended, worker, self.experiment.state(), self.control.state(),
        )  # fmt: skip


def kind_of(name: str) -> Kind:
    """The kind of this name; raises Rejected for one there is none of."""
    found = next((kind for kind in KINDS if kind == name), None)
    if found is None:
        raise Rejected(f"a running deployment cannot have the fault {name[:40]!r}; it can have {', '.join(KINDS)}")
    return found


def wanted_of(kind: str, arguments: Mapping[str, Any]) -> Wanted:
    """The arguments as they are meant; raises Rejected (`bad_fault`)."""
    try:
        wanted = msgspec.convert(dict(arguments), Wanted)
    except msgspec.ValidationError as error:
        raise Rejected(f"{kind}: {error}", code="bad_fault") from None
    if kind == "zone_loss" and not wanted.zone:
        raise Rejected("zone_loss: which zone?", code="bad_fault")
    if kind == "region_loss" and not wanted.region:
        raise Rejected("region_loss: which region?", code="bad_fault")
    return wanted


def told(wanted: Wanted) -> str:
    """The arguments that are not the usual ones, in one line."""
    usual = Wanted()
    given = {name: value for name, value in msgspec.to_builtins(wanted).items() if value != getattr(usual, name)}
    return ", ".join(f"{name} {value}" for name, value in given.items()) or f"{wanted.duration_s:g} s"

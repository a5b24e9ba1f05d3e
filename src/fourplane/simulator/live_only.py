"""What an experiment may do to a running deployment only, because a simulated world has no routes, tenants or services in
processes of their own. In a simulation they are refused before they begin.

Scope as in `control.fault_scope`: `route` (paths that begin with it), `tenant`, `zone` or `region` of the workers, `percent`
of the callers, of whom the rest is the control group.
"""

# ruff: noqa: ARG001 - the signatures are what a file is checked against
from fourplane.foundation.errors import Rejected


def latency(
    latency_s: float,
    jitter_s: float = 0.0,
    duration_s: float = 5.0,
    *,
    route: str = "",
    tenant: str = "",
    zone: str = "",
    region: str = "",
    percent: float = 100.0,
) -> None:
    """Requests in the scope wait."""
    _refuse("latency by route")


def errors(
    status: int = 503,
    duration_s: float = 5.0,
    *,
    route: str = "",
    tenant: str = "",
    zone: str = "",
    region: str = "",
    percent: float = 100.0,
) -> None:
    """Requests in the scope are answered with this status."""
    _refuse("errors")


def service_partition(to: str = "", duration_s: float = 5.0, *, one_way: bool = False) -> None:
    """The system and the service `to` (all others when empty) do not reach each other; they stand in different workers."""
    _refuse("service_partition")


def cpu_burn(duration_s: float = 5.0) -> None:
    """The worker's processor is busy four fifths of the time."""
    _refuse("cpu_burn")


def change(name: str, value: float, duration_s: float = 60.0) -> None:
    """A change of the running configuration (control/changes.py), taken back at the latest when this time is over."""
    _refuse("change")


def _refuse(name: str) -> None:
    raise Rejected(f"{name} can only be had in a running deployment: ./fourplane chaos", code="not_simulated")

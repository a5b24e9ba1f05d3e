"""The four crowds by system, and how large each is when nobody says."""

import ssl

from msgspec.structs import replace

from fourplane.simulator.crowds import Crowd, Plan
from fourplane.simulator.crowds.commerce import CommerceCrowd
from fourplane.simulator.crowds.dispatch import DispatchCrowd
from fourplane.simulator.crowds.messaging import MessagingCrowd
from fourplane.simulator.crowds.streaming import StreamingCrowd

GENTLE = {
    "streaming": Plan(users=3, rate_per_s=0.5),
    "dispatch": Plan(users=2_000, rate_per_s=1.0),
    "commerce": Plan(users=10, rate_per_s=4.0),
    "messaging": Plan(users=24, rate_per_s=6.0),
}
USUAL = {
    "streaming": Plan(users=20, rate_per_s=4.0),
    "dispatch": Plan(users=5_000, rate_per_s=10.0),
    "commerce": Plan(users=50, rate_per_s=100.0),
    "messaging": Plan(users=200, rate_per_s=500.0),
}


def plan(
    system: str, *, users: int = 0, rate_per_s: float = 0.0, duration_s: float, shape: str, gentle: bool = False
) -> Plan:
    """The plan of one system's crowd: what was asked, the system's own sizes for the rest."""
    usual = (GENTLE if gentle else USUAL)[system]
    return replace(
        usual,
        users=users or usual.users,
        rate_per_s=rate_per_s or usual.rate_per_s,
        duration_s=duration_s,
        shape=shape,
    )


def crowd(system: str, accounts: list[tuple[str, str]]) -> Crowd:
    """The crowd of one system; `accounts` are what the deployment made for crowds that log in."""
    match system:
        case "streaming":
            return StreamingCrowd()
        case "dispatch":
            return DispatchCrowd()
        case "commerce":
            return CommerceCrowd()
        case "messaging":
            return MessagingCrowd(accounts, tls=unverified())
    raise AssertionError(system)


def unverified() -> ssl.SSLContext:
    """TLS towards a deployment on this machine, whose certificate it made itself."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context

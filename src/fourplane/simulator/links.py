"""How messages travel between two hosts: the distance they have, and what currently disturbs the way.

A `Link` is what a pair of hosts has in peace, by distance or as configured. A `Disturbance` changes every way from one
set of hosts to another for as long as it is laid on: it adds latency, jitter and loss, narrows bandwidth, or cuts the
way. Disturbances add up, so two faults on one way do not undo each other when the first of them ends.
"""

from collections.abc import Iterable

import msgspec


class Link(msgspec.Struct, frozen=True):
    """How messages travel between two hosts; `bandwidth` in bytes per second, 0 = unbounded."""

    latency_s: float
    jitter_s: float = 0.0
    loss: float = 0.0
    bandwidth: float = 0.0


SAME_HOST = Link(0.000_05, 0.000_01)
SAME_ZONE = Link(0.000_25, 0.000_05)
SAME_REGION = Link(0.001, 0.000_2)
WIDE_AREA = Link(0.040, 0.004)


class Disturbance(msgspec.Struct, frozen=True, eq=False):
    """What is wrong on every way from a host of `senders` to a host of `receivers`; `cut` lets nothing through."""

    senders: frozenset[str]
    receivers: frozenset[str]
    latency_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    bandwidth: float = 0.0
    cut: bool = False

    def touches(self, sender: str, receiver: str) -> bool:
        return sender in self.senders and receiver in self.receivers


class Way(msgspec.Struct, frozen=True):
    """One direction between two hosts as it is now."""

    link: Link
    cut: bool


def way(link: Link, disturbances: Iterable[Disturbance]) -> Way:
    """The link with everything that disturbs it: latency and jitter add up, losses are independent, the narrowest counts."""
    latency, jitter, passes, bandwidth, cut = link.latency_s, link.jitter_s, 1.0 - link.loss, link.bandwidth, False
    for one in disturbances:
        latency += one.latency_s
        jitter += one.jitter_s
        passes *= 1.0 - one.loss
        if one.bandwidth:
            bandwidth = min(bandwidth, one.bandwidth) if bandwidth else one.bandwidth
        cut = cut or one.cut
    return Way(Link(latency, jitter, 1.0 - passes, bandwidth), cut)

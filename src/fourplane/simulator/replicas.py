"""The simulated twin of a replicated engine: one volume with copies in several zones, one of which leads.

A write is durable when a majority of the copies has it, so it takes the round trip to the fastest of them that make a majority
with the leader, and waits while there is no majority. What a majority has is what the next leader finds: the bytes lie on one
simulated disk, on which unsynced writes are lost or torn with the leader, and a leader without a majority can sync nothing.
A leader that has not reached a majority for `LEASE_S` gives up (it is fenced: its process ends), and the first copy in order
that reaches one takes over; so there are never two who write.
"""

from collections.abc import Callable

from fourplane.simulator.loop import World

LEASE_S = 3.0


class Replicas:
    """Where the copies stand, which hosts are gone, and what a majority costs from here."""

    def __init__(self, world: World, hosts: list[str]) -> None:
        assert hosts, "a volume lies somewhere"
        self.hosts = hosts
        self.lost: set[str] = set()
        self._world = world

    @property
    def majority(self) -> int:
        return len(self.hosts) // 2 + 1

    def quorum_s(self, leader: str) -> float | None:
        """The round trip to a majority from `leader`; None when it reaches none."""
        if leader in self.lost:
            return None
        trips = sorted(self._trips(leader))
        missing = self.majority - 1
        if missing > len(trips):
            return None
        return trips[missing - 1] if missing else 0.0

    def volume(self, leader: str) -> Callable[[], float | None]:
        """What the leader's disk asks before every write; nothing for a single copy."""
        return lambda: self.quorum_s(leader)

    def next_leader(self) -> str | None:
        """The first copy that reaches a majority; with a single copy always that one."""
        if len(self.hosts) == 1:
            return self.hosts[0]
        return next((host for host in self.hosts if self.quorum_s(host) is not None), None)

    def _trips(self, leader: str) -> list[float]:
        network, found = self._world.network, []
        for other in self.hosts:
            if other == leader or other in self.lost:
                continue
            there, back = network.way(leader, other), network.way(other, leader)
            if not (there.cut or back.cut):
                jitter = network.chance.random() * (there.link.jitter_s + back.link.jitter_s)
                found.append(there.link.latency_s + back.link.latency_s + jitter)
        return found

"""TCP and UDP between named hosts, in memory, with latency, jitter, loss and partitions from the seed.

A connection is two ends (`connection.SimulatedTransport`). A message arrives after its way's delay, and a lost packet costs
a retransmission time instead of vanishing, as TCP would do. A narrow way carries one message after the other. A partition
holds messages back; when it lasts longer than `GIVE_UP_S` the connection breaks with a time-out.
A host name that nobody placed is the machine itself: `127.0.0.1` and `localhost` mean the caller's own host.
"""

import asyncio
import random
import struct
import zlib
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from fourplane.simulator.calendar import Entry
from fourplane.simulator.connection import (
    SimulatedDatagram,
    SimulatedSocket,
    SimulatedTransport,
)
from fourplane.simulator.links import (
    SAME_HOST,
    SAME_REGION,
    SAME_ZONE,
    WIDE_AREA,
    Disturbance,
    Link,
    Way,
    way,
)

if TYPE_CHECKING:
    from fourplane.simulator.loop import SimulatorLoop

__all__ = ("Disturbance", "Fabric", "Link", "SimulatedServer", "SimulatedTransport")

RETRANSMIT_S = 0.2
GIVE_UP_S = 30.0
LOOPBACK = ("127.0.0.1", "localhost", "0.0.0.0", "::1", "")  # noqa: S104 - names to recognise, not to bind
FIRST_FREE_PORT = 40_000
_SUMS = struct.Struct("<5I")
_number = attrgetter("number")


class SimulatedServer(asyncio.AbstractServer):
    """A listening address on a simulated host."""

    def __init__(self, fabric: "Fabric", key: tuple[str, int], factory: Callable[[], Any], *, tls: bool) -> None:
        self._fabric = fabric
        self.key = key
        self.factory = factory
        self.tls = tls
        self.context = copy_context()
        self.sockets = [SimulatedSocket(key)]

    def close(self) -> None:
        self._fabric.unlisten(self)

    async def wait_closed(self) -> None:
        """Closing takes no time here."""

    async def start_serving(self) -> None:
        """It serves from the moment it exists."""

    async def serve_forever(self) -> None:
        await self._fabric.loop.create_future()

    def is_serving(self) -> bool:
        return self._fabric.is_listening(self)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._fabric.loop


class Fabric:
    """All hosts, links, listeners and connections of one world."""

    def __init__(self, loop: "SimulatorLoop", chance: random.Random, host_now: Callable[[], str]) -> None:
        self.loop = loop
        self.delivered = 0
        self.chance = chance
        self.version = 0  # changes with every link and disturbance, so that connections ask again
        self.seen: list[Entry] = []  # deliveries that are not in the digest yet
        self.private = b""  # where the disks of this run really lie: no part of what it is
        self._host_now = host_now
        self.names: dict[str, str] = {}  # of services, and the host each stands on now
        self._places: dict[str, tuple[str, str]] = {}
        self._links: dict[tuple[str, str], Link] = {}
        self._disturbances: list[Disturbance] = []
        self._partitions: dict[tuple[str, str], Disturbance] = {}
        self._ways: dict[tuple[str, str], Way] = {}
        self._free_at: dict[tuple[str, str], float] = {}  # when a narrow way has carried what it was given
        self._numbers = 0
        self._listeners: dict[tuple[str, int], SimulatedServer] = {}
        self._datagrams: dict[tuple[str, int], SimulatedDatagram] = {}
        self._transports: dict[SimulatedTransport, None] = {}
        self._free_port = FIRST_FREE_PORT

    # -- topology and faults

    def place(self, host: str, *, zone: str = "", region: str = "") -> None:
        """Say where a host stands; hosts of one zone are near each other."""
        if host not in self._places or ((zone or region) and self._places[host] != (region, zone)):
            self._places[host] = (region, zone)
            self._changed()

    def places(self) -> dict[str, tuple[str, str]]:
        """Region and zone of every host by its name."""
        return dict(self._places)

    def link(self, one: str, other: str, link: Link) -> None:
        """Set the link between two hosts, both ways."""
        self._links[one, other] = self._links[other, one] = link
        self._changed()

    def disturb(self, disturbance: Disturbance) -> None:
        """Lay a disturbance on every way it names, until `calm`."""
        self._disturbances.append(disturbance)
        self._changed()

    def calm(self, disturbance: Disturbance) -> None:
        """Take a disturbance away; one that is not there is none."""
        if disturbance in self._disturbances:
            self._disturbances.remove(disturbance)
            self._changed()

    def calm_all(self) -> None:
        """Take every disturbance away."""
        self._disturbances.clear()
        self._partitions.clear()
        self._changed()

    def partition(self, one: str, other: str, *, one_way: bool = False) -> None:
        """Let nothing through from `one` to `other` (and back unless one_way)."""
        for sender, receiver in ((one, other), (other, one))[: 1 if one_way else 2]:
            if (sender, receiver) not in self._partitions:
                cut = Disturbance(frozenset({sender}), frozenset({receiver}), cut=True)
                self._partitions[sender, receiver] = cut
                self.disturb(cut)

    def heal(self, one: str, other: str) -> None:
        """Undo a partition."""
        for pair in ((one, other), (other, one)):
            cut = self._partitions.pop(pair, None)
            if cut is not None:
                self.calm(cut)

    def crash(self, host: str, *, silent: bool = False) -> None:
        """End every connection of a host and forget its listeners; a silent end is one the others do not hear of."""
        for key in [key for key in self._listeners if key[0] == host]:
            del self._listeners[key]
        for name in [name for name in self._datagrams if name[0] == host]:
            del self._datagrams[name]
        for transport in [transport for transport in self._transports if transport.host == host]:
            transport.end()
            peer = transport.peer
            if peer is not None and peer.alive and peer.host != host:
                error: OSError = ConnectionResetError("the other host crashed")
                if silent:
                    transport.held = None
                    error = TimeoutError("the other end does not answer")
                    self.loop.call_later(GIVE_UP_S, peer.lose, error, context=peer.context)
                else:
                    transport.send(error)

    def link_between(self, one: str, other: str) -> Link:
        """The link as configured, else by distance."""
        if (one, other) in self._links:
            return self._links[one, other]
        if one == other:
            return SAME_HOST
        place, other_place = self._places.get(one, ("", "")), self._places.get(other, ("", ""))
        if place == other_place:
            return SAME_ZONE
        return SAME_REGION if place[0] == other_place[0] else WIDE_AREA

    def way(self, sender: str, receiver: str) -> Way:
        """One direction between two hosts with everything that disturbs it now."""
        known = self._ways.get((sender, receiver))
        if known is None:
            on_it = (one for one in self._disturbances if one.touches(sender, receiver))
            known = self._ways[sender, receiver] = way(self.link_between(sender, receiver), on_it)
        return known

    def detour_s(self, sender: str, receiver: str, size: int) -> float:
        """What loss and a narrow way add to the delay of one message."""
        link = self.way(sender, receiver).link
        delay = 0.0
        if link.loss and self.chance.random() < link.loss:
            delay += RETRANSMIT_S
        if link.bandwidth:
            now = self.loop.virtual_s
            free = max(now, self._free_at.get((sender, receiver), 0.0)) + size / link.bandwidth
            self._free_at[sender, receiver] = free
            delay += free - now
        return delay

    def _changed(self) -> None:
        self.version += 1
        self._ways.clear()
        for transport in self._transports:
            transport.forget_way()

    # -- connections

    def listen(self, factory: Callable[[], Any], host: str, port: int, *, tls: bool) -> SimulatedServer:
        """Listen on the host of the caller; a busy address raises OSError as a real one would."""
        name = self._host_now() if host in LOOPBACK else host
        if port == 0:
            port = self._take_port()
        if (name, port) in self._listeners:
            raise OSError(98, f"address already in use: {name}:{port}")
        server = SimulatedServer(self, (name, port), factory, tls=tls)
        self._listeners[name, port] = server
        return server

    def unlisten(self, server: SimulatedServer) -> None:
        """Stop accepting; connections go on."""
        if self._listeners.get(server.key) is server:
            del self._listeners[server.key]

    def is_listening(self, server: SimulatedServer) -> bool:
        return self._listeners.get(server.key) is server

    async def connect(
        self, factory: Callable[[], Any], host: str, port: int, *, tls: bool
    ) -> tuple[SimulatedTransport, Any]:
        """One round trip, then two connected transports; nobody listening raises ConnectionRefusedError."""
        here = self._host_now()
        there = here if host in LOOPBACK else self.names.get(host, host)
        waited = 0.0
        while self.way(here, there).cut or self.way(there, here).cut:
            await asyncio.sleep(RETRANSMIT_S)
            waited += RETRANSMIT_S
            if waited >= GIVE_UP_S:
                raise TimeoutError(f"no way from {here} to {there}")
        await asyncio.sleep(self._delay_s(here, there) + self._delay_s(there, here))
        server = self._listeners.get((there, port))
        if server is None:
            raise ConnectionRefusedError(111, f"nobody listens on {there}:{port}")
        near, far = (here, self._take_port()), (there, port)
        client = SimulatedTransport(self, near, far, copy_context())
        served = SimulatedTransport(self, far, near, server.context.copy())
        client.peer, served.peer = served, client
        client.encrypted = served.encrypted = tls
        self._transports[client] = self._transports[served] = None
        client.set_protocol(factory())
        self.loop.call_soon(_accept, server, served, context=served.context)
        client.protocol.connection_made(client)
        return client, client.protocol

    def hold(self, sender: SimulatedTransport, content: bytes | Exception | None) -> None:
        """Keep `content` at its sender until the way is open again."""
        if sender.held is None:
            sender.held = deque()
        if not sender.held:
            self._retry_later(sender, RETRANSMIT_S)
        sender.held.append(content)

    def _retry_later(self, sender: SimulatedTransport, waited: float) -> None:
        """The machine sends again, not the process, which may have ended meanwhile."""
        self.loop.call_later(RETRANSMIT_S, self._retry, sender, waited, context=Context())

    def _retry(self, sender: SimulatedTransport, waited: float) -> None:
        peer = sender.peer
        assert peer is not None
        if sender.held is None:
            return
        if not self.way(sender.host, peer.host).cut:
            while sender.held:
                sender.depart(sender.held.popleft())
        elif waited >= GIVE_UP_S:
            sender.held.clear()
            sender.context.run(sender.lose, TimeoutError("the other end does not answer"))
        else:
            self._retry_later(sender, waited + RETRANSMIT_S)

    def _delay_s(self, sender: str, receiver: str) -> float:
        link = self.way(sender, receiver).link
        return link.latency_s + self.chance.random() * link.jitter_s + self.detour_s(sender, receiver, 0)

    def settle_digest(self) -> None:
        """Move what was collected into the loop's digest: times to the microsecond, ends, bytes, as one CRC-32 of each."""
        seen = self.seen
        count = len(seen)
        if not count:
            return
        self.delivered += count
        times, receivers, contents = zip(*seen, strict=True)
        moments = (np.fromiter(times, np.float64, count) * 1e6).astype(np.int64)
        numbers = np.fromiter(map(_number, receivers), np.int64, count)
        joined = b"".join(contents)
        if self.private:
            joined = joined.replace(self.private, b"")
        sums = zlib.crc32(moments.tobytes()), zlib.crc32(numbers.tobytes()), zlib.crc32(joined)
        self.loop.digest.update(_SUMS.pack(count, len(joined), *sums))
        seen.clear()

    def next_number(self) -> int:
        """Numbers ends of connections in the order in which they were made."""
        self._numbers += 1
        return self._numbers

    def is_down(self, host: str) -> bool:
        """Whether nobody answers there, not even to say that a connection is unknown."""
        return self.loop.life_of(host).dead

    def forget(self, transport: SimulatedTransport) -> None:
        """Drop an ended connection."""
        self._transports.pop(transport, None)

    # -- datagrams

    def datagram(
        self, factory: Callable[[], Any], local: tuple[str, int] | None, remote: tuple[str, int] | None
    ) -> tuple[SimulatedDatagram, Any]:
        """A UDP endpoint; datagrams may be lost, never reordered within one link delay."""
        host = self._host_now() if local is None or local[0] in LOOPBACK else local[0]
        port = local[1] if local is not None and local[1] else self._take_port()
        if (host, port) in self._datagrams:
            raise OSError(98, f"address already in use: {host}:{port}")
        protocol = factory()
        endpoint = SimulatedDatagram(self, (host, port), remote, protocol)
        self._datagrams[host, port] = endpoint
        protocol.connection_made(endpoint)
        return endpoint, protocol

    def send_datagram(self, sender: tuple[str, int], content: bytes, target: tuple[str, int]) -> None:
        """Deliver later, or lose it."""
        there = (sender[0] if target[0] in LOOPBACK else target[0], target[1])
        now = self.way(sender[0], there[0])
        if now.cut or (now.link.loss and self.chance.random() < now.link.loss):
            return
        delay = now.link.latency_s + self.chance.random() * now.link.jitter_s
        self.loop.call_later(delay, self._arrive_datagram, sender, content, there)

    def _arrive_datagram(self, sender: tuple[str, int], content: bytes, there: tuple[str, int]) -> None:
        endpoint = self._datagrams.get(there)
        if endpoint is not None:
            self.delivered += 1
            self.settle_digest()
            self.loop.digest.update(f"{self.loop.virtual_s:.6f} {sender}>{there}".encode() + content)
            endpoint.protocol.datagram_received(content, sender)

    def close_datagram(self, name: tuple[str, int]) -> None:
        self._datagrams.pop(name, None)

    def close(self) -> None:
        """Forget everything at the end of a run."""
        self._listeners.clear()
        self._datagrams.clear()
        self._transports.clear()

    def _take_port(self) -> int:
        self._free_port += 1
        return self._free_port


def _accept(server: SimulatedServer, served: SimulatedTransport) -> None:
    served.set_protocol(server.factory())
    served.protocol.connection_made(served)

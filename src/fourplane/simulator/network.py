"""TCP and UDP between named hosts, in memory, with latency, jitter, loss and partitions from the seed.

A connection is two `SimulatedTransport`s. Bytes written travel as one message per write, arrive in order after the link's
delay, and a lost packet costs a retransmission time instead of vanishing, as TCP would do. A partition holds
messages back; when it lasts longer than `GIVE_UP_S` the connection breaks with a time-out. Flow control is real:
past the high-water mark of unread bytes the writer is paused until the reader has taken them.
A host name that nobody placed is the machine itself: `127.0.0.1` and `localhost` mean the caller's own host.
"""

import asyncio
import random
import struct
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from fourplane.simulator.loop import SimulatorLoop

HIGH_WATER = 64 * 1024
LOW_WATER = 16 * 1024
RETRANSMIT_S = 0.2
GIVE_UP_S = 30.0
LOOPBACK = ("127.0.0.1", "localhost", "0.0.0.0", "::1", "")  # noqa: S104 - names to recognise, not to bind
FIRST_FREE_PORT = 40_000
SEEN_MAX = 64 * 1024
_DELIVERY = struct.Struct("<QQI")


class Arrival:
    """A message on its way: content, None for the end of the stream, or an error that breaks the connection.

    It stands in the loop's queues where asyncio has handles, so it has their two names and nothing else.
    """

    __slots__ = ("content", "receiver")
    _cancelled = False

    def __init__(self, receiver: "SimulatedTransport", content: bytes | Exception | None) -> None:
        self.receiver = receiver
        self.content = content

    @property
    def _context(self) -> Context:
        return self.receiver.context

    def _run(self) -> None:
        self.receiver.context.run(self.receiver.arrive, self.content)


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


class SimulatedSocket:
    """What `get_extra_info("socket")` gives: an address, and options that change nothing."""

    def __init__(self, name: tuple[str, int]) -> None:
        self._name = name

    def getsockname(self) -> tuple[str, int]:
        return self._name

    def setsockopt(self, *_: object) -> None:
        """Accepted and without effect."""

    def fileno(self) -> int:
        return -1


class SimulatedTls:
    """What `get_extra_info("ssl_object")` gives on a connection that would be encrypted."""

    def version(self) -> str:
        return "TLSv1.3"

    def cipher(self) -> tuple[str, str, int]:
        return ("TLS_AES_256_GCM_SHA384", "TLSv1.3", 256)


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


class SimulatedTransport(asyncio.Transport):
    """One end of a connection."""

    def __init__(self, fabric: "Fabric", name: tuple[str, int], peer_name: tuple[str, int], context: Context) -> None:
        super().__init__()
        self._fabric = fabric
        self.host = name[0]
        self.context = context
        self.held: deque[bytes | Exception | None] = deque()
        self._name = name
        self._peer_name = peer_name
        self.peer: SimulatedTransport | None = None
        self.protocol: Any = None
        self._buffered = False
        self.number = fabric.next_number()
        self.encrypted = False
        self.alive = True
        self._closing = False
        self._wrote_eof = False
        self._unread = 0  # bytes sent that the peer's protocol has not taken
        self._paused_writer = False
        self._reading = True
        self._inbox: deque[bytes | None] = deque()
        self._next_arrival = 0.0
        self._high, self._low = HIGH_WATER, LOW_WATER

    # -- what protocols call

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        known: dict[str, Any] = {"peername": self._peer_name, "sockname": self._name}
        if name == "socket":
            return SimulatedSocket(self._name)
        if name in ("ssl_object", "sslcontext"):
            return SimulatedTls() if self.encrypted else default
        return known.get(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol
        self._buffered = isinstance(protocol, asyncio.BufferedProtocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self.protocol
        return protocol

    def write(self, data: Any) -> None:
        if self._closing or not self.alive or not data:
            return
        assert not self._wrote_eof, "write after write_eof"
        content = bytes(data)
        self._unread += len(content)
        self._send(content)
        if self._unread > self._high and not self._paused_writer:
            self._paused_writer = True
            self.protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        if not self._wrote_eof and self.alive:
            self._wrote_eof = True
            self._send(None)

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        if self._closing or not self.alive:
            return
        self._closing = True
        if not self._wrote_eof:
            self._wrote_eof = True
            self._send(None)
        self._fabric.loop.call_soon(self.lose, None, context=self.context)

    def abort(self) -> None:
        if not self.alive:
            return
        self._closing = True
        peer = self.peer
        if peer is not None:
            self._fabric.deliver_later(self, peer, ConnectionResetError("reset by peer"))
        self._fabric.loop.call_soon(self.lose, None, context=self.context)

    def is_closing(self) -> bool:
        return self._closing or not self.alive

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        if not self._reading:
            self._reading = True
            self._fabric.loop.call_soon(self._drain_inbox, context=self.context)

    def is_reading(self) -> bool:
        return self._reading and self.alive

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = HIGH_WATER if high is None else high
        self._low = self._high // 4 if low is None else low

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return (self._low, self._high)

    def get_write_buffer_size(self) -> int:
        return self._unread if self._paused_writer else 0

    # -- what the fabric calls

    def _send(self, content: bytes | None) -> None:
        peer = self.peer
        if peer is not None:
            self._fabric.deliver_later(self, peer, content)

    def arrive(self, content: bytes | Exception | None) -> None:
        """Take what the other end sent, now."""
        if not self.alive:
            return
        if isinstance(content, Exception):
            self.lose(content)
            return
        self._fabric.witness(self, content)
        if content is not None and self._reading and not self._inbox and not self._buffered:
            self.protocol.data_received(content)
            peer = self.peer
            if peer is not None:
                peer.taken(len(content))
            return
        self._inbox.append(content)
        if self._reading:
            self._drain_inbox()

    def _drain_inbox(self) -> None:
        while self._inbox and self._reading and self.alive:
            content = self._inbox.popleft()
            if content is None:
                keep_open = self.protocol.eof_received()
                if not keep_open:
                    self.close()
                continue
            peer = self.peer
            _receive(self.protocol, content)
            if peer is not None:
                peer.taken(len(content))

    def taken(self, count: int) -> None:
        """The peer's protocol has read `count` bytes of ours."""
        self._unread -= count
        if self._paused_writer and self._unread <= self._low and self.alive:
            self._paused_writer = False
            self._fabric.loop.call_soon(self.protocol.resume_writing, context=self.context)

    def lose(self, error: Exception | None) -> None:
        """End this side; its protocol hears about it once."""
        if not self.alive:
            return
        self.alive = False
        self._closing = True
        self._fabric.forget(self)
        self.protocol.connection_lost(error)

    def next_arrival(self, at: float) -> float:
        """Keep messages of this direction in order whatever jitter says."""
        self._next_arrival = max(at, self._next_arrival)
        return self._next_arrival


class Fabric:
    """All hosts, links, listeners and connections of one world."""

    def __init__(self, loop: "SimulatorLoop", chance: random.Random, host_now: Callable[[], str]) -> None:
        self.loop = loop
        self.delivered = 0
        self._chance = chance
        self._host_now = host_now
        self._places: dict[str, tuple[str, str]] = {}
        self._links: dict[tuple[str, str], Link] = {}
        self._resolved: dict[tuple[str, str], Link] = {}
        self._seen = bytearray()
        self._numbers = 0
        self._cut: set[tuple[str, str]] = set()
        self._listeners: dict[tuple[str, int], SimulatedServer] = {}
        self._datagrams: dict[tuple[str, int], SimulatedDatagram] = {}
        self._transports: dict[SimulatedTransport, None] = {}
        self._free_port = FIRST_FREE_PORT

    # -- topology and faults

    def place(self, host: str, *, zone: str = "", region: str = "") -> None:
        """Say where a host stands; hosts of one zone are near each other."""
        if zone or region or host not in self._places:
            self._places[host] = (region, zone)
            self._resolved.clear()

    def link(self, one: str, other: str, link: Link) -> None:
        """Set the link between two hosts, both ways."""
        self._links[one, other] = self._links[other, one] = link
        self._resolved.clear()

    def partition(self, one: str, other: str, *, one_way: bool = False) -> None:
        """Let nothing through from `one` to `other` (and back unless one_way)."""
        self._cut.add((one, other))
        if not one_way:
            self._cut.add((other, one))

    def heal(self, one: str, other: str) -> None:
        """Undo a partition."""
        self._cut.discard((one, other))
        self._cut.discard((other, one))

    def crash(self, host: str) -> None:
        """Reset every connection of a host and forget its listeners."""
        for key in [key for key in self._listeners if key[0] == host]:
            del self._listeners[key]
        for transport in [transport for transport in self._transports if transport.host == host]:
            transport.alive = False
            self.forget(transport)
            peer = transport.peer
            if peer is not None and peer.alive and peer.host != host:
                self.deliver_later(transport, peer, ConnectionResetError("the other host crashed"))

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
        there = here if host in LOOPBACK else host
        link = self.link_between(here, there)
        waited = 0.0
        while (here, there) in self._cut or (there, here) in self._cut:
            await asyncio.sleep(RETRANSMIT_S)
            waited += RETRANSMIT_S
            if waited >= GIVE_UP_S:
                raise TimeoutError(f"no way from {here} to {there}")
        await asyncio.sleep(2 * self._delay_s(link, 0))
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

    def deliver_later(
        self, sender: SimulatedTransport, receiver: SimulatedTransport, content: bytes | Exception | None
    ) -> None:
        """Let `content` arrive when the link says so.

        During a partition messages wait at the sender in order, and what is written after it healed waits behind them.
        """
        if not sender.held and (not self._cut or (sender.host, receiver.host) not in self._cut):
            self._schedule(sender, receiver, content)
            return
        if not sender.held:
            self.loop.call_later(RETRANSMIT_S, self._retry, sender, receiver, RETRANSMIT_S)
        sender.held.append(content)

    def _retry(self, sender: SimulatedTransport, receiver: SimulatedTransport, waited: float) -> None:
        if (sender.host, receiver.host) in self._cut:
            if waited >= GIVE_UP_S:
                sender.held.clear()
                sender.lose(TimeoutError("the other end does not answer"))
                return
            self.loop.call_later(RETRANSMIT_S, self._retry, sender, receiver, waited + RETRANSMIT_S)
            return
        while sender.held:
            self._schedule(sender, receiver, sender.held.popleft())

    def _schedule(
        self, sender: SimulatedTransport, receiver: SimulatedTransport, content: bytes | Exception | None
    ) -> None:
        link = self._resolved.get((sender.host, receiver.host)) or self._resolve(sender.host, receiver.host)
        size = len(content) if isinstance(content, bytes) else 0
        at = sender.next_arrival(self.loop.virtual_s + self._delay_s(link, size))
        self.loop.arrive_at(at, Arrival(receiver, content))

    def _resolve(self, one: str, other: str) -> Link:
        link = self._resolved[one, other] = self.link_between(one, other)
        return link

    def _delay_s(self, link: Link, size: int) -> float:
        delay = link.latency_s + self._chance.random() * link.jitter_s
        if link.loss and self._chance.random() < link.loss:
            delay += RETRANSMIT_S
        if link.bandwidth:
            delay += size / link.bandwidth
        return delay

    def witness(self, receiver: SimulatedTransport, content: bytes | None) -> None:
        """Put one delivery into the digest."""
        self.delivered += 1
        seen = self._seen
        seen += _DELIVERY.pack(int(self.loop.virtual_s * 1e6), receiver.number, 0 if content is None else len(content))
        if content is not None:
            seen += content
        if len(seen) > SEEN_MAX:
            self.settle_digest()

    def settle_digest(self) -> None:
        """Move what was collected into the loop's digest."""
        self.loop.digest.update(self._seen)
        self._seen.clear()

    def next_number(self) -> int:
        """Numbers ends of connections in the order in which they were made."""
        self._numbers += 1
        return self._numbers

    def forget(self, transport: SimulatedTransport) -> None:
        """Drop an ended connection."""
        self._transports.pop(transport, None)

    # -- datagrams

    def datagram(
        self, factory: Callable[[], Any], local: tuple[str, int] | None, remote: tuple[str, int] | None
    ) -> "tuple[SimulatedDatagram, Any]":
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
        link = self.link_between(sender[0], there[0])
        if (sender[0], there[0]) in self._cut or (link.loss and self._chance.random() < link.loss):
            return
        self.loop.call_later(self._delay_s(link, len(content)), self._arrive_datagram, sender, content, there)

    def _arrive_datagram(self, sender: tuple[str, int], content: bytes, there: tuple[str, int]) -> None:
        endpoint = self._datagrams.get(there)
        if endpoint is not None:
            self.delivered += 1
            self._seen += f"{self.loop.virtual_s:.6f} {sender}>{there}".encode() + content
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


class SimulatedDatagram(asyncio.DatagramTransport):
    """One UDP endpoint."""

    def __init__(self, fabric: Fabric, name: tuple[str, int], remote: tuple[str, int] | None, protocol: Any) -> None:
        super().__init__()
        self._fabric = fabric
        self._name = name
        self._remote = remote
        self.protocol = protocol
        self._closed = False

    def sendto(self, data: Any, addr: Any = None) -> None:
        target = addr or self._remote
        if not self._closed and target is not None:
            self._fabric.send_datagram(self._name, bytes(data), target)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"sockname": self._name, "peername": self._remote}.get(name, default)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._fabric.close_datagram(self._name)
            self._fabric.loop.call_soon(self.protocol.connection_lost, None)

    def abort(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return self._closed


def _receive(protocol: Any, content: bytes) -> None:
    if isinstance(protocol, asyncio.BufferedProtocol):
        view = memoryview(content)
        while view:
            buffer = memoryview(protocol.get_buffer(len(view)))
            count = min(len(buffer), len(view))
            buffer[:count] = view[:count]
            protocol.buffer_updated(count)
            view = view[count:]
    else:
        protocol.data_received(content)


def _accept(server: SimulatedServer, served: SimulatedTransport) -> None:
    served.set_protocol(server.factory())
    served.protocol.connection_made(served)

"""One end of a simulated TCP connection: what a Protocol sees as its transport.

Bytes written travel as one message per write and arrive in order. Flow control is real: past the high-water mark of
unread bytes the writer is paused until the reader has taken them. The path of a message is the simulator's hot loop:
`write` puts an entry straight into the loop's calendar, the loop hands it to `arrive`, and nothing else is made on the way.
"""

import asyncio
from collections import deque
from contextvars import Context
from typing import TYPE_CHECKING, Any

from fourplane.simulator.calendar import SLOTS_PER_S, Entry

if TYPE_CHECKING:
    from fourplane.simulator.network import Fabric

HIGH_WATER = 64 * 1024
LOW_WATER = 16 * 1024
LARGE = 8 * 1024  # a message of this size goes into the digest at once, so that little is kept alive
SEEN_MAX = 512


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


class SimulatedTransport(asyncio.Transport):
    """One end of a connection."""

    __slots__ = (
        "__weakref__", "_buffered", "_calendar", "_closing", "_fabric", "_high", "_inbox", "_is_plain", "_jitter_s", "_known",
        "_latency_s", "_loop", "_low", "_name", "_next_arrival", "_paused_writer", "_peer_name", "_random", "_reading",
        "_unread", "_wrote_eof", "alive", "context", "encrypted", "held", "host", "number", "peer", "protocol",
    )  # fmt: skip

    def __init__(self, fabric: "Fabric", name: tuple[str, int], peer_name: tuple[str, int], context: Context) -> None:
        super().__init__()
        self._fabric = fabric
        self._loop = fabric.loop
        self._calendar = fabric.loop.calendar
        self._random = fabric.chance.random
        self.host = name[0]
        self.context = context
        self.held: deque[bytes | Exception | None] | None = None  # made when a partition first holds something
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
        self._inbox: deque[bytes | None] | None = None  # made when the protocol first pauses
        self._next_arrival = 0.0
        self._high, self._low = HIGH_WATER, LOW_WATER
        self._known = -1  # the fabric's version of which the three below are
        self._latency_s = self._jitter_s = 0.0
        self._is_plain = True  # neither loss nor a bound of bandwidth, and not cut

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
        content = data if type(data) is bytes else bytes(data)
        self._unread += len(content)
        if self._known == self._fabric.version and self._is_plain and not self.held:
            # `send` in its shortest form
            calendar = self._calendar
            at = self._loop.virtual_s + self._latency_s + self._random() * self._jitter_s
            at = max(at, self._next_arrival)
            self._next_arrival = at
            calendar.sequence += 1
            slot = int(at * SLOTS_PER_S)
            entries = calendar.slots.get(slot)
            if entries is None:
                calendar.open(slot, (at, calendar.sequence, self.peer, content))
            else:
                entries.append((at, calendar.sequence, self.peer, content))
        else:
            self.send(content)
        if self._unread > self._high and not self._paused_writer:
            self._paused_writer = True
            self.protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        if not self._wrote_eof and self.alive:
            self._wrote_eof = True
            self.send(None)

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        if self._closing or not self.alive:
            return
        self._closing = True
        if not self._wrote_eof:
            self._wrote_eof = True
            self.send(None)
        self._loop.call_soon(self.lose, None, context=self.context)

    def abort(self) -> None:
        if not self.alive:
            return
        self._closing = True
        self.send(ConnectionResetError("reset by peer"))
        self._loop.call_soon(self.lose, None, context=self.context)

    def is_closing(self) -> bool:
        return self._closing or not self.alive

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        if not self._reading:
            self._reading = True
            self._loop.call_soon(self._drain_inbox, context=self.context)

    def is_reading(self) -> bool:
        return self._reading and self.alive

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = HIGH_WATER if high is None else high
        self._low = self._high // 4 if low is None else low

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return (self._low, self._high)

    def get_write_buffer_size(self) -> int:
        return self._unread if self._paused_writer else 0

    # -- on its way

    def send(self, content: bytes | Exception | None) -> None:
        """Let `content` arrive at the other end when the way allows it.

        During a partition messages wait here in order, and what is written after it healed waits behind them.
        """
        if self._known != self._fabric.version:
            self._learn()
        if self.held or (not self._is_plain and self._fabric.way(self.host, self._far).cut):
            self._fabric.hold(self, content)
        else:
            self.depart(content)

    def depart(self, content: bytes | Exception | None) -> None:
        """Put `content` on its way; nothing sent earlier is overtaken, whatever jitter says."""
        if self._known != self._fabric.version:
            self._learn()
        at = self._loop.virtual_s + self._latency_s + self._random() * self._jitter_s
        if not self._is_plain:
            at += self._fabric.detour_s(self.host, self._far, len(content) if isinstance(content, bytes) else 0)
        self._next_arrival = at = max(at, self._next_arrival)
        self._calendar.put(at, self.peer, content)

    @property
    def _far(self) -> str:
        return self._peer_name[0]

    def _learn(self) -> None:
        """Ask the fabric for the way as it is now; once per change of it."""
        way = self._fabric.way(self.host, self._far)
        self._latency_s, self._jitter_s = way.link.latency_s, way.link.jitter_s
        self._is_plain = not (way.cut or way.link.loss or way.link.bandwidth)
        self._known = self._fabric.version

    def arrive(self, entry: Entry) -> None:
        """Take what the other end sent, now; the loop calls this in the context of this end."""
        if not self.alive:
            return
        content = entry[3]
        if isinstance(content, Exception):
            self.lose(content)
            return
        seen = self._fabric.seen
        seen.append(entry)
        if content is None or not self._reading or self._inbox or self._buffered:
            if self._inbox is None:
                self._inbox = deque()
            self._inbox.append(content)
            if self._reading:
                self._drain_inbox()
            return
        size = len(content)
        if size > LARGE or len(seen) > SEEN_MAX:
            self._fabric.settle_digest()
        self.protocol.data_received(content)
        peer = self.peer
        if peer is not None:
            peer._unread -= size  # noqa: SLF001 - the other end of the same connection
            if peer._paused_writer:  # noqa: SLF001
                peer.taken()

    def _drain_inbox(self) -> None:
        while self._inbox and self._reading and self.alive:
            content = self._inbox.popleft()
            if content is None:
                keep_open = self.protocol.eof_received()
                if not keep_open:
                    self.close()
                continue
            receive(self.protocol, content)
            peer = self.peer
            if peer is not None:
                peer._unread -= len(content)  # noqa: SLF001 - the other end of the same connection
                peer.taken()

    def taken(self) -> None:
        """The peer's protocol has read some of our bytes."""
        if self._paused_writer and self._unread <= self._low and self.alive:
            self._paused_writer = False
            self._loop.call_soon(self.protocol.resume_writing, context=self.context)

    def lose(self, error: Exception | None) -> None:
        """End this side; its protocol hears about it once."""
        if not self.alive:
            return
        self.alive = False
        self._closing = True
        self._fabric.forget(self)
        self.protocol.connection_lost(error)


class SimulatedDatagram(asyncio.DatagramTransport):
    """One UDP endpoint."""

    def __init__(self, fabric: "Fabric", name: tuple[str, int], remote: tuple[str, int] | None, protocol: Any) -> None:
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


def receive(protocol: Any, content: bytes) -> None:
    """Hand bytes to a Protocol of either kind."""
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

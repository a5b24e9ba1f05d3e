"""One end of a simulated TCP connection: what a Protocol sees as its transport.

Bytes written travel as one message per write and arrive in order. Flow control is real: past the high-water mark of
unread bytes the writer is paused until the reader has taken them. The path of a message is the simulator's hot loop:
`write` puts an entry straight into the loop's calendar, the loop hands its content to `received`, and nothing else is made
on the way.
"""

import asyncio
from collections import deque
from contextvars import Context
from typing import TYPE_CHECKING, Any

from fourplane.simulator.calendar import SLOTS_PER_S

if TYPE_CHECKING:
    from fourplane.simulator.network import Fabric

HIGH_WATER = 64 * 1024
LOW_WATER = 16 * 1024


class SimulatedSocket:
    """What `get_extra_info("socket")` gives: an address, and options that change nothing."""

    family = 2  # AF_INET

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
    """One end of a connection.

    Both directions have a quick way, open as long as nothing is special: `is_quick_out` when the end may write and the way is
    known and plain, `is_quick_in` when its protocol takes bytes at once. Whatever changes one of these calls `_review`.
    """

    __slots__ = (
        "__weakref__", "_calendar", "_closing", "_fabric", "_high", "_inbox", "_is_buffered", "_is_paused", "_is_plain",
        "_is_quick_out", "_is_reading", "_jitter_s", "_known", "_latency_s", "_limit", "_low", "_name", "_next_arrival",
        "_peer_name", "_random", "_sent", "_wrote_eof", "alive", "context", "encrypted", "enter", "held", "host",
        "is_quick_in", "is_waited_for", "number", "peer", "protocol", "received", "taken",
    )  # fmt: skip

    def __init__(self, fabric: "Fabric", name: tuple[str, int], peer_name: tuple[str, int], context: Context) -> None:
        super().__init__()
        self._fabric = fabric
        self._calendar = fabric.loop.calendar
        self._random = fabric.chance.random
        self.host = name[0]
        self.context = context
        self.enter = context.run
        self.held: deque[bytes | Exception | None] | None = None  # made when a partition first holds something
        self._name = name
        self._peer_name = peer_name
        self.peer: SimulatedTransport | None = None
        self.protocol: Any = None
        self.received: Any = None  # the protocol's data_received
        self._is_buffered = False
        self.number = fabric.next_number()
        self.encrypted = False
        self.alive = True
        self._closing = False
        self._wrote_eof = False
        self._sent = 0  # bytes written
        self.taken = 0  # bytes the protocol of this end has taken
        self._is_paused = False  # our protocol was told to write no more
        self.is_waited_for = False  # the other end is paused until we have taken more
        self._is_reading = True
        self._inbox: deque[bytes | None] | None = None  # made when the protocol first pauses
        self._next_arrival = 0.0
        self._high, self._low = HIGH_WATER, LOW_WATER
        self._limit = HIGH_WATER  # up to where may be written before asking what the other end has taken
        self._known = -1  # the fabric's version of which the three below are
        self._latency_s = self._jitter_s = 0.0
        self._is_plain = True  # neither loss nor a bound of bandwidth, and not cut
        self._is_quick_out = self.is_quick_in = False

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
        self._is_buffered = isinstance(protocol, asyncio.BufferedProtocol)
        self.received = None if self._is_buffered else getattr(protocol, "data_received", None)
        self._review()

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self.protocol
        return protocol

    def write(self, data: Any) -> None:
        if not self._is_quick_out:
            self._write_slowly(data)
            return
        content = data if data.__class__ is bytes else bytes(data)
        if not content:
            return
        self._sent = sent = self._sent + len(content)
        calendar = self._calendar
        at = calendar.now_s + self._latency_s + self._random() * self._jitter_s
        if at < self._next_arrival:
            at = self._next_arrival
        else:
            self._next_arrival = at
        slot = int(at * SLOTS_PER_S)
        entries = calendar.slots.get(slot)
        if entries is None:
            calendar.open(slot, (at, self.peer, content))
        else:
            entries.append((at, self.peer, content))
        if sent > self._limit:
            self._watch_high_water()

    def _write_slowly(self, data: Any) -> None:
        """The same while something is special: the way is not plain or not known yet, or something waits before it."""
        if self._closing or not self.alive or not data:
            return
        assert not self._wrote_eof, "write after write_eof"
        content = bytes(data)
        self._sent += len(content)
        self.send(content)
        if self._sent > self._limit:
            self._watch_high_water()
        self._review()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        if not self._wrote_eof and self.alive:
            self._wrote_eof = True
            self._review()
            self.send(None)

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        if self._closing or not self.alive:
            return
        self._closing = True
        self._review()
        if not self._wrote_eof:
            self._wrote_eof = True
            self.send(None)
        self._fabric.loop.call_soon(self.lose, None, context=self.context)

    def abort(self) -> None:
        if not self.alive:
            return
        self._closing = True
        self._review()
        self.send(ConnectionResetError("reset by peer"))
        self._fabric.loop.call_soon(self.lose, None, context=self.context)

    def is_closing(self) -> bool:
        return self._closing or not self.alive

    def pause_reading(self) -> None:
        self._is_reading = False
        self._review()

    def resume_reading(self) -> None:
        if not self._is_reading:
            self._is_reading = True
            self._review()
            self._fabric.loop.call_soon(self._drain_inbox, context=self.context)

    def is_reading(self) -> bool:
        return self._is_reading and self.alive

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = HIGH_WATER if high is None else high
        self._low = self._high // 4 if low is None else low
        self._limit = self._sent

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return (self._low, self._high)

    def get_write_buffer_size(self) -> int:
        return self._unread if self._is_paused else 0

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
        at = self._calendar.now_s + self._latency_s + self._random() * self._jitter_s
        if not self._is_plain:
            at += self._fabric.detour_s(self.host, self._far, len(content) if isinstance(content, bytes) else 0)
        self._next_arrival = at = max(at, self._next_arrival)
        self._calendar.put(at, self.peer, content)

    def forget_way(self) -> None:
        """The way may have changed: ask before the next message."""
        self._is_quick_out = False

    @property
    def _far(self) -> str:
        return self._peer_name[0]

    @property
    def _unread(self) -> int:
        """Bytes sent that the peer's protocol has not taken."""
        return self._sent - (self.peer.taken if self.peer is not None else 0)

    def _learn(self) -> None:
        """Ask the fabric for the way as it is now; once per change of it."""
        way = self._fabric.way(self.host, self._far)
        self._latency_s, self._jitter_s = way.link.latency_s, way.link.jitter_s
        self._is_plain = not (way.cut or way.link.loss or way.link.bandwidth)
        self._known = self._fabric.version

    def _review(self) -> None:
        """Open or close the quick ways by what is so now."""
        is_known = self._known == self._fabric.version and self._is_plain and not self.held
        self._is_quick_out = is_known and self.alive and not self._closing and not self._wrote_eof
        self.is_quick_in = self.received is not None and self.alive and self._is_reading and not self._inbox

    def _watch_high_water(self) -> None:
        """The allowance is used up: renew it by what the other end has taken, or let our protocol pause."""
        unread = self._unread
        if unread <= self._high:
            self._limit = self._sent - unread + self._high
        elif not self._is_paused:
            self._is_paused = True
            if self.peer is not None:
                self.peer.is_waited_for = True
            self.protocol.pause_writing()

    # -- arrived

    def arrive(self, content: bytes | Exception | None) -> None:
        """Take what the other end sent when the quick way is closed; the loop calls this in the context of this end."""
        if not self.alive:
            if isinstance(content, bytes):
                self._refuse()
            return
        if isinstance(content, Exception):
            self.lose(content)
            return
        if self._inbox is None:
            self._inbox = deque()
        self._inbox.append(content)
        if self._is_reading:
            self._drain_inbox()
        else:
            self._review()

    def _refuse(self) -> None:
        """A machine resets what it knows nothing of any more: the other end may have missed how this one ended."""
        peer, fabric = self.peer, self._fabric
        if peer is None or not peer.alive or fabric.is_down(self.host) or fabric.way(self.host, peer.host).cut:
            return
        at = max(self._calendar.now_s + self._latency_s, self._next_arrival)
        self._calendar.put(at, peer, ConnectionResetError("reset by peer"))

    def _drain_inbox(self) -> None:
        while self._inbox and self._is_reading and self.alive:
            content = self._inbox.popleft()
            if content is None:
                keep_open = self.protocol.eof_received()
                if not keep_open:
                    self.close()
                continue
            try:
                receive(self.protocol, content)
            except BaseException as error:  # noqa: BLE001 - told, as asyncio does
                self.fails(error)
            self.taken += len(content)
            if self.is_waited_for:
                self.tell_writer()
        self._review()

    def tell_writer(self) -> None:
        """The other end is paused: let it go on when enough was taken."""
        peer = self.peer
        if peer is not None and peer._unread <= peer._low:  # noqa: SLF001 - the other end of the same connection
            self.is_waited_for = False
            peer.may_write_again()

    def may_write_again(self) -> None:
        """The peer's protocol has read some of our bytes."""
        if self._is_paused and self.alive:
            self._is_paused = False
            self._fabric.loop.call_soon(self.protocol.resume_writing, context=self.context)

    def fails(self, error: BaseException) -> None:
        """The protocol raised while it took bytes: told to the loop and fatal for the connection, as in asyncio."""
        if isinstance(error, (SystemExit, KeyboardInterrupt)):
            raise error
        if not isinstance(error, OSError):
            told = {"message": "Fatal error: protocol.data_received() call failed.", "exception": error}
            self._fabric.loop.call_exception_handler(told | {"transport": self, "protocol": self.protocol})
        self.abort()

    def lose(self, error: Exception | None) -> None:
        """End this side; its protocol hears about it once."""
        if not self.alive:
            return
        self.end()
        self.protocol.connection_lost(error)

    def end(self) -> None:
        """Neither send nor take from now on."""
        self.alive = False
        self._closing = True
        self._review()
        self._fabric.forget(self)


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

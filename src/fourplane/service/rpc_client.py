"""The calling side of calls between processes: one connection to one peer, shared by all callers.

A call that finds no connection makes one, and waits for a peer that is restarting until its deadline: latency, not
errors. A call that was sent and lost with its connection is repeated when its method is idempotent, else it raises Unavailable
(`connection_lost`). Whoever is cancelled, or whose deadline passes, cancels the work at the other end. The deadline is the
context's (call_context.py) or `deadline_s`, whichever is earlier; it travels as the milliseconds that are left.

A process that dies closes its sockets, and the kernel says so. A host that vanishes says nothing: while calls to one wait and
nothing is heard for `beat_s`, it is asked for a sign, and after `silent_s` its connection counts as lost, which each
call takes as it does any other loss. Time in which this process did not run is not counted, and who never greeted is not judged.

Bounds: `calls_max` calls under way, `buffer_max` bytes that the peer has not taken; past either Overloaded is raised here.
Cost of a call: about 5 us of the caller's CPU with 50 in flight (`benchmarks/runtime.py`).
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from math import inf
from typing import Any, NoReturn, cast

import msgspec

from fourplane.foundation import clock, network, telemetry, tracing
from fourplane.foundation.errors import DeadlineExceeded, FourplaneError, Overloaded, TooLarge, Unavailable
from fourplane.service import call_context
from fourplane.service.call_context import USUAL_PRIORITY
from fourplane.service.rpc import Method
from fourplane.service.rpc_frames import (
    BATCH_COUNT,
    CALL,
    CANCEL,
    CREDIT,
    END,
    ERROR,
    ITEM,
    LOOK,
    NO_CALL,
    NOTHING,
    PING,
    PONG,
    PREAMBLE,
    SIGN,
    Batcher,
    Tell,
    Unbatcher,
    error_of,
)

SWEEP_S = 0.01
SWEEP_MANY_S = 0.05
SWEEP_S_MAX = 0.1  # what counts as silence of the time since the last sweep: the rest was ours
MANY = 1_000
FIRST_WAIT_S = 0.005
BATCH_LEAST = 8
_encode = msgspec.msgpack.Encoder().encode


class PeerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of one peer."""

    deadline_s: float = 10.0  # of a call whose task has none
    connect_s_max: float = 2.0
    reconnect_wait_s_max: float = 0.1
    calls_max: int = 10_000
    buffer_max: int = 16 << 20
    frame_max: int = 16 << 20
    credit: int = 64  # items of a stream that may be on the way
    beat_s: float = 1.0  # of silence, before a peer behind a network is asked for a sign
    silent_s: float = 5.0  # and before it is given up


class PeerStatistics(msgspec.Struct, frozen=True):
    connected: bool
    calls: int
    in_flight: int
    connects: int
    lost: int
    repeated: int
    expired: int


class _Lost(Exception):
    """The connection ended before the answer, for which there was time until `until`."""

    def __init__(self, until: float) -> None:
        self.until = until


class Peer:
    """Another process, by the path of its Unix socket or by host and port. Implements `rpc.Caller`."""

    def __init__(
        self, path: str = "", *, host: str = "", port: int = 0, epoch: int = 0, settings: PeerSettings | None = None
    ) -> None:
        self.settings = settings or PeerSettings()
        self.name = path.rpartition("/")[2] or f"{host}:{port}"
        self.epoch = epoch  # of the shard that is asked; 0: none
        self._where = (path, host, port)
        self.behind_network = not path
        self._connection: _Connection | None = None
        self._connecting = asyncio.Lock()
        self._closed = False
        self._parted = False
        self._calls = self._connects = self._lost = self._repeated = self._expired = 0

    def method(self, service: str, method: Method) -> Callable[..., Any]:
        """See `rpc.Caller`."""
        full, decode = f"{service}.{method.name}", method.decode
        if method.stream:
            return lambda *args, **kwargs: self._items(full, method.encode_arguments(args, kwargs), decode)
        again, positional = method.idempotent, method.positional

        async def call(*args: Any, **kwargs: Any) -> Any:
            body = _encode(args) if not kwargs and len(args) <= positional else method.encode_arguments(args, kwargs)
            until, priority = call_context.current()
            while True:
                connection = self._connection
                if connection is None or not connection.usable:
                    if until == inf:
                        until = clock.monotonic_s() + self.settings.deadline_s
                    connection = await self._reach(until)
                answer = connection.begin(full, body, until, priority)
                number = connection.calls
                try:
                    return decode(await answer)
                except asyncio.CancelledError:
                    connection.abandon(number)
                    raise
                except _Lost as lost:
                    until = lost.until
                    if not again or clock.monotonic_s() >= until:
                        raise Unavailable(f"the connection to {self.name} was lost", code="connection_lost") from None
                    self._repeated += 1

        return call

    def close(self) -> None:
        """End the connection; calls under way are lost."""
        self._closed = True
        if self._connection is not None:
            self._connection.close()

    def part(self, *, parted: bool) -> None:
        """Lose the connection and get no other one until it is over: a partition, as an experiment wishes it.

        Callers wait until their deadline, as they do for a peer behind a network that drops everything.
        """
        self._parted = parted
        if parted and self._connection is not None:
            self._connection.close()

    def statistics(self) -> PeerStatistics:
        connection = self._connection
        return PeerStatistics(
            connection is not None and connection.usable,
            self._calls + (connection.calls if connection is not None else 0),
            len(connection.pending) if connection is not None else 0,
            self._connects,
            self._lost,
            self._repeated,
            self._expired,
        )

    def count_expired(self) -> None:
        """One more call whose answer did not come in time."""
        self._expired += 1

    def disconnected(self, connection: "_Connection", lost: int) -> None:
        """A connection is gone, with `lost` calls that had no answer."""
        self._calls += connection.calls
        self._lost += lost
        if self._connection is connection:
            self._connection = None

    async def _reach(self, until: float) -> "_Connection":
        """A connection, waiting for the peer to come (back) until the deadline."""
        wait_s = FIRST_WAIT_S
        error: Exception | None = None
        try:
            async with asyncio.timeout(None if until == inf else until - clock.monotonic_s()), self._connecting:
                while True:
                    if self._closed:
                        raise Unavailable(f"calls to {self.name} are closed", code="closed")
                    if self._connection is not None and self._connection.usable:
                        return self._connection
                    try:
                        async with asyncio.timeout(self.settings.connect_s_max):
                            self._connection = await self._connect()
                    except (OSError, TimeoutError) as failed:
                        error = failed
                    else:
                        self._connects += 1
                        return self._connection
                    await clock.sleep(wait_s)
                    wait_s = min(wait_s * 2, self.settings.reconnect_wait_s_max)
        except TimeoutError:
            self._expired += 1
            raise Unavailable(f"{self.name} cannot be reached: {error}", code="unreachable") from None

    async def _connect(self) -> "_Connection":
        if self._parted:
            raise OSError(f"parted from {self.name} by an experiment")
        path, host, port = self._where
        if path:
            return (await network.connect_unix(lambda: _Connection(self), path))[1]
        return (await network.connect(lambda: _Connection(self), host, port))[1]

    async def _items(self, full: str, body: bytes, decode: Callable[[Any], Any]) -> AsyncIterator[Any]:
        """The items of a stream; leaving the loop early cancels it at the other end."""
        until, priority = call_context.current()
        connection = await self._reach(min(until, clock.monotonic_s() + self.settings.deadline_s))
        stream = connection.open_stream(full, body, until, priority)
        try:
            while (item := await stream.next()) is not None:
                yield decode(item)
        except _Lost:
            raise Unavailable(f"the connection to {self.name} was lost", code="connection_lost") from None
        finally:
            connection.leave_stream(stream)


class _Stream:
    """Items that came and were not taken yet; at most as many as credit was given for."""

    __slots__ = ("_credit", "_end", "_give", "_items", "_taken", "_waiter", "id", "until")

    def __init__(self, stream_id: int, credit: int, until: float, give: Callable[[int, int], None]) -> None:
        self.id = stream_id
        self.until = until
        self._credit = credit
        self._give = give
        self._items: deque[msgspec.Raw] = deque()
        self._taken = 0
        self._end: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def ended(self) -> bool:
        return self._end is not None

    async def next(self) -> msgspec.Raw | None:
        """The next item, None at the end."""
        while not self._items:
            if self._end is not None:
                if isinstance(self._end, StopAsyncIteration):
                    return None
                raise self._end
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        self._taken += 1
        if self._taken * 2 >= self._credit and self._end is None:
            self._give(self.id, self._taken)
            self._taken = 0
        return self._items.popleft()

    def put(self, item: msgspec.Raw) -> None:
        self._items.append(item)
        self._wake()

    def finish(self, end: Exception) -> None:
        self._end = self._end or end
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class _Connection(asyncio.Protocol):
    """Calls under way over one connection."""

    def __init__(self, peer: Peer) -> None:
        self.usable = False
        self.calls = 0
        self.pending: dict[int, tuple[asyncio.Future[msgspec.Raw], float]] = {}
        self._peer = peer
        self._frame_max, self._calls_max = peer.settings.frame_max, peer.settings.calls_max
        self._room = self._frame_max  # for one body; none while the peer has `buffer_max` bytes to take
        self._deadline_s = peer.settings.deadline_s
        self._deadline_ms = int(self._deadline_s * 1e3) + 1
        self._now = 0.0
        self._alone = True  # answers come one by one, as to a single caller
        self._loop = asyncio.get_running_loop()
        self._create_future = self._loop.create_future
        self._tells: Unbatcher[Tell] = Unbatcher(Tell, peer.settings.frame_max)
        self._streams: dict[int, _Stream] = {}
        self._sweeping: asyncio.TimerHandle | None = None
        self._watched = peer.behind_network
        self._beats = self._asked = False  # the peer gives signs; it was asked for one
        self._silent_s = self._swept_s = 0.0
        self._asks: Batcher
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=self._peer.settings.buffer_max)
        self._transport.write(PREAMBLE)
        self._asks = Batcher(self._transport)
        if self._watched:
            self._asks.add((NO_CALL, SIGN), 1)
        self.usable = True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - part of the Protocol
        self.usable = False
        pending, self.pending = self.pending, {}
        for future, until in pending.values():
            if not future.done():
                future.set_exception(_Lost(until))
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.finish(_Lost(stream.until))
        if self._sweeping is not None:
            self._sweeping.cancel()
        self._peer.disconnected(self, len(pending))

    def data_received(self, data: bytes) -> None:
        try:
            tells = self._tells.feed(data)
        except FourplaneError:
            self._transport.abort()
            return
        if self._watched:
            self._silent_s, self._asked = 0.0, False
        pending = self.pending
        # Half of what is under way leaves at a time, so that both sides have something to do.
        self._asks.most = max(BATCH_LEAST, min(BATCH_COUNT, len(pending) + 1 >> 1))
        self._alone = len(tells) == 1
        for tell in tells:
            found = pending.pop(tell.id, None)
            if found is None:
                self._take_for_stream(tell)
            elif not found[0].done():
                if tell.kind == ERROR:
                    found[0].set_exception(error_of(tell.body))
                else:
                    found[0].set_result(tell.body)

    def begin(self, method: str, body: bytes, until: float, priority: int) -> "asyncio.Future[msgspec.Raw]":
        """Send a call, numbered `calls`; the future gets its answer, its error, DeadlineExceeded, or _Lost."""
        size, pending, asks = len(body), self.pending, self._asks
        if size > self._room or len(pending) >= self._calls_max:
            self._refuse(size)
        if not asks.messages:
            self._now = clock.monotonic_s()  # once a tick
        if until == inf:
            until, left_ms = self._now + self._deadline_s, self._deadline_ms
        else:
            left_ms = int((until - self._now) * 1e3) + 1
            if until <= self._now:
                self._peer.count_expired()
                raise DeadlineExceeded(f"no time is left for {method}")
        self.calls = number = self.calls + 1
        future: asyncio.Future[msgspec.Raw] = self._create_future()
        pending[number] = (future, until)
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(SWEEP_S, self._sweep)
        trace, epoch = tracing.current(), self._peer.epoch
        if trace is None and priority == USUAL_PRIORITY and not epoch:
            asks.add((number, CALL, method, msgspec.Raw(body), left_ms), size)
        else:
            text = "" if trace is None else trace.text
            asks.add((number, CALL, method, msgspec.Raw(body), left_ms, priority, text, epoch), size)
        if self._alone and len(pending) == 1:
            asks.flush()  # a turn of the loop earlier than by itself
        return future

    def abandon(self, number: int) -> None:
        """The caller was cancelled: so is the work at the other end."""
        if self.pending.pop(number, None) is not None and self.usable:
            self._asks.add((number, CANCEL), 1)

    def open_stream(self, method: str, body: bytes, until: float, priority: int) -> _Stream:
        """Begin a stream."""
        if len(body) > self._room or len(self.pending) >= self._calls_max:
            self._refuse(len(body))
        number = self.calls = self.calls + 1
        credit = self._peer.settings.credit
        stream = self._streams[number] = _Stream(number, credit, until, self._give)
        left_ms = 0 if until == inf else max(1, int((until - clock.monotonic_s()) * 1e3))
        raw, trace = msgspec.Raw(body), telemetry.current_trace()
        self._asks.add((number, CALL, method, raw, left_ms, priority, trace, self._peer.epoch, credit), len(body))
        if self._sweeping is None and (until != inf or self._watched):
            self._sweeping = self._loop.call_later(SWEEP_S, self._sweep)
        return stream

    def leave_stream(self, stream: _Stream) -> None:
        """The caller takes no more of it."""
        if self._streams.pop(stream.id, None) is not None and self.usable and not stream.ended:
            self._asks.add((stream.id, CANCEL), 1)

    def close(self) -> None:
        """End now."""
        if self.usable:
            self._transport.abort()

    def pause_writing(self) -> None:
        self._room = -1

    def resume_writing(self) -> None:
        self._room = self._frame_max

    def _refuse(self, size: int) -> NoReturn:
        if size > self._frame_max:
            raise TooLarge("the arguments are too large", limit_bytes=self._frame_max)
        raise Overloaded(f"too many calls to {self._peer.name}", retry_after_s=0.1, code="too_many_calls")

    def _take_for_stream(self, tell: Tell) -> None:
        if tell.kind == PONG:
            self._beats = True
        elif tell.kind == LOOK:
            self._asks.add((NO_CALL, SIGN), 1)
        stream = self._streams.get(tell.id)
        if stream is None:
            return  # its caller is gone
        if tell.kind == ITEM:
            stream.put(tell.body)
        elif tell.kind == END:
            stream.finish(StopAsyncIteration())
        elif tell.kind == ERROR:
            stream.finish(error_of(tell.body))

    def _give(self, number: int, credit: int) -> None:
        if self.usable:
            self._asks.add((number, CREDIT, "", NOTHING, 0, 1, "", 0, credit), 1)

    def _sweep(self) -> None:
        """End calls whose time is over; one timer for all, none while nothing is under way."""
        self._sweeping = None
        now = clock.monotonic_s()
        over = [number for number, (_, until) in self.pending.items() if until <= now]
        for number in over:
            future, _ = self.pending.pop(number)
            if not future.done():
                self._peer.count_expired()
                future.set_exception(DeadlineExceeded(f"{self._peer.name} did not answer in time"))
            self._asks.add((number, CANCEL), 1)
        for stream in self._streams.values():
            if stream.until <= now and not stream.ended:
                self._asks.add((stream.id, CANCEL), 1)
                stream.finish(DeadlineExceeded(f"{self._peer.name} did not end its stream in time"))
        if self._watched:
            self._listen(now)
        if self.pending or any(stream.until != inf or self._watched for stream in self._streams.values()):
            self._sweeping = self._loop.call_later(SWEEP_S if len(self.pending) < MANY else SWEEP_MANY_S, self._sweep)

    def _listen(self, now: float) -> None:
        """Ask a peer that says nothing for a sign, and give up one of whom nothing is heard."""
        self._silent_s += min(now - self._swept_s, SWEEP_S_MAX)
        self._swept_s = now
        settings = self._peer.settings
        if not self._asked and self._silent_s >= settings.beat_s:
            self._asked = True
            self._asks.add((NO_CALL, PING), 1)
        elif self._beats and self._silent_s >= settings.silent_s:
            self._transport.abort()

"""The way in for positions: frames over TCP, frames or JSON over WebSocket, from a phone or a gateway of thousands.

A connection says by a signed token for which driver numbers it speaks; positions of others are counted as foreign and
go nowhere. Positions are applied to the index as they arrive, whole frames at a time, on the loop (0.1 us each);
verbs (accept, arrive, ...) wait in one bounded queue for the workers. What changed leaves once a second as one event
of columns on `driver.location.updated`, sampled past `sample_max`: nobody stores ten million rows a second.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import cast

import msgspec
import numpy as np

from fourplane.control.nodes import Switch
from fourplane.dispatch import feed_frames as frames
from fourplane.dispatch.driver_index import DriverIndex, Updates, check_point, make_updates, tick_now
from fourplane.dispatch.driver_verbs import DriverDesk, DriverVerb
from fourplane.dispatch.drivers import Drivers
from fourplane.dispatch.push import Push
from fourplane.edge.routes import SocketSession
from fourplane.foundation import clock, network
from fourplane.foundation.errors import FourplaneError, Overloaded, Rejected, Unauthenticated
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Registry
from fourplane.service.tokens import Signer
from fourplane.state.contracts import EventLog

AUDIENCE = "dispatch-feed"
TOPIC = "driver.location.updated"
SCHEMA = 1
WRITE_BUFFER_MAX = 4 << 20
PRESENT_AT_ONCE = 200
TURN_BYTES = 1 << 17  # a connection takes this much (and ends its frame) before others have their turn: 0.5 ms


class FeedSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the feed listens and its bounds."""

    host: str = "127.0.0.1"
    port: int = 8300
    connections_max: int = 10_000
    verbs_waiting_max: int = 20_000
    workers: int = 32
    socket_buffer: int = 1 << 18  # bytes of positions the kernel holds per connection: what waits there is old
    hello_s: float = 10.0
    sample_max: int = 2_000  # positions per event on the log
    event_s: float = 1.0
    events_kept: int = 3_600


class FeedStatistics(msgspec.Struct, frozen=True):
    """Cumulative counts of the feed."""

    connections: int
    frames: int
    positions: int
    foreign: int
    refused: int  # broken frames and messages
    verbs: int
    events: int
    verbs_waiting: int


class Welcome(msgspec.Struct, frozen=True):
    first: int
    count: int
    period_s: float
    kind: str = "welcome"


class JsonPosition(msgspec.Struct, frozen=True):
    driver: int
    lat: float
    lng: float
    sequence: int


class JsonMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The feed for the curious: positions, verbs, or both."""

    positions: list[JsonPosition] = []
    verbs: list[DriverVerb] = []


class LocationEvent(msgspec.Struct, frozen=True, array_like=True):
    """One batch of `driver.location.updated`: columns of little-endian numbers, and how many positions it stands for."""

    schema: int
    at_us: int
    positions: int
    drivers: bytes
    lat: bytes
    lng: bytes


class FeedSession:
    """One connection, whatever carries it. `send` takes JSON structs."""

    __slots__ = ("_closed", "_feed", "_send", "_unwatch", "end", "first")

    def __init__(self, feed: "LocationFeed", send: Callable[[int, bytes], None]) -> None:
        self._feed, self._send = feed, send
        self._unwatch: Callable[[], None] = lambda: None
        self._closed = False
        self.first = self.end = 0

    def hello(self, token: str) -> None:
        """Prove for whom this connection speaks; raises Unauthenticated."""
        claims = self._feed.signer.verify(AUDIENCE, token)
        self.first, self.end = int(claims["first"]), int(claims["first"]) + int(claims["count"])
        self._unwatch()
        self._unwatch = self._feed.push.watch_fleet(
            self.first, self.end, lambda text: self._send(frames.NEWS, text.encode())
        )
        welcome = Welcome(self.first, self.end - self.first, self._feed.index.settings.period_s)
        self._send(frames.WELCOME, msgspec.json.encode(welcome))
        self._tell_present(self._feed.present(self.first, self.end))

    def _tell_present(self, news: Iterator[msgspec.Struct]) -> None:
        """What goes on at the moment: who was away has missed what was told. Some at a time, for others wait too."""
        some = list(islice(news, PRESENT_AT_ONCE))
        try:
            for notice in some:
                self._send(frames.NEWS, msgspec.json.encode(notice))
        except Overloaded as error:
            self.error(error)  # it asks again with its next hello
            return
        if len(some) == PRESENT_AT_ONCE and not self._closed:
            asyncio.get_running_loop().call_soon(self._tell_present, news)

    def take(self, kind: int, payload: memoryview) -> None:
        """One frame; raises what is wrong with it."""
        if kind == frames.HELLO:
            self.hello(bytes(payload).decode("ascii", "replace"))
        elif self.end == 0:
            raise Unauthenticated("say hello first", code="no_hello")
        elif kind == frames.POSITIONS:
            self._feed.positions(frames.read_positions(payload), self.first, self.end)
        elif kind == frames.VERBS:
            self._verbs(bytes(payload))
        else:
            raise Rejected(f"no frame of type {kind} here", code="bad_frame")

    def take_json(self, text: str) -> None:
        """One JSON message of a WebSocket; raises what is wrong with it."""
        if self.end == 0:
            raise Unauthenticated("say hello first", code="no_hello")
        try:
            message = msgspec.json.decode(text, type=JsonMessage)
        except msgspec.DecodeError as error:
            raise Rejected(f"not a message of the feed: {error}", code="bad_message") from None
        rows = message.positions
        for row in rows:
            check_point(row.lat, row.lng)
            if not (0 <= row.driver < 1 << 32 and 0 <= row.sequence < 1 << 32):
                raise Rejected("driver and sequence are numbers of 32 bits", code="bad_message")
        if rows:
            updates = make_updates(
                np.array([row.driver for row in rows], np.uint32),
                np.array([row.lat for row in rows]), np.array([row.lng for row in rows]),
                np.array([row.sequence for row in rows], np.uint32),
            )  # fmt: skip
            self._feed.positions(updates, self.first, self.end)
        self._queue(message.verbs)

    def close(self) -> None:
        """The connection is gone. Its drivers stay until they miss their periods."""
        self._closed = True
        self._unwatch()

    def error(self, error: FourplaneError) -> None:
        """Tell the other side."""
        with contextlib.suppress(FourplaneError):  # a side that does not listen cannot be told
            self._send(frames.ERROR, msgspec.json.encode(frames.FeedError(error.reason, error.public)))

    def _verbs(self, payload: bytes) -> None:
        try:
            verbs = msgspec.json.decode(payload, type=list[DriverVerb] | DriverVerb)
        except msgspec.DecodeError as error:
            raise Rejected(f"not a driver verb: {error}", code="bad_message") from None
        self._queue([verbs] if isinstance(verbs, DriverVerb) else verbs)

    def _queue(self, verbs: Sequence[DriverVerb]) -> None:
        for verb in verbs:
            if not all(self.first <= number < self.end for number in verb.numbers()):
                raise Rejected("this connection does not speak for that driver", code="foreign_driver")
            self._feed.queue(self, verb)


class LocationFeed:
    """Listens, applies, hands verbs on, and tells the log."""

    def __init__(
        self,
        settings: FeedSettings,
        *,
        index: DriverIndex,
        drivers: Drivers,
        desk: DriverDesk,
        log: EventLog,
        signer: Signer,
        push: Push,
        registry: Registry,
        switch: Switch,
        inherited: socket.socket | None = None,
    ) -> None:
        self._inherited = inherited
        self.settings, self.index, self.signer, self.push = settings, index, signer, push
        self._drivers, self._desk, self._log, self._registry, self._switch = drivers, desk, log, registry, switch
        self._server: asyncio.Server | None = None
        self._verbs: asyncio.Queue[tuple[FeedSession, DriverVerb]] = asyncio.Queue(settings.verbs_waiting_max)
        self._open: set[FeedConnection] = set()
        self._sample: list[Updates] = []
        self._sampled = self._since_event = 0
        self._connections = self._frames = self._positions = self._refused = self._events = self._done = 0
        self.apply_seconds = registry.histogram(
            "fourplane_dispatch_apply_seconds", "one frame of positions into the index"
        )

    def present(self, first: int, end: int) -> Iterator[msgspec.Struct]:
        """The offers and trips of some drivers as they are now."""
        return self._desk.news_of(first, end)

    async def start(self, tasks: Tasks) -> None:
        """Listen; positions are taken from now on."""
        self._server = await network.listen(
            lambda: FeedConnection(self), self.settings.host, self.settings.port, inherited=self._inherited
        )
        for _ in range(self.settings.workers):
            tasks.start(self._work(), "verbs")
        tasks.start(self._tell_log(), "events")
        tasks.start(self._sweep(), "stale")

    @property
    def port(self) -> int:
        """Where it really listens."""
        assert self._server is not None
        return network.port_of(self._server)

    async def drain(self) -> None:
        """Take no new connections."""
        if self._server is not None:
            self._server.close()

    async def stop(self) -> None:
        """Close everything."""
        await self.drain()
        for connection in list(self._open):
            connection.abort()

    def token(self, first: int, count: int, ttl_s: float) -> str:
        """What a gateway says hello with."""
        return self.signer.sign(AUDIENCE, {"first": str(first), "count": str(count)}, ttl_s)

    def positions(self, updates: Updates, first: int, end: int) -> None:
        """Apply the positions of drivers first..end - 1; others are counted and dropped."""
        self._switch.check()
        self._frames += 1
        began = clock.monotonic_s()
        self.index.update(updates, tick_now(), first, end)
        self.apply_seconds.record(clock.monotonic_s() - began)
        self._positions += len(updates)
        self._since_event += len(updates)
        room = self.settings.sample_max - self._sampled
        if room > 0:
            self._sample.append(updates[:room].copy())
            self._sampled += len(self._sample[-1])

    def queue(self, session: FeedSession, verb: DriverVerb) -> None:
        """Let a worker perform a verb; raises Overloaded when too many wait."""
        try:
            self._verbs.put_nowait((session, verb))
        except asyncio.QueueFull:
            raise Overloaded("too many driver verbs wait") from None

    async def serve_socket(self, socket: SocketSession) -> None:
        """A WebSocket speaks the same: binary messages are frames, texts are JSON; `?token=` may stand for the hello."""
        reader = frames.FrameReader()

        def send(_kind: int, payload: bytes) -> None:
            socket.send(payload.decode())

        session = FeedSession(self, send)
        self._connections += 1
        try:
            if token := socket.query.get("token", ""):
                session.hello(token)
            while (message := await socket.receive()) is not None:
                try:
                    if isinstance(message, str):
                        session.take_json(message)
                    else:
                        for kind, payload in reader.feed(message):
                            session.take(kind, payload)
                except FourplaneError as error:
                    self._refused += 1
                    session.error(error)
                    if error.reason in {"bad_frame", "no_hello"}:
                        break
        except Unauthenticated as error:
            session.error(error)
        finally:
            session.close()
        await socket.close()

    def opened(self, connection: "FeedConnection") -> bool:
        """Whether there is room for one more."""
        if len(self._open) >= self.settings.connections_max:
            return False
        self._open.add(connection)
        self._connections += 1
        return True

    def closed(self, connection: "FeedConnection") -> None:
        self._open.discard(connection)

    def refused(self) -> None:
        self._refused += 1

    def statistics(self) -> FeedStatistics:
        return FeedStatistics(
            self._connections, self._frames, self._positions, self.index.statistics().foreign, self._refused,
            self._done, self._events, self._verbs.qsize(),
        )  # fmt: skip

    async def _work(self) -> None:
        while True:
            session, verb = await self._verbs.get()
            try:
                await self._desk.perform(verb)
            except FourplaneError as error:
                session.error(error)
            self._done += 1

    async def _tell_log(self) -> None:
        while True:
            await clock.sleep(self.settings.event_s)
            if not self._sampled:
                continue
            updates = np.concatenate(self._sample)
            event = LocationEvent(
                SCHEMA, clock.now_us(), self._since_event,
                updates["driver"].tobytes(), updates["lat"].tobytes(), updates["lng"].tobytes(),
            )  # fmt: skip
            self._sample.clear()
            self._sampled = self._since_event = 0
            try:
                offset = await self._log.append(TOPIC, 0, [msgspec.msgpack.encode(event)])
                if offset % 100 == 0 and offset > self.settings.events_kept:
                    await self._log.trim(TOPIC, 0, offset - self.settings.events_kept)
                self._events += 1
            except FourplaneError as error:
                self._registry.event("warning", "dispatch", f"positions did not reach the event log: {error}")

    async def _sweep(self) -> None:
        while True:
            await clock.sleep(1.0)
            self.index.drop_stale(tick_now())


class FeedConnection(asyncio.BufferedProtocol):
    """One TCP connection, read into memory of its own."""

    def __init__(self, feed: LocationFeed) -> None:
        self._feed = feed
        self._buffer = frames.FrameBuffer()
        self._session = FeedSession(feed, self._send)
        self._transport: asyncio.Transport | None = None
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's own classes say nothing of asyncio's
        self._transport = transport
        if not self._feed.opened(self):
            self._fail(Overloaded("too many connections to the location feed"))
            return
        sock = transport.get_extra_info("socket")
        if sock is not None:  # what waits in the kernel is old when it is read: a sender that is too fast shall feel it
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._feed.settings.socket_buffer)
        asyncio.get_running_loop().call_later(self._feed.settings.hello_s, self._check_hello)

    def get_buffer(self, _sizehint: int) -> memoryview:
        return self._buffer.free()

    def buffer_updated(self, nbytes: int) -> None:
        self._buffer.filled(nbytes)
        self._take_some()

    def _take_some(self) -> None:
        """Take frames until a turn's worth of bytes is done; the rest has the next turn, and nothing is read before it."""
        left = TURN_BYTES
        try:
            while self._transport is not None and (one := self._buffer.take()) is not None:
                kind, payload = one
                left -= len(payload)
                self._session.take(kind, payload)
                if left <= 0:
                    self._go_on_later()
                    return
                if kind == frames.HELLO:
                    self._buffer.most = frames.BUFFER_MAX  # who is known may send much
        except FourplaneError as error:
            self._feed.refused()
            if error.reason not in {"foreign_driver", "overloaded", "stopped_by_operator", "bad_message"}:
                self._fail(error)
                return
            self._session.error(error)
            self._go_on_later()  # what came behind it is none the worse
            return
        if self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def _go_on_later(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if not self._paused:
            self._paused = True
            self._transport.pause_reading()
        asyncio.get_running_loop().call_soon(self._take_some)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._transport = None
        self._session.close()
        self._feed.closed(self)

    def abort(self) -> None:
        """End it now."""
        if self._transport is not None:
            self._transport.abort()

    def _send(self, kind: int, payload: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() > WRITE_BUFFER_MAX:
            raise Overloaded("this gateway does not read its news")
        self._transport.write(frames.frame(kind, payload))

    def _fail(self, error: FourplaneError) -> None:
        self._session.error(error)
        if self._transport is not None:
            self._transport.close()

    def _check_hello(self) -> None:
        if self._transport is not None and self._session.end == 0:
            self._fail(Unauthenticated("no hello in time", code="no_hello"))

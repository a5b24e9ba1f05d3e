"""The serving side of calls between processes.

A connection's calls go into one queue; worker tasks take them out. The worker that holds the queue goes on without a
switch of tasks as long as the methods do not wait: only when one does, the next worker takes over (leader and followers), so that
a batch of short calls costs one wake-up. At most `calls_max` run, `queue_max` wait; the less a call matters, the earlier it is
refused with Overloaded. A cancelled call, and all calls of a connection that is gone, are cancelled here too. Reading stops
while the peer does not take its answers.

A call whose time is over when its turn comes is not begun. Its deadline while it runs is the caller's business, who cancels.
The epoch of a call is shown to the service's gate (`ownership.EpochGate`): an older one is refused.
"""

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable
from math import inf
from typing import Any, cast

import msgspec

from fourplane.foundation import network, telemetry
from fourplane.foundation.errors import Conflict, DeadlineExceeded, FourplaneError, NotFound, Overloaded, TooLarge
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Registry
from fourplane.service import call_context
from fourplane.service.ownership import EpochGate
from fourplane.service.rpc import Interface, Method
from fourplane.service.rpc_frames import (
    CALL,
    CANCEL,
    CREDIT,
    END,
    ERROR,
    ITEM,
    PREAMBLE,
    RESULT,
    Ask,
    Batcher,
    Tell,
    Unbatcher,
    error_body,
)

TURN_CALLS = 256  # calls that never wait, before others get a turn
LEAST = 3  # the priority of what matters least
LOOK_MASK = 15  # the clock is read once in so many calls
_encode = msgspec.msgpack.Encoder().encode


class RpcServerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of one server."""

    connections_max: int = 256
    calls_max: int = 1_024
    queue_max: int = 8_192
    frame_max: int = 16 << 20
    credit_max: int = 1_024


class RpcServerStatistics(msgspec.Struct, frozen=True):
    connections: int
    calls: int
    running: int
    queued: int
    refused: int
    cancelled: int
    failed: int
    workers: int


class _Job:
    """One call on its way."""

    __slots__ = ("ask", "cancelled", "connection", "credit", "method", "more", "service", "task", "until")

    def __init__(self, connection: "_Connection", ask: Ask, service: object, method: Method) -> None:
        self.connection = connection
        self.ask = ask
        self.service = service
        self.method = method
        self.until = inf
        self.task: asyncio.Task[None] | None = None
        self.cancelled = False
        self.credit = 0
        self.more: asyncio.Future[None] | None = None


class RpcServer:
    """Serves interfaces on a Unix socket or a TCP port. A lifecycle part."""

    def __init__(
        self,
        registry: Registry,
        *,
        path: str = "",
        host: str = "127.0.0.1",
        port: int = 0,
        inherited: socket.socket | None = None,
        settings: RpcServerSettings | None = None,
    ) -> None:
        self.settings = settings or RpcServerSettings()
        self.queue: deque[_Job] = deque()
        self._queue_bounds = {one: self.settings.queue_max * (4 - one) // 4 for one in range(LEAST + 1)}
        self.connections: set[_Connection] = set()
        self._registry = registry
        self._where = (path, host, port)
        self._inherited = inherited
        self._methods: dict[str, tuple[object, Method, EpochGate | None]] = {}
        self._tasks: Tasks | None = None
        self._server: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._idle: list[asyncio.Future[None]] = []
        self._called = False  # an idle worker was called and has not come yet
        self._workers = 0
        self._draining = False
        self._calls = self._refused = self._cancelled = self._failed = self._running = 0
        self.port = port

    def add(
        self,
        service: str,
        source: type,
        target: object,
        *,
        only: frozenset[str] | None = None,
        gate: EpochGate | None = None,
    ) -> None:
        """Let `target` be called as `service`, with the methods of `source`; before or after the start."""
        for name, method in Interface(source, only=only).methods.items():
            self._methods[f"{service}.{name}"] = (target, method, gate)

    async def start(self, tasks: Tasks) -> None:
        """Listen; raises OSError when the place is taken."""
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        path, host, port = self._where
        factory: Callable[[], asyncio.BaseProtocol] = lambda: _Connection(self)  # noqa: E731 - one line
        if path:
            self._server = await network.listen_unix(factory, path, inherited=self._inherited)
        else:
            self._server = await network.listen(factory, host, port, inherited=self._inherited)
            self.port = network.port_of(self._server)

    async def drain(self) -> None:
        """Accept nobody new; what is under way goes on, as other parts may need it to drain."""
        if self._server is not None:
            self._server.close()

    async def stop(self) -> None:
        """Cut every connection and cancel every call."""
        self._draining = True
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.close()

    def statistics(self) -> RpcServerStatistics:
        return RpcServerStatistics(
            len(self.connections),
            self._calls,
            self._running,
            len(self.queue),
            self._refused,
            self._cancelled,
            self._failed,
            self._workers,
        )

    # -- called by connections

    def take(self, connection: "_Connection", asks: list[Ask]) -> None:
        """Queue the calls of one batch and see that somebody works."""
        now = -1.0
        queue, methods, jobs, bounds = self.queue, self._methods, connection.jobs, self._queue_bounds
        for ask in asks:
            if ask.kind != CALL:
                connection.follow_up(ask)
                continue
            found = methods.get(ask.method)
            if found is None:
                connection.refuse(ask, NotFound(f"no method {ask.method[:100]} here", code="no_method"))
                continue
            if len(queue) >= bounds.get(ask.priority, bounds[LEAST]):
                self._refused += 1
                connection.refuse(ask, Overloaded("too many calls wait here", retry_after_s=0.1, code="too_many_calls"))
                continue
            if ask.id in jobs:
                connection.refuse(ask, Conflict("this call id is under way", code="call_id"))
                continue
            service, method, gate = found
            if ask.epoch and gate is not None:
                try:
                    gate.admit(ask.epoch)
                except Conflict as error:
                    connection.refuse(ask, error)
                    continue
            job = _Job(connection, ask, service, method)
            if ask.deadline_ms:
                if now < 0:
                    assert self._loop is not None
                    now = self._loop.time()
                job.until = now + ask.deadline_ms / 1e3
            jobs[ask.id] = job
            queue.append(job)
        if self.queue and not self._called:
            self._call_worker()

    def _call_worker(self) -> None:
        if self._idle:
            self._called = True
            self._idle.pop().set_result(None)
        elif self._workers < self.settings.calls_max and not self._draining:
            assert self._tasks is not None
            self._called = True
            self._workers += 1
            self._tasks.start(self._work(), "calls")

    async def _work(self) -> None:
        """A worker: takes the queue, runs calls, hands the queue on when one of them waits."""
        queue, loop = self.queue, asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        try:
            while True:
                self._called = False
                turns = 0
                now = loop.time()
                while queue:
                    job = queue.popleft()
                    if queue and not self._called:
                        self._call_worker()
                    job.task = task
                    turns += 1
                    self._running += 1
                    try:
                        await self._run(job, now)
                    except asyncio.CancelledError:
                        if not job.cancelled:
                            job.connection.jobs.pop(job.ask.id, None)
                            raise  # not the call: the server stops
                    finally:
                        self._running -= 1
                        if job.cancelled:
                            task.uncancel()
                            self._cancelled += 1
                    if turns >= TURN_CALLS:
                        break
                    if not turns & LOOK_MASK:
                        now = loop.time()
                if queue and turns >= TURN_CALLS:
                    self._called = True  # by ourselves
                    loop.call_soon(_set, waiter := loop.create_future())
                else:
                    self._idle.append(waiter := loop.create_future())
                await waiter
        finally:
            self._workers -= 1

    async def _run(self, job: _Job, now: float) -> None:
        ask, connection, method = job.ask, job.connection, job.method
        if connection.jobs.get(ask.id) is not job:
            self._cancelled += 1
            return  # cancelled while it waited
        self._calls += 1
        try:
            if now >= job.until:
                raise DeadlineExceeded("the time was over before the call began", code="expired_in_queue")
            call_context.enter(job.until, ask.priority)
            if ask.trace is not telemetry.current_trace():
                telemetry.set_trace(ask.trace)
            work = method.run(job.service, ask.body)
            if method.stream:
                await self._stream(job, work)
                tell, size = Tell(ask.id, END), 1
            else:
                body = _encode(await work)
                size = len(body)
                if size > self.settings.frame_max:
                    raise TooLarge(f"the answer of {ask.method} is too large", limit_bytes=self.settings.frame_max)
                tell = Tell(ask.id, RESULT, msgspec.Raw(body))
        except FourplaneError as error:
            body = error_body(error)
            tell, size = Tell(ask.id, ERROR, msgspec.Raw(body)), len(body)
        except Exception as error:  # noqa: BLE001 - a bug of one method ends one call; people are told
            self._failed += 1
            self._registry.event("error", "rpc", f"{ask.method} failed: {error!r}")
            body = error_body(FourplaneError(f"{ask.method} failed", code="internal"))
            tell, size = Tell(ask.id, ERROR, msgspec.Raw(body)), len(body)
        if connection.jobs.pop(ask.id, None) is not None:
            connection.send(tell, size)

    async def _stream(self, job: _Job, items: AsyncIterator[Any]) -> None:
        """Send items as fast as the caller gives credit for them."""
        job.credit = min(job.ask.credit, self.settings.credit_max)
        connection = job.connection
        try:
            async for item in items:
                body = _encode(item)
                if len(body) > self.settings.frame_max:
                    raise TooLarge("an item is too large", limit_bytes=self.settings.frame_max)
                while job.credit <= 0:
                    job.more = asyncio.get_running_loop().create_future()
                    await job.more
                job.credit -= 1
                connection.send(Tell(job.ask.id, ITEM, msgspec.Raw(body)), len(body))
        finally:
            close = getattr(items, "aclose", None)
            if close is not None:
                await close()


class _Connection(asyncio.Protocol):
    """One caller."""

    def __init__(self, server: RpcServer) -> None:
        self._server = server
        self._asks: Unbatcher[Ask] = Unbatcher(Ask, server.settings.frame_max)
        self._tells: Batcher[Tell] | None = None
        self._transport: asyncio.Transport | None = None
        self._greeting = b""
        self._greeted = False
        self.jobs: dict[int, _Job] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._tells = Batcher(self._transport)
        if len(self._server.connections) >= self._server.settings.connections_max:
            self._transport.abort()
            return
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - part of the Protocol
        self._transport = self._tells = None
        self._server.connections.discard(self)
        for ask_id in list(self.jobs):
            self._cancel(ask_id)

    def pause_writing(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()  # who does not read answers asks nothing more

    def resume_writing(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if not self._greeted:
            self._greeting += data
            if len(self._greeting) < len(PREAMBLE):
                return
            if not self._greeting.startswith(PREAMBLE):
                self.close()
                return
            self._greeted = True
            data, self._greeting = self._greeting[len(PREAMBLE) :], b""
        try:
            asks = self._asks.feed(data)
        except FourplaneError:
            self.close()  # not our protocol, or past its bounds: there is no answer it would understand
            return
        self._server.take(self, asks)

    def follow_up(self, ask: Ask) -> None:
        """A cancellation, or credit for a stream."""
        job = self.jobs.get(ask.id)
        if job is None:
            return
        if ask.kind == CANCEL:
            self._cancel(ask.id)
        elif ask.kind == CREDIT:
            job.credit = min(job.credit + max(0, ask.credit), self._server.settings.credit_max)
            if job.more is not None and not job.more.done():
                job.more.set_result(None)

    def refuse(self, ask: Ask, error: FourplaneError) -> None:
        """Answer a call that will not be run."""
        body = error_body(error)
        self.send(Tell(ask.id, ERROR, msgspec.Raw(body)), len(body))

    def send(self, tell: Tell, size: int) -> None:
        """Answer, with the other answers of this tick."""
        if self._tells is not None:
            self._tells.add(tell, size)

    def close(self) -> None:
        """End now."""
        if self._transport is not None:
            self._transport.abort()

    def _cancel(self, ask_id: int) -> None:
        job = self.jobs.pop(ask_id)
        if job.task is not None:
            job.cancelled = True
            job.task.cancel()


def _set(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)

"""The serving side of calls between processes.

Calls wait in one queue; worker tasks take them out. The worker that holds the queue goes on without a switch of tasks as long
as the methods do not wait: only when one does, the next worker takes over (leader and followers), so that a batch of
short calls costs one wake-up. A call that never waits is known to its worker alone (`_at`); it gets a place among those that
can be cancelled (`_Job`) when something else runs before it is done, which is when it waits.

At most `calls_max` run, `queue_max` wait; the less a call matters, the earlier it is refused with Overloaded. A cancelled call,
and all calls of a connection that is gone, are cancelled here too. Reading stops while the peer does not take its answers.

A caller's host that vanished says nothing. Behind a network every caller is asked for a sign after `beat_s` of silence, and after
`silent_s` its connection ends, with all its work. As in rpc_client.py, time in which this process did not run is not counted, and
who never greeted is not judged; nor is who does not take its answers, whom we do not hear.

A call whose time is over when its turn comes is not begun. Its deadline while it runs is the caller's business, who cancels.
The epoch of a call is shown to the service's gate (`ownership.EpochGate`): an older one is refused.
"""

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from math import inf
from typing import Any, cast

import msgspec

from fourplane.foundation import network, tracing
from fourplane.foundation.errors import Conflict, DeadlineExceeded, FourplaneError, NotFound, Overloaded, TooLarge
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Registry
from fourplane.foundation.tracing import span
from fourplane.service import call_context
from fourplane.service.ownership import EpochGate
from fourplane.service.rpc import Interface, Method
from fourplane.service.rpc_frames import (
    CALL,
    CANCEL,
    CREDIT,
    ERROR,
    ITEM,
    LOOK,
    NO_CALL,
    PING,
    PONG,
    PREAMBLE,
    SIGN,
    Ask,
    Batcher,
    Message,
    Unbatcher,
    error_body,
)

TURN_CALLS = 256  # calls that never wait, before others get a turn
LISTEN_S = 0.25  # between two looks at who is silent
LISTEN_S_MAX = 0.5  # what counts as silence of the time since the last look: the rest was ours
LEAST = 3  # the priority of what matters least
_encode = msgspec.msgpack.Encoder().encode


class RpcServerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of one server."""

    connections_max: int = 256
    calls_max: int = 1_024
    queue_max: int = 8_192
    frame_max: int = 16 << 20
    credit_max: int = 1_024
    beat_s: float = 1.0  # of silence, before a caller behind a network is asked for a sign
    silent_s: float = 5.0  # and before it is given up


class RpcServerStatistics(msgspec.Struct, frozen=True):
    connections: int
    calls: int
    running: int
    queued: int
    refused: int
    cancelled: int
    failed: int
    workers: int
    vanished: int


class _Job:
    """One call that runs and waits."""

    __slots__ = ("credit", "more", "task")

    def __init__(self, task: "asyncio.Task[None]") -> None:
        self.task = task
        self.credit = 0
        self.more: asyncio.Future[None] | None = None


_Call = tuple["_Connection", Ask, object, Method, tuple[float, int]]  # who asks what of whom, in which context


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
        self.queue: deque[_Call] = deque()
        self._queue_bounds = {one: self.settings.queue_max * (4 - one) // 4 for one in range(LEAST + 1)}
        self.connections: set[_Connection] = set()
        self._registry = registry
        self._where = (path, host, port)
        self.behind_network = not path
        self._inherited = inherited
        self._methods: dict[str, tuple[object, Method, EpochGate | None]] = {}
        self._tasks: Tasks | None = None
        self._server: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._at: _Call | None = None  # what the leader runs, as long as nobody else asked
        self._leader: asyncio.Task[None] | None = None
        self._idle: list[asyncio.Future[None]] = []
        self._called = False  # an idle worker was called and has not come yet
        self._workers = 0
        self._draining = False
        self._frame_max = self.settings.frame_max
        self._calls = self._refused = self._cancelled = self._failed = self._vanished = 0
        self._listening: asyncio.TimerHandle | None = None
        self._listened_s = 0.0
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
            self._listen()

    async def drain(self) -> None:
        """Accept nobody new; what is under way goes on, as other parts may need it to drain."""
        if self._server is not None:
            self._server.close()

    async def stop(self) -> None:
        """Cut every connection and cancel every call."""
        self._draining = True
        if self._listening is not None:
            self._listening.cancel()
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.close()

    def statistics(self) -> RpcServerStatistics:
        return RpcServerStatistics(
            len(self.connections),
            self._calls,
            sum(len(connection.jobs) for connection in self.connections) + (self._at is not None),
            len(self.queue),
            self._refused,
            self._cancelled,
            self._failed,
            self._workers,
            self._vanished,
        )

    def _listen(self) -> None:
        """One timer for all callers: ask who is silent for a sign, end who stays silent."""
        assert self._loop is not None
        now = self._loop.time()
        passed_s, self._listened_s = min(now - self._listened_s, LISTEN_S_MAX), now
        for connection in list(self.connections):
            self._vanished += connection.listen(passed_s)
        self._listening = self._loop.call_later(LISTEN_S, self._listen)

    # -- called by connections

    def take(self, connection: "_Connection", asks: list[Ask]) -> None:
        """Queue the calls of one batch and see that somebody works."""
        if self._at is not None:
            self.settle()
        queue, methods, jobs, bounds = self.queue, self._methods, connection.jobs, self._queue_bounds
        if not queue:
            connection.unwanted.clear()
        room = len(queue) + len(asks) <= bounds[LEAST]
        left_ms, context = -1, (inf, -1)
        for ask in asks:
            if ask.kind != CALL:
                connection.follow_up(ask)
                continue
            found = methods.get(ask.method)
            if found is None:
                connection.refuse(ask, NotFound(f"no method {ask.method[:100]} here", code="no_method"))
                continue
            if not room and len(queue) >= bounds.get(ask.priority, bounds[LEAST]):
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
            if ask.deadline_ms != left_ms or ask.priority != context[1]:  # nearly all of a batch have the same
                assert self._loop is not None
                left_ms = ask.deadline_ms
                context = (self._loop.time() + left_ms / 1e3 if left_ms else inf, ask.priority)
            queue.append((connection, ask, service, method, context))
        if queue and not self._called:
            self._call_worker()

    def settle(self) -> None:
        """Whoever comes while a call runs finds it waiting: from now on it can be cancelled by its number."""
        at, self._at = self._at, None
        if at is not None:
            assert self._leader is not None
            at[0].jobs[at[1].id] = _Job(self._leader)

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
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        try:
            while True:
                self._called = False
                await self._run_calls(loop, task)
                await self._turn(loop)
        finally:
            self._workers -= 1

    async def _run_calls(self, loop: asyncio.AbstractEventLoop, task: "asyncio.Task[None]") -> None:
        """Run what is in the queue, at most TURN_CALLS of it."""
        queue = self.queue
        turns = 0
        while queue and turns < TURN_CALLS:
            turns += 1
            call = queue.popleft()
            if queue and not self._called:
                self._call_worker()
            connection, ask, _, method, _ = call
            if connection.transport is None or ask.id in connection.unwanted:
                connection.unwanted.discard(ask.id)
                self._cancelled += 1
                continue
            if self._at is not None:
                self.settle()
            self._at, self._leader = call, task
            kind = method.answer
            try:
                body = _encode(await self._begin(call, loop.time()))
                if len(body) > self._frame_max:
                    raise TooLarge(f"the answer of {ask.method} is too large", limit_bytes=self._frame_max)
            except asyncio.CancelledError:
                if self._finished(call, task) or task.uncancel():
                    raise  # not only this call: the server stops
                continue
            except Exception as error:  # noqa: BLE001 - a bug of one method ends one call; people are told
                kind, body = ERROR, self._told(ask, error)
            if self._at is call:
                self._at = None
            elif not self._finished(call, task):
                task.uncancel()
                continue
            connection.tells.add((ask.id, kind, msgspec.Raw(body)), len(body))
            if not queue:
                connection.tells.flush()  # a turn of the loop earlier than by itself

    def _turn(self, loop: asyncio.AbstractEventLoop) -> "asyncio.Future[None]":
        """Done when the worker shall go on: after others had their turn, or when it is called."""
        waiter: asyncio.Future[None] = loop.create_future()
        if self.queue:
            self._called = True  # by ourselves
            loop.call_soon(_set, waiter)
        else:
            self._idle.append(waiter)
        return waiter

    def _finished(self, call: _Call, task: "asyncio.Task[None]") -> bool:
        """A call that waited is over; False when it was cancelled, and nobody wants to hear."""
        self.settle()
        jobs, number = call[0].jobs, call[1].id
        job = jobs.get(number)
        if job is not None and job.task is task:
            del jobs[number]
            return True
        self._cancelled += 1
        return False

    def _begin(self, call: _Call, now: float) -> Awaitable[Any]:
        """Call the method in its caller's context; raises what speaks against it."""
        connection, ask, service, method, context = call
        self._calls += 1
        if now >= context[0]:
            raise DeadlineExceeded("the time was over before the call began", code="expired_in_queue")
        if call_context.current() is not context:
            call_context.enter(context)
        if ask.trace or tracing.current() is not None:
            tracing.set_trace(ask.trace)
        work = method.run(service, ask.body)
        if method.stream:
            self.settle()
            work = self._stream(connection, ask, work)
        return self._traced(ask.method, work) if ask.trace else cast("Awaitable[Any]", work)

    def _told(self, ask: Ask, error: Exception) -> bytes:
        """What the caller hears of an error."""
        if isinstance(error, FourplaneError):
            return error_body(error)
        self._failed += 1
        self._registry.event("error", "rpc", f"{ask.method} failed: {error!r}")
        return error_body(FourplaneError(f"{ask.method} failed", code="internal"))

    async def _traced(self, method: str, work: Awaitable[Any]) -> Any:
        """The same as a step of the caller's trace."""
        with span(self._registry.tracer, method):
            return await work

    async def _stream(self, connection: "_Connection", ask: Ask, items: AsyncIterator[Any]) -> None:
        """Send items as fast as the caller gives credit for them."""
        job = connection.jobs[ask.id]
        job.credit = min(ask.credit, self.settings.credit_max)
        try:
            async for item in items:
                body = _encode(item)
                if len(body) > self._frame_max:
                    raise TooLarge("an item is too large", limit_bytes=self._frame_max)
                while job.credit <= 0:
                    job.more = asyncio.get_running_loop().create_future()
                    await job.more
                job.credit -= 1
                connection.send((ask.id, ITEM, msgspec.Raw(body)), len(body))
        finally:
            close = getattr(items, "aclose", None)
            if close is not None:
                await close()


class _Connection(asyncio.Protocol):
    """One caller."""

    def __init__(self, server: RpcServer) -> None:
        self._server = server
        self._asks: Unbatcher[Ask] = Unbatcher(Ask, server.settings.frame_max)
        self.tells: Batcher
        self.transport: asyncio.Transport | None = None
        self._greeting = b""
        self._greeted = False
        self.jobs: dict[int, _Job] = {}  # what waits
        self.unwanted: set[int] = set()  # cancelled while it was in the queue
        self._beats = self._asked = self._deaf = False  # it gives signs; it was asked for one; it is not read
        self._silent_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.tells = Batcher(self.transport)
        if len(self._server.connections) >= self._server.settings.connections_max:
            self.transport.abort()
            return
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - part of the Protocol
        self.transport = None
        self._server.connections.discard(self)
        self._server.settle()
        for ask_id in list(self.jobs):
            self._cancel(ask_id)

    def pause_writing(self) -> None:
        if self.transport is not None:
            self._deaf = True
            self.transport.pause_reading()  # who does not read answers asks nothing more

    def resume_writing(self) -> None:
        if self.transport is not None:
            self._deaf, self._silent_s = False, 0.0
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        self._silent_s, self._asked = 0.0, False
        if not self._greeted:
            self._greeting += data
            if len(self._greeting) < len(PREAMBLE):
                return
            if not self._greeting.startswith(PREAMBLE):
                self.close()
                return
            self._greeted = True
            if self._server.behind_network:
                self.send((NO_CALL, PONG), 1)
            data, self._greeting = self._greeting[len(PREAMBLE) :], b""
        try:
            asks = self._asks.feed(data)
        except FourplaneError:
            self.close()  # not our protocol, or past its bounds: there is no answer it would understand
            return
        self._server.take(self, asks)

    def follow_up(self, ask: Ask) -> None:
        """A cancellation, credit for a stream, or the question whether we are there."""
        job = self.jobs.get(ask.id)
        if ask.kind == PING:
            self.send((NO_CALL, PONG), 1)
        elif ask.kind == SIGN:
            self._beats = True
        elif job is None:
            if ask.kind == CANCEL and len(self.unwanted) < len(self._server.queue):
                self.unwanted.add(ask.id)
        elif ask.kind == CANCEL:
            self._cancel(ask.id)
        elif ask.kind == CREDIT:
            job.credit = min(job.credit + max(0, ask.credit), self._server.settings.credit_max)
            if job.more is not None and not job.more.done():
                job.more.set_result(None)

    def listen(self, passed_s: float) -> bool:
        """So much more time passed: ask a silent caller for a sign; True when it is given up."""
        if self._deaf or not self._beats:
            return False
        self._silent_s += passed_s
        settings = self._server.settings
        if self._silent_s >= settings.silent_s:
            self.close()
            return True
        if not self._asked and self._silent_s >= settings.beat_s:
            self._asked = True
            self.send((NO_CALL, LOOK), 1)
        return False

    def refuse(self, ask: Ask, error: FourplaneError) -> None:
        """Answer a call that will not be run."""
        body = error_body(error)
        self.send((ask.id, ERROR, msgspec.Raw(body)), len(body))

    def send(self, tell: Message, size: int) -> None:
        """Answer, with the other answers of this tick."""
        self.tells.add(tell, size)

    def close(self) -> None:
        """End now."""
        if self.transport is not None:
            self.transport.abort()

    def _cancel(self, ask_id: int) -> None:
        self.jobs.pop(ask_id).task.cancel()


def _set(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)

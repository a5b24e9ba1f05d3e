"""An asyncio event loop in which a seed decides everything and waiting costs nothing.

The real services run on it unchanged: tasks, Protocols, streams, Starlette. Time is a number that jumps to the next timer
when nothing is ready; sockets are `simulator.network`; work for threads runs inline after a virtual latency. Ready
callbacks run in the order they were queued and timers in the order (time, sequence), so a run is a function of the
seed. Garbage is collected at fixed steps, because finalisers run code. Tasks and futures hash by their sequence number,
because asyncio keeps them in sets and would otherwise iterate by memory address. Every callback belongs to a life of a
host (`Life`); a crash ends the life, and nothing of it ever runs again, not even a finally block. The digest covers
every delivered message (time, ends, bytes) and every `World.note`.

Bounds: a run ends with `Stalled` when nothing can happen any more, with `Endless` past its steps or virtual seconds.
Source: FoundationDB's simulator and TigerBeetle's VOPR, for the idea.
"""

import asyncio
import gc
import random
import ssl
import warnings
from asyncio import events
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import Context, copy_context
from hashlib import blake2b
from typing import Any, Generic, TypeVar, cast

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError
from fourplane.simulator.calendar import Calendar, Entry
from fourplane.simulator.connection import SimulatedTransport
from fourplane.simulator.network import Fabric, SimulatedServer
from fourplane.simulator.sequenced import (
    Life,
    SequencedFuture,
    SequencedTask,
    SimulatedHandle,
    SimulatedTimer,
    current_host,
    fails,
    is_dead,
    life_now,
    nowhere,
)
from fourplane.simulator.workers import Volume, Workers

T = TypeVar("T")

START_US = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z
VIRTUAL_S_MAX = 24 * 3_600.0
STEPS_MAX = 50_000_000
UNHANDLED_MAX = 20
SEEN_MAX = 512  # deliveries that may wait for the digest
GARBAGE_STEPS = 250_000


class Stalled(FourplaneError):
    """Nothing is ready and no timer is set, but the run has not ended: something waits for ever."""

    code = "stalled"


class Endless(FourplaneError):
    """The run went past its bound of steps or virtual seconds."""

    code = "endless"


class VirtualSource:
    """Time and chance of one simulated world."""

    def __init__(self, loop: "SimulatorLoop", seed: int) -> None:
        self._loop = loop
        self._random = random.Random(seed)
        self._secret = random.Random(f"secrets of {seed}")
        self.skew_us: dict[str, int] = {}

    def now_us(self) -> int:
        skew = self.skew_us.get(current_host(), 0) if self.skew_us else 0
        return START_US + int(self._loop.calendar.now_s * 1e6) + skew

    def monotonic_s(self) -> float:
        return self._loop.calendar.now_s

    def cpu_s(self) -> float:
        return self._loop.virtual_s

    def random(self) -> random.Random:
        return self._random

    def token_bytes(self, count: int) -> bytes:
        return self._secret.randbytes(count)


class SimulatorLoop(asyncio.BaseEventLoop):
    """Virtual time over an in-memory network; one per run."""

    def __init__(self, seed: int, *, virtual_s_max: float = VIRTUAL_S_MAX, steps_max: int = STEPS_MAX) -> None:
        super().__init__()
        self.steps = 0
        self._sequence = 0
        self.digest = blake2b(digest_size=16)
        self.calendar = Calendar()
        self.source = VirtualSource(self, seed)
        self.fabric = Fabric(self, random.Random(f"network of {seed}"), current_host)
        self.lives: dict[str, Life] = {}
        self.workers = Workers(self, random.Random(f"blocking of {seed}"))
        self.unhandled: list[str] = []  # errors nobody caught, as asyncio would log them
        self._any_dead = False
        self._buried: list[SequencedTask[Any]] = []
        self._collect_at = GARBAGE_STEPS
        self._virtual_s_max = virtual_s_max
        self._steps_max = steps_max
        self.set_task_factory(cast("Any", _sequenced_task))

    # -- time and scheduling

    @property
    def virtual_s(self) -> float:
        """Seconds since the world began."""
        return self.calendar.now_s

    def time(self) -> float:
        return self.calendar.now_s

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = SimulatedTimer(when, callback, args, self, context)
        self.calendar.put(when, handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        when = self.calendar.now_s + max(0.0, delay)
        handle = SimulatedTimer(when, callback, args, self, context)
        self.calendar.put(when, handle)
        return handle

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = SimulatedHandle(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled timers leave the calendar when their time comes; nothing to count here."""

    def next_sequence(self) -> int:
        """The next number of this run: the hash of a task or a future."""
        self._sequence += 1
        return self._sequence

    def _run_once(self) -> None:
        ready: Any = self._ready  # type: ignore[attr-defined]
        if not ready:
            self._advance(ready)
        count = len(ready)
        self.steps += count
        for _ in range(count):
            handle = ready.popleft()
            if handle._cancelled or (self._any_dead and is_dead(handle)):  # noqa: SLF001 - asyncio's own loop does
                continue
            try:
                handle._context.run(handle._callback, *handle._args)  # noqa: SLF001
            except BaseException as error:  # noqa: BLE001 - told, as asyncio does
                fails(handle, error)
        if self.steps > self._collect_at:
            self._collect()

    def _advance(self, ready: Any) -> None:
        """Go to the next moment at which something happens, until something is ready; messages are delivered here."""
        calendar = self.calendar
        while not ready and not self._stopping:  # type: ignore[attr-defined]
            now = calendar.turn()
            if now is None:
                raise Stalled("nothing is ready and no timer is set", virtual_s=round(self.virtual_s, 6))
            if now[-1][0] > self._virtual_s_max:
                raise Endless(f"past {self._virtual_s_max:.0f} virtual seconds", steps=self.steps)
            self._play(now, ready)
            if len(self.fabric.seen) > SEEN_MAX:
                self.fabric.settle_digest()
            if self.steps > self._collect_at:
                self._collect()

    def _play(self, now: list[Entry], ready: Any) -> None:
        """What happens in one slot of time, in order; everything of one moment before anything that it makes ready."""
        calendar, seen = self.calendar, self.fabric.seen
        at_s, steps = calendar.now_s, 0
        while now:
            entry = now.pop()
            at, target, content = entry
            is_message = target.__class__ is SimulatedTransport
            if not is_message and target._cancelled:  # noqa: SLF001
                continue
            if at > at_s:
                if ready or calendar.disordered:
                    now.append(entry)
                    break
                at_s = calendar.now_s = at
            steps += 1
            if not is_message:
                self._happen(target)
            elif target.is_quick_in and content.__class__ is bytes:
                seen.append(entry)
                try:
                    target.enter(target.received, content)
                except BaseException as error:  # noqa: BLE001 - told, as asyncio does
                    target.fails(error)
                target.taken += len(content)
                if target.is_waited_for:
                    target.tell_writer()
            else:
                if target.alive and not isinstance(content, Exception):
                    seen.append((at, target, content or b""))
                target.enter(target.arrive, content)
        self.steps += steps

    def _happen(self, timer: asyncio.TimerHandle) -> None:
        if self._any_dead and is_dead(timer):
            return
        try:
            timer._context.run(timer._callback, *timer._args)  # type: ignore[attr-defined] # noqa: SLF001
        except BaseException as error:  # noqa: BLE001 - told, as asyncio does
            fails(timer, error)

    def _collect(self) -> None:
        self._collect_at = self.steps + GARBAGE_STEPS
        if self.steps > self._steps_max:
            raise Endless(f"{self.steps} steps", virtual_s=self.virtual_s)
        gc.collect()

    def life_of(self, host: str) -> Life:
        """The life a host is in, dead or not."""
        return self.lives.setdefault(host, Life(host))

    def crash(self, host: str) -> None:
        """End the life of a host: its tasks stay where they stand and are never run again."""
        life = self.life_of(host)
        life.dead = self._any_dead = True
        tasks = cast("set[SequencedTask[Any]]", asyncio.all_tasks(self))
        self._buried += sorted((task for task in tasks if task.life is life), key=hash)
        self.workers.forget(host)

    def unbury(self) -> None:
        """After the run: let the tasks of crashed hosts go quietly, and after an error all others."""
        rest = cast("set[SequencedTask[Any]]", asyncio.all_tasks(self))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of coroutines which such a block begins and nobody awaits
            self._let_go([*self._buried, *sorted(rest, key=hash)])
        self._buried.clear()

    def _let_go(self, tasks: Sequence["SequencedTask[Any]"]) -> None:
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined] # noqa: SLF001 - they are meant to be pending
            with suppress(BaseException):  # their finally blocks run now, when nothing they touch matters any more
                copy_context().run(task.get_coro().close)  # what they set there must not reach the next run

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """What asyncio would log; that nobody awaits what a crashed host began is the point of crashing it."""
        if self._any_dead and "never retrieved" in str(context.get("message")):
            return
        error = context.get("exception")
        if error is not None and len(self.unhandled) < UNHANDLED_MAX:
            self.unhandled.append(f"{type(error).__name__}: {error}")
        super().call_exception_handler(context)

    def _process_events(self, event_list: object) -> None:
        """There is no selector; kept because the base class names it."""

    def _write_to_self(self) -> None:
        """Nobody sleeps in a selector, so nobody needs waking."""

    def create_future(self) -> asyncio.Future[Any]:
        future: SequencedFuture[Any] = SequencedFuture(loop=self)
        future.sequence = self.next_sequence()
        return future

    # -- threads, signals, names: inline, ignored, invented

    def blocking_inline(self, name: str, work: Callable[[], T]) -> "asyncio.Future[T]":
        """What `foundation.blocking` asks for."""
        return self.workers.submit(current_host(), name, work)

    def run_in_executor(  # type: ignore[override]
        self, _executor: object, func: Callable[..., T], *args: Any
    ) -> "asyncio.Future[T]":
        return self.blocking_inline("executor", lambda: func(*args))

    def add_signal_handler(  # type: ignore[override]
        self, _sig: int, callback: Callable[..., object], *args: Any
    ) -> None:
        """A simulated process gets no signals."""

    def remove_signal_handler(self, _sig: int) -> bool:
        return False

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> list[Any]:
        return [(2, 1, 6, "", (str(host), int(port or 0)))]

    # -- sockets

    async def create_server(  # type: ignore[override]
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], host: Any = None, port: Any = None, **options: Any
    ) -> SimulatedServer:
        tls = options.get("ssl")
        return self.fabric.listen(protocol_factory, str(host or "127.0.0.1"), int(port or 0), tls=tls is not None)

    async def create_connection(  # type: ignore[override]
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], host: Any = None, port: Any = None, **options: Any
    ) -> tuple[SimulatedTransport, asyncio.BaseProtocol]:
        tls = options.get("ssl") is not None
        return await self.fabric.connect(protocol_factory, str(host), int(port), tls=tls)

    async def create_unix_server(  # type: ignore[override]
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], path: Any = None, **_: Any
    ) -> SimulatedServer:
        return self.fabric.listen(protocol_factory, f"unix:{path}", 1, tls=False)

    async def create_unix_connection(  # type: ignore[override]
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], path: Any = None, **_: Any
    ) -> tuple[SimulatedTransport, asyncio.BaseProtocol]:
        return await self.fabric.connect(protocol_factory, f"unix:{path}", 1, tls=False)

    async def start_tls(  # type: ignore[override]
        self,
        transport: SimulatedTransport,
        protocol: asyncio.BaseProtocol,
        _sslcontext: ssl.SSLContext,
        **_: Any,
    ) -> SimulatedTransport:
        """Mark the connection as encrypted; the bytes stay readable, because a handshake would not be repeatable."""
        transport.encrypted = True
        transport.set_protocol(protocol)
        return transport

    async def create_datagram_endpoint(  # type: ignore[override]
        self, protocol_factory: Callable[[], asyncio.DatagramProtocol], **options: Any
    ) -> tuple[Any, asyncio.DatagramProtocol]:
        return self.fabric.datagram(protocol_factory, options.get("local_addr"), options.get("remote_addr"))


class World:
    """What a simulated program holds in its hands: hosts, links, notes."""

    def __init__(self, loop: SimulatorLoop) -> None:
        self._loop = loop
        self.network = loop.fabric

    @property
    def now_s(self) -> float:
        """Virtual seconds since the start."""
        return self._loop.virtual_s

    @contextmanager
    def on(self, host: str, *, zone: str = "", region: str = "") -> Iterator[None]:
        """Everything started within the block runs on this host."""
        self.network.place(host, zone=zone, region=region)
        before = life_now.set(self._loop.life_of(host))
        try:
            yield
        finally:
            life_now.reset(before)

    def note(self, text: str) -> None:
        """Put a decision into the digest: what was matched, sold, delivered."""
        self.network.settle_digest()
        self._loop.digest.update(f"{self._loop.virtual_s:.6f} {text}\n".encode())

    def later(self, seconds: float, callback: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        """Call back on no host at all: what no crash takes away."""
        return self._loop.call_later(seconds, callback, *args, context=Context())

    def crash(self, host: str, *, silent: bool = False) -> None:
        """Stop a host as pulling the plug does: no finally block runs, its connections are reset at the other ends.

        A silent crash takes the host's machine away too: nobody resets, the others wait until they give up.
        """
        self._loop.crash(host)
        self.network.crash(host, silent=silent)

    def revive(self, host: str) -> None:
        """Let new work run on a crashed host; what it was doing is gone."""
        if self._loop.life_of(host).dead:
            del self._loop.lives[host]

    @property
    def unhandled(self) -> list[str]:
        """Errors of services and clients which nobody caught so far."""
        return list(self._loop.unhandled)

    def is_down(self, host: str) -> bool:
        return self._loop.life_of(host).dead

    def stall(self, host: str, seconds: float) -> None:
        """Let every job of a host's workers (its disk, above all) take this much longer."""
        self._loop.workers.stall_s[host] = seconds

    def replicate(self, host: str, volume: Volume) -> None:
        """Let every write of a host's disk wait for its replicas."""
        self._loop.workers.volumes[host] = volume

    def skew(self, host: str, seconds: float) -> None:
        """Let a host's wall clock be wrong by this much."""
        self._loop.source.skew_us[host] = int(seconds * 1e6)


class Outcome(msgspec.Struct, Generic[T], frozen=True):
    """What a run was: equal digests mean the same messages and notes at the same virtual times."""

    result: T
    digest: str
    virtual_s: float
    steps: int
    messages: int


def run(
    main: Callable[[World], Coroutine[Any, Any, T]],
    seed: int,
    *,
    virtual_s_max: float = VIRTUAL_S_MAX,
    steps_max: int = STEPS_MAX,
) -> Outcome[T]:
    """Run `main(world)` in a fresh world of this seed and return what happened; its error is raised as it is."""
    loop = SimulatorLoop(seed, virtual_s_max=virtual_s_max, steps_max=steps_max)
    before = events._get_running_loop()  # noqa: SLF001 - asyncio offers no public way to ask without raising
    assert before is None, "a simulated world cannot run inside a running loop"
    with clock.installed(loop.source), _garbage_at_fixed_steps():
        try:
            result = loop.run_until_complete(main(World(loop)))
            _cancel_rest(loop)
            loop.fabric.settle_digest()
        finally:
            loop.unbury()
            loop.fabric.close()
            loop.close()
    return Outcome(result, loop.digest.hexdigest(), round(loop.virtual_s, 6), loop.steps, loop.fabric.delivered)


@contextmanager
def _garbage_at_fixed_steps() -> Iterator[None]:
    """Keep the collector from running when memory, not the seed, says so; the loop calls it.

    What was there before the run is none of its garbage, so it is frozen: a collection costs what the run itself holds.
    """
    was_on = gc.isenabled()
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()


def _cancel_rest(loop: SimulatorLoop) -> None:
    """End what still runs, in the order in which it was made."""
    tasks = cast("set[SequencedTask[Any]]", asyncio.all_tasks(loop))
    rest = sorted((task for task in tasks if not task.life.dead), key=hash)
    for task in rest:
        task.cancel()
    if rest:
        loop.run_until_complete(_gathered(rest))


async def _gathered(tasks: Sequence[asyncio.Task[Any]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)


def _sequenced_task(
    loop: SimulatorLoop, work: Coroutine[Any, Any, T], *, name: object = None, context: Context | None = None
) -> "SequencedTask[T]":
    # Built in two steps: __init__ registers the task in a set, so the number must be there before.
    task: SequencedTask[T] = SequencedTask.__new__(SequencedTask)
    task.sequence = loop.next_sequence()
    task.life = life_now.get() if context is None else context.get(life_now, nowhere)
    task.__init__(work, loop=loop, name=None if name is None else str(name), context=context)  # type: ignore[misc]
    return task

"""One parent that forks the workers of this machine, gives each its sockets, and starts it again when it dies.

The parent does nothing else: it sets the native thread counts to 1, imports what the workers share, binds the ports, forks
and sleeps. It opens no database and starts no loop and no thread; that is asserted before each fork, because a fork copies
locks but not the threads that would open them.

Ports: each is bound once without SO_REUSEPORT, so that a port in use is an error and not half of somebody else's
connections; then one SO_REUSEPORT socket per slot is opened and kept. A restarted worker inherits its slot's socket with
the queue of connections that wait in it.

A worker says through a pipe that it is ready. One that ends before its first readiness ends the fleet with its exit code
(starting again would not help); later ends are restarts, within an intensity; past it the fleet stops and says so.
A worker whose loop stands still for `hung_s` (its pulse in shared memory stops) is killed and started again: its callers
wait no longer than for one that died. While it starts its loop may be busy for longer; then it is one that uses no processor
either. SIGTERM and SIGINT: every worker gets SIGTERM, drains and stops; after `drain_s`, or
a second signal, SIGKILL. A worker whose parent died gets SIGTERM from the kernel. SIGUSR2: systems have moved between slots
(moves.py): all workers end as above, get the sockets of what they own now, and start again.
"""

import asyncio
import contextlib
import ctypes
import gc
import importlib
import mmap
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from fourplane.control.busy_port import owner_of_port
from fourplane.foundation import clock, network
from fourplane.foundation.errors import Misconfigured
from fourplane.foundation.lifecycle import Lifecycle, Tasks
from fourplane.foundation.processes import Asked, Ended, Parent
from fourplane.service.restart_intensity import IntensitySettings, RestartIntensity

THREAD_COUNTS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
EXIT_MISCONFIGURED = 2
EXIT_TOO_MANY_RESTARTS = 70
POLL_S = 0.02  # while a worker starts; otherwise the parent sleeps
IDLE_S = 3_600.0
BEAT_S = 0.25
PULSE = struct.Struct("d")
READY_MAX = 1 << 16
COLLECT_AFTER = (3_500, 4, 1_400)  # many long-lived objects: all but them in steps of milliseconds, them rarely
PR_SET_PDEATHSIG = 1
ANY_SLOT = -1
NEIGHBOUR_WAYS = ("requests", "calls", "connections")
DATABASE_SUFFIXES = (".db", ".sqlite", "-wal", ".wal")

Say = Callable[[str], None]


class FleetSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    workers: int = 1
    placement: dict[str, int] = {}  # system: slot; without it the systems take turns
    shards: dict[str, int] = {}  # system: into how many shards it is cut, chosen when a data folder is made
    ready_s: float = 120.0
    hung_s: float = 30.0  # a worker whose loop stands still for so long is killed and started again; 0: never
    drain_s: float = 30.0
    restarts: IntensitySettings = IntensitySettings(count_max=5, period_s=60.0)


class Port(msgspec.Struct, frozen=True):
    """A TCP port the deployment listens on, and the setting that names it."""

    name: str
    host: str
    port: int
    setting: str
    slot: int = ANY_SLOT  # only this worker's


class Worker:
    """What a forked worker is given."""

    __slots__ = ("_pulse", "_ready", "parent_pid", "ports", "say", "slot", "sockets")

    def __init__(
        self,
        slot: int,
        ports: Mapping[str, int],
        sockets: Mapping[str, socket.socket],
        ready: int,
        *,
        say: Say,
        pulse: mmap.mmap | None = None,
    ) -> None:
        self.say = say
        self._pulse = pulse
        self.slot = slot
        self.ports = ports  # the numbers of all ports by name, also of those that other workers serve
        self.sockets = sockets
        self.parent_pid = os.getppid()
        self._ready = ready

    def report_ready(self, facts: Mapping[str, str]) -> None:
        """Tell the parent that this worker serves; the facts go to `on_ready`."""
        os.write(self._ready, msgspec.json.encode(dict(facts))[:READY_MAX])
        os.close(self._ready)

    def beat(self) -> None:
        """Show the parent that the loop runs."""
        if self._pulse is not None:
            PULSE.pack_into(self._pulse, 0, clock.monotonic_s())

    def move(self) -> None:
        """Ask the parent to start all workers again where the systems are now."""
        os.kill(self.parent_pid, signal.SIGUSR2)

    def stop_fleet(self) -> None:
        """Ask the parent to stop everything in order, as a `stop` verb does."""
        os.kill(self.parent_pid, signal.SIGTERM)


Body = Callable[[Worker], int]


class _Slot:
    """One place for a worker: the sockets stay, the process may change."""

    __slots__ = ("busy_s", "facts", "number", "pid", "pulse", "ready", "sockets", "started_s", "ticks", "was_ready")

    def __init__(self, number: int, sockets: dict[str, socket.socket]) -> None:
        self.number = number
        self.sockets = sockets
        self.pid = 0
        self.pulse = mmap.mmap(-1, PULSE.size)  # shared with the worker: when its loop ran last
        self.ready = -1  # the reading end of the readiness pipe while the worker starts
        self.started_s = self.busy_s = 0.0  # when it was forked; when its processor time was last seen to grow
        self.ticks = 0
        self.was_ready = False
        self.facts: dict[str, str] = {}


class Fleet:
    """The parent. `run` returns the exit code of the whole deployment."""

    def __init__(
        self,
        ports: Sequence[Port],
        body: Body,
        *,
        say: Say,
        settings: FleetSettings | None = None,
        preload: Iterable[str] = (),
        on_ready: Callable[[list[dict[str, str]]], None] | None = None,
        neighbours: Path | None = None,
        inherited: Sequence[Mapping[str, socket.socket]] = (),
        give: Callable[[Sequence[dict[str, socket.socket]]], bool] | None = None,
        ports_moved: Callable[[], Sequence[Port]] | None = None,
    ) -> None:
        """`neighbours`: a folder for the Unix sockets over which workers reach each other; None without any.

        `inherited`: sockets of the version before, by slot and name; `give` passes ours to the next one (takeover.py).
        `ports_moved`: whose ports are whose after a move of systems between slots.
        """
        self._settings = settings or FleetSettings()
        if self._settings.workers < 1:
            raise Misconfigured("at least one worker is needed", setting="workers")
        self._ports = ports
        self._body = body
        self._say = say
        self._preload = tuple(preload)
        self._on_ready = on_ready
        self._neighbours = neighbours
        self._inherited = inherited
        self._give = give
        self._ports_moved = ports_moved
        self._moving_since: float | None = None
        self._numbers: dict[str, int] = {}
        self._slots: list[_Slot] = []
        self._intensity = RestartIntensity(self._settings.restarts)
        self._idle_s = max(POLL_S, min(IDLE_S, self._settings.hung_s / 4 or IDLE_S))
        self._exit_code = 0
        self._stopping_since: float | None = None
        self._announced = False

    def run(self) -> int:
        """Fork the workers and keep them running until a signal or a failure; no worker is left when it returns.

        Raises Misconfigured for a port that cannot be bound, before anything starts.
        """
        limit_native_threads()
        bound = bind_ports(self._ports, self._settings.workers, neighbours=self._neighbours, inherited=self._inherited)
        self._numbers = {
            name: int(one.getsockname()[1])
            for sockets in bound
            for name, one in sockets.items()
            if one.family != socket.AF_UNIX
        }
        self._slots = [_Slot(number, sockets) for number, sockets in enumerate(bound)]
        try:
            preload(self._preload)
            gc.collect()
            gc.freeze()
            with Parent() as parent:
                for slot in self._slots:
                    self._start(parent, slot)
                while any(slot.pid for slot in self._slots):
                    self._step(parent)
        finally:
            for slot in self._slots:
                for one in slot.sockets.values():
                    one.close()
        return self._exit_code

    def _step(self, parent: Parent) -> None:
        starting = any(slot.ready >= 0 for slot in self._slots)
        stopping = self._stopping_since is not None
        match parent.wait(POLL_S if starting else 0.2 if stopping or self._moving_since else self._idle_s):
            case Ended(pid=pid, code=code):
                self._read_readiness()
                self._ended(parent, next(slot for slot in self._slots if slot.pid == pid), code)
            case Asked(signal=signal.SIGUSR1):
                self._hand_over(parent)
            case Asked(signal=signal.SIGUSR2):
                self._move(parent)
            case Asked():
                self._stop(parent, again=stopping)
            case None:
                pass
        self._read_readiness()
        self._enforce_bounds(parent)

    def _start(self, parent: Parent, slot: _Slot) -> None:
        assert_may_fork()
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        slot.ready, slot.started_s = reading, clock.monotonic_s()
        PULSE.pack_into(slot.pulse, 0, 0.0)
        slot.pid = parent.fork(lambda: self._become_worker(slot, writing))
        os.close(writing)

    def _become_worker(self, slot: _Slot, ready: int) -> int:
        """In the child: keep this slot's sockets, drop everybody else's, run the body."""
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches all: the parent decides
        clock.reseed_after_fork()
        gc.set_threshold(*COLLECT_AFTER)
        for other in self._slots:
            if other.ready >= 0:
                os.close(other.ready)
            if other is not slot:
                for one in other.sockets.values():
                    one.close()
        try:
            return self._body(Worker(slot.number, self._numbers, slot.sockets, ready, say=self._say, pulse=slot.pulse))
        except Misconfigured as error:
            self._say(error.message)
            return EXIT_MISCONFIGURED

    def _ended(self, parent: Parent, slot: _Slot, code: int) -> None:
        pid, slot.pid = slot.pid, 0
        if slot.ready >= 0:
            os.close(slot.ready)
            slot.ready = -1
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        if self._stopping_since is not None:
            if code not in {0, -signal.SIGTERM}:
                self._say(f"worker {slot.number} (pid {pid}) ended with {how} while stopping")
            return
        if self._moving_since is not None:
            self._moved(parent)
        elif not slot.was_ready:
            self._say(f"worker {slot.number} (pid {pid}) could not start: {how}")
            self._exit_code = code if code > 0 else 1
            self._stop(parent, again=False)
        elif self._intensity.allow(clock.monotonic_s()):
            self._say(f"worker {slot.number} (pid {pid}) ended with {how}; starting it again")
            self._start(parent, slot)
        else:
            bound = self._settings.restarts
            self._say(
                f"worker {slot.number} (pid {pid}) ended with {how}, more than {bound.count_max} restarts "
                f"within {bound.period_s:.0f} s: stopping"
            )
            self._exit_code = EXIT_TOO_MANY_RESTARTS
            self._stop(parent, again=False)

    def _hand_over(self, parent: Parent) -> None:
        """The next version asks for the sockets: pass them, then drain and end."""
        if self._give is None or self._stopping_since is not None:
            return
        if self._give([slot.sockets for slot in self._slots]):
            self._say("another version takes over; draining")
            self._stop(parent, again=False)
        else:
            self._say("somebody asked to take over and did not take the sockets; going on")

    def _move(self, parent: Parent) -> None:
        """Systems belong to other slots from now on: end all workers, so that no two of them differ about it."""
        if self._ports_moved is None or self._stopping_since is not None or self._moving_since is not None:
            return
        self._moving_since = clock.monotonic_s()
        for slot in self._slots:
            if slot.pid:
                parent.send(slot.pid, signal.SIGTERM)

    def _moved(self, parent: Parent) -> None:
        """Once the last worker has ended: every slot gets the sockets of what it owns, and all start again."""
        if any(slot.pid for slot in self._slots) or self._ports_moved is None:
            return
        self._moving_since = None
        for port in self._ports_moved():
            for slot in self._slots if port.slot >= 0 else ():
                if port.name in slot.sockets and slot.number != port.slot:
                    self._slots[port.slot].sockets[port.name] = slot.sockets.pop(port.name)
        self._say("the systems have moved; starting their workers")
        for slot in self._slots:
            self._start(parent, slot)

    def _stop(self, parent: Parent, *, again: bool) -> None:
        if self._stopping_since is None:
            self._stopping_since = clock.monotonic_s()
        for slot in self._slots:
            if slot.pid:
                parent.send(slot.pid, signal.SIGKILL if again else signal.SIGTERM)

    def _read_readiness(self) -> None:
        for slot in self._slots:
            if slot.ready < 0:
                continue
            try:
                told = os.read(slot.ready, READY_MAX)
            except BlockingIOError:
                continue
            os.close(slot.ready)
            slot.ready = -1
            if told:
                slot.was_ready = True
                slot.facts = msgspec.json.decode(told, type=dict[str, str])
        if not self._announced and all(slot.was_ready for slot in self._slots):
            self._announced = True
            if self._on_ready is not None:
                self._on_ready([slot.facts for slot in self._slots])

    def _enforce_bounds(self, parent: Parent) -> None:
        now = clock.monotonic_s()
        if self._stopping_since is not None:
            if now - self._stopping_since > self._settings.drain_s:
                self._stop(parent, again=True)
            return
        if self._moving_since is not None:
            if now - self._moving_since > self._settings.drain_s:
                for slot in self._slots:
                    parent.send(slot.pid, signal.SIGKILL)
            return
        for slot in self._slots:
            if slot.ready >= 0 and now - slot.started_s > self._settings.ready_s:
                self._say(f"worker {slot.number} (pid {slot.pid}) was not ready within {self._settings.ready_s:.0f} s")
                parent.send(slot.pid, signal.SIGKILL)
            beat_s = PULSE.unpack_from(slot.pulse, 0)[0]
            if not (self._settings.hung_s and slot.pid and beat_s):
                continue
            if slot.ready >= 0:
                if slot.ticks != (ticks := processor_ticks(slot.pid)):
                    slot.ticks, slot.busy_s = ticks, now
                beat_s = max(beat_s, slot.busy_s)
            if now - beat_s > self._settings.hung_s:
                self._say(f"worker {slot.number} (pid {slot.pid}) stood still for {now - beat_s:.1f} s")
                PULSE.pack_into(slot.pulse, 0, 0.0)
                parent.send(slot.pid, signal.SIGKILL)


def preload(modules: Iterable[str]) -> None:
    """Import what every worker will need, as far as it is installed: a worker that starts again finds it there."""
    for name in modules:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)


class SettledHeap:
    """A lifecycle part behind everything that stays: from here on the garbage collector looks at newer objects only.

    A full collection walks the 190,000 objects of four started systems in 115 ms, on the loop; without them in 0.1 ms.
    """

    async def start(self, tasks: Tasks) -> None:
        """Collect once, then freeze what is left."""
        del tasks
        gc.collect()
        gc.freeze()

    async def drain(self) -> None:
        """Nothing to finish."""

    async def stop(self) -> None:
        gc.unfreeze()


async def serve_until_asked(worker: Worker, lifecycle: Lifecycle, facts: Callable[[], Mapping[str, str]]) -> int:
    """The life of a worker inside its loop: start the parts, say so, wait for SIGTERM or a failure, drain, stop.

    Returns the exit code: 0 when asked to stop, 1 when a part failed. Asked while the parts still start, which may be waiting for
    a worker that stops as well, it stops those that stand and is gone.
    """
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    beating: asyncio.TimerHandle | None = None

    def beat() -> None:
        nonlocal beating
        worker.beat()
        beating = loop.call_later(BEAT_S, beat)

    beat()
    if not await _started(lifecycle, over):
        return 0
    worker.report_ready(facts())
    failed = False

    async def watch() -> None:
        nonlocal failed
        error = await lifecycle.wait_failed()
        worker.say(f"worker {worker.slot} stops, a part of it failed: {_told(error)}")
        failed = True
        over.set()

    async with asyncio.TaskGroup() as group:
        watching = group.create_task(watch())
        await over.wait()
        watching.cancel()
    if beating is not None:
        beating.cancel()
    await lifecycle.drain()
    await lifecycle.stop()
    return 1 if failed else 0


async def _started(lifecycle: Lifecycle, over: asyncio.Event) -> bool:
    """Start all parts; from the first SIGTERM on `over` is set. False when it came before they stood, and none stands then."""
    task = asyncio.current_task()
    assert task is not None
    standing = False

    def asked() -> None:
        if not standing and not over.is_set():
            task.cancel()
        over.set()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked)
    try:
        await lifecycle.start()
    except asyncio.CancelledError:
        if not over.is_set() or task.uncancel():
            raise
        return False
    standing = True
    return True


def _told(error: BaseException) -> str:
    """An error in one line, with the place it came from."""
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    place = f" ({Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno})" if where is not None else ""
    return f"{error!r}{place}"


def processor_ticks(pid: int) -> int:
    """What a process has used of the processors; -1 when that cannot be seen."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace").rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])
    except (OSError, ValueError, IndexError):
        return -1


def limit_native_threads() -> None:
    """One thread for BLAS, OpenMP and numba: workers are the parallelism. Must run before numpy is imported."""
    for name in THREAD_COUNTS:
        os.environ.setdefault(name, "1")


def neighbour_path(folder: Path, slot: int, kind: str) -> str:
    """Where the worker of a slot is asked by the others: `requests` are HTTP, `calls` rpc, `connections` passed sockets."""
    return str(folder / f"{slot}.{kind}")


def bind_ports(
    ports: Sequence[Port],
    workers: int,
    *,
    neighbours: Path | None = None,
    inherited: Sequence[Mapping[str, socket.socket]] = (),
) -> list[dict[str, socket.socket]]:
    """One socket per worker and port, and one per worker and way between workers (NEIGHBOUR_WAYS).

    What the version before had open is used again where number and slot are the same, the rest of it is closed.
    Raises Misconfigured in one line naming port, setting and owner when it is taken.
    """
    left = [dict(sockets) for sockets in inherited] + [{} for _ in range(workers - len(inherited))]
    bound: list[dict[str, socket.socket]] = [{} for _ in range(workers)]
    try:
        for port in ports:
            here = {int(one[port.name].getsockname()[1]) for one in left if port.name in one}
            number = next((one for one in here if port.port in {0, one}), 0) or _claim(port)
            for slot in range(workers) if port.slot < 0 else (port.slot,):
                found = left[slot].get(port.name)
                if found is not None and found.getsockname()[1] == number:
                    bound[slot][port.name] = left[slot].pop(port.name)
                else:
                    bound[slot][port.name] = network.bind(port.host, number, reuse_port=True)
        if neighbours is not None:
            neighbours.mkdir(mode=0o700, parents=True, exist_ok=True)
            for slot, sockets in enumerate(bound):
                for kind in NEIGHBOUR_WAYS:
                    bind = network.bind_passing if kind == "connections" else network.bind_unix
                    found = left[slot].pop(kind, None)
                    sockets[kind] = bind(neighbour_path(neighbours, slot, kind)) if found is None else found
    except BaseException:
        for sockets in bound:
            for one in sockets.values():
                one.close()
        raise
    for rest in left:
        for one in rest.values():
            one.close()
    return bound


def _claim(port: Port) -> int:
    """The number to use; bound once without SO_REUSEPORT, so that nobody else listens there."""
    try:
        alone = network.bind(port.host, port.port)
    except PermissionError:
        raise Misconfigured(f"port {port.port} ({port.setting}) needs more rights", setting=port.setting) from None
    except OSError as error:
        owner = owner_of_port(port.port)
        by = f" by {owner}" if owner else f": {error.strerror}"
        raise Misconfigured(
            f"port {port.port} ({port.setting}) is taken{by}; set {port.setting} to another port, or 0 for any",
            code="port_taken",
            setting=port.setting,
            port=port.port,
        ) from None
    number = int(alone.getsockname()[1])
    alone.close()
    return number


def assert_may_fork() -> None:
    """Assert that this process has one thread, also natively, and no open database."""
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"the parent has {threads} threads and must not fork"
    for descriptor in list(Path("/proc/self/fd").iterdir()):
        try:
            target = str(descriptor.readlink())
        except OSError:
            continue  # the descriptor of this very listing
        assert not target.endswith(DATABASE_SUFFIXES), f"the parent has {target} open and must not fork"

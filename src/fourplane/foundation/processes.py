"""Other programs and our own workers: one of the four seams to the outside world.

`start` runs a program under the loop: its output arrives line by line, it is a process group of its own, and whoever
is cancelled while waiting for it takes the whole group down, so that no encoder or browser outlives its job.
`Parent` is for the one process that forks workers: it has no loop and no thread (asserted before each fork), sleeps
in one system call and hears of two things, a child that ended and a signal that asks. In the simulator programs do
not exist: `start` raises Unavailable there.
"""

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import sys
import threading
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import NotFound, Unavailable

LINE_MAX = 64 * 1024  # a longer line is cut: a program's output must not fill our memory
CHUNK = 64 * 1024
GRACE_S = 5.0
ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

MIB = 1 << 20

T = TypeVar("T")
OnLine = Callable[[str], None]


class Child:
    """A running program and everything it started. Its output is read from the start, whether or not anybody waits."""

    def __init__(self, process: asyncio.subprocess.Process, on_line: OnLine | None) -> None:
        self._process = process
        self.pid = process.pid
        self._ended = asyncio.get_running_loop().create_task(self._run(on_line), name=f"program {process.pid}")

    async def wait(self) -> int:
        """The exit code once it ended, -N after signal N; what `on_line` raised. Kills the group when cancelled."""
        try:
            return await asyncio.shield(self._ended)
        except asyncio.CancelledError:
            self.kill()
            await asyncio.wait([self._ended])
            raise

    async def stop(self, grace_s: float = GRACE_S) -> int:
        """Ask the group to end, kill it after `grace_s`; returns the exit code."""
        self.terminate()
        await asyncio.wait([self._ended], timeout=grace_s)
        self.kill()
        return await self.wait()

    def terminate(self) -> None:
        """Ask the whole group to end; does nothing when it has ended."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the whole group at once; does nothing when it has ended."""
        self._signal(signal.SIGKILL)

    def suspend(self) -> None:
        """Freeze the whole group (a hung server, as a drill); `resume` lets it go on."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    async def _run(self, on_line: OnLine | None) -> int:
        try:
            if on_line is not None:
                await self._read(on_line)
        except BaseException:
            self.kill()
            await self._process.wait()
            raise
        return await self._process.wait()

    async def _read(self, on_line: OnLine) -> None:
        stream = self._process.stdout
        assert stream is not None
        rest = b""
        while chunk := await stream.read(CHUNK):
            # A carriage return ends a line too: that is how programs draw progress.
            *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
            for line in lines:
                if line:
                    on_line(line[:LINE_MAX].decode(errors="replace"))
            rest = rest[:LINE_MAX]
        if rest:
            on_line(rest.decode(errors="replace"))


async def start(
    argv: Sequence[str],
    *,
    on_line: OnLine | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    nice: int = 0,
) -> Child:
    """Start a program; `on_line` gets its output and errors, without it both are thrown away. `env` is added to ours.

    Raises NotFound when there is no such program. Its standard input is empty.
    """
    if hasattr(asyncio.get_running_loop(), "blocking_inline"):
        raise Unavailable(f"no programs in the simulator: {argv[0]}", code="simulated")
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=DEVNULL,
            stdout=DEVNULL if on_line is None else PIPE,
            stderr=DEVNULL if on_line is None else STDOUT,
            env=os.environ | env if env is not None else None,
            cwd=cwd,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise NotFound(f"no such program or folder: {error.filename or argv[0]}", code="no_program") from error
    if nice:
        with contextlib.suppress(OSError):  # a program that ended at once, or a system that forbids it
            os.setpriority(os.PRIO_PROCESS, process.pid, nice)
    return Child(process, on_line)


async def output(argv: Sequence[str], *, cwd: str | Path | None = None) -> tuple[int, str]:
    """Run a program that says little: its exit code and what it printed, cut at 1 MiB."""
    lines: list[str] = []
    size = 0

    def take(line: str) -> None:
        nonlocal size
        size += len(line)
        if size < 1 << 20:
            lines.append(line)

    child = await start(argv, on_line=take, cwd=cwd)
    return await child.wait(), "\n".join(lines)


def find_program(name: str) -> str | None:
    """The path of a program on PATH, None without it."""
    return shutil.which(name)


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs a module in a Python of its own, the current folder not on its path."""
    return [sys.executable, "-P", "-m", module, *arguments]


def become(argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> None:
    """Replace this process by another program; `env` is added to ours. Returns only by raising OSError."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(argv[0], list(argv), os.environ | (env or {}))  # noqa: S606 - that is the purpose


def pause(seconds: float) -> None:
    """Sleep in a process that has no loop."""
    clock.pause(seconds)


def signal_process(pid: int, number: signal.Signals) -> None:
    """Signal any process of this user, also oneself; raises ProcessLookupError when there is none."""
    os.kill(pid, number)


def run_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop where it is installed, else on asyncio's own loop."""
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with contextlib.suppress(ImportError):
        import uvloop  # noqa: PLC0415 - an extra

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)


def memory_mb() -> float:
    """Resident memory of this process."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize() / MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def own_pid() -> int:
    return os.getpid()


def is_alive(pid: int) -> bool:
    """Whether a process of this number exists now, ours or not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class Ended(msgspec.Struct, frozen=True):
    """A worker is gone: `code` is its exit code, or -N after signal N."""

    pid: int
    code: int


class Asked(msgspec.Struct, frozen=True):
    """Someone sent this process a signal."""

    signal: signal.Signals


class Parent:
    """The process that forks workers and waits for them. Use as a context: the signals it waits for are held back.

    Cost: nothing between events; `wait` sleeps in the kernel.
    """

    def __init__(self) -> None:
        self._before: set[int] = set()
        self._workers: set[int] = set()

    def __enter__(self) -> Self:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, *ASKING})
        self._before = {int(number) for number in before}
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self._workers:
            self.send(pid, signal.SIGKILL)
        while self._workers:
            self._reap(block=True)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

    def fork(self, work: Callable[[], int]) -> int:
        """Run `work` in a new process whose exit code is what it returns; the parent gets the pid at once."""
        assert threading.active_count() == 1, "a process with threads must not fork"
        assert asyncio._get_running_loop() is None, "a process with a loop must not fork"  # noqa: SLF001 - no public way asks without raising
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            self._workers.add(pid)
            return pid
        code = 1
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._before)
            self._workers.clear()
            code = work()
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
        except BaseException:  # noqa: BLE001 - the last frame of the child: told, then gone
            sys.excepthook(*sys.exc_info())
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def wait(self, timeout_s: float) -> Ended | Asked | None:
        """The next worker that ended or signal that asked, None after `timeout_s`."""
        until_s = clock.monotonic_s() + timeout_s
        while (ended := self._reap(block=False)) is None:
            left_s = until_s - clock.monotonic_s()
            heard = signal.sigtimedwait({signal.SIGCHLD, *ASKING}, max(left_s, 0.0))
            if heard is not None and heard.si_signo != signal.SIGCHLD:
                return Asked(signal.Signals(heard.si_signo))
            if heard is None and left_s <= 0:
                return None
            # A SIGCHLD may be left from a worker that was reaped before: look again and wait on.
        return ended

    def send(self, pid: int, number: signal.Signals) -> None:
        """Signal a worker of ours; does nothing when it has ended."""
        if pid in self._workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _reap(self, *, block: bool) -> Ended | None:
        if not self._workers:
            return None
        pid, status = os.waitpid(-1, 0 if block else os.WNOHANG)
        if pid == 0:
            return None
        self._workers.discard(pid)
        return Ended(pid, os.waitstatus_to_exitcode(status))

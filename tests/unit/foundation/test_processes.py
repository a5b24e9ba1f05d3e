"""Programs and workers: output by line, nothing left behind, a parent that hears who ended."""

import asyncio
import os
import select
import signal
import sys

import pytest

from fourplane.foundation import processes
from fourplane.foundation.errors import NotFound

PYTHON = sys.executable


def run(code: str, **options):
    lines: list[str] = []

    async def main() -> int:
        child = await processes.start([PYTHON, "-c", code], on_line=lines.append, **options)
        return await child.wait()

    return asyncio.run(main()), lines


def test_output_and_errors_arrive_by_line_and_the_exit_code_is_returned():
    code, lines = run("import sys; print('one', flush=True); sys.stderr.write('two\\rthree'); sys.exit(3)")
    assert (code, lines) == (3, ["one", "two", "three"])


def test_a_line_without_end_is_cut():
    code, lines = run(f"print('x' * {processes.LINE_MAX * 5})")
    assert code == 0
    assert all(len(line) <= processes.LINE_MAX for line in lines)


def test_added_environment_and_folder_reach_the_program(tmp_path):
    _, lines = run(
        "import os; print(os.environ['SEEN'], os.getcwd(), 'PATH' in os.environ)", env={"SEEN": "yes"}, cwd=tmp_path
    )
    assert lines == [f"yes {tmp_path} True"]


def test_a_nice_program_steps_back():
    _, lines = run("import os\nwhile os.getpriority(os.PRIO_PROCESS, 0) != 7: pass\nprint('nice')", nice=7)
    assert lines == ["nice"]


def test_no_such_program_is_named():
    with pytest.raises(NotFound, match="no-such-program"):
        asyncio.run(processes.start(["no-such-program"]))


def test_cancelled_waiting_kills_the_program_and_its_children():
    spawning = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'while True: input()'], stdin=subprocess.PIPE);"
        "print(child.pid, flush=True); child.wait()"
    )

    async def main() -> tuple[int, int]:
        grandchild: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        child = await processes.start([PYTHON, "-c", spawning], on_line=lambda line: grandchild.set_result(int(line)))
        waiting = asyncio.ensure_future(child.wait())
        ending = os.pidfd_open(await grandchild)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return child.pid, ending

    child, ending = asyncio.run(main())
    assert not processes.is_alive(child)
    ended, _, _ = select.select([ending], [], [], 20)  # readable as soon as the process has ended
    os.close(ending)
    assert ended


def test_a_program_that_ignores_the_request_is_killed_after_the_grace():
    async def main() -> int:
        ready = asyncio.Event()
        stubborn = (
            "import signal; signal.signal(15, signal.SIG_IGN); print('ready', flush=True)\nwhile True: signal.pause()"
        )
        child = await processes.start([PYTHON, "-c", stubborn], on_line=lambda _: ready.set())
        await ready.wait()
        return await child.stop(grace_s=0.05)

    assert asyncio.run(main()) == -signal.SIGKILL


def test_small_output_is_returned_whole():
    assert asyncio.run(processes.output([PYTHON, "-c", "print('a'); print('b')"])) == (0, "a\nb")


PARENT = """
import os, signal
from fourplane.foundation.processes import Asked, Ended, Parent
def crash(): raise RuntimeError("worker broke")
with Parent() as parent:
    seven = parent.fork(lambda: 7)
    ended = [parent.wait(20)]
    broken = parent.fork(crash)
    ended.append(parent.wait(20))
    idle = parent.fork(lambda: signal.pause() or 0)
    parent.send(idle, signal.SIGTERM)
    ended.append(parent.wait(20))
    print([event.code for event in ended], [event.pid for event in ended] == [seven, broken, idle])
    os.kill(os.getpid(), signal.SIGTERM)
    print(parent.wait(20).signal.name, parent.wait(0))
    left = parent.fork(lambda: signal.pause() or 0)
try:
    os.kill(left, 0)
except ProcessLookupError:
    print("nobody left")
"""


def test_the_parent_hears_of_each_ended_worker_and_each_signal_and_leaves_nobody_behind():
    code, lines = run(PARENT)
    assert code == 0, lines
    assert [line for line in lines if line[0] != " " and "Traceback" not in line] == [
        "RuntimeError: worker broke",
        "[7, 1, -15] True",
        "SIGTERM None",
        "nobody left",
    ]


def test_a_process_with_threads_must_not_fork():
    code, lines = run(
        "import threading\nfrom fourplane.foundation.processes import Parent\n"
        "stop = threading.Event(); threading.Thread(target=stop.wait).start()\n"
        "try:\n Parent().fork(lambda: 0)\nexcept AssertionError as no: print(no)\nfinally: stop.set()"
    )
    assert (code, lines) == (0, ["a process with threads must not fork"])


def test_an_error_in_the_reader_ends_the_program_and_reaches_the_waiter():
    def refuse(line: str) -> None:
        raise ValueError(line)

    async def main() -> int:
        child = await processes.start(
            [PYTHON, "-c", "print('bad', flush=True); input()\nwhile True: pass"], on_line=refuse
        )
        with pytest.raises(ValueError, match="bad"):
            await child.wait()
        return child.pid

    assert not processes.is_alive(asyncio.run(main()))

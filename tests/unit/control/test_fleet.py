import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from fourplane.control.fleet import Fleet, FleetSettings, Port, bind_ports
from fourplane.foundation.errors import Misconfigured

# A whole deployment in one program: its workers answer their pid on a port, and do what they are told there.
PROGRAM = """
import asyncio, os, signal, sys, json
from fourplane.service.restart_intensity import IntensitySettings
from fourplane.control.fleet import Fleet, FleetSettings, Port, serve_until_asked
from fourplane.foundation import network
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry

class Answering(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        match data.strip():
            case b"pid":
                self.transport.write(f"{os.getpid()}\\n".encode())
            case b"die":
                os.kill(os.getpid(), signal.SIGKILL)
            case b"stop":
                WORKER.stop_fleet()

AGAIN = []  # what the parent said of starting a worker again, before it forked it

def tell(line):
    AGAIN.extend(["again"] * line.count("starting it again"))
    print(line, flush=True)

class Listener:
    async def start(self, tasks):
        if "late" in sys.argv and len(AGAIN) == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        self.server = await network.listen(Answering, "", 0, inherited=WORKER.sockets["http"])
    async def drain(self):
        self.server.close()
    async def stop(self):
        os.write(1, f"worker {WORKER.slot} stopped\\n".encode())  # one write: two workers say it at the same moment

def body(worker):
    global WORKER
    WORKER = worker
    if "misconfigured" in sys.argv:
        from fourplane.foundation.errors import Misconfigured
        raise Misconfigured("this cannot work")
    lifecycle = Lifecycle(Registry())
    lifecycle.add("listener", Listener())
    port = worker.sockets["http"].getsockname()[1]
    return asyncio.run(serve_until_asked(worker, lifecycle, lambda: {"port": str(port)}))

fleet = Fleet(
    [Port("http", "127.0.0.1", 0, "http.port")], body, say=tell,
    settings=FleetSettings(
        workers=2, hung_s=0.8 if "hung" in sys.argv else 30, restarts=IntensitySettings(count_max=3, period_s=60)
    ),
    preload=["msgspec"], on_ready=lambda facts: print("ready " + json.dumps(facts), flush=True),
)
sys.exit(fleet.run())
"""


@pytest.fixture
def deployment(tmp_path):
    """Start the program; yields (lines, port, pid, wait for its exit code)."""
    program = tmp_path / "deployment.py"
    program.write_text(PROGRAM)
    started = []

    def start(*arguments):
        reading, writing = os.pipe()
        environment = dict(os.environ, PYTHONPATH="src")
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, str(program), *arguments],
            environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, writing, 1)],
            setsigmask=[],
        )
        os.close(writing)
        started.append(pid)
        return pid, os.fdopen(reading)

    yield start
    for pid in started:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def ready(lines):
    for line in lines:
        if line.startswith("ready "):
            return int(json.loads(line[6:])[0]["port"])
    raise AssertionError("never ready")


def say(port, word):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(word + b"\n")
        return connection.recv(100)


def workers_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_two_workers_share_a_port_and_stop_in_order_when_asked(deployment):
    pid, lines = deployment()
    port = ready(lines)
    pids = {int(say(port, b"pid")) for _ in range(40)}
    assert pids <= set(workers_of(pid))
    os.kill(pid, signal.SIGTERM)
    assert sorted(lines.read().split("\n")) == ["", "worker 0 stopped", "worker 1 stopped"]
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    for worker in pids:
        assert not Path(f"/proc/{worker}").exists(), "no worker and no zombie is left"


def test_killed_worker_comes_back_on_its_own_socket(deployment):
    pid, lines = deployment()
    port = ready(lines)
    before = set(workers_of(pid))
    say(port, b"die")
    assert "starting it again" in lines.readline()
    for _ in range(20):
        assert int(say(port, b"pid")) in workers_of(pid), "connections wait for the new worker, none is refused"
    assert len(before & set(workers_of(pid))) == 1
    os.kill(pid, signal.SIGINT)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_worker_that_stands_still_is_killed_and_replaced(deployment):
    pid, lines = deployment("hung")
    port = ready(lines)
    stopped = int(say(port, b"pid"))
    os.kill(stopped, signal.SIGSTOP)
    assert "stood still" in lines.readline()
    assert "starting it again" in lines.readline()
    for _ in range(20):
        assert int(say(port, b"pid")) != stopped
    os.kill(pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_worker_that_stands_still_while_it_starts_is_not_waited_for_either(deployment):
    pid, lines = deployment("hung", "late")
    port = ready(lines)
    say(port, b"die")
    assert "starting it again" in lines.readline()
    assert "stood still" in lines.readline()
    assert "starting it again" in lines.readline()
    for _ in range(20):
        assert int(say(port, b"pid")) in workers_of(pid)
    os.kill(pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_worker_that_keeps_dying_ends_the_fleet(deployment):
    pid, lines = deployment()
    port = ready(lines)
    for _ in range(3):
        say(port, b"die")
        assert "starting it again" in lines.readline()
    say(port, b"die")
    assert "more than 3 restarts within 60 s: stopping" in lines.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 70


def test_stop_asked_by_a_worker_stops_everything(deployment):
    pid, lines = deployment()
    say(ready(lines), b"stop")
    assert lines.read().count("stopped") == 2
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_workers_go_with_a_killed_parent(deployment):
    pid, lines = deployment()
    ready(lines)
    os.kill(pid, signal.SIGKILL)
    assert lines.read().count("stopped") == 2, "the kernel tells them, and they stop in order"


def test_worker_that_cannot_start_ends_the_fleet_with_its_exit_code(deployment):
    pid, lines = deployment("misconfigured")
    told = lines.read()
    assert "this cannot work" in told
    assert "could not start: exit code 2" in told
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2


def test_busy_port_is_one_line_with_port_setting_and_owner():
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Misconfigured) as busy:
            bind_ports([Port("http", "127.0.0.1", port, "http.port")], 2)
    assert str(port) in busy.value.message
    assert "http.port" in busy.value.message
    assert f"pid {os.getpid()}" in busy.value.message
    assert "\n" not in busy.value.message


def test_every_slot_has_its_own_socket_on_the_same_port():
    bound = bind_ports([Port("a", "127.0.0.1", 0, "a.port"), Port("b", "127.0.0.1", 0, "b.port")], 3)
    ports = [{name: one.getsockname()[1] for name, one in sockets.items()} for sockets in bound]
    assert ports[0] == ports[1] == ports[2]
    assert len(ports[0]) == 2
    for sockets in bound:
        for one in sockets.values():
            one.close()


def test_no_workers_are_misconfigured():
    with pytest.raises(Misconfigured):
        Fleet([], lambda _: 0, say=print, settings=FleetSettings(workers=0))


def test_parent_with_an_open_database_must_not_fork(tmp_path):
    from fourplane.control.fleet import assert_may_fork

    with (tmp_path / "orders.db").open("w"), pytest.raises(AssertionError):
        assert_may_fork()

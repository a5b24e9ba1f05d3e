"""A whole deployment as a person starts it: `fourplane up` in a process of its own, on free ports, in a folder of its own."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys

READY_S = 60
VERB_S = 90
STOP_S = 30
FREE_PORTS = {
    "FOURPLANE_MESSAGING__PORT": "0",
    "FOURPLANE_MESSAGING__TLS_PORT": "0",
    "FOURPLANE_STREAMING__ORIGIN_PORT": "0",
    "FOURPLANE_STREAMING__CDN_PORT": "0",
    "FOURPLANE_DISPATCH__FEED__PORT": "0",
}
SHORT_FILM = {"FOURPLANE_STREAMING__ENCODING__DURATION_S_MAX": "4", "FOURPLANE_STREAMING__ENCODING__RUNGS_MAX": "2"}


@contextlib.contextmanager
def deployment(folder, *systems, settings=None, extra=()):
    """The facts `up --json` prints once everything serves: address, operator link, ports."""
    command = [sys.executable, "-P", "-m", "fourplane", "up", *systems, "--port", "0", "--data", str(folder), "--json"]
    environment = {**os.environ, **FREE_PORTS, **(settings or {})}
    process = subprocess.Popen(
        [*command, *extra],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=folder.parent,
        start_new_session=True,
    )
    try:
        ready, _, _ = select.select([process.stdout], [], [], READY_S)
        line = process.stdout.readline() if ready else ""
        assert line, f"not up within {READY_S} s: {stopped(process)}"
        facts = json.loads(line)
        assert "error" not in facts, facts
        yield {**facts, "pid": process.pid}
    finally:
        stopped(process)


def stopped(process):
    """Ask it to end as Ctrl-C does; its exit code and what it complained about."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        _, errors = process.communicate(timeout=STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        _, errors = process.communicate()
    return process.returncode, errors


def said(folder, *arguments, typed="", settings=None):
    """What a verb answers a person whose deployment lies in `folder`: exit code, output, complaints."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "fourplane", *arguments],
        input=typed, capture_output=True, text=True, timeout=VERB_S, check=False, cwd=folder.parent,
        env={**os.environ, **FREE_PORTS, **(settings or {}), "FOURPLANE_DATA": str(folder)},
    )  # fmt: skip


def listening_ports(pid):
    """Every TCP port on which a process listens."""
    sockets = set()
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            sockets.add(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
    with open("/proc/net/tcp", encoding="ascii") as file:
        rows = [line.split() for line in file.readlines()[1:]]
    return sorted({int(row[1][-4:], 16) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets})


def worker_of(pid):
    """The pid of the first worker of a deployment."""
    return workers_of(pid)[0]


def workers_of(pid):
    """The pids of the workers of a deployment, oldest first."""
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(child) for child in file.read().split()]

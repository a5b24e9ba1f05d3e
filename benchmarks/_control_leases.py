"""Experiments whose runners are killed at some moment: how many of their faults are left once their leases are over.

Each runner is a process (`tests/failure/workers/abandoned.py`) that begins a fault of some kind and renews it until it dies; it
is killed at a moment of the machine's own, by SIGKILL, SIGTERM or SIGINT.
"""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import chaos

from fourplane.service import control_socket

RUNNER = Path(__file__).parents[1] / "tests" / "failure" / "workers" / "abandoned.py"
EXPERIMENTS, AT_ONCE = 200, 20
OVER_S = 12.0  # the leases of the last one, and the change that lapses
DEATHS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def killed_experiments() -> tuple[int, int]:
    """How many were begun and killed, and how many faults and changed values are left of them."""
    with tempfile.TemporaryDirectory(prefix="fourplane-bench-") as folder, chaos.deployment(Path(folder), "commerce"):
        door = Path(folder) / "data" / "control.sock"
        draw = random.Random(7)
        for first in range(0, EXPERIMENTS, AT_ONCE):
            command = [sys.executable, "-P", str(RUNNER), str(door), str(first), str(AT_ONCE)]
            with subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | chaos.FREE_PORTS
            ) as runners:
                assert runners.stdout is not None
                for number in range(AT_ONCE):
                    pid = int(runners.stdout.readline())
                    if number % 3 == 0:
                        time.sleep(draw.random() * 0.1)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, draw.choice(DEATHS))
        until_s = time.monotonic() + OVER_S
        while (left := _left(door)) and time.monotonic() < until_s:
            time.sleep(0.2)
    return EXPERIMENTS, left


def _left(door: Path) -> int:
    found = asyncio.run(control_socket.ask(door, "faults", {"order": "incident", "since_s": 0.0}))
    return len(found["faults"]) + sum(value != found["usual"][name] for name, value in found["values"].items())

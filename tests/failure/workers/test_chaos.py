"""A person breaks a running deployment by an experiment file: it heals, nothing is left, and there is a report to send."""

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.journeys.console.deployment import deployment, said

from fourplane.service import control_socket

DEATH = {
    "title": "the shop's process dies",
    "description": "The shop dies for a second while people buy; afterwards it sells again.",
    "steady-state-hypothesis": {
        "title": "the shop sells",
        "probes": [
            {
                "type": "probe",
                "name": "nearly everything is served",
                "tolerance": {"type": "range", "range": [0.9, 1.0]},
                "provider": {
                    "type": "python",
                    "module": "fourplane.simulator.probes",
                    "func": "availability",
                    "arguments": {"window_s": 2.0},
                },
            }
        ],
    },
    "method": [
        {
            "type": "action",
            "name": "death",
            "provider": {
                "type": "python",
                "module": "fourplane.simulator.faults",
                "func": "instance_loss",
                "arguments": {"duration_s": 1.0},
            },
        }
    ],
    "rollbacks": [],
    "extensions": [{"name": "x-fourplane", "system": "commerce", "people": 5, "duration_s": 2.0, "warm_up_s": 10.0}],
}


ABANDONED = Path(__file__).with_name("abandoned.py")
AT_ONCE = 20
LEFT_S = 12  # the leases of the last one, and the change that lapses


def faults(folder, **arguments):
    return asyncio.run(control_socket.ask(folder / "control.sock", "faults", arguments))


def abandon(folder, count):
    """Begin as many experiments and kill each at some moment; what is left of them once the leases are over."""
    draw = random.Random(7)
    for first in range(0, count, AT_ONCE):
        command = [
            sys.executable,
            "-P",
            ABANDONED,
            folder / "control.sock",
            str(first),
            str(min(AT_ONCE, count - first)),
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as runners:
            for number in range(min(AT_ONCE, count - first)):
                pid = int(runners.stdout.readline())
                if number % 3 == 0:
                    time.sleep(draw.random() * 0.1)  # a moment of the machine's own, at which they die
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, draw.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)))
    until = time.monotonic() + LEFT_S
    while time.monotonic() < until:
        left = faults(folder, order="incident", since_s=0.0)
        if not left["faults"] and left["values"] == left["usual"]:
            break
        time.sleep(0.2)
    return left["faults"], {name: value for name, value in left["values"].items() if value != left["usual"][name]}


def test_a_process_dies_while_people_buy_and_the_shop_sells_again(tmp_path):
    file, report = tmp_path / "death.json", tmp_path / "report.html"
    file.write_text(json.dumps(DEATH))
    with deployment(tmp_path / "data", "commerce"):
        told = said(tmp_path / "data", "chaos", str(file), "--report", str(report), "--json")
        assert told.returncode == 0, told.stderr + told.stdout
        journal = json.loads(told.stdout)
        assert (journal["status"], journal["deviated"]) == ("completed", False)
        assert [entry["status"] for entry in journal["run"]] == ["succeeded"]
        assert "death" in report.read_text()
        left = said(tmp_path / "data", "chaos", "--halt", "--json")
        assert json.loads(left.stdout) == {"ended": 0}
        assert abandon(tmp_path / "data", 20) == ([], {})
        refused = said(tmp_path / "data", "chaos", "streaming-narrow-link")
        assert (refused.returncode, "only a simulated world" in refused.stderr) == (2, True)


@pytest.mark.slow
def test_two_hundred_experiments_that_were_killed_leave_nothing(tmp_path):
    with deployment(tmp_path / "data", "commerce"):
        assert abandon(tmp_path / "data", 200) == ([], {})
        told = said(tmp_path / "data", "chaos", "commerce-instance-loss", "--json")
        assert json.loads(told.stdout).get("status") == "completed", told.stdout[:2_000]

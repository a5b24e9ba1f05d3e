"""A new version takes the sockets of the old one while requests run: none is refused, none is lost."""

import asyncio
import json
import os
import select
import subprocess
import sys
from pathlib import Path

from tests.journeys.console.deployment import FREE_PORTS, deployment, stopped

from fourplane.edge.http_client import HttpClient, HttpClientSettings
from fourplane.foundation.errors import FourplaneError

BOUND_S = 90
SETTINGS = {
    "FOURPLANE_GATEWAY__RATE_PER_S": "100000",
    "FOURPLANE_HTTP__UNASKED_S": "12",  # a visitor of a machine that stands still asks late, and is waited for
}
PATHS = ("/commerce/api/products", "/api/session", "/healthz", "/messaging/api/configuration")


def successor(folder):
    """Start the next version on the same folder."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "fourplane", "up", "commerce", "messaging", "--port", "0", "--workers", "2",
         "--data", str(folder), "--json", "--takeover"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **FREE_PORTS, **SETTINGS},
        cwd=folder.parent, start_new_session=True,
    )  # fmt: skip


async def visit(port, over, counts):
    """One visitor, a new connection for every request, until it is over."""
    number = 0
    while not over.is_set():
        number += 1
        client = HttpClient("127.0.0.1", port, settings=HttpClientSettings(connections_max=1))
        try:
            answer = await client.request("GET", PATHS[number % len(PATHS)], timeout_s=BOUND_S)
            counts[answer.status] = counts.get(answer.status, 0) + 1
        except FourplaneError as error:
            counts[str(error)] = counts.get(str(error), 0) + 1
        client.close()
        await asyncio.sleep(0.01)


async def ready(process):
    """The facts a deployment prints when it serves."""
    while not select.select([process.stdout], [], [], 0)[0]:
        await asyncio.sleep(0.02)
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return json.loads(line)


def test_requests_run_through_a_change_of_version(tmp_path):
    folder = tmp_path / "data"
    with deployment(folder, "commerce", "messaging", settings=SETTINGS, extra=("--workers", "2")) as facts:
        port = int(facts["http_port"])

        async def main():
            over, counts = asyncio.Event(), {}
            visitors = [asyncio.create_task(visit(port, over, counts)) for _ in range(8)]
            await asyncio.sleep(0.3)
            before = sum(counts.values())
            process = successor(folder)
            try:
                async with asyncio.timeout(BOUND_S):
                    told = await ready(process)
                    behind = sum(counts.values()) + 40
                    while sum(counts.values()) < behind:
                        await asyncio.sleep(0.02)
                over.set()
                await asyncio.gather(*visitors)
            finally:
                over.set()
                code, errors = await asyncio.to_thread(stopped, process)
            assert code == 0, errors
            assert "took" in errors
            return before, counts, told

        before, counts, told = asyncio.run(main())
        assert set(counts) == {200}, counts
        assert before > 0
        assert int(told["http_port"]) == port
        assert (
            not Path(f"/proc/{facts['pid']}").exists()
            or Path(f"/proc/{facts['pid']}/stat").read_text().split()[2] == "Z"
        )


def test_takeover_of_an_empty_folder_is_a_start(tmp_path):
    folder = tmp_path / "data"
    with deployment(folder, "messaging", extra=("--takeover",)) as facts:
        assert int(facts["http_port"]) > 0

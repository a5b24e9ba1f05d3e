"""People come, talk, join rooms, break off and leave, again and again: memory stays where it was (`--all`).

Half an hour in virtual time, where every allocation is counted; and a process on real sockets and disks, watched from outside
for `FOURPLANE_SOAK_MINUTES` minutes (20 when nothing is said; the first 40% warm it up).
"""

import asyncio
import contextlib
import gc
import json
import os
import random
import signal
import ssl
import sys
import tracemalloc
from pathlib import Path

import pytest
from tests.failure.messaging.soaked_server import small_records
from tests.protocol.messaging.test_client_streams import PASSWORD, in_virtual_time

from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError
from fourplane.simulator.crowds.messaging_client import XmppClient
from fourplane.state import stores

MINUTES = 30
REAL_MINUTES = float(os.environ.get("FOURPLANE_SOAK_MINUTES", "20"))
STEPS = 20  # points of the real process's line
AT_ONCE = 6  # people in it
NAMES = tuple(f"u{number}" for number in range(12))
ROOT = Path(__file__).parents[3]


async def visit(port, rng, name, tls=None):
    one = XmppClient(name, PASSWORD, resource=f"r{rng.randrange(3)}")
    one.on_stanza = lambda _stanza: None
    await one.connect("127.0.0.1", port, tls=tls)
    await one.login(manage=rng.random() < 0.5)
    for _ in range(rng.randint(1, 20)):
        one.message(f"{rng.choice(NAMES)}@localhost", "soak")
    room = f"r{rng.randrange(3)}@groups.localhost/{name}"
    one.send(f"<presence to='{room}'><x xmlns='http://jabber.org/protocol/muc'/></presence>".encode())
    await one.request("get", "<ping xmlns='urn:xmpp:ping'/>")
    await clock.sleep(rng.random() * 5)
    if rng.random() < 0.3:
        one.abort()
    else:
        await one.close()


@pytest.mark.slow
def test_memory_is_flat_after_half_an_hour(monkeypatch):
    monkeypatch.setattr(stores, "EmbeddedRecords", small_records)

    async def work(here):
        rng, line = random.Random(1), []
        tracemalloc.start()
        try:
            for minute in range(MINUTES):
                until = clock.monotonic_s() + 60
                while clock.monotonic_s() < until:
                    await visit(here.messaging.port, rng, rng.choice(NAMES))
                gc.collect()
                line.append(tracemalloc.get_traced_memory()[0])
                print(f"minute {minute + 1}: {line[-1] / 1024:,.0f} KiB")  # noqa: T201 - the memory line
        finally:
            tracemalloc.stop()
        return line

    line = in_virtual_time(work, users=NAMES, offline_max=50, resume_s=60.0, archive=False)
    assert max(line[-5:]) < 1.10 * max(line[8:13]), line


def resident_kib(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


@contextlib.asynccontextmanager
async def server(data):
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.failure.messaging.soaked_server", str(data), *NAMES,
        stdout=asyncio.subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": "src:."},
    )  # fmt: skip
    try:
        yield child.pid, json.loads(await child.stdout.readline())["port"]
    finally:
        child.send_signal(signal.SIGKILL)
        await child.wait()


async def people(port, rng, tls, visits):
    while True:
        with contextlib.suppress(FourplaneError):  # two with one name and resource: the later one replaces the earlier
            await visit(port, rng, rng.choice(NAMES), tls)
            visits.append(1)


@pytest.mark.slow
def test_memory_of_a_process_is_flat(tmp_path):
    async def main():
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        line, visits = [], []
        async with server(tmp_path) as (pid, port), asyncio.TaskGroup() as group:
            crowd = [group.create_task(people(port, random.Random(n), tls, visits)) for n in range(AT_ONCE)]
            for step in range(STEPS):
                await asyncio.sleep(REAL_MINUTES * 60 / STEPS)
                line.append(resident_kib(pid))
                print(f"{(step + 1) / STEPS:4.0%}: {line[-1]:,} KiB after {len(visits)} visits")  # noqa: T201
            for task in crowd:
                task.cancel()
        assert len(visits) > 10 * REAL_MINUTES
        return line

    line = asyncio.run(main())
    warm = line[2 * STEPS // 5 :]
    assert max(warm[len(warm) // 2 :]) < 1.05 * max(warm[: len(warm) // 2]), line

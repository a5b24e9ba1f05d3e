"""The disk under a whole deployment is full for a while: what was acknowledged and not refused is there afterwards."""

import asyncio
import contextlib
import os
import subprocess
import time

import pytest
from tests.failure.workers.test_rounds import SETTINGS
from tests.journeys.console.deployment import deployment
from tests.journeys.test_shards import HERE, THERE, online
from tests.journeys.test_workers import call, fresh_client, workers

from fourplane.service import control_socket
from fourplane.simulator.crowds.messaging_client import body_of

BOUND_S = 60
SIZE = "64m"


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own for the data folder."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", place]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("a small disk can only be mounted by root")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(disk):
    """Take all the room there is."""
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    with contextlib.suppress(OSError), (disk / "filler").open("ab", buffering=0) as file:
        while True:
            file.write(b"\0")


async def handled(client, count):
    """Wait a while for the server's count of handled stanzas; how many it is."""
    found, until = 0, time.monotonic() + 3
    while found < count and time.monotonic() < until:
        client.send(b"<r xmlns='urn:xmpp:sm:3'/>")
        with contextlib.suppress(TimeoutError):
            found = int((await client.next("urn:xmpp:sm:3 a", wait_s=1)).attributes["h"])
    return found


@pytest.mark.parametrize("receiver", [HERE[1], THERE[1]])
def test_a_full_disk_refuses_and_forgets_nothing(small_disk, receiver):
    folder = small_disk / "data"
    with deployment(folder, "messaging", settings=SETTINGS, extra=("--workers", "2")) as facts:
        accounts = asyncio.run(control_socket.ask(folder / "control.sock", "crowd", {"count": 12}))
        house = {**facts, "folder": folder, "port": int(facts["xmpp_port"]), "password": accounts[0][1]}
        children = workers(facts["pid"])

        async def main():
            texts, refused = {}, set()
            async with online(house, HERE[0], manage=True) as sender:
                for number in range(60):
                    if number == 20:
                        fill(small_disk)
                    if number == 40:
                        await handled(sender, 42)  # roster and presence are two of them
                        (small_disk / "filler").unlink()
                    ident = sender.message(f"{receiver}@localhost", f"text {number} " + "x" * 2_000)
                    texts[ident] = f"text {number}"
                    await asyncio.sleep(0)
                until = time.monotonic() + BOUND_S
                while (count := await handled(sender, 62)) < 62 and time.monotonic() < until:
                    pass
                with contextlib.suppress(TimeoutError):
                    while True:
                        answer = await sender.next(wait_s=0.2)
                        refused.add(texts[answer.attributes["id"]])
            assert count == 62, "everything is answered once there is room"
            wanted = set(texts.values()) - refused
            assert {f"text {number}" for number in range(20)} <= wanted, "there was room for these"
            got = set()
            async with online(house, receiver) as reader:
                with contextlib.suppress(TimeoutError):
                    while wanted - got:
                        got.add(" ".join(body_of(await reader.next(wait_s=5)).split()[:2]))
            assert not wanted - got
            client = fresh_client(house)
            assert (await call(client, "GET", "/readyz"))[0] == 200
            client.close()

        asyncio.run(main())
        assert set(workers(facts["pid"])) == set(children), "no worker died of it"

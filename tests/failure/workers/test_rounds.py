"""Workers of a whole deployment die, stand still and begin anew while people write to each other and buy things.

What was acknowledged is there afterwards, once; no shard ever has two owners. A few rounds here, a hundred with `--all`.
"""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from tests.journeys.console.deployment import FREE_PORTS, deployment, stopped
from tests.journeys.test_shards import HERE, THERE, heard, online
from tests.journeys.test_workers import _order, _skus, call, fresh_client, workers

from fourplane.foundation.errors import FourplaneError
from fourplane.service import control_socket
from fourplane.simulator.crowds.messaging_client import body_of

BOUND_S = 60
SETTINGS = {
    "FOURPLANE_GATEWAY__RATE_PER_S": "100000",
    "FOURPLANE_MESSAGING__TLS_REQUIRED": "false",
    "FOURPLANE_MESSAGING__ARCHIVE": "false",
    "FOURPLANE_FLEET__HUNG_S": "1.5",
    "FOURPLANE_FLEET__RESTARTS__COUNT_MAX": "1000",
}
PLACED = {**SETTINGS, "FOURPLANE_FLEET__PLACEMENT": "{commerce = 1, messaging = 0}"}
HARMS = ("kill", "stop", "pause")


def owner_of(house, shard):
    return int(json.loads((house["folder"] / "workers" / f"{shard}.lock").read_bytes().rstrip(b"\0"))["pid"])


async def harm(house, how, slot):
    """Hurt the worker in a slot: killed, standing still until it is killed for it, or paused for a moment."""
    pid = owner_of(house, "messaging" if slot == 0 else "messaging-1")
    if how == "kill":
        os.kill(pid, signal.SIGKILL)
    else:
        os.kill(pid, signal.SIGSTOP)
        if how == "pause":
            await asyncio.sleep(0.3)
            os.kill(pid, signal.SIGCONT)


async def send_many(house, sender, receiver, tag, count):
    """Send and note what was acknowledged; a sender whose own worker dies knows nothing of the rest."""
    acknowledged = 0
    try:
        async with online(house, sender, manage=True) as client:
            base = 2  # its roster and its presence
            for number in range(count):
                client.message(f"{receiver}@localhost", f"{tag} {number}")
                if number % 10 == 0:
                    await asyncio.sleep(0.01)
            until = time.monotonic() + BOUND_S
            while acknowledged < count and time.monotonic() < until:
                client.send(b"<r xmlns='urn:xmpp:sm:3'/>")
                handled = int((await client.next("urn:xmpp:sm:3 a", wait_s=BOUND_S)).attributes["h"])
                acknowledged = handled - base
                await asyncio.sleep(0.02)
    except (FourplaneError, TimeoutError, OSError):
        pass
    return acknowledged


async def arrived(house, name, wanted):
    """Everything that waits for a user, until all that is wanted came; how often each.

    The reader says what it has (stream management): what was on its way to one that left too early is sent again.
    """
    found = Counter()
    until = time.monotonic() + BOUND_S
    while set(wanted) - set(found) and time.monotonic() < until:
        try:
            async with online(house, name, resource="reader", manage=True) as client:
                while set(wanted) - set(found):
                    found[body_of(await client.next(wait_s=3))] += 1
        except (FourplaneError, TimeoutError, OSError):
            await asyncio.sleep(0.1)
    return found


async def one_round(house, number, rng):
    people = house["people"]
    sender, receiver = rng.sample(people, 2)
    how, slot = rng.choice(HARMS), rng.randrange(2)
    client = fresh_client(house, connections=8)
    orders = []

    async def buy(count):
        for one in range(count):
            try:
                orders.append(await _order(client, f"round-{number}-{one}", house["skus"]))
            except (FourplaneError, AssertionError):
                await asyncio.sleep(0.05)  # its connection was at the worker that died: nothing was promised

    tag = f"round {number} {how} {slot}"
    sending = asyncio.create_task(send_many(house, sender, receiver, tag, 60))
    buying = asyncio.create_task(buy(4))
    await asyncio.sleep(0.05 + rng.random() * 0.3)
    await harm(house, how, slot)
    acknowledged = await sending
    await buying
    found = await arrived(house, receiver, [f"{tag} {one}" for one in range(acknowledged)])
    missing = [one for one in range(acknowledged) if f"{tag} {one}" not in found]
    assert not missing, (tag, acknowledged, missing)
    for order, cart in orders:
        status, told = await call(client, "GET", f"/commerce/api/orders/{order}", x_cart=cart)
        assert (status, told.get("id")) == (200, order), told
    ids = [order for order, _ in orders]
    assert len(ids) == len(set(ids))
    client.close()
    return acknowledged


def run_rounds(folder, count):
    with deployment(folder, "commerce", "messaging", settings=PLACED, extra=("--workers", "2")) as facts:
        accounts = asyncio.run(control_socket.ask(folder / "control.sock", "crowd", {"count": 8}))
        house = {
            **facts, "folder": folder, "port": int(facts["xmpp_port"]), "password": accounts[0][1],
            "people": [name for name, _ in accounts],
        }  # fmt: skip

        async def main():
            client = fresh_client(house)
            house["skus"] = await _skus(client)
            client.close()
            rng = random.Random(count)
            return sum([await one_round(house, number, rng) for number in range(count)])

        acknowledged = asyncio.run(main())
        assert acknowledged > 0
        until = time.monotonic() + BOUND_S
        shards = ("commerce", "messaging", "messaging-1", "accounts")
        while time.monotonic() < until:  # the worker of the last round may still be starting
            living, owners = set(workers(facts["pid"])), {owner_of(house, shard) for shard in shards}
            if len(living) == 2 and owners <= living:
                break
            time.sleep(0.05)
        assert len(living) == 2
        assert owners <= living, "every shard has one owner, which lives"


def test_what_was_acknowledged_survives_harm_to_any_worker(tmp_path):
    run_rounds(tmp_path / "data", 3)


@pytest.mark.slow
def test_a_hundred_rounds(tmp_path):
    run_rounds(tmp_path / "data", 100)


def test_the_parent_dies_and_the_next_start_has_everything(tmp_path):
    folder = tmp_path / "data"
    with deployment(folder, "messaging", settings=SETTINGS, extra=("--workers", "2")) as facts:
        accounts = asyncio.run(control_socket.ask(folder / "control.sock", "crowd", {"count": 8}))
        house = {**facts, "folder": folder, "port": int(facts["xmpp_port"]), "password": accounts[0][1]}
        children = workers(facts["pid"])
        acknowledged = asyncio.run(send_many(house, HERE[0], THERE[0], "before", 20))
        assert acknowledged == 20
        os.kill(facts["pid"], signal.SIGKILL)
        until = time.monotonic() + BOUND_S
        while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < until:
            time.sleep(0.02)
        assert not [pid for pid in children if Path(f"/proc/{pid}").exists()], "workers go with their parent"
    with deployment(folder, "messaging", settings=SETTINGS, extra=("--workers", "2")) as facts:
        house |= {**facts, "port": int(facts["xmpp_port"])}

        async def main():
            async with online(house, THERE[0]) as reader:
                for number in range(20):
                    await heard(reader, f"before {number}")

        asyncio.run(main())


def test_a_second_start_on_the_same_folder_is_refused_with_pid_and_address(tmp_path):
    folder = tmp_path / "data"
    with deployment(folder, "messaging", settings=SETTINGS) as facts:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fourplane", "up", "messaging", "--port", "0", "--data", str(folder)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **FREE_PORTS},
        )  # fmt: skip
        _, errors = process.communicate(timeout=BOUND_S)
        assert process.returncode != 0
        assert str(facts["pid"]) in errors
        stopped(process)

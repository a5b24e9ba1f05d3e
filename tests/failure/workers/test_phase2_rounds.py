"""One process per service on PostgreSQL, Redis and S3: any of them, then their parent, is killed, stands still or is paused.

What was acknowledged is there afterwards, once, and in the parent's next start too.
"""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from tests.failure.workers.test_rounds import BOUND_S, arrived, send_many
from tests.journeys.console.deployment import deployment
from tests.journeys.test_phase2 import FILE, on_servers, owner_of, postgres, redis, s3
from tests.journeys.test_workers import _order, _skus, call, fresh_client, workers

from fourplane.foundation.errors import FourplaneError
from fourplane.service import control_socket

__all__ = ["on_servers", "postgres", "redis", "s3"]  # fixtures
HARMS = (
    ("kill", "messaging"),
    ("kill", "commerce"),
    ("stop", "messaging"),
    ("stop", "commerce"),
    ("pause", "messaging"),
    ("pause", "commerce"),
)
MESSAGES = 40
QUICK_TO_START_AGAIN = {"FOURPLANE_FLEET__HUNG_S": "1.5", "FOURPLANE_FLEET__RESTARTS__COUNT_MAX": "1000"}


async def harmed(house, how, shard):
    """Hurt the process of a service: killed, standing still until it is killed for it, or paused and late."""
    pid = owner_of(house, shard)
    if how == "kill":
        os.kill(pid, signal.SIGKILL)
        return
    os.kill(pid, signal.SIGSTOP)
    if how == "pause":
        await asyncio.sleep(0.6)
        os.kill(pid, signal.SIGCONT)


async def one_round(house, number, how, shard):
    """Orders and messages while one process is hurt; the orders that were confirmed, the messages that were acknowledged."""
    client = fresh_client(house, connections=4)
    orders = []

    async def buy():
        for one in range(4):
            try:
                orders.append(await _order(client, f"phase2-round-{number}-{one}", house["skus"]))
            except (FourplaneError, AssertionError):
                await asyncio.sleep(0.05)

    tag = f"{number} {how} {shard}"
    sending = asyncio.create_task(send_many(house, "crowd-1", "crowd-2", tag, MESSAGES))
    buying = asyncio.create_task(buy())
    await asyncio.sleep(0.1)
    await harmed(house, how, shard)
    acknowledged = await sending
    await buying
    client.close()
    return orders, [f"{tag} {one}" for one in range(acknowledged)]


async def everything_is_there(house, orders, messages):
    client = fresh_client(house)
    for order, cart in orders:
        status, told = await call(client, "GET", f"/commerce/api/orders/{order}", x_cart=cart)
        assert (status, told.get("id")) == (200, order), told
    client.close()
    assert len({order for order, _ in orders}) == len(orders)
    found = await arrived(house, "crowd-2", messages)
    assert [one for one in messages if not found[one]] == []
    assert [one for one in messages if found[one] > 1] == []


@pytest.mark.slow
def test_what_was_acknowledged_is_on_the_databases(tmp_path, on_servers):
    folder = tmp_path / "data"
    settings = on_servers | QUICK_TO_START_AGAIN

    def up():
        return deployment(folder, settings=settings, extra=("--config", str(FILE)))

    orders, messages = [], []
    with up() as facts:
        accounts = asyncio.run(control_socket.ask(folder / "control.sock", "crowd", {"count": 4}))
        house = {**facts, "folder": folder, "port": int(facts["xmpp_port"]), "password": accounts[0][1]}

        async def rounds():
            client = fresh_client(house)
            house["skus"] = await _skus(client)
            client.close()
            for number, (how, shard) in enumerate(HARMS):
                bought, told = await one_round(house, number, how, shard)
                await everything_is_there(house, bought, told)
                orders.extend(bought)
            messages.extend(f"unread {one}" for one in range(MESSAGES))
            assert await send_many(house, "crowd-1", "crowd-2", "unread", MESSAGES) == MESSAGES

        asyncio.run(rounds())
        assert orders
        children = workers(facts["pid"])
        os.kill(facts["pid"], signal.SIGKILL)
        until = time.monotonic() + BOUND_S
        while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < until:
            time.sleep(0.02)
        assert not [pid for pid in children if Path(f"/proc/{pid}").exists()], "workers go with their parent"
    with up() as facts:
        house |= {**facts, "port": int(facts["xmpp_port"])}
        asyncio.run(everything_is_there(house, orders, messages))

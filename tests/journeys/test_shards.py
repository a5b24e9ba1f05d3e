"""Two workers share the users of one domain: whoever has the connection, a session is where its user is, and nothing is lost."""

import asyncio
import contextlib
import json
import os
import signal
import ssl
import time
from pathlib import Path

import pytest
from tests.journeys.console.deployment import deployment

from fourplane.messaging.user_store import partition_of
from fourplane.service import control_socket
from fourplane.service.shards import ShardMap
from fourplane.simulator.crowds.messaging_client import XmppClient, body_of

WAIT_S = 30
PEOPLE = [f"crowd-{number}" for number in range(1, 13)]
SETTINGS = {"FOURPLANE_GATEWAY__RATE_PER_S": "100000", "FOURPLANE_MESSAGING__TLS_REQUIRED": "false"}
SLOTS = ShardMap(2, 2)


def slot_of(name):
    return SLOTS.slot_of(partition_of(f"{name}@localhost"))


HERE = [name for name in PEOPLE if slot_of(name) == 0]
THERE = [name for name in PEOPLE if slot_of(name) == 1]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards") / "data"
    with deployment(folder, "messaging", settings=SETTINGS, extra=("--workers", "2")) as facts:
        accounts = asyncio.run(control_socket.ask(folder / "control.sock", "crowd", {"count": len(PEOPLE)}, None))
        yield {**facts, "folder": folder, "port": int(facts["xmpp_port"]), "password": accounts[0][1]}


@contextlib.asynccontextmanager
async def online(pair, name, *, manage=False, tls=False, resource="crowd"):
    client = XmppClient(name, pair["password"], resource=resource)
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with asyncio.timeout(WAIT_S):
        await client.connect("127.0.0.1", pair["port"], tls=context)
        await client.login(manage=manage)
    try:
        yield client
    finally:
        await client.close()


async def heard(client, wanted):
    async with asyncio.timeout(WAIT_S):
        while True:
            stanza = await client.next(wait_s=WAIT_S)
            if body_of(stanza) == wanted:
                return stanza


def owner_of(pair, shard):
    return int(json.loads((pair["folder"] / "workers" / f"{shard}.lock").read_bytes().rstrip(b"\0"))["pid"])


def test_both_workers_own_a_shard(pair):
    assert HERE
    assert THERE
    assert owner_of(pair, "messaging") != owner_of(pair, "messaging-1")
    assert json.loads((pair["folder"] / "shards.json").read_text()) == {"messaging": 2}


@pytest.mark.parametrize("tls", [False, True])
def test_a_message_reaches_whoever_it_is_for(pair, tls):
    async def main():
        async with contextlib.AsyncExitStack() as stack:
            people = {name: await stack.enter_async_context(online(pair, name, tls=tls)) for name in PEOPLE}
            for sender, client in people.items():
                for receiver in PEOPLE:
                    client.message(f"{receiver}@localhost", f"{sender} to {receiver} {tls}")
            for receiver, client in people.items():
                wanted = {f"{sender} to {receiver} {tls}" for sender in PEOPLE}
                async with asyncio.timeout(WAIT_S):
                    while wanted:
                        wanted.discard(body_of(await client.next(wait_s=WAIT_S)))

    asyncio.run(main())


def test_messages_between_workers_keep_their_order_and_are_acknowledged(pair):
    async def main():
        async with online(pair, HERE[0], manage=True) as one, online(pair, THERE[0], manage=True) as other:
            for number in range(500):
                one.message(f"{THERE[0]}@localhost", f"number {number}")
            got = []
            async with asyncio.timeout(WAIT_S):
                while len(got) < 500:
                    body = body_of(await other.next(wait_s=WAIT_S))
                    if body.startswith("number"):
                        got.append(int(body.split()[1]))
            assert got == list(range(500))
            await one.request("get", "<ping xmlns='urn:xmpp:ping'/>")

    asyncio.run(main())


def test_what_came_in_absence_waits_in_the_other_worker(pair):
    async def main():
        async with online(pair, HERE[1]) as one:
            one.message(f"{THERE[1]}@localhost", "while you were away")
            await one.request("get", "<ping xmlns='urn:xmpp:ping'/>")
        async with online(pair, THERE[1]) as other:
            await heard(other, "while you were away")

    asyncio.run(main())


def test_an_error_comes_back_from_the_other_worker(pair):
    async def main():
        async with online(pair, HERE[0]) as one:
            nobody = next(f"nobody{n}" for n in range(100) if slot_of(f"nobody{n}") == 1)
            one.message(f"{nobody}@localhost", "anybody there?")
            async with asyncio.timeout(WAIT_S):
                answer = await one.next(wait_s=WAIT_S)
            assert answer.attributes["type"] == "error"

    asyncio.run(main())


def test_a_room_has_members_in_both_workers(pair):
    async def main():
        async with online(pair, HERE[0]) as one, online(pair, THERE[0]) as other:
            for number in range(2):  # one room in each shard
                room = next(f"room{number}{n}@groups.localhost" for n in range(100)
                            if SLOTS.slot_of(partition_of(f"room{number}{n}@groups.localhost")) == number)  # fmt: skip
                for client, nick in ((one, "Ada"), (other, "Grace")):
                    join = f"<presence to='{room}/{nick}'><x xmlns='http://jabber.org/protocol/muc'/></presence>"
                    client.send(join.encode())
                    async with asyncio.timeout(WAIT_S):
                        while b"<subject" not in (await client.next(wait_s=WAIT_S)).raw:
                            pass
                one.message(room, f"hello {room}", kind="groupchat")
                for client in (one, other):
                    await heard(client, f"hello {room}")

    asyncio.run(main())


def test_messages_wait_for_an_owner_that_is_killed(pair):
    async def main():
        async with online(pair, HERE[0], manage=True) as one:
            shard = "messaging" if slot_of(THERE[2]) == 0 else "messaging-1"
            before = owner_of(pair, shard)
            for number in range(100):
                one.message(f"{THERE[2]}@localhost", f"kept {number}")
                if number == 50:
                    os.kill(before, signal.SIGKILL)
                await asyncio.sleep(0)
            until = time.monotonic() + WAIT_S
            acknowledged = 0
            while acknowledged < 102 and time.monotonic() < until:  # roster and presence are two of them
                one.send(b"<r xmlns='urn:xmpp:sm:3'/>")
                acknowledged = int((await one.next("urn:xmpp:sm:3 a", wait_s=WAIT_S)).attributes["h"])
            assert acknowledged >= 102
        async with online(pair, THERE[2]) as other:
            got = set()
            async with asyncio.timeout(WAIT_S):
                while len(got) < 100:
                    got.add(body_of(await other.next(wait_s=WAIT_S)))
            assert got == {f"kept {number}" for number in range(100)}

    if Path("/proc").exists():
        asyncio.run(main())

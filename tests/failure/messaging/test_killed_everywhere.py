"""The whole process is killed at every point between accepting and delivering: what was acknowledged arrives, in order."""

import asyncio
import contextlib
import json
import os
import signal
import ssl
import sys

import pytest
from tests.failure.messaging.killed_server import POINTS
from tests.journeys.messaging.house import PASSWORD

from fourplane.foundation.errors import FourplaneError
from fourplane.simulator.crowds.messaging_client import XmppClient, body_of

WAIT_S = 30
MESSAGES = 24
ASK = b"<r xmlns='urn:xmpp:sm:3'/>"
HANDLED_BEFORE = 3  # roster, presence, ping


@contextlib.asynccontextmanager
async def server(data, point="accepted", count=0):
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.failure.messaging.killed_server", str(data), point, str(count),
        stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": "src:."},
    )  # fmt: skip
    try:
        async with asyncio.timeout(WAIT_S):
            told = json.loads(await child.stdout.readline())
        yield child, told["tls_port"]
    finally:
        if child.returncode is None:
            child.send_signal(signal.SIGKILL)
        await child.wait()


async def managed(name, port):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    one = XmppClient(name, PASSWORD)
    await one.connect("127.0.0.1", port, tls=tls, direct=True)
    await one.login(manage=True)
    await one.request("get", "<ping xmlns='urn:xmpp:ping'/>")
    return one


def bodies(one):
    return [body_of(stanza) for stanza in one.inbox if body_of(stanza)]


async def send_until_killed(alice, child):
    """All messages, two at a time, each pair with a request; how many the server said it has before it died."""
    acknowledged = 0
    async with asyncio.timeout(WAIT_S):
        with contextlib.suppress(FourplaneError):
            for number in range(0, MESSAGES, 2):
                alice.message("bob@localhost", f"{number}")
                alice.message("bob@localhost", f"{number + 1}")
                alice.send(ASK)
                acknowledged = (
                    int((await alice.next("urn:xmpp:sm:3 a", wait_s=WAIT_S)).attributes["h"]) - HANDLED_BEFORE
                )
        await child.wait()
    late = [int(one.attributes["h"]) - HANDLED_BEFORE for one in alice.inbox if one.name == "urn:xmpp:sm:3 a"]
    return max(0, acknowledged, *late)


@pytest.mark.parametrize("point", POINTS)
def test_killed_there_what_was_acknowledged_arrives_once_and_in_order(point, tmp_path):
    async def main():
        async with server(tmp_path, point, 7) as (child, port):
            bob = await managed("bob", port) if point == "delivered" else None
            alice = await managed("alice", port)
            acknowledged = await send_until_killed(alice, child)
            before = bodies(bob) if bob is not None else []
        async with server(tmp_path) as (_, port):
            bob = await managed("bob", port)
            async with asyncio.timeout(WAIT_S):
                while {str(number) for number in range(acknowledged)} - {*before, *bodies(bob)}:
                    await asyncio.sleep(0.02)
            await bob.request("get", "<ping xmlns='urn:xmpp:ping'/>")
            after = bodies(bob)
            bob.abort()
        assert child.returncode == -signal.SIGKILL
        assert after == sorted(set(after), key=int), "once, and in order"
        assert before == sorted(set(before), key=int)
        assert {str(number) for number in range(acknowledged)} <= {*before, *after}
        return acknowledged, len(after)

    acknowledged, after = asyncio.run(main())
    if point == "acknowledged":
        assert acknowledged >= 1
        assert after >= acknowledged

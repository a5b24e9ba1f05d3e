"""@xmpp/client from npm talks to us over TCP and over WebSocket, in node."""

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest
from tests.journeys.messaging.house import PASSWORD
from tests.journeys.messaging.web_house import web_house

ROOT = Path(__file__).parents[3]
WAIT_S = 30


def test_two_sessions_of_another_library_talk_over_tcp_and_websocket(tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on this machine")
    if not (ROOT / "node_modules" / "@xmpp" / "client").is_dir():
        pytest.skip("@xmpp/client is not installed: ./fourplane setup does it where npm is")

    async def main():
        async with web_house(tmp_path, ("alice", "bob")) as (here, url):
            environment = {**os.environ, "NODE_EXTRA_CA_CERTS": str(here.certificate_path)}
            socket_url = url.replace("http:", "ws:") + "/messaging/ws"
            script = str(Path(__file__).with_name("xmpp_client.mjs"))
            options = ["--experimental-websocket"] if not await has_websocket(node) else []
            child = await asyncio.create_subprocess_exec(
                node, *options, script, str(here.messaging.port), socket_url, PASSWORD, str(ROOT),
                env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            async with asyncio.timeout(WAIT_S):
                out, err = await child.communicate()
            assert child.returncode == 0, err.decode()[-2_000:]
            return json.loads(out)

    told = asyncio.run(main())
    assert [jid.partition("~")[0] for jid in told["online"]] == ["alice@localhost/js", "bob@localhost/js"]
    assert (told["first"], told["second"]) == ("from TCP", "from a WebSocket <&>")
    assert told["roster"] == "jabber:iq:roster"


async def has_websocket(node):
    child = await asyncio.create_subprocess_exec(node, "-e", "process.exit(globalThis.WebSocket ? 0 : 1)")
    return await child.wait() == 0

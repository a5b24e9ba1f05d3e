"""Two people with real clients (slixmpp): TLS, SCRAM-SHA-256, messages, and what came while one was away or the server dead."""

import asyncio
import contextlib
import json
import signal
import ssl
import sys

import pytest
from tests.journeys.messaging.house import PASSWORD, house

from fourplane.simulator.crowds.messaging_client import XmppClient, body_of

slixmpp = pytest.importorskip("slixmpp")
WAIT_S = 20


class Person(slixmpp.ClientXMPP):
    def __init__(self, name):
        super().__init__(f"{name}@localhost/phone", PASSWORD, sasl_mech="SCRAM-SHA-256")
        self.got = asyncio.Queue()
        self.ready = asyncio.Event()
        self.ssl_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.register_plugin("xep_0198")
        self.register_plugin("xep_0203")
        self.register_plugin("xep_0199")
        self.add_event_handler("session_start", self.started)
        self.add_event_handler("message", self.got.put_nowait)

    def get_ssl_context(self):
        context = super().get_ssl_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context

    async def started(self, _event):
        await self.get_roster()
        self.send_presence()
        self.ready.set()


@contextlib.asynccontextmanager
async def online(name, port):
    person = Person(name)
    person.enable_direct_tls = False
    person.connect("127.0.0.1", port)
    try:
        async with asyncio.timeout(WAIT_S):
            await person.ready.wait()
        yield person
    finally:
        await person.disconnect(wait=0.2)


async def received(person):
    async with asyncio.timeout(WAIT_S):
        return await person.got.get()


async def all_kept(person):
    """Wait until what a person sent is durable: an answer comes behind it."""
    await person.plugin["xep_0199"].send_ping("localhost", timeout=WAIT_S)


def test_two_clients_exchange_messages_and_the_absent_one_gets_hers_later(tmp_path):
    async def main():
        async with house(tmp_path, ("alice", "bob")) as here:
            async with online("alice", here.messaging.port) as alice:
                alice.send_message("bob@localhost", "while you were away", mtype="chat")
                await all_kept(alice)
                async with online("bob", here.messaging.port) as bob:
                    stored = await received(bob)
                    assert stored["body"] == "while you were away"
                    assert stored["delay"]["stamp"] is not None
                    bob.send_message(stored["from"], "I am back", mtype="chat")
                    answer = await received(alice)
                    assert (answer["body"], answer["from"].bare) == ("I am back", "bob@localhost")
            assert here.messaging.statistics().stored == 1

    asyncio.run(main())


class Server:
    """The messaging system in a process of its own, to be killed."""

    def __init__(self, data):
        self.data = data

    async def __aenter__(self):
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.journeys.messaging.house",
            str(self.data),
            "alice",
            "bob",
            stdout=asyncio.subprocess.PIPE,
            env={"PYTHONPATH": "src:.", "PATH": "/usr/bin:/bin"},
        )
        async with asyncio.timeout(WAIT_S):
            ports = json.loads(await self.process.stdout.readline())
        self.port, self.tls_port = ports["port"], ports["tls_port"]
        return self

    async def __aexit__(self, *_):
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
        await self.process.wait()


def test_messages_survive_a_killed_server(tmp_path):
    async def main():
        async with Server(tmp_path) as server, online("alice", server.port) as alice:
            for number in range(20):
                alice.send_message("bob@localhost", f"number {number}", mtype="chat")
            await all_kept(alice)
            server.process.kill()
            await server.process.wait()
        async with Server(tmp_path) as server, online("bob", server.port) as bob:
            bodies = [(await received(bob))["body"] for _ in range(20)]
            assert bodies == [f"number {number}" for number in range(20)]

    asyncio.run(main())


def test_direct_tls_and_stream_management_over_a_broken_connection(tmp_path):
    async def main():
        async with house(tmp_path, ("alice", "bob")) as here:
            tls = here.client_tls()
            alice, bob = XmppClient("alice", PASSWORD), XmppClient("bob", PASSWORD)
            for client in (alice, bob):
                await client.connect("127.0.0.1", here.messaging.tls_port, tls=tls, direct=True)
                await client.login(manage=True)
            await bob.request("get", "<ping xmlns='urn:xmpp:ping'/>")
            bob.abort()
            for number in range(5):
                alice.message("bob@localhost", f"{number}")
            await alice.request("get", "<ping xmlns='urn:xmpp:ping'/>")
            again = XmppClient("bob", PASSWORD)
            await again.connect("127.0.0.1", here.messaging.tls_port, tls=tls, direct=True)
            await again.authenticate()
            answer = await again.resume(bob.resume_id, bob.handled)
            assert answer.name == "urn:xmpp:sm:3 resumed"
            assert [body_of(await again.next()) for _ in range(5)] == list("01234")
            await again.close()
            await alice.close()

    asyncio.run(main())


def test_what_was_acknowledged_for_a_silent_reader_survives_a_killed_server(tmp_path):
    async def main():
        async with Server(tmp_path) as server:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
            alice, bob = XmppClient("alice", PASSWORD), XmppClient("bob", PASSWORD)
            for client in (alice, bob):
                await client.connect("127.0.0.1", server.tls_port, tls=tls, direct=True)
                await client.login(manage=True)
                await client.request("get", "<ping xmlns='urn:xmpp:ping'/>")
            bob._transport.pause_reading()
            for number in range(10):
                alice.message("bob@localhost", f"{number}")
            acknowledged = 0
            async with asyncio.timeout(WAIT_S):
                while acknowledged < 13:  # roster, presence, ping, ten messages
                    alice.send(b"<r xmlns='urn:xmpp:sm:3'/>")
                    acknowledged = int((await alice.next("urn:xmpp:sm:3 a")).attributes["h"])
            server.process.kill()
            await server.process.wait()
        async with Server(tmp_path) as server:
            bob = XmppClient("bob", PASSWORD)
            await bob.connect("127.0.0.1", server.tls_port, tls=tls, direct=True)
            await bob.login()
            assert [body_of(await bob.next()) for _ in range(10)] == [str(number) for number in range(10)]
            bob.abort()

    asyncio.run(main())

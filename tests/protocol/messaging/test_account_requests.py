"""Accounts by the protocol: in-band registration (XEP-0077) where it is allowed, an operator's commands (XEP-0133)."""

import re

from tests.protocol.messaging.test_client_streams import HEADER, client, in_virtual_time, settled, wire

from fourplane.foundation import clock
from fourplane.simulator.crowds.messaging_client import XmppClient

COMMANDS = "http://jabber.org/protocol/commands"
ADMIN = "http://jabber.org/protocol/admin#"
WISH = "<query xmlns='jabber:iq:register'><username>{}</username><password>{}</password></query>"


def iq(kind, content):
    return f"<iq type='{kind}' id='x'>{content}</iq>".encode()


async def told(peer, pattern):
    for _ in range(200):
        found = re.search(pattern, peer.got.decode())
        if found:
            return found.group(0)
        await clock.sleep(0.05)
    raise AssertionError(peer.got)


def test_an_account_is_made_in_the_stream_and_logs_in():
    async def work(here):
        peer = await wire(here, HEADER)
        await told(peer, "iq-register")
        peer.transport.write(iq("get", "<query xmlns='jabber:iq:register'/>"))
        await told(peer, "<username/><password/>")
        peer.transport.write(iq("set", WISH.format("dora", "a good password")))
        await told(peer, "<iq type='result' id='x'/>")
        other = await wire(here, HEADER)
        other.transport.write(iq("set", WISH.format("eve", "too soon after dora")))
        await told(other, "<resource-constraint")
        await clock.sleep(6)
        peer.transport.write(iq("set", WISH.format("alice", "taken already")))
        await told(peer, "<conflict")
        peer.transport.write(iq("set", WISH.format("eve", "one too many")))
        await told(peer, "<stream:error><not-authorized")
        dora = XmppClient("dora", "a good password")
        await dora.connect("127.0.0.1", here.messaging.port)
        await dora.login()
        changed = await dora.request("set", WISH.format("dora", "a better password"))
        await dora.close()
        again = XmppClient("dora", "a better password")
        await again.connect("127.0.0.1", here.messaging.port)
        await again.login()
        left = await again.request("set", "<query xmlns='jabber:iq:register'><remove/></query>")
        await clock.sleep(0.1)
        return changed.attributes["type"], left.attributes["type"], await here.accounts.find("dora")

    assert in_virtual_time(work, registration=True) == ("result", "result", None)


def test_it_is_off_by_default():
    async def work(here):
        peer = await wire(here, HEADER)
        peer.transport.write(iq("set", WISH.format("dora", "a good password")))
        await told(peer, "<stream:error><not-authorized")
        assert b"iq-register" not in peer.got
        return await here.accounts.find("dora")

    assert in_virtual_time(work) is None


def command(node, fields=None, action="execute"):
    form = ""
    if fields is not None:
        values = "".join(f"<field var='{key}'><value>{value}</value></field>" for key, value in fields.items())
        form = f"<x xmlns='jabber:x:data' type='submit'>{values}</x>"
    return f"<command xmlns='{COMMANDS}' node='{ADMIN}{node}' action='{action}'>{form}</command>"


def test_an_operator_adds_counts_tells_and_deletes_users():
    async def work(here):
        await here.accounts.set_roles(await here.accounts.find("alice"), ("operator",))
        alice, bob = await client(here, "alice"), await client(here, "bob")
        listed = await alice.request(
            "get", f"<query xmlns='http://jabber.org/protocol/disco#items' node='{COMMANDS}'/>", to="localhost"
        )
        form = await alice.request("set", command("add-user"), to="localhost")
        wish = {"accountjid": "dora@localhost", "password": "a good password"}
        added = await alice.request("set", command("add-user", wish, "complete"), to="localhost")
        count = await alice.request("set", command("get-online-users-num"), to="localhost")
        await alice.request("set", command("announce", {"announcement": "tea at five"}), to="localhost")
        await settled(bob)
        found = await here.accounts.find("dora")
        await alice.request("set", command("delete-user", {"accountjids": "dora@localhost"}), to="localhost")
        await alice.request("set", command("end-user-session", {"accountjids": "bob@localhost"}), to="localhost")
        await clock.sleep(0.1)
        gone = await here.accounts.find("dora")
        return listed.raw, form.raw, added.raw, count.raw, bob, found, gone

    listed, form, added, count, bob, found, gone = in_virtual_time(work)
    assert b"admin#add-user" in listed
    assert b"status='executing'" in form
    assert b"accountjid" in form
    assert b"status='completed'" in added
    assert b"<value>2</value>" in count
    assert any(b"tea at five" in stanza.raw for stanza in bob.inbox)
    assert found is not None
    assert gone is None
    assert bob.closed


def test_nobody_else_may():
    async def work(here):
        bob = await client(here, "bob")
        tried = await bob.request("set", command("delete-user", {"accountjids": "alice@localhost"}), to="localhost")
        listed = await bob.request(
            "get", f"<query xmlns='http://jabber.org/protocol/disco#items' node='{COMMANDS}'/>", to="localhost"
        )
        return tried.raw, listed.raw

    tried, listed = in_virtual_time(work)
    assert b"<forbidden" in tried
    assert b"admin#" not in listed

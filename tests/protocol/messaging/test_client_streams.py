"""The public port says no in XMPP's own words, and RFC 6121's delivery rules hold; all in virtual time."""

import asyncio
import contextlib
import re
from xml.etree import ElementTree as ET

import pytest
from tests.journeys.messaging.house import PASSWORD, house

from fourplane.foundation import clock, network
from fourplane.foundation.errors import Unauthenticated
from fourplane.messaging.entity_caps import DISCO_INFO, digest_of
from fourplane.messaging.xml_stream import IQ, PRESENCE
from fourplane.simulator import loop
from fourplane.simulator.crowds.messaging_client import XmppClient, body_of

HEADER = b"<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' to='localhost' version='1.0'>"
PING = "<ping xmlns='urn:xmpp:ping'/>"


class Wire(asyncio.Protocol):
    """Bytes in, bytes out."""

    def __init__(self):
        self.got = b""
        self.lost = asyncio.Event()

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.got += data

    def connection_lost(self, exc):
        self.lost.set()


def in_virtual_time(work, users=("alice", "bob", "carol"), **settings):
    async def main(_world):
        async with house(None, users, tls=False, port=5_222, **settings) as here:
            return await work(here)

    return loop.run(main, 1, virtual_s_max=5_000).result


async def wire(here, data):
    _, protocol = await network.connect(Wire, "127.0.0.1", here.messaging.port)
    protocol.transport.write(data)
    return protocol


async def client(here, name, *, resource="crowd", **options):
    made = XmppClient(name, PASSWORD, resource=resource)
    await made.connect("127.0.0.1", here.messaging.port)
    await made.login(**options)
    return made


async def settled(*clients):
    for one in clients:
        await one.request("get", PING)


def bodies(one):
    return [body_of(stanza) for stanza in one.inbox if body_of(stanza)]


@pytest.mark.parametrize(
    ("data", "condition"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"not-well-formed"),
        (b"\x00\x01\x02garbage", b"not-well-formed"),
        (HEADER.replace(b"to='localhost'", b"to='elsewhere.example'"), b"host-unknown"),
        (HEADER.replace(b"version='1.0'", b""), b"unsupported-version"),
        (HEADER.replace(b"jabber:client", b"jabber:server"), b"invalid-namespace"),
        (HEADER + b"<message/>", b"not-authorized"),
        (HEADER + b"<!-- x -->", b"restricted-xml"),
        (HEADER + b"<iq><a></iq>", b"not-well-formed"),
        (HEADER + b"<auth>" + b"x" * 20_000, b"policy-violation"),
        (b"<stream:stream " + b"x" * 10_000, b"policy-violation"),
    ],
)
def test_a_wrong_stream_gets_its_own_error_and_is_closed(data, condition):
    async def work(here):
        peer = await wire(here, data)
        await peer.lost.wait()
        return peer.got

    got = in_virtual_time(work)
    assert b"<stream:error><" + condition in got
    assert got.endswith(b"</stream:stream>")


def test_a_silent_connection_is_closed_after_a_minute():
    async def work(here):
        peer = await wire(here, b"")
        await peer.lost.wait()
        return clock.monotonic_s(), peer.got

    waited, got = in_virtual_time(work)
    assert 59 < waited < 62
    assert b"connection-timeout" in got


def test_wrong_password_and_unknown_user_look_the_same():
    async def work(here):
        told = []
        for name, password in (("alice", "wrong"), ("nobody", "wrong")):
            one = XmppClient(name, password)
            await one.connect("127.0.0.1", here.messaging.port)
            with pytest.raises(Unauthenticated) as caught:
                await one.authenticate()
            told.append(str(caught.value).replace(name, "X"))
            one.abort()
        return told

    first, second = in_virtual_time(work)
    assert first == second
    assert "not-authorized" in first


def test_plain_is_not_taken_without_tls():
    async def work(here):
        peer = await wire(here, HEADER)
        await clock.sleep(1)
        peer.transport.write(b"<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>AGFsaWNlAHg=</auth>")
        await clock.sleep(1)
        return peer.got

    got = in_virtual_time(work)
    assert b"PLAIN" not in got
    assert b"<failure" in got
    assert b"encryption-required" in got


def test_too_many_wrong_passwords_end_the_stream():
    async def work(here):
        peer = await wire(here, HEADER)
        await clock.sleep(1)
        for _ in range(5):
            peer.transport.write(b"<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='SCRAM-SHA-1'>%%%</auth>")
            await clock.sleep(1)
        await peer.lost.wait()
        return peer.got

    got = in_virtual_time(work)
    assert got.count(b"<failure") == 4
    assert b"policy-violation" in got


def test_an_oversized_stanza_ends_only_its_own_stream_and_nothing_before_it_is_lost():
    async def work(here):
        alice, bob = await client(here, "alice"), await client(here, "bob")
        alice.message("bob@localhost", "before")
        alice.send(b"<message to='bob@localhost'><body>" + b"x" * 300_000)
        await clock.sleep(1)
        await settled(bob)
        return alice.stream_error, bodies(bob)

    assert in_virtual_time(work) == ("policy-violation", ["before"])


def test_nobody_speaks_for_somebody_else():
    async def work(here):
        alice, bob = await client(here, "alice"), await client(here, "bob")
        alice.send(b"<message from='carol@localhost' to='bob@localhost'><body>I am carol</body></message>")
        await clock.sleep(1)
        alice = await client(here, "alice")
        alice.send(b"<message from='alice@localhost' to='bob@localhost'><body>I am alice</body></message>")
        await settled(alice, bob)
        return [stanza.attributes["from"] for stanza in bob.inbox if body_of(stanza)]

    assert in_virtual_time(work) == ["alice@localhost/crowd"]


@pytest.mark.parametrize(
    ("to", "condition"),
    [
        ("nobody@localhost", "service-unavailable"),
        ("a@elsewhere.example", "remote-server-not-found"),
        ("@@", "jid-malformed"),
    ],
)
def test_messages_to_nowhere_come_back(to, condition):
    async def work(here):
        alice = await client(here, "alice")
        ident = alice.message(to, "hello")
        error = await alice.next()
        return error.attributes["id"] == ident, error.attributes["type"], condition.encode() in error.raw

    assert in_virtual_time(work) == (True, "error", True)


def test_the_highest_priority_gets_the_message_and_carbons_go_to_the_rest():
    async def work(here):
        alice = await client(here, "alice")
        phone = await client(here, "bob", resource="phone")
        desk = await client(here, "bob", resource="desk", presence=False)
        desk.send(b"<presence><priority>5</priority></presence>")
        hidden = await client(here, "bob", resource="hidden", presence=False)
        hidden.send(b"<presence><priority>-1</priority></presence>")
        await phone.request("set", "<enable xmlns='urn:xmpp:carbons:2'/>")
        await settled(desk, hidden)
        alice.message("bob@localhost", "where are you")
        await settled(alice)
        await settled(phone, desk, hidden)
        carbon = [s for s in phone.inbox if s.children == ["urn:xmpp:carbons:2 received"]]
        return bodies(desk), bodies(hidden), len(carbon), b"where are you" in carbon[0].raw

    assert in_virtual_time(work) == (["where are you"], [], 1, True)


def test_a_full_address_that_is_gone_falls_back_to_the_others():
    async def work(here):
        alice, bob = await client(here, "alice"), await client(here, "bob", resource="new")
        alice.message("bob@localhost/old", "hello")
        await settled(alice, bob)
        return bodies(bob)

    assert in_virtual_time(work) == ["hello"]


def test_chat_states_are_not_kept_for_the_absent_and_hints_are_obeyed():
    async def work(here):
        alice = await client(here, "alice")
        for content in (
            "<composing xmlns='http://jabber.org/protocol/chatstates'/>",
            "<body>secret</body><no-store xmlns='urn:xmpp:hints'/>",
            "<received xmlns='urn:xmpp:receipts' id='1'/>",
        ):
            alice.send(f"<message to='bob@localhost' type='chat'>{content}</message>".encode())
        await settled(alice)
        return here.messaging.statistics().stored

    assert in_virtual_time(work) == 1


def test_subscription_is_asked_granted_pushed_and_shows_presence_both_ways():
    async def work(here):
        alice = await client(here, "alice")
        alice.send(b"<presence to='bob@localhost' type='subscribe'/>")
        await settled(alice)
        bob = await client(here, "bob")
        asked = await bob.next(PRESENCE)
        while asked.attributes.get("type") != "subscribe":
            asked = await bob.next(PRESENCE)
        bob.send(b"<presence to='alice@localhost' type='subscribed'/>")
        await settled(bob, alice)
        seen = [(s.attributes.get("type"), s.attributes["from"]) for s in alice.inbox if s.name == PRESENCE]
        pushes = [s.raw for s in alice.inbox if s.name == IQ]
        bob.abort()
        await clock.sleep(400)
        gone = [s.attributes["from"] for s in alice.inbox if s.attributes.get("type") == "unavailable"]
        roster = await alice.request("get", "<query xmlns='jabber:iq:roster'/>")
        return seen, pushes, gone, roster.raw

    seen, pushes, gone, roster = in_virtual_time(work)
    assert ("subscribed", "bob@localhost") in seen
    assert (None, "bob@localhost/crowd") in seen
    assert b"ask='subscribe'" in pushes[0]
    assert b"subscription='to'" in pushes[-1]
    assert gone == ["bob@localhost/crowd"]
    assert b"<item jid='bob@localhost' subscription='to'/>" in roster


def test_roster_changes_are_checked_pushed_and_versioned():
    async def work(here):
        alice = await client(here, "alice")
        good = "<query xmlns='jabber:iq:roster'><item jid='bob@localhost/x' name='B &amp; B'><group>g</group></item></query>"
        wrong = "<query xmlns='jabber:iq:roster'><item jid='bob@localhost'><group/></item></query>"
        answers = [
            (await alice.request("set", good)).attributes["type"],
            (await alice.request("set", wrong)).raw,
            (await alice.request("get", "<query xmlns='jabber:iq:roster' ver='1'/>")).children,
            (await alice.request("get", "<query xmlns='jabber:iq:roster' ver=''/>")).raw,
        ]
        remove = "<query xmlns='jabber:iq:roster'><item jid='bob@localhost' subscription='remove'/></query>"
        answers.append((await alice.request("set", remove)).attributes["type"])
        answers.append((await alice.request("set", remove)).raw)
        return answers

    set_type, wrong, unchanged, full, removed, twice = in_virtual_time(work)
    assert (set_type, unchanged, removed) == ("result", [], "result")
    assert b"not-acceptable" in wrong
    assert b"<item jid='bob@localhost' subscription='none' name='B &amp; B'><group>g</group></item>" in full
    assert b"item-not-found" in twice


def test_unknown_requests_are_refused_and_sound_ones_answered():
    async def work(here):
        alice = await client(here, "alice")
        answers = {}
        for payload in (
            PING,
            "<query xmlns='jabber:iq:version'/>",
            "<time xmlns='urn:xmpp:time'/>",
            "<query xmlns='http://jabber.org/protocol/disco#info'/>",
            "<query xmlns='http://jabber.org/protocol/disco#items'/>",
            "<what xmlns='u:n:known'/>",
        ):
            answers[payload] = (await alice.request("get", payload, to="localhost")).attributes["type"]
        answers["other"] = (await alice.request("get", PING, to="bob@localhost/none")).attributes["type"]
        return answers

    answers = in_virtual_time(work)
    assert answers.pop("<what xmlns='u:n:known'/>") == "error"
    assert answers.pop("other") == "error"
    assert set(answers.values()) == {"result"}


def test_the_digest_in_the_features_is_that_of_what_the_server_says_it_can():
    async def work(here):
        alice = await client(here, "alice")
        again = XmppClient("alice", PASSWORD, resource="second")
        seen, take = [], again.data_received
        again.data_received = lambda data: (seen.append(data), take(data))
        await again.connect("127.0.0.1", here.messaging.port)
        await again.login()
        node, ver = re.search(rb"<c [^>]*node='([^']*)' ver='([^']*)'", b"".join(seen)).groups()
        asked = f"<query xmlns='{DISCO_INFO}' node='{node.decode()}#{ver.decode()}'/>"
        answer = ET.fromstring((await alice.request("get", asked, to="localhost")).raw)
        return digest_of(answer.find(f"{{{DISCO_INFO}}}query")) == ver.decode()

    assert in_virtual_time(work)


def test_a_new_connection_replaces_the_one_with_the_same_resource():
    async def work(here):
        first = await client(here, "alice")
        second = await client(here, "alice")
        await settled(second)
        return first.stream_error, here.messaging.statistics().sessions

    assert in_virtual_time(work) == ("conflict", 1)


def test_an_inactive_client_gets_only_the_last_presence_of_each_contact():
    async def work(here):
        alice, bob = await client(here, "alice"), await client(here, "bob")
        alice.send(b"<presence to='bob@localhost' type='subscribe'/>")
        bob.send(b"<presence to='alice@localhost' type='subscribed'/>")
        await settled(alice, bob)
        alice.inbox.clear()
        alice.send(b"<inactive xmlns='urn:xmpp:csi:0'/>")
        await clock.sleep(1)
        for show in ("away", "dnd", "xa"):
            bob.send(f"<presence><show>{show}</show></presence>".encode())
        await settled(bob)
        quiet = len(alice.inbox)
        bob.message("alice@localhost", "wake up")
        await alice.next()
        return quiet, [s.raw for s in alice.inbox if s.name == PRESENCE]

    quiet, seen = in_virtual_time(work)
    assert quiet == 0
    assert len(seen) == 1
    assert b"xa" in seen[0]


def test_a_slow_reader_slows_its_senders_and_loses_nothing():
    async def work(here):
        alice = await client(here, "alice")
        bob = await client(here, "bob", manage=True)
        await settled(bob)
        bob._transport.pause_reading()
        text = "x" * 2_000
        sent = 600
        for number in range(sent):
            alice.message("bob@localhost", f"{number} {text}")
        await clock.sleep(5)
        delivered = here.messaging.statistics().messages
        bob._transport.resume_reading()
        got = [int(body_of(await bob.next()).split()[0]) for _ in range(sent)]
        return delivered < sent, got == list(range(sent))

    assert in_virtual_time(work, write_high=64_000, unacked_max=10_000) == (True, True)


def test_a_reader_that_never_comes_back_is_dropped_and_its_messages_are_stored():
    async def work(here):
        alice = await client(here, "alice")
        bob = await client(here, "bob", manage=True)
        bob._transport.pause_reading()
        for number in range(200):
            alice.message("bob@localhost", f"{number} " + "x" * 2_000)
        await clock.sleep(40 + 301)
        again = await client(here, "bob", resource="again")
        return [int(body_of(await again.next()).split()[0]) for _ in range(200)]

    assert in_virtual_time(work, write_high=64_000, unacked_max=10_000) == list(range(200))


def test_a_client_that_stops_reading_what_was_stored_does_not_keep_it_from_the_others():
    async def work(here):
        alice = await client(here, "alice")
        for number in range(3):
            alice.message("bob@localhost", f"{number}")
        await settled(alice)
        stuck = await client(here, "bob", resource="stuck", manage=True)
        stuck._transport.pause_reading()
        await clock.sleep(5)
        alice.message("bob@localhost", "3")
        other = await client(here, "bob", resource="other")
        seen = [body_of(await other.next(wait_s=60)) for _ in range(4)]
        await clock.sleep(500)
        return seen, bodies(other), here.messaging.router.users["bob@localhost"].offline_count

    assert in_virtual_time(work) == (["0", "1", "2", "3"], [], 0)


def test_goodbye_is_answered():
    async def work(here):
        peer = await wire(here, HEADER)
        await clock.sleep(1)
        peer.transport.write(b"</stream:stream>")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10):
                await peer.lost.wait()
        return peer.got

    assert in_virtual_time(work).endswith(b"</stream:stream>")


def test_what_waits_for_a_vanished_client_goes_to_the_next_one_at_once_and_once():
    async def work(here):
        alice, old = await client(here, "alice"), await client(here, "bob", resource="old", manage=True)
        await settled(old)
        old.abort()
        await clock.sleep(1)
        alice.message("bob@localhost", "anybody?")
        await settled(alice)
        new = await client(here, "bob", resource="new")
        got = body_of(await new.next(wait_s=5))
        await clock.sleep(400)
        return got, bodies(new), here.messaging.statistics().stored

    assert in_virtual_time(work) == ("anybody?", [], 1)


def test_what_looks_like_a_request_for_an_acknowledgement_inside_a_stanza_is_text():
    async def work(here):
        alice, bob = await client(here, "alice", manage=True), await client(here, "bob")
        mark = "<r xmlns='urn:xmpp:sm:3'/>"
        alice.send(f"<message to='bob@localhost' type='chat'><body>one</body>{mark}".encode())
        await clock.sleep(0.1)
        alice.send(f"</message><message to='bob@localhost' type='chat'><body>two</body></message>{mark}".encode())
        acknowledged = await alice.next("urn:xmpp:sm:3 a")
        await settled(bob)
        return acknowledged.attributes["h"], bodies(bob), [mark.encode() in stanza.raw for stanza in bob.inbox][-2:]

    assert in_virtual_time(work, archive=False) == ("4", ["one", "two"], [True, False])


def test_an_acknowledgement_of_more_than_was_sent_ends_the_stream():
    async def work(here):
        alice = await client(here, "alice", manage=True)
        alice.send(b"<a xmlns='urn:xmpp:sm:3' h='99'/>")
        await clock.sleep(0.5)
        return alice.closed, alice.stream_error

    closed, error = in_virtual_time(work)
    assert closed
    assert "undefined-condition" in error

"""Personal events (XEP-0163): options of a node decide who sees it, and only clients that asked for it hear of it."""

import asyncio
from xml.etree import ElementTree as ET

from tests.protocol.messaging.test_client_streams import client, in_virtual_time, settled

from fourplane.foundation import clock
from fourplane.messaging.entity_caps import digest_of
from fourplane.messaging.xml_stream import IQ

PUBSUB = "http://jabber.org/protocol/pubsub"
MOOD = "http://jabber.org/protocol/mood"
INFO = "http://jabber.org/protocol/disco#info"
FEATURES = f"<identity category='client' type='phone'/><feature var='{MOOD}'/><feature var='{MOOD}+notify'/>"
VER = digest_of(ET.fromstring(f"<query xmlns='{INFO}'>{FEATURES}</query>"))


def publish(item, text, *, node=MOOD, options=None):
    content = f"<item id='{item}'><mood xmlns='{MOOD}'><text>{text}</text></mood></item>"
    wish = ""
    if options:
        fields = "".join(f"<field var='pubsub#{key}'><value>{value}</value></field>" for key, value in options.items())
        wish = f"<publish-options><x xmlns='jabber:x:data' type='submit'>{fields}</x></publish-options>"
    return f"<pubsub xmlns='{PUBSUB}'><publish node='{node}'>{content}</publish>{wish}</pubsub>"


def fetch(node=MOOD, more=""):
    return f"<pubsub xmlns='{PUBSUB}'><items node='{node}'{more}/></pubsub>"


async def curious(here, name, *, resource="phone"):
    """A client that says by its capabilities that it wants moods, and answers when it is asked what they are."""
    made = await client(here, name, resource=resource, presence=False)
    made.send(
        f"<presence><c xmlns='http://jabber.org/protocol/caps' hash='sha-1' node='urn:test' ver='{VER}'/></presence>".encode()
    )
    await clock.sleep(0.1)
    for stanza in [one for one in made.inbox if one.name == IQ]:
        about = f"<query xmlns='{INFO}' node='urn:test#{VER}'>{FEATURES}</query>"
        made.send(f"<iq type='result' to='{name}@localhost' id='{stanza.attributes['id']}'>{about}</iq>".encode())
    await settled(made)
    return made


async def befriend(one, other):
    for asker, asked in ((one, other), (other, one)):
        asker.send(f"<presence type='subscribe' to='{asked.name}@localhost'/>".encode())
        await settled(asker, asked)
        asked.send(f"<presence type='subscribed' to='{asker.name}@localhost'/>".encode())
        await settled(asked, asker)


def events(one):
    return [stanza.raw for stanza in one.inbox if b"pubsub#event" in stanza.raw]


def test_contacts_hear_what_they_asked_for_and_strangers_nothing():
    async def work(here):
        alice, bob = await curious(here, "alice"), await curious(here, "bob")
        carol, deaf = await curious(here, "carol"), await client(here, "bob", resource="deaf")
        await befriend(alice, bob)
        answer = await alice.request("set", publish("now", "happy"))
        await settled(alice, bob, carol, deaf)
        late = await curious(here, "bob", resource="late")
        return answer.raw, *(events(one) for one in (alice, bob, carol, deaf, late))

    answer, own, friend, stranger, deaf, late = in_virtual_time(work)
    assert b"<publish node='http://jabber.org/protocol/mood'><item id='now'/>" in answer
    assert len(own) == len(friend) == 1
    assert b"from='alice@localhost'" in friend[0]
    assert b"happy" in friend[0]
    assert stranger == deaf == []
    assert len(late) == 1, "who comes later is told the newest"


def test_a_digest_is_asked_for_once():
    async def work(here):
        first, second = await curious(here, "alice"), await curious(here, "bob")
        return [sum(one.name == IQ for one in who.inbox) for who in (first, second)]

    assert in_virtual_time(work) == [1, 0]


def test_access_and_options_of_a_node_are_kept():
    async def work(here):
        alice, bob = await client(here, "alice"), await client(here, "bob")
        private = {"access_model": "whitelist", "persist_items": "true"}
        await alice.request("set", publish("a", "secret", options=private))
        refused = await bob.request("get", fetch(), to="alice@localhost")
        other = await alice.request("set", publish("b", "open", options={"access_model": "open"}))
        await alice.request("set", publish("c", "for all", node="urn:open", options={"access_model": "open"}))
        read = await bob.request("get", fetch("urn:open"), to="alice@localhost")
        foreign = await bob.request("set", publish("d", "not mine"), to="alice@localhost")
        return [one.raw for one in (refused, other, read, foreign)]

    refused, other, read, foreign = in_virtual_time(work)
    assert b"<forbidden" in refused
    assert b"<precondition-not-met" in other
    assert b"for all" in read
    assert b"type='error'" in foreign


def test_only_the_newest_items_are_kept_in_order_and_can_be_taken_back():
    async def work(here):
        alice = await client(here, "alice")
        for number in range(5):
            await alice.request("set", publish(f"i{number}", f"text {number}", options={"max_items": "3"}))
        kept = (await alice.request("get", fetch())).raw
        newest = (await alice.request("get", fetch(more=" max_items='1'"))).raw
        retract = f"<pubsub xmlns='{PUBSUB}'><retract node='{MOOD}'><item id='i4'/></retract></pubsub>"
        await alice.request("set", retract)
        again = await alice.request("set", retract)
        left = (await alice.request("get", fetch())).raw
        owner = f"<pubsub xmlns='{PUBSUB}#owner'><delete node='{MOOD}'/></pubsub>"
        await alice.request("set", owner)
        gone = await alice.request("get", fetch())
        return kept, newest, again.raw, left, gone.raw

    kept, newest, again, left, gone = in_virtual_time(work)
    assert [b"text %d<" % number in kept for number in range(5)] == [False, False, True, True, True]
    assert kept.index(b"text 2") < kept.index(b"text 4")
    assert newest.count(b"<item ") == 1
    assert b"text 4" in newest
    assert b"item-not-found" in again
    assert b"text 4" not in left
    assert b"item-not-found" in gone


def test_too_many_and_too_large_are_refused():
    async def work(here):
        alice = await client(here, "alice")
        answers = [await alice.request("set", publish("a", "x", node=f"urn:n{number}")) for number in range(3)]
        large = await alice.request("set", publish("b", "x" * 300, node="urn:n0"))
        return [one.attributes["type"] for one in answers], large.raw

    kinds, large = in_virtual_time(work, pep_nodes_max=2, pep_item_max=200)
    assert kinds == ["result", "result", "error"]
    assert b"not-acceptable" in large


def test_two_changes_at_once_both_count():
    async def work(here):
        alice = await client(here, "alice")
        both = [alice.request("set", publish(f"i{number}", "x", options={"max_items": "9"})) for number in range(4)]
        await asyncio.gather(*both)
        return (await alice.request("get", fetch())).raw.count(b"<item ")

    assert in_virtual_time(work) == 4

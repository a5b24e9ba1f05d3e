"""Groups (XEP-0045) over the public port, in virtual time."""

from xml.etree import ElementTree as ET

from tests.protocol.messaging.test_client_streams import bodies, client, in_virtual_time, settled

from fourplane.foundation import clock
from fourplane.messaging.group_chat import GroupChat
from fourplane.messaging.xml_stream import MESSAGE, PRESENCE
from fourplane.simulator.crowds.messaging_client import body_of

ROOM = "tea@groups.localhost"
ADMIN = "http://jabber.org/protocol/muc#admin"
OWNER = "http://jabber.org/protocol/muc#owner"


async def enter(one, nick, room=ROOM, extra=""):
    join = f"<presence to='{room}/{nick}'><x xmlns='http://jabber.org/protocol/muc'>{extra}</x></presence>"
    one.send(join.encode())
    await settled(one)


async def say(one, text, room=ROOM):
    one.send(f"<message to='{room}' type='groupchat' id='{text}'><body>{text}</body></message>".encode())
    await settled(one)


async def configure(one, room=ROOM, **fields):
    shown = "".join(
        f"<field var='muc#roomconfig_{key}'><value>{value}</value></field>" for key, value in fields.items()
    )
    form = f"<query xmlns='{OWNER}'><x xmlns='jabber:x:data' type='submit'>{shown}</x></query>"
    return (await one.request("set", form, to=room)).attributes["type"]


async def administer(one, item, room=ROOM):
    return (await one.request("set", f"<query xmlns='{ADMIN}'>{item}</query>", to=room)).raw


def presences(one):
    return [stanza.raw for stanza in one.inbox if stanza.name == PRESENCE and b"groups.localhost" in stanza.raw]


def test_a_room_is_made_by_its_first_occupant_and_everybody_hears_everybody():
    async def work(here):
        alice, bob = await client(here, "alice"), await client(here, "bob")
        await enter(alice, "Alice")
        assert b"<status code='110'/><status code='201'/>" in presences(alice)[0]
        await enter(bob, "Bob")
        await say(alice, "hello")
        await say(bob, "hi")
        await settled(alice)
        senders = [stanza.attributes["from"] for stanza in bob.inbox if body_of(stanza)]
        assert b"jid='bob@localhost/crowd'" in presences(alice)[-1]  # a moderator sees the address
        assert b"jid='alice" not in presences(bob)[0]
        for room in here.messaging.groups.rooms.values():
            room.check()
        return bodies(alice), bodies(bob), senders

    assert in_virtual_time(work) == (["hello", "hi"], ["hello", "hi"], [f"{ROOM}/Alice", f"{ROOM}/Bob"])


def test_leaving_and_vanishing_are_seen_and_an_empty_temporary_room_is_gone():
    async def work(here):
        alice, bob = await client(here, "alice"), await client(here, "bob")
        await enter(alice, "Alice")
        await enter(bob, "Bob")
        bob.abort()
        await clock.sleep(1)
        await settled(alice)
        seen = b"type='unavailable'" in presences(alice)[-1]
        alice.send(f"<presence to='{ROOM}/Alice' type='unavailable'><status>bye</status></presence>".encode())
        await settled(alice)
        assert b"<status>bye</status>" in presences(alice)[-1]
        return seen, b"code='110'" in presences(alice)[-1], len(here.messaging.groups.rooms)

    assert in_virtual_time(work) == (True, True, 0)


def test_history_subject_and_configuration_of_a_persistent_room_survive_its_being_forgotten():
    async def work(here):
        alice, bob = await client(here, "alice"), await client(here, "bob")
        await enter(alice, "Alice")
        form = await alice.request("get", f"<query xmlns='{OWNER}'/>", to=ROOM)
        fields = ET.fromstring(form.raw).iter("{jabber:x:data}field")
        assert "muc#roomconfig_maxusers" in {field.get("var") for field in fields}
        assert await configure(alice, persistentroom="1", roomname="Tea &amp; cake") == "result"
        alice.send(f"<message to='{ROOM}' type='groupchat'><subject>biscuits</subject></message>".encode())
        for text in ("one", "two", "three"):
            await say(alice, text)
        alice.send(f"<presence to='{ROOM}/Alice' type='unavailable'/>".encode())
        await settled(alice)
        here.messaging.groups.rooms.clear()
        await enter(bob, "Bob", extra="<history maxstanzas='2'/>")
        await clock.sleep(1)
        delayed = [b"urn:xmpp:delay" in stanza.raw for stanza in bob.inbox if body_of(stanza)]
        subject = [stanza for stanza in bob.inbox if stanza.name == MESSAGE][-1]
        query = "<query xmlns='http://jabber.org/protocol/disco#items'/>"
        listed = (await bob.request("get", query, to="groups.localhost")).raw
        assert b"tea@groups.localhost" in listed
        return bodies(bob), delayed, b"<subject>biscuits</subject>" in subject.raw

    assert in_virtual_time(work) == (["two", "three"], [True, True], True)


def test_members_only_banned_and_password_rooms_refuse_with_the_right_words():
    async def work(here):
        alice, bob, carol = await client(here, "alice"), await client(here, "bob"), await client(here, "carol")
        await enter(alice, "Alice")
        await configure(alice, membersonly="1")
        await enter(bob, "Bob")
        told = [presences(bob)[-1]]
        assert b"result" in await administer(alice, "<item jid='bob@localhost' affiliation='member'/>")
        await enter(bob, "Bob")
        inside = b"affiliation='member'" in presences(bob)[-1]
        await administer(alice, "<item jid='bob@localhost' affiliation='outcast'/>")
        await settled(bob)
        banned = b"<status code='301'/>" in presences(bob)[-1]
        await enter(bob, "Bob")
        told.append(presences(bob)[-1])
        await configure(alice, membersonly="0", roomsecret="milk")
        await enter(carol, "Carol")
        told.append(presences(carol)[-1])
        await enter(carol, "Alice", extra="<password>milk</password>")
        told.append(presences(carol)[-1])
        await enter(carol, "Carol", extra="<password>milk</password>")
        return [raw.split(b"<error")[1].split(b"><")[1].split(b" ")[0] for raw in told], inside, banned

    words, inside, banned = in_virtual_time(work)
    assert words == [b"registration-required", b"forbidden", b"not-authorized", b"conflict"]
    assert inside
    assert banned


def test_moderators_mute_and_kick_and_others_may_not():
    async def work(here):
        alice, bob = await client(here, "alice"), await client(here, "bob")
        await enter(alice, "Alice")
        await enter(bob, "Bob")
        refused = await administer(bob, "<item nick='Alice' role='none'/>")
        await administer(alice, "<item nick='Bob' role='visitor'/>")
        await say(bob, "muted")
        error = [stanza for stanza in bob.inbox if stanza.attributes.get("type") == "error"][-1]
        await administer(alice, "<item nick='Bob' role='none'><reason>late</reason></item>")
        await settled(bob)
        kicked = presences(bob)[-1]
        return b"forbidden" in refused, b"forbidden" in error.raw, b"<status code='307'/>" in kicked, b"late" in kicked

    assert in_virtual_time(work) == (True, True, True, True)


def test_private_words_renaming_self_ping_and_invitations():
    async def work(here):
        alice, bob, carol = await client(here, "alice"), await client(here, "bob"), await client(here, "carol")
        await enter(alice, "Alice")
        await enter(bob, "Bob")
        alice.send(f"<message to='{ROOM}/Bob' type='chat'><body>psst</body></message>".encode())
        await settled(alice)
        bob.send(f"<presence to='{ROOM}/Robert'/>".encode())
        await settled(alice, bob)
        renamed = any(b"code='303'" in raw and b"nick='Robert'" in raw for raw in presences(alice))
        ping = "<ping xmlns='urn:xmpp:ping'/>"
        there = (await bob.request("get", ping, to=f"{ROOM}/Robert")).attributes["type"]
        outside = (await carol.request("get", ping, to=f"{ROOM}/Robert")).raw
        muc_user = "http://jabber.org/protocol/muc#user"
        invite = f"<x xmlns='{muc_user}'><invite to='carol@localhost'><reason>come</reason></invite></x>"
        alice.send(f"<message to='{ROOM}'>{invite}</message>".encode())
        await settled(alice, carol)
        invitation = [stanza.raw for stanza in carol.inbox if stanza.name == MESSAGE]
        return bodies(bob), renamed, there, b"not-acceptable" in outside, b"<reason>come</reason>" in invitation[0]

    assert in_virtual_time(work) == (["psst"], True, "result", True, True)


def test_who_changes_something_hears_of_it_after_everybody_else(monkeypatch):
    told, send = [], GroupChat.send

    def recording(self, occupant, *rest):
        told.append(occupant.address.local)
        send(self, occupant, *rest)

    async def work(here):
        alice, bob, carol = await client(here, "alice"), await client(here, "bob"), await client(here, "carol")
        for one, nick in ((alice, "Alice"), (bob, "Bob"), (carol, "Carol")):
            await enter(one, nick)
        monkeypatch.setattr(GroupChat, "send", recording)
        heard = []
        for stanza in (f"<presence to='{ROOM}/Alicia'/>", f"<presence to='{ROOM}/Alicia' type='unavailable'/>"):
            alice.send(stanza.encode())
            await settled(alice)
            heard.append(told[:])
            told.clear()
        return heard

    renamed, left = in_virtual_time(work)
    assert renamed == ["bob", "carol", "alice"] * 2
    assert left == ["bob", "carol", "alice"]


def test_a_destroyed_room_says_so_and_a_stopped_group_manager_refuses():
    async def work(here):
        alice = await client(here, "alice")
        await enter(alice, "Alice")
        await alice.request("set", f"<query xmlns='{OWNER}'><destroy><reason>over</reason></destroy></query>", to=ROOM)
        destroyed = b"<destroy" in presences(alice)[-1]
        here.messaging.router.switches.groups.on = False
        await enter(alice, "Alice")
        return destroyed, b"service-unavailable" in presences(alice)[-1]

    assert in_virtual_time(work) == (True, True)

"""The archive (XEP-0313 with XEP-0059), blocking (0191), cards (0054) and private notes (0049), in virtual time."""

import re

from tests.protocol.messaging.test_client_streams import bodies, client, in_virtual_time, settled

from fourplane.foundation import clock
from fourplane.messaging import stanzas

MAM = "urn:xmpp:mam:2"
BLOCKING = "urn:xmpp:blocking"


async def ask(one, *, result_set="<max>10</max>", **fields):
    form = f"<field var='FORM_TYPE' type='hidden'><value>{MAM}</value></field>"
    for key, value in fields.items():
        form += f"<field var='{key.strip('_')}'><value>{value}</value></field>"
    one.inbox.clear()
    answer = await one.request(
        "set",
        f"<query xmlns='{MAM}' queryid='q'><x xmlns='jabber:x:data' type='submit'>{form}</x>"
        f"<set xmlns='http://jabber.org/protocol/rsm'>{result_set}</set></query>",
    )
    found = [re.search(rb"<body>(.*?)</body>", stanza.raw).group(1).decode() for stanza in one.inbox]
    ids = [re.search(rb"<result [^>]*id='(\d+)'", stanza.raw).group(1).decode() for stanza in one.inbox]
    return found, ids, b"complete='true'" in answer.raw


def test_both_sides_find_the_conversation_in_pages_forwards_and_backwards():
    async def work(here):
        alice, bob = await client(here, "alice"), await client(here, "bob")
        for number in range(5):
            alice.message("bob@localhost", f"{number}")
        await settled(alice)
        bob.message("alice@localhost", "answer")
        await settled(bob)
        alice.message("carol@localhost", "other")
        await settled(alice, bob)
        everything, ids, complete = await ask(alice)
        assert (everything, complete) == (["0", "1", "2", "3", "4", "answer", "other"], True)
        assert (await ask(bob))[0] == ["0", "1", "2", "3", "4", "answer"]
        first, _, more = await ask(alice, result_set="<max>2</max>")
        after, _, _ = await ask(alice, result_set=f"<max>2</max><after>{ids[1]}</after>")
        last, _, _ = await ask(alice, result_set="<max>2</max><before/>")
        before, _, end = await ask(alice, result_set=f"<max>9</max><before>{ids[2]}</before>")
        with_carol, _, _ = await ask(alice, with_="carol@localhost")
        return first, more, after, last, before, end, with_carol

    first, more, after, last, before, end, with_carol = in_virtual_time(work)
    assert (first, more, after, last) == (["0", "1"], False, ["2", "3"], ["answer", "other"])
    assert (before, end, with_carol) == (["0", "1"], True, ["other"])


def test_times_bound_a_question_and_received_messages_carry_their_archive_id():
    async def work(here):
        alice, bob = await client(here, "alice"), await client(here, "bob")
        alice.message("bob@localhost", "early")
        await clock.sleep(100)
        middle = stanzas.timestamp(clock.now_us())
        await clock.sleep(100)
        alice.message("bob@localhost", "late")
        await settled(alice, bob)
        live = [re.search(rb"by='bob@localhost' id='(\d+)'", stanza.raw) for stanza in bob.inbox]
        live = [found.group(1).decode() for found in live if found]
        late, ids, _ = await ask(bob, start=middle)
        return (await ask(bob, end=middle))[0], late, ids == live[-1:]

    assert in_virtual_time(work) == (["early"], ["late"], True)


def test_false_archive_ids_are_taken_out_and_foreign_archives_are_closed():
    async def work(here):
        alice, bob = await client(here, "alice"), await client(here, "bob")
        lie = "<stanza-id xmlns='urn:xmpp:sid:0' by='bob@localhost' id='7'/>"
        alice.send(f"<message to='bob@localhost' type='chat'><body>x</body>{lie}</message>".encode())
        await settled(alice, bob)
        foreign = await alice.request("set", f"<query xmlns='{MAM}'/>", to="bob@localhost")
        raw = next(stanza.raw for stanza in bob.inbox if b"body>" in stanza.raw)
        return foreign.attributes["type"], b"id='7'" in raw or b'id="7"' in raw, raw.count(b"stanza-id")

    kind, kept, count = in_virtual_time(work)
    assert (kind, kept) == ("error", False)
    assert count >= 1


def test_a_blocked_person_reaches_nobody_and_is_told_nothing_more():
    async def work(here):
        alice, bob = await client(here, "alice"), await client(here, "bob")
        await bob.request("get", f"<blocklist xmlns='{BLOCKING}'/>")
        await bob.request("set", f"<block xmlns='{BLOCKING}'><item jid='alice@localhost'/></block>")
        alice.message("bob@localhost", "hello")
        error = await alice.next()
        bob.message("alice@localhost", "hm")
        own = await bob.next()
        pushed = any(stanza.raw.count(b"<block ") for stanza in bob.inbox)
        here.messaging.router.users.pop("bob@localhost").close_sessions("reset")
        await clock.sleep(1)
        bob = await client(here, "bob")
        listed = (await bob.request("get", f"<blocklist xmlns='{BLOCKING}'/>")).raw
        await bob.request("set", f"<unblock xmlns='{BLOCKING}'/>")
        alice.message("bob@localhost", "again")
        await settled(alice, bob)
        return b"service-unavailable" in error.raw, b"not-acceptable" in own.raw, pushed, listed, bodies(bob)

    refused, own, pushed, listed, seen = in_virtual_time(work)
    assert (refused, own, pushed, seen) == (True, True, True, ["again"])
    assert b"<item jid='alice@localhost'/>" in listed


def test_cards_are_public_and_private_notes_are_not():
    async def work(here):
        alice, bob = await client(here, "alice"), await client(here, "bob")
        card = "<vCard xmlns='vcard-temp'><FN>Alice &amp; Co</FN></vCard>"
        assert (await alice.request("set", card)).attributes["type"] == "result"
        seen = (await bob.request("get", "<vCard xmlns='vcard-temp'/>", to="alice@localhost")).raw
        missing = (await alice.request("get", "<vCard xmlns='vcard-temp'/>", to="bob@localhost")).raw
        note = "<query xmlns='jabber:iq:private'><note xmlns='u:n'>secret</note></query>"
        await alice.request("set", note)
        empty = "<query xmlns='jabber:iq:private'><note xmlns='u:n'/></query>"
        kept = (await alice.request("get", empty)).raw
        foreign = await bob.request("get", empty, to="alice@localhost")
        large = "<query xmlns='jabber:iq:private'><note xmlns='u:n'>" + "x" * 70_000 + "</note></query>"
        return seen, missing, kept, foreign.attributes["type"], (await alice.request("set", large)).raw

    seen, missing, kept, foreign, large = in_virtual_time(work)
    assert b"Alice &amp; Co" in seen
    assert b"item-not-found" in missing
    assert b"secret" in kept
    assert foreign == "error"
    assert b"policy-violation" in large

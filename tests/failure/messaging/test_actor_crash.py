"""Let it crash: a broken actor restarts from the store with its live clients, and nobody else notices."""

from tests.protocol.messaging.test_client_streams import bodies, client, in_virtual_time, settled

from fourplane.foundation import clock
from fourplane.foundation.errors import Unavailable
from fourplane.simulator.crowds.messaging_client import body_of


def break_actor(here, name):
    """A state no code path can have: the next stanza trips over it."""
    here.messaging.router.users[f"{name}@localhost"].blocked = 5


def test_a_crashed_actor_restarts_with_its_clients_and_its_roster():
    async def work(here):
        alice, bob, carol = await client(here, "alice"), await client(here, "bob"), await client(here, "carol")
        item = "<query xmlns='jabber:iq:roster'><item jid='carol@localhost' name='C'/></query>"
        await bob.request("set", item)
        break_actor(here, "bob")
        ident = alice.message("bob@localhost", "this one trips")
        error = await alice.next()
        alice.message("bob@localhost", "this one arrives")
        carol.message("alice@localhost", "unharmed")
        await settled(alice, carol)
        await clock.sleep(1)
        await settled(bob)
        roster = await bob.request("get", "<query xmlns='jabber:iq:roster'/>")
        assert error.attributes["id"] == ident
        assert b"internal-server-error" in error.raw
        assert here.messaging.statistics().actor_crashes == 1
        assert here.messaging.statistics().sessions == 3
        assert [e.level for e in here.registry.events if "crashed" in e.text] == ["error"]
        return bodies(bob), bodies(alice), b"name='C'" in roster.raw

    assert in_virtual_time(work) == (["this one arrives"], ["unharmed"], True)


def test_a_crash_in_the_own_client_answers_the_stanza_and_keeps_the_session():
    async def work(here):
        alice, bob = await client(here, "alice"), await client(here, "bob")
        break_actor(here, "alice")
        alice.message("bob@localhost", "trips")
        error = await alice.next()
        alice.message("bob@localhost", "arrives")
        await settled(alice, bob)
        return b"internal-server-error" in error.raw, bodies(bob), alice.closed

    assert in_virtual_time(work) == (True, ["arrives"], False)


def test_an_actor_that_crashes_again_and_again_is_disconnected_alone():
    async def work(here):
        alice, bob = await client(here, "alice"), await client(here, "bob")
        for _ in range(6):
            break_actor(here, "bob")
            alice.message("bob@localhost", "trips")
            await clock.sleep(0.5)
        await settled(alice)
        return bob.stream_error, alice.closed

    assert in_virtual_time(work) == ("internal-server-error", False)


def test_a_store_that_fails_is_told_to_the_sender_and_nothing_is_acknowledged_before():
    async def work(here):
        alice = await client(here, "alice", manage=True)
        write = here.messaging.store.records.write
        failing = True

        async def write_or_fail(partition, changes):
            if failing:
                await clock.sleep(3)
                raise Unavailable("the disk is gone")
            await write(partition, changes)

        here.messaging.store.records.write = write_or_fail
        alice.message("bob@localhost", "lost?")
        alice.send(b"<r xmlns='urn:xmpp:sm:3'/>")
        await clock.sleep(1)
        early = [s.attributes["h"] for s in alice.inbox if s.name == "urn:xmpp:sm:3 a"]
        error = await alice.next()
        await clock.sleep(1)
        late = [s.attributes["h"] for s in alice.inbox if s.name == "urn:xmpp:sm:3 a"]
        failing = False
        alice.message("bob@localhost", "kept")
        await settled(alice)
        bob = await client(here, "bob")
        return early, b"internal-server-error" in error.raw, late, body_of(await bob.next())

    early, told, late, kept = in_virtual_time(work)
    assert (told, kept) == (True, "kept")
    handled_before = int(early[0]) if early else 0
    assert int(late[-1]) == handled_before + 1 if early else int(late[-1]) > 0

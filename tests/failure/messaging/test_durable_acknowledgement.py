"""An acknowledgement of stream management means: the reader has it, or the disk has it."""

from tests.protocol.messaging.test_client_streams import bodies, client, in_virtual_time, settled

from fourplane.foundation import clock
from fourplane.simulator.crowds.messaging_client import body_of

ASK = b"<r xmlns='urn:xmpp:sm:3'/>"


def told(one):
    return [int(stanza.attributes["h"]) for stanza in one.inbox if stanza.name == "urn:xmpp:sm:3 a"]


def test_a_message_is_acknowledged_when_its_reader_has_acknowledged_it():
    async def work(here):
        alice, bob = await client(here, "alice", manage=True), await client(here, "bob", manage=True)
        await settled(alice, bob)
        before = 3  # roster, presence, ping
        alice.message("bob@localhost", "hello")
        alice.send(ASK)
        await clock.sleep(1)
        return told(alice)[-1] - before, bodies(bob), here.messaging.statistics().stored

    assert in_virtual_time(work) == (1, ["hello"], 0)


def test_a_reader_that_says_nothing_does_not_delay_it_long_because_the_disk_answers_for_it():
    async def work(here):
        alice, bob = await client(here, "alice", manage=True), await client(here, "bob", manage=True)
        await settled(alice, bob)
        bob._transport.pause_reading()
        alice.message("bob@localhost", "hello")
        alice.send(ASK)
        await clock.sleep(1)
        early = told(alice)[-1:]
        await clock.sleep(4)
        late = told(alice)[-1]
        bob._transport.resume_reading()
        await clock.sleep(1)
        await settled(bob)
        again = await client(here, "bob", resource="again")
        await clock.sleep(5)
        return early, late, bodies(bob), bodies(again), here.messaging.router.users["bob@localhost"].offline_count

    early, late, first, second, left = in_virtual_time(work)
    assert early in ([], [3])
    assert (late, first, second, left) == (4, ["hello"], [], 0)


def test_every_acknowledged_message_arrives_once_and_in_order_whenever_the_reader_vanishes():
    for vanish_after in range(0, 40, 9):

        async def work(here, vanish_after=vanish_after):
            alice, bob = await client(here, "alice", manage=True), await client(here, "bob", manage=True)
            await settled(alice, bob)
            seen = []
            for number in range(40):
                alice.message("bob@localhost", f"{number}")
                if number == vanish_after:
                    await clock.sleep(0.0005 * vanish_after)
                    bob.abort()
            seen += bodies(bob)
            await clock.sleep(1)
            again = await client(here, "bob", resource="again" if vanish_after % 2 else "crowd", manage=True)
            await clock.sleep(400)
            seen += bodies(again)
            alice.send(ASK)
            await clock.sleep(5)
            return told(alice)[-1], sorted(set(seen), key=int), bodies(again)

        acknowledged, seen, later = in_virtual_time(work)
        assert acknowledged == 43
        assert seen == [str(number) for number in range(40)]
        assert later == sorted(later, key=int)
        assert len(later) == len(set(later))


def test_body_of_reads_what_was_sent():
    async def work(here):
        alice, bob = await client(here, "alice"), await client(here, "bob")
        alice.message("bob@localhost", "a < b & c")
        return body_of(await bob.next())

    assert in_virtual_time(work) == "a < b & c"

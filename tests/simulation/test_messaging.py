"""The messaging system in virtual time: the same seed gives the same run, byte for byte."""

from tests.journeys.messaging.house import PASSWORD, house

from fourplane.foundation import clock
from fourplane.simulator import loop
from fourplane.simulator.crowds.messaging_client import XmppClient, body_of

PORT = 5_222


async def journey(world):
    async with house(None, ("alice", "bob"), tls=False, port=PORT, host="127.0.0.1") as here:
        alice, bob = XmppClient("alice", PASSWORD), XmppClient("bob", PASSWORD)
        await alice.connect("127.0.0.1", PORT)
        await alice.login(manage=True)
        for number in range(3):
            alice.message("bob@localhost", f"away {number}")
        await alice.request("get", "<ping xmlns='urn:xmpp:ping'/>")
        await clock.sleep(60)
        await bob.connect("127.0.0.1", PORT)
        await bob.login(manage=True)
        seen = [body_of(await bob.next()) for _ in range(3)]
        bob.message("alice@localhost", "back")
        seen.append(body_of(await alice.next()))
        bob.abort()
        await clock.sleep(1)
        alice.message("bob@localhost", "resume")
        await alice.request("get", "<ping xmlns='urn:xmpp:ping'/>")
        again = XmppClient("bob", PASSWORD)
        await again.connect("127.0.0.1", PORT)
        await again.authenticate()
        await again.resume(bob.resume_id, bob.handled)
        seen.append(body_of(await again.next()))
        again.abort()
        await clock.sleep(here.messaging.router.settings.resume_s + 1)
        alice.message("bob@localhost", "after the resumption lapsed")
        await alice.request("get", "<ping xmlns='urn:xmpp:ping'/>")
        # three while bob was away, one for his broken session (forgotten when he acknowledged it), one after that had lapsed
        assert here.messaging.statistics().stored == 5
        assert here.messaging.statistics().sessions == 1
        await alice.close()
        return seen


def test_a_seed_gives_the_same_run_twice():
    first, second = loop.run(journey, 7), loop.run(journey, 7)
    assert first.result == ["away 0", "away 1", "away 2", "back", "resume"]
    assert first.digest == second.digest
    assert loop.run(journey, 8).digest != first.digest

"""What is stored later is read later, also when the wall clock was set back while the server was down."""

import asyncio

from tests.protocol.messaging.test_archive import ask
from tests.protocol.messaging.test_client_streams import bodies, client, in_virtual_time, settled
from tests.protocol.messaging.test_groups import OWNER, ROOM, configure, enter, presences, say

from fourplane.foundation import clock
from fourplane.foundation.ids import IdGenerator
from fourplane.simulator.loop import current_host

HOUR_S = 3_600


def begin_anew_in_the_past(here):
    """What a restart forgets, on a machine whose clock was set back meanwhile."""
    here.messaging.router.users.clear()
    here.messaging.groups.rooms.clear()
    here.messaging.router.ids = IdGenerator(0)
    asyncio.get_running_loop().source.skew_us[current_host()] = -HOUR_S * 1_000_000


async def leave_a_message(here, text):
    alice = await client(here, "alice")
    alice.message("bob@localhost", text)
    await settled(alice)
    await alice.close()
    await clock.sleep(1)


def test_waiting_and_archived_messages_keep_their_order():
    async def work(here):
        await leave_a_message(here, "before")
        begin_anew_in_the_past(here)
        await leave_a_message(here, "after")
        await leave_a_message(here, "at last")
        alice, bob = await client(here, "alice"), await client(here, "bob")
        await settled(alice, bob)
        await clock.sleep(1)
        return bodies(bob), (await ask(bob))[0], (await ask(alice))[0]

    assert in_virtual_time(work) == (["before", "after", "at last"],) * 3


def test_a_groups_history_keeps_its_order():
    async def work(here):
        for text in ("before", "after"):
            alice = await client(here, "alice")
            await enter(alice, "Alice")
            await configure(alice, persistentroom="1")
            await say(alice, text)
            await alice.close()
            begin_anew_in_the_past(here)
        bob = await client(here, "bob")
        await enter(bob, "Bob")
        await clock.sleep(1)
        return bodies(bob)

    assert in_virtual_time(work) == ["before", "after"]


def test_a_new_group_of_a_name_does_not_tell_what_an_earlier_one_said():
    async def work(here):
        alice, bob = await client(here, "alice"), await client(here, "bob")
        await enter(alice, "Alice")
        await configure(alice, persistentroom="1")
        await say(alice, "secret")
        await alice.request("set", f"<query xmlns='{OWNER}'><destroy/></query>", to=ROOM)
        assert b"<destroy" in presences(alice)[-1]
        await enter(alice, "Alice")
        await configure(alice, persistentroom="1")
        await say(alice, "hello")
        await alice.close()
        here.messaging.groups.rooms.clear()
        await enter(bob, "Bob")
        await clock.sleep(1)
        return bodies(bob)

    assert in_virtual_time(work) == ["hello"]

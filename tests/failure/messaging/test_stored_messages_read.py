"""Stored messages cannot be read, or not be forgotten, for a while: the client gets each once without asking again."""

import pytest
from tests.protocol.messaging.test_client_streams import bodies, client, in_virtual_time, settled

from fourplane.foundation import clock
from fourplane.foundation.errors import Unavailable


def fails(store, name, times):
    """The next calls of one of the store's methods fail; a list that grows with each."""
    working, failed = getattr(store, name), []

    async def sick(*arguments):
        if len(failed) < times:
            failed.append(name)
            raise Unavailable("the disk is away")
        return await working(*arguments)

    setattr(store, name, sick)
    return failed


@pytest.mark.parametrize("method", ["offline", "forget_offline"])
@pytest.mark.parametrize(("times", "wait_s"), [(1, 1), (8, 40)])
def test_a_store_that_is_away_for_a_while_is_asked_again(method, times, wait_s):
    async def work(here):
        alice = await client(here, "alice")
        for number in range(3):
            alice.message("bob@localhost", f"{number}")
        await settled(alice)
        failed = fails(here.messaging.store, method, times)
        bob = await client(here, "bob")
        await clock.sleep(wait_s)
        alice.message("bob@localhost", "behind them")
        await settled(alice, bob)
        await clock.sleep(1)
        left = await here.messaging.store.offline("bob@localhost", 10)
        return len(failed), bodies(bob), len(left)

    assert in_virtual_time(work) == (times, ["0", "1", "2", "behind them"], 0)


def test_a_store_that_stays_away_is_left_alone_until_the_next_presence():
    async def work(here):
        alice = await client(here, "alice")
        alice.message("bob@localhost", "0")
        await settled(alice)
        failed = fails(here.messaging.store, "offline", 9)
        bob = await client(here, "bob")
        await clock.sleep(600)
        tried = len(failed)
        told = [event.text for event in here.registry.events if event.level == "warning"]
        bob.send(b"<presence/>")
        await clock.sleep(1)
        return tried, told, bodies(bob)

    assert in_virtual_time(work) == (9, ["stored messages cannot be read"], ["0"])

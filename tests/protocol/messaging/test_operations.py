"""What an operator sees and ends, over live sessions in virtual time."""

import pytest
from tests.protocol.messaging.test_client_streams import client, in_virtual_time, settled
from tests.protocol.messaging.test_groups import configure, enter, say

from fourplane.edge.routes import Call, Route
from fourplane.foundation import clock
from fourplane.foundation.errors import NotFound
from fourplane.messaging.operations import API, Ended, Operations


def operations(here):
    messaging = here.messaging
    return Operations(messaging.router, messaging.streams, messaging.groups, here.registry)


def ending(user):
    return Call(body=Ended(user), params={}, query={}, headers={}, identity=None, peer="", request_id="")


def test_sessions_rooms_and_queues_are_seen_and_sessions_can_be_ended():
    async def work(here):
        alice, bob = await client(here, "alice"), await client(here, "bob", manage=True)
        alice.message("carol@localhost", "later")
        await enter(alice, "Alice")
        await configure(alice, persistentroom="1")
        await say(alice, "hello")
        bob.abort()
        await clock.sleep(1)
        alice.message("bob@localhost", "owed")
        await settled(alice)
        await clock.sleep(1)
        seen = operations(here)
        [first, second] = seen.seen("").session_rows
        assert (first.user, first.state, first.unacknowledged) == ("bob@localhost", "broken, may resume", 1)
        assert (second.user, second.resource, second.state) == ("alice@localhost", "crowd", "online")
        assert [(row.room, row.occupants, row.remembered) for row in seen.seen("tea").room_rows] == [
            ("tea@groups.localhost", 1, 1)
        ]
        assert seen.seen("nobody").session_rows == []
        await seen.end(ending("alice@localhost"))
        await clock.sleep(1)
        assert alice.closed
        with pytest.raises(NotFound):
            await seen.end(ending("alice@localhost"))
        return seen.seen("").sessions

    assert in_virtual_time(work) == 1


def test_only_operators_may_look():
    async def work(here):
        return [door.access for door in here.messaging.doors() if isinstance(door, Route) and door.path.startswith(API)]

    assert in_virtual_time(work) == ["operator", "operator"]

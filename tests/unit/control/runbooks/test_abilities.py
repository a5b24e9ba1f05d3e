"""What runbooks do through the doors: a busy door is asked again for a while, one that says no is not."""

import asyncio

import pytest

from fourplane.control.runbooks.abilities import AGAIN_S, Abilities
from fourplane.foundation import clock, network
from fourplane.foundation.errors import Unavailable
from fourplane.simulator import loop as simulated

BUSY, CUT, OK, NO = 503, 0, 200, 403


def asked(*answers):
    """What the door said in the end, how often it was asked, and how long it took; the last answer goes on for ever."""

    async def main(_world):
        left, seen = list(answers), []

        class Door(asyncio.Protocol):
            def connection_made(self, transport):
                self.transport = transport

            def data_received(self, _data):
                status = left.pop(0) if len(left) > 1 else left[0]
                seen.append(status)
                if status == CUT:
                    self.transport.abort()
                else:
                    self.transport.write(b"HTTP/1.1 %d x\r\ncontent-length: 2\r\n\r\n{}" % status)

        server = await network.listen(Door, "127.0.0.1", 0)

        async def token():
            return "t"

        abilities = Abilities(
            where=lambda: ("127.0.0.1", network.port_of(server)),
            token=token,
            systems=(),
            query=None,
            blobs=None,
            page=None,
        )
        began_s = clock.monotonic_s()
        try:
            found = await abilities.api("POST", "/streaming/api/regions/us", {"evacuated": True})
        except Unavailable as error:
            found = error.reason
        server.close()
        return found, len(seen), clock.monotonic_s() - began_s

    return simulated.run(main, 1).result


@pytest.mark.parametrize("first", [BUSY, CUT])
def test_a_door_that_is_busy_or_was_cut_is_asked_again(first):
    assert asked(first, first, OK)[:2] == ({}, 3)


def test_a_door_that_says_no_is_asked_once():
    assert asked(NO)[:2] == ("door_refused", 1)


@pytest.mark.parametrize("always", [BUSY, CUT])
def test_patience_ends(always):
    found, times, took_s = asked(always)
    assert found in {"door_refused", "no_answer"}
    assert 4 <= times <= 12
    assert took_s <= AGAIN_S + 1.0

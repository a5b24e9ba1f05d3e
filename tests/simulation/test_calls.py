"""Calls over a network: a host that vanishes without a word, one that is busy for long, a cut that heals."""

import asyncio

import pytest

from fourplane.foundation import clock
from fourplane.foundation.errors import Unavailable
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry
from fourplane.service import call_context
from fourplane.service.rpc import idempotent, remote
from fourplane.service.rpc_client import Peer, PeerSettings
from fourplane.service.rpc_server import RpcServer
from fourplane.simulator import loop as simulator

HERE, THERE, PORT = "here", "there", 8_001
CALL_S = 30.0
SILENT_S = PeerSettings().silent_s
STEP_S = 0.2  # how late a sweep may be, and a little of the way


class Clerk:
    def __init__(self):
        self.begun = 0

    async def work(self, seconds: float) -> int:
        self.begun += 1
        await clock.sleep(seconds)
        return self.begun

    @idempotent
    async def look(self, seconds: float) -> int:
        return await self.work(seconds)


async def serve(world):
    """A clerk on the other host."""
    with world.on(THERE):
        clerk = Clerk()
        server = RpcServer(Registry(), host=THERE, port=PORT)
        server.add("clerk", Clerk, clerk)
        lifecycle = Lifecycle(Registry())
        lifecycle.add("calls", server)
        await lifecycle.start()
    return clerk


def world_of(main):
    """The same world twice: what `main(world, far, peer)` returns, and that both were the same."""

    async def body(world):
        await serve(world)
        with world.on(HERE):
            peer = Peer(host=THERE, port=PORT)
            far = remote(Clerk, peer, "clerk")
            assert await far.work(0.0) == 1
            with call_context.within(CALL_S):
                result = await main(world, far, peer)
            peer.close()
            return result

    first, second = (simulator.run(body, 3, virtual_s_max=300) for _ in range(2))
    assert first.digest == second.digest
    return first.result


async def failed_after(began, call):
    with pytest.raises(Unavailable) as lost:
        await call
    return lost.value.reason, clock.monotonic_s() - began


def test_a_call_to_a_host_that_vanished_fails_within_seconds():
    async def main(world, far, _peer):
        call = asyncio.ensure_future(far.work(3_600.0))
        await clock.sleep(1.0)
        began = clock.monotonic_s()
        world.crash(THERE, silent=True)
        return await failed_after(began, call)

    reason, took_s = world_of(main)
    assert reason == "connection_lost"
    assert took_s <= SILENT_S + STEP_S


def test_a_call_that_may_be_repeated_finds_the_host_that_came_back():
    async def main(world, far, peer):
        call = asyncio.ensure_future(far.look(2.0))
        await clock.sleep(1.0)
        began = clock.monotonic_s()
        world.crash(THERE, silent=True)
        world.revive(THERE)
        await serve(world)
        return await call, clock.monotonic_s() - began, peer.statistics().repeated

    answer, took_s, repeated = world_of(main)
    assert (answer, repeated) == (1, 1)
    assert took_s <= SILENT_S + 2.0 + 2 * STEP_S


def test_a_long_call_to_a_host_that_is_there_is_waited_for():
    async def main(_world, far, peer):
        return await far.work(20.0), peer.statistics().lost

    assert world_of(main) == (2, 0)


def test_a_cut_shorter_than_patience_costs_time_and_no_error():
    async def main(world, far, peer):
        call = asyncio.ensure_future(far.work(6.0))
        await clock.sleep(0.5)
        world.network.partition(HERE, THERE)
        world.later(SILENT_S / 2, world.network.heal, HERE, THERE)
        return await call, peer.statistics().lost

    assert world_of(main) == (2, 0)


def test_a_peer_that_gives_no_signs_is_waited_for_until_the_deadline(monkeypatch):
    """The version before never greets and answers no question."""
    monkeypatch.setattr("fourplane.service.rpc_server.PONG", 99)

    async def main(_world, far, _peer):
        return await far.work(20.0)

    assert world_of(main) == 2

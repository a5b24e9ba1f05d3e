"""Calls over a network: a host that vanishes without a word, one that is busy for long, a cut that heals."""

import asyncio
from collections.abc import AsyncIterator

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
        self.cancelled_at = []

    async def work(self, seconds: float) -> int:
        self.begun += 1
        try:
            await clock.sleep(seconds)
        except asyncio.CancelledError:
            self.cancelled_at.append(clock.monotonic_s())
            raise
        return self.begun

    async def watch(self, seconds: float) -> AsyncIterator[int]:
        await clock.sleep(seconds)
        yield 1

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
    clerk.server = server
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


def callee_of(main):
    """The same world twice, with a caller on a host of its own: what `main(world, clerk, far)` returns."""

    async def body(world):
        clerk = await serve(world)
        with world.on(HERE):
            peer = Peer(host=THERE, port=PORT)
            far = remote(Clerk, peer, "clerk")
            assert await far.work(0.0) == 1
        result = await main(world, clerk, far)
        peer.close()
        return result

    first, second = (simulator.run(body, 7, virtual_s_max=5_000) for _ in range(2))
    assert first.digest == second.digest
    return first.result


def test_the_work_of_a_caller_that_vanished_is_cancelled_and_its_connection_ends():
    async def main(world, clerk, far):
        with world.on(HERE):
            calls = [asyncio.ensure_future(far.work(3_600.0)) for _ in range(2)]
        await clock.sleep(1.0)
        began = clock.monotonic_s()
        world.crash(HERE, silent=True)
        await clock.sleep(SILENT_S + 1.0)
        told = clerk.server.statistics()
        for call in calls:
            call.cancel()
        return [at - began for at in clerk.cancelled_at], told.connections, told.running, told.vanished

    took_s, connections, running, vanished = callee_of(main)
    assert len(took_s) == 2
    assert max(took_s) <= SILENT_S + 2 * STEP_S
    assert (connections, running, vanished) == (0, 0, 1)


def test_the_idle_connection_of_a_host_that_vanished_ends():
    async def main(world, clerk, _far):
        await clock.sleep(60.0)
        before = clerk.server.statistics().connections
        world.crash(HERE, silent=True)
        await clock.sleep(SILENT_S + 2 * STEP_S)
        return before, clerk.server.statistics().connections

    assert callee_of(main) == (1, 0)


def test_who_waits_for_a_stream_that_says_nothing_is_not_given_up():
    async def main(world, clerk, far):
        async def items():
            return [item async for item in far.watch(60.0)]

        with world.on(HERE), call_context.within(120.0):
            call = asyncio.ensure_future(items())
        await clock.sleep(61.0)
        return await call, clerk.server.statistics().vanished

    assert callee_of(main) == ([1], 0)


def test_a_caller_of_the_version_before_that_gives_no_signs_is_not_judged(monkeypatch):
    monkeypatch.setattr("fourplane.service.rpc_client.SIGN", 99)

    async def main(_world, clerk, _far):
        await clock.sleep(60.0)
        return clerk.server.statistics().connections

    assert callee_of(main) == 1

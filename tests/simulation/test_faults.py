"""What can be wrong in a simulated world, each for itself: ways, clocks, disks."""

import asyncio
import random
from random import Random

import pytest

from fourplane.foundation import clock, network
from fourplane.foundation.errors import Rejected
from fourplane.simulator import faults, loop
from fourplane.simulator.links import Disturbance, Link
from fourplane.simulator.setting import Ours
from fourplane.simulator.stage import USERS, Stage
from fourplane.state.embedded.vfs import Disk, Faults


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


async def connected(world):
    with world.on("server"):
        await network.listen(Echo, "127.0.0.1", 7)
    with world.on("client"):
        return await asyncio.open_connection("server", 7)


def test_one_way_lets_questions_through_and_no_answer():
    async def main(world):
        reader, writer = await connected(world)
        cut = Disturbance(frozenset({"server"}), frozenset({"client"}), cut=True)
        world.network.disturb(cut)
        before = world.network.delivered
        writer.write(b"question")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(8), 3)
        world.network.settle_digest()
        arrived = world.network.delivered - before
        world.network.calm(cut)
        return arrived, await asyncio.wait_for(reader.read(8), 3)

    assert loop.run(main, 1).result == (1, b"question")


def test_a_process_that_dies_during_a_partition_is_heard_of_when_it_ends():
    async def main(world):
        reader, writer = await connected(world)
        world.network.partition("server", "client", one_way=True)
        writer.write(b"question")
        await clock.sleep(1)  # the answer waits at the server's machine
        world.crash("server")
        await clock.sleep(1)
        world.network.heal("server", "client")
        assert await asyncio.wait_for(reader.read(8), 2) == b"question"
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(8), 2)

    loop.run(main, 1)


def test_a_machine_that_came_back_resets_what_it_does_not_know():
    async def main(world):
        reader, writer = await connected(world)
        world.crash("server", silent=True)
        writer.write(b"nobody answers")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(8), 2)
        world.revive("server")
        writer.write(b"who are you")
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(8), 2)

    loop.run(main, 1)


def test_a_narrow_way_carries_one_after_the_other():
    async def main(world):
        reader, writer = await connected(world)
        world.network.disturb(Disturbance(frozenset({"client"}), frozenset({"server"}), bandwidth=10_000.0))
        began = clock.monotonic_s()
        for _ in range(5):
            writer.write(b"x" * 2_000)
        await reader.readexactly(10_000)
        return clock.monotonic_s() - began

    assert 1.0 <= loop.run(main, 1).result < 1.1


def test_a_skewed_clock_is_wrong_on_its_host_alone_and_time_passes_the_same():
    async def main(world):
        world.skew("late", -30.0)
        with world.on("late"):
            late = clock.now_us(), clock.monotonic_s()
        with world.on("right"):
            right = clock.now_us(), clock.monotonic_s()
        return right[0] - late[0], right[1] - late[1]

    assert loop.run(main, 1).result == (30_000_000, 0.0)


def test_disturbances_end_for_themselves():
    async def main(world):
        for host in ("a", "b"):
            world.network.place(host, zone="z", region="r")
        world.network.link("a", "b", Link(0.01))
        slow = [Disturbance(frozenset("a"), frozenset("b"), latency_s=more) for more in (0.1, 0.2)]
        for one in slow:
            world.network.disturb(one)
        both = world.network.way("a", "b").link.latency_s
        world.network.calm(slow[0])
        return both, world.network.way("a", "b").link.latency_s, world.network.way("b", "a").link.latency_s

    assert loop.run(main, 1).result == pytest.approx((0.31, 0.21, 0.01))


@pytest.mark.parametrize(("percent", "meant"), [(100, 12), (50, 6), (25, 3), (1, 1)])
def test_a_share_of_the_hosts_is_drawn(percent, meant):
    async def main(world):
        stage = Stage(world, Ours("streaming"), 5)
        faults.latency(0.5, percent=percent)
        server = stage.deployment.host
        slow = [user.host for user in USERS if world.network.way(user.host, server).link.latency_s > 0.4]
        await stage.close()
        return len(slow)

    assert loop.run(main, 1).result == meant


def test_more_than_all_hosts_is_refused():
    async def main(world):
        stage = Stage(world, Ours("streaming"), 5)
        try:
            faults.partition(percent=120)
        finally:
            await stage.close()

    with pytest.raises(Rejected):
        loop.run(main, 1)


def test_a_crash_keeps_what_was_synced_and_loses_or_tears_the_rest(tmp_path):
    path, lost, torn, kept = str(tmp_path / "file"), 0, 0, 0
    for seed in range(60):
        disk = Disk(faults=Faults())
        disk.pwrite(path, b"a" * 4_096, 0)
        disk.sync(path)
        disk.pwrite(path, b"b" * 4_096, 0)
        disk.crash(Random(seed))
        found = disk.read(path, 4_096, 0)
        disk.close()
        lost += found == b"a" * 4_096
        kept += found == b"b" * 4_096
        torn += len(set(found)) == 2
    assert lost > 10
    assert kept > 5
    assert torn > 3
    assert lost + kept + torn == 60


def test_errors_that_nobody_caught_are_told():
    async def main(world):
        def fails():
            raise ValueError("forgotten")

        asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
        asyncio.get_running_loop().call_soon(fails)
        await clock.sleep(random.Random(1).random())
        return world.unhandled

    assert loop.run(main, 1).result == ["ValueError: forgotten"]


def test_a_protocol_that_raises_loses_its_connection():
    class Fragile(Echo):
        def data_received(self, data):
            raise RuntimeError(data.decode())

    async def main(world):
        asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
        with world.on("server"):
            await network.listen(Fragile, "127.0.0.1", 7)
        with world.on("client"):
            reader, writer = await asyncio.open_connection("server", 7)
            writer.write(b"bad")
            with pytest.raises(ConnectionResetError):
                await reader.read(1)
        return world.unhandled

    assert loop.run(main, 1).result == ["RuntimeError: bad"]

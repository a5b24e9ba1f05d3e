"""The simulated world: virtual time, in-memory sockets, and runs that repeat."""

import asyncio
import contextvars
import os
import subprocess
import sys

import pytest

from fourplane.foundation import blocking, clock, network
from fourplane.simulator import loop as simulator
from fourplane.simulator.network import Link


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


async def conversation(world):
    with world.on("server", region="eu", zone="eu-1"):
        server = await network.listen(Echo, "127.0.0.1", 7000)
    with world.on("client", region="us", zone="us-1"):
        reader, writer = await asyncio.open_connection("server", 7000)
        answers = []
        for turn in range(5):
            writer.write(b"%d %d" % (turn, clock.random().randrange(1_000_000)))
            answers.append(await reader.read(100))
        writer.close()
    async with asyncio.TaskGroup() as group:
        for name in ("a", "b", "c"):
            group.create_task(wander(world, name))
    server.close()
    return answers


async def wander(world, name):
    for _ in range(10):
        await clock.sleep(clock.random().random())
        world.note(name)
    done, _ = await asyncio.wait([asyncio.create_task(clock.sleep(0.5)) for _ in range(5)])
    world.note(f"{name} waited for {len(done)}")


def test_hours_of_waiting_take_no_time():
    async def main(_):
        before = clock.now_us()
        await clock.sleep(7_200)
        return clock.now_us() - before

    assert simulator.run(main, 1).result == 7_200 * 1_000_000


def test_one_seed_is_one_run():
    first, second = simulator.run(conversation, 7), simulator.run(conversation, 7)
    assert first == second
    assert first.messages >= 10


def test_another_seed_is_another_run():
    assert simulator.run(conversation, 7).digest != simulator.run(conversation, 8).digest


def test_runs_are_equal_across_processes():
    program = "from tests.simulation.test_loop import *; print(simulator.run(conversation, 7).digest)"
    digests = set()
    for hash_seed in ("0", "0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        answer = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=True
        )
        digests.add(answer.stdout.strip())
    assert len(digests) == 1


def test_wide_area_takes_longer_than_a_zone():
    async def round_trip(world, region):
        with world.on("server", region="eu"):
            await network.listen(Echo, "127.0.0.1", 7000)
        with world.on("client", region=region):
            reader, writer = await asyncio.open_connection("server", 7000)
            began = clock.monotonic_s()
            writer.write(b"x")
            await reader.read(1)
            return clock.monotonic_s() - began

    near = simulator.run(lambda world: round_trip(world, "eu"), 1).result
    far = simulator.run(lambda world: round_trip(world, "us"), 1).result
    assert near < 0.002
    assert far >= 0.08


def test_a_partition_holds_messages_back_until_it_heals():
    async def main(world):
        with world.on("server"):
            await network.listen(Echo, "127.0.0.1", 7000)
        with world.on("client"):
            reader, writer = await asyncio.open_connection("server", 7000)
            world.network.partition("client", "server")
            writer.write(b"one ")
            writer.write(b"two")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 5)
            world.network.heal("client", "server")
            return await asyncio.wait_for(reader.readexactly(7), 5)

    assert simulator.run(main, 3).result == b"one two"


def test_what_is_written_after_a_partition_stays_behind_what_waited():
    async def main(world):
        with world.on("server"):
            await network.listen(Echo, "127.0.0.1", 7000)
        with world.on("client"):
            reader, writer = await asyncio.open_connection("server", 7000)
            world.network.partition("client", "server")
            writer.write(b"first ")
            await clock.sleep(0.5)
            world.network.heal("client", "server")
            writer.write(b"second")
            return await reader.readexactly(12)

    assert simulator.run(main, 3).result == b"first second"


def test_a_connection_is_served_on_the_host_that_listens():
    async def main(world):
        seen = []

        class Where(asyncio.Protocol):
            def connection_made(self, transport):
                seen.append(simulator.current_host())
                self.transport = transport

            def data_received(self, _data):
                seen.append(simulator.current_host())

        with world.on("server"):
            await network.listen(Where, "127.0.0.1", 7000)
        with world.on("client"):
            _reader, writer = await asyncio.open_connection("server", 7000)
            writer.write(b"x")
            await clock.sleep(1)
        return seen

    assert simulator.run(main, 3).result == ["server", "server"]


def test_a_crashed_host_runs_no_finally_and_resets_its_peers():
    async def main(world):
        cleaned = []

        async def serve():
            await network.listen(Echo, "127.0.0.1", 7000)
            try:
                await clock.sleep(1_000)
            finally:
                cleaned.append("ran")

        with world.on("server"):
            task = asyncio.create_task(serve())
        await clock.sleep(0.1)
        with world.on("client"):
            reader, _writer = await asyncio.open_connection("server", 7000)
            world.crash("server")
            with pytest.raises(ConnectionResetError):
                await reader.read(1)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("server", 7000)
        await clock.sleep(2_000)
        assert not task.done()
        return list(cleaned)

    assert simulator.run(main, 3).result == []


def test_a_slow_reader_pauses_the_writer():
    async def main(_):
        class Sink(asyncio.Protocol):
            def connection_made(self, transport):
                self.transport = transport
                transport.pause_reading()

        sinks = []

        def make():
            sinks.append(Sink())
            return sinks[-1]

        server = await network.listen(make, "127.0.0.1", 0)
        _reader, writer = await asyncio.open_connection("127.0.0.1", network.port_of(server))
        writer.write(b"x" * 200_000)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(writer.drain(), 10)
        sinks[0].transport.resume_reading()
        await asyncio.wait_for(writer.drain(), 10)
        return True

    assert simulator.run(main, 1).result


def test_blocking_work_runs_inline_in_order():
    async def main(_):
        worker = blocking.Worker("disk")
        order = []
        jobs = [worker.submit(order.append, number) for number in range(20)]
        await asyncio.gather(*jobs)
        with pytest.raises(ZeroDivisionError):
            await worker.submit(lambda: 1 // 0)
        return order

    assert simulator.run(main, 1).result == list(range(20))


def test_waiting_for_nothing_is_reported():
    async def main(_):
        await asyncio.get_running_loop().create_future()

    with pytest.raises(simulator.Stalled):
        simulator.run(main, 1)


def test_an_endless_run_is_ended():
    async def main(_):
        while True:
            await clock.sleep(1)

    with pytest.raises(simulator.Endless):
        simulator.run(main, 1, virtual_s_max=100)


def test_datagrams_arrive_or_are_lost():
    class Count(asyncio.DatagramProtocol):
        def __init__(self):
            self.seen = 0

        def datagram_received(self, _data, _addr):
            self.seen += 1

    async def main(world):
        loop = asyncio.get_running_loop()
        with world.on("server"):
            _, protocol = await loop.create_datagram_endpoint(Count, local_addr=("127.0.0.1", 53))
        with world.on("client"):
            world.network.link("client", "server", Link(0.001, loss=0.5))
            sender, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=("server", 53))
            for _ in range(200):
                sender.sendto(b"q")
        await clock.sleep(1)
        return protocol.seen

    assert 60 < simulator.run(main, 5).result < 140


def test_what_a_crashed_task_leaves_behind_does_not_reach_the_next_run():
    mood = contextvars.ContextVar("mood", default="calm")

    async def main(world):
        async def works():
            try:
                await asyncio.Event().wait()
            finally:
                mood.set("upset")

        with world.on("server"):
            task = asyncio.get_running_loop().create_task(works())
        await clock.sleep(1)
        world.crash("server")
        return task.done()

    assert simulator.run(main, 1).result is False
    assert mood.get() == "calm"

import asyncio

import msgspec
import pytest
from tests.unit.service.running import started

from fourplane.foundation.errors import Conflict, Unavailable
from fourplane.service.courier import Batch, Courier, Greeting


class Way:
    """To a neighbour who is never there."""

    def method(self, _service, _method):
        async def call(*_arguments, **_named):
            raise Unavailable("nobody is there")

        return call


class House:
    def __init__(self):
        self.handed = []

    def read(self, batch):
        return msgspec.msgpack.decode(batch.messages)

    def received(self, _sender, _batch, read, _safe):
        self.handed += read
        return set()


def test_a_worker_that_is_starting_takes_nothing_and_remembers_nothing():
    async def main():
        house = House()
        courier = Courier(0, {1: Way()}, house)
        batch = Batch(1, msgspec.Raw(msgspec.msgpack.encode(["hi"])), [0])
        with pytest.raises(Unavailable):
            await courier.take(1, "boot", batch)
        with pytest.raises(Unavailable):
            await courier.hello(1, "boot")
        lifecycle = await started(courier)
        assert await courier.take(1, "boot", batch) == []
        assert house.handed == ["hi"], "what came too early was not counted as seen"
        await lifecycle.stop()

    asyncio.run(main())


class Gate:
    """To a neighbour whose answers come when the test wants them."""

    def __init__(self, courier):
        self.courier = courier
        self.open = asyncio.Event()

    def method(self, _service, method):
        async def call(*arguments):
            if method.name == "take":
                await self.open.wait()
            return await getattr(self.courier, method.name)(*arguments)

        return call


class Batches(House):
    def received(self, _sender, _batch, read, _safe):
        self.handed.append(read)
        return set()

    def restarted(self, _slot):
        pass


def with_two(main):
    """Run `main(send, gate, handed)`; `send` is a tick of its own, `handed` what each batch brought."""

    async def body():
        house = Batches()
        there = Courier(1, {0: Way()}, house)
        gate = Gate(there)
        here = Courier(0, {1: gate}, Batches())
        lives = [await started(there), await started(here)]
        while not here._lanes[1]._up:
            await asyncio.sleep(0)

        async def send(*messages):
            for message in messages:
                here.send(1, message)
            await asyncio.sleep(0)

        async def all_taken():
            async with asyncio.timeout(10):
                while here._lanes[1].waiting:
                    await asyncio.sleep(0)

        await main(send, gate.open, all_taken, house.handed)
        assert here.statistics().unsettled == 0
        for life in lives:
            await life.stop()

    asyncio.run(body())


def test_what_comes_while_two_batches_are_under_way_is_joined_in_order():
    async def main(send, gate, all_taken, handed):
        for number in range(6):
            await send(number)
        assert handed == []
        gate.set()
        await all_taken()
        assert handed == [[0], [1], [2, 3, 4, 5]]

    with_two(main)


def test_a_batch_of_large_messages_ends_at_its_bytes_and_all_arrive():
    large = [bytes([number]) * 300_000 for number in range(12)]

    async def main(send, gate, all_taken, handed):
        gate.set()
        await send(*large)
        await all_taken()
        assert [message for batch in handed for message in batch] == large
        assert max(sum(map(len, batch)) for batch in handed) < 2 << 20

    with_two(main)


def test_a_message_that_cannot_be_written_leaves_what_travels_with_it_whole():
    async def main(send, gate, all_taken, handed):
        gate.set()
        with pytest.raises(UnicodeEncodeError):
            await send("before", ["half of it", "\ud800"])
        await send(*range(40))
        await all_taken()
        assert [message for batch in handed for message in batch] == ["before", *range(40)]

    with_two(main)


def test_a_batch_follows_the_one_it_names_and_what_comes_late_is_refused():
    def batch(number, behind=-1):
        return Batch(number, msgspec.Raw(msgspec.msgpack.encode([number])), [0], behind=behind)

    async def main():
        house = House()
        courier = Courier(0, {1: Way()}, house)
        lifecycle = await started(courier)
        for one in (batch(1), batch(2), batch(5, behind=2), batch(6)):  # 3 and 4 were given up
            assert await courier.take(1, "boot", one) == []
        for late in (batch(3), batch(5, behind=2), batch(6), batch(8)):
            with pytest.raises(Conflict):
                await courier.take(1, "boot", late)
        assert house.handed == [1, 2, 5, 6]
        assert (await courier.hello(1, "boot")).last == 6
        await lifecycle.stop()

    asyncio.run(main())


def test_what_could_not_be_read_was_not_had():
    async def main():
        house = House()
        courier = Courier(0, {1: Way()}, house)
        lifecycle = await started(courier)
        with pytest.raises(msgspec.DecodeError):
            await courier.take(1, "boot", Batch(1, msgspec.Raw(b"\xc1"), [0]))
        assert (await courier.hello(1, "boot")).last == 0
        await lifecycle.stop()

    asyncio.run(main())


class Forgetful:
    """To a neighbour whose first answers get lost, and who says each time which process it is."""

    def __init__(self, boots, lost):
        self.boots, self.lost = iter(boots), lost
        self.taken = []

    def method(self, _service, method):
        async def call(_sender, _boot, batch=None):
            if method.name == "hello":
                return Greeting(next(self.boots), 0)
            self.taken.append((batch.number, batch.behind, batch.again))
            if len(self.taken) <= self.lost:
                raise Unavailable("lost")
            return []

        return call


@pytest.mark.parametrize(
    ("boots", "taken"),
    [
        (["one", "one"], [(1, 0, False), (1, 0, False)]),
        (["one", "two"], [(1, 0, False), (2, 0, True)]),
    ],
    ids=["the same process", "another one"],
)
def test_a_process_is_told_a_batch_again_under_its_number_and_another_one_under_a_number_of_its_own(boots, taken):
    async def main():
        far = Forgetful(boots, lost=1)
        courier = Courier(0, {1: far}, Batches())
        lifecycle = await started(courier)
        courier.send(1, "hi")
        async with asyncio.timeout(10):
            while courier.statistics().sent == 0 or courier.statistics().unsettled:
                await asyncio.sleep(0.001)
        assert far.taken == taken
        await lifecycle.stop()

    asyncio.run(main())

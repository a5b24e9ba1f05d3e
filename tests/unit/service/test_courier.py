import asyncio

import msgspec
import pytest
from tests.unit.service.running import started

from fourplane.foundation.errors import Unavailable
from fourplane.service.courier import Batch, Courier


class Way:
    """To a neighbour who is never there."""

    def method(self, _service, _method):
        async def call(*_arguments, **_named):
            raise Unavailable("nobody is there")

        return call


class House:
    def __init__(self):
        self.handed = []

    def received(self, _sender, batch, _safe):
        self.handed += [bytes(message) for message in batch.messages]
        return set()


def test_a_worker_that_is_starting_takes_nothing_and_remembers_nothing():
    async def main():
        house = House()
        courier = Courier(0, {1: Way()}, house)
        batch = Batch(1, [msgspec.Raw(b"\xa2hi")], [0])
        with pytest.raises(Unavailable):
            await courier.take(1, "boot", batch)
        with pytest.raises(Unavailable):
            await courier.hello(1, "boot")
        lifecycle = await started(courier)
        assert await courier.take(1, "boot", batch) == []
        assert house.handed == [b"\xa2hi"], "what came too early was not counted as seen"
        await lifecycle.stop()

    asyncio.run(main())

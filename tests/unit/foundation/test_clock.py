"""The clock seam: one source answers for everybody, and another can take its place."""

import asyncio
import random
import time

import pytest

from fourplane.foundation import clock


class Still:
    """A source that answers what the test says."""

    def now_us(self):
        return 1_700_000_000_000_000

    def monotonic_s(self):
        return 42.0

    def cpu_s(self):
        return 1.5

    def random(self):
        return random.Random(7)

    def token_bytes(self, count):
        return b"\x01" * count


def test_the_installed_source_answers_within_the_block_only():
    with clock.installed(Still()):
        assert clock.now_us() == 1_700_000_000_000_000
        assert clock.monotonic_s() == 42.0
        assert clock.cpu_s() == 1.5
        assert clock.token_bytes(3) == b"\x01\x01\x01"
        assert clock.random().random() == random.Random(7).random()
    assert clock.monotonic_s() != 42.0


def test_the_source_comes_back_after_an_error():
    before = clock.monotonic_s()
    with pytest.raises(ValueError, match="inside"), clock.installed(Still()):
        raise ValueError("inside")
    assert clock.monotonic_s() >= before
    assert clock.token_bytes(3) != b"\x01\x01\x01" or clock.token_bytes(16) != b"\x01" * 16


def test_the_machine_gives_the_time_in_microseconds_of_utc():
    assert abs(clock.now_us() / 1e6 - time.time()) < 60


def test_monotonic_time_never_goes_back():
    readings = [clock.monotonic_s() for _ in range(1_000)]
    assert readings == sorted(readings)


def test_tokens_differ():
    assert len({clock.token_bytes(16) for _ in range(100)}) == 100


def test_reseeding_after_a_fork_changes_what_comes_next():
    clock.random().seed(1)
    first = clock.random().random()
    clock.random().seed(1)
    clock.reseed_after_fork()
    assert clock.random().random() != first


def test_sleep_lets_others_run():
    order = []

    async def main():
        async with asyncio.TaskGroup() as together:
            together.create_task(mark("a"))
            together.create_task(mark("b"))

    async def mark(name):
        order.append(name)
        await clock.sleep(0)
        order.append(name)

    asyncio.run(main())
    assert order == ["a", "b", "a", "b"]

import asyncio
import itertools
import os
import sys

import pytest

from fourplane.foundation import clock
from fourplane.foundation.disk_sync import LONG_S, STRANGERS_SHARE, WAYS_S, DiskSync, Ways, give_way


@pytest.fixture
def file(tmp_path):
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def opened():
    syncs = DiskSync.open()
    if syncs is None:
        pytest.skip("this kernel does not sync without a thread")
    return syncs


def test_one_sync_after_another_is_told_on_the_loop(run_on_each_loop, file):
    async def main():
        syncs, told = opened(), []
        for number in range(100):
            os.pwrite(file, b"x" * 10_000, number * 10_000)
            done = asyncio.get_running_loop().create_future()
            assert syncs.begin(file, lambda error, done=done: done.set_result(error))
            told.append(await done)
        syncs.close()
        return told

    assert run_on_each_loop(main) == [None] * 100


def test_the_next_one_may_begin_where_the_last_is_told(run_on_each_loop, file):
    async def main():
        syncs, done, told = opened(), asyncio.get_running_loop().create_future(), []

        def next_one(error):
            told.append(error)
            if len(told) == 5:
                done.set_result(None)
            else:
                assert syncs.begin(file, next_one)

        assert syncs.begin(file, next_one)
        await done
        syncs.close()
        return told

    assert run_on_each_loop(main) == [None] * 5


def test_a_second_file_is_synced_meanwhile_and_each_hears_of_its_own(run_on_each_loop, file, tmp_path):
    async def main():
        syncs, told = opened(), []
        other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
        for number in range(20):
            both = [asyncio.get_running_loop().create_future() for _ in range(2)]
            for descriptor, done in zip((file, other), both, strict=True):
                os.pwrite(descriptor, b"x" * 200_000, number * 200_000)
                assert syncs.begin(descriptor, done.set_result)
            with pytest.raises(AssertionError):
                syncs.begin(file, pytest.fail)
            told += await asyncio.gather(*both)
        os.pwrite(file, b"x" * 1_000_000, 0)
        closed = []
        assert syncs.begin(file, lambda error: closed.append(("file", error)))
        assert syncs.begin(other, lambda error: closed.append(("other", error)))
        syncs.close()
        assert sorted(closed) == [("file", None), ("other", None)]
        os.close(other)
        return told

    assert run_on_each_loop(main) == [None] * 40


def test_what_cannot_be_synced_is_refused_and_the_next_file_is_taken(run_on_each_loop, file):
    async def main():
        syncs = opened()
        read, write = os.pipe()
        assert not syncs.begin(write, pytest.fail)
        for one in (read, write):
            os.close(one)
        assert not syncs.begin(write, pytest.fail), "a descriptor that is closed"
        done = asyncio.get_running_loop().create_future()
        assert syncs.begin(file, done.set_result)
        assert await done is None
        syncs.close()

    run_on_each_loop(main)


def test_who_closes_waits_for_the_sync_under_way_and_tells_it(run_on_each_loop, file):
    async def main():
        syncs, told = opened(), []
        os.pwrite(file, b"x" * 1_000_000, 0)
        assert syncs.begin(file, told.append)
        syncs.close()
        assert told == [None]
        assert not syncs.begin(file, told.append), "closed"

    run_on_each_loop(main)


def test_nothing_is_left_open(run_on_each_loop, file):
    async def main():
        before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
        for _ in range(50):
            syncs = opened()
            done = asyncio.get_running_loop().create_future()
            syncs.begin(file, done.set_result)
            await done
            syncs.close()
        assert len(os.listdir("/proc/self/fd")) == before

    run_on_each_loop(main)


AHEAD_S = itertools.count(1_000.0, 1_000.0)  # the process remembers when it last gave way


class Given:
    """How often others had the processor, and a clock that moves by what they took of it."""

    def __init__(self, monkeypatch):
        self.count, self.now_s, self.took_s = 0, clock.monotonic_s() + next(AHEAD_S), 0.0
        monkeypatch.setattr(os, "sched_yield", self)
        monkeypatch.setattr(clock, "monotonic_s", lambda: self.now_s)

    def __call__(self):
        self.count += 1
        self.now_s += self.took_s


def test_others_have_the_processor_only_while_a_sync_is_under_way(run_on_each_loop, file, monkeypatch):
    async def main():
        syncs, given = opened(), Given(monkeypatch)
        give_way()
        assert given.count == 0
        done = asyncio.get_running_loop().create_future()
        given.now_s += 10.0
        assert syncs.begin(file, done.set_result)
        assert given.count == 1, "the kernel may begin"
        give_way()
        assert given.count == 1, "at once again"
        given.now_s += 1.5 * WAYS_S
        give_way()
        assert given.count == 2
        assert await done is None
        given.now_s += 1.0
        give_way()
        assert given.count == 2, "nothing is under way any more"
        assert syncs.begin(file, lambda _error: None)
        syncs.close()
        given.count, given.now_s = 0, given.now_s + 1.0
        give_way()
        assert given.count == 0, "nor after the end"

    run_on_each_loop(main)


def test_strangers_get_no_more_than_their_share(monkeypatch):
    given, ways = Given(monkeypatch), Ways()
    ways.under_way, given.took_s, began_s = 1, 0.004, given.now_s
    while given.now_s < began_s + 20.0:
        ways.give()
        given.now_s += 0.0001
    assert 0.8 * STRANGERS_SHARE * 20.0 < given.count * given.took_s < 1.1 * STRANGERS_SHARE * 20.0
    given.count, given.took_s, began_s = 0, LONG_S / 2, given.now_s
    while given.now_s < began_s + 1.0:
        ways.give()
        given.now_s += 0.0001
    assert given.count > 1_000, "the kernel's worker is no stranger"

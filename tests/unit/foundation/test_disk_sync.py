import asyncio
import os
import sys

import pytest

from fourplane.foundation.disk_sync import DiskSync


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

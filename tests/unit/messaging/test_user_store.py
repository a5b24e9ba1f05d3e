"""What is given to the store together succeeds or fails together, and is written with what others give meanwhile."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from fourplane.foundation.errors import Unavailable
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry
from fourplane.messaging.user_store import BATCH_MAX, UserStore, partition_of
from fourplane.state.contracts import Delete, Put
from fourplane.state.stores import Stores, StoresSettings

ALICE, BOB, CAROL = "alice@localhost", "bob@localhost", "carol@localhost"


class Disk:
    """Records whose writes of given numbers fail, and which are slow for some owners."""

    def __init__(self, records, failing=()):
        self._records = records
        self._failing = failing
        self.sizes = []
        self.slow = {}  # by owner: until when

    async def write(self, partition, changes):
        self.sizes.append(len(changes))
        for owner, over in self.slow.items():
            if partition == partition_of(owner):
                await over.wait()
        if len(self.sizes) in self._failing:
            raise Unavailable("the disk is full", code="disk_full")
        await self._records.write(partition, changes)


class Writers:
    """The store as a part of a process."""

    def __init__(self, store):
        self.store = store

    async def start(self, tasks):
        self.store.start(tasks)

    async def drain(self):
        await self.store.wait_written()

    async def stop(self):
        pass


@asynccontextmanager
async def store(failing=()):
    stores = Stores(StoresSettings(sql="memory://", records="memory://", log="memory://"))
    disk = Disk(await stores.records("messaging"), failing)
    made = UserStore(disk, 60.0)
    life = Lifecycle(Registry())
    life.add("stores", stores)
    life.add("writers", Writers(made))
    await life.start()
    yield made, disk
    await life.stop()


def test_many_changes_that_need_two_writes_fail_when_either_does():
    async def main():
        for failing in ({1}, {2}):
            async with store(failing) as (users, disk):
                users.write(BOB, [Put(b"n%d" % n, b"x") for n in range(50)])
                with pytest.raises(Unavailable):
                    await users.written(BOB, [Delete(b"o%03d" % n) for n in range(BATCH_MAX)])
                assert len(disk.sizes) == 2

    asyncio.run(main())


def test_what_waits_of_one_owner_is_one_write_and_everybody_is_told_in_order():
    async def main():
        async with store() as (users, disk):
            told = []
            for number in range(30):
                users.write(BOB, (Put(b"a%d" % number, b"x"),), lambda failure, n=number: told.append((n, failure)))
            await users.wait_written()
            assert disk.sizes == [30]
            assert told == [(number, None) for number in range(30)]

    asyncio.run(main())


def test_a_key_that_is_changed_twice_is_written_twice_in_order():
    async def main():
        async with store() as (users, disk):
            users.write(BOB, (Put(b"v", b"1"),))
            users.write(BOB, (Put(b"v", b"2"), Put(b"w", b"3")))
            await users.wait_written()
            assert disk.sizes == [1, 2]

    asyncio.run(main())


async def ticks():
    """As many as a write takes that nobody holds up."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_what_comes_while_something_is_written_is_one_write_of_each_owner():
    async def main():
        async with store() as (users, disk), asyncio.timeout(10):
            disk.slow[BOB] = asyncio.Event()
            users.write(BOB, (Put(b"a", b"x"),))
            await ticks()
            for number in range(3):
                users.write(ALICE, (Put(b"a%d" % number, b"x"),))
                users.write(CAROL, (Put(b"a%d" % number, b"x"),))
                await ticks()
            assert disk.sizes == [1]
            disk.slow[BOB].set()
            await users.wait_written()
            assert disk.sizes == [1, 3, 3]

    asyncio.run(main())


def test_an_owner_whose_write_is_slow_holds_up_nobody_who_comes_later():
    async def main():
        async with store() as (users, disk), asyncio.timeout(10):
            disk.slow[BOB] = asyncio.Event()
            users.write(BOB, (Put(b"a", b"x"),))
            for owner in (ALICE, CAROL, ALICE):
                users.write(owner, (Put(b"b", b"x"),))
                while users.waiting_count > 1:  # what is slow
                    await asyncio.sleep(0.001)
            disk.slow[BOB].set()

    asyncio.run(main())

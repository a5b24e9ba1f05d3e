"""Every write of a checkout fails in turn, before or after it happened, then the coordinator starts again."""

import asyncio

import pytest
from tests.unit.service.ledger_participant import Pieces

from fourplane.foundation.errors import FourplaneError, Unavailable
from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry
from fourplane.service.two_phase_commit import Branch, CommitSettings, Coordinator
from fourplane.state.embedded.database import Database
from fourplane.state.embedded.sql import EmbeddedSql

QUICK = CommitSettings(retry_s=0.0001, retry_s_max=0.0001, prepare_s=5.0, confirm_s=0.0)
BUY = [Branch("stock", 1), Branch("money", 10, wave=1)]
STEPS = range(12)


class Crash(BaseException):
    """The process is gone: nothing of it runs on."""


class CrashingSql(EmbeddedSql):
    """Dies at the n-th commit, before or after the store has it; every later call fails as a dead process does."""

    def __init__(self, database, step, *, after):
        super().__init__(database)
        self.left = step
        self.after = after
        self.dead = False

    async def commit(self, statements):
        if self.dead:
            await asyncio.Event().wait()
        if self.left == 0:
            self.dead = True
            if self.after:
                await super().commit(statements)
            await asyncio.Event().wait()
        self.left -= 1
        return await super().commit(statements)


class LosingSql(EmbeddedSql):
    """Fails the n-th commit with an answer that says nothing: it may have happened (`after`) or not."""

    def __init__(self, database, step, *, after):
        super().__init__(database)
        self.left = step
        self.after = after

    async def commit(self, statements):
        self.left -= 1
        if self.left == -1:
            if self.after:
                await super().commit(statements)
            raise Unavailable("the store went away")
        return await super().commit(statements)


async def prepared_store():
    database = await Database(None).open()
    sql = EmbeddedSql(database)
    stock, money = Pieces(sql, "stock"), Pieces(sql, "money")
    await stock.make(10)
    await money.make(1_000)
    return database, sql


async def running(sql, settings=QUICK):
    participants = {"stock": Pieces(sql, "stock"), "money": Pieces(sql, "money")}
    checkout = Coordinator(sql, "checkout", participants, ids=IdGenerator(), settings=settings)
    lifecycle = Lifecycle(Registry())
    lifecycle.add("checkout", checkout)
    await lifecycle.start()
    return checkout, participants, lifecycle


async def recovered(sql):
    checkout, participants, lifecycle = await running(sql)
    await checkout.drain()
    await checkout._log.flush()
    state = [await participants[name].state() for name in ("stock", "money")]
    left = await sql.read("SELECT decision FROM decisions WHERE decision = 'commit'")
    await lifecycle.stop()
    return state, left


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_crash_at_any_write_leaves_all_or_nothing(step, after):
    async def main():
        database, sql = await prepared_store()
        dying = CrashingSql(database, 1_000, after=after)
        checkout, _, lifecycle = await running(dying)
        dying.left = step
        acknowledged = False
        buying = asyncio.ensure_future(checkout.run(BUY))
        for _ in range(2_000):
            await asyncio.sleep(0)
            if buying.done() or dying.dead:
                break
        if buying.done():
            acknowledged = buying.result() is not None
        lost = asyncio.ensure_future(lifecycle.stop())  # the dead process runs no further
        buying.cancel()
        await asyncio.gather(buying, lost, return_exceptions=True)
        state, left = await recovered(sql)
        assert state in ([(10, 0, 0), (1000, 0, 0)], [(9, 1, 0), (990, 10, 0)])
        assert left == []
        if acknowledged:
            assert state == [(9, 1, 0), (990, 10, 0)]
        await database.close()

    asyncio.run(main())


class LosingThenCrashingSql(LosingSql):
    """Loses one answer, then dies at a later write."""

    def __init__(self, database, step, crash, *, after):
        super().__init__(database, step, after=after)
        self.until_crash = crash
        self.dead = False

    async def commit(self, statements):
        self.until_crash -= 1
        if self.until_crash < 0:
            self.dead = True
            await asyncio.Event().wait()
        return await super().commit(statements)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("crash", range(1, 8))
def test_lost_answer_and_a_crash_later_leave_all_or_nothing(step, crash, after):
    async def main():
        database, sql = await prepared_store()
        dying = LosingThenCrashingSql(database, 1_000, 1_000, after=after)
        checkout, _, lifecycle = await running(dying)
        dying.left, dying.until_crash = step, crash
        buying = asyncio.ensure_future(checkout.run(BUY))
        for _ in range(2_000):
            await asyncio.sleep(0)
            if dying.dead or not checkout.statistics().open:
                break
        else:
            await asyncio.sleep(0.001)
        lost = asyncio.ensure_future(lifecycle.stop())
        buying.cancel()
        await asyncio.gather(buying, lost, return_exceptions=True)
        state, left = await recovered(sql)
        assert state in ([(10, 0, 0), (1000, 0, 0)], [(9, 1, 0), (990, 10, 0)])
        assert left == []
        await database.close()

    asyncio.run(main())


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_lost_answer_at_any_write_leaves_all_or_nothing(step, after):
    async def main():
        database, sql = await prepared_store()
        losing = LosingSql(database, 1_000, after=after)
        checkout, participants, lifecycle = await running(losing)
        losing.left = step
        try:
            await checkout.run(BUY)
            told = "committed"
        except FourplaneError:
            told = "aborted"
        await checkout.drain()
        state = [await participants[name].state() for name in ("stock", "money")]
        expected = [(9, 1, 0), (990, 10, 0)] if told == "committed" else [(10, 0, 0), (1000, 0, 0)]
        assert state == expected
        await lifecycle.stop()
        state, left = await recovered(sql)
        assert (state, left) == (expected, [])
        await database.close()

    asyncio.run(main())

"""Followers: participants that are told of a decision behind its answer, many at once."""

import asyncio

import msgspec
from tests.unit.service.ledger_participant import Pieces
from tests.unit.service.running import run_with_sql, started

from fourplane.foundation.errors import Unavailable
from fourplane.foundation.ids import IdGenerator
from fourplane.service.followers import FollowerSettings
from fourplane.service.two_phase_commit import Branch, CommitSettings, Coordinator

QUICK = CommitSettings(retry_s=0.0001, retry_s_max=0.0001, confirm_s=60.0, followers=FollowerSettings(pace_s=0.0))


class FollowingPieces(Pieces):
    """Commits many at once, when the test lets it; some it leaves, or all fails."""

    def __init__(self, sql, name):
        super().__init__(sql, name)
        self.let = asyncio.Event()
        self.let.set()
        self.together: list[int] = []
        self.leaves = 0

    async def commit_many(self, transactions):
        await self.let.wait()
        self._before("commit_many")
        self.together.append(len(transactions))
        rest = transactions[len(transactions) - self.leaves :]
        for transaction in transactions[: len(transactions) - self.leaves]:
            await self.commit(transaction)
        return rest


async def shop(sql, settings=QUICK):
    money = FollowingPieces(sql, "money")
    await money.make(1_000)
    coordinator = Coordinator(sql, "checkout", {"money": money}, ids=IdGenerator(), settings=settings)
    return money, coordinator, await started(coordinator)


def branches():
    return [Branch("money", 1)]


def test_callers_hear_of_the_decision_and_the_commits_follow_together():
    async def main(sql):
        money, coordinator, life = await shop(sql)
        money.let.clear()
        outcomes = await asyncio.gather(*(coordinator.run(branches()) for _ in range(12)))
        assert not any(outcome.settled for outcome in outcomes)
        assert coordinator.statistics().unsettled == 12
        assert await money.state() == (988, 0, 12)
        assert await coordinator.decision(outcomes[0].transaction.id) == "commit", "its row waits for the follower"
        money.let.set()
        await coordinator.settle()
        assert await money.state() == (988, 12, 0)
        assert sum(money.together) == 12
        assert len(money.together) < 12
        assert coordinator.statistics().unsettled == 0
        await life.drain()
        await life.stop()

    run_with_sql(main)


def test_what_a_call_leaves_or_fails_at_is_driven_alone_until_done():
    async def main(sql):
        money, coordinator, life = await shop(sql)
        money.leaves, money.fail["commit_many"], money.fail["commit"] = 1, 1, 5
        await asyncio.gather(*(coordinator.run(branches()) for _ in range(6)))
        await coordinator.settle()
        await asyncio.gather(*(coordinator.run(branches()) for _ in range(6)))
        await coordinator.settle()
        assert await money.state() == (988, 12, 0)
        await life.drain()
        await life.stop()

    run_with_sql(main)


def test_with_too_many_behind_callers_wait_for_their_own():
    async def main(sql):
        bounded = msgspec.structs.replace(QUICK, followers=FollowerSettings(pace_s=0.0, behind_max=2))
        money, coordinator, life = await shop(sql, bounded)
        money.let.clear()
        callers = [asyncio.ensure_future(coordinator.run(branches())) for _ in range(5)]
        while coordinator.statistics().committed < 5:
            await asyncio.sleep(0)
        for _ in range(20):  # whoever was answered comes round
            await asyncio.sleep(0)
        answered = {caller for caller in callers if caller.done()}
        assert len(answered) == 2, "who is not too many is answered"
        money.let.set()
        await asyncio.gather(*callers)
        await coordinator.settle()
        assert await money.state() == (995, 5, 0)
        await life.drain()
        await life.stop()

    run_with_sql(main)


def test_one_call_that_hangs_does_not_hold_up_the_next():
    async def main(sql):
        money, coordinator, life = await shop(sql)
        money.let.clear()
        await coordinator.run(branches())
        while not money.let._waiters:
            await asyncio.sleep(0)
        hung = money.let
        money.let = asyncio.Event()
        money.let.set()
        await coordinator.run(branches())
        while (await money.state())[1] < 1:
            await asyncio.sleep(0)
        assert await money.state() == (998, 1, 1)
        hung.set()
        await coordinator.settle()
        await life.drain()
        await life.stop()

    run_with_sql(main)


def test_what_was_behind_when_the_process_died_is_done_by_the_next_before_it_takes_anything():
    async def main(sql):
        money, coordinator, life = await shop(sql)
        money.let.clear()
        await coordinator.run(branches())
        await life.stop()
        assert await money.state() == (999, 0, 1)
        again = Coordinator(sql, "checkout", {"money": money}, ids=IdGenerator(), settings=QUICK)
        life = await started(again)
        assert await money.state() == (999, 1, 0)
        await life.drain()
        await life.stop()

    run_with_sql(main)


def test_a_coordinator_that_stops_lets_go_of_callers_that_wait():
    async def main(sql):
        bounded = msgspec.structs.replace(QUICK, followers=FollowerSettings(pace_s=0.0, behind_max=0))
        money, coordinator, life = await shop(sql, bounded)
        money.let.clear()
        caller = asyncio.ensure_future(coordinator.run(branches()))
        while coordinator.statistics().unsettled == 0:
            await asyncio.sleep(0)
        await life.stop()
        [told] = await asyncio.gather(caller, return_exceptions=True)
        assert isinstance(told, Unavailable)

    run_with_sql(main)


def test_while_a_crowd_waits_for_decisions_the_decided_wait_too_but_not_for_long():
    class Slow(Pieces):
        """Votes when the test lets it."""

        let = None

        async def prepare(self, transaction, work):
            if self.let is not None:
                await self.let.wait()
            return await super().prepare(transaction, work)

    async def main(sql):
        money, stock = FollowingPieces(sql, "money"), Slow(sql, "stock")
        await money.make(1_000)
        await stock.make(1_000)
        followers = FollowerSettings(pace_s=0.002, crowd=5, hold_s=1.0)
        settings = msgspec.structs.replace(QUICK, followers=followers)
        parts = {"money": money, "stock": stock}
        coordinator = Coordinator(sql, "checkout", parts, ids=IdGenerator(), settings=settings)
        life = await started(coordinator)
        stock.let = asyncio.Event()
        both = [Branch("money", 1), Branch("stock", 1)]
        crowd = [asyncio.ensure_future(coordinator.run(both)) for _ in range(6)]
        await asyncio.sleep(0.02)
        await coordinator.run(branches())
        await asyncio.sleep(0.05)
        assert money.together == [], "the crowd goes first"
        async with asyncio.timeout(10.0):
            while not money.together:
                await asyncio.sleep(0.005)
        assert not any(one.done() for one in crowd), "but not for ever"
        stock.let.set()
        await asyncio.gather(*crowd)
        await coordinator.settle()
        assert sum(money.together) == 7
        await life.drain()
        await life.stop()

    run_with_sql(main)

"""Last agents: participants whose rows lie beside the decision log do their part in its commit."""

import asyncio

import pytest
from tests.unit.service.ledger_participant import Pieces
from tests.unit.service.running import run_with_sql, started

from fourplane.foundation.errors import Conflict, FourplaneError
from fourplane.foundation.ids import IdGenerator
from fourplane.service.participants import Draft
from fourplane.service.two_phase_commit import Branch, CommitSettings, Coordinator
from fourplane.state.contracts import Statement

QUICK = CommitSettings(retry_s=0.0001, retry_s_max=0.0001, confirm_s=5.0, prepare_s=5.0)


class AgentPieces(Pieces):
    """The same counter, sold by the decision itself; `known` is what must be durable before the money is asked."""

    broken: int | None = None  # the transaction whose part is wrong
    known = True

    @property
    def store(self):
        return self.sql

    async def enlist(self, transaction, work, attempt):
        self.calls.append("enlist")
        note = f"INSERT INTO holds_{self.name} VALUES (?1, ?2, ?3, 0)"
        values = (transaction.id, transaction.coordinator, transaction.epoch)
        return [Statement(note, values)] if self.known and not attempt else []

    def complete(self, transaction, work):
        if transaction.id == self.broken:
            return Draft([Statement(f"DELETE FROM holds_{self.name} WHERE id = -1", expect_rows=1)])
        count = int(str(work))
        sell = f"UPDATE pieces_{self.name} SET free = free - ?1, sold = sold + ?1 WHERE free >= ?1"
        done = f"DELETE FROM holds_{self.name} WHERE id = ?1"
        sold = Statement(sell, (count,), expect_rows=1, label="sold_out")
        return Draft([sold, Statement(done, (transaction.id,))], count)

    async def conflicted(self, transaction, work, conflict):
        return False

    def completed(self, transaction):
        self.calls.append("completed")

    def release(self, transaction):
        self.calls.append("release")


class Counted:
    """A store that counts its commits."""

    def __init__(self, sql):
        self._sql = sql
        self.commits = 0
        self.dialect = sql.dialect

    async def read(self, sql, *parameters):
        return await self._sql.read(sql, *parameters)

    async def commit(self, statements):
        self.commits += 1
        return await self._sql.commit(statements)


async def shop(sql, stock=10):
    counted = Counted(sql)
    made = {
        "order": AgentPieces(counted, "order"),
        "stock": AgentPieces(counted, "stock"),
        "money": Pieces(sql, "money"),
    }
    made["stock"].known = False
    await made["order"].make(1_000)
    await made["stock"].make(stock)
    await made["money"].make(10_000)
    coordinator = Coordinator(counted, "checkout", made, ids=IdGenerator(), settings=QUICK)
    return counted, made, coordinator, await started(coordinator)


BUY = [Branch("order", 1), Branch("stock", 1), Branch("money", 10, wave=1)]


async def swept(coordinator):
    """What became known of transactions that ended is in doubt at two looks, so it is let go."""
    await coordinator.resolve()
    await coordinator.resolve()


async def states(made):
    return [await one.state() for one in made.values()]


def test_what_must_be_known_is_one_commit_and_everything_else_the_decision():
    async def main(sql):
        counted, made, coordinator, lifecycle = await shop(sql)
        before = counted.commits
        outcome = await coordinator.run(BUY)
        assert counted.commits - before == 2
        assert outcome.settled
        assert outcome.results["stock"] == 1
        assert await states(made) == [(999, 1, 0), (9, 1, 0), (9_990, 10, 0)]
        assert made["money"].calls == ["prepare", "commit"]
        assert made["stock"].calls == ["enlist", "completed"]
        await lifecycle.stop()

    run_with_sql(main)


def test_a_no_of_a_later_wave_releases_the_last_agents():
    async def main(sql):
        _, made, coordinator, lifecycle = await shop(sql)
        made["money"].fail["prepare"] = 1
        with pytest.raises(Conflict):
            await coordinator.run(BUY)
        assert await states(made) == [(1_000, 0, 1), (10, 0, 0), (10_000, 0, 0)]
        assert made["stock"].calls == ["enlist", "release"]
        await swept(coordinator)
        assert await states(made) == [(1_000, 0, 0), (10, 0, 0), (10_000, 0, 0)]
        await lifecycle.stop()

    run_with_sql(main)


def test_many_at_once_never_sell_more_than_there_is():
    async def main(sql):
        _, made, coordinator, lifecycle = await shop(sql)
        done = await asyncio.gather(*(coordinator.run(BUY) for _ in range(60)), return_exceptions=True)
        assert sum(not isinstance(one, Exception) for one in done) == 10
        await swept(coordinator)
        assert await states(made) == [(990, 10, 0), (0, 10, 0), (9_900, 100, 0)]
        await lifecycle.stop()

    run_with_sql(main)


def test_a_part_that_cannot_be_written_concerns_its_own_transaction_only():
    async def main(sql):
        _, made, coordinator, lifecycle = await shop(sql)
        number = IdGenerator()
        coordinator._ids = number
        original = number.__class__.next
        taken = []

        class Ids:
            def next(self):
                taken.append(original(number))
                if len(taken) == 2:
                    made["stock"].broken = taken[-1]
                return taken[-1]

        coordinator._ids = Ids()
        done = await asyncio.gather(*(coordinator.run(BUY) for _ in range(4)), return_exceptions=True)
        assert [isinstance(one, FourplaneError) for one in done] == [False, True, False, False]
        await swept(coordinator)
        assert await states(made) == [(997, 3, 0), (7, 3, 0), (9_970, 30, 0)]
        await lifecycle.stop()

    run_with_sql(main)


def test_a_crash_before_the_decision_lets_go_and_after_it_tells_the_rest():
    async def main(sql):
        counted, made, coordinator, lifecycle = await shop(sql)
        for commits in (1, 2):  # the promises are durable; the decision is durable

            async def dead(statements, left=[commits]):  # noqa: B006 - one count per turn
                left[0] -= 1
                if left[0] < 0:
                    await asyncio.Event().wait()
                return await Counted.commit(counted, statements)

            if commits == 2:
                made["money"].fail["commit"] = 1_000_000
            counted.commit = dead
            buying = asyncio.ensure_future(coordinator.run(BUY))
            for _ in range(300):
                await asyncio.sleep(0)
            await lifecycle.stop()
            await asyncio.gather(buying, return_exceptions=True)
            del counted.commit
            made["money"].fail.clear()
            coordinator = Coordinator(counted, "checkout", made, ids=IdGenerator(), settings=QUICK)
            lifecycle = await started(coordinator)
            bought = commits - 1
            assert await states(made) == [
                (1_000 - bought, bought, 0),
                (10 - bought, bought, 0),
                (10_000 - 10 * bought, 10 * bought, 0),
            ]
        await lifecycle.stop()

    run_with_sql(main)

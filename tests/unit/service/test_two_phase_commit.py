import asyncio

import pytest
from tests.unit.service.ledger_participant import Pieces
from tests.unit.service.running import run_with_sql, started

from fourplane.foundation.errors import Conflict, Overloaded, Unavailable
from fourplane.foundation.ids import IdGenerator
from fourplane.service.participants import Transaction
from fourplane.service.two_phase_commit import Branch, CommitSettings, Coordinator

QUICK = CommitSettings(retry_s=0.0001, retry_s_max=0.0001, confirm_s=5.0, prepare_s=5.0)
BUY = [Branch("stock", 1), Branch("money", 10, wave=1)]


async def shop(sql, *, settings=QUICK, stock=10, money=1_000):
    """A running coordinator over two participants."""
    participants = {"stock": Pieces(sql, "stock"), "money": Pieces(sql, "money")}
    await participants["stock"].make(stock)
    await participants["money"].make(money)
    return participants, *await coordinator(sql, participants, settings)


async def coordinator(sql, participants, settings=QUICK):
    made = Coordinator(sql, "checkout", participants, ids=IdGenerator(), settings=settings)
    return made, await started(made)


async def totals(participants):
    return [await participants[name].state() for name in ("stock", "money")]


def test_all_participants_do_it_and_the_log_ends_empty():
    async def main(sql):
        participants, checkout, lifecycle = await shop(sql)
        outcome = await checkout.run(BUY)
        assert outcome.settled
        assert outcome.results == {"stock": "stock:1", "money": "money:10"}
        assert await totals(participants) == [(9, 1, 0), (990, 10, 0)]
        await checkout._log.flush()
        assert await sql.read("SELECT * FROM decisions") == []
        assert await checkout.decision(outcome.transaction.id) == "unknown"
        assert checkout.story(outcome.transaction.id)[-1] == "commit confirmed by stock, money"
        await lifecycle.stop()

    run_with_sql(main)


def test_one_no_undoes_the_others_and_later_waves_are_never_asked():
    async def main(sql):
        participants, checkout, lifecycle = await shop(sql, stock=0)
        with pytest.raises(Conflict):
            await checkout.run(BUY)
        assert await totals(participants) == [(0, 0, 0), (1000, 0, 0)]
        assert participants["money"].calls == []
        participants["money"].fail["prepare"] = 1
        with pytest.raises(Conflict):
            await checkout.run([Branch("stock", 0), Branch("money", 10)])
        assert checkout.statistics().aborted == 2
        await lifecycle.stop()

    run_with_sql(main)


def test_two_hundred_buyers_of_ten_pieces_make_ten_orders():
    async def main(sql):
        participants, checkout, lifecycle = await shop(sql, money=100_000)
        done = await asyncio.gather(*(checkout.run(BUY) for _ in range(200)), return_exceptions=True)
        assert sum(not isinstance(one, Exception) for one in done) == 10
        assert await totals(participants) == [(0, 10, 0), (99_900, 100, 0)]
        assert checkout.statistics().decision_writes < 10, "decisions share their writes"
        await lifecycle.drain()
        await lifecycle.stop()

    run_with_sql(main)


def test_caller_that_gives_up_does_not_stop_the_transaction():
    async def main(sql):
        participants, checkout, lifecycle = await shop(sql)
        buying = asyncio.ensure_future(checkout.run(BUY))
        await asyncio.sleep(0)
        buying.cancel()
        await asyncio.gather(buying, return_exceptions=True)
        await checkout.drain()
        assert await totals(participants) == [(9, 1, 0), (990, 10, 0)]
        await lifecycle.stop()

    run_with_sql(main)


def test_lost_answers_are_asked_again_and_counted_once():
    async def main(sql):
        participants, checkout, lifecycle = await shop(sql)
        participants["stock"].fail_after = {"commit": 3}
        participants["money"].fail = {"commit": 2}
        assert (await checkout.run(BUY)).settled
        assert await totals(participants) == [(9, 1, 0), (990, 10, 0)]
        participants["money"].fail_after = {"prepare": 1, "abort": 2}
        with pytest.raises(Unavailable):
            await checkout.run(BUY)
        assert await totals(participants) == [(9, 1, 0), (990, 10, 0)]
        await lifecycle.stop()

    run_with_sql(main)


def test_participant_that_is_away_leaves_a_committed_unsettled_answer():
    async def main(sql):
        participants, checkout, lifecycle = await shop(
            sql, settings=CommitSettings(retry_s=0.001, retry_s_max=0.001, confirm_s=0.0)
        )
        participants["stock"].fail = {"commit": 50}
        outcome = await checkout.run(BUY)
        assert not outcome.settled
        await checkout.drain()
        assert await totals(participants) == [(9, 1, 0), (990, 10, 0)]
        await lifecycle.stop()

    run_with_sql(main)


def test_fenced_coordinator_can_decide_nothing_more():
    async def main(sql):
        participants, old, old_life = await shop(sql)
        _, life = await coordinator(sql, participants)
        with pytest.raises(Conflict) as fenced:
            await old.run(BUY)
        assert fenced.value.reason == "coordinator_fenced"
        assert await totals(participants) == [(10, 0, 0), (1000, 0, 0)]
        await life.stop()
        await old_life.stop()

    run_with_sql(main)


def test_late_prepare_of_this_epoch_is_let_go_after_two_looks():
    async def main(sql):
        participants, checkout, lifecycle = await shop(sql)
        await participants["stock"].prepare(Transaction(77, "checkout", checkout.epoch), 4)
        assert await checkout.resolve() == 0
        assert await checkout.resolve() == 1
        assert (await participants["stock"].state()) == (10, 0, 0)
        await participants["stock"].prepare(Transaction(78, "another", 1), 4)
        assert await checkout.resolve() == await checkout.resolve() == 0, "another coordinator's holds stay"
        await lifecycle.stop()

    run_with_sql(main)


class Together(Pieces):
    """Lets nothing go before three are asked for at once."""

    gate = None

    async def abort(self, transaction):
        if self.gate is not None:
            await self.gate.wait()
        await super().abort(transaction)


def test_a_new_coordinator_lets_go_of_what_was_left_all_at_once():
    async def main(sql):
        participants, old, old_life = await shop(sql)
        await old_life.stop()
        slow = participants["stock"] = Together(sql, "stock")
        for number in (77, 78, 79):
            await slow.prepare(Transaction(number, "checkout", old.epoch), 2)
        slow.gate = asyncio.Barrier(3)
        async with asyncio.timeout(30):
            new, life = await coordinator(sql, participants)
        assert await slow.state() == (10, 0, 0)
        assert new.statistics().recovered == 3
        await life.stop()

    run_with_sql(main)


def test_a_participant_that_stays_away_does_not_keep_a_new_coordinator_from_starting():
    async def main(sql):
        participants, old, old_life = await shop(sql)
        await old_life.stop()
        slow = participants["stock"] = Together(sql, "stock")
        await slow.prepare(Transaction(77, "checkout", old.epoch), 2)
        slow.gate = asyncio.Event()
        settings = CommitSettings(retry_s=0.0001, retry_s_max=0.0001, recovery_s=0.0)
        new, life = await coordinator(sql, participants, settings)
        assert await slow.state() == (8, 0, 1), "it holds what it promised"
        assert await new.resolve() == 0, "somebody drives it"
        slow.gate.set()
        await new.drain()
        assert await slow.state() == (10, 0, 0)
        await life.stop()

    run_with_sql(main)


def test_too_many_open_transactions_are_refused_and_a_stopped_coordinator_takes_none():
    async def main(sql):
        _, checkout, lifecycle = await shop(sql, settings=CommitSettings(open_max=1))
        first = asyncio.ensure_future(checkout.run(BUY))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await checkout.run(BUY)
        await first
        await lifecycle.drain()
        with pytest.raises(Unavailable):
            await checkout.run(BUY)
        await lifecycle.stop()

    run_with_sql(main)

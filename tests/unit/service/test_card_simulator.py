import asyncio

import pytest
from tests.unit.service.running import run_with_sql, started

from fourplane.foundation.errors import Conflict, DeadlineExceeded, NotFound, Rejected, Unavailable
from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.money import Money
from fourplane.service.card_simulator import CardSettings, CardSimulator
from fourplane.service.payment_gateway import Capture
from fourplane.state.contracts import Statement

TEN = Money(1_000, "EUR")
MOVED = ("currency", "card", "held", "merchant")
QUICK = CardSettings(slow_s=0.0, silent_s=0.0, notice_retry_s=0.0)


def with_cards(main, on_notice=None):
    async def body(sql):
        cards = CardSimulator(sql, ids=IdGenerator(), settings=QUICK, on_notice=on_notice)
        lifecycle = await started(cards)
        try:
            await main(cards)
            for money in (await cards.balances()).values():
                assert sum(money.values()) == 0
        finally:
            await lifecycle.drain()
            await lifecycle.stop()

    run_with_sql(body)


def test_money_is_held_then_taken_then_given_back():
    async def main(cards):
        held = await cards.authorise("k1", TEN, "card_ok")
        assert held.state == "authorised"
        assert await cards.balances() == {"EUR": {"card": -1_000, "held": 1_000}}
        taken = await cards.capture("k2", held.id, Money(700, "EUR"))
        assert (taken.state, taken.captured.amount) == ("captured", 700)
        assert await cards.balances() == {"EUR": {"card": -700, "held": 0, "merchant": 700}}
        part = await cards.refund("k3", held.id, Money(300, "EUR"))
        assert (part.state, part.refunded.amount) == ("captured", 300)
        rest = await cards.refund("k4", held.id, Money(400, "EUR"))
        assert rest.state == "refunded"
        assert (await cards.balances())["EUR"]["merchant"] == 0
        assert [step.split()[1] for step in await cards.story(held.id)] == ["authorise", "capture", "refund", "refund"]

    with_cards(main)


def test_declined_card_moves_no_money():
    async def main(cards):
        answer = await cards.authorise("k1", TEN, "card_declined")
        assert (answer.state, answer.reason) == ("declined", "insufficient funds")
        assert await cards.balances() == {}
        with pytest.raises(Conflict):
            await cards.capture("k2", answer.id)
        assert (await cards.void("k3", answer.id)).state == "declined"

    with_cards(main)


def test_same_key_gives_the_same_answer_and_another_request_is_refused():
    async def main(cards):
        first = await cards.authorise("k1", TEN, "card_ok")
        assert await cards.authorise("k1", TEN, "card_ok") == first
        with pytest.raises(Conflict) as reused:
            await cards.authorise("k1", Money(999, "EUR"), "card_ok")
        assert reused.value.reason == "key_reused"
        await cards.capture("k2", first.id)
        assert (await cards.capture("k2", first.id)).captured == TEN
        with pytest.raises(Conflict):
            await cards.refund("k2", first.id, TEN)
        assert (await cards.balances())["EUR"]["merchant"] == 1_000

    with_cards(main)


def test_same_key_at_the_same_moment_holds_the_money_once():
    async def main(cards):
        answers = await asyncio.gather(*(cards.authorise("k1", TEN, "card_ok") for _ in range(20)))
        assert len({answer.id for answer in answers}) == 1
        assert await cards.balances() == {"EUR": {"card": -1_000, "held": 1_000}}
        await cards.capture("take", answers[0].id)
        refunds = [cards.refund(f"r{n}", answers[0].id, Money(300, "EUR")) for n in range(5)]
        done = await asyncio.gather(*refunds, return_exceptions=True)
        assert sum(not isinstance(one, Exception) for one in done) == 3, "never more than was captured"

    with_cards(main)


def test_lost_answer_is_found_by_its_key():
    async def main(cards):
        with pytest.raises(DeadlineExceeded):
            await cards.authorise("k1", TEN, "card_silent")
        found = await cards.find_by_key("k1")
        assert found.state == "authorised"
        assert (await cards.authorise("k1", TEN, "card_silent")).id == found.id
        assert await cards.find_by_key("never") is None

    with_cards(main)


def test_failing_cards_hold_nothing():
    async def main(cards):
        with pytest.raises(Unavailable):
            await cards.authorise("k1", TEN, "card_failing")
        with pytest.raises(Unavailable):
            await cards.authorise("k2", TEN, "card_flaky")
        assert await cards.balances() == {}
        assert (await cards.authorise("k2", TEN, "card_flaky")).state == "authorised"

    with_cards(main)


def test_notices_of_a_double_card_come_twice_with_one_id():
    heard = []
    complete = asyncio.Event()
    refusals = [Unavailable("not now")]

    async def on_notice(notice):
        if refusals:
            raise refusals.pop()
        heard.append(notice)
        if len(heard) == 4:
            complete.set()

    async def main(cards):
        held = await cards.authorise("k1", TEN, "card_double")
        await cards.capture("k2", held.id)
        await cards.drain()
        await asyncio.wait_for(complete.wait(), 5)
        assert [notice.state for notice in heard] == ["authorised"] * 2 + ["captured"] * 2
        assert len({notice.id for notice in heard}) == 2

    with_cards(main, on_notice)


def test_wrong_requests_are_refused():
    async def main(cards):
        held = await cards.authorise("k1", TEN, "card_ok")
        for amount in (Money(0, "EUR"), Money(-1, "EUR")):
            with pytest.raises(Rejected):
                await cards.authorise("k9", amount, "card_ok")
        with pytest.raises(Rejected):
            await cards.authorise("k9", TEN, "gold")
        with pytest.raises(Rejected):
            await cards.authorise("", TEN, "card_ok")
        with pytest.raises(Rejected):
            await cards.capture("k2", held.id, Money(1_001, "EUR"))
        with pytest.raises(Rejected):
            await cards.capture("k2", held.id, Money(10, "USD"))
        with pytest.raises(NotFound):
            await cards.capture("k2", "pay_0000000000000")
        with pytest.raises(Rejected):
            await cards.capture("k2", "nonsense")
        await cards.void("k3", held.id)
        with pytest.raises(Conflict):
            await cards.capture("k4", held.id)
        assert (await cards.void("k5", held.id)).state == "voided"

    with_cards(main)


def test_many_are_captured_at_once_each_once_and_those_that_cannot_be_are_named():
    async def main(cards):
        held = [await cards.authorise(f"k{number}", TEN, "card_ok") for number in range(5)]
        await cards.void("void", held[3].id)
        await cards.capture("c4", held[4].id)
        asked = [Capture(f"c{number}", one.id) for number, one in enumerate(held)]
        assert await cards.capture_many(asked) == ["c3"]
        assert await cards.capture_many(asked) == ["c3"], "again: the same answer"
        assert (await cards.balances())["EUR"] == {"card": -4_000, "held": 0, "merchant": 4_000}
        assert cards.statistics().captured == 4
        again = [Capture("c0", held[0].id), Capture("c0", held[0].id), Capture("other", held[1].id)]
        assert await cards.capture_many(again) == ["other"]

    with_cards(main)


def test_captures_of_one_call_that_meet_another_change_are_done_one_by_one():
    async def main(cards):
        held = [await cards.authorise(f"k{number}", TEN, "card_ok") for number in range(3)]
        known = dict(cards._recent)
        await cards.void("void", held[1].id)
        cards._recent.update(known)  # what it believes is old
        asked = [Capture(f"c{number}", one.id) for number, one in enumerate(held)]
        assert await cards.capture_many(asked) == ["c1"]
        assert (await cards.balances())["EUR"] == {"card": -2_000, "held": 0, "merchant": 2_000}

    with_cards(main)


def test_what_is_held_is_told_by_the_keys_it_was_asked_with():
    async def main(cards):
        held = [await cards.authorise(f"shop-{number}", TEN, "card_ok") for number in range(4)]
        await cards.authorise("ride-1", TEN, "card_ok")
        await cards.authorise("shop-no", TEN, "card_declined")
        await cards.capture("c", held[1].id)
        await cards.void("v", held[2].id)
        assert await cards.held("shop-") == ["shop-0", "shop-3"]
        assert await cards.held("nobody-") == []

    with_cards(main)


def test_a_store_of_an_older_release_learns_to_find_what_is_held_and_keeps_its_balances():
    async def body(sql):
        life = await started(CardSimulator(sql, ids=IdGenerator()))
        await life.stop()
        operate = (
            "INSERT INTO payment_operations (key, payment_id, kind, request, at_us) VALUES (?1, 1, 'authorise', '', 1)"
        )
        enter = "INSERT INTO payment_ledger (key, line, payment_id, account, amount, currency) VALUES (?1, ?2, 1, ?3, ?4, 'EUR')"
        older = [
            Statement("DROP INDEX payments_held"),
            *(Statement(f"ALTER TABLE payment_operations DROP COLUMN {name}") for name in MOVED),
            Statement("DELETE FROM fourplane_schema WHERE name = 'payments' AND version > 1"),
            Statement(operate, ("old",)),
            Statement(enter, ("old", 0, "card", -300)),
            Statement(enter, ("old", 1, "held", 300)),
        ]
        await sql.commit(older)
        cards = CardSimulator(sql, ids=IdGenerator())
        life = await started(cards)
        assert await cards.balances() == {"EUR": {"card": -300, "held": 300}}
        await sql.commit([Statement(operate, ("older still running",))])
        await cards.capture("k-capture", (await cards.authorise("k-first", TEN, "card_ok")).id)
        assert await cards.balances() == {"EUR": {"card": -1_300, "held": 300, "merchant": 1_000}}
        assert await sql.read("SELECT COUNT(*) FROM sqlite_schema WHERE name = 'payments_held'") == [(1,)]
        await cards.authorise("k", TEN, "card_ok")
        assert await cards.held("k") == ["k"]
        await life.stop()

    run_with_sql(body)

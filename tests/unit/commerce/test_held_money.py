"""Money on hold after a crash: what no order stands for is let go, what waits for its parcel stays."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from tests.journeys.commerce.rig import COLD, build, shop

from fourplane.commerce.app import CommerceSettings
from fourplane.commerce.payment import PaymentSettings
from fourplane.foundation import ids
from fourplane.foundation.errors import Unavailable
from fourplane.foundation.money import Money
from fourplane.service.decision_log import DecisionLog
from fourplane.state.contracts import Delete, Statement

SMALL = CommerceSettings(generated_products=2, pages=COLD, standing_offers=False)
AT_SHIPMENT = msgspec.structs.replace(SMALL, payment=PaymentSettings(capture="shipment"))


class AwayRecords:
    async def get(self, partition, sort):
        raise Unavailable("away")


async def bought(s) -> int:
    sku = await s.some_sku(10)
    status, made = await s.order(await s.cart_with(sku, 1), "attempt-1")
    assert status == 201, made
    return ids.decode("order", made["id"])


def test_a_hold_that_became_no_order_is_let_go_by_the_next_start_and_by_the_sweep(tmp_path: Path):
    async def main():
        async with shop(data=tmp_path, settings=SMALL, shards=0) as s:
            lost = s.commerce.payments._key(ids.IdGenerator().next())
            await s.cards.authorise(lost, Money(500, "EUR"), "card_ok")
            await s.cards.authorise("commerce-of-somebody-else-1", Money(70, "EUR"), "card_ok")
            assert (await s.money())["EUR"]["held"] == 570
        async with shop(data=tmp_path, settings=SMALL, shards=0) as s:
            assert (await s.money())["EUR"]["held"] == 70, "the other shop's is not ours"
            late = s.commerce.payments._key(ids.IdGenerator().next())
            await s.cards.authorise(late, Money(600, "EUR"), "card_ok")
            await s.commerce.coordinator.resolve()
            assert (await s.money())["EUR"]["held"] == 70

    asyncio.run(main())


async def marks(s) -> tuple[str, str]:
    """What the shop's payments are named by: the row and its copy, empty where there is none."""
    rows = await s.commerce.orders._sql.read("SELECT mark FROM payment_mark")
    copy = await s.commerce.carts._records.get(b"payments", b"mark")
    return rows[0][0] if rows else "", "" if copy is None else copy.value.decode()


@pytest.mark.parametrize("lost", ["row", "copy"])
def test_a_lost_mark_hides_no_payment(tmp_path: Path, lost: str):
    async def main():
        async with shop(data=tmp_path, settings=SMALL, shards=0) as s:
            number = await bought(s)
            await s.commerce.coordinator.settle()
            held = s.commerce.payments._key(ids.IdGenerator().next())
            await s.cards.authorise(held, Money(500, "EUR"), "card_ok")
            before = await marks(s)
            assert before[0] == before[1] != ""
            if lost == "row":
                await s.commerce.orders._sql.commit([Statement("DELETE FROM payment_mark")])
            else:
                await s.commerce.carts._records.write(b"payments", [Delete(b"mark")])
        async with shop(data=tmp_path, settings=SMALL, shards=0) as s:
            assert await marks(s) == before
            payment = await s.commerce.payments.of_order(number)
            assert payment.state == "captured"
            await s.commerce.payments.cancel(number, payment.captured)
            assert (await s.money())["EUR"] == {"card": 0, "held": 0, "merchant": 0}, "found, given back, let go"

    asyncio.run(main())


def test_no_mark_is_made_up_while_the_copy_cannot_be_read(tmp_path: Path):
    async def main():
        async with shop(data=tmp_path, settings=SMALL, shards=0) as s:
            payments = s.commerce.payments
            before = await marks(s)
            await s.commerce.orders._sql.commit([Statement("DELETE FROM payment_mark")])
            payments._records = AwayRecords()
            with pytest.raises(Unavailable):
                await payments.open()
            assert (await marks(s))[0] == ""
            payments._records = s.commerce.carts._records
            await payments.open()
            assert await marks(s) == before

    asyncio.run(main())


def test_a_shop_that_was_replaced_lets_nothing_of_its_successor_go(tmp_path: Path):
    async def main():
        async with shop(data=tmp_path, settings=SMALL, shards=0) as s:
            await s.cards.authorise(s.commerce.payments._key(ids.IdGenerator().next()), Money(500, "EUR"), "card_ok")
            old = s.commerce.coordinator
            successor = DecisionLog(old._log._sql, old._name, old._shared)
            await successor.open()
            assert await old.resolve() == 0
            assert (await s.money())["EUR"]["held"] == 500
            old._log.epoch = successor.epoch
            assert await old.resolve() == 1
            assert (await s.money())["EUR"]["held"] == 0

    asyncio.run(main())


def test_what_waits_for_its_parcel_stays_on_hold_whenever_others_are_charged_from_now_on(tmp_path: Path):
    async def main():
        async with shop(data=tmp_path, settings=AT_SHIPMENT, shards=0) as s:
            number = await bought(s)
            await s.commerce.coordinator.settle()
            await s.commerce.coordinator._log.flush()  # the decision is done with and gone
        for settings in (AT_SHIPMENT, SMALL):
            async with shop(data=tmp_path, settings=settings, shards=0) as s:
                await s.commerce.coordinator.resolve()
                await s.commerce.coordinator.resolve()
                assert (await s.commerce.payments.of_order(number)).state == "authorised"

    asyncio.run(main())


def test_a_gateway_that_does_not_answer_keeps_no_door_shut_and_is_asked_again(tmp_path: Path):
    async def main():
        async with shop(data=tmp_path, settings=SMALL, shards=0) as s:
            lost = s.commerce.payments._key(ids.IdGenerator().next())
            await s.cards.authorise(lost, Money(500, "EUR"), "card_ok")
        s = await build(data=tmp_path, settings=SMALL, shards=0)
        cards = s.cards
        await s.cards.authorise(s.commerce.payments._key(ids.IdGenerator().next()), Money(40, "EUR"), "card_ok")
        held = cards.held

        async def away(prefix):
            raise Unavailable("the gateway is away")

        cards.held = away
        await s.commerce.coordinator.resolve()
        assert (await s.money())["EUR"]["held"] == 40
        cards.held = held
        await s.commerce.coordinator.resolve()
        assert (await s.money())["EUR"]["held"] == 0
        s.client.close()
        await s.life.drain()
        await s.life.stop()
        s.gateway.close()

    asyncio.run(main())


def test_an_order_of_an_older_release_is_paid_back_under_the_keys_it_had():
    async def main():
        async with shop(settings=SMALL) as s:
            payments = s.commerce.payments
            key = payments._key
            payments._key = lambda number: f"commerce-{number}"
            number = await bought(s)
            await s.commerce.coordinator.settle()
            payments._key = key
            assert (await payments.of_order(number)).state == "captured"
            order = await s.commerce.orders.fetch(number)
            await s.commerce.store.cancel(order.id, order.cart, None)
            await payments.cancel(number, Money(order.body.quote.total, "EUR"))
            assert (await s.money())["EUR"] == {"card": 0, "held": 0, "merchant": 0}
            story = await s.cards.story((await payments.of_order(number)).id)
            assert story[-1].endswith(f"(commerce-{number}-refund-cancel)")

    asyncio.run(main())


def test_a_replayed_attempt_hears_of_its_order_also_when_the_card_says_no_now():
    async def main():
        async with shop(settings=SMALL) as s:
            sku = await s.some_sku(10)
            cart = await s.cart_with(sku, 1)
            status, made = await s.order(cart, "attempt-1")
            assert status == 201
            status, _ = await s.call(
                "POST", f"/commerce/api/carts/{cart}/lines?country=PT", {"sku": sku, "quantity": 1}
            )
            assert status == 200
            for method in ("card_declined", "card_ok"):
                status, again = await s.order(cart, "attempt-1", method=method)
                assert (status, again["id"]) == (201, made["id"])
            total = (await s.commerce.orders.fetch(ids.decode("order", made["id"]))).body.quote.total
            assert (await s.money())["EUR"] == {"card": -total, "held": 0, "merchant": total}

    asyncio.run(main())

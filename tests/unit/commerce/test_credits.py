"""Parts of orders are paid back once, exactly, and the shelf is full again."""

import asyncio

import msgspec
import pytest
from tests.journeys.commerce.rig import COLD, shop

from fourplane.commerce.app import CommerceSettings
from fourplane.commerce.fulfilment import FulfilmentSettings
from fourplane.commerce.payment import PaymentSettings
from fourplane.foundation import ids
from fourplane.foundation.errors import Conflict, Rejected

AT_SHIPMENT = CommerceSettings(
    generated_products=2,
    pages=COLD,
    standing_offers=False,
    payment=PaymentSettings(capture="shipment"),
    fulfilment=FulfilmentSettings(pass_s=3_600.0, pack_s=0.0, ship_s=0.0),
)


async def bought(s, count=3, stock=10):
    sku = await s.some_sku(stock)
    status, made = await s.order(await s.cart_with(sku, count), "attempt-1")
    assert status == 201, made
    return sku, await s.commerce.orders.fetch(ids.decode("order", made["id"]))


def test_pieces_are_paid_back_one_by_one_and_add_up_to_the_line():
    async def main():
        async with shop() as s:
            sku, order = await bought(s)
            line = order.body.quote.lines[0]
            amounts = []
            for number in range(3):
                credit = await s.commerce.credits.give(order, f"credit-{number}", {sku: 1}, restock=True)
                again = await s.commerce.credits.give(order, f"credit-{number}", {sku: 1}, restock=True)
                assert again == credit
                amounts.append(credit.amount)
            assert sum(amounts) == line.total
            assert await s.commerce.inventory.available(sku) == 10
            money = (await s.money())["EUR"]
            assert money["merchant"] == order.body.quote.total - line.total
            with pytest.raises(Rejected):
                await s.commerce.credits.give(order, "credit-more", {sku: 1}, restock=True)
            await s.commerce.inventory.check()
            story = [event.state for event in await s.commerce.orders.story(order.number)]
            assert story.count("credited") == 3

    asyncio.run(main())


def test_many_credits_at_once_never_pay_more_than_there_is():
    async def main():
        async with shop() as s:
            sku, order = await bought(s)
            given = await asyncio.gather(
                *(s.commerce.credits.give(order, f"credit-{n}", {sku: 2}, restock=False) for n in range(6)),
                return_exceptions=True,
            )
            assert sum(not isinstance(one, Exception) for one in given) == 1
            assert await s.commerce.inventory.available(sku) == 7

    asyncio.run(main())


def test_a_cancelled_order_gives_back_only_what_is_left():
    async def main():
        async with shop() as s:
            sku, order = await bought(s)
            await s.commerce.credits.give(order, "credit-1", {sku: 1}, restock=True)
            status, _ = await s.call("POST", f"/commerce/api/orders/{order.id}/cancel", x_cart=order.cart)
            assert status == 200
            assert (await s.money())["EUR"] == {"card": 0, "held": 0, "merchant": 0}
            assert await s.commerce.inventory.available(sku) == 10
            await s.commerce.inventory.check()

    asyncio.run(main())


def test_an_interrupted_credit_is_finished_later():
    async def main():
        async with shop() as s:
            sku, order = await bought(s)
            s.commerce.store.boxes.payment.switch.on = False
            with pytest.raises(Exception, match="stopped"):
                await s.commerce.credits.give(order, "credit-1", {sku: 1}, restock=True)
            assert await s.commerce.inventory.available(sku) == 7
            s.commerce.store.boxes.payment.switch.on = True
            assert await s.commerce.credits.finish() == 1
            assert await s.commerce.credits.finish() == 0
            assert await s.commerce.inventory.available(sku) == 8

    asyncio.run(main())


def test_a_card_charged_at_shipment_pays_for_what_is_sent():
    async def main():
        async with shop(settings=AT_SHIPMENT) as s:
            sku, order = await bought(s)
            total = order.body.quote.total
            assert (await s.money())["EUR"] == {"card": -total, "held": total}
            credit = await s.commerce.credits.give(order, "credit-1", {sku: 1}, restock=True)
            assert (await s.money())["EUR"]["held"] == total
            for _ in range(2):
                await s.commerce.fulfilment.work()
            assert (await s.commerce.orders.fetch(order.number)).state == "shipped"
            left = total - credit.amount
            assert (await s.money())["EUR"] == {"card": -left, "held": 0, "merchant": left}

    asyncio.run(main())


def test_a_cancelled_order_that_was_not_charged_is_let_go():
    async def main():
        async with shop(settings=AT_SHIPMENT) as s:
            sku, order = await bought(s)
            await s.commerce.store.cancel(order.id, order.cart, None)
            assert (await s.money())["EUR"] == {"card": 0, "held": 0}
            assert await s.commerce.inventory.available(sku) == 10

    asyncio.run(main())


@pytest.mark.parametrize(
    ("lines", "key"),
    [({}, "credit-1"), ({"nothing": 1}, "credit-1"), (None, "short"), (0, "credit-1"), (-1, "credit-1")],
)
def test_wrong_credits_are_refused_and_pay_nothing(lines, key):
    async def main():
        async with shop() as s:
            sku, order = await bought(s)
            wanted = {sku: 1} if lines is None else {sku: lines} if isinstance(lines, int) else lines
            with pytest.raises(Rejected):
                await s.commerce.credits.give(order, key, wanted, restock=True)
            assert (await s.money())["EUR"]["merchant"] == order.body.quote.total

    asyncio.run(main())


def test_a_key_of_another_credit_is_a_conflict():
    async def main():
        async with shop() as s:
            sku, order = await bought(s)
            await s.commerce.credits.give(order, "credit-1", {sku: 1}, restock=True)
            with pytest.raises(Conflict):
                await s.commerce.credits.give(order, "credit-1", {sku: 2}, restock=True)

    asyncio.run(main())


def test_notices_of_the_card_network_need_its_signature_and_count_once():
    from fourplane.commerce.webhooks import sign
    from fourplane.foundation import clock

    async def main():
        settings = msgspec.structs.replace(AT_SHIPMENT, payment=PaymentSettings(notice_secret="between us"))
        async with shop(settings=settings) as s:
            body = {"id": "notice-1", "payment_id": "pay_1", "state": "captured"}
            raw, now = msgspec.json.encode(body), clock.now_us() // 1_000_000
            good = sign("between us", raw, now)
            old = sign("between us", raw, now - 600)
            told = [good, good, sign("guessed", raw, now), old, "", "t=1"]
            path = "/commerce/api/payments/notices"
            statuses = [(await s.call("POST", path, body, fourplane_signature=one))[0] for one in told]
            assert statuses == [200, 200, 401, 401, 401, 401]
            assert s.commerce.payments.noticed_count == 1
        async with shop() as s:
            assert (await s.call("POST", "/commerce/api/payments/notices", body, fourplane_signature="x"))[0] == 401

    asyncio.run(main())

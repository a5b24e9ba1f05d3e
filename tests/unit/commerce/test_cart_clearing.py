"""What follows the answer to a checkout: the cart is written empty, the money is captured; both seem done at once."""

import asyncio
from pathlib import Path

from tests.journeys.commerce.rig import shop

from fourplane.foundation import ids
from fourplane.state.contracts import Statement


class Held:
    """Records whose writes wait until the test lets them."""

    def __init__(self, records):
        self._records = records
        self.let = asyncio.Event()
        self.let.set()

    def __getattr__(self, name):
        return getattr(self._records, name)

    async def write(self, partition, changes):
        await self.let.wait()
        await self._records.write(partition, changes)


def holding(s):
    s.commerce.carts._records = held = Held(s.commerce.carts._records)
    return held


def test_a_cart_is_empty_for_its_buyer_before_that_is_written():
    async def main():
        async with shop() as s:
            held = holding(s)
            sku = await s.some_sku(10)
            cart = await s.cart_with(sku, 2)
            held.let.clear()
            status, made = await s.order(cart, "attempt-1")
            assert status == 201, made
            stored = await s.commerce.carts._records.get(b"cart:" + cart.encode(), b"cart")
            assert sku.encode() in stored.value, "not written yet"
            assert (await s.call("GET", f"/commerce/api/carts/{cart}?country=PT"))[1]["lines"] == []
            status, told = await s.order(cart, "attempt-2")
            assert (status, told["error"]["code"]) == (400, "empty_cart")
            assert (await s.order(cart, "attempt-1"))[1]["id"] == made["id"], "the same attempt hears the same"
            held.let.set()
            await s.commerce.coordinator.settle()
            assert not s.commerce.carts._ahead
            assert not (await s.commerce.carts.find(cart)).entries

    asyncio.run(main())


def test_what_is_put_in_after_the_answer_stays():
    async def main():
        async with shop() as s:
            held = holding(s)
            sku = await s.some_sku(10)
            cart = await s.cart_with(sku, 2)
            held.let.clear()
            assert (await s.order(cart, "attempt-1"))[0] == 201
            adding = asyncio.ensure_future(
                s.call("POST", f"/commerce/api/carts/{cart}/lines?country=PT", {"sku": sku, "quantity": 1})
            )
            held.let.set()
            assert (await adding)[0] == 200
            await s.commerce.coordinator.settle()
            assert (await s.commerce.carts.find(cart)).quantities() == {sku: 1}
            assert (await s.order(cart, "attempt-2"))[0] == 201

    asyncio.run(main())


def test_an_order_that_is_cancelled_before_its_capture_is_charged_and_paid_back():
    async def main():
        async with shop() as s:
            gateway, let = s.commerce.payments._gateway, asyncio.Event()
            together = gateway.capture_many

            async def later(captures):
                await let.wait()
                return await together(captures)

            gateway.capture_many = later
            sku = await s.some_sku(10)
            cart = await s.cart_with(sku, 2)
            status, made = await s.order(cart, "attempt-1")
            assert status == 201, made
            payment = await s.commerce.payments.of_order(ids.decode("order", made["id"]))
            assert payment.state == "authorised"
            await s.commerce.store.cancel(made["id"], cart, None)
            let.set()
            assert (await s.money())["EUR"] == {"card": 0, "held": 0, "merchant": 0}
            payment = await s.commerce.payments.of_order(ids.decode("order", made["id"]))
            assert payment.state == "refunded"

    asyncio.run(main())


def test_a_cart_that_an_older_release_left_full_is_emptied_by_the_first_start_of_this_one(tmp_path: Path):
    async def main():
        async with shop(data=tmp_path, shards=0) as s:
            cart = await s.cart_with(await s.some_sku(10), 2)
            before = await s.commerce.carts.find(cart)
            assert (await s.order(cart, "attempt-1"))[0] == 201
            await s.commerce.coordinator.settle()

            def full_again(now, _):
                now.entries, now.gone = before.entries, {}

            await s.commerce.carts.change(cart, full_again)
            await s.commerce.coordinator._log.flush()  # the checkout is over and done with
            await s.commerce.orders._sql.commit([Statement("DELETE FROM payment_mark")])
        async with shop(data=tmp_path, shards=0) as s:
            assert not (await s.commerce.carts.find(cart)).entries

    asyncio.run(main())

"""Buyers, returns and readers race in virtual time; each shelf behaves as if they had come one after the other."""

import asyncio

from tests.journeys.commerce.rig import shop
from tests.simulation.commerce.linearizability import NEVER, Operation, explain, stock

from fourplane.foundation import clock
from fourplane.simulator import loop


def buy(called, returned, count, outcome):
    return Operation(called, returned, "buy", count, outcome)


def test_the_checker_knows_right_from_wrong():
    assert explain([buy(0, 2, 1, "sold"), buy(1, 3, 1, "refused")], 1, stock)
    assert explain([buy(0, 2, 1, "refused"), buy(1, 3, 1, "sold")], 1, stock), "concurrent: either may be first"
    assert explain([buy(0, 1, 1, "refused"), buy(2, 3, 1, "sold")], 1, stock) is None, "refused while one was there"
    assert explain([buy(0, 2, 1, "sold"), buy(1, 3, 1, "sold")], 1, stock) is None, "oversold"
    assert explain([buy(0, NEVER, 1, None), Operation(1, 2, "read", 0, 0)], 1, stock), "a lost answer may have bought"
    assert explain([buy(0, NEVER, 1, None), Operation(1, 2, "read", 0, 1)], 1, stock), "or not yet"
    stale = [buy(0, 1, 1, "sold"), Operation(2, 3, "read", 0, 1)]
    assert explain(stale, 1, stock) is None, "a stale read"


async def race(world):
    histories = {}
    async with shop() as s:
        products = await s.commerce.catalog.page("", 3)
        skus = [product.variants[0].sku for product in products]
        for sku in skus:
            await s.set_stock(sku, 7)
        chance = clock.random()

        async def shopper(number):
            for turn in range(4):
                await clock.sleep(chance.random() * 0.02)
                sku, count = chance.choice(skus), chance.choice((1, 1, 2))
                history = histories.setdefault(sku, [])
                began = clock.monotonic_s()
                if chance.random() < 0.3:
                    _, level = await s.call("GET", f"/commerce/api/stock/{sku}")
                    history.append(Operation(began, clock.monotonic_s(), "read", 0, level["available"]))
                    continue
                cart = await s.cart_with(sku, count)
                began = clock.monotonic_s()
                status, order = await s.order(cart, f"attempt-{number}-{turn}")
                assert status in (201, 409), order
                outcome = "sold" if status == 201 else "refused"
                history.append(Operation(began, clock.monotonic_s(), "buy", count, outcome))
                if status == 201 and chance.random() < 0.4:
                    began = clock.monotonic_s()
                    status, _ = await s.call("POST", f"/commerce/api/orders/{order['id']}/cancel", x_cart=cart)
                    assert status == 200
                    history.append(Operation(began, clock.monotonic_s(), "return", count, "done"))

        await asyncio.gather(*(shopper(number) for number in range(16)))
        await s.commerce.inventory.check()
    for sku, history in histories.items():
        assert explain(history, 7, stock) is not None, (sku, history)
    return sum(len(history) for history in histories.values())


def test_every_shelf_is_linearizable():
    for seed in (1, 2, 3):
        assert loop.run(race, seed).result > 40

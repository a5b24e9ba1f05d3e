"""The same shop over PostgreSQL: the race for the last pieces, a cancellation, the books."""

import asyncio
from collections import Counter

import pytest
from tests.contracts.conftest import new_postgres, running
from tests.journeys.commerce.rig import shop

from fourplane.state.stores import StoresSettings


@pytest.fixture(scope="module")
def server():
    yield from running(new_postgres())


def test_60_buyers_race_for_10_pieces_over_postgresql(server) -> None:
    async def main() -> None:
        settings = StoresSettings(sql=server.url, records="memory://", search="memory://")
        async with shop(stores_settings=settings) as s:
            sku = await s.some_sku(10)
            carts = await asyncio.gather(*(s.cart_with(sku) for _ in range(60)))
            answers = await asyncio.gather(*(s.order(cart, f"attempt-{n}") for n, cart in enumerate(carts)))
            assert Counter(status for status, _ in answers) == {201: 10, 409: 50}
            await s.commerce.inventory.check()
            cart, order = next(
                (cart, body) for cart, (status, body) in zip(carts, answers, strict=True) if status == 201
            )
            status, _ = await s.call("POST", f"/commerce/api/orders/{order['id']}/cancel", x_cart=cart)
            assert status == 200
            assert await s.commerce.inventory.available(sku) == 1
            await s.commerce.inventory.check()
            assert (await s.money())["EUR"]["held"] == 0

    asyncio.run(main())

"""PostgreSQL is killed (kill -9 of its first process and all others) and comes back while buyers order; ours is never restarted.

A buyer asks again with the same key until there is an answer. At the end every acknowledged order is there once, no cart was
ordered twice, stock, ledger and money balance, and nothing is left in doubt.
"""

import asyncio

import pytest
from tests.contracts.conftest import new_postgres, running
from tests.journeys.commerce.rig import COLD, CommerceSettings, shop

from fourplane.foundation import clock
from fourplane.state.stores import StoresSettings

BUYERS, KILLS, STOCK = 12, 3, 1_000
SETTINGS = CommerceSettings(generated_products=8, standing_offers=False, pages=COLD)
DOWN_S, BETWEEN = 0.2, 25  # orders between two kills


@pytest.fixture
def server():
    yield from running(new_postgres())


class Crowd:
    """Buyers of one piece after the other, and what they were told."""

    def __init__(self, shop, sku) -> None:
        self.shop, self.line = shop, {"sku": sku, "quantity": 1}
        self.told: dict[str, str] = {}  # order by attempt
        self.over = False

    async def answered(self, ask):
        """The first answer that is one."""
        while True:
            status, body = await ask()
            if status < 500 and not (status == 409 and body["error"]["code"] == "in_progress"):
                return status, body
            await clock.sleep(0.02)

    async def filled(self) -> str:
        """A cart with one piece; one that may be in a cart already is put into another one."""
        status = 500
        while status >= 500:
            _, made = await self.answered(lambda: self.shop.call("POST", "/commerce/api/carts"))
            path = f"/commerce/api/carts/{made['id']}/lines?country=PT"
            status, _ = await self.shop.call("POST", path, self.line)
        return made["id"]

    async def buy(self, number: int) -> None:
        turn = 0
        while not self.over:
            turn += 1
            cart, attempt = await self.filled(), f"attempt-{number}-{turn}"
            status, body = await self.answered(lambda cart=cart, key=attempt: self.shop.order(cart, key))
            assert status in (200, 201), body
            self.told[attempt] = body["id"]

    async def until(self, count: int) -> None:
        """So many more have bought."""
        enough = len(self.told) + count
        while len(self.told) < enough:
            await clock.sleep(0.01)


@pytest.mark.slow
def test_no_acknowledged_order_is_lost_or_doubled_when_postgresql_is_killed(server) -> None:
    async def main() -> None:
        settings = StoresSettings(sql=server.url, records=server.url, search="memory://")
        async with shop(settings=SETTINGS, stores_settings=settings, shards=0) as s:
            sku = await s.some_sku(STOCK)
            crowd = Crowd(s, sku)
            async with asyncio.timeout(200), asyncio.TaskGroup() as group:
                for number in range(BUYERS):
                    group.create_task(crowd.buy(number))
                for _ in range(KILLS):
                    await crowd.until(BETWEEN)
                    server.kill()
                    await clock.sleep(DOWN_S)
                    server.start()
                await crowd.until(BETWEEN)
                crowd.over = True
            await agree(s, sku, crowd.told)

    asyncio.run(main())


async def agree(s, sku, told) -> None:
    """Orders, stock and money say what the buyers were told."""
    money = await s.money()
    read = s.commerce.orders.store.read
    rows = await read("SELECT id, attempt, cart, total, state FROM orders WHERE state <> 'failed'")
    assert len(set(told.values())) == len(told)
    assert {row[4] for row in rows} == {"paid"}
    assert len({row[1] for row in rows}) == len({row[2] for row in rows}) == len(rows) == len(told)
    await s.commerce.inventory.check()
    assert await s.commerce.inventory.available(sku) == STOCK - len(told)
    assert money["EUR"] == {"merchant": sum(row[3] for row in rows), "held": 0} | {"card": money["EUR"]["card"]}
    assert s.commerce.coordinator.statistics().open == 0

"""Ids go on behind what is stored, also when the clock was set back meanwhile."""

import asyncio
from pathlib import Path

import pytest
from tests.journeys.commerce.rig import ADDRESS, COLD, shop

from fourplane.commerce.app import CommerceSettings
from fourplane.commerce.checkout import PlaceOrder
from fourplane.commerce.fulfilment import FulfilmentSettings
from fourplane.commerce.orders import Address
from fourplane.commerce.stored_ids import StoredIds
from fourplane.commerce.webhooks import WebhookSettings
from fourplane.foundation import clock
from fourplane.foundation.ids import IdGenerator
from fourplane.state.contracts import Statement
from fourplane.state.stores import Stores, StoresSettings

HOUR_US = 3_600_000_000
SETTINGS = CommerceSettings(
    generated_products=8,
    standing_offers=False,
    pages=COLD,
    fulfilment=FulfilmentSettings(pass_s=3_600.0),
    webhooks=WebhookSettings(poll_s=3_600.0),
)
REQUEST = PlaceOrder(address=Address(**ADDRESS))


class SetBack(clock.MachineSource):
    """The machine's clock, so many hours behind."""

    def __init__(self, hours: int) -> None:
        self._behind_us = hours * HOUR_US

    def now_us(self) -> int:
        return super().now_us() - self._behind_us


async def behind(number: int, slot: int) -> StoredIds:
    stores = Stores(StoresSettings(sql="memory://"))
    sql = await stores.sql("some")
    await sql.commit(
        [Statement("CREATE TABLE some (id BIGINT PRIMARY KEY)"), Statement(f"INSERT INTO some VALUES ({number})")]
    )
    made = StoredIds(IdGenerator(slot))
    await made.go_on_behind(sql, ("some", "id"))
    await stores.stop()
    return made


@pytest.mark.parametrize("sequence", [0, 4_000, 4_095])
def test_workers_that_are_behind_make_larger_ids_and_never_the_same(sequence: int) -> None:
    stored = IdGenerator(7).next() + (1 << 40) | sequence

    async def main() -> None:
        several = [await behind(stored, slot) for slot in (3, 7, 9)]
        made = [[ids.next() for _ in range(5_000)] for ids in several]
        for row in made:
            assert row == sorted(row)
            assert row[0] > stored
        assert len({number for row in made for number in row}) == 15_000

    asyncio.run(main())


def test_a_clock_that_goes_far_back_while_running_stops_nothing() -> None:
    plain = IdGenerator()
    ids = StoredIds(plain)
    before = ids.next()
    with clock.installed(SetBack(1)):
        assert plain.next() > before
        assert ids.next() > before


def test_orders_and_webhooks_stay_in_the_order_in_which_things_happened(tmp_path: Path) -> None:
    async def buy(number: int) -> int:
        async with shop(data=tmp_path, settings=SETTINGS, shards=0) as s:
            if number == 0:
                await s.commerce.webhooks.register("http://127.0.0.1:9/")
            product = (await s.commerce.catalog.page("", 8))[0]
            await s.set_stock(product.variants[0].sku, 5)
            cart = f"{number:032d}"
            await s.commerce.store.add(cart, product.variants[0].sku, 1, operation="a", country="PT")
            order = await s.commerce.store.place(cart, "attempt-1", REQUEST)
            [placed] = await s.commerce.orders.story(order.number)
            assert placed.at_us == order.created_us
            rows = await s.commerce.webhooks._sql.read(
                "SELECT id FROM webhook_deliveries WHERE due_us <= ?1 ORDER BY due_us, id", clock.now_us()
            )
            assert len(rows) == number + 1
            assert rows == sorted(rows)
            return order.number

    first = asyncio.run(buy(0))
    with clock.installed(SetBack(5)):
        second = asyncio.run(buy(1))
    assert first < second


def test_a_start_without_any_rows_is_as_before() -> None:
    ids = StoredIds(IdGenerator(5))
    made = [ids.next() for _ in range(3)]
    assert made == sorted(set(made))
    assert {number >> 12 & 1_023 for number in made} == {5}

"""Stock in its shard: holds, sales, give-backs, and owners that were replaced."""

import asyncio

import pytest

from fourplane.commerce.inventory import Adjustment, HoldRequest, InventorySettings, InventoryShard, OutOfStock, Wanted
from fourplane.commerce.schema import SHARD
from fourplane.foundation.errors import Conflict, Rejected
from fourplane.foundation.ids import IdGenerator
from fourplane.service.participants import Transaction
from fourplane.state import schema
from fourplane.state.stores import Stores, StoresSettings


def tx(number: int) -> Transaction:
    return Transaction(number, "test", 1)


def run(body) -> None:
    async def main() -> None:
        stores = Stores(StoresSettings(sql="memory://"))
        sql = await stores.sql("stock")
        await schema.ensure(sql, "stock", SHARD)
        shard = InventoryShard(InventorySettings(), sql=sql, ids=IdGenerator())
        await shard.open()
        await shard.set_stock([Adjustment("a", 9, "count"), Adjustment("b", 2, "count", "reno")])
        await body(shard, sql)
        await stores.stop()

    asyncio.run(main())


def want(*lines: tuple[str, int], zone: str = "us") -> HoldRequest:
    return HoldRequest([Wanted(sku, count) for sku, count in lines], zone)


def test_one_warehouse_that_has_everything_is_preferred_over_the_nearest() -> None:
    async def body(shard, _):
        pieces = await shard.prepare(tx(1), want(("a", 2), ("b", 2)))
        assert {piece.warehouse for piece in pieces} == {"reno"}

    run(body)


def test_a_line_may_come_from_several_warehouses_the_nearest_first() -> None:
    async def body(shard, _):
        pieces = await shard.prepare(tx(1), want(("a", 7), zone="europe"))
        assert [(piece.warehouse, piece.quantity) for piece in pieces] == [("rotterdam", 3), ("newark", 3), ("reno", 1)]

    run(body)


def test_all_of_an_order_is_held_or_nothing() -> None:
    async def body(shard, _):
        with pytest.raises(OutOfStock) as refusal:
            await shard.prepare(tx(1), want(("a", 1), ("b", 3)))
        assert refusal.value.fields == {"sku": "b", "wanted": 3, "available": 2}
        assert await shard.available("a") == 9

    run(body)


def test_every_step_may_be_repeated() -> None:
    async def body(shard, _):
        for _ in range(2):
            await shard.prepare(tx(1), want(("a", 4)))
        assert await shard.available("a") == 5
        for _ in range(2):
            await shard.commit(tx(1))
        await shard.prepare(tx(2), want(("a", 5)))
        for _ in range(2):
            await shard.abort(tx(2))
        assert await shard.available("a") == 5
        for _ in range(2):
            await shard.give_back("order", await shard.sold_in(1), "return")
        assert await shard.available("a") == 9
        await shard.check()

    run(body)


def test_a_late_prepare_cannot_win_after_the_abort() -> None:
    async def body(shard, _):
        await shard.abort(tx(1))
        with pytest.raises(Conflict) as refusal:
            await shard.prepare(tx(1), want(("a", 1)))
        assert refusal.value.reason == "transaction_ended"

    run(body)


def test_an_owner_that_was_replaced_can_write_no_more() -> None:
    async def body(shard, sql):
        await shard.prepare(tx(1), want(("a", 1)))
        younger = InventoryShard(InventorySettings(), sql=sql, ids=IdGenerator(1))
        await younger.open()
        for work in (shard.prepare(tx(2), want(("a", 1))), shard.commit(tx(1))):
            with pytest.raises(Conflict) as refusal:
                await work
            assert refusal.value.reason == "not_owner"
        await younger.commit(tx(1))
        await younger.check()

    run(body)


def test_a_count_below_what_buyers_hold_is_refused() -> None:
    async def body(shard, _):
        await shard.prepare(tx(1), want(("b", 2)))
        with pytest.raises(Conflict) as refusal:
            await shard.set_stock([Adjustment("b", 1, "count", "reno")])
        assert refusal.value.reason == "stock_held"
        await shard.check()

    run(body)


def test_what_is_plenty_is_told_without_a_look_at_the_rows_and_never_from_what_is_set_aside() -> None:
    async def body(shard, _):
        assert shard.plenty("a", 1) is None, "nobody has looked yet"
        await shard.enlist(tx(1), want(("a", 2)), 0)
        assert (shard.plenty("a", 7), shard.plenty("a", 8)) == (7, None)
        shard.complete(tx(1), want(("a", 2)))
        assert shard.plenty("a", 6) is None, "nobody knows yet whether the rows have this sale"
        shard.completed(tx(1))
        assert shard.plenty("a", 7) == 7
        await shard.set_stock([Adjustment("a", 30, "count")])
        assert shard.plenty("a", 1) is None, "the rows know better"

    run(body)


@pytest.mark.parametrize("count", [-1, 10_000_001, 2**63 - 1, 10**30])
def test_an_absurd_count_is_told_and_changes_nothing(count) -> None:
    async def body(shard, _):
        with pytest.raises(Rejected, match="stock is 0 to 10,000,000"):
            await shard.set_stock([Adjustment("a", count, "count")])
        assert await shard.available("a") == 9

    run(body)

"""Orders under way are found in their own index: a pass of the warehouse never looks through all that was ever sold."""

import asyncio

from fourplane.commerce.orders import OPEN, Orders
from fourplane.commerce.schema import STORE
from fourplane.state import schema
from fourplane.state.stores import Stores, StoresSettings


class Remembering:
    """A store that remembers what it was asked."""

    def __init__(self, sql):
        self._sql, self.asked = sql, []

    async def read(self, text, *parameters):
        self.asked.append((text, parameters))
        return await self._sql.read(text, *parameters)


async def nobody(*_):
    raise AssertionError("no order changes here")


def test_orders_of_an_open_state_are_found_in_the_index_of_open_ones(tmp_path):
    async def main():
        stores = Stores(StoresSettings(), data=tmp_path)
        try:
            sql = await stores.sql("commerce")
            await schema.ensure(sql, "commerce", STORE)
            store = Remembering(sql)
            orders = Orders(sql=store, announce=nobody)
            for state in OPEN:
                assert await orders.in_state(state, limit=10) == []
                text, parameters = store.asked[-1]
                plan = await sql.read(f"EXPLAIN QUERY PLAN {text}", *parameters)
                assert [step[3] for step in plan] == ["SEARCH orders USING INDEX orders_open (state=?)"], state
            assert await orders.in_state("delivered") == []
        finally:
            await stores.stop()

    asyncio.run(main())

"""Shoppers in virtual time: the same seed gives the same day in the shop, and it always adds up."""

from tests.journeys.commerce.rig import shop

from fourplane.commerce.app import CommerceSettings
from fourplane.commerce.fulfilment import FulfilmentSettings
from fourplane.foundation import clock
from fourplane.simulator import loop
from fourplane.simulator.crowds import Plan, Tally, Target
from fourplane.simulator.crowds.commerce import CommerceCrowd

SETTINGS = CommerceSettings(
    generated_products=30, fulfilment=FulfilmentSettings(pass_s=60, pack_s=120, ship_s=600), standing_offers=True
)


async def a_day(world):
    async with shop(settings=SETTINGS) as s:
        target = Target(http_port=s.server.port)
        tally = Tally()
        plan = Plan(users=12, rate_per_s=4.0, duration_s=30.0, shape="flash-sale")
        await CommerceCrowd().drive(target, plan, tally, lambda share, text: None)
        orders = await s.commerce.orders.in_state("paid", limit=1_000)
        world.note(f"{len(orders)} orders")
        assert tally.errors == {}
        await clock.sleep(1_800)  # packed after 2 minutes, shipped after 10, on its way for 13
        counts = await s.commerce.orders.counts()
        assert counts["delivered"] == tally.facts["orders"], "everything that was bought arrives"
        assert set(counts) <= {"delivered", "failed"}
        await s.commerce.inventory.check()
        assert all(count >= 0 for count in (await s.commerce.inventory.levels()).values())
        assert all(one["held"] == 0 for one in (await s.money()).values())
        return int(tally.facts["orders"]), int(tally.facts["sold_out"])


def test_a_seed_gives_the_same_day_twice():
    first, second = loop.run(a_day, 11), loop.run(a_day, 11)
    assert first.result[0] > 10
    assert first.digest == second.digest
    assert loop.run(a_day, 12).digest != first.digest

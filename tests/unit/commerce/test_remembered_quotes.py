"""Quotes are remembered by what they depend on, and never outlive it."""

import asyncio

from tests.journeys.commerce.rig import COLD, shop

from fourplane.commerce.app import CommerceSettings
from fourplane.commerce.promotions import Promotion
from fourplane.foundation import clock

SMALL = CommerceSettings(generated_products=2, pages=COLD, standing_offers=False)


def test_a_remembered_quote_goes_with_the_rules_the_price_and_the_country():
    async def main():
        async with shop(settings=SMALL) as s:
            sku = await s.some_sku(10)
            cart = await s.cart_with(sku, 2)

            async def total(country="PT"):
                return (await s.commerce.store.view(cart, country)).quote.total

            full = await total()
            assert await total() == full
            assert await total("GB") != 0
            assert await total() == full
            await s.commerce.promotions.put(Promotion("half", "Half", "percent", percent=50))
            half = await total()
            assert half < full
            await s.commerce.promotions.put(Promotion("half", "Half", "percent", percent=0))
            assert await total() == full
            await s.commerce.catalog.change_price(sku, "EUR", 1)
            assert await total() < half

    asyncio.run(main())


def test_a_rule_that_ends_is_looked_at_every_time():
    async def main():
        async with shop(settings=SMALL) as s:
            checkout = s.commerce.checkout
            cart = await s.cart_with(await s.some_sku(10), 1)
            soon = Promotion("now", "Now", "percent", percent=50, ends_us=clock.now_us() + 3_600_000_000)
            await s.commerce.promotions.put(soon)
            reduced = (await s.commerce.store.view(cart, "PT")).quote
            assert reduced.discount > 0
            assert not checkout._quotes
            await s.commerce.promotions.put(Promotion("now", "Now", "percent", percent=50, ends_us=1))
            assert (await s.commerce.store.view(cart, "PT")).quote.discount == 0

    asyncio.run(main())

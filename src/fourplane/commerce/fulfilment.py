"""What happens to an order after it is paid: packed, handed to the carrier, delivered; and what was left half done, finished.

One loop, idempotent steps: each pass takes a bounded number of orders that have waited long enough in a state and moves them on.
A step that was interrupted is simply taken in the next pass. The same loop voids card holds whose abort could not
reach the gateway.
"""

import msgspec

from fourplane.commerce.credits import Credits
from fourplane.commerce.inventory import Inventory
from fourplane.commerce.orders import Order, Orders
from fourplane.commerce.payment import Payments
from fourplane.commerce.shipping import BuiltInCarrier
from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, FourplaneError
from fourplane.foundation.money import Money


class FulfilmentSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Paces of the warehouse; the demonstration's are quick."""

    pass_s: float = 5.0
    pack_s: float = 20.0
    ship_s: float = 40.0
    batch: int = 50


class Fulfilment:
    """The warehouse's loop."""

    def __init__(
        self,
        settings: FulfilmentSettings,
        *,
        orders: Orders,
        payments: Payments,
        carrier: BuiltInCarrier,
        inventory: Inventory,
        paybacks: Credits,
    ) -> None:
        self._settings = settings
        self._orders = orders
        self._payments = payments
        self._carrier = carrier
        self._inventory = inventory
        self._credits = paybacks
        self.packed = self.shipped = self.delivered = self.troubles = 0

    async def run(self) -> None:
        """Pass after pass until the part stops; a store that is away is tried again."""
        while True:
            await clock.sleep(self._settings.pass_s)
            try:
                await self.work()
            except FourplaneError:
                self.troubles += 1

    async def work(self) -> None:
        """One pass."""
        settings, now = self._settings, clock.now_us()
        for order in await self._orders.in_state("paid", limit=settings.batch):
            if order.changed_us + settings.pack_s * 1e6 <= now and await self._move(order, "packed", "ready to go"):
                self.packed += 1
        for order in await self._orders.in_state("packed", limit=settings.batch):
            if order.changed_us + settings.ship_s * 1e6 <= now:
                await self._charge(order)
                warehouse = await self._warehouse(order)
                note = f"{warehouse} {self._carrier.label(order.id, warehouse)}"
                if await self._move(order, "shipped", note):
                    self.shipped += 1
        for order in await self._orders.in_state("shipped", limit=settings.batch):
            stations = self._carrier.track(order.id, handed_us=order.changed_us, now_us=now, warehouse="", place="")
            if stations and stations[-1].state == "delivered" and await self._move(order, "delivered", "handed over"):
                self.delivered += 1
        await self._credits.finish()
        await self._payments.sweep()

    async def _charge(self, order: Order) -> None:
        """Where cards are charged at shipment, this is the moment: for what is really sent."""
        quote = order.body.quote
        if self._payments.charges_at_shipment and quote.total > 0:
            left = quote.total - await self._credits.total(order.number)
            await self._payments.capture_part(order.number, Money(left, quote.currency))

    async def _warehouse(self, order: Order) -> str:
        for shard in self._inventory.shards:
            pieces = await shard.sold_in(order.number)
            if pieces:
                return pieces[0].warehouse
        return "newark"

    async def _move(self, order: Order, state: str, note: str) -> bool:
        """Take one step; False when somebody (a cancellation) was first."""
        assert state in ("packed", "shipped", "delivered"), "a step of the warehouse"
        try:
            match state:
                case "packed":
                    await self._orders.advance(order.number, "packed", note)
                case "shipped":
                    await self._orders.advance(order.number, "shipped", note)
                case _:
                    await self._orders.advance(order.number, "delivered", note)
        except Conflict:
            return False
        return True

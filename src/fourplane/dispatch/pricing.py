"""What a ride costs, said before it begins, and why: base + distance + time, times the surge of the place, rounded once.

Surge is a factor per S2 cell (level 12, about 2 km) from demand and supply: how many riders asked lately against how many
drivers are free there and next door. It moves a part of the way every half minute, ends at a cap, moves in
steps of 0.1, and every fare that carries it says the two numbers it came from. An upfront fare holds for two minutes.
The driver's part is a fixed share of everything but the booking fee. Pure: `now` and counts are arguments.
"""

from collections import deque
from collections.abc import Mapping
from fractions import Fraction

import msgspec

from fourplane.foundation.errors import NotFound
from fourplane.foundation.money import Money

SURGE_LEVEL = 12


class Product(msgspec.Struct, frozen=True, rename={"id": "product_id", "name": "display_name"}):
    """A kind of ride. Prices in minor units of the deployment's currency; `vehicles` are the kinds that may serve it."""

    id: str
    name: str
    description: str
    capacity: int
    vehicles: tuple[int, ...]
    base: int
    per_km: int
    per_minute: int
    minimum: int
    booking_fee: int
    cancellation_fee: int
    image: str = ""


PRODUCTS = (
    Product("go", "Go", "Everyday rides, up to 4 people", 4, (0, 1, 2), 120, 85, 14, 350, 60, 300),
    Product("comfort", "Comfort", "Newer cars, more room", 4, (1, 2), 180, 115, 20, 550, 80, 400),
    Product("van", "Van", "Room for 6 and their luggage", 6, (2,), 250, 150, 26, 800, 100, 500),
)


class PricingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of fares and surge."""

    currency: str = "EUR"
    surge_max: float = 3.0
    surge_slope: float = 0.35  # how much one more rider per free driver adds
    surge_move: float = 0.35  # the part of the way to the new factor per refresh
    surge_refresh_s: float = 30.0
    demand_window_s: float = 180.0
    demand_max: int = 200_000  # remembered asks
    fare_ttl_s: float = 120.0
    driver_share_percent: int = 78
    free_cancel_s: float = 120.0
    no_show_s: float = 300.0
    lost_s: float = 60.0  # a driver on the way of whom nothing is heard so long loses the trip


class FareLine(msgspec.Struct, frozen=True):
    label: str
    amount: Money


class Fare(msgspec.Struct, frozen=True):
    """A price with its reasons. The lines add up to the total."""

    product_id: str
    total: Money
    lines: tuple[FareLine, ...]
    surge: float
    surge_reason: str
    metres: float
    seconds: float


class Surge(msgspec.Struct, frozen=True):
    """The factor of one cell and where it came from."""

    factor: float = 1.0
    asks: int = 0
    free: int = 0

    def reason(self) -> str:
        """One sentence for the rider."""
        if self.factor <= 1.0:
            return "No surge here now."
        riders, drivers = ("rider" if self.asks == 1 else "riders"), ("driver" if self.free == 1 else "drivers")
        return f"Fares are {self.factor:.1f}x: {self.asks} {riders} asked lately for {self.free} free {drivers} around here."


NO_SURGE = Surge()


def find_product(product_id: str) -> Product:
    """The product; raises NotFound."""
    for product in PRODUCTS:
        if product.id == product_id:
            return product
    raise NotFound(f"no product {product_id[:30]!r}", code="no_product")


def price(product: Product, *, metres: float, seconds: float, surge: Surge, settings: PricingSettings) -> Fare:
    """The upfront fare of a ride over this distance and time."""
    currency = settings.currency
    distance = Money(_share(product.per_km, round(metres), 1_000), currency)
    time = Money(_share(product.per_minute, round(seconds), 60), currency)
    lines = [FareLine("Base", Money(product.base, currency)), FareLine("Distance", distance), FareLine("Time", time)]
    plain = Money.total([line.amount for line in lines], currency)
    if plain.amount < product.minimum:
        lines.append(FareLine("Up to the minimum", Money(product.minimum, currency) - plain))
        plain = Money(product.minimum, currency)
    if surge.factor > 1:
        more = Money(_share(plain.amount, round(surge.factor * 10) - 10, 10), currency)
        lines.append(FareLine(f"Surge {surge.factor:.1f}x", more))
        plain = plain + more
    lines.append(FareLine("Booking fee", Money(product.booking_fee, currency)))
    total = plain + lines[-1].amount
    return Fare(product.id, total, tuple(lines), surge.factor, surge.reason(), round(metres), round(seconds))


def _share(amount: int, part: int, whole: int) -> int:
    """Amount * part / whole of positive numbers, halves up."""
    return (2 * amount * part + whole) // (2 * whole)


def driver_part(total: Money, booking_fee: int, settings: PricingSettings) -> Money:
    """What the driver earns of a fare."""
    share = Fraction(settings.driver_share_percent, 100)
    return Money(max(0, total.amount - booking_fee), total.currency).times(share, "half_up")


class SurgeMap:
    """The factors of all cells, moved by `refresh`."""

    def __init__(self, settings: PricingSettings) -> None:
        self._settings = settings
        self._asks: deque[tuple[int, int]] = deque(maxlen=settings.demand_max)
        self._exact: dict[int, float] = {}
        self.cells: dict[int, Surge] = {}
        self.demand: dict[int, int] = {}  # asks of the window per cell, none without

    def asked(self, cell: int, now_us: int) -> None:
        """A rider asked for a ride in this cell."""
        if len(self._asks) == self._settings.demand_max:
            self._forget_one()
        self._asks.append((now_us, cell))
        self.demand[cell] = self.demand.get(cell, 0) + 1

    def seen(self, cell: int, free: int) -> Surge:
        """A cell as it looks now, surging or not."""
        return self.cells.get(cell) or Surge(1.0, self.demand.get(cell, 0), free)

    def at(self, cell: int) -> Surge:
        """The present factor of a cell."""
        return self.cells.get(cell, NO_SURGE)

    def refresh(self, free: Mapping[int, int], now_us: int) -> None:
        """Move every factor towards what demand and supply say; `free` counts the free drivers per cell."""
        oldest = now_us - int(self._settings.demand_window_s * 1e6)
        while self._asks and self._asks[0][0] < oldest:
            self._forget_one()
        asks = self.demand
        told: dict[int, Surge] = {}
        for cell in sorted(asks.keys() | self._exact.keys()):
            wanted = asks.get(cell, 0)
            ratio = wanted / (free.get(cell, 0) + 1)
            target = min(1 + self._settings.surge_slope * max(0.0, ratio - 1), self._settings.surge_max)
            before = self._exact.get(cell, 1.0)
            exact = before + (target - before) * self._settings.surge_move
            if exact < 1.02 and target <= 1:
                self._exact.pop(cell, None)
                continue
            self._exact[cell] = exact
            factor = min(round(exact, 1), self._settings.surge_max)
            if factor > 1:
                told[cell] = Surge(factor, wanted, free.get(cell, 0))
        self.cells = told

    def _forget_one(self) -> None:
        _, cell = self._asks.popleft()
        left = self.demand[cell] - 1
        if left:
            self.demand[cell] = left
        else:
            del self.demand[cell]

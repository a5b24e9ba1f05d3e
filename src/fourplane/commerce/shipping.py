"""What it costs to send an order, how long it takes, and where the parcel is.

`BuiltInCarrier` needs nobody: rates by zone and weight, and a parcel whose stations follow from the moment it was handed
over, so tracking is a pure function of two times. Another carrier implements the same three methods.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from fourplane.foundation.errors import Rejected

WEIGHT_G_MAX = 500_000


class Rate(msgspec.Struct, frozen=True):
    """One way of sending: what it costs in minor units and how many days it takes."""

    id: str
    name: str
    amount: int
    currency: str
    days_least: int
    days_most: int


class TrackingEvent(msgspec.Struct, frozen=True):
    """The parcel was seen here at this time."""

    at_us: int
    state: str
    place: str


class Carrier(Protocol):
    """Somebody who takes parcels; the built-in one, or a carrier's own service."""

    def rates(self, *, zone: str, currency: str, weight_g: int, goods: int) -> list[Rate]: ...
    def label(self, order: str, warehouse: str) -> str: ...
    def track(self, number: str, *, handed_us: int, now_us: int, warehouse: str, place: str) -> list[TrackingEvent]: ...


FREE_FROM = {"USD": 7_500, "EUR": 7_000, "GBP": 6_000}


class ShippingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`hour_s` is how long an hour of a parcel's journey takes here; the demonstration lets them pass quickly."""

    hour_s: float = 20.0
    free_from: dict[str, int] = msgspec.field(default_factory=lambda: dict(FREE_FROM))


_STATIONS = (
    (0, "label_created", "{from}"),
    (3, "picked_up", "{from}"),
    (9, "departed", "{from} sorting centre"),
    (26, "arrived", "{to} sorting centre"),
    (33, "out_for_delivery", "{to}"),
    (39, "delivered", "{to}"),
)
_BASE = {"us": (499, 1_299), "europe": (549, 1_449)}
_PLACES = {"newark": "Newark", "reno": "Reno", "rotterdam": "Rotterdam"}


class BuiltInCarrier:
    """Rates and tracking without anybody else."""

    def __init__(self, settings: ShippingSettings) -> None:
        self._settings = settings

    def rates(self, *, zone: str, currency: str, weight_g: int, goods: int) -> list[Rate]:
        """Standard (free above a sum) and express; raises Rejected for what no parcel service takes."""
        if zone not in _BASE:
            raise Rejected(f"no carrier for {zone[:20]!r}", code="no_carrier")
        if weight_g > WEIGHT_G_MAX:
            raise Rejected("this order is too heavy for a parcel", code="too_heavy", weight_g=weight_g)
        standard, express = _BASE[zone]
        kilos = -(-weight_g // 1_000)
        free = goods >= self._settings.free_from.get(currency, 1 << 62)
        more = kilos - 2 if kilos > 2 else 0
        return [
            Rate("standard", "Standard", 0 if free else standard + 40 * more, currency, 2, 4),
            Rate("express", "Express", express + 90 * more, currency, 1, 1),
        ]

    def choose(self, rate_id: str, rates: Sequence[Rate]) -> Rate:
        """The rate of this id; raises Rejected."""
        for rate in rates:
            if rate.id == rate_id:
                return rate
        known = ", ".join(rate.id for rate in rates)
        raise Rejected(f"no shipping option {rate_id[:20]!r}", code="unknown_shipping", known=known)

    def label(self, order: str, warehouse: str) -> str:
        """The tracking number of an order's parcel from one warehouse."""
        return f"FP{order.partition('_')[2].upper()}{warehouse[:2].upper()}"

    def track(self, number: str, *, handed_us: int, now_us: int, warehouse: str, place: str) -> list[TrackingEvent]:
        """Where the parcel has been until now, oldest first."""
        assert number, "a parcel without a number"
        names = {"from": _PLACES.get(warehouse, warehouse.title()), "to": place}
        hour_us = int(self._settings.hour_s * 1e6)
        return [
            TrackingEvent(handed_us + hours * hour_us, state, where.format_map(names))
            for hours, state, where in _STATIONS
            if handed_us + hours * hour_us <= now_us
        ]

"""What riders, drivers and operators are told of rides: structs that leave as JSON."""

import msgspec

from fourplane.dispatch.trips import Place


class TripNews(msgspec.Struct, frozen=True):
    """What watchers of a trip are told: look again."""

    trip: str
    status: str
    driver: int
    kind: str = "trip"


class OfferNews(msgspec.Struct, frozen=True):
    """An offer as a driver's app gets it."""

    driver: int
    trip: str
    pickup: Place
    dropoff: Place
    eta_s: float
    expires_in_s: float
    earnings: str
    product: str
    pin: bool
    kind: str = "offer"


class DriverNews(msgspec.Struct, frozen=True):
    """Something changed about a driver's offer or trip."""

    driver: int
    trip: str
    status: str
    kind: str = "driver_trip"


class RideStatistics(msgspec.Struct, frozen=True):
    """Cumulative counts, and how many are where now."""

    requested: int
    accepted: int
    completed: int
    cancelled: int
    unserved: int
    offers: int
    declined: int
    expired: int
    settled: int
    payment_failures: int
    active: int
    searching: int
    earned: int  # captured, minor units
    lost: int  # drivers given up on because nothing was heard of them
    holds_undone: int  # payments held for a trip that never was, given back
    holds_left: int  # such that wait

"""A trip as the sequence of what happened to it: the state machine, pure.

A trip is the fold of its events; nothing else is stored. `decide` looks at the trip and at what somebody wants and returns
the events that follow: none when the same was already done (a repeated call is harmless), or raises Conflict with the
state the trip is in. `apply` folds one event in. Both know no clock: times come with the events.

    processing --offered--> offered --accepted--> accepted --arrived--> arriving --started--> in_progress --completed--> completed
        ^  |                   |                      |                    |
        |  |<--offer closed----'                      |                    `--no show--> rider_canceled
        |  |<-----driver cancels: a new search--------'
        |  |--> no_drivers_available      any state before in_progress --> rider_canceled

Status words are those of Uber's public API v1.2; `MDS_STATES` maps them to the passenger-services mode of MDS 2.0.
Invariants (`check`): a driver is there exactly in the states that need one; money is settled only at an end; at most
one offer is open.
"""

from typing import Literal, assert_never

import msgspec

from fourplane.dispatch.pricing import Fare
from fourplane.foundation.errors import Conflict, Forbidden, Rejected
from fourplane.foundation.money import Money

SCHEMA = 1
OFFERS_KEPT = 40
SANDBOX = "sandbox-"  # riders of the sandbox begin with it

Status = Literal[
    "processing", "offered", "accepted", "arriving", "in_progress", "completed",
    "rider_canceled", "driver_canceled", "no_drivers_available",
]  # fmt: skip
Actor = Literal["rider", "driver", "system"]
ENDS: frozenset[Status] = frozenset({"completed", "rider_canceled", "driver_canceled", "no_drivers_available"})
WITH_DRIVER: frozenset[Status] = frozenset({"accepted", "arriving", "in_progress", "completed"})

# What the vehicle is doing in the words of MDS 2.0, passenger-services.
MDS_STATES: dict[Status, str] = {
    "processing": "available", "offered": "available", "accepted": "reserved", "arriving": "stopped",
    "in_progress": "on_trip", "completed": "available", "rider_canceled": "available",
    "driver_canceled": "available", "no_drivers_available": "available",
}  # fmt: skip
# Which MDS states may follow which within a trip, and by which event.
MDS_EVENTS: dict[tuple[str, str], str] = {
    ("available", "reserved"): "reservation_start", ("reserved", "stopped"): "reservation_stop",
    ("stopped", "on_trip"): "trip_start", ("on_trip", "available"): "trip_end",
    ("reserved", "available"): "passenger_cancellation|driver_cancellation",
    ("stopped", "available"): "passenger_cancellation|driver_cancellation",
}  # fmt: skip
# The same while nothing is heard of the vehicle: it is non_contactable until it is heard of again, or freed.
MDS_CONTACT: dict[tuple[str, str], str] = {
    ("reserved", "non_contactable"): "comms_lost", ("stopped", "non_contactable"): "comms_lost",
    ("on_trip", "non_contactable"): "comms_lost", ("non_contactable", "reserved"): "comms_restored",
    ("non_contactable", "stopped"): "comms_restored", ("non_contactable", "on_trip"): "comms_restored",
    ("non_contactable", "available"): "driver_cancellation",
}  # fmt: skip


def mds_state(status: Status, *, heard: bool = True) -> str:
    """What a trip's vehicle is doing, as MDS says it."""
    state = MDS_STATES[status]
    return state if heard or state == "available" else "non_contactable"


class Place(msgspec.Struct, frozen=True):
    lat: float
    lng: float
    name: str = ""


class Requested(msgspec.Struct, frozen=True, tag="requested"):
    at_us: int
    rider: str
    pickup: Place
    dropoff: Place
    fare: Fare
    authorisation: str
    method: str
    pin: str = ""


class Offered(msgspec.Struct, frozen=True, tag="offered"):
    at_us: int
    driver: int
    expires_us: int
    eta_s: float


class OfferClosed(msgspec.Struct, frozen=True, tag="offer_closed"):
    at_us: int
    driver: int
    reason: Literal["declined", "expired", "withdrawn"]


class Accepted(msgspec.Struct, frozen=True, tag="accepted"):
    at_us: int
    driver: int
    eta_s: float


class Arrived(msgspec.Struct, frozen=True, tag="arrived"):
    at_us: int


class Started(msgspec.Struct, frozen=True, tag="started"):
    at_us: int


class Completed(msgspec.Struct, frozen=True, tag="completed"):
    at_us: int


class Released(msgspec.Struct, frozen=True, tag="released"):
    """The driver gave the trip back; a new search begins."""

    at_us: int
    driver: int
    reason: str


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """The trip ended without a ride. `fee` is what the rider pays for it."""

    at_us: int
    status: Literal["rider_canceled", "driver_canceled", "no_drivers_available"]
    by: Actor
    reason: str
    fee: Money


class Settled(msgspec.Struct, frozen=True, tag="settled"):
    """The money is where it belongs: captured, or the hold released."""

    at_us: int
    payment: Literal["captured", "voided"]
    amount: Money
    driver_part: Money


class Rated(msgspec.Struct, frozen=True, tag="rated"):
    at_us: int
    by: Literal["rider", "driver"]
    stars: int


Event = (
    Requested | Offered | OfferClosed | Accepted | Arrived | Started | Completed | Released | Ended | Settled | Rated
)


class Trip(msgspec.Struct):
    """The fold of a trip's events."""

    id: int
    status: Status = "processing"
    rider: str = ""
    driver: int = -1
    pickup: Place = Place(0, 0)
    dropoff: Place = Place(0, 0)
    fare: Fare | None = None
    authorisation: str = ""
    method: str = ""
    pin: str = ""
    offered_to: int = -1
    offer_expires_us: int = 0
    refused_by: list[int] = []
    eta_s: float = 0.0
    requested_us: int = 0
    accepted_us: int = 0
    arrived_us: int = 0
    started_us: int = 0
    ended_us: int = 0
    reason: str = ""
    ended_by: str = ""
    due: Money | None = None
    settled: Settled | None = None
    stars: dict[str, int] = {}
    length: int = 0  # events so far

    @property
    def ended(self) -> bool:
        return self.status in ENDS

    @property
    def sandbox(self) -> bool:
        """A programmer's ride: no driver comes and no money moves."""
        return self.rider.startswith(SANDBOX)

    @property
    def closed(self) -> bool:
        """Nothing more will happen but ratings."""
        return self.ended and self.settled is not None


def apply(trip: Trip, event: Event) -> None:  # noqa: C901, PLR0912 - one arm per event
    """Fold one event in; the event was decided on this very state."""
    trip.length += 1
    match event:
        case Requested():
            trip.rider, trip.pickup, trip.dropoff, trip.fare = event.rider, event.pickup, event.dropoff, event.fare
            trip.authorisation, trip.method, trip.pin = event.authorisation, event.method, event.pin
            trip.requested_us = event.at_us
        case Offered():
            trip.status, trip.offered_to = "offered", event.driver
            trip.offer_expires_us, trip.eta_s = event.expires_us, event.eta_s
        case OfferClosed():
            trip.status, trip.offered_to = "processing", -1
            if event.reason != "withdrawn":
                trip.refused_by = [*trip.refused_by, event.driver][-OFFERS_KEPT:]
        case Accepted():
            trip.status, trip.driver, trip.offered_to = "accepted", event.driver, -1
            trip.accepted_us, trip.eta_s = event.at_us, event.eta_s
        case Arrived():
            trip.status, trip.arrived_us = "arriving", event.at_us
        case Started():
            trip.status, trip.started_us = "in_progress", event.at_us
        case Completed():
            assert trip.fare is not None
            trip.status, trip.ended_us, trip.due = "completed", event.at_us, trip.fare.total
        case Released():
            trip.status, trip.driver = "processing", -1
            trip.refused_by = [*trip.refused_by, event.driver][-OFFERS_KEPT:]
        case Ended():
            trip.status, trip.ended_us, trip.due = event.status, event.at_us, event.fee
            trip.reason, trip.ended_by, trip.offered_to = event.reason, event.by, -1
        case Settled():
            trip.settled = event
        case Rated():
            trip.stars = {**trip.stars, event.by: event.stars}
        case _:
            assert_never(event)
    check(trip)


def check(trip: Trip) -> None:
    """The invariants; an AssertionError here is a bug, not a caller's fault."""
    assert trip.status not in WITH_DRIVER or trip.driver >= 0, "a trip under way without a driver"
    assert trip.status not in {"processing", "offered"} or trip.driver < 0, "a searching trip has a driver"
    assert (trip.status == "offered") == (trip.offered_to >= 0), "an offer is open exactly while offered"
    assert trip.settled is None or trip.ended, "money settled before the end"


def _wrong(trip: Trip, verb: str) -> Conflict:
    return Conflict(f"the trip is {trip.status}, so it cannot {verb}", code="wrong_state", status=trip.status)


def offer(trip: Trip, driver: int, *, now_us: int, expires_us: int, eta_s: float) -> list[Event]:
    """Ask one driver."""
    if trip.status != "processing" or driver in trip.refused_by:
        raise _wrong(trip, "be offered")
    return [Offered(now_us, driver, expires_us, eta_s)]


def close_offer(
    trip: Trip, driver: int, reason: Literal["declined", "expired", "withdrawn"], *, now_us: int
) -> list[Event]:
    """The driver declined, let it lapse, or is no longer there; the same again changes nothing."""
    if trip.status == "offered" and trip.offered_to == driver:
        return [OfferClosed(now_us, driver, reason)]
    if driver in trip.refused_by:
        return []
    raise Conflict("there is no such offer", code="no_offer", status=trip.status)


def accept(trip: Trip, driver: int, *, now_us: int) -> list[Event]:
    """The driver takes the trip; raises Conflict when the offer lapsed or went to somebody else."""
    if trip.driver == driver and trip.status in WITH_DRIVER:
        return []
    if trip.status != "offered" or trip.offered_to != driver:
        raise Conflict("the offer is gone", code="offer_gone", status=trip.status)
    if now_us > trip.offer_expires_us:
        raise Conflict("the offer has expired", code="offer_gone", status=trip.status)
    return [Accepted(now_us, driver, trip.eta_s)]


def arrive(trip: Trip, driver: int, *, now_us: int) -> list[Event]:
    """The driver is at the pick-up."""
    _own(trip, driver)
    if trip.status in {"arriving", "in_progress", "completed"}:
        return []
    if trip.status != "accepted":
        raise _wrong(trip, "reach its rider")
    return [Arrived(now_us)]


def start(trip: Trip, driver: int, pin: str, *, now_us: int) -> list[Event]:
    """The rider is in the car, and proved it by the PIN where the rider asked for one."""
    _own(trip, driver)
    if trip.status in {"in_progress", "completed"}:
        return []
    if trip.status != "arriving":
        raise _wrong(trip, "start")
    if trip.pin and pin != trip.pin:
        raise Rejected("that is not the rider's PIN", code="wrong_pin")
    return [Started(now_us)]


def finish(trip: Trip, driver: int, *, now_us: int) -> list[Event]:
    """The rider got out."""
    _own(trip, driver)
    if trip.status == "completed":
        return []
    if trip.status != "in_progress":
        raise _wrong(trip, "finish")
    return [Completed(now_us)]


def cancel_by_rider(trip: Trip, *, now_us: int, free_cancel_s: float, fee: Money) -> list[Event]:
    """The rider gives up: free while nobody comes and shortly after, else for a fee; not out of a moving car."""
    if trip.status == "rider_canceled":
        return []
    if trip.ended or trip.status == "in_progress":
        raise _wrong(trip, "be cancelled")
    late = trip.driver >= 0 and now_us - trip.accepted_us > free_cancel_s * 1e6
    due = fee if late else Money.zero(fee.currency)
    reason = "cancelled by the rider after the free time" if late else "cancelled by the rider"
    return [Ended(now_us, "rider_canceled", "rider", reason, due)]


def cancel_by_driver(trip: Trip, driver: int, *, now_us: int, no_show_s: float, fee: Money) -> list[Event]:
    """Before the start: the search begins again, or, after a long wait at the pick-up, the rider did not show."""
    if driver in trip.refused_by and trip.driver != driver:
        return []
    _own(trip, driver)
    if trip.status == "arriving" and now_us - trip.arrived_us >= no_show_s * 1e6:
        return [Ended(now_us, "rider_canceled", "driver", "the rider did not show up", fee)]
    if trip.status in {"accepted", "arriving"}:
        return [Released(now_us, driver, "cancelled by the driver")]
    raise _wrong(trip, "be given back")


def lose(trip: Trip, *, now_us: int) -> list[Event]:
    """Contact with a driver on the way to the pick-up is lost for good."""
    if trip.status != "accepted":
        raise _wrong(trip, "lose its driver")
    return [Released(now_us, trip.driver, "contact with the driver was lost")]


def give_up(trip: Trip, *, now_us: int, reason: str) -> list[Event]:
    """Nobody came within the rider's patience."""
    if trip.status != "processing":
        raise _wrong(trip, "be given up")
    assert trip.fare is not None
    return [Ended(now_us, "no_drivers_available", "system", reason, Money.zero(trip.fare.total.currency))]


def settle(
    trip: Trip, payment: Literal["captured", "voided"], amount: Money, driver_part: Money, *, now_us: int
) -> list[Event]:
    """The payment gateway did its part."""
    if trip.settled is not None:
        return []
    if not trip.ended:
        raise _wrong(trip, "be settled")
    return [Settled(now_us, payment, amount, driver_part)]


def rate(trip: Trip, by: Literal["rider", "driver"], stars: int, *, now_us: int) -> list[Event]:
    """One to five stars, once each way, after the ride."""
    if not 1 <= stars <= 5:
        raise Rejected("a rating is 1 to 5 stars", code="bad_rating")
    if trip.status != "completed":
        raise _wrong(trip, "be rated")
    if by in trip.stars:
        return []
    return [Rated(now_us, by, stars)]


def _own(trip: Trip, driver: int) -> None:
    if trip.driver != driver:
        raise Forbidden("this is not your trip", code="not_your_trip")


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Event)


def encode(event: Event) -> bytes:
    """An event as it is stored and sent: schema number, then msgpack."""
    return bytes((SCHEMA,)) + _encoder.encode(event)


def decode(value: bytes) -> Event:
    """What `encode` made; raises msgspec.DecodeError for anything else."""
    if not value or value[0] != SCHEMA:
        raise msgspec.DecodeError(f"trip event of schema {value[:1].hex()}, this version reads {SCHEMA}")
    event: Event = _decoder.decode(value[1:])
    return event

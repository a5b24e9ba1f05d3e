"""The trip's rules, event by event; and the table of the mobility standard."""

import msgspec
import pytest

from fourplane.dispatch import trips
from fourplane.dispatch.pricing import PRODUCTS, PricingSettings, Surge, SurgeMap, driver_part, find_product, price
from fourplane.dispatch.trips import Place, Trip
from fourplane.foundation.errors import Conflict, Forbidden, NotFound, Rejected
from fourplane.foundation.money import Money

SETTINGS = PricingSettings()
FARE = price(PRODUCTS[0], metres=3_000, seconds=480, surge=Surge(), settings=SETTINGS)
ZERO, FEE = Money(0, "EUR"), Money(300, "EUR")
S = 1_000_000


def fold(*groups: list) -> Trip:
    trip = Trip(1)
    trips.apply(trip, trips.Requested(0, "ana", Place(1, 2), Place(3, 4), FARE, "auth", "card_ok", "1234"))
    for group in groups:
        for event in group if isinstance(group, list) else group(trip):
            trips.apply(trip, event)
    return trip


def to(status: str) -> Trip:
    steps = {
        "processing": [],
        "offered": [lambda t: trips.offer(t, 7, now_us=S, expires_us=16 * S, eta_s=90)],
    }
    steps["accepted"] = [*steps["offered"], lambda t: trips.accept(t, 7, now_us=2 * S)]
    steps["arriving"] = [*steps["accepted"], lambda t: trips.arrive(t, 7, now_us=3 * S)]
    steps["in_progress"] = [*steps["arriving"], lambda t: trips.start(t, 7, "1234", now_us=4 * S)]
    steps["completed"] = [*steps["in_progress"], lambda t: trips.finish(t, 7, now_us=5 * S)]
    return fold(*steps[status])


STATES = ("processing", "offered", "accepted", "arriving", "in_progress", "completed")
VERBS = {
    "accept": lambda t: trips.accept(t, 7, now_us=9 * S),
    "arrive": lambda t: trips.arrive(t, 7, now_us=9 * S),
    "start": lambda t: trips.start(t, 7, "1234", now_us=9 * S),
    "finish": lambda t: trips.finish(t, 7, now_us=9 * S),
    "cancel_by_rider": lambda t: trips.cancel_by_rider(t, now_us=9 * S, free_cancel_s=120, fee=FEE),
    "cancel_by_driver": lambda t: trips.cancel_by_driver(t, 7, now_us=9 * S, no_show_s=300, fee=FEE),
    "give_up": lambda t: trips.give_up(t, now_us=9 * S, reason="nobody"),
}
# What each verb does in each state: a new status, "same" (done already), or "no".
TABLE = {
    "accept": ("no", "accepted", "same", "same", "same", "same"),
    "arrive": ("no", "no", "arriving", "same", "same", "same"),
    "start": ("no", "no", "no", "in_progress", "same", "same"),
    "finish": ("no", "no", "no", "no", "completed", "same"),
    "cancel_by_rider": ("rider_canceled",) * 4 + ("no", "no"),
    "cancel_by_driver": ("no", "no", "processing", "processing", "no", "no"),
    "give_up": ("no_drivers_available", "no", "no", "no", "no", "no")
    if False
    else ("no_drivers_available",) + ("no",) * 5,
}


@pytest.mark.parametrize("verb", TABLE)
@pytest.mark.parametrize("state", STATES)
def test_every_verb_in_every_state_does_what_the_table_says(verb: str, state: str) -> None:
    trip, expected = to(state), TABLE[verb][STATES.index(state)]
    if expected == "no":
        with pytest.raises((Conflict, Forbidden)):
            VERBS[verb](trip)
        return
    events = VERBS[verb](trip)
    assert bool(events) == (expected != "same")
    for event in events:
        trips.apply(trip, event)
    assert trip.status == (state if expected == "same" else expected)


def test_every_change_of_the_vehicle_is_one_the_mobility_standard_knows() -> None:
    changes = set()
    for state in STATES:
        for verb in VERBS.values():
            trip = to(state)
            before = trips.MDS_STATES[trip.status]
            try:
                events = verb(trip)
            except (Conflict, Forbidden):
                continue
            for event in events:
                trips.apply(trip, event)
            after = trips.MDS_STATES[trip.status]
            if before != after:
                changes.add((before, after))
    assert changes == trips.MDS_EVENTS.keys()


def test_an_offer_is_for_one_driver_and_lapses() -> None:
    trip = to("offered")
    with pytest.raises(Conflict):
        trips.accept(trip, 8, now_us=2 * S)
    with pytest.raises(Conflict, match="expired"):
        trips.accept(trip, 7, now_us=17 * S)
    declined = fold(
        lambda t: trips.offer(t, 7, now_us=S, expires_us=9 * S, eta_s=1),
        lambda t: trips.close_offer(t, 7, "declined", now_us=S),
    )
    assert declined.refused_by == [7]
    assert trips.close_offer(declined, 7, "declined", now_us=2 * S) == []
    with pytest.raises(Conflict):
        trips.offer(declined, 7, now_us=S, expires_us=9 * S, eta_s=1)


def test_a_wrong_pin_does_not_start_and_a_stranger_cannot_drive() -> None:
    trip = to("arriving")
    with pytest.raises(Rejected, match="PIN"):
        trips.start(trip, 7, "0000", now_us=4 * S)
    with pytest.raises(Forbidden):
        trips.start(trip, 8, "1234", now_us=4 * S)


def test_cancelling_late_and_not_showing_up_cost_a_fee() -> None:
    early = trips.cancel_by_rider(to("accepted"), now_us=60 * S, free_cancel_s=120, fee=FEE)[0]
    late = trips.cancel_by_rider(to("accepted"), now_us=600 * S, free_cancel_s=120, fee=FEE)[0]
    waited = trips.cancel_by_driver(to("arriving"), 7, now_us=600 * S, no_show_s=300, fee=FEE)[0]
    assert (early.fee, late.fee, waited.fee) == (ZERO, FEE, FEE)
    assert waited.status == "rider_canceled"


def test_money_is_settled_once_and_only_at_an_end() -> None:
    with pytest.raises(Conflict):
        trips.settle(to("in_progress"), "captured", FARE.total, ZERO, now_us=S)
    trip = to("completed")
    for event in trips.settle(trip, "captured", FARE.total, ZERO, now_us=6 * S):
        trips.apply(trip, event)
    assert trip.closed
    assert trips.settle(trip, "captured", FARE.total, ZERO, now_us=7 * S) == []


def test_events_survive_their_encoding_and_another_schema_is_refused() -> None:
    for event in (
        trips.Requested(0, "ana", Place(1, 2, "x"), Place(3, 4), FARE, "a", "card_ok"),
        trips.Rated(1, "rider", 5),
    ):
        assert trips.decode(trips.encode(event)) == event
    with pytest.raises(msgspec.DecodeError):
        trips.decode(b"\x02" + trips.encode(trips.Arrived(1))[1:])


def test_a_fare_adds_up_and_says_why() -> None:
    assert sum(line.amount.amount for line in FARE.lines) == FARE.total.amount
    short = price(PRODUCTS[0], metres=100, seconds=20, surge=Surge(), settings=SETTINGS)
    assert short.total == Money(PRODUCTS[0].minimum + PRODUCTS[0].booking_fee, "EUR")
    hot = price(PRODUCTS[0], metres=3_000, seconds=480, surge=Surge(1.5, 12, 3), settings=SETTINGS)
    assert hot.total.amount == pytest.approx((FARE.total.amount - 60) * 1.5 + 60, abs=1)
    assert "12 riders asked lately for 3 free drivers" in hot.surge_reason
    assert driver_part(FARE.total, 60, SETTINGS) < FARE.total
    with pytest.raises(NotFound):
        find_product("rocket")


def test_demand_is_seen_where_drivers_are_ample_and_ends_with_its_window() -> None:
    surge = SurgeMap(msgspec.structs.replace(SETTINGS, demand_max=3))
    for n in range(4):
        surge.asked(7 if n else 5, n)
    surge.refresh({7: 50}, 10)
    assert surge.demand == {7: 3}, "the oldest was forgotten at the bound"
    assert (surge.seen(7, 50).factor, surge.seen(7, 50).asks) == (1.0, 3)
    surge.refresh({7: 50}, 400 * S)
    assert surge.demand == {}


def test_surge_rises_with_demand_is_capped_and_falls_again() -> None:
    surge = SurgeMap(SETTINGS)
    for n in range(500):
        surge.asked(1, n)
    factors = []
    for _ in range(12):
        surge.refresh({1: 2}, 1_000)
        factors.append(surge.at(1).factor)
    assert factors == sorted(factors)
    assert factors[0] < factors[-1] <= SETTINGS.surge_max
    for step in range(40):
        surge.refresh({1: 200}, 400 * S + step)
    assert surge.at(1).factor == 1.0
    assert surge.at(2).factor == 1.0

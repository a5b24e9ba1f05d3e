"""Ids: never twice, sorted by time, readable outside, hard to break with a clock."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourplane.foundation import clock, ids
from fourplane.foundation.errors import Rejected


class Hand:
    """A clock that the test moves."""

    def __init__(self, ms):
        self.us = (ids.EPOCH_MS + ms) * 1_000

    def now_us(self):
        return self.us

    def monotonic_s(self):
        return self.us / 1e6

    def token_bytes(self, count):
        return random.Random(1).randbytes(count)


def test_ids_of_one_slot_grow_and_never_repeat():
    generator = ids.IdGenerator(5)
    made = [generator.next() for _ in range(20_000)]
    assert made == sorted(set(made))


def test_two_slots_never_meet():
    with clock.installed(Hand(1)):
        first, second = ids.IdGenerator(1), ids.IdGenerator(2)
        assert not {first.next() for _ in range(5_000)} & {second.next() for _ in range(5_000)}


def test_a_clock_that_steps_back_does_not_repeat_ids():
    hand = Hand(5_000)
    with clock.installed(hand):
        generator = ids.IdGenerator()
        before = generator.next()
        hand.us -= 3_000_000
        assert generator.next() > before


def test_a_clock_that_went_far_back_stops_nothing_and_time_catches_up():
    hand = Hand(7_200_000)
    with clock.installed(hand):
        generator = ids.IdGenerator(3)
        made = [generator.next()]
        hand.us -= 3_600_000_000
        made += [generator.next() for _ in range(10_000)]
        assert made == sorted(set(made))
        assert ids.created_us(made[-1]) - ids.created_us(made[0]) <= 3_000, "it borrows no more time than it must"
        hand.us += 3_600_000_000 + 5_000
        assert ids.created_us(generator.next()) == hand.now_us(), "time has caught up"


def test_an_id_tells_when_it_was_made():
    with clock.installed(Hand(123_456)):
        assert ids.created_us(ids.IdGenerator(9).next()) == (ids.EPOCH_MS + 123_456) * 1_000


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
def test_text_reads_back_and_sorts_like_the_number(one, other):
    assert ids.decode("trip", ids.encode("trip", one)) == one
    assert (ids.encode("trip", one) < ids.encode("trip", other)) == (one < other)


@pytest.mark.parametrize(
    "text",
    ["", "trip", "trip_", "order_0000000000000", "trip_000000000000", "trip_00000000000il", "trip_0000000000000x"],
)
def test_what_is_no_id_is_refused(text):
    with pytest.raises(Rejected):
        ids.decode("trip", text)


def test_a_slot_outside_its_range_is_refused():
    for slot in (-1, ids.SLOT_MAX):
        with pytest.raises(Rejected):
            ids.IdGenerator(slot)


def test_a_capability_has_128_bits():
    assert len(ids.capability()) == 32
    assert ids.capability() != ids.capability()

"""Admission and rate limits: pure decisions over given numbers."""

from hypothesis import given
from hypothesis import strategies as st

from fourplane.edge.admission import Admission, AdmissionSettings
from fourplane.edge.http_request import GET
from fourplane.edge.rate_limit import RateLimit
from fourplane.edge.routes import Priority


def admission(limit):
    return Admission(AdmissionSettings(in_flight_max=limit), lambda _method, path: Priority(int(path[1:2])))


def test_the_lowest_class_is_shed_first():
    made = admission(100)
    took = dict.fromkeys(Priority, 0)
    for _ in range(100):
        for priority in Priority:
            if made.admits(priority):
                took[priority] += 1
        made.entered()
    assert took == {Priority.CRITICAL: 100, Priority.USER: 90, Priority.DEGRADED: 75, Priority.BULK: 50}
    assert made.shedding


def test_room_opens_again():
    made = admission(4)
    for _ in range(4):
        made.entered()
    assert not made.admits(Priority.CRITICAL)
    made.left()
    assert made.admits(Priority.CRITICAL)
    assert made.shedding
    made.left()
    made.left()
    assert not made.shedding
    assert made.statistics().shed[Priority.CRITICAL] == 1


def test_an_operator_can_close_classes():
    made = admission(100)
    made.close_from(Priority.DEGRADED)
    assert [made.admits(priority) for priority in Priority] == [True, True, False, False]
    made.close_from(None)
    assert made.admits(Priority.BULK)


def test_targets_are_classified_without_their_query():
    made = admission(100)
    made.close_from(Priority.DEGRADED)
    assert not made.turns_away(GET, b"/1/x?y=/3")
    assert made.turns_away(GET, b"/3/x")
    for number in range(10_000):
        assert not made.turns_away(GET, b"/0/%d" % number)


def test_hot_routes_are_never_turned_away():
    made = admission(100)
    made.exempt = lambda _method, path: path == b"/3/hot"
    made.close_from(Priority.CRITICAL)
    assert not made.turns_away(GET, b"/3/hot?x")
    assert made.turns_away(GET, b"/3/cold")


def test_a_bucket_fills_at_its_rate():
    limit = RateLimit(2.0, 3.0)
    assert [limit.take("a", 0.0).allowed for _ in range(4)] == [True, True, True, False]
    assert limit.take("a", 0.0).retry_after_s == 0.5
    assert limit.take("b", 0.0).remaining == 2
    assert limit.take("a", 0.5).allowed
    assert not limit.take("a", 0.5).allowed
    assert limit.take("a", 100.0).remaining == 2


def test_the_table_is_bounded():
    limit = RateLimit(1.0, 1.0, count_max=10)
    for number in range(100):
        limit.take(str(number), 0.0)
    assert len(limit) == 10


@given(st.floats(0.1, 50), st.floats(1, 20), st.lists(st.floats(0, 2), max_size=60))
def test_never_more_than_burst_and_rate_allow(rate, burst, gaps):
    limit = RateLimit(rate, burst)
    now = passed = 0.0
    for gap in gaps:
        now += gap
        passed += limit.take("a", now).allowed
    assert passed <= burst + rate * now + 1e-6

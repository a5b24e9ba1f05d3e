"""Cells, quantiles, events and spans."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourplane.foundation import telemetry
from fourplane.foundation.telemetry import Counter, Histogram, Registry


def test_the_same_name_and_labels_give_the_same_cell():
    registry = Registry()
    one = registry.counter("fourplane_x_total", "what", route="a")
    assert registry.counter("fourplane_x_total", route="a") is one
    assert registry.counter("fourplane_x_total", route="b") is not one
    one.add(2)
    one.value += 1
    assert one.value == 3


def test_a_name_keeps_its_kind():
    registry = Registry()
    registry.counter("fourplane_x")
    with pytest.raises(AssertionError):
        registry.gauge("fourplane_x")


def test_a_gauge_asks_its_function_when_read():
    depth = [3]
    gauge = Registry().gauge("fourplane_depth", read=lambda: depth[0])
    assert gauge.current() == 3
    depth[0] = 5
    assert gauge.current() == 5


@given(st.lists(st.floats(1e-6, 1e5), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_never_low_and_at_most_an_eighth_high(values, share):
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    exact = sorted(values)[max(0, -int(-share * len(values) // 1) - 1)]
    assert exact * 0.999_999 <= histogram.quantile(share) <= exact * 1.126 + 2e-6
    assert histogram.count == len(values)


def test_quantiles_of_nothing_are_zero_and_negative_counts_as_zero():
    histogram = Histogram()
    assert histogram.quantile(0.99) == 0.0
    histogram.record(-5.0)
    assert histogram.quantile(0.99) == 1e-6


def test_what_is_past_the_last_bucket_is_kept_in_it():
    histogram = Histogram()
    histogram.record(1e12)
    assert histogram.buckets[-1] == 1


def test_bucket_edges_grow():
    edges = [telemetry.bucket_upper(index) for index in range(telemetry.EXPONENTS * telemetry.SUB)]
    assert edges == sorted(set(edges))


def test_events_are_bounded_and_their_fields_are_text():
    registry = Registry()
    for number in range(telemetry.EVENTS_MAX + 5):
        registry.event("info", "dispatch", "a trip ended", number=number)
    assert len(registry.events) == telemetry.EVENTS_MAX
    assert registry.events_total == telemetry.EVENTS_MAX + 5
    assert registry.events[-1].fields == {"number": str(telemetry.EVENTS_MAX + 4)}


def test_a_counter_starts_at_zero():
    assert Counter().value == 0

"""Selections, rates, quantiles, groups and arithmetic over closed steps, and queries that cannot be read."""

import math

import numpy as np
import pytest

from fourplane.control.metrics.query import Span, latest, run
from fourplane.control.metrics.series import SeriesTable
from fourplane.control.metrics.windows import TierSettings, Windows
from fourplane.foundation.errors import Rejected

BEGIN = 1_200_000  # a multiple of all steps
SECONDS = 130
SPAN = Span(BEGIN + 60, BEGIN + 120, 10)


def ids(*numbers):
    return np.array(numbers, dtype=np.uint32)


@pytest.fixture
def windows():
    """Two routes, 2 and 1 requests a second; a gauge that counts seconds; a histogram with half of it under 100 ms."""
    table = SeriesTable()
    windows = Windows(table)
    good = table.id_of("requests_total", (("route", "/a"), ("status", "200")), "counter")
    bad = table.id_of("requests_total", (("route", "/b"), ("status", "500")), "counter")
    gauge = table.id_of("seconds", (), "gauge")
    edges = [
        table.id_of("latency_bucket", (("le", edge), ("route", "/a")), "counter") for edge in ("0.1", "0.2", "+Inf")
    ]
    windows.advance(BEGIN)
    for second in range(SECONDS):
        windows.add(ids(good, good, bad), np.ones(3))
        windows.set(ids(gauge), np.array([float(second)]))
        windows.add(ids(*edges), np.array([50.0, 100.0, 100.0]))
        windows.advance(BEGIN + second + 1)
    return windows


def asked(windows, text, span=SPAN):
    frame = run(windows, text, span)
    assert frame.times == [BEGIN + 70 + 10 * number for number in range(6)]
    return {
        tuple(text for _, text in labels): row.tolist() for labels, row in zip(frame.labels, frame.values, strict=True)
    }


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("requests_total", {("/a", "200"): 20.0, ("/b", "500"): 10.0}),
        ("rate(requests_total)", {("/a", "200"): 2.0, ("/b", "500"): 1.0}),
        ("rate(requests_total[30s])", {("/a", "200"): 2.0, ("/b", "500"): 1.0}),
        ("increase(requests_total[1m])", {("/a", "200"): 120.0, ("/b", "500"): 60.0}),
        ('rate(requests_total{status=~"5.."})', {("/b", "500"): 1.0}),
        ('rate(requests_total{status!="500", route!~"/x|/y"})', {("/a", "200"): 2.0}),
        ('rate(requests_total{zone=""})', {("/a", "200"): 2.0, ("/b", "500"): 1.0}),
        ("sum(rate(requests_total)) by (route)", {("/a",): 2.0, ("/b",): 1.0}),
        ("sum by (route) (rate(requests_total))", {("/a",): 2.0, ("/b",): 1.0}),
        ("avg(rate(requests_total))", {(): 1.5}),
        ("max(rate(requests_total)) - min(rate(requests_total))", {(): 1.0}),
        ("count(requests_total)", {(): 2.0}),
        ('sum(rate(requests_total{status=~"5.."})) / sum(rate(requests_total))', {(): 1 / 3}),
        ("requests_total / requests_total", {("/a", "200"): 1.0, ("/b", "500"): 1.0}),
        ("requests_total / sum(requests_total)", {("/a", "200"): 2 / 3, ("/b", "500"): 1 / 3}),
        ("top(1, rate(requests_total))", {("/a", "200"): 2.0}),
        ("quantile(0.5, latency)", {(): 0.1}),
        ("quantile(0.75, latency) by (route)", {("/a",): 0.15}),
        ("-1 + 2 * (3 + 1)", {(): 7.0}),
        ("nothing_of_this_name", {}),
        ("quantile(0.9, nothing_of_this_name)", {}),
    ],
)
def test_an_expression_and_its_answer(windows, text, answer):
    found = asked(windows, text)
    assert found.keys() == answer.keys()
    for key, row in found.items():
        assert row == pytest.approx([answer[key]] * 6)


def test_a_gauge_answers_its_last_value_in_each_step(windows):
    assert asked(windows, "seconds")[()] == [69, 79, 89, 99, 109, 119]


def test_a_comparison_drops_the_points_for_which_it_does_not_hold(windows):
    row = asked(windows, "seconds > 100")[()]
    assert [math.isnan(value) for value in row] == [True] * 4 + [False] * 2
    assert [labels for labels, _ in latest(run(windows, "seconds > 1000", SPAN))] == []
    assert latest(run(windows, "seconds > 100", SPAN)) == [((), 119.0)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "expected a metric"),
        ("rate(", "expected a name"),
        ("rate(seconds)", "is a gauge"),
        ("sum(requests_total) by route", "expected '('"),
        ('requests_total{status="500}', "nothing a query may hold"),
        ('requests_total{status=~"("}', "no regular expression"),
        ("quantile(1.5, latency)", "a number from 0 to 1"),
        ("requests_total[5y]", "nothing a query may hold"),
        ("1 + ", "found the end"),
        ("requests_total seconds", "expected an operator"),
        ("(" * 100 + "1" + ")" * 100, "nests at most"),
        ("1+" * 2_000 + "1", "at most 2000 characters"),
        ("sum(requests_total) by (route) + requests_total{} + requests_total{}", ""),
    ],
)
def test_a_query_that_cannot_be_answered_says_why(windows, text, told):
    if not told:
        run(windows, text, SPAN)
        return
    with pytest.raises(Rejected) as refused:
        run(windows, text, SPAN)
    assert told in refused.value.message


def test_a_query_over_too_many_points_is_refused(windows):
    with pytest.raises(Rejected):
        run(windows, "seconds", Span(0.0, 1e9, 1))


def test_coarse_tiers_answer_what_the_fine_one_has_forgotten():
    table = SeriesTable()
    windows = Windows(table, [TierSettings(1, 20), TierSettings(10, 30)])
    counter = table.id_of("c_total", (), "counter")
    gauge = table.id_of("g", (), "gauge")
    windows.advance(BEGIN)
    for second in range(200):
        windows.add(ids(counter), np.array([3.0]))
        windows.set(ids(gauge), np.array([float(second)]))
        windows.advance(BEGIN + second + 1)
    assert len(windows.tiers[0].steps) == 20
    old = Span(BEGIN + 20, BEGIN + 100, 10)
    assert run(windows, "c_total", old).values.tolist() == [[30.0] * 8]
    assert run(windows, "g", old).values.tolist() == [[29, 39, 49, 59, 69, 79, 89, 99]]


def test_a_series_that_came_later_is_unknown_before():
    table = SeriesTable()
    windows = Windows(table)
    windows.advance(BEGIN)
    windows.advance(BEGIN + 5)
    late = table.id_of("late", (), "gauge")
    windows.set(ids(late), np.array([7.0]))
    windows.advance(BEGIN + 6)
    [row] = run(windows, "late", Span(BEGIN, BEGIN + 6, 1)).values.tolist()
    assert all(math.isnan(value) for value in row[:5])
    assert row[5] == 7.0


def test_points_of_series_nobody_defined_are_counted_and_dropped():
    windows = Windows(SeriesTable())
    windows.advance(BEGIN)
    windows.add(ids(5, 7), np.ones(2))
    assert (windows.points, windows.dropped) == (2, 2)


@pytest.mark.parametrize(
    ("text", "before"),
    [
        ('sum(increase(requests_total{status=~"5.."})) by (route)', ["/b"]),
        ("over(0.1, latency) by (route)", ["/a"]),
    ],
)
def test_what_is_kept_of_a_question_knows_series_that_came_later(windows, text, before):
    def routes():
        frame = run(windows, text, Span(BEGIN + 60, BEGIN + 140, 1))
        return [labels[0][1] for labels in frame.labels], frame.values

    assert routes()[0] == before
    np.testing.assert_array_equal(routes()[1], routes()[1])
    table = windows.table
    third = table.id_of("requests_total", (("route", "/c"), ("status", "503")), "counter")
    inner, whole = (
        table.id_of("latency_bucket", (("le", edge), ("route", "/c")), "counter") for edge in ("0.1", "+Inf")
    )
    windows.add(ids(third, inner, whole), np.array([1.0, 3.0, 4.0]))
    windows.advance(BEGIN + SECONDS + 1)
    names, values = routes()
    assert names == [*before, "/c"]
    assert values[-1][-1] == 1.0

"""Cumulative figures become rates, recent quantiles and a bounded past."""

from fourplane.console.live import HISTORY_TICKS, View
from fourplane.control.nodes import Figures, Node, Switch, hollow
from fourplane.foundation.telemetry import Histogram


def view_of(figures, switch=None):
    node = Node("BOX", "service", "a box", "x/y.py", lambda: figures, switch)
    return View({"system": [node, hollow("LATER", "edge", "not yet")]})


def test_rates_are_differences_over_the_time_that_passed():
    figures = Figures(requests=100, errors=1)
    view = view_of(figures)
    assert view.tick(10.0)["system"]["BOX"].requests_per_s == 0
    figures.requests, figures.errors = 400, 3
    frame = view.tick(12.0)["system"]["BOX"]
    assert (frame.requests_per_s, frame.errors_per_s, frame.requests_total) == (150.0, 1.0, 400)


def test_a_counter_that_starts_again_gives_no_negative_rate():
    figures = Figures(requests=100)
    view = view_of(figures)
    view.tick(1.0)
    figures.requests = 5
    assert view.tick(2.0)["system"]["BOX"].requests_per_s == 0


def test_quantiles_forget_what_is_older_than_the_window():
    cell = Histogram()
    view = view_of(Figures(latency=cell))
    cell.record(1.0)
    view.tick(0.0)
    for second in range(1, 12):
        cell.record(0.001)
        frame = view.tick(float(second))["system"]["BOX"]
    assert 1.0 <= frame.p99_ms < 1.2


def test_hollow_boxes_have_no_figures_and_stopped_ones_say_so():
    switch = Switch("BOX")
    view = view_of(Figures(), switch)
    switch.on = False
    frame = view.tick(1.0)["system"]
    assert set(frame) == {"BOX"}
    assert not frame["BOX"].running


def test_the_past_is_bounded():
    figures = Figures()
    view = view_of(figures)
    for second in range(HISTORY_TICKS * 2):
        figures.requests += 1
        view.tick(float(second))
    assert len(view.history()["system"]["BOX"]) == HISTORY_TICKS

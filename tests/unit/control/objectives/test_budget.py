"""The arithmetic of error budgets: burn rates over two windows, hysteresis, scaled periods, restarts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourplane.control.objectives.budget import PERIOD_S, RULES, SLOTS, ErrorBudget, Window

HOUR = 3_600.0


def burning(budget, begin_s, seconds, *, share, per_s=10.0, step_s=10.0):
    """Add traffic with this share of bad events; the rules that fired at any moment, and those that do at the end."""
    ever = set()
    at = begin_s
    while at < begin_s + seconds:
        budget.add(at, per_s * step_s * share, per_s * step_s)
        ever |= {burn.factor for burn in budget.judge(at) if burn.firing}
        at += step_s
    return ever, {burn.factor for burn in budget.judge(at) if burn.firing}


def test_an_outage_pages_within_its_first_minutes():
    budget = ErrorBudget(0.999)
    burning(budget, 0.0, 2 * HOUR, share=0.0)
    ever, _ = burning(budget, 2 * HOUR, 120.0, share=1.0)
    assert 14.4 in ever


def test_a_slow_leak_is_a_ticket_and_no_page():
    budget = ErrorBudget(0.999)
    ever, _ = burning(budget, 0.0, 86_400.0, share=0.004, step_s=60.0)
    severities = {rule.severity for rule in RULES if rule.factor in ever}
    assert severities == {"ticket"}


def test_what_the_target_allows_never_alerts():
    budget = ErrorBudget(0.99)
    ever, _ = burning(budget, 0.0, 86_400.0, share=0.009, step_s=60.0)
    assert ever == set()
    assert budget.figures(86_400.0).remaining == pytest.approx(0.1, abs=0.01)


def test_a_page_ends_soon_after_the_trouble():
    budget = ErrorBudget(0.999)
    burning(budget, 0.0, HOUR, share=0.0)
    _, now = burning(budget, HOUR, 600.0, share=0.5)
    assert 14.4 in now
    _, later = burning(budget, HOUR + 600.0, 301.0, share=0.0)
    assert 14.4 not in later, "the short window is clean although the long one still burns"


def test_a_rule_that_fires_does_not_flap_around_its_factor():
    budget = ErrorBudget(0.999)
    burning(budget, 0.0, 600.0, share=0.02)
    changes, before = 0, True
    for round_ in range(40):
        share = 0.0135 if round_ % 2 else 0.0155
        _, now = burning(budget, 600.0 + round_ * 60.0, 60.0, share=share)
        changes += (14.4 in now) != before
        before = 14.4 in now
    assert changes == 0


def test_one_failure_in_a_quiet_night_is_no_page():
    budget = ErrorBudget(0.999)
    for minute in range(60):
        budget.add(minute * 60.0, 1.0 if minute == 59 else 0.0, 1.0)
    assert not any(burn.firing for burn in budget.judge(3_600.0))


def test_a_shorter_period_shrinks_every_window():
    budget = ErrorBudget(0.999, period_s=3_600.0)
    ever, _ = burning(budget, 0.0, 120.0, share=0.0, step_s=1.0)
    assert ever == set()
    began = 120.0
    for second in range(10):
        budget.add(began + second, 10.0, 10.0)
        if any(burn.firing for burn in budget.judge(began + second)):
            break
    assert second <= 2, "a demonstration shows it in seconds"
    assert ErrorBudget(0.9, PERIOD_S).judge(0.0)[0].long_s == 3_600.0


def test_the_budget_is_back_when_the_period_is_over():
    budget = ErrorBudget(0.99, period_s=600.0)
    budget.add(0.0, 5.0, 100.0)
    assert budget.figures(1.0).remaining == pytest.approx(-4.0)
    budget.add(700.0, 0.0, 100.0)
    assert budget.figures(700.0).remaining == 1.0


def test_burn_down_ends_where_the_budget_is():
    budget = ErrorBudget(0.9, period_s=600.0)
    for second in range(0, 600, 10):
        budget.add(float(second), 0.5, 10.0)
    figures = budget.figures(599.0)
    assert len(figures.burn_down) == SLOTS + 1
    assert figures.burn_down[-1] == pytest.approx(figures.remaining, abs=1e-3)
    assert sorted(figures.burn_down, reverse=True) == figures.burn_down


def test_a_restart_does_not_refill_the_budget():
    before, after, other = ErrorBudget(0.99), ErrorBudget(0.99), ErrorBudget(0.99, period_s=600.0)
    before.add(1_000.0, 3.0, 100.0)
    after.restore(before.state())
    assert after.figures(1_001.0) == before.figures(1_001.0)
    other.restore(before.state())
    assert other.figures(1_001.0).total == 0.0, "windows of another width begin empty"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 400), st.integers(0, 9), st.integers(0, 9)), max_size=40))
def test_sums_are_those_of_the_slots_whatever_the_clock_does(steps):
    window, now = Window(100.0), 1_000.0
    for more, bad, good in steps:
        now += more
        window.add(now, bad, bad + good)
        window.check()
        assert 0 <= window.bad <= window.total + 1e-9

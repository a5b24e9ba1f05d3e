"""The auction against an exact solver, its fallback, and what it refuses to pay."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from fourplane.dispatch.auction import assign
from fourplane.dispatch.matching import MatchingSettings, choose_pairs
from fourplane.foundation.errors import Misconfigured

VALUE, STEP = 1_000.0, 0.5


def pool(riders: int, cars: int, each: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct pairs with costs, some of them not allowed."""
    rng = np.random.default_rng(seed)
    requests = np.repeat(np.arange(riders), each)
    drivers = np.concatenate([rng.choice(cars, each, replace=False) for _ in range(riders)]) + 7
    cost = rng.uniform(-50, 900, len(requests))
    cost[rng.random(len(cost)) < 0.1] = np.inf
    return requests, drivers, cost


def best_total(requests: np.ndarray, drivers: np.ndarray, cost: np.ndarray) -> float:
    """The largest sum of `VALUE - cost` there is, by scipy's dense solver."""
    gain = np.zeros((requests.max() + 1, drivers.max() + 1))
    finite = np.isfinite(cost)
    gain[requests[finite], drivers[finite]] = VALUE - cost[finite]
    return float(gain[linear_sum_assignment(gain, maximize=True)].sum())


@pytest.mark.parametrize(("riders", "cars"), [(60, 80), (80, 50), (40, 400), (1, 12), (150, 12)])
@pytest.mark.parametrize("bids_per_pair", [1_000.0, 0.0], ids=["bids", "out of bids"])
def test_the_total_is_within_a_step_per_pair_of_the_best(riders: int, cars: int, bids_per_pair: float) -> None:
    for seed in range(3):
        requests, drivers, cost = pool(riders, cars, 8, seed)
        chosen = assign(requests, drivers, cost, value_s=VALUE, step_s=STEP, bids_per_pair=bids_per_pair)
        assert len({requests[e] for e in chosen}) == len({drivers[e] for e in chosen}) == len(chosen)
        assert np.isfinite(cost[chosen]).all()
        total = (VALUE - cost[chosen]).sum()
        assert best_total(requests, drivers, cost) - STEP * min(riders, cars) <= total + 1e-6


def test_a_rider_with_one_car_gets_it_where_the_cheapest_pair_would_leave_them_standing() -> None:
    requests, drivers, cost = np.array([0, 0, 1]), np.array([5, 6, 5]), np.array([10.0, 60.0, 20.0])
    assert choose_pairs(requests, drivers, cost, MatchingSettings()) == [0]
    assert choose_pairs(requests, drivers, cost, MatchingSettings(rule="auction")) == [1, 2]


def test_nobody_is_served_for_more_than_serving_is_worth() -> None:
    requests, drivers, cost = np.arange(3), np.arange(3), np.array([999.0, 1_000.0, np.inf])
    assert assign(requests, drivers, cost, value_s=VALUE, step_s=STEP, bids_per_pair=30) == [0]
    assert assign(requests[:0], drivers[:0], cost[:0], value_s=VALUE, step_s=STEP, bids_per_pair=30) == []


def test_settings_that_would_bid_for_ever_are_refused() -> None:
    for wrong in ({"step_s": 0.0}, {"value_s": 500.0}, {"bids_per_pair": -1.0}):
        with pytest.raises(Misconfigured):
            MatchingSettings(**wrong)

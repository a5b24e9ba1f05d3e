"""Costs, pairs and the reasons given for them."""

import numpy as np

from fourplane.dispatch.matching import Candidate, MatchingSettings, cheapest_pairs, costs, explain

SETTINGS = MatchingSettings()


def test_a_better_rating_and_a_longer_wait_outweigh_seconds_of_driving() -> None:
    found = costs(
        np.array([100.0, 105, 105, 100]), np.array([4.0, 5.0, 4.0, 3.9]), np.array([0.0, 0, 1_000, 0]), SETTINGS
    )
    assert found[1] < found[0]
    assert found[2] < found[0]
    assert found[3] == np.inf
    assert costs(np.array([901.0]), np.array([5.0]), np.array([0.0]), SETTINGS)[0] == np.inf


def test_nobody_is_given_twice_and_the_cheapest_pair_comes_first() -> None:
    rng = np.random.default_rng(1)
    requests, drivers = np.repeat(np.arange(60), 10), rng.integers(0, 40, 600)
    cost = rng.uniform(10, 500, 600)
    cost[rng.random(600) < 0.1] = np.inf
    chosen = cheapest_pairs(requests, drivers, cost)
    assert len({requests[e] for e in chosen}) == len({drivers[e] for e in chosen}) == len(chosen)
    assert [cost[e] for e in chosen] == sorted(cost[e] for e in chosen)
    assert np.isfinite(cost[chosen]).all()
    free = {(r, d) for r, d, c in zip(requests, drivers, cost, strict=True) if np.isfinite(c)}
    served, used = {int(requests[e]) for e in chosen}, {int(drivers[e]) for e in chosen}
    assert not any(r not in served and d not in used for r, d in free)


def test_a_decision_says_why_the_nearest_did_not_get_it() -> None:
    near = Candidate(1, 100, 300, 4.8, 0, 304)
    far = Candidate(2, 900, 90, 4.8, 0, 94)
    assert "nearest by line (1, 100 m) needs 5.0 min by road" in explain([near, far], 2, 0, SETTINGS).text
    rated = Candidate(1, 100, 90, 4.1, 0, 108)
    assert "is rated 4.10 against 4.80" in explain([rated, far], 2, 0, SETTINGS).text
    wanted = Candidate(1, 100, 50, 4.8, 0, 54)
    assert "another rider" in explain([wanted, far], 2, 0, SETTINGS).text
    assert "no free driver within 2 km" in explain([], -1, 0, SETTINGS).text

"""Experiments drawn by a seed."""

import pytest

from fourplane.foundation.errors import Rejected
from fourplane.simulator import experiment, swarm
from fourplane.simulator.setting import SYSTEMS


@pytest.mark.parametrize("system", SYSTEMS)
def test_what_is_drawn_is_an_experiment(system):
    for seed in range(50):
        drawn = swarm.draw(system, seed)
        assert experiment.validate(drawn.raw) == drawn
        assert 1 <= len({activity.name for activity in drawn.method}) <= swarm.KINDS_MAX
        assert sum(activity.before_s for activity in drawn.method) < drawn.ours.duration_s


def test_a_seed_draws_one_experiment_and_another_seed_another():
    assert swarm.draw("commerce", 7) == swarm.draw("commerce", 7)
    assert swarm.draw("commerce", 7).raw != swarm.draw("commerce", 8).raw


def test_every_kind_of_fault_is_drawn():
    drawn = {activity.call.__name__ for seed in range(200) for activity in swarm.draw("dispatch", seed).method}
    assert drawn == set(swarm.FAULTS)


def test_only_who_pays_has_slow_payments():
    drawn = {activity.call.__name__ for seed in range(200) for activity in swarm.draw("messaging", seed).method}
    assert drawn == set(swarm.FAULTS) - swarm.NEEDS_PAYMENTS


def test_the_size_may_be_chosen():
    drawn = swarm.draw("streaming", 1).sized(people=400, duration_s=110.0)
    assert (drawn.ours.people, drawn.ours.duration_s) == (400, 110.0)
    assert experiment.validate(drawn.raw).ours == drawn.ours


@pytest.mark.parametrize(
    "wrong",
    [
        {"load": "weekly"},
        {"loop": "half"},
        {"replicas": []},
        {"replicas": ["eu-a", "eu-a"]},
        {"every_s": -1},
        {"people": 0},
    ],
)
def test_a_setting_out_of_bounds_is_refused(wrong):
    raw = swarm.draw("streaming", 1).raw
    raw = raw | {"extensions": [raw["extensions"][0] | wrong]}
    with pytest.raises(Rejected):
        experiment.validate(raw)

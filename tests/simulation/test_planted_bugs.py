"""Bugs planted on purpose: the search must find each of them, or its silence about the real code proves nothing."""

from pathlib import Path

import pytest
from tests.simulation.planted import commerce, dispatch, messaging, streaming
from tests.simulation.planted.hunt import LIBRARY, PLANTS, hunt

from fourplane.simulator import experiment, search

QUICK = (
    messaging.forget_what_was_not_taken,
    messaging.one_partition_for_all,
    commerce.a_hold_is_for_one_piece,
    commerce.nobody_ends_what_a_crash_left,
    dispatch.fares_are_not_captured,
    dispatch.drivers_are_not_put_aside,
    streaming.any_token_opens_any_title,
    streaming.titles_share_a_place_in_the_cache,
)
QUICK_SEEDS = 4
NOTHING_WORKS = (
    dispatch.trips_are_not_stored,
    streaming.plays_are_given_the_wrong_title,
)  # so no promise is given to be broken


def everything():
    for system, plants in PLANTS.items():
        for plant, name in plants.items():
            marks = () if plant in QUICK else (pytest.mark.slow,)
            yield pytest.param(plant, name, id=f"{system}-{plant.__name__}", marks=marks)


@pytest.mark.parametrize(("plant", "name"), list(everything()))
def test_the_search_finds_it(plant, name):
    found = hunt(plant, name, seeds=QUICK_SEEDS) if plant in QUICK else hunt(plant, name)
    assert found is not None, plant.__doc__
    assert found.violations or plant in NOTHING_WORKS, plant.__doc__


def test_each_system_has_eight_and_each_says_what_is_wrong():
    for plants in PLANTS.values():
        assert len(plants) >= 8
        assert all(plant.__doc__ for plant in plants)


def test_a_failure_is_shrunk_to_what_it_needs(monkeypatch):
    messaging.sync_lies(monkeypatch)
    chosen = experiment.parse((Path(LIBRARY) / "messaging-disk-stall.json").read_bytes())
    failed = search.first_failure(chosen, range(1, 20))
    assert failed is not None
    smallest = search.shrink(chosen, failed)
    assert smallest.kept == (1,), "the crash alone, without the stall before it"
    assert not smallest.result.passed

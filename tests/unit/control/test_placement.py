import pytest

from fourplane.control.placement import ACCOUNTS, CONSOLE, Placement
from fourplane.foundation.errors import Misconfigured

SYSTEMS = ("streaming", "dispatch", "commerce", "messaging")


def test_systems_take_turns_and_every_shard_has_exactly_one_owner():
    for workers in range(1, 7):
        placement = Placement(SYSTEMS, workers)
        owned = [shard for slot in range(workers) for shard in placement.shards_of(slot)]
        assert sorted(owned) == sorted((*SYSTEMS, CONSOLE, ACCOUNTS))
        assert placement.slot_of(CONSOLE) == 0
        assert placement.slot_of(ACCOUNTS) == placement.slot_of("messaging")


def test_the_configuration_places_and_accounts_follow_messaging():
    placement = Placement(SYSTEMS, 3, {"messaging": 2, "streaming": 1})
    assert placement.shards_of(2) == ["accounts", "commerce", "messaging"]
    assert placement.shards_of(0) == ["console"]


def test_a_path_belongs_to_the_system_it_begins_with():
    placement = Placement(("commerce", "messaging"), 2)
    assert placement.of_path("/messaging/api/accounts") == placement.of_path("/messaging") == 1
    assert placement.of_path("/commerce/") == 0
    for path in ("/", "/console/live", "/messagingx/", "*", "/api/session"):
        assert placement.of_path(path) == 0


@pytest.mark.parametrize("chosen", [{"nothing": 0}, {"commerce": 2}, {"commerce": -1}, {"console": 1}])
def test_an_impossible_place_is_refused_by_name(chosen):
    with pytest.raises(Misconfigured, match=next(iter(chosen))):
        Placement(SYSTEMS, 2, chosen)

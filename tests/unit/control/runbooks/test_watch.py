"""What runbooks act on: dark regions, dark zones, and answers that became slow with a change."""

import asyncio

from fourplane.control.alerts.model import Alert
from fourplane.control.runbooks.watch import DARK_LOOKS, SLOW_LOOKS, Watch
from fourplane.foundation import clock
from fourplane.foundation.telemetry import Registry

NODES = [("EDGE1", "us", 1), ("ISP1", "us", 2), ("EDGE2", "eu", 3)]


def watch(*, up=(1, 2, 3), medians=None):
    """A watch whose nodes on the ports `up` answer."""

    async def nodes():
        return NODES

    async def answers(port):
        return port in up

    return Watch(
        registry=Registry(), zones=("eu-a", "us-a", "us-a"), nodes=nodes, answers=answers, medians=lambda: medians or {}
    )


def held(found, now_s=None):
    return [(one.name, one.labels) for one in found.conditions(clock.now_us() / 1e6 if now_s is None else now_s)]


def test_a_region_is_dark_when_none_of_its_nodes_answers_two_looks_running():
    up = {1, 2, 3}
    found = watch(up=up)
    asyncio.run(found.look())
    assert (held(found), found.nodes_up("us"), found.regions_up()) == ([], 2, 2)
    up -= {1}
    for _ in range(DARK_LOOKS):
        asyncio.run(found.look())
    assert held(found) == []
    up -= {2}
    asyncio.run(found.look())
    assert held(found) == []
    asyncio.run(found.look())
    assert (held(found), found.nodes_up("us"), found.regions_up()) == ([("RegionDark", {"region": "us"})], 0, 1)
    up |= {2}
    asyncio.run(found.look())
    assert held(found) == []


def test_a_zone_is_dark_when_all_its_workers_are_down():
    found = watch()
    for worker, state, expected in (("1", "firing", []), ("2", "firing", ["ZoneDark"]), ("1", "resolved", [])):
        found.heard(Alert("WorkerDown", "fleet", "page", {"worker": worker}, 0.0, "", state))
        assert [name for name, _ in held(found)] == expected


def test_what_became_slow_with_a_change_is_told_and_nothing_else_after_it_was_taken_back():
    medians = {"commerce": 0.05, "messaging": 0.3}
    found = watch(medians=medians)
    medians["commerce"] = 0.9
    assert held(found) == []
    medians["commerce"] = 0.05
    found.changed()
    medians |= {"commerce": 0.7, "messaging": 0.4}
    told = [held(found) for _ in range(SLOW_LOOKS)]
    assert told == [[]] * (SLOW_LOOKS - 1) + [[("SlowSinceChange", {"system": "commerce"})]]
    assert found.slowness("commerce") > 10
    found.taken_back()
    medians |= {"commerce": 0.06, "messaging": 3.0}
    assert [held(found) for _ in range(SLOW_LOOKS)] == [[]] * SLOW_LOOKS
    assert found.slowness("commerce") == 1.0

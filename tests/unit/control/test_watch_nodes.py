"""What the studies call monitoring, tracing and planning is control here; what is switched off stays hollow."""

from pathlib import Path

import fourplane
from fourplane.control.alerts.desk import AlertStatistics
from fourplane.control.nodes import hollow
from fourplane.control.traces.keeper import KeeperStatistics
from fourplane.control.watch_nodes import STANDS_IN, with_watching

KNOWN = {system: [hollow(name, "control", "")] for name, system in STANDS_IN.items()} | {"streaming": []}


def lit(**changed):
    options = {
        "traces": lambda: KeeperStatistics(7, 12.34),
        "objectives": 16,
        "alerts": lambda: AlertStatistics(1, 0, 5, 0, 2),
    }
    found = with_watching(KNOWN, **(options | changed))
    return {node.id: node for nodes in found.values() for node in nodes if node.built}


def test_boxes_of_watching_are_alive_and_lead_to_their_pages():
    nodes = lit()
    assert set(nodes) == set(STANDS_IN)
    assert nodes["JAEGER"].figures().facts == {"kept": 7, "slow from ms": 12.3}
    assert (nodes["ALERTS"].figures().requests, nodes["ALERTS"].figures().facts["firing"]) == (5, 1)
    home = Path(fourplane.__file__).parent
    for node in nodes.values():
        assert (home / node.source).is_file(), node.source
        assert node.page.startswith("/control/")


def test_what_is_switched_off_stays_hollow():
    assert set(lit(traces=None, objectives=0)) == {"CAPACITY"}
    assert lit(alerts=lambda: None)["ALERTS"].figures().facts == {"objectives": 16}

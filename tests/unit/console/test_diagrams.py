"""The studies' drawings are read whole, and nothing in them is guessed."""

import pytest

from fourplane.console import diagrams
from fourplane.foundation.errors import Rejected

PLANES = {"#0066CC", "#00AA00", "#FF8800", "#CC0000"}


@pytest.mark.parametrize("system", diagrams.STUDIES)
def test_every_arrow_joins_things_that_are_drawn(system):
    for diagram in diagrams.study(system).diagrams:
        known = {box.id for box in diagram.boxes} | {group.id for group in diagram.groups}
        for arrow in diagram.arrows:
            assert {arrow.source, arrow.target} <= known, f"{diagram.title}: {arrow}"


@pytest.mark.parametrize("system", diagrams.SYSTEMS)
def test_the_architecture_has_four_planes_in_their_colours(system):
    whole = diagrams.study(system).diagrams[0]
    assert len(whole.groups) == 4
    assert {box.colour for box in whole.boxes if box.group} == PLANES


def test_all_diagrams_of_the_studies_are_there():
    counts = {system: len(diagrams.study(system).diagrams) for system in diagrams.STUDIES}
    assert counts == {"streaming": 3, "dispatch": 4, "commerce": 4, "messaging": 4, "patterns": 1}


def test_stores_labels_and_arrow_labels_are_read():
    chaos = diagrams.study("streaming").diagrams[2]
    assert chaos.arrows[0] == diagrams.Arrow("MONKEY", "AZ1", "Random Instance Kill", dashed=True)
    whole = diagrams.study("streaming").diagrams[0]
    boxes = {box.id: box for box in whole.boxes}
    assert boxes["CASSANDRA"].store
    assert boxes["CASSANDRA"].label == "Cassandra - User Data"
    assert boxes["USER"].label == "iPhone App"


def test_an_unknown_line_is_refused_by_name():
    with pytest.raises(Rejected, match="what is this"):
        diagrams.parse_diagram("Odd", ["graph TB", "what is this"])

"""Names of systems: all for none, the order of the house, the nearest right name."""

import pytest

from fourplane.foundation.errors import Rejected
from fourplane.verbs.systems import SYSTEMS, chosen


def test_none_asked_means_all_and_the_order_is_ours():
    assert chosen([]) == SYSTEMS
    assert chosen(["messaging", "dispatch"]) == ("dispatch", "messaging")


def test_a_wrong_name_is_refused_with_the_nearest():
    with pytest.raises(Rejected, match=r"unknown system 'mesaging' \(did you mean \"messaging\"\?\)"):
        chosen(["mesaging"])

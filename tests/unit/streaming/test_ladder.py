"""Which rungs a source gets."""

from itertools import pairwise

import pytest

from fourplane.streaming.encode_plan import exact_rate
from fourplane.streaming.ladder import ladder_for


@pytest.mark.parametrize(
    ("size", "names"),
    [
        ((1280, 720), ["720p", "540p", "360p"]),
        ((3840, 2160), ["2160p", "1440p", "1080p", "720p", "360p"]),
        ((854, 480), ["480p", "360p", "240p"]),
        ((720, 1280), ["720p", "540p", "360p"]),
        ((64, 48), ["48p"]),
    ],
)
def test_rungs_go_from_the_source_down(size, names):
    rungs = ladder_for(*size, 24.0)
    assert [rung.name for rung in rungs] == names
    assert all(rung.width % 2 == 0 and rung.height % 2 == 0 for rung in rungs)
    assert all(above.cap_kbps >= below.cap_kbps for above, below in pairwise(rungs))


def test_a_ladder_is_bounded():
    assert [rung.name for rung in ladder_for(3840, 2160, 60.0, rungs_max=2)] == ["2160p", "360p"]
    assert ladder_for(3840, 2160, 60.0, height_max=720)[0].name == "720p"


def test_shape_is_kept():
    for rung in ladder_for(1920, 804, 24.0):
        assert rung.width / rung.height == pytest.approx(1920 / 804, rel=0.02)


def test_printed_rates_become_exact_ones():
    assert (exact_rate(23.98).numerator, exact_rate(23.98).denominator) == (24_000, 1_001)
    assert (exact_rate(29.97).numerator, exact_rate(29.97).denominator) == (30_000, 1_001)
    assert exact_rate(25.0) == 25
    assert exact_rate(60.0) == 60

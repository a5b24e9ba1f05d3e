"""A ladder of a title's own: rungs lie on the best edge of all sizes, at rates that differ, and none is for nothing."""

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from fourplane.streaming.per_title import NOTICEABLE, START_KBPS, Sample, best_edge, choose, merged, windows

SIZES = ((1280, 720), (960, 540), (640, 360))
CRFS = (21.0, 27.0, 34.0)


def film(*, busy):
    """Samples of a film: each size has its ceiling, and a busy film needs more bits for the same look."""
    found = []
    for number, (width, height) in enumerate(SIZES):
        for place, crf in enumerate(CRFS):
            kbps = busy * 2_400 * (height / 720) ** 1.5 * 0.5**place
            vmaf = (97, 90, 78)[number] - (0, 6, 17)[place] * (1 - 0.2 * number)
            found.append(Sample(width, height, crf, kbps, vmaf))
    return found


def test_the_top_rung_has_the_full_size_and_looks_like_the_source():
    top = choose(film(busy=1.0), rungs_max=5)[0]
    assert (top.width, top.height) == (1280, 720)
    assert top.vmaf >= 95


def test_a_calm_film_costs_less_than_a_busy_one():
    calm, busy = choose(film(busy=0.3), rungs_max=5), choose(film(busy=2.0), rungs_max=5)
    assert calm[0].cap_kbps < busy[0].cap_kbps / 4
    assert len(calm) < len(busy)


def test_rungs_fall_in_rate_and_in_look():
    rungs = choose(film(busy=2.0), rungs_max=5)
    for above, below in itertools.pairwise(rungs):
        assert below.cap_kbps < above.cap_kbps
        assert above.vmaf - below.vmaf >= NOTICEABLE - 0.1
        assert below.height <= above.height


def test_two_rungs_of_one_size_have_names_of_their_own():
    names = [rung.name for rung in choose(film(busy=3.0), rungs_max=6)]
    assert len(set(names)) == len(names)


def test_the_edge_holds_only_points_that_nothing_beats():
    edge = best_edge(film(busy=1.0))
    assert [point.kbps for point in edge] == sorted(point.kbps for point in edge)
    assert [point.vmaf for point in edge] == sorted(point.vmaf for point in edge)
    assert {point.height for point in edge} == {720, 540, 360}


def test_windows_lie_inside_the_film():
    for duration_s in (0.04, 3.0, 55.0, 600.0, 7_200.0):
        found = windows(duration_s)
        assert 1 <= len(found) <= 6
        assert all(0 <= at <= duration_s for at in found)


def test_the_mean_of_windows_is_taken_per_size_and_quality():
    found = merged([Sample(2, 2, 21.0, 100.0, 90.0), Sample(2, 2, 21.0, 300.0, 80.0), Sample(4, 4, 21.0, 7.0, 1.0)])
    assert found == [Sample(2, 2, 21.0, 200.0, 85.0), Sample(4, 4, 21.0, 7.0, 1.0)]


@given(
    rungs_max=st.sampled_from([1, 2, 3, 6]),
    rates=st.lists(st.floats(30, 20_000), min_size=9, max_size=9),
    looks=st.lists(st.floats(0, 100), min_size=9, max_size=9),
)
def test_any_samples_give_a_usable_ladder(rungs_max, rates, looks):
    samples = [
        Sample(*SIZES[number // 3], CRFS[number % 3], rate, look)
        for number, (rate, look) in enumerate(zip(rates, looks, strict=True))
    ]
    rungs = choose(samples, rungs_max=rungs_max)
    assert 1 <= len(rungs) <= rungs_max
    assert len({rung.name for rung in rungs}) == len(rungs)
    assert rungs[0].height == 720
    assert all(CRFS[0] <= rung.crf <= CRFS[-1] for rung in rungs)
    assert math.isfinite(START_KBPS)

"""The driver index is exact: against brute force, everywhere on earth, on both engines."""

import numpy as np
import pytest

from fourplane.dispatch import cells, compiled, feed_frames
from fourplane.dispatch.driver_index import DriverIndex, IndexSettings, check_point, make_updates, open_index
from fourplane.dispatch.index_layout import UPDATE
from fourplane.foundation.errors import Misconfigured, Rejected

compiled.ready() or compiled.compile_all()
ENGINES = ["columns", "packed"] if compiled.ready() else ["columns"]
engines = pytest.mark.parametrize("engine", ENGINES)

PLACES = {
    "a city": (41.15, -8.61, 0.1),
    "the antimeridian": (-17.0, 180.0, 0.1),
    "the north pole": (89.97, 0.0, 0.05),
    "the south pole": (-89.99, 100.0, 0.05),
    "where three cube faces meet": (35.264389, 45.0, 0.1),
    "the edge of two cube faces": (0.0, 45.0, 0.1),
    "null island": (0.0, 0.0, 0.1),
}


def filled(engine: str, lat: np.ndarray, lng: np.ndarray, **settings: object) -> DriverIndex:
    index = open_index(IndexSettings(engine=engine, **settings))
    numbers = np.arange(len(lat), dtype=np.uint32)
    index.set_states(numbers, np.where(numbers % 3 == 0, 2, 1).astype(np.uint32))
    index.update(make_updates(numbers, lat, lng, np.ones(len(lat), np.uint32)), 0)
    return index


def scattered(place: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    lat, lng, spread = PLACES[place]
    rng = np.random.default_rng(seed)
    lats = np.clip(lat + rng.uniform(-spread, spread, count), -90, 90)
    wide = min(180.0, spread / max(np.cos(np.radians(lat)), 1e-9))
    lngs = (lng + rng.uniform(-wide, wide, count) + 180) % 360 - 180
    return lats.round(7), lngs.round(7)


@engines
@pytest.mark.parametrize("place", PLACES)
def test_nearest_and_within_equal_brute_force(engine: str, place: str) -> None:
    lat, lng = scattered(place, 3_000, 1)
    index = filled(engine, lat, lng)
    free = np.arange(3_000) % 3 != 0
    for a, b in zip(*scattered(place, 40, 2), strict=True):
        metres = cells.distances_m(a, b, lat, lng)
        expected = np.flatnonzero(free & (metres <= 2_000))
        drivers, _ = index.within(a, b, radius_m=2_000)
        assert set(drivers.tolist()) == set(expected.tolist())
        near, away = index.nearest(a, b, radius_m=2_000, count=20)
        best = np.sort(metres[expected])[:20]
        assert np.allclose(away, best, atol=1e-4)
        assert np.allclose(metres[near], best, atol=1e-4)


@engines
def test_a_batch_of_searches_gives_what_single_ones_give(engine: str) -> None:
    lat, lng = scattered("a city", 2_000, 3)
    index = filled(engine, lat, lng)
    lats, lngs = scattered("a city", 30, 4)
    found, metres, counts = index.nearest_many(lats, lngs, radius_m=1_500, count=10)
    for row in range(30):
        near, away = index.nearest(lats[row], lngs[row], radius_m=1_500, count=10)
        assert counts[row] == len(near)
        assert found[row, : counts[row]].tolist() == near.tolist()
        assert np.allclose(metres[row, : counts[row]], away)


@engines
def test_moving_drivers_are_found_where_they_are_now(engine: str) -> None:
    lat, lng = scattered("a city", 2_000, 5)
    index = filled(engine, lat, lng)
    rng = np.random.default_rng(6)
    numbers = np.arange(2_000, dtype=np.uint32)
    for step in range(2, 30):
        lat, lng = (lat + rng.normal(0, 1e-3, 2_000)).round(7), (lng + rng.normal(0, 1e-3, 2_000)).round(7)
        order = rng.permutation(2_000)
        batch = make_updates(numbers[order], lat[order], lng[order], np.full(2_000, step, np.uint32))
        index.update(batch, step * 100)
    drivers, _ = index.within(41.15, -8.61, radius_m=4_000, mask=0, wanted=0)
    expected = np.flatnonzero(cells.distances_m(41.15, -8.61, lat, lng) <= 4_000)
    assert set(drivers.tolist()) == set(expected.tolist())
    assert index.statistics().live == 2_000
    assert index.statistics().jumps == 0


@engines
def test_count_by_cell_sums_to_the_drivers_there(engine: str) -> None:
    lat, lng = scattered("where three cube faces meet", 1_000, 7)
    index = filled(engine, lat, lng)
    ids, counts = index.count_by_cell(mask=0, wanted=0)
    expected, expected_counts = np.unique(cells.cell_ids(lat, lng, 13), return_counts=True)
    assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == dict(
        zip(expected.tolist(), expected_counts.tolist(), strict=True)
    )


@engines
def test_late_and_repeated_positions_are_ignored_and_counted(engine: str) -> None:
    index = filled(engine, np.array([41.0]), np.array([-8.0]))
    one = np.array([0], np.uint32)
    for sequence, expected in ((1, 41.0), (0xFFFFFFFF, 41.0), (5, 41.0001), (5, 41.0001), (4, 41.0001)):
        index.update(make_updates(one, np.array([41.0001]), np.array([-8.0]), np.array([sequence], np.uint32)), 10)
        assert index.places(one)[0][0] == pytest.approx(expected, abs=1e-9)
    assert index.statistics().late == 4


@engines
def test_a_leap_is_flagged_and_believed_when_confirmed(engine: str) -> None:
    index = filled(engine, np.array([41.0]), np.array([-8.0]))
    one = np.array([0], np.uint32)
    index.update(make_updates(one, np.array([48.0]), np.array([2.0]), np.array([2], np.uint32)), 10)
    assert index.places(one)[0][0] == pytest.approx(41.0)
    index.update(make_updates(one, np.array([48.0]), np.array([2.0]), np.array([3], np.uint32)), 20)
    assert index.places(one)[0][0] == pytest.approx(48.0)
    assert index.statistics().jumps == 1


@engines
def test_a_driver_who_misses_three_periods_drops_out(engine: str) -> None:
    index = filled(engine, np.array([41.0, 41.0]), np.array([-8.0, -8.1]), period_s=4.0)
    index.update(
        make_updates(np.array([1], np.uint32), np.array([41.0]), np.array([-8.1]), np.array([2], np.uint32)), 60
    )
    assert index.drop_stale(120) == 0
    assert index.drop_stale(121) == 1
    assert index.nearest(41.0, -8.05, radius_m=50_000, count=5, mask=0, wanted=0)[0].tolist() == [1]
    again = make_updates(np.array([0], np.uint32), np.array([41.0]), np.array([-8.0]), np.array([0], np.uint32))
    index.update(again, 200)
    assert index.statistics().live == 2


@engines
def test_offline_and_unknown_drivers_are_not_on_the_map(engine: str) -> None:
    index = filled(engine, *scattered("a city", 50, 8))
    index.set_states(np.array([4, 5], np.uint32), np.zeros(2, np.uint32))
    stranger = make_updates(
        np.array([4, 999], np.uint32), np.full(2, 41.15), np.full(2, -8.61), np.full(2, 9, np.uint32)
    )
    index.update(stranger, 5)
    assert index.statistics().live == 48
    assert index.statistics().unknown == 2
    assert np.isnan(index.places(np.array([4, 999_999], np.uint32))[0]).all()


@engines
def test_coordinates_and_numbers_out_of_range_are_counted_as_wrong(engine: str) -> None:
    index = filled(engine, *scattered("a city", 10, 9))
    bad = np.zeros(3, UPDATE)
    bad["driver"], bad["lat"], bad["lng"], bad["sequence"] = (
        [1, 2, 4_000_000_000],
        [900_000_001, 0, 0],
        [0, -(1 << 31), 0],
        5,
    )
    index.update(bad, 5)
    assert index.statistics().wrong == 3
    assert index.statistics().live == 10


@engines
def test_the_index_grows_and_refuses_numbers_past_its_bound(engine: str) -> None:
    index = filled(engine, *scattered("a city", 30_000, 10), drivers_max=40_000)
    assert index.statistics().live == 30_000
    with pytest.raises(Rejected):
        index.set_states(np.array([40_000], np.uint32), np.ones(1, np.uint32))
    world = np.random.default_rng(11)
    lat, lng = world.uniform(-80, 80, 30_000).round(7), world.uniform(-180, 180, 30_000).round(7)
    spread = filled(engine, lat, lng)  # more cells than the index starts with
    assert spread.nearest(lat[7], lng[7], radius_m=1, count=1, mask=0, wanted=0)[0].tolist() == [7]


@engines
def test_state_changes_are_seen_by_the_next_search(engine: str) -> None:
    index = filled(engine, np.array([41.0, 41.001]), np.array([-8.0, -8.0]))
    assert index.nearest(41.0, -8.0, radius_m=2_000, count=5)[0].tolist() == [1]
    index.set_states(np.array([0, 1], np.uint32), np.array([1, 2], np.uint32))
    assert index.nearest(41.0, -8.0, radius_m=2_000, count=5)[0].tolist() == [0]
    assert index.state_of(1) == 2


@pytest.mark.parametrize("point", [(float("nan"), 0.0), (0.0, float("inf")), (-91.0, 0.0), (120.0, 45.0)])
def test_a_point_that_is_none_is_refused_with_a_reason(point: tuple[float, float]) -> None:
    with pytest.raises(Rejected, match=r"coordinate|swapped"):
        check_point(*point)


def test_a_wrong_setting_names_itself() -> None:
    with pytest.raises(Misconfigured, match="level"):
        IndexSettings(level=20)
    with pytest.raises(Misconfigured, match="engine"):
        IndexSettings(engine="redis")


@engines
def test_positions_are_taken_as_they_lie_in_a_frame(engine: str) -> None:
    index = filled(engine, np.array([41.0, 41.0]), np.array([-8.0, -8.1]))
    sent = make_updates(
        np.arange(2, dtype=np.uint32), np.full(2, 41.0001), np.array([-8.0, -8.1]), np.full(2, 2, np.uint32)
    )
    stream = b"x" + feed_frames.positions_frame(sent)[feed_frames.HEADER.size :]
    index.update(feed_frames.read_positions(memoryview(stream)[1:]), 10)
    assert index.places(np.arange(2, dtype=np.uint32))[0] == pytest.approx([41.0001, 41.0001])


def test_both_engines_say_the_same_of_any_stream_of_positions() -> None:
    if len(ENGINES) < 2:
        pytest.skip("no numba here")
    rng = np.random.default_rng(12)
    for place in PLACES:
        lat, lng = scattered(place, 400, 13)
        both = [filled(engine, lat, lng) for engine in ENGINES]
        for step in range(2, 40):
            who = rng.integers(0, 420, 600).astype(np.uint32)  # some twice, some unknown
            at = np.minimum(who, 399)
            wide = np.where(rng.random(600) < 0.02, 0.05, 1e-5) / max(np.cos(np.radians(PLACES[place][0])), 1e-3)
            moved = make_updates(
                who,
                np.clip(lat[at] + rng.normal(0, wide), -91, 91),
                (lng[at] + rng.normal(0, wide, 600) + 180) % 360 - 180,
                (step + rng.integers(-2, 3, 600)).astype(np.uint32),
            )
            for index in both:
                index.update(moved, step * 10, 5, 410)
            kept = np.arange(400, dtype=np.uint32)
            lat, lng = both[1].places(kept)
            for mine, other in zip(both[0].places(kept), (lat, lng), strict=True):
                assert np.array_equal(mine, other)
        one, two = (index.statistics() for index in both)
        for name in ("live", "updates", "crossed", "late", "jumps", "wrong", "unknown", "foreign"):
            assert getattr(one, name) == getattr(two, name), (place, name)
        cells_of = [
            dict(zip(*map(np.ndarray.tolist, index.count_by_cell(mask=0, wanted=0)), strict=True)) for index in both
        ]
        assert cells_of[0] == cells_of[1]

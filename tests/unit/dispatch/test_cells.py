"""S2 ids against Google's own library, and what the rest relies on."""

import numpy as np
import pytest

from fourplane.dispatch import cells
from fourplane.foundation.errors import Rejected

s2 = pytest.importorskip("s2geometry", reason="the oracle for S2 ids")


def points(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    lat = np.degrees(np.arcsin(rng.uniform(-1, 1, count)))
    lng = rng.uniform(-180, 180, count)
    lat[:6], lng[:6] = [90, -90, 0, 0, 0, 45], [0, 0, 180, -180, 45, 45]
    return lat, lng


@pytest.mark.parametrize("level", [12, 13, 16, 30])
def test_ids_equal_s2geometry_bit_for_bit(level: int) -> None:
    lat, lng = points(5_000, level)
    ours = cells.cell_ids(lat, lng, level)
    for a, b, mine in zip(lat, lng, ours, strict=True):
        theirs = s2.S2CellId(s2.S2LatLng.FromDegrees(float(a), float(b))).parent(level).id()
        assert int(mine) == theirs, (a, b)
        assert cells.cell_id(float(a), float(b), level) == theirs


def test_centers_children_and_levels_equal_s2geometry() -> None:
    lat, lng = points(300, 5)
    ids = cells.cell_ids(lat, lng, 13)
    mid_lat, mid_lng = cells.centers(ids)
    for cell, a, b in zip(ids, mid_lat, mid_lng, strict=True):
        theirs = s2.S2CellId(int(cell))
        there = theirs.ToLatLng()
        assert abs(there.lat().degrees() - a) < 1e-9
        assert abs((there.lng().degrees() - b + 180) % 360 - 180) < 1e-9
        assert cells.level_of(int(cell)) == 13
        assert cells.token(int(cell)) == theirs.ToToken()
        assert cells.from_token(theirs.ToToken()) == int(cell)
        assert [int(c) for c in cells.children(int(cell))] == [theirs.child(k).id() for k in range(4)]


@pytest.mark.parametrize("text", ["", "zz", "00000000000000001", "f", "2"])
def test_a_token_that_names_no_cell_is_refused(text: str) -> None:
    with pytest.raises(Rejected):
        cells.from_token(text)


def test_distance_across_the_antimeridian_is_short() -> None:
    assert cells.distance_m(0, 179.999, 0, -179.999) == pytest.approx(222.39, abs=0.1)

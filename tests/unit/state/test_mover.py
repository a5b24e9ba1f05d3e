"""What a move tells while it goes on."""

import pytest

from fourplane.state.mover import progress


@pytest.mark.parametrize(
    ("done", "total", "spent_s", "told"),
    [
        (0, 1, 0.0, "rows: 0 of 1"),
        (49, 1_000, 60.0, "rows: 49 of 1,000"),  # too little to tell from
        (50, 1_000, 60.0, "rows: 50 of 1,000, about 1140 s left"),
        (5_000, 20_000, 2.0, "rows: 5,000 of 20,000, about 6 s left"),
        (10_000, 20_000, 2.0, "rows: 10,000 of 20,000, about 2 s left"),
        (15_000, 20_000, 2.0, "rows: 15,000 of 20,000"),  # under a second
        (20_000, 20_000, 9.0, "rows: 20,000 of 20,000"),
        (20_500, 20_000, 9.0, "rows: 20,500 of 20,000"),  # rows that came meanwhile
    ],
)
def test_how_long_the_rest_takes_is_told_once_it_is_known(done, total, spent_s, told):
    assert progress("rows", done, total, spent_s) == told

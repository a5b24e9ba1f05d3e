"""The answer to "who is near, and how soon here?" as JSON, compiled: searched, timed and written without a Python object.

`near_json` ranks the candidates of each place (`road_kernels.rank_many`) and writes one object of five columns per place,
with a comma between them, into the caller's bytes. Numbers are written with a fixed count of decimals (metres and seconds
one, degrees seven), so a reader gets the very floats the plain path rounds to. Cost beside the search: 2 us for twenty.
"""

# mypy: allow-untyped-decorators, allow-untyped-calls, no-warn-return-any

import math

import numpy as np
from numba import float64, int32, int64, njit, types, uint8, uint32

from fourplane.dispatch.kernels import BUCKETS, DRIVERS, SLOTS
from fourplane.dispatch.road_kernels import ENTRIES, F64S, I32S, I64S, LINKS, MARKS, rank_many

BYTES = uint8[::1]
KEYS = tuple(
    np.frombuffer(text, np.uint8)
    for text in (
        b'{"drivers":[',
        b'],"metres":[',
        b'],"seconds":[',
        b'],"latitude":[',
        b'],"longitude":[',
        b"]}",
        b"null",
    )
)
DRIVERS_KEY, METRES_KEY, SECONDS_KEY, LATITUDE_KEY, LONGITUDE_KEY, END, NULL = KEYS


@njit(int64(BYTES, int64, types.Array(uint8, 1, "C", readonly=True)), cache=True, nogil=True, error_model="numpy")
def _text(out: np.ndarray, at: int, text: np.ndarray) -> int:
    for n in range(text.size):
        out[at + n] = text[n]
    return at + text.size


@njit(int64(BYTES, int64, int64, int64), cache=True, nogil=True, error_model="numpy")
def _number(out: np.ndarray, at: int, value: int, decimals: int) -> int:
    """`value` / 10 ** decimals and a comma at `at`; where the next one goes."""
    if value < 0:
        out[at] = 45  # -
        at += 1
        value = -value
    digits, rest = 1, value // 10
    while rest > 0:
        digits += 1
        rest //= 10
    digits = max(digits, decimals + 1)
    end = at + digits + (1 if decimals > 0 else 0)
    place = end - 1
    for n in range(digits):
        if n == decimals and decimals > 0:
            out[place] = 46  # .
            place -= 1
        out[place] = 48 + value % 10
        value //= 10
        place -= 1
    out[end] = 44  # ,
    return end + 1


@njit(
    int64(
        I32S, I32S, float64, uint32, uint32, int64, SLOTS, DRIVERS, BUCKETS, I32S, I64S,
        F64S, float64, int64, int64, float64, F64S, F64S, I32S, I32S,
        float64, float64, I32S, LINKS, MARKS, int32, I32S, float64, I32S, ENTRIES,
        int64[:, ::1], float64[:, ::1], float64[:, ::1], I64S, float64, float64, BYTES,
    ),
    cache=True,
    nogil=True,
    error_model="numpy",
)  # fmt: skip
def near_json(
    lats: np.ndarray, lngs: np.ndarray, radius: float, mask: int, wanted: int, level: int,
    slots: np.ndarray, drivers: np.ndarray, buckets: np.ndarray, table: np.ndarray, meta: np.ndarray,
    frame: np.ndarray, size_m: float, width: int, height: int, metres_max: float,
    xs: np.ndarray, ys: np.ndarray, grid_starts: np.ndarray, grid_nodes: np.ndarray,
    limit: float, local_mps: float, starts: np.ndarray, links: np.ndarray, marks: np.ndarray, generation: int,
    twins: np.ndarray, per_second: float, ring: np.ndarray, entries: np.ndarray,
    found: np.ndarray, angles: np.ndarray, etas: np.ndarray, counts: np.ndarray,
    radius_m: float, pace: float, out: np.ndarray,
) -> int:  # fmt: skip
    """The arguments of `rank_many`, the earth's radius, what to multiply times by, and where to write; how many bytes."""
    rank_many(
        lats, lngs, radius, mask, wanted, level, slots, drivers, buckets, table, meta,
        frame, size_m, width, height, metres_max, xs, ys, grid_starts, grid_nodes,
        limit, local_mps, starts, links, marks, generation, twins, per_second, ring, entries,
        found, angles, etas, counts,
    )  # fmt: skip
    at = 0
    for row in range(lats.size):
        if row > 0:
            out[at] = 44
            at += 1
        count = max(counts[row], 0)
        at = _text(out, at, DRIVERS_KEY)
        for n in range(count):
            at = _number(out, at, found[row, n], 0)
        at -= 1 if count > 0 else 0  # the last comma
        at = _text(out, at, METRES_KEY)
        for n in range(count):
            at = _number(out, at, np.int64(np.rint(angles[row, n] * radius_m * 10)), 1)
        at -= 1 if count > 0 else 0
        at = _text(out, at, SECONDS_KEY)
        for n in range(count):
            if math.isinf(etas[row, n]):
                at = _text(out, at, NULL)
                out[at] = 44
                at += 1
            else:
                at = _number(out, at, np.int64(np.rint(etas[row, n] * pace * 10)), 1)
        at -= 1 if count > 0 else 0
        at = _text(out, at, LATITUDE_KEY)
        for n in range(count):
            at = _number(out, at, np.int64(slots[drivers[found[row, n]].slot].lat), 7)
        at -= 1 if count > 0 else 0
        at = _text(out, at, LONGITUDE_KEY)
        for n in range(count):
            at = _number(out, at, np.int64(slots[drivers[found[row, n]].slot].lng), 7)
        at -= 1 if count > 0 else 0
        at = _text(out, at, END)
    return at

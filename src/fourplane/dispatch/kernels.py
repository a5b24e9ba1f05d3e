"""The driver index's cells and searches, compiled once at set-up (`position_kernels` holds the way in).

Two packed records of 16 bytes, so that each access touches one cache line: a driver knows its cell and slot, a slot
knows its driver, place and state. Slots of one cell lie together in an arena of chunks.

A search walks rings of cells around the point, nearest ring first, and ends when no farther cell can hold a better
driver; where rings would cross the edge of a cube face it looks at every occupied cell instead. Both are exact: a cell
is skipped only if the sphere around it is too far away.

`python -m fourplane.dispatch.kernels` compiles everything into numba's cache and leaves a stamp; `ready()` reads it, so
that a cold start takes the numpy path (`column_index`) instead of compiling for a minute.
Cost per core: nearest 20 of 100,000 drivers 7 us. Source: measured design, docs/concepts/dispatch.md.
"""

import math

import numpy as np
from numba import float64 as f64
from numba import from_dtype, int32, int64, njit, types, uint32

from fourplane.dispatch.index_layout import (
    BUCKET,
    DRIVER,
    META_BUCKETS,
    SLOT,
    UPDATE,
)

DRIVERS = from_dtype(DRIVER)[::1]
SLOTS = from_dtype(SLOT)[::1]
BUCKETS = from_dtype(BUCKET)[::1]
UPDATES = types.Array(from_dtype(UPDATE), 1, "C", readonly=True)  # as they come from the wire
I32S, I64S, U32S, F64S = int32[::1], int64[::1], uint32[::1], f64[::1]

RADIANS_E7 = math.pi / 180 * 1e-7
RADIUS_M = 6_371_008.8
SMALL = 0.02
# Ratios of neighbouring terms of the sine and cosine series.
S1, S2, S3, S4, S5, S6, S7, S8, S9, S10 = (-1 / (2 * n * (2 * n + 1)) for n in range(1, 11))
C1, C2, C3, C4, C5, C6, C7, C8, C9, C10 = (-1 / (2 * n * (2 * n - 1)) for n in range(1, 11))
MIN_WIDTH = 0.942809041582063


@njit(types.UniTuple(f64, 2)(f64), cache=True, nogil=True, error_model="numpy", inline="always")
def _sin_cos(angle: float) -> tuple[float, float]:
    """Sine and cosine of -pi/2..pi/2 without a branch or a call, so that the loop around it becomes vector code."""
    r = angle * angle
    sine = 1 + r * S1 * (
        1
        + r
        * S2
        * (
            1
            + r
            * S3
            * (1 + r * S4 * (1 + r * S5 * (1 + r * S6 * (1 + r * S7 * (1 + r * S8 * (1 + r * S9 * (1 + r * S10)))))))
        )
    )
    cosine = 1 + r * C1 * (
        1
        + r
        * C2
        * (
            1
            + r
            * C3
            * (1 + r * C4 * (1 + r * C5 * (1 + r * C6 * (1 + r * C7 * (1 + r * C8 * (1 + r * C9 * (1 + r * C10)))))))
        )
    )
    return angle * sine, cosine


@njit(types.UniTuple(int64, 2)(int32, int32, int64), cache=True, nogil=True, error_model="numpy", inline="always")
def key_and_room(lat: int, lng: int, level: int) -> tuple[int, int]:
    """Face, i and j of the cell around a point in 1e-7 degrees, packed into 31 bits, and how far (1e-7) it may go within."""
    z, cos_phi = _sin_cos(lat * RADIANS_E7)
    sin_half, cos_half = _sin_cos(lng * (RADIANS_E7 / 2))
    x, y = (1 - 2 * sin_half * sin_half) * cos_phi, 2 * sin_half * cos_half * cos_phi
    ax, ay, az = abs(x), abs(y), abs(z)
    on_x = (ax > ay) & (ax > az)
    on_z = (az >= ay) & (az >= ax)
    on_x = on_x & (not on_z)
    main = z if on_z else (x if on_x else y)
    back = main < 0
    # The two other axes, in the order in which the face's u and v take them.
    front_u = y if on_x else -x
    front_v = -y if on_z else z
    back_u = -y if on_z else z
    back_v = y if on_x else -x
    u = (back_u if back else front_u) / main
    v = (back_v if back else front_v) / main
    side = np.float64(1 << level)
    s, t = 0.5 * math.sqrt(1 + 3 * abs(u)), 0.5 * math.sqrt(1 + 3 * abs(v))
    s = s if u >= 0 else 1 - s
    t = t if v >= 0 else 1 - t
    i, j = min(s * side, side - 0.5), min(t * side, side - 0.5)
    axis = 2 if on_z else (0 if on_x else 1)
    face = axis + (3 if back else 0)
    left, low = s * side - np.floor(i), t * side - np.floor(j)
    room = min(left, 1 - left, low, 1 - low) * (MIN_WIDTH / RADIANS_E7) / side - 1
    return np.int64(face << (2 * level) | np.int32(i) << level | np.int32(j)), np.int64(np.int32(max(room, 0.0)))


@njit(int64(int32, int32, int64), cache=True, nogil=True, error_model="numpy", inline="always")
def key_of(lat: int, lng: int, level: int) -> int:
    """The cell alone."""
    key, _ = key_and_room(lat, lng, level)
    return key


@njit(f64(f64), cache=True, nogil=True, error_model="numpy")
def flat(s: float) -> float:
    if s >= 0.5:
        return (4 * s * s - 1) / 3
    return (1 - 4 * (1 - s) * (1 - s)) / 3


@njit(types.UniTuple(f64, 3)(int64, f64, f64), cache=True, nogil=True, error_model="numpy")
def face_xyz(face: int, u: float, v: float) -> tuple[float, float, float]:
    length = 1 / math.sqrt(1 + u * u + v * v)
    if face == 0:
        return length, u * length, v * length
    if face == 1:
        return -u * length, length, v * length
    if face == 2:
        return -u * length, -v * length, length
    if face == 3:
        return -length, -v * length, -u * length
    if face == 4:
        return v * length, -length, -u * length
    return v * length, u * length, -length


@njit(int64(int64, I32S), cache=True, nogil=True, error_model="numpy")
def place_of(key: int, table: np.ndarray) -> int:
    return (np.uint64(key) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)) & np.uint64(table.size - 1)


@njit(int64(int64, I32S, BUCKETS), cache=True, nogil=True, error_model="numpy")
def find_bucket(key: int, table: np.ndarray, buckets: np.ndarray) -> int:
    """The bucket of a cell, -1 when no driver was ever there."""
    at = place_of(key, table)
    while True:
        bucket = table[at]
        if bucket < 0 or buckets[bucket].key == key:
            return bucket
        at = (at + 1) & (table.size - 1)


@njit(f64(f64, f64, int32, f64, int32), cache=True, nogil=True, error_model="numpy")
def _angle(sin_lat: float, cos_lat: float, dlat: int, dlng: float, lat: int) -> float:
    """The angle to a point `dlat`, `dlng` (1e-7 degrees) away: haversine, by series where it is short."""
    a, b = dlat * RADIANS_E7, dlng * RADIANS_E7
    if abs(a) < SMALL and abs(b) < SMALL:
        a2, b2 = a * a, b * b
        cos_other = cos_lat * (1 - a2 / 2 * (1 - a2 / 12)) - sin_lat * a * (1 - a2 / 6 * (1 - a2 / 20))
        half_a = a / 2 * (1 - a2 / 24 * (1 - a2 / 80))
        half_b = b / 2 * (1 - b2 / 24 * (1 - b2 / 80))
        h = half_a * half_a + cos_lat * cos_other * half_b * half_b
        root = math.sqrt(h)
        return 2 * root * (1 + h / 6 * (1 + h * 0.45))
    half_a, half_b = math.sin(a / 2), math.sin(b / 2)
    h = half_a * half_a + cos_lat * math.cos(lat * RADIANS_E7) * half_b * half_b
    return 2 * math.asin(math.sqrt(min(h, 1.0)))


@njit(
    f64(int64, int32, int32, f64, f64, uint32, uint32, f64, int64, BUCKETS, SLOTS, I64S, F64S),
    cache=True,
    nogil=True,
    error_model="numpy",
)
def _scan(
    bucket: int,
    lat: int,
    lng: int,
    sin_lat: float,
    cos_lat: float,
    mask: int,
    wanted: int,
    worst: float,
    wanted_count: int,
    buckets: np.ndarray,
    slots: np.ndarray,
    found: np.ndarray,
    angles: np.ndarray,
) -> float:
    """Put a cell's drivers into the sorted `found`; the new bound. found[-1] holds the count."""
    count = found[found.size - 1]
    worst_e7 = worst / RADIANS_E7
    for slot in range(buckets[bucket].start, buckets[bucket].start + buckets[bucket].count):
        if slots[slot].state & mask != wanted:
            continue
        dlat = slots[slot].lat - lat
        if abs(dlat) > worst_e7:
            continue
        dlng = np.int64(slots[slot].lng) - lng
        if dlng > 1_800_000_000:
            dlng -= 3_600_000_000
        elif dlng < -1_800_000_000:
            dlng += 3_600_000_000
        angle = _angle(sin_lat, cos_lat, dlat, np.float64(dlng), slots[slot].lat)
        if angle > worst:
            continue
        at = count
        if count == wanted_count:
            if angle == worst:
                continue
            at -= 1
        else:
            count += 1
        while at > 0 and angles[at - 1] > angle:
            angles[at], found[at] = angles[at - 1], found[at - 1]
            at -= 1
        angles[at], found[at] = angle, slots[slot].driver
        if count == wanted_count:
            worst = angles[count - 1]
            worst_e7 = worst / RADIANS_E7
    found[found.size - 1] = count
    return worst


@njit(
    int64(int32, int32, f64, int64, uint32, uint32, int64, SLOTS, BUCKETS, I32S, I64S, I64S, F64S),
    cache=True,
    error_model="numpy",
    nogil=True,
)
def nearest(
    lat: int,
    lng: int,
    radius: float,
    count: int,
    mask: int,
    wanted: int,
    level: int,
    slots: np.ndarray,
    buckets: np.ndarray,
    table: np.ndarray,
    meta: np.ndarray,
    found: np.ndarray,
    angles: np.ndarray,
) -> int:
    """The `count` nearest drivers with state & mask == wanted within `radius` (radians), sorted; how many.

    `found` has room for count + 1 numbers and `angles` for count.
    """
    phi, theta = lat * RADIANS_E7, lng * RADIANS_E7
    sin_lat, cos_lat = math.sin(phi), math.cos(phi)
    x, y, z = math.cos(theta) * cos_lat, math.sin(theta) * cos_lat, sin_lat
    found[found.size - 1] = 0
    worst, side = radius, 1 << level
    width = MIN_WIDTH / side
    key = key_of(lat, lng, level)
    face, i, j = key >> (2 * level), (key >> level) & (side - 1), key & (side - 1)
    rings = int(radius / width) + 1
    if i < rings or j < rings or i + rings >= side or j + rings >= side or rings * rings > meta[META_BUCKETS]:
        for bucket in range(meta[META_BUCKETS]):
            own = buckets[bucket]
            if own.count > 0:
                reach = worst + own.radius
                if reach > 1.0 or (own.x - x) ** 2 + (own.y - y) ** 2 + (own.z - z) ** 2 <= reach * reach:
                    worst = _scan(
                        bucket, lat, lng, sin_lat, cos_lat, mask, wanted, worst, count, buckets, slots, found, angles
                    )
        return found[found.size - 1]
    for ring in range(rings + 1):
        if (ring - 1) * width > worst:
            break
        for a in range(i - ring, i + ring + 1):
            step = 1 if a in (i - ring, i + ring) or ring == 0 else 2 * ring
            for b in range(j - ring, j + ring + 1, step):
                bucket = find_bucket(face << (2 * level) | a << level | b, table, buckets)
                if bucket < 0 or buckets[bucket].count == 0:
                    continue
                own = buckets[bucket]
                reach = worst + own.radius
                if (own.x - x) ** 2 + (own.y - y) ** 2 + (own.z - z) ** 2 <= reach * reach:
                    worst = _scan(
                        bucket, lat, lng, sin_lat, cos_lat, mask, wanted, worst, count, buckets, slots, found, angles
                    )
    return found[found.size - 1]


@njit(
    types.void(I32S, I32S, f64, uint32, uint32, int64, SLOTS, BUCKETS, I32S, I64S, int64[:, ::1], f64[:, ::1], I64S),
    cache=True,
    error_model="numpy",
    nogil=True,
)
def nearest_many(
    lats: np.ndarray,
    lngs: np.ndarray,
    radius: float,
    mask: int,
    wanted: int,
    level: int,
    slots: np.ndarray,
    buckets: np.ndarray,
    table: np.ndarray,
    meta: np.ndarray,
    found: np.ndarray,
    angles: np.ndarray,
    counts: np.ndarray,
) -> None:
    """`nearest` for a batch of points; row n of `found` and `angles` belongs to point n."""
    for n in range(lats.size):
        counts[n] = nearest(
            lats[n], lngs[n], radius, angles.shape[1], mask, wanted, level,
            slots, buckets, table, meta, found[n], angles[n],
        )  # fmt: skip


@njit(types.void(U32S, DRIVERS, SLOTS, F64S, F64S), cache=True, error_model="numpy", nogil=True)
def places(numbers: np.ndarray, drivers: np.ndarray, slots: np.ndarray, lats: np.ndarray, lngs: np.ndarray) -> None:
    """Where each driver is, in degrees; NaN for those off the map."""
    for n in range(numbers.size):
        slot = drivers[numbers[n]].slot if numbers[n] < drivers.size else -1
        lats[n] = slots[slot].lat * 1e-7 if slot >= 0 else math.nan
        lngs[n] = slots[slot].lng * 1e-7 if slot >= 0 else math.nan


if __name__ == "__main__":
    from fourplane.dispatch import compiled

    compiled.compile_all()

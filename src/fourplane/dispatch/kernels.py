"""The driver index's inner loops, compiled once at set-up: ten million positions a second and core.

Two packed records of 16 bytes, so that each access touches one cache line: a driver knows its cell and slot, a slot
knows its driver, place and state. Slots of one cell lie together in an arena; the last one fills the hole a leaving
driver makes, a full cell moves to a chunk of twice the size, and left chunks wait in a list per size, so nothing needs
compaction. Updates come in blocks of 64: first the cells of all (arithmetic only), then the stores.

A search walks rings of cells around the point, nearest ring first, and ends when no farther cell can hold a better
driver; where rings would cross the edge of a cube face it looks at every occupied cell instead. Both are exact: a cell
is skipped only if the sphere around it is too far away.

`python -m fourplane.dispatch.kernels` compiles everything into numba's cache and leaves a stamp; `ready()` reads it, so
that a cold start takes the numpy path (`column_index`) instead of compiling for a minute.
Cost per core: update 70-100 ns, nearest 20 of 100,000 drivers 7 us. Source: measured design, docs/concepts/dispatch.md.
"""

import math

import numpy as np
from numba import float64 as f64
from numba import from_dtype, int32, int64, njit, types, uint32

from fourplane.dispatch.index_layout import (
    BUCKET,
    CHUNKS,
    DRIVER,
    META_ARENA_TOP,
    META_BUCKETS,
    META_CROSSED,
    META_JUMPS,
    META_LATE,
    META_LIVE,
    META_UNKNOWN,
    META_WARM,
    META_WRONG,
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
BLOCK = 64
SMALL = 0.02
# Ratios of neighbouring terms of the sine and cosine series.
S1, S2, S3, S4, S5, S6, S7, S8, S9, S10 = (-1 / (2 * n * (2 * n + 1)) for n in range(1, 11))
C1, C2, C3, C4, C5, C6, C7, C8, C9, C10 = (-1 / (2 * n * (2 * n - 1)) for n in range(1, 11))
MIN_WIDTH = 0.942809041582063
SUSPECT = np.uint32(1 << 31)
STATE_MASK = np.uint32((1 << 31) - 1)


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


@njit(int64(int32, int32, int64), cache=True, nogil=True, error_model="numpy", inline="always")
def key_of(lat: int, lng: int, level: int) -> int:
    """Face, i and j of the level's cell around a point in 1e-7 degrees, packed into 31 bits."""
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
    return np.int64(face << (2 * level) | np.int32(i) << level | np.int32(j))


@njit(f64(f64), cache=True, nogil=True, error_model="numpy")
def _flat(s: float) -> float:
    if s >= 0.5:
        return (4 * s * s - 1) / 3
    return (1 - 4 * (1 - s) * (1 - s)) / 3


@njit(types.UniTuple(f64, 3)(int64, f64, f64), cache=True, nogil=True, error_model="numpy")
def _face_xyz(face: int, u: float, v: float) -> tuple[float, float, float]:
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
def _place(key: int, table: np.ndarray) -> int:
    return (np.uint64(key) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)) & np.uint64(table.size - 1)


@njit(int64(int64, I32S, BUCKETS), cache=True, nogil=True, error_model="numpy")
def find_bucket(key: int, table: np.ndarray, buckets: np.ndarray) -> int:
    """The bucket of a cell, -1 when no driver was ever there."""
    at = _place(key, table)
    while True:
        bucket = table[at]
        if bucket < 0 or buckets[bucket].key == key:
            return bucket
        at = (at + 1) & (table.size - 1)


@njit(int64(int64, int64, I32S, BUCKETS, I64S), cache=True, nogil=True, error_model="numpy")
def _make_bucket(key: int, level: int, table: np.ndarray, buckets: np.ndarray, meta: np.ndarray) -> int:
    bucket = meta[META_BUCKETS]
    meta[META_BUCKETS] = bucket + 1
    face, side = key >> (2 * level), 1 << level
    i, j = (key >> level) & (side - 1), key & (side - 1)
    x, y, z = _face_xyz(face, _flat((i + 0.5) / side), _flat((j + 0.5) / side))
    farthest = 0.0
    for corner in range(4):
        a, b, c = _face_xyz(face, _flat((i + (corner & 1)) / side), _flat((j + (corner >> 1)) / side))
        farthest = max(farthest, math.sqrt((a - x) ** 2 + (b - y) ** 2 + (c - z) ** 2))
    own = buckets[bucket]
    own.key, own.start, own.count, own.size = key, 0, 0, -1
    own.x, own.y, own.z = x, y, z
    own.radius = 2 * math.asin(farthest / 2) * (1 + 1e-9) + 1e-9
    at = _place(key, table)
    while table[at] >= 0:
        at = (at + 1) & (table.size - 1)
    table[at] = bucket
    return bucket


@njit(int64(int64, int64, I64S), cache=True, nogil=True, error_model="numpy")
def _take_chunk(size: int, arena: int, meta: np.ndarray) -> int:
    """A chunk of 8 << size slots, -1 when the arena is full. A free chunk keeps the next one's place in `meta`'s tail."""
    head = meta[CHUNKS + size]
    if head >= 0:
        return head
    top = meta[META_ARENA_TOP]
    if top + (8 << size) > arena:
        return -1
    meta[META_ARENA_TOP] = top + (8 << size)
    return top


@njit(int64(int64, BUCKETS, SLOTS, DRIVERS, I64S), cache=True, nogil=True, error_model="numpy")
def _make_room(bucket: int, buckets: np.ndarray, slots: np.ndarray, drivers: np.ndarray, meta: np.ndarray) -> int:
    own = buckets[bucket]
    size = own.size + 1
    reused = meta[CHUNKS + size] >= 0
    start = _take_chunk(size, slots.size, meta)
    if start < 0:
        return -1
    if reused:  # a free chunk's first slot links to the next free one
        meta[CHUNKS + size] = np.int64(slots[start].lat) - 1
    for offset in range(own.count):
        slots[start + offset] = slots[own.start + offset]
        drivers[slots[start + offset].driver].slot = start + offset
    if own.size >= 0:
        slots[own.start].lat = np.int32(meta[CHUNKS + own.size] + 1)
        meta[CHUNKS + own.size] = own.start
    own.start, own.size = start, size
    return 0


@njit(types.void(int64, int64, BUCKETS, SLOTS, DRIVERS), cache=True, nogil=True, error_model="numpy")
def _leave(slot: int, bucket: int, buckets: np.ndarray, slots: np.ndarray, drivers: np.ndarray) -> None:
    own = buckets[bucket]
    last = own.start + own.count - 1
    if slot != last:
        slots[slot] = slots[last]
        drivers[slots[slot].driver].slot = slot
    own.count -= 1


@njit(
    types.boolean(int32, int32, int32, int32, uint32, f64), cache=True, nogil=True, error_model="numpy", inline="always"
)
def _jumped(lat: int, lng: int, old_lat: int, old_lng: int, elapsed: int, bound_e7: float) -> bool:
    """Farther than a car drives; `bound_e7` is per clock tick, longitude is only judged by latitude's measure away from poles."""
    allowed = bound_e7 * (elapsed + 4)
    if abs(np.int64(lat) - old_lat) > allowed:
        return True
    across = abs(np.int64(lng) - old_lng)
    across = min(across, 3_600_000_000 - across)
    return across > allowed and across * math.cos(lat * RADIANS_E7) > allowed


@njit(
    int64(UPDATES, int64, uint32, f64, int64, DRIVERS, U32S, SLOTS, BUCKETS, I32S, I64S),
    cache=True,
    error_model="numpy",
    nogil=True,
)
def apply(  # noqa: PLR0915 - one loop, all of it hot
    updates: np.ndarray,
    first: int,
    now: int,
    jump_e7: float,
    level: int,
    drivers: np.ndarray,
    states: np.ndarray,
    slots: np.ndarray,
    buckets: np.ndarray,
    table: np.ndarray,
    meta: np.ndarray,
) -> int:
    """Apply updates from `first` on; returns how far it came: fewer than all means arena or buckets are full."""
    keys, lats, lngs = np.empty(BLOCK, np.int64), np.zeros(BLOCK, np.int32), np.zeros(BLOCK, np.int32)
    near = np.zeros(BLOCK, np.int64)
    at, warm = first, np.int64(0)
    while at < updates.size:
        end = min(at + BLOCK, updates.size)
        for n in range(end - at):
            lats[n], lngs[n] = updates[at + n].lat, updates[at + n].lng
        for n in range(BLOCK):
            keys[n] = key_of(lats[n], lngs[n], level)
        for n in range(at, end):
            wrong = abs(np.int64(lats[n - at])) > 900_000_000 or abs(np.int64(lngs[n - at])) > 1_800_000_000
            if wrong or updates[n].driver >= drivers.size:
                keys[n - at] = -1
            else:  # fetch what the stores below will need, all at once instead of one miss after the other
                near[n - at] = max(drivers[updates[n].driver].slot, 0)
        for n in range(end - at):
            warm += slots[near[n]].driver
        for n in range(at, end):
            key = keys[n - at]
            if key < 0:
                meta[META_WRONG] += 1
                continue
            update = updates[n]
            number = update.driver
            driver = drivers[number]
            slot = driver.slot
            if slot >= 0:
                if np.int32(update.sequence - driver.sequence) <= 0:
                    meta[META_LATE] += 1
                    continue
                own = slots[slot]
                if own.state & SUSPECT == 0:
                    if _jumped(update.lat, update.lng, own.lat, own.lng, now - driver.seen, jump_e7):
                        own.state |= SUSPECT
                        meta[META_JUMPS] += 1
                        continue
                else:
                    own.state &= STATE_MASK
                if driver.key == key:
                    own.lat, own.lng = update.lat, update.lng
                    driver.sequence, driver.seen = update.sequence, now
                    continue
            elif states[number] == 0:
                meta[META_UNKNOWN] += 1
                continue
            bucket = find_bucket(key, table, buckets)
            if bucket < 0:
                if meta[META_BUCKETS] >= buckets.size:
                    return n
                bucket = _make_bucket(key, level, table, buckets, meta)
            if buckets[bucket].count == (0 if buckets[bucket].size < 0 else 8 << buckets[bucket].size):
                if _make_room(bucket, buckets, slots, drivers, meta) < 0:
                    return n
                slot = driver.slot
            if slot >= 0:
                _leave(slot, find_bucket(np.int64(driver.key), table, buckets), buckets, slots, drivers)
                meta[META_CROSSED] += 1
            else:
                meta[META_LIVE] += 1
            target = buckets[bucket].start + buckets[bucket].count
            buckets[bucket].count += 1
            slots[target].driver, slots[target].state = number, states[number]
            slots[target].lat, slots[target].lng = update.lat, update.lng
            driver.key, driver.slot = key, target
            driver.sequence, driver.seen = update.sequence, now
        at = end
        meta[META_WARM] = warm
    return at


@njit(types.boolean(int64, DRIVERS, SLOTS, BUCKETS, I32S, I64S), cache=True, nogil=True, error_model="numpy")
def remove(
    number: int, drivers: np.ndarray, slots: np.ndarray, buckets: np.ndarray, table: np.ndarray, meta: np.ndarray
) -> bool:
    """Take one driver out; False when it was not there."""
    driver = drivers[number]
    if driver.slot < 0:
        return False
    _leave(driver.slot, find_bucket(np.int64(driver.key), table, buckets), buckets, slots, drivers)
    driver.slot = -1
    meta[META_LIVE] -= 1
    return True


@njit(
    int64(int64, int64, uint32, uint32, DRIVERS, SLOTS, BUCKETS, I32S, I64S),
    cache=True,
    nogil=True,
    error_model="numpy",
)
def drop_stale(
    first: int,
    end: int,
    now: int,
    age: int,
    drivers: np.ndarray,
    slots: np.ndarray,
    buckets: np.ndarray,
    table: np.ndarray,
    meta: np.ndarray,
) -> int:
    """Take out drivers first..end not heard of for more than `age` ticks; how many."""
    dropped = 0
    for number in range(first, min(end, drivers.size)):
        if drivers[number].slot >= 0 and np.uint32(now - drivers[number].seen) > age:
            remove(number, drivers, slots, buckets, table, meta)
            dropped += 1
    return dropped


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


if __name__ == "__main__":
    from fourplane.dispatch import compiled

    compiled.compile_all()

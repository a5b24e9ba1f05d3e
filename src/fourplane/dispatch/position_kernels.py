"""Positions into the index, compiled: most of them without computing a cell.

A driver remembers how far it may go before it can leave its cell (`room`, in the upper bits of its slot's state). A
position within that room, newer than the last and no leap, is two stores; nineteen of twenty positions of a driving car are.
The others wait in a short queue until sixty-four are together, whose cells are then computed in vector code (arithmetic
without a branch) before each is judged and placed as a lone one would be. While a driver waits there its room is zero, so
its later positions queue behind: the order of a driver's positions is kept.

`room` is a lower bound of the distance to the cell's nearest side: at any place of the sphere a strip of the cell
between two values of s (or t) is at least MIN_WIDTH times their difference wide, and two places 1e-7 degrees apart are
at most that far apart. Moving uses it up; coming to zero makes the next position compute its cell and a new room.

Blocks of 64: first the drivers' records are read, then their slots, all at once instead of one miss after the other.
Cost per core: 35-60 ns a position, 110 ns where a cell is computed. The chunks that slots of one cell lie in are made here
as well: a full cell moves to a chunk of twice the size, left chunks wait in a list per size, the last slot fills a hole.
"""

# mypy: allow-untyped-decorators, allow-untyped-calls, no-warn-return-any, no-disallow-any-unimported
# mypy: disable-error-code="return-value,arg-type,valid-type"
# (numba types these by signature: machine integers, not int)

import math

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import float64 as f64
from numba import int32, int64, njit, types, uint32
from numba.core import cgutils
from numba.extending import intrinsic

from fourplane.dispatch.index_layout import (
    CHUNKS,
    META_ARENA_TOP,
    META_BUCKETS,
    META_CROSSED,
    META_FOREIGN,
    META_JUMPS,
    META_LATE,
    META_LIVE,
    META_UNKNOWN,
    META_WAITING,
    META_WRONG,
    ROOM_SHIFT,
    WORD_MASK,
)
from fourplane.dispatch.kernels import (
    BUCKETS,
    DRIVERS,
    I32S,
    I64S,
    MIN_WIDTH,
    RADIANS_E7,
    SLOTS,
    U32S,
    UPDATES,
    face_xyz,
    find_bucket,
    flat,
    key_and_room,
    place_of,
)

BLOCK = 64
QUEUE = 2 * BLOCK
LAT_MAX, LNG_MAX = 900_000_000, 1_800_000_000
SUSPECT = np.uint32(1 << 31)
WORD = np.uint32(WORD_MASK)
SUSPECT_AND_WORD = np.uint32(1 << 31 | WORD_MASK)


@intrinsic
def _fetch(_context, records, place):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, ARG001 - numba's own form
    """Ask for the cache line of records[place] before it is needed."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        at = cgutils.get_item_pointer(context, builder, signature.args[0], array, [arguments[1]], wraparound=False)
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        call = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        for_writing, keep, data = (ir.Constant(word, number) for number in (1, 3, 1))
        builder.call(call, [builder.bitcast(at, byte), for_writing, keep, data])
        return context.get_dummy_value()

    return types.void(records, types.int64), generate


@njit(int64(int64, int64, I32S, BUCKETS, I64S), cache=True, nogil=True, error_model="numpy")
def _make_bucket(key: int, level: int, table: np.ndarray, buckets: np.ndarray, meta: np.ndarray) -> int:
    bucket = meta[META_BUCKETS]
    meta[META_BUCKETS] = bucket + 1
    face, side = key >> (2 * level), 1 << level
    i, j = (key >> level) & (side - 1), key & (side - 1)
    x, y, z = face_xyz(face, flat((i + 0.5) / side), flat((j + 0.5) / side))
    farthest = 0.0
    for corner in range(4):
        a, b, c = face_xyz(face, flat((i + (corner & 1)) / side), flat((j + (corner >> 1)) / side))
        farthest = max(farthest, math.sqrt((a - x) ** 2 + (b - y) ** 2 + (c - z) ** 2))
    own = buckets[bucket]
    own.key, own.start, own.count, own.size = key, 0, 0, -1
    own.x, own.y, own.z = x, y, z
    own.radius = 2 * math.asin(farthest / 2) * (1 + 1e-9) + 1e-9
    at = place_of(key, table)
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
    int64(UPDATES, int64, int64, uint32, f64, int64, DRIVERS, U32S, SLOTS, BUCKETS, I32S, I64S, I64S),
    cache=True,
    nogil=True,
    error_model="numpy",
)
def _settle(
    updates: np.ndarray, first: int, end: int, now: int, jump_e7: float, level: int,
    drivers: np.ndarray, states: np.ndarray, slots: np.ndarray, buckets: np.ndarray, table: np.ndarray,
    meta: np.ndarray, queue: np.ndarray,
) -> int:  # fmt: skip
    """Judge and place what waits at queue[first:end], at most a block; how far it came: short of `end` the places are full."""
    lats, lngs = np.zeros(BLOCK, np.int32), np.zeros(BLOCK, np.int32)
    keys, rooms = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int32)
    for n in range(end - first):
        lats[n], lngs[n] = updates[queue[first + n]].lat, updates[queue[first + n]].lng
    for n in range(BLOCK):
        keys[n], rooms[n] = key_and_room(lats[n], lngs[n], level)
    for n in range(first, end):
        update, key = updates[queue[n]], keys[n - first]
        number = update.driver
        driver = drivers[number]
        slot = driver.slot
        word = (states[number] & WORD) | np.uint32(rooms[n - first]) << np.uint32(ROOM_SHIFT)
        if slot >= 0:
            if np.int32(update.sequence - driver.sequence) <= 0:
                meta[META_LATE] += 1
                continue
            own = slots[slot]
            if own.state & SUSPECT == 0 and _jumped(
                update.lat, update.lng, own.lat, own.lng, np.uint32(now - driver.seen), jump_e7
            ):
                own.state |= SUSPECT
                meta[META_JUMPS] += 1
                continue
            if driver.key == key:
                own.lat, own.lng, own.state = update.lat, update.lng, word
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
        slots[target].driver, slots[target].state = number, word
        slots[target].lat, slots[target].lng = update.lat, update.lng
        driver.key, driver.slot = key, target
        driver.sequence, driver.seen = update.sequence, now
    return end


@njit(
    int64(UPDATES, int64, uint32, uint32, uint32, f64, int64, DRIVERS, U32S, SLOTS, BUCKETS, I32S, I64S, I64S),
    cache=True,
    error_model="numpy",
    nogil=True,
)
def apply(
    updates: np.ndarray, at: int, low: int, high: int, now: int, jump_e7: float, level: int,
    drivers: np.ndarray, states: np.ndarray, slots: np.ndarray, buckets: np.ndarray, table: np.ndarray,
    meta: np.ndarray, queue: np.ndarray,
) -> int:  # fmt: skip
    """Apply updates of drivers low..high from `at` on; how far it came: short of all (or with some waiting) places are full."""
    near = np.zeros(BLOCK, np.int64)
    size, waiting, leap = np.uint32(drivers.size), meta[META_WAITING], np.int64(jump_e7)
    while True:
        if waiting >= BLOCK or (at >= updates.size and waiting > 0):
            end = min(waiting, BLOCK)
            done = _settle(
                updates, 0, end, now, jump_e7, level, drivers, states, slots, buckets, table, meta, queue
            )  # fmt: skip
            for n in range(done, waiting):
                queue[n - done] = queue[n]
            waiting -= done
            meta[META_WAITING] = waiting
            if done < end:
                return at
            continue
        if at >= updates.size:
            return at
        end = min(at + BLOCK, updates.size)
        for n in range(at, end):
            number = updates[n].driver
            slot = drivers[number].slot if number < size else -1
            near[n - at] = slot
            _fetch(slots, max(slot, 0))
        for n in range(end, min(end + BLOCK, updates.size)):
            if updates[n].driver < size:
                _fetch(drivers, np.int64(updates[n].driver))
        for n in range(at, end):
            slot, update = near[n - at], updates[n]
            number = update.driver
            if number - low >= high - low:
                meta[META_FOREIGN] += 1
                continue
            if number >= size or abs(np.int64(update.lat)) > LAT_MAX or abs(np.int64(update.lng)) > LNG_MAX:
                meta[META_WRONG] += 1
                continue
            if slot >= 0:
                own, driver = slots[slot], drivers[number]
                room = np.int64(np.int32(own.state) >> ROOM_SHIFT)  # below zero while a leap waits to be confirmed
                if room > 0:
                    if np.int32(update.sequence - driver.sequence) <= 0:
                        meta[META_LATE] += 1
                        continue
                    moved = abs(np.int64(update.lat) - own.lat) + abs(np.int64(update.lng) - own.lng)
                    if moved < room and moved <= leap * (np.int64(np.uint32(now - driver.seen)) + 4):
                        own.lat, own.lng = update.lat, update.lng
                        own.state -= np.uint32(moved << ROOM_SHIFT)
                        driver.sequence, driver.seen = update.sequence, now
                        continue
                own.state &= SUSPECT_AND_WORD
            queue[waiting] = n
            waiting += 1
        at = end
        meta[META_WAITING] = waiting


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
    first: int, end: int, now: int, age: int,
    drivers: np.ndarray, slots: np.ndarray, buckets: np.ndarray, table: np.ndarray, meta: np.ndarray,
) -> int:  # fmt: skip
    """Take out drivers first..end not heard of for more than `age` ticks; how many."""
    dropped = 0
    for number in range(first, min(end, drivers.size)):
        if drivers[number].slot >= 0 and np.uint32(now - drivers[number].seen) > age:
            remove(number, drivers, slots, buckets, table, meta)
            dropped += 1
    return dropped


assert MIN_WIDTH < 0.9429, "room must be a lower bound"

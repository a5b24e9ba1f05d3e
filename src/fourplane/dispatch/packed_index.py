"""The driver index on compiled kernels: packed records, one cache line per access (see `kernels`)."""

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourplane.dispatch import cells
from fourplane.dispatch.driver_index import (
    DRIVERS_END,
    Counts,
    Drivers,
    IndexSettings,
    IndexStatistics,
    Metres,
    Snapshot,
    Updates,
    Words,
)
from fourplane.dispatch.index_layout import (
    BUCKET,
    CHUNKS,
    DRIVER,
    META_ARENA_TOP,
    META_BUCKETS,
    META_COUNT,
    META_CROSSED,
    META_FOREIGN,
    META_JUMPS,
    META_LATE,
    META_LIVE,
    META_UNKNOWN,
    META_WAITING,
    META_WRONG,
    SLOT,
    STATUS_MASK,
    WORD_MASK,
)
from fourplane.foundation.errors import Rejected

FIRST_DRIVERS, FIRST_CELLS = 1 << 12, 1 << 10
STALE_CHUNK = 250_000


class PackedIndex:
    """Ten million positions a second; grows by doubling, never shrinks."""

    def __init__(self, settings: IndexSettings, kernels: ModuleType, moves: ModuleType) -> None:
        self.settings = settings
        self._kernels, self._moves = kernels, moves
        first = min(FIRST_DRIVERS, settings.drivers_max)
        self._drivers = self._blank(first)
        self._states = np.zeros(first, np.uint32)
        self._slots = np.zeros(2 * first, SLOT)
        self._buckets = np.zeros(FIRST_CELLS, BUCKET)
        self._table = np.full(4 * FIRST_CELLS, -1, np.int32)
        self._meta = np.zeros(META_COUNT, np.int64)
        self._meta[CHUNKS:] = -1
        self._queue = np.zeros(moves.QUEUE, np.int64)
        self._stale_at = 0
        self._updates = self._stale = self._searches = 0

    def set_states(self, drivers: Drivers, states: Words) -> None:
        if len(drivers) == 0:
            return
        self._grow_drivers(int(drivers.max()) + 1)
        self._states[drivers] = states
        for number in drivers[states == 0]:
            self._moves.remove(int(number), self._drivers, self._slots, self._buckets, self._table, self._meta)
        slots = self._drivers["slot"][drivers]
        there = slots >= 0
        self._slots["state"][slots[there]] = states[there]

    def state_of(self, driver: int) -> int:
        return int(self._states[driver]) if driver < len(self._states) else 0

    def update(self, updates: Updates, now_tick: int, first: int = 0, end: int = DRIVERS_END) -> None:
        at, jump, level, meta = 0, self.settings.jump_e7, self.settings.level, self._meta
        self._updates += len(updates)
        while True:
            at = self._moves.apply(
                updates, at, first, end, now_tick, jump, level,
                self._drivers, self._states, self._slots, self._buckets, self._table, meta, self._queue,
            )  # fmt: skip
            if at == len(updates) and meta[META_WAITING] == 0:
                return
            self._grow_places()

    def nearest(
        self, lat: float, lng: float, *, radius_m: float, count: int, mask: int = STATUS_MASK, wanted: int = 1
    ) -> tuple[Drivers, Metres]:
        self._searches += 1
        found, angles = np.empty(count + 1, np.int64), np.empty(count, np.float64)
        many = self._kernels.nearest(
            round(lat * 1e7), round(lng * 1e7), radius_m / cells.EARTH_RADIUS_M, count, mask, wanted,
            self.settings.level, self._slots, self._buckets, self._table, self._meta, found, angles,
        )  # fmt: skip
        return found[:many].astype(np.uint32), angles[:many] * cells.EARTH_RADIUS_M

    def nearest_many(
        self, lats: Metres, lngs: Metres, *, radius_m: float, count: int, mask: int = STATUS_MASK, wanted: int = 1
    ) -> tuple[NDArray[np.int64], Metres, Counts]:
        points = len(lats)
        self._searches += points
        found = np.empty((points, count + 1), np.int64)
        angles = np.empty((points, count), np.float64)
        counts = np.empty(points, np.int64)
        self._kernels.nearest_many(
            np.round(lats * 1e7).astype(np.int32), np.round(lngs * 1e7).astype(np.int32),
            radius_m / cells.EARTH_RADIUS_M, mask, wanted, self.settings.level,
            self._slots, self._buckets, self._table, self._meta, found, angles, counts,
        )  # fmt: skip
        return found[:, :count], angles * cells.EARTH_RADIUS_M, counts

    def within(
        self, lat: float, lng: float, *, radius_m: float, mask: int = STATUS_MASK, wanted: int = 1
    ) -> tuple[Drivers, Metres]:
        self._searches += 1
        buckets = self._buckets[: self._meta[META_BUCKETS]]
        x, y, z = cells.xyz(np.array([lat]), np.array([lng]))
        chord = np.sqrt((buckets["x"] - x) ** 2 + (buckets["y"] - y) ** 2 + (buckets["z"] - z) ** 2)
        near = buckets[(chord <= radius_m / cells.EARTH_RADIUS_M + buckets["radius"]) & (buckets["count"] > 0)]
        if len(near) == 0:
            return np.empty(0, np.uint32), np.empty(0)
        slots = np.concatenate([self._slots[own["start"] : own["start"] + own["count"]] for own in near])
        slots = slots[slots["state"] & np.uint32(mask) == wanted]
        metres = cells.distances_m(lat, lng, slots["lat"] * 1e-7, slots["lng"] * 1e-7)
        inside = metres <= radius_m
        return slots["driver"][inside], metres[inside]

    def count_by_cell(self, *, mask: int = STATUS_MASK, wanted: int = 1) -> tuple[NDArray[np.uint64], Counts]:
        live = self._drivers["slot"] >= 0
        keys = self._drivers["key"][live & (self._states & np.uint32(mask) == wanted)].astype(np.int64)
        unique, counts = np.unique(keys, return_counts=True)
        level = self.settings.level
        up, side = cells.LEAF_LEVEL - level, (1 << level) - 1
        ids = cells.ids_of(unique >> (2 * level), (unique >> level & side) << up, (unique & side) << up, level)
        return ids, counts.astype(np.int64)

    def places(self, drivers: Drivers) -> tuple[Metres, Metres]:
        lats, lngs = np.empty(len(drivers)), np.empty(len(drivers))
        self._kernels.places(np.ascontiguousarray(drivers, np.uint32), self._drivers, self._slots, lats, lngs)
        return lats, lngs

    def columns(self) -> tuple[NDArray[Any], ...]:
        """Slots, drivers, cells, table and counts as `road_kernels.rank_many` takes them; valid until the next update."""
        self._searches += 1
        return self._slots, self._drivers, self._buckets, self._table, self._meta

    def snapshot(self) -> Snapshot:
        live = self._drivers["slot"]
        at = self._slots[live[live >= 0]]
        return Snapshot(at["driver"], at["lat"], at["lng"], at["state"] & np.uint32(WORD_MASK))

    def drop_stale(self, now_tick: int) -> int:
        end = self._stale_at + max(STALE_CHUNK, len(self._drivers) // 4)
        dropped: int = self._moves.drop_stale(
            self._stale_at, end, now_tick, self.settings.stale_ticks,
            self._drivers, self._slots, self._buckets, self._table, self._meta,
        )  # fmt: skip
        self._stale_at = end if end < len(self._drivers) else 0
        self._stale += dropped
        return dropped

    def statistics(self) -> IndexStatistics:
        meta = self._meta
        return IndexStatistics(
            engine="packed", live=int(meta[META_LIVE]), cells=int(meta[META_BUCKETS]), updates=self._updates,
            crossed=int(meta[META_CROSSED]), late=int(meta[META_LATE]), jumps=int(meta[META_JUMPS]),
            wrong=int(meta[META_WRONG]), unknown=int(meta[META_UNKNOWN]), foreign=int(meta[META_FOREIGN]),
            stale=self._stale, searches=self._searches,
        )  # fmt: skip

    def _blank(self, count: int) -> NDArray[np.void]:
        drivers = np.zeros(count, DRIVER)
        drivers["slot"] = -1
        return drivers

    def _grow_drivers(self, count: int) -> None:
        if count > self.settings.drivers_max:
            raise Rejected(f"driver {count - 1} is past drivers_max", code="bad_driver")
        have = len(self._drivers)
        if count <= have:
            return
        size = min(self.settings.drivers_max, max(count, 2 * have))
        self._drivers = np.concatenate([self._drivers, self._blank(size - have)])
        self._states = np.concatenate([self._states, np.zeros(size - have, np.uint32)])

    def _grow_places(self) -> None:
        """Double whichever is full: the cells, or the arena their drivers lie in."""
        if self._meta[META_BUCKETS] >= len(self._buckets):
            self._buckets = np.concatenate([self._buckets, np.zeros(len(self._buckets), BUCKET)])
            used = self._buckets["key"][: self._meta[META_BUCKETS]]
            self._table = np.full(4 * len(self._buckets), -1, np.int32)
            places = (used.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)).astype(np.int64)
            for bucket, place in enumerate(places & (len(self._table) - 1)):
                at = int(place)
                while self._table[at] >= 0:
                    at = (at + 1) & (len(self._table) - 1)
                self._table[at] = bucket
        else:
            assert self._meta[META_ARENA_TOP] <= len(self._slots)
            self._slots = np.concatenate([self._slots, np.zeros(len(self._slots), SLOT)])

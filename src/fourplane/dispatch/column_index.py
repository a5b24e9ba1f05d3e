"""The driver index on numpy alone: plain columns by driver number, cells sorted again when a search needs them.

The same answers as `packed_index`; about 2 million positions a second in batches of 1,024 and a sort per search that
follows an update, so it serves where numba is missing, its cache is cold, or the simulator wants nothing compiled.
"""

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
from fourplane.dispatch.index_layout import STATUS_MASK
from fourplane.foundation.errors import Rejected

FIRST_DRIVERS = 1 << 12


class ColumnIndex:
    """Columns: state, place, cell, last heard, sequence; `live` says who is on the map."""

    def __init__(self, settings: IndexSettings) -> None:
        self.settings = settings
        self._states = np.zeros(0, np.uint32)
        self._lat, self._lng = np.zeros(0, np.int32), np.zeros(0, np.int32)
        self._cell = np.zeros(0, np.uint64)
        self._seen, self._sequence = np.zeros(0, np.uint32), np.zeros(0, np.uint32)
        self._live, self._suspect = np.zeros(0, bool), np.zeros(0, bool)
        self._grow(min(FIRST_DRIVERS, settings.drivers_max))
        self._sorted: tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]] | None = None
        self._updates = self._late = self._jumps = self._wrong = self._unknown = 0
        self._crossed = self._stale = self._searches = self._foreign = 0

    def set_states(self, drivers: Drivers, states: Words) -> None:
        if len(drivers) == 0:
            return
        if int(drivers.max()) >= len(self._states):
            self._grow(int(drivers.max()) + 1)
        self._states[drivers] = states
        self._live[drivers[states == 0]] = False
        self._sorted = None

    def state_of(self, driver: int) -> int:
        return int(self._states[driver]) if driver < len(self._states) else 0

    def update(self, updates: Updates, now_tick: int, first: int = 0, end: int = DRIVERS_END) -> None:
        self._updates += len(updates)
        own = (updates["driver"] >= first) & (updates["driver"] < end)
        self._foreign += len(updates) - int(own.sum())
        updates = updates[own]
        lat, lng = updates["lat"].astype(np.int64), updates["lng"].astype(np.int64)
        good = (updates["driver"] < len(self._states)) & (abs(lat) <= 900_000_000) & (abs(lng) <= 1_800_000_000)
        self._wrong += len(updates) - int(good.sum())
        updates = updates[good]
        while len(updates):  # one driver may come twice in a batch; rounds keep its order
            _, heads = np.unique(updates["driver"], return_index=True)
            self._update_once(updates[np.sort(heads)], np.uint32(now_tick))
            rest = np.ones(len(updates), bool)
            rest[heads] = False
            updates = updates[rest]

    def _update_once(self, updates: Updates, now: np.uint32) -> None:
        who = updates["driver"]
        known = self._live[who] | (self._states[who] != 0)
        self._unknown += len(who) - int(known.sum())
        newer = (updates["sequence"] - self._sequence[who]).astype(np.int32) > 0
        late = known & self._live[who] & ~newer
        self._late += int(late.sum())
        taken = known & ~late
        leap = taken & self._live[who] & ~self._suspect[who] & self._jumped(updates, now)
        self._jumps += int(leap.sum())
        self._suspect[who[taken]] = leap[taken]
        updates = updates[taken & ~leap]
        who = updates["driver"]
        cell = cells.cell_ids(updates["lat"] * 1e-7, updates["lng"] * 1e-7, self.settings.level)
        self._crossed += int((self._live[who] & (self._cell[who] != cell)).sum())
        self._lat[who], self._lng[who], self._cell[who] = updates["lat"], updates["lng"], cell
        self._seen[who], self._sequence[who], self._live[who] = now, updates["sequence"], True
        self._sorted = None

    def _jumped(self, updates: Updates, now: np.uint32) -> NDArray[np.bool_]:
        who = updates["driver"]
        allowed = self.settings.jump_e7 * ((now - self._seen[who]).astype(np.float64) + 4)
        across = abs(updates["lng"].astype(np.int64) - self._lng[who])
        across = np.minimum(across, 3_600_000_000 - across) * np.cos(np.radians(updates["lat"] * 1e-7))
        up = abs(updates["lat"].astype(np.int64) - self._lat[who])
        return np.asarray((up > allowed) | (across > allowed))

    def nearest(
        self, lat: float, lng: float, *, radius_m: float, count: int, mask: int = STATUS_MASK, wanted: int = 1
    ) -> tuple[Drivers, Metres]:
        drivers, metres = self.within(lat, lng, radius_m=radius_m, mask=mask, wanted=wanted)
        order = np.lexsort((drivers, metres))[:count]
        return drivers[order], metres[order]

    def nearest_many(
        self, lats: Metres, lngs: Metres, *, radius_m: float, count: int, mask: int = STATUS_MASK, wanted: int = 1
    ) -> tuple[NDArray[np.int64], Metres, Counts]:
        found = np.zeros((len(lats), count), np.int64)
        metres, counts = np.zeros((len(lats), count)), np.zeros(len(lats), np.int64)
        for row, (lat, lng) in enumerate(zip(lats, lngs, strict=True)):
            drivers, away = self.nearest(
                float(lat), float(lng), radius_m=radius_m, count=count, mask=mask, wanted=wanted
            )
            counts[row] = len(drivers)
            found[row, : len(drivers)], metres[row, : len(drivers)] = drivers, away
        return found, metres, counts

    def within(
        self, lat: float, lng: float, *, radius_m: float, mask: int = STATUS_MASK, wanted: int = 1
    ) -> tuple[Drivers, Metres]:
        self._searches += 1
        unique, starts, order = self._by_cell()
        # A cell's corners lie within 1.6 mean widths of its middle at every level (quadratic projection).
        reach = radius_m + 1.6 * cells.EARTH_RADIUS_M * 2.0**-self.settings.level
        mid_lat, mid_lng = cells.centers(unique)
        near = np.flatnonzero(cells.distances_m(lat, lng, mid_lat, mid_lng) <= reach)
        if len(near) == 0:
            return np.empty(0, np.uint32), np.empty(0)
        drivers = np.concatenate([order[starts[cell] : starts[cell + 1]] for cell in near])
        drivers = drivers[self._states[drivers] & np.uint32(mask) == wanted]
        metres = cells.distances_m(lat, lng, self._lat[drivers] * 1e-7, self._lng[drivers] * 1e-7)
        inside = metres <= radius_m
        return drivers[inside].astype(np.uint32), metres[inside]

    def count_by_cell(self, *, mask: int = STATUS_MASK, wanted: int = 1) -> tuple[NDArray[np.uint64], Counts]:
        ids, counts = np.unique(self._cell[self._live & (self._states & np.uint32(mask) == wanted)], return_counts=True)
        return ids, counts.astype(np.int64)

    def places(self, drivers: Drivers) -> tuple[Metres, Metres]:
        inside = drivers < len(self._states)
        at = np.where(inside, drivers, 0)
        here = inside & self._live[at]
        return np.where(here, self._lat[at] * 1e-7, np.nan), np.where(here, self._lng[at] * 1e-7, np.nan)

    def snapshot(self) -> Snapshot:
        drivers = np.flatnonzero(self._live).astype(np.uint32)
        return Snapshot(drivers, self._lat[drivers], self._lng[drivers], self._states[drivers])

    def drop_stale(self, now_tick: int) -> int:
        gone = self._live & ((np.uint32(now_tick) - self._seen).astype(np.int64) > self.settings.stale_ticks)
        self._live[gone] = False
        self._sorted = None
        self._stale += int(gone.sum())
        return int(gone.sum())

    def statistics(self) -> IndexStatistics:
        return IndexStatistics(
            engine="columns", live=int(self._live.sum()), cells=len(np.unique(self._cell[self._live])),
            updates=self._updates, crossed=self._crossed, late=self._late, jumps=self._jumps, wrong=self._wrong,
            unknown=self._unknown, foreign=self._foreign, stale=self._stale, searches=self._searches,
        )  # fmt: skip

    def _by_cell(self) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
        """Occupied cells, where each one's drivers begin (one end more), and the drivers in that order."""
        if self._sorted is None:
            live = np.flatnonzero(self._live)
            order = live[np.argsort(self._cell[live], kind="stable")]
            unique, starts = np.unique(self._cell[order], return_index=True)
            self._sorted = unique, np.append(starts, len(order)), order
        return self._sorted

    def _grow(self, count: int) -> None:
        if count > self.settings.drivers_max:
            raise Rejected(f"driver {count - 1} is past drivers_max", code="bad_driver")
        more = min(self.settings.drivers_max, max(count, 2 * len(self._states))) - len(self._states)
        for name in ("_states", "_lat", "_lng", "_cell", "_seen", "_sequence", "_live", "_suspect"):
            column = getattr(self, name)
            setattr(self, name, np.concatenate([column, np.zeros(more, column.dtype)]))

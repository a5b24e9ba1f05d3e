"""Where every driver is now: updates in columns, exact nearest and radius searches by S2 cell.

One writer owns an index; updates come in batches, searches run between them, so nothing is locked. There are two
engines with the same answers: `packed_index` (numba, ten million updates a second) and `column_index` (numpy alone,
where numba is missing or its cache is cold). A driver is on the map from its first position after going online until it
goes offline or misses three periods; late and duplicate positions are ignored, a leap faster than a car is flagged
and believed only when the next position confirms it.
"""

from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from fourplane.dispatch import compiled
from fourplane.dispatch.cells import EARTH_RADIUS_M
from fourplane.dispatch.index_layout import LEVEL_MAX, STATUS_MASK, UPDATE
from fourplane.foundation import clock
from fourplane.foundation.errors import Misconfigured, Rejected

Drivers = NDArray[np.uint32]
Metres = NDArray[np.float64]
E7 = NDArray[np.int32]
Words = NDArray[np.uint32]
Counts = NDArray[np.int64]
Updates = NDArray[np.void]

TICKS_PER_S = 10
METRES_PER_E7 = EARTH_RADIUS_M * np.pi / 180 * 1e-7
DRIVERS_END = 0xFFFF_FFFF  # past every driver number


class IndexSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of one shard's index."""

    level: int = 13  # S2 level of the cells, 8 to 14: about 1 km wide at 13
    drivers_max: int = 4_000_000  # highest driver number + 1; memory grows as numbers are used
    period_s: float = 4.0  # how often a driver promises to report; 0.25 for the study's 4 Hz
    missed_periods_max: int = 3  # then it drops off the map
    speed_mps_max: float = 100.0  # a faster move is flagged
    engine: str = "auto"  # auto | packed | columns

    def __post_init__(self) -> None:
        if not 8 <= self.level <= LEVEL_MAX:
            raise Misconfigured(f"dispatch.index.level is {self.level}, allowed are 8 to {LEVEL_MAX}")
        if self.engine not in {"auto", "packed", "columns"}:
            raise Misconfigured(f"dispatch.index.engine is {self.engine!r}, allowed are auto, packed, columns")

    @property
    def stale_ticks(self) -> int:
        """A driver silent for longer than this many clock ticks is gone."""
        return round(self.period_s * self.missed_periods_max * TICKS_PER_S)

    @property
    def jump_e7(self) -> float:
        """The farthest plausible move per clock tick, in 1e-7 degrees."""
        return self.speed_mps_max / TICKS_PER_S / METRES_PER_E7


class IndexStatistics(msgspec.Struct, frozen=True):
    """Cumulative counts of one index."""

    engine: str
    live: int  # drivers on the map
    cells: int  # cells that ever held one
    updates: int  # positions taken, the refused ones included
    crossed: int  # moves into another cell
    late: int  # older than what was known, or the same again
    jumps: int  # leaps that were flagged
    wrong: int  # coordinates or driver numbers out of range
    unknown: int  # positions of drivers who are not online
    foreign: int  # of drivers for whom the sender does not speak
    stale: int  # dropped after missed periods
    searches: int


class Snapshot(msgspec.Struct, frozen=True):
    """All drivers on the map as columns."""

    drivers: Drivers
    lat: E7
    lng: E7
    states: Words


class DriverIndex(Protocol):
    """The promise both engines keep."""

    settings: IndexSettings

    def set_states(self, drivers: Drivers, states: Words) -> None:
        """Give drivers their state words; 0 takes them off the map. Rejects numbers past `drivers_max`."""

    def state_of(self, driver: int) -> int: ...

    def update(self, updates: Updates, now_tick: int, first: int = 0, end: int = DRIVERS_END) -> None:
        """Take positions (dtype UPDATE) of drivers first..end - 1 in order; nothing raises, what is refused is counted."""

    def nearest(
        self, lat: float, lng: float, *, radius_m: float, count: int, mask: int = STATUS_MASK, wanted: int = 1
    ) -> tuple[Drivers, Metres]:
        """The nearest drivers whose state & mask == wanted, nearest first."""

    def nearest_many(
        self, lats: Metres, lngs: Metres, *, radius_m: float, count: int, mask: int = STATUS_MASK, wanted: int = 1
    ) -> tuple[NDArray[np.int64], Metres, Counts]:
        """The same for many points: numbers and metres of shape (points, count), and how many of each row count."""

    def within(
        self, lat: float, lng: float, *, radius_m: float, mask: int = STATUS_MASK, wanted: int = 1
    ) -> tuple[Drivers, Metres]:
        """All such drivers within the radius, in no order."""

    def count_by_cell(self, *, mask: int = STATUS_MASK, wanted: int = 1) -> tuple[NDArray[np.uint64], Counts]:
        """S2 ids at the index's level and how many such drivers each holds; empty cells are left out."""

    def places(self, drivers: Drivers) -> tuple[Metres, Metres]:
        """Latitudes and longitudes in degrees, NaN for drivers who are not on the map."""

    def snapshot(self) -> Snapshot: ...
    def drop_stale(self, now_tick: int) -> int:
        """Take out who missed too many periods; call about once a second."""

    def statistics(self) -> IndexStatistics: ...


def open_index(settings: IndexSettings) -> DriverIndex:
    """An empty index on the fastest engine that is ready now."""
    if settings.engine != "columns":
        kernels, moves = compiled.load("kernels"), compiled.load("position_kernels")
        if kernels is not None and moves is not None:
            from fourplane.dispatch.packed_index import PackedIndex  # noqa: PLC0415 - only where numba is ready

            return PackedIndex(settings, kernels, moves)
        if settings.engine == "packed":
            raise Misconfigured(
                "dispatch.index.engine is packed, but the kernels are not compiled: run ./fourplane setup"
            )
    from fourplane.dispatch.column_index import ColumnIndex  # noqa: PLC0415 - only where it serves

    return ColumnIndex(settings)


def tick_now() -> int:
    """The index's clock: tenths of a second, modulo 2^32."""
    return int(clock.monotonic_s() * TICKS_PER_S) & 0xFFFFFFFF


def check_point(lat: float, lng: float) -> None:
    """Raise Rejected unless both are finite degrees in range; swapped ones are named where that is the likely slip."""
    if lat != lat or lng != lng:  # noqa: PLR0124 - NaN is the only value unequal to itself
        raise Rejected("a coordinate is not a number", code="bad_point")
    if abs(lat) <= 90 and abs(lng) <= 180:
        return
    if abs(lng) <= 90 and abs(lat) <= 180:
        raise Rejected(
            "latitude is outside -90..90; are latitude and longitude swapped?", code="bad_point", lat=lat, lng=lng
        )
    raise Rejected(
        "a coordinate is out of range: latitude -90..90, longitude -180..180", code="bad_point", lat=lat, lng=lng
    )


def to_e7(degrees: Metres) -> E7:
    """Degrees as the wire and the index hold them."""
    return np.round(np.asarray(degrees, np.float64) * 1e7).astype(np.int32)


def make_updates(drivers: Drivers, lats: Metres, lngs: Metres, sequences: Words) -> Updates:
    """A batch of positions from columns in degrees."""
    updates = np.empty(len(drivers), UPDATE)
    updates["driver"], updates["sequence"] = drivers, sequences
    updates["lat"], updates["lng"] = to_e7(lats), to_e7(lngs)
    return updates

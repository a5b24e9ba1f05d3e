"""Points become columns: one array of all series per step, rolled up into coarser steps, each kept for its time.

A counter's point is an increment and is added; a gauge's point is a value and the last one counts. The open step
takes points until it is closed; a closed step is one float32 array (an increment is exact to 16.7 million a step), NaN
where a gauge was not seen. When enough steps of a tier are closed, they become one step of the next: counters
are summed, gauges keep their last value.

Cost: adding is about 10 ns a point; a closed step is 4 bytes a series. With the default tiers a series takes 9 kB
after a week. A point belongs to the step in which it arrives: no clock but ours decides.
"""

from collections import deque
from collections.abc import Callable, Iterable

import msgspec
import numpy as np
from numpy.typing import NDArray

from fourplane.control.metrics.series import GROWTH_MIN, Ids, SeriesTable

Values = NDArray[np.float64]
Column = NDArray[np.float32]


class TierSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Steps of `step_s` seconds, the last `steps` of them; `stored`: written to the blobs."""

    step_s: int
    steps: int
    stored: bool = True


TIERS = (
    TierSettings(1, 180, stored=False),
    TierSettings(10, 360),
    TierSettings(60, 720),
    TierSettings(600, 1_008),
)


class Step(msgspec.Struct, frozen=True, gc=False):
    """One closed step: it began at `at` (seconds since 1970)."""

    at: int
    values: Column


class Tier:
    """The closed steps of one width, the oldest first."""

    def __init__(self, settings: TierSettings) -> None:
        self.step_s = settings.step_s
        self.stored = settings.stored
        self.steps: deque[Step] = deque(maxlen=settings.steps)
        self.folded_to = 0  # steps before this moment are part of the next tier

    def between(self, begin_s: float, end_s: float) -> list[Step]:
        """The steps that began in this time."""
        return [step for step in self.steps if begin_s <= step.at < end_s]


class Windows:
    """The open step and the tiers. `closed` is told of every step that is to be stored."""

    def __init__(
        self,
        table: SeriesTable,
        tiers: Iterable[TierSettings] = TIERS,
        *,
        closed: Callable[[Tier, Step], None] | None = None,
    ) -> None:
        self.table = table
        self.tiers = [Tier(settings) for settings in tiers]
        self.points = 0
        self.dropped = 0  # points of series that nobody has defined
        self._closed = closed
        self._added = np.zeros(GROWTH_MIN, dtype=np.float64)
        self._seen = np.full(GROWTH_MIN, np.nan, dtype=np.float64)
        self._open_at = 0

    def add(self, ids: Ids, values: Values) -> None:
        """Count increments; an id may come several times. Cost: about 10 ns a point."""
        ids, values = self._known(ids, values)
        np.add.at(self._added, ids, values)

    def set(self, ids: Ids, values: Values) -> None:
        """Take values of gauges; of several points of a series the last counts."""
        ids, values = self._known(ids, values)
        self._seen[ids] = values

    def advance(self, now_s: float) -> None:
        """Close every step that ended before `now_s`."""
        finest = self.tiers[0]
        at = int(now_s) // finest.step_s * finest.step_s
        if self._open_at == 0 or at < self._open_at:  # the first call, or the clock was set back
            self._open_at = at
        if at == self._open_at:
            return
        self._append(0, Step(self._open_at, self._taken()))
        self._open_at = at

    def restore(self, step_s: int, step: Step) -> None:
        """Put back a step that was stored; the oldest first, before the first `advance`."""
        for tier in self.tiers:
            if tier.step_s == step_s:
                tier.steps.append(step)
                tier.folded_to = step.at + step_s

    def finest_for(self, begin_s: float, width_s: float) -> Tier:
        """The tier with the finest steps that still knows `begin_s` and is no coarser than needed; else the longest."""
        usable = [tier for tier in self.tiers if tier.step_s <= max(width_s, self.tiers[0].step_s)]
        for tier in usable or self.tiers[:1]:
            if tier.steps and tier.steps[0].at <= begin_s:
                return tier
        reaching = [tier for tier in self.tiers if tier.steps]
        return min(reaching, key=lambda tier: (tier.steps[0].at, tier.step_s)) if reaching else self.tiers[0]

    def _taken(self) -> Column:
        """The open step as a closed one; the next begins."""
        count = len(self.table)
        self._fit(count)
        counters = self.table.is_counter[:count]
        taken: Column = np.where(counters, self._added[:count], self._seen[:count]).astype(np.float32)
        self._added[:count] = 0.0
        self._seen[:count] = np.nan
        return taken

    def _append(self, level: int, step: Step) -> None:
        tier = self.tiers[level]
        tier.steps.append(step)
        if self._closed is not None and tier.stored:
            self._closed(tier, step)
        if level + 1 == len(self.tiers):
            return
        wider = self.tiers[level + 1]
        ends = step.at + tier.step_s
        whole = ends // wider.step_s * wider.step_s
        if whole <= tier.folded_to:
            return
        part = [one for one in tier.steps if whole - wider.step_s <= one.at < whole]
        tier.folded_to = whole
        if part:
            self._append(level + 1, Step(whole - wider.step_s, self._folded([one.values for one in part])))

    def _folded(self, columns: list[Column]) -> Column:
        count = max(len(column) for column in columns)
        counters = self.table.is_counter[:count]
        total = np.zeros(count, dtype=np.float64)
        last = np.full(count, np.nan, dtype=np.float32)
        for column in columns:
            width = len(column)
            total[:width] += np.where(counters[:width], column, 0.0)
            np.copyto(last[:width], column, where=~np.isnan(column))
        folded: Column = np.where(counters, total, last).astype(np.float32)
        return folded

    def _known(self, ids: Ids, values: Values) -> tuple[Ids, Values]:
        count = len(self.table)
        self._fit(count)
        self.points += len(ids)
        if len(ids) and int(ids.max()) >= count:
            known = ids < count
            self.dropped += len(ids) - int(known.sum())
            ids, values = ids[known], values[known]
        return ids, values

    def _fit(self, count: int) -> None:
        if count <= len(self._added):
            return
        capacity = len(self._added)
        while capacity < count:
            capacity *= 2
        more = capacity - len(self._added)
        self._added = np.concatenate([self._added, np.zeros(more)])
        self._seen = np.concatenate([self._seen, np.full(more, np.nan)])

"""How much of each priority class to let in while the loop has more to do than it can.

The signal is the age of what stands in line to be begun (`admission`), whatever requests cost and wait for: a long stream or
an idle WebSocket adds nothing to it. It is told in CPU time of this process, because a machine that is busy with something
else is slow but not full of our work. While that age is above its target the
rate of admission is what was really finished in the last window, less a part that lets the queue melt; while it is below,
the rate grows by a few per cent. The rate is dealt out by class: the highest first, the class where it ends gets a share, the
rest nothing; the highest class pays for a queue only when it alone is more than everything. So nothing is configured: not a
rate, not a concurrency, not a latency of any route.

Pure: spans, delays and counts are arguments. Sources: Zhou et al., "Overload Control for Scaling WeChat Microservices" (DAGOR,
2018) for queueing time and class arithmetic; Uber's Cinnamon (2023) for throughput as the target. Cost: 4 us a window.
"""

from collections.abc import Sequence

import msgspec

from fourplane.edge.routes import Priority

CLASSES = len(Priority)
OPEN = (1.0,) * CLASSES
FIRST = (1.0, 0.5, 0.0, 0.0)  # until the mix of classes is known


class OverloadSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The target and how fast to move."""

    target_s: float = 0.25
    window_s: float = 0.05
    busy_min: int = 8  # requests under way below which a line is no overload
    melt: float = 0.9  # of what was finished, while the queue is a little too long
    melt_most: float = 0.4  # while it is very long
    grow: float = 1.04  # per window, while it is short
    calm_windows: int = 20  # without a refusal before nobody looks any more


class Overload:
    """The shares of the classes, moved once a window."""

    __slots__ = ("_arrivals", "_calm", "_settings", "capacity", "delay_s", "rate", "shares", "watching")

    def __init__(self, settings: OverloadSettings | None = None) -> None:
        self._settings = settings or OverloadSettings()
        self._arrivals = [0.0] * CLASSES
        self._calm = 0
        self.rate = 0.0
        self.capacity = 0.0  # requests finished per second while there was always one more
        self.delay_s = 0.0
        self.shares: tuple[float, ...] = OPEN
        self.watching = False  # whether arrivals have to be counted by class

    def observe(self, span_s: float, delay_s: float, *, arrived: Sequence[int], finished: int, busy: int) -> None:
        """One window: how long it was, the age of the line, arrivals by class (while `watching`), requests finished,
        and how many are under way now.
        """
        settings = self._settings
        self.delay_s += (delay_s - self.delay_s) * 0.5
        late = delay_s > settings.target_s and busy >= settings.busy_min
        if not self.watching:
            if late:
                self._begin(finished / span_s, severe=delay_s > 3 * settings.target_s)
            return
        total = 0.0
        for number, count in enumerate(arrived):
            self._arrivals[number] += (count / span_s - self._arrivals[number]) * 0.5
            total += self._arrivals[number]
        if late:
            done = finished / span_s
            self.capacity += (done - self.capacity) * 0.3
            times = delay_s / settings.target_s
            self.rate = done * max(settings.melt_most, 1.0 - (1.0 - settings.melt) * (times - 1.0))
        else:
            self.rate = min(max(self.rate * settings.grow, 1.0 / settings.window_s), 1.5 * total + 10.0)
        self.shares = self._deal()
        self._calm = self._calm + 1 if self.shares == OPEN and not late else 0
        if self._calm >= settings.calm_windows:
            self.watching = False

    def _begin(self, rate: float, *, severe: bool) -> None:
        self.watching = True
        self._calm = 0
        self.rate = self.capacity = rate
        self._arrivals = [0.0] * CLASSES
        self.shares = FIRST if severe else OPEN

    def _deal(self) -> tuple[float, ...]:
        """The rate over the classes, the highest first; that one may take the whole capacity, also while a queue melts."""
        left = self.rate
        highest = self._arrivals[0]
        bound = max(left, self.capacity)
        shares = [1.0 if highest <= bound else bound / highest]
        left = max(0.0, left - highest)
        for arrival in self._arrivals[1:]:
            share = 1.0 if arrival <= left else left / arrival
            shares.append(share)
            left = max(0.0, left - arrival)
        return tuple(shares)

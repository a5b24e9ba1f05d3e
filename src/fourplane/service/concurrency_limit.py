"""How many calls may be under way at once, found by watching their latency instead of by configuration.

`Gradient2` compares the short-term latency with a long-term average: while they agree the limit grows by a queue of
sqrt(limit); when calls slow down it shrinks by their ratio, never below half in one step, smoothed. It does not grow
while less than half of it is used. `Aimd` is simpler: one more per limit of successes, `backoff` times on a timeout or drop.
Pure: latencies are arguments. Source: Netflix/concurrency-limits (Gradient2Limit, AIMDLimit). Cost: 0.3 us a sample.
"""

from math import sqrt
from typing import Protocol

import msgspec


class LimitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    initial: int = 50
    at_least: int = 4
    at_most: int = 1_000
    smoothing: float = 0.2
    tolerance: float = 1.5
    long_window: int = 600
    backoff: float = 0.9
    timeout_s: float = 5.0


class Limit(Protocol):
    """An algorithm: a sample in, a limit out."""

    @property
    def value(self) -> int: ...
    def sample(self, latency_s: float, in_flight: int, *, dropped: bool = False) -> None:
        """One call ended after `latency_s` with `in_flight` calls under way when it began."""


class Gradient2:
    """Limit by the gradient of latency."""

    __slots__ = ("_count", "_limit", "_long_s", "_settings", "value")

    def __init__(self, settings: LimitSettings | None = None) -> None:
        self._settings = settings or LimitSettings()
        self._limit = float(self._settings.initial)
        self._long_s = 0.0
        self._count = 0
        self.value = self._settings.initial

    def sample(self, latency_s: float, in_flight: int, *, dropped: bool = False) -> None:
        """See Limit; a dropped call counts as one of twice the tolerated latency."""
        chosen = self._settings
        if dropped:
            latency_s = max(latency_s, self._long_s * chosen.tolerance * 2)
        self._count = min(self._count + 1, chosen.long_window)
        self._long_s += (latency_s - self._long_s) / self._count
        if self._long_s > latency_s * 2:  # recovering from an overload: forget it faster
            self._long_s *= 0.95
        limit = self._limit
        if in_flight < limit / 2 and not dropped:
            return
        gradient = chosen.tolerance * self._long_s / latency_s if latency_s > 0 else 1.0
        gradient = 1.0 if gradient > 1.0 else max(gradient, 0.5)
        wanted = limit * gradient + sqrt(limit)
        limit += (wanted - limit) * chosen.smoothing
        self._limit = min(max(limit, float(chosen.at_least)), float(chosen.at_most))
        self.value = int(self._limit)


class Aimd:
    """Additive increase, multiplicative decrease."""

    __slots__ = ("_limit", "_settings", "value")

    def __init__(self, settings: LimitSettings | None = None) -> None:
        self._settings = settings or LimitSettings()
        self._limit = float(self._settings.initial)
        self.value = self._settings.initial

    def sample(self, latency_s: float, in_flight: int, *, dropped: bool = False) -> None:
        """See Limit."""
        chosen = self._settings
        if dropped or latency_s > chosen.timeout_s:
            self._limit = max(self._limit * chosen.backoff, float(chosen.at_least))
        elif in_flight * 2 >= self._limit:
            self._limit = min(self._limit + 1.0 / self._limit, float(chosen.at_most))
        self.value = int(self._limit)

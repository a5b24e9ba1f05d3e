"""How often something may be restarted before its keeper gives up.

`count_max` restarts within any `period_s` seconds; one more and the trouble is not local: escalate. Source: OTP's
MaxR and MaxT. Pure, and shared by supervisors of actors and the parent of worker processes.
"""

from collections import deque

import msgspec


class IntensitySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    count_max: int = 5
    period_s: float = 10.0


class RestartIntensity:
    """The restarts of the last period."""

    __slots__ = ("_at", "_settings", "total")

    def __init__(self, settings: IntensitySettings | None = None) -> None:
        self._settings = settings or IntensitySettings()
        self._at: deque[float] = deque()
        self.total = 0

    def allow(self, now: float) -> bool:
        """Count one restart at `now`; False when it is one too many."""
        at = self._at
        while at and at[0] <= now - self._settings.period_s:
            at.popleft()
        if len(at) >= self._settings.count_max:
            return False
        at.append(now)
        self.total += 1
        return True

    def wait_s(self, now: float) -> float:
        """Seconds until one more restart would be allowed."""
        if len(self._at) < self._settings.count_max:
            return 0.0
        return max(0.0, self._at[0] + self._settings.period_s - now)

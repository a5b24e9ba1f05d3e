"""Who is let in when there is too much to do, decided in the protocol before headers become objects.

Every request has a priority class. Each class may use a share of the work the server takes at one time: the lowest class
is turned away first, the highest last. The limit is a number that somebody else may move (an adaptive limiter, an
operator's knob), the decision is one comparison. A rejection is one prebuilt 503 with Retry-After.
Invariant: `in_flight` equals the exchanges begun and not finished.
"""

from collections.abc import Callable

import msgspec

from fourplane.edge.http_answers import error_answer, seconds_text
from fourplane.edge.routes import Priority

TARGETS_MAX = 4_096
SHARES = (1.0, 0.9, 0.75, 0.5)  # of the limit, by Priority


class AdmissionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much work at one time, and what the refused are told."""

    in_flight_max: int = 2_000
    retry_after_s: float = 1.0


class AdmissionStatistics(msgspec.Struct, frozen=True):
    """What the admission did so far."""

    in_flight: int
    limit: int
    admitted: int
    shed: tuple[int, ...]  # by Priority


Classify = Callable[[bytes, bytes], Priority]


class Admission:
    """The bound of one server and its classes."""

    __slots__ = (
        "_admitted",
        "_closed_from",
        "_known",
        "_shed",
        "_thresholds",
        "classify",
        "in_flight",
        "limit",
        "rejection",
        "rejection_and_close",
        "shed_at",
    )

    def __init__(self, settings: AdmissionSettings, classify: Classify | None = None) -> None:
        self.classify: Classify = classify if classify is not None else _everyone_alike
        self.in_flight = 0
        self._admitted = 0
        self._known: dict[bytes, Priority] = {}
        self._shed = [0] * len(Priority)
        self._closed_from = len(Priority)
        self.shed_at = 0
        retry = {"retry-after": seconds_text(settings.retry_after_s)}
        text = "too much to do at the moment; try again soon"
        self.rejection = error_answer(503, "overloaded", text, close=False, headers=retry, dated=False)
        self.rejection_and_close = error_answer(503, "overloaded", text, close=True, headers=retry, dated=False)
        self.set_limit(settings.in_flight_max)

    def set_limit(self, limit: int) -> None:
        """Take at most `limit` requests at one time from now on; at least one for the highest class."""
        self.limit = max(1, limit)
        self._thresholds = [max(1, int(self.limit * share)) for share in SHARES]
        self._look()

    def close_from(self, priority: Priority | None) -> None:
        """Turn away this class and every lower one, whatever the load; None opens all again."""
        self._closed_from = len(Priority) if priority is None else int(priority)
        self._look()

    def admits(self, priority: Priority) -> bool:
        """Whether one more of this class may come in now; counts a refusal."""
        if self.in_flight < self._thresholds[priority] and priority < self._closed_from:
            return True
        self._shed[priority] += 1
        return False

    def admits_get(self, target: bytes) -> bool:
        """The same for a GET of this target; classes of targets seen lately are remembered."""
        priority = self._known.get(target)
        if priority is None:
            priority = self.classify(b"GET", target.partition(b"?")[0])
            if len(self._known) >= TARGETS_MAX:
                self._known.clear()
            self._known[target] = priority
        if self.in_flight < self._thresholds[priority] and priority < self._closed_from:
            return True
        self._shed[priority] += 1
        return False

    def entered(self) -> None:
        """An admitted request begins."""
        self._admitted += 1
        self.in_flight += 1

    def left(self) -> None:
        """A request is through."""
        self.in_flight -= 1
        assert self.in_flight >= 0

    @property
    def shedding(self) -> bool:
        """Whether some class is turned away at the moment."""
        return self.in_flight >= self.shed_at

    def statistics(self) -> AdmissionStatistics:
        return AdmissionStatistics(self.in_flight, self.limit, self._admitted, tuple(self._shed))

    def _look(self) -> None:
        self.shed_at = 0 if self._closed_from < len(Priority) else self._thresholds[-1]


def _everyone_alike(_method: bytes, _path: bytes) -> Priority:
    return Priority.USER

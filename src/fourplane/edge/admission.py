"""Who is let in when there is too much to do, decided in the protocol before headers become objects.

Every request has a priority class. Three things turn one away, the lowest class first: the loop has more to do than it can
(`overload` says which share of each class comes in), more is under way than the bound on memory allows, an operator closed its
class. While none of them is near, a request costs one comparison; while one is, a plain GET or a small whole POST is turned
away by its first line, with one prebuilt 503 and Retry-After, before anything of it becomes an object.

A timer looks at the loop while requests are under way: the CPU time that passed beyond its interval is how long ready work waits.
What waited past `age_s_max` before its handler began is turned away too (`stale`), the highest class excepted: its answer
would come when nobody waits any more.
Invariant: `in_flight` equals the exchanges begun and not finished.
"""

import asyncio
import re
from collections.abc import Callable

import msgspec

from fourplane.edge.http_answers import error_answer, seconds_text
from fourplane.edge.overload import OPEN, Overload, OverloadSettings
from fourplane.edge.routes import Priority
from fourplane.foundation import clock

TARGETS_MAX = 4_096
SHARES = (1.0, 0.9, 0.75, 0.5)  # of the limit, by Priority
PROBE_S = 0.004
_FIRST_LINE = re.compile(rb"(POST|PUT|PATCH|DELETE) (/[!\"$-~]*+) HTTP/1\.1\r\n")
_LENGTH = re.compile(rb"\ncontent-length:[ \t]*([0-9]{1,7})[ \t]*\r")
_UNUSUAL = re.compile(
    rb"transfer-encoding|\nexpect|\nupgrade|\nconnection:(?![ \t]*keep-alive\r)|[^\r]\n|\r[^\n]|\n[ \t]"
)


class AdmissionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much work at one time, and what the refused are told."""

    in_flight_max: int = 2_000
    retry_after_s: float = 1.0
    age_s_max: float = 0.5
    adaptive: bool = True
    overload: OverloadSettings = OverloadSettings()


class AdmissionStatistics(msgspec.Struct, frozen=True):
    """What the admission did so far."""

    in_flight: int
    limit: int
    admitted: int
    shed: tuple[int, ...]  # by Priority
    shares: tuple[float, ...] = OPEN  # of each class that is let in now
    delay_s: float = 0.0  # how long ready work waits
    rate: float = 0.0  # requests per second let in while shedding
    stale: int = 0  # turned away after they had waited too long


Classify = Callable[[bytes, bytes], Priority]


class Admission:
    """The bound of one server and its classes."""

    __slots__ = (
        "_admitted",
        "_arrived",
        "_busy_min",
        "_closed_from",
        "_credit",
        "_decided",
        "_delay",
        "_due_cpu_s",
        "_finished",
        "_known",
        "_loop",
        "_probes",
        "_probing",
        "_settings",
        "_shares",
        "_shed",
        "_stale",
        "_thresholds",
        "_window_from",
        "classify",
        "in_flight",
        "limit",
        "overload",
        "rejection",
        "rejection_and_close",
        "shed_at",
        "stale_answer",
    )

    def __init__(self, settings: AdmissionSettings, classify: Classify | None = None) -> None:
        self.classify: Classify = classify if classify is not None else _everyone_alike
        self.in_flight = 0
        self.overload = Overload(settings.overload)
        self._settings = settings
        self._shares = OPEN
        self._credit = [0.0] * len(Priority)
        self._arrived = [0] * len(Priority)
        self._finished = self._probes = self._stale = 0
        self._delay = self._due_cpu_s = self._window_from = 0.0
        self._decided = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._busy_min = 1 << 62
        self._probing: asyncio.TimerHandle | None = None
        self._admitted = 0
        self._known: dict[bytes, Priority] = {}
        self._shed = [0] * len(Priority)
        self._closed_from = len(Priority)
        self.shed_at = 0
        retry = {"retry-after": seconds_text(settings.retry_after_s)}
        text = "too much to do at the moment; try again soon"
        self.rejection = error_answer(503, "overloaded", text, close=False, headers=retry, dated=False)
        self.rejection_and_close = error_answer(503, "overloaded", text, close=True, headers=retry, dated=False)
        lines, _, body = error_answer(
            503,
            "overloaded",
            "this waited too long to be begun; try again soon",
            close=False,
            headers=retry,
            dated=False,
        ).partition(b"\r\n\r\n")
        kept = [line + b"\r\n" for line in lines.split(b"\r\n") if not line.startswith(b"content-length:")]
        self.stale_answer = (b"".join(kept), body)
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
        """Whether one more of this class may come in now; counts a refusal. True when `admits_get` has just let it in."""
        if self._decided:
            self._decided = False
            return True
        self._arrived[priority] += 1
        if self.in_flight < self._thresholds[priority] and priority < self._closed_from:
            share = self._shares[priority]
            if share >= 1.0:
                return True
            credit = self._credit[priority] = self._credit[priority] + share
            if credit >= 1.0:
                self._credit[priority] = credit - 1.0
                return True
        self._shed[priority] += 1
        return False

    def admits_get(self, target: bytes) -> bool:
        """The same for a GET of this target; classes of targets seen lately are remembered."""
        self._decided = False
        priority = self._known.get(target)
        if priority is None:
            priority = self.classify(b"GET", target.partition(b"?")[0])
            if len(self._known) >= TARGETS_MAX:
                self._known.clear()
            self._known[target] = priority
        self._decided = self.admits(priority)
        return self._decided

    def admits_whole(self, data: bytes) -> bool:
        """The same for a small request with a body that lies here whole; True for everything that deserves a closer look."""
        self._decided = False
        line = _FIRST_LINE.match(data)
        end = data.find(b"\r\n\r\n")
        if line is None or end < 0:
            return True
        head = data[: end + 2].lower()
        length = _LENGTH.findall(head)
        if (
            len(length) != 1
            or int(length[0]) != len(data) - end - 4
            or head.count(b"\nhost:") != 1
            or _UNUSUAL.search(head)
        ):
            return True
        self._decided = self.admits(self.classify(line[1], line[2].partition(b"?")[0]))
        return self._decided

    def is_stale(self, since_s: float, method: bytes, path: bytes) -> bool:
        """Whether a request that came then has waited too long for its handler to begin; counts it."""
        if clock.monotonic_s() - since_s < self._settings.age_s_max:
            return False
        if self.classify(method, path) is Priority.CRITICAL:
            return False
        self._stale += 1
        return True

    def entered(self) -> None:
        """An admitted request begins."""
        self._admitted += 1
        self.in_flight += 1
        if self._probing is None and self.in_flight >= self._busy_min:
            self._window_from = clock.monotonic_s()
            self._look_again()

    def left(self) -> None:
        """A request is through."""
        self.in_flight -= 1
        self._finished += 1
        assert self.in_flight >= 0

    @property
    def shedding(self) -> bool:
        """Whether some class is turned away at the moment."""
        return self.in_flight >= self.shed_at

    def statistics(self) -> AdmissionStatistics:
        return AdmissionStatistics(
            self.in_flight,
            self.limit,
            self._admitted,
            tuple(self._shed),
            self._shares,
            self.overload.delay_s,
            self.overload.rate if self.overload.watching else 0.0,
            self._stale,
        )

    def watch(self) -> None:
        """Look at the running loop from now on, whenever several requests are under way."""
        if self._settings.adaptive:
            self._loop = asyncio.get_running_loop()
            self._busy_min = self._settings.overload.busy_min

    def close(self) -> None:
        """Stop looking at the loop."""
        self._busy_min = 1 << 62
        if self._probing is not None:
            self._probing.cancel()
            self._probing = None

    def _look_again(self) -> None:
        assert self._loop is not None
        self._due_cpu_s = clock.cpu_s() + PROBE_S
        self._probing = self._loop.call_later(PROBE_S, self._probe)

    def _probe(self) -> None:
        """Note how late the loop is, and once a window let `overload` decide."""
        self._delay += max(0.0, clock.cpu_s() - self._due_cpu_s)
        self._probes += 1
        span_s = clock.monotonic_s() - self._window_from
        overload = self.overload
        if span_s >= self._settings.overload.window_s:
            delay_s, arrived = self._delay / self._probes, self._arrived
            overload.observe(span_s, delay_s, arrived=arrived, finished=self._finished, busy=self.in_flight)
            self._delay, self._probes, self._finished = 0.0, 0, 0
            self._arrived = [0] * len(Priority)
            self._window_from += span_s
            self._shares = overload.shares
            self._look()
            if not overload.watching and self.in_flight < self._busy_min:
                self._probing = None
                return
        self._look_again()

    def _look(self) -> None:
        watched = self.overload.watching or self._closed_from < len(Priority)
        self.shed_at = 0 if watched else self._thresholds[-1]


def _everyone_alike(_method: bytes, _path: bytes) -> Priority:
    return Priority.USER

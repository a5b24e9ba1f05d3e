"""Who is let in when there is too much to do, decided in the protocol before headers become objects.

Every request has a priority class. Three things turn one away, the lowest class first: the loop has more to do than it can
(`overload` says which share of each class comes in), more waits or is under way than is allowed, an operator closed its
class. While none of them is near, a request costs one comparison; while one is, a plain GET or a small whole POST is turned
away by its first line, with one prebuilt 503 and Retry-After, before anything of it becomes an object.

The line. A loop is quick while its turns are short, so once several requests are under way new ones are begun a few per
turn: as many as keep a turn's CPU time near `turn_s`, the highest class first, each class in its order. Work of the highest
class therefore never stands behind a crowd of the others. What has waited longer than its class may (`age_s_max`) is
turned away when its turn comes, because its answer would come when nobody waits any more; the age of the line is what
`overload` goes by.
Invariant: `in_flight` equals the exchanges begun and not finished.
"""

import asyncio
import re
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from fourplane.edge.http_answers import error_answer, seconds_text
from fourplane.edge.overload import OPEN, Overload, OverloadSettings
from fourplane.edge.routes import Priority
from fourplane.foundation import clock

TARGETS_MAX = 4_096
SHARES = (1.0, 0.9, 0.75, 0.5)  # of the limit, by Priority
STARTS_MAX = 64.0
_FIRST_LINE = re.compile(rb"(POST|PUT|PATCH|DELETE) (/[!\"$-~]*+) HTTP/1\.1\r\n")
_LENGTH = re.compile(rb"\ncontent-length:[ \t]*([0-9]{1,7})[ \t]*\r")
_UNUSUAL = re.compile(
    rb"transfer-encoding|\nexpect|\nupgrade|\nconnection:(?![ \t]*keep-alive\r)|[^\r]\n|\r[^\n]|\n[ \t]"
)


class AdmissionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much work at one time, and what the refused are told."""

    in_flight_max: int = 2_000
    retry_after_s: float = 1.0
    age_s_max: tuple[float, float, float, float] = (5.0, 2.0, 1.0, 0.6)  # by Priority
    waiting_max: tuple[int, int, int, int] = (4_000, 256, 64, 32)  # in line, by Priority
    turn_s: float = 0.002
    adaptive: bool = True
    overload: OverloadSettings = OverloadSettings()


class AdmissionStatistics(msgspec.Struct, frozen=True):
    """What the admission did so far."""

    in_flight: int
    limit: int
    admitted: int
    shed: tuple[int, ...]  # by Priority
    shares: tuple[float, ...] = OPEN  # of each class that is let in now
    waiting: int = 0  # in line
    delay_s: float = 0.0  # how long the line's oldest has waited
    rate: float = 0.0  # requests per second let in while shedding
    stale: int = 0  # turned away after they had waited too long


_Waiting = tuple[float, float, object, object]  # since when, in wall and CPU time, the exchange, its scope
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
        "_finished",
        "_known",
        "_lines",
        "_loop",
        "_settings",
        "_shares",
        "_shed",
        "_stale",
        "_starts",
        "_thresholds",
        "_timer",
        "_turn_cpu_s",
        "_turning",
        "_window_from",
        "begin",
        "classify",
        "in_flight",
        "limit",
        "overload",
        "refuse",
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
        self._lines: list[deque[_Waiting]] = [deque() for _ in Priority]
        self._finished = self._stale = 0
        self._starts = 8.0
        self._turn_cpu_s = self._window_from = 0.0
        self._turning = False
        self.begin: Callable[[Any, Any], None] = _nobody
        self.refuse: Callable[[Any], None] = _nobody
        self._decided = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._busy_min = 1 << 62
        self._timer: asyncio.TimerHandle | None = None
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
        open_to_it = self.in_flight < self._thresholds[priority] and priority < self._closed_from
        if open_to_it and len(self._lines[priority]) < self._settings.waiting_max[priority]:
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

    def lines_up(self, method: bytes, path: bytes, exchange: object, scope: object) -> bool:
        """Put an admitted request into the line of its class; False when there is none and it may begin at once."""
        if self.in_flight <= self._busy_min:
            return False
        assert self._loop is not None
        if not self._turning:
            self._turning = True
            self._turn_cpu_s = clock.cpu_s()
            self._loop.call_soon(self._turn)
        self._lines[self.classify(method, path)].append((clock.monotonic_s(), self._turn_cpu_s, exchange, scope))
        if self._timer is None:
            self._window_from = clock.monotonic_s()
            self._timer = self._loop.call_later(self._settings.overload.window_s, self._window)
        return True

    def entered(self) -> None:
        """An admitted request begins."""
        self._admitted += 1
        self.in_flight += 1

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
            sum(map(len, self._lines)),
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
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _turn(self) -> None:
        """Begin a few of those in line, once per turn of the loop."""
        cpu_s = clock.cpu_s()
        used_s, self._turn_cpu_s = cpu_s - self._turn_cpu_s, cpu_s
        turn_s = self._settings.turn_s
        if used_s > turn_s:
            self._starts = max(1.0, self._starts * 0.7)
        elif used_s < 0.7 * turn_s:
            self._starts = min(STARTS_MAX, self._starts + 0.5)
        now_s = clock.monotonic_s()
        left = int(self._starts)
        for line, age_s_max in zip(self._lines, self._settings.age_s_max, strict=True):
            while left and line:
                since_s, _, exchange, scope = line.popleft()
                if now_s - since_s > age_s_max:
                    self._stale += 1
                    self.refuse(exchange)
                    continue
                left -= 1
                self.begin(exchange, scope)
        self._turning = any(self._lines)
        if self._turning and self._loop is not None:
            self._loop.call_soon(self._turn)

    def _window(self) -> None:
        """Let `overload` decide by how old the line is."""
        now_s, cpu_s = clock.monotonic_s(), clock.cpu_s()
        span_s, self._window_from = now_s - self._window_from, now_s
        oldest = max((cpu_s - line[0][1] for line in self._lines if line), default=0.0)
        overload = self.overload
        overload.observe(span_s, oldest, arrived=self._arrived, finished=self._finished, busy=self.in_flight)
        self._finished = 0
        self._arrived = [0] * len(Priority)
        self._shares = overload.shares
        self._look()
        self._timer = None
        if (overload.watching or self._turning) and self._loop is not None:
            self._timer = self._loop.call_later(self._settings.overload.window_s, self._window)

    def _look(self) -> None:
        watched = self.overload.watching or self._closed_from < len(Priority)
        self.shed_at = 0 if watched else min(self._thresholds[-1], *self._settings.waiting_max)


def _nobody(*_: object) -> None:
    raise AssertionError("nobody begins what stands in line")


def _everyone_alike(_method: bytes, _path: bytes) -> Priority:
    return Priority.USER

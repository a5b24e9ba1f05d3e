"""Who is let in when there is too much to do, decided in the protocol before headers become objects.

Every request has a priority class. Three things turn one away: the line of its class is as long as it may be, more is
under way than is allowed, an operator closed its class. While none of them is near, a request costs one
comparison; while one is, a plain request is turned away by its first line, with one prebuilt 503 and Retry-After, before
anything of it becomes an object.

The lines. Once several requests are under way new ones stand in line, one line per class, and begin a few per turn of
the loop, the highest class first, each class in its order (`overload` says how many). While nobody of the highest class stands
there and the turn has room for more of it, one that comes begins at once, a turn earlier. Work of the highest class never
stands behind a crowd of the others, and the more it takes the less of them begins at a time (`RESERVED`): the loop's turns stay
short. A class is turned away only when its own line stands: where the capacity ends. A line
may be as long as what began of its class within `line_s_max` lately, and its oldest not older; after a short stall it may
have all its places, because what such a stall leaves behind is soon done. Both are told in CPU time of this process, because
a machine that is busy with something else is slow but not full of our work; and what does not stand in a line adds
nothing: a long stream, an idle WebSocket, a feed beside the requests. What has waited longer than its class may
(`age_s_max`, of the clock) is turned away, because its answer would come when nobody waits any more.
Invariant: `in_flight` equals the exchanges that stand in line or have begun, and are not finished.
"""

import asyncio
import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from fourplane.edge.http_answers import error_answer, seconds_text
from fourplane.edge.http_request import GET
from fourplane.edge.overload import STARTS_MAX, OverloadSettings, Pace
from fourplane.edge.routes import Priority
from fourplane.foundation import clock

TARGETS_MAX: Final = 4_096
SHARES: Final = (1.0, 0.9, 0.75, 0.5)  # of the limit, by Priority
ROOM: Final = (4, 1, 1, 1)  # times the room of `Pace`, by Priority
NEARLY: Final = 0.75  # of the room of the highest class
RESERVED: Final = 0.5  # of what the highest class took since the others last began: so much less of them begins
RESERVED_MAX: Final = 0.75  # of a turn
CLASSES: Final = len(Priority)
OPEN: Final = (1.0,) * CLASSES
REST_TURNS: Final = 3
CALM_S: Final = 5.0  # without a line: what the last rush needed says nothing of the next
STALE_MAX: Final = 2  # of a line, a turn: what stood too long came together, each with a connection's next requests
HICCUP_WINDOWS: Final = (
    4  # a line that has stood for fewer is what a short stall leaves behind: it may have all its places
)
EXEMPT: Final = -1  # a hot route costs less than a rejection's bookkeeping would save


class AdmissionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much work at one time, and what the refused are told."""

    in_flight_max: int = 2_000
    retry_after_s: float = 1.0
    age_s_max: tuple[float, float, float, float] = (5.0, 2.0, 1.0, 0.6)  # in line, by Priority
    waiting_max: tuple[int, int, int, int] = (4_000, 256, 64, 32)  # in line, by Priority
    line_s_max: tuple[float, float, float, float] = (0.3, 0.2, 0.1, 0.1)  # CPU time in line, by Priority
    waiting_min: int = 8  # in line at least, whatever began lately
    adaptive: bool = True
    overload: OverloadSettings = OverloadSettings()


class FirstLines(msgspec.Struct, frozen=True):
    """What tells the class of most first lines of one method at once."""

    method: bytes
    pattern: re.Pattern[bytes]  # of the whole line
    classes: tuple[int, ...]  # by the number of the group that matched


class AdmissionStatistics(msgspec.Struct, frozen=True):
    """What the admission did so far."""

    in_flight: int
    limit: int
    admitted: int
    shed: tuple[int, ...]  # by Priority
    shares: tuple[float, ...] = OPEN  # of each class that was let in lately
    waiting: int = 0  # in line
    delay_s: float = 0.0  # how long the oldest in line has waited, in CPU time
    rate: float = 0.0  # requests finished per second while some stood in line
    stale: int = 0  # turned away after they had waited too long
    running_max: int = 0  # how many may be under way while some stand in line


_Waiting = tuple[float, float, object, object]  # since when, in wall and CPU time, the exchange, its scope
Classify = Callable[[bytes, bytes], Priority]


class Admission:
    """The bound of one server and its classes."""

    __slots__ = (
        "_admitted",
        "_asked",
        "_at_once",
        "_batch_cpu_s",
        "_began",
        "_bounds",
        "_busy_min",
        "_closed_from",
        "_finished",
        "_first",
        "_held",
        "_lines",
        "_loop",
        "_open",
        "_owed_s",
        "_paths",
        "_rate",
        "_rest",
        "_settings",
        "_shed",
        "_speeds",
        "_stale",
        "_steps_cpu_s",
        "_steps_s",
        "_stood",
        "_thresholds",
        "_timer",
        "_told",
        "_turn_cpu_s",
        "_turning",
        "_window_cpu_s",
        "_window_from",
        "begin",
        "classify",
        "exempt",
        "in_flight",
        "known",
        "limit",
        "pace",
        "refuse",
        "rejection",
        "rejection_and_close",
        "shed_at",
        "stale_answer",
        "waiting",
    )

    def __init__(self, settings: AdmissionSettings, classify: Classify | None = None) -> None:
        self.classify: Classify = classify if classify is not None else _everyone_alike
        self.exempt: Callable[[bytes, bytes], bool] = _nothing
        self.begin: Callable[[Any, Any], None] = _nobody
        self.refuse: Callable[[Any], None] = _nobody
        self.in_flight = 0
        self.pace = Pace(settings.overload)
        self._settings = settings
        self._lines: list[deque[_Waiting]] = [deque() for _ in Priority]
        self._open = [True] * CLASSES
        self._began = [0] * CLASSES  # out of each line, in this window
        self._speeds = [0.0] * CLASSES  # the same per second of CPU time
        self._bounds = list(settings.waiting_max)
        self._asked = [0] * CLASSES  # while somebody was turned away
        self._shed = [0] * CLASSES
        self._told = (0.0, (0,) * CLASSES, (0,) * CLASSES, OPEN)
        self._admitted = self._finished = self._stale = self.waiting = 0
        self._at_once = 0  # of the highest class may still begin in this turn
        self._first = 0  # of the highest class have begun since the last batch of the others
        self._stood = 0  # windows in a row in which some stood in line
        self._rest = 0  # turns that finish what has begun before the next batch
        self._batch_cpu_s = self._turn_cpu_s = self._steps_s = self._steps_cpu_s = self._owed_s = self._window_cpu_s = (
            self._window_from
        ) = self._rate = 0.0
        self._turning = False
        self._held = False  # some stand in line for want of room
        self._loop: asyncio.AbstractEventLoop | None = None
        self._busy_min = 1 << 62
        self._timer: asyncio.TimerHandle | None = None
        self.known: dict[bytes, int] = {}  # classes of plain targets of GETs
        self._paths: dict[bytes, int] = {}
        self._closed_from = CLASSES
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
        self._closed_from = CLASSES if priority is None else int(priority)
        self._look()

    # -- asked by connections once `in_flight` has reached `shed_at`

    def turns_away(self, method: bytes, target: bytes) -> bool:
        """Whether a request has to go again, by its first line; counts a refusal. Classes of GETs are remembered."""
        priority = self.known.get(target) if method is GET else None
        if priority is None:
            priority = self.class_of(method, target)
        if priority < 0:
            return False
        self._asked[priority] += 1
        if self._open[priority] and self.in_flight < self._thresholds[priority]:
            return False
        self._shed[priority] += 1
        return True

    def shut(self) -> list[bool]:
        """By class: whether a request has to go again at the moment; who turns some away says so (`turned_away`)."""
        in_flight = self.in_flight
        if in_flight < self.shed_at:
            return [False] * CLASSES
        return [
            not (is_open and in_flight < threshold)
            for is_open, threshold in zip(self._open, self._thresholds, strict=True)
        ]

    def let_in(self, priority: int) -> None:
        """One of this class found its class not shut."""
        if self.in_flight >= self.shed_at:
            self._asked[priority] += 1

    def turned_away(self, counts: Sequence[int]) -> int:
        """So many of each class had to go; how many in all."""
        for number, count in enumerate(counts):
            if count:
                self._asked[number] += count
                self._shed[number] += count
        return sum(counts)

    def turns_away_as(self, method: bytes, path: bytes, *, late: bool = False) -> bool:
        """The same for a request that no hot route answers; `late`: it came too early and is read late, so that only the
        highest class stays.
        """
        priority = self._class_of_path(method, path)
        if late and priority:
            self._asked[priority] += 1
            self._shed[priority] += 1
            return True
        return not self.admits(priority)

    def admits(self, priority: int) -> bool:
        """Whether one more of this class may come in now; counts a refusal."""
        self._asked[priority] += 1
        if self._open[priority] and self.in_flight < self._thresholds[priority]:
            return True
        self._shed[priority] += 1
        return False

    def class_of(self, method: bytes, target: bytes) -> int:
        """The class of a plain request, below 0 where a hot route answers it."""
        path = target.partition(b"?")[0]
        priority = EXEMPT if self.exempt(method, path) else self._class_of_path(method, path)
        if method is GET:
            if len(self.known) >= TARGETS_MAX:
                self.known.clear()
            self.known[target] = priority
        return priority

    def _class_of_path(self, method: bytes, path: bytes) -> int:
        """The class by the gateway's table; those of GETs are remembered, also of what a hot route did not answer."""
        if method is not GET:
            return int(self.classify(method, path))
        priority = self._paths.get(path)
        if priority is None:
            if len(self._paths) >= TARGETS_MAX:
                self._paths.clear()
            priority = self._paths[path] = int(self.classify(method, path))
        return priority

    # -- from the beginning of a request to its end

    def lines_up(self, method: bytes, path: bytes, exchange: object, scope: object) -> bool:
        """Put an admitted request into the line of its class; False when there is none and it may begin at once."""
        if self.in_flight <= self._busy_min:
            return False
        return self.stands(self.classify(method, path), exchange, scope)

    def stands(self, priority: Priority, exchange: object, scope: object) -> bool:
        """The same for a request whose class is known."""
        if self.in_flight <= self._busy_min:
            return False
        if self._at_once and not priority and not self._lines[0]:
            self._at_once -= 1
            self._began[0] += 1
            self._first += 1
            return False
        assert self._loop is not None
        if not self.waiting:
            self._turn_cpu_s = clock.cpu_s()
        self.waiting += 1
        line = self._lines[priority]
        line.append((clock.monotonic_s(), self._turn_cpu_s, exchange, scope))
        if len(line) >= self._bounds[priority]:
            self._open[priority] = False
            self.shed_at = 0
        if not self._turning and (
            not self._held or not priority
        ):  # the highest class has room where others wait for it
            self._turning = True
            self._loop.call_soon(self._turn)
        if self._timer is None:
            if clock.monotonic_s() - self._window_from > CALM_S:
                self.pace.calm()
            self._window_from, self._window_cpu_s = clock.monotonic_s(), self._turn_cpu_s
            self._timer = self._loop.call_later(self._settings.overload.window_s, self._window)
        return True

    def entered(self) -> None:
        """An admitted request stands in line or begins."""
        self._admitted += 1
        self.in_flight += 1

    def left(self) -> None:
        """A request is through."""
        self.in_flight -= 1
        self._finished += 1
        assert self.in_flight >= 0
        if self._held and not self._turning and self._loop is not None:
            self._turning = True
            self._loop.call_soon(self._turn)

    def shed_count(self, priority: Priority) -> int:
        """How many of this class or a higher one were turned away so far."""
        return sum(self._shed[: priority + 1])

    @property
    def shedding(self) -> bool:
        """Whether some class is turned away at the moment."""
        return self.in_flight >= self.shed_at

    @property
    def pressed(self) -> bool:
        """Whether so much has begun that only the highest class can have begun it: it needs all there is."""
        return self.in_flight - self.waiting > self.pace.running_max

    @property
    def full(self) -> bool:
        """Whether the highest class has nearly all the room that is: soon it stands in line itself."""
        return self.in_flight - self.waiting > NEARLY * self.pace.running_max * ROOM[0]

    def statistics(self) -> AdmissionStatistics:
        now_s = clock.monotonic_s()
        since_s, asked, shed, shares = self._told
        if now_s - since_s >= 0.5:
            shares = tuple(
                1.0 if now == before else 1.0 - (gone - gone_before) / (now - before)
                for now, before, gone, gone_before in zip(self._asked, asked, self._shed, shed, strict=True)
            )
            self._told = (now_s, tuple(self._asked), tuple(self._shed), shares)
        return AdmissionStatistics(
            in_flight=self.in_flight,
            limit=self.limit,
            admitted=self._admitted,
            shed=tuple(self._shed),
            shares=shares,
            waiting=self.waiting,
            delay_s=self._oldest_s(clock.cpu_s()),
            rate=self._rate if self._timer is not None else 0.0,
            stale=self._stale,
            running_max=self.pace.running_max,
        )

    # -- the lines

    def watch(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Let requests stand in line on `loop`, the running one, from now on, whenever several are under way."""
        if self._settings.adaptive:
            self._loop = loop if loop is not None else asyncio.get_running_loop()
            self._busy_min = self._settings.overload.busy_min

    def close(self) -> None:
        """Begin everything at once again."""
        self._busy_min = 1 << 62
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _turn(self) -> None:
        """Begin a few of those in line; their first steps run one after the other, measured.

        What has begun comes first: an answer that waits for the disk passes through several turns of the loop, so between
        two batches a few turns begin nothing (but of the highest class), as long as that takes no longer than a batch.
        """
        loop, pace = self._loop, self.pace
        assert loop is not None
        cpu_s = clock.cpu_s()
        if self._steps_s:  # measured in the turn before this one
            pace.turned(max(0.0, cpu_s - self._turn_cpu_s - self._steps_s))
            self._steps_s = 0.0
        self._turn_cpu_s = cpu_s
        now_s = clock.monotonic_s()
        full = self._rest <= 0 or cpu_s - self._batch_cpu_s > 2.0 * self._settings.overload.turn_s
        left_s, spent = self._begin_of(0, pace.turn_s, now_s)
        room = pace.running_max * ROOM[0] - self.in_flight + self.waiting
        self._at_once = max(0, min(int(left_s / pace.cost_s(0)), room)) if not self._lines[0] else 0
        if full:
            reserved_s = RESERVED * self._first * pace.cost_s(0)
            left_s += self._owed_s - min(reserved_s, RESERVED_MAX * pace.turn_s)
            self._first = 0
            for number in range(1, CLASSES):
                if self._lines[number]:
                    left_s, more = self._begin_of(number, left_s, now_s)
                    spent = spent or more
        if full:
            self._rest, self._batch_cpu_s, self._owed_s = REST_TURNS, cpu_s, min(0.0, left_s)
        else:
            self._rest -= 1
        self._held = full and self.waiting > 0 and not spent
        self._turning = self.waiting > 0 and not self._held
        if self._turning:
            loop.call_soon(self._turn)
        self._look()

    def _begin_of(self, number: int, left_s: float, now_s: float) -> tuple[float, bool]:
        """Begin some of one line; what is left of the turn, and whether that is why others still stand there."""
        assert self._loop is not None
        line, age_s_max, cost_s = self._lines[number], self._settings.age_s_max[number], self.pace.cost_s(number)
        room, spent, begun, gone = self.pace.running_max * ROOM[number], False, 0, 0
        while line:
            since_s, _, exchange, scope = line[0]
            stale = now_s - since_s > age_s_max
            if stale:
                if gone >= STALE_MAX:
                    spent = True
                    break
                gone += 1
            else:
                if left_s <= 0.0 or begun >= STARTS_MAX:
                    spent = True
                    break
                if self.in_flight - self.waiting >= room:
                    break
            line.popleft()
            self.waiting -= 1
            if stale:
                self._stale += 1
                self.refuse(exchange)
                continue
            if not begun:
                self._loop.call_soon(self._steps_begin)
            left_s -= cost_s
            begun += 1
            self.begin(exchange, scope)
        if begun:
            self._began[number] += begun
            self._first += 0 if number else begun
            self._loop.call_soon(self._steps_end, begun, number)
        return left_s, spent

    def _steps_begin(self) -> None:
        self._steps_cpu_s = clock.cpu_s()

    def _steps_end(self, count: int, priority: int) -> None:
        used_s = clock.cpu_s() - self._steps_cpu_s
        self._steps_s += used_s if self._turning else 0.0
        self.pace.began(count, used_s, priority)

    def _window(self) -> None:
        """Look how the process does while some stand in line, and let nobody stand there for ever."""
        self._timer = None
        now_s, cpu_s = clock.monotonic_s(), clock.cpu_s()
        span_s, used_s = now_s - self._window_from, cpu_s - self._window_cpu_s
        self.pace.window(span_s, used_s, in_line=self._held, limit=self.limit)
        self._measure(used_s)
        self._rate += (self._finished / max(span_s, 1e-6) - self._rate) * 0.3
        self._window_from, self._window_cpu_s, self._finished = now_s, cpu_s, 0
        if self._loop is None:
            return
        if self.waiting and not self._turning:
            self._turn()
        self._look()
        if not self.waiting:
            self._bounds, self._speeds, self._stood = list(self._settings.waiting_max), [0.0] * CLASSES, 0
        else:
            self._timer = self._loop.call_later(self._settings.overload.window_s, self._window)

    def _measure(self, used_s: float) -> None:
        """How long each line may be: what began lately, of its class and those it goes before, in the time it may take."""
        settings, could = self._settings, 0.0
        self._stood += 1
        for number in reversed(range(CLASSES)):
            speed, before = self._began[number] / max(used_s, 1e-3), self._speeds[number]
            self._speeds[number] = speed = before + (speed - before) * 0.3 if before else speed
            self._began[number] = 0
            could += speed
            fitting = int(could * settings.line_s_max[number])
            if self._stood < HICCUP_WINDOWS:
                fitting = settings.waiting_max[number]
            self._bounds[number] = min(settings.waiting_max[number], max(settings.waiting_min, fitting))

    def _look(self) -> None:
        """Which classes may come in: those whose line is neither full nor old."""
        cpu_s, settings, short = self._turn_cpu_s, self._settings, self._stood < HICCUP_WINDOWS
        self._open = [
            number < self._closed_from
            and len(line) < count_max
            and (not line or short or cpu_s - line[0][1] <= line_s_max)
            for number, (line, count_max, line_s_max) in enumerate(
                zip(self._lines, self._bounds, settings.line_s_max, strict=True)
            )
        ]
        self.shed_at = min(self._thresholds[-1], *self._bounds) if all(self._open) else 0

    def _oldest_s(self, cpu_s: float) -> float:
        return max((cpu_s - line[0][1] for line in self._lines if line), default=0.0)


def _nobody(*_: object) -> None:
    raise AssertionError("nobody begins what stands in line")


def _nothing(_method: bytes, _path: bytes) -> bool:
    return False


def _everyone_alike(_method: bytes, _path: bytes) -> Priority:
    return Priority.USER

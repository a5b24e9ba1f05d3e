"""Who was told to come back later and asks again at once is read again when its turn has come.

However little is done for a request that is turned away, the kernel's receive and send and a turn of the loop are paid for it,
and at ten times the capacity nine of ten are turned away. So while requests stand in line, a connection that was refused, and is
refused again before the time it was told has passed, is not read for a while. What it sends meanwhile stays in the kernel
(whose window holds it back) and costs nothing until it is read and answered together, in order, in one write. Who
keeps to what it was told never rests, nor does who speaks for others: a proxy's line carries also those who order.

The connections at rest are one line, first in, first out. What is answered to them is counted in refusals, not in
connections, because who asks without waiting brings dozens at a time: as many as `answers_per_s` allows, with what
others are refused meanwhile; none before `rest_s_min`. So for the time of one rest the refused cost a bounded share of the
processor however many they are. While the highest class needs all there is (`pressed`) nobody is read again before
`rest_s_max`, and before half of that more while it has no room left (`full`): so what a short stall left behind is soon
done. Whoever has rested longer than that makes the pace grow with his
time, so nobody is forgotten, and who never heeds what he is told costs more again. Once nobody stands in line, all are read
again within a few ticks.
"""

import asyncio
from collections import deque
from typing import Final, Protocol

import msgspec

from fourplane.foundation import clock

FULL: Final = 1.5  # times `rest_s_max`
TICK_S: Final = 0.004
LOOKS_MAX: Final = 16  # connections a tick; more where hundreds rest
SHARE_MAX: Final = 32  # of the line, a tick
LOOKS_MAX_ALONE: Final = 64  # when nobody stands in line
ANSWERS_MAX_ALONE: Final = 400  # a tick, as far as one can tell beforehand
BEHIND_S: Final = 0.1  # of the pace: the most that refusals nobody could foresee are paid back by a pause


class RestingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long connections rest that come back too early; `answers_per_s` of 0 lets nobody rest."""

    answers_per_s: float = 30_000.0  # refusals while requests stand in line
    rest_s_min: float = 0.03
    rest_s_max: float = 1.0


class Restable(Protocol):
    """A connection that can be left unread."""

    def read_again(self) -> None:
        """Its turn has come."""


class Resting:
    """The line of one server's connections at rest."""

    __slots__ = (
        "_crowd",
        "_each",
        "_expected",
        "_line",
        "_looked_s",
        "_looks",
        "_loop",
        "_owed",
        "_settings",
        "_timer",
        "told",
    )

    def __init__(self, settings: RestingSettings, crowd: "Crowd") -> None:
        self._settings = settings
        self._crowd = crowd
        self._line: deque[tuple[float, Restable, int]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._looked_s = self._owed = 0.0  # `_owed`: refusals that may be answered now
        self._each = 1.0  # refusals that a look brings at least, lately
        self._expected, self._looks = 0.0, 0  # of the last tick: refusals it should bring, and looks
        self.told = 0  # refusals since the last tick; counted by those who refuse

    def __len__(self) -> int:
        return len(self._line)

    @property
    def wanted(self) -> bool:
        """Whether who comes back too early should rest: only while others stand in line."""
        return self._crowd.waiting > 0 and self._loop is not None

    def open(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Let connections rest on `loop`, the running one, from now on."""
        if self._settings.answers_per_s > 0:
            self._loop = loop if loop is not None else asyncio.get_running_loop()

    def add(self, connection: Restable, count: int = 1) -> None:
        """One connection, whose reading its owner has paused and who was last refused `count` times, goes to the end."""
        assert self._loop is not None
        now_s = clock.monotonic_s()
        self._line.append((now_s, connection, count))
        if self._timer is None:
            self._looked_s, self._owed = now_s, 0.0
            self.told, self._expected, self._looks = 0, 0.0, 0
            self._timer = self._loop.call_later(TICK_S, self._tick)

    def close(self) -> None:
        """Read everybody again and let nobody rest any more."""
        self._loop = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._line:
            self._line.popleft()[1].read_again()

    def _tick(self) -> None:
        self._timer = None
        now_s, settings, line = clock.monotonic_s(), self._settings, self._line
        waiting, rest_s_min = self._crowd.waiting > 0, self._rest_s_min()
        oldest_s = now_s - line[0][0] if line else 0.0
        pace = settings.answers_per_s * max(1.0, oldest_s / settings.rest_s_max)
        if self._looks:
            self._each += (max(1.0, self.told / self._looks) - self._each) * 0.2
        owed = self._owed + pace * (now_s - self._looked_s) + self._expected - self.told
        owed = min(max(owed, -BEHIND_S * pace), 2 * TICK_S * pace)
        looks, self.told = max(LOOKS_MAX, len(line) // SHARE_MAX), 0
        if not waiting:
            owed, looks = ANSWERS_MAX_ALONE, LOOKS_MAX_ALONE
        before, most = owed, looks
        while line and looks > 0 and owed > 0.0:
            rested_s = now_s - line[0][0]
            if waiting and rested_s < rest_s_min:
                break
            _, connection, count = line.popleft()
            connection.read_again()
            owed, looks = owed - max(count, self._each), looks - 1
        self._looked_s, self._owed = now_s, min(owed, 2 * TICK_S * pace)
        self._expected, self._looks = before - owed, most - looks
        if line and self._loop is not None:
            self._timer = self._loop.call_later(TICK_S, self._tick)

    def _rest_s_min(self) -> float:
        settings, crowd = self._settings, self._crowd
        if crowd.full:
            return FULL * settings.rest_s_max
        return settings.rest_s_max if crowd.pressed else settings.rest_s_min


class Crowd(Protocol):
    """Who knows whether requests stand in line."""

    waiting: int

    @property
    def pressed(self) -> bool:
        """Whether the highest class needs all there is."""

    @property
    def full(self) -> bool:
        """Whether it needs more."""

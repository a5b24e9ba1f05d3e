"""How fast to begin work on a loop that has more to do than it can: how many a turn, and how many under way at a time.

Two things make a crowded server slow for those who matter most. A turn of the loop that begins everything at once lets the
next one wait for all of it; so as many begin a turn as their first steps fit into `turn_s`, by what such steps have cost in
their class: a page costs ten times what a cart does. What is dearer than a turn goes over it, one at a time, and the turns
after it pay that back; the highest class does not pay for others. That is measured around the steps themselves, so other
work of the loop, such as a feed of positions, does not count as theirs; where it fills the turns, requests get half as much
time beside it. And work that has begun waits in queues behind the loop, such as that of a commit, where no class goes
first; so only `running_min` are under way at a time, more only while there are requests in line and the process still has
time to spare: then they wait for something else than this processor. The highest class has four times that room, so the
others never take it.

What finds no room stands in a line by class. As many may stand there as began in `line_s` lately: a bound on the wait of
the newest, known when it comes, where the age of the oldest tells of a line that is already too long.
Nothing is configured: not a rate, not a latency of any route.

Pure: counts and seconds are arguments. Sources: Zhou et al., "Overload Control for Scaling WeChat Microservices" (DAGOR,
2018) for queueing time as the signal; Netflix, concurrency-limits (2018) for the limit that probes; Nygard, "Release It!".
"""

import msgspec

from fourplane.edge.routes import Priority

STARTS_MAX = 64  # a turn, however cheap they are
COST_S_MIN = 1e-5


class OverloadSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much at a time while there is a line."""

    turn_s: float = 0.002  # CPU time of first steps per turn of the loop
    turn_s_max: float = 0.01  # the same where other work makes turns long
    busy_min: int = 8  # requests under way below which nobody stands in line
    running_min: int = 16  # under way at a time, beside the highest class
    window_s: float = 0.05
    spare_share: float = 0.7  # of one processor; below it the process waits for something else
    full_share: float = 0.85
    grow: float = 1.25  # of the room, per window
    shrink: float = 0.95  # where nobody stands for want of it
    give_back: float = 0.8  # where the processor is full: as quick as it grew when a disk stood for a moment


class Pace:
    """How much begins per turn, and how many may be under way."""

    __slots__ = ("_costs_s", "_other_s", "_settings", "running_max", "turn_s")

    def __init__(self, settings: OverloadSettings | None = None) -> None:
        self._settings = settings or OverloadSettings()
        self._costs_s = [0.0] * len(Priority)
        self._other_s = 0.0
        self.turn_s = self._settings.turn_s  # for first steps
        self.running_max = self._settings.running_min

    def began(self, count: int, used_s: float, priority: int = 0) -> None:
        """`count` first steps of a class took `used_s` of CPU time."""
        costs_s, settings = self._costs_s, self._settings
        costs_s[priority] += (used_s / count - costs_s[priority]) * (0.2 if costs_s[priority] else 1.0)
        self.turn_s = max(settings.turn_s, min(settings.turn_s_max, 0.5 * self._other_s))

    def cost_s(self, priority: int) -> float:
        """What a first step of this class takes; until one was seen, an eighth of a turn."""
        cost_s = self._costs_s[priority]
        return max(COST_S_MIN, cost_s) if cost_s else self._settings.turn_s / 8

    def turned(self, other_s: float) -> None:
        """A turn of the loop took `other_s` of CPU time beside first steps."""
        self._other_s += (other_s - self._other_s) * 0.2

    def window(self, span_s: float, used_s: float, *, in_line: bool, limit: int) -> None:
        """One window: how long it was, the CPU time the process used, whether some stand in line for want of room."""
        settings = self._settings
        share = used_s / max(span_s, 1e-6)
        if in_line and share < settings.spare_share:
            self.running_max = min(limit, int(self.running_max * settings.grow) + 1)
        elif not in_line or share > settings.full_share:
            left = settings.give_back if share > settings.full_share else settings.shrink
            self.running_max = max(settings.running_min, int(self.running_max * left))

    def calm(self) -> None:
        """Nobody has stood in line for a while: this rush begins anew."""
        self.running_max = self._settings.running_min

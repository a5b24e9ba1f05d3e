"""How much of an error budget is spent, and how fast: the arithmetic of one objective.

A target of 99.9 % allows one bad event in a thousand over a period: the budget. The burn rate of a window is the share of bad
events in it over the share that is allowed: at 1 the budget lasts exactly the period. One window alone either pages late or
goes on long after; so a rule asks two: the long one says that it matters, the short one that it is still so
(Google, The Site Reliability Workbook, chapter 5). For a period of 30 days the rules are

    14.4 x over 1 h and 5 min     page      2 % of the budget is gone in an hour
     6   x over 6 h and 30 min    page      5 % in six hours
     3   x over 1 d and 2 h       ticket    10 % in a day
     1   x over 3 d and 6 h       ticket    10 % in three days

and a shorter period shrinks every window with it. Hysteresis: a rule that fires ends when its short window burns less than
CLEAR_SHARE of the factor. A rule is silent until its long window holds EVENTS_MIN events, BAD_MIN of them bad: one failure in
a quiet night is no page.

A window is a ring of SLOTS sums; adding costs a few additions a window and reading none, however long the period. It reaches
back between one window and one slot more. Pure: times are arguments.
"""

from typing import Literal

import msgspec

PERIOD_S = 30 * 86_400.0
SLOTS = 60
WINDOW_S_MIN = 2.0
CLEAR_SHARE = 0.8
EVENTS_MIN = 10
BAD_MIN = 2


class BurnRule(msgspec.Struct, frozen=True):
    """One pair of windows, for a period of PERIOD_S."""

    factor: float
    long_s: float
    short_s: float
    severity: Literal["page", "ticket"]

    def scaled(self, period_s: float) -> "BurnRule":
        """The same rule for another period."""
        share = period_s / PERIOD_S
        longer, shorter = max(self.long_s * share, 2 * WINDOW_S_MIN), max(self.short_s * share, WINDOW_S_MIN)
        return BurnRule(self.factor, longer, shorter, self.severity)


RULES = (
    BurnRule(14.4, 3_600.0, 300.0, "page"),
    BurnRule(6.0, 21_600.0, 1_800.0, "page"),
    BurnRule(3.0, 86_400.0, 7_200.0, "ticket"),
    BurnRule(1.0, 259_200.0, 21_600.0, "ticket"),
)


class WindowState(msgspec.Struct, array_like=True):
    """A window as it is stored."""

    width_s: float
    turn: int
    bad: list[float]
    total: list[float]


class Window:
    """Bad and all events of the last `width_s` seconds."""

    __slots__ = ("_bads", "_slot_s", "_totals", "_turn", "bad", "total", "width_s")

    def __init__(self, width_s: float) -> None:
        self.width_s = width_s
        self._slot_s = width_s / SLOTS
        self._bads = [0.0] * (SLOTS + 1)
        self._totals = [0.0] * (SLOTS + 1)
        self._turn = -1
        self.bad = self.total = 0.0

    def add(self, now_s: float, bad: float, total: float) -> None:
        """Count; what is older than the window is forgotten."""
        self.advance(now_s)
        at = self._turn % (SLOTS + 1)
        self._bads[at] += bad
        self._totals[at] += total
        self.bad += bad
        self.total += total

    def advance(self, now_s: float) -> None:
        """Forget what is too old by now. A clock that went back forgets nothing."""
        turn = int(now_s / self._slot_s)
        if self._turn < 0 or turn - self._turn > SLOTS:
            self._bads, self._totals = [0.0] * (SLOTS + 1), [0.0] * (SLOTS + 1)
            self.bad = self.total = 0.0
            self._turn = turn
        while self._turn < turn:
            self._turn += 1
            at = self._turn % (SLOTS + 1)
            self.bad -= self._bads[at]
            self.total -= self._totals[at]
            self._bads[at] = self._totals[at] = 0.0
        if self.total <= 0.0:
            self.bad = self.total = 0.0  # no dust of float subtraction

    def series(self) -> list[tuple[float, float]]:
        """(bad, total) of each slot, the oldest first."""
        order = [(self._turn + 1 + number) % (SLOTS + 1) for number in range(SLOTS + 1)]
        return [(self._bads[at], self._totals[at]) for at in order]

    def state(self) -> WindowState:
        """What is needed to go on after a restart."""
        return WindowState(self.width_s, self._turn, list(self._bads), list(self._totals))

    def restore(self, state: WindowState) -> bool:
        """Take a state over; False when it is of a window of another width."""
        sizes = {len(state.bad), len(state.total)}
        if abs(state.width_s - self.width_s) > 1e-6 or sizes != {SLOTS + 1} or state.turn < 0:
            return False
        self._turn, self._bads, self._totals = state.turn, list(state.bad), list(state.total)
        self.bad, self.total = sum(self._bads), sum(self._totals)
        return True

    def check(self) -> None:
        """Assert the invariants."""
        assert abs(self.bad - sum(self._bads)) < 1e-6 * max(1.0, self.total), "sums are the slots'"
        assert abs(self.total - sum(self._totals)) < 1e-6 * max(1.0, self.total), "sums are the slots'"


class Burn(msgspec.Struct, frozen=True):
    """One rule of one objective, as it stands."""

    factor: float
    long_s: float
    short_s: float
    severity: Literal["page", "ticket"]
    long_rate: float
    short_rate: float
    firing: bool


class BudgetFigures(msgspec.Struct, frozen=True):
    """An error budget at one moment. `remaining` is 1 when untouched, 0 when spent, negative beyond."""

    total: float
    bad: float
    ratio: float  # of good events; 1 without any
    remaining: float
    burns: list[Burn]
    burn_down: list[float]  # `remaining` after each slot of the period


class ErrorBudget:
    """The budget of one objective with its windows and rules."""

    def __init__(self, target: float, period_s: float = PERIOD_S) -> None:
        assert 0.0 < target < 1.0, "a target is a share of good events below 1"
        self.allowed = 1.0 - target
        self.period_s = period_s
        self._rules = [rule.scaled(period_s) for rule in RULES]
        self._period = Window(period_s)
        self._pairs = [(Window(rule.long_s), Window(rule.short_s)) for rule in self._rules]
        self._firing = [False] * len(self._rules)

    def add(self, now_s: float, bad: float, total: float) -> None:
        """Count events; more bad ones than all are taken as all."""
        total = max(0.0, total)
        bad = min(max(0.0, bad), total)
        for window in self._windows():
            window.add(now_s, bad, total)

    def judge(self, now_s: float) -> list[Burn]:
        """The rules at this moment; those that fire stay so until they burn clearly less."""
        found = []
        for number, (rule, (longer, shorter)) in enumerate(zip(self._rules, self._pairs, strict=True)):
            longer.advance(now_s)
            shorter.advance(now_s)
            long_rate, short_rate = self._rate(longer), self._rate(shorter)
            if self._firing[number]:
                self._firing[number] = short_rate >= rule.factor * CLEAR_SHARE
            else:
                enough = longer.total >= EVENTS_MIN and longer.bad >= BAD_MIN
                self._firing[number] = enough and long_rate >= rule.factor and short_rate >= rule.factor
            found.append(
                Burn(rule.factor, rule.long_s, rule.short_s, rule.severity, long_rate, short_rate, self._firing[number])
            )
        return found

    def figures(self, now_s: float) -> BudgetFigures:
        """Everything people look at."""
        self._period.advance(now_s)
        total, bad = self._period.total, self._period.bad
        series = self._period.series()
        spent, burn_down = 0.0, []
        for slot_bad, _ in series:
            spent += slot_bad
            burn_down.append(round(1.0 - spent / (total * self.allowed), 4) if total else 1.0)
        remaining = 1.0 - bad / (total * self.allowed) if total else 1.0
        return BudgetFigures(total, bad, 1.0 - bad / total if total else 1.0, remaining, self.judge(now_s), burn_down)

    def state(self) -> list[WindowState]:
        """What is needed to go on after a restart."""
        return [window.state() for window in self._windows()]

    def restore(self, states: list[WindowState]) -> None:
        """Take over what a budget of the same period kept; other windows begin empty."""
        for window, state in zip(self._windows(), states, strict=False):
            window.restore(state)

    def check(self) -> None:
        """Assert the invariants."""
        for window in self._windows():
            window.check()

    def _rate(self, window: Window) -> float:
        return window.bad / window.total / self.allowed if window.total else 0.0

    def _windows(self) -> list[Window]:
        return [self._period, *(window for pair in self._pairs for window in pair)]

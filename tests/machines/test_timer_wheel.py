"""The wheel against a list of deadlines."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fourplane.service.timer_wheel import TimerWheel

TICK = 0.5
SECONDS = st.floats(0, 40)


class Wheel(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.now = 1_000.0
        self.fired = []
        self.wheel = TimerWheel(lambda: self.now, tick_s=TICK, slots=8, on_error=lambda error: None)
        self.timers = []
        self.due = {}

    @rule(seconds=SECONDS)
    def after(self, seconds):
        name = len(self.timers)
        self.timers.append(self.wheel.at(self.now + seconds, lambda: self.fired.append(name)))
        self.due[name] = self.now + seconds

    @precondition(lambda self: self.timers)
    @rule(data=st.data(), seconds=SECONDS)
    def rearm(self, data, seconds):
        name = data.draw(st.integers(0, len(self.timers) - 1))
        self.timers[name].rearm(seconds)
        if name in self.due:
            self.due[name] = self.now + seconds

    @precondition(lambda self: self.timers)
    @rule(data=st.data())
    def cancel(self, data):
        name = data.draw(st.integers(0, len(self.timers) - 1))
        self.timers[name].cancel()
        self.due.pop(name, None)

    @rule(seconds=st.floats(0, 15))
    def turn(self, seconds):
        self.now += seconds
        self.fired.clear()
        self.wheel.turn(self.now)
        for name in self.fired:
            assert self.due.pop(name) <= self.now, "never early, never twice"
        assert all(due > self.now - 2 * TICK for due in self.due.values()), "none is left behind"

    @invariant()
    def holds(self):
        self.wheel.check()
        assert all(self.timers[name].pending == (name in self.due) for name in range(len(self.timers)))


TestWheel = Wheel.TestCase
TestWheel.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)

"""The breaker under any order of calls, verdicts and waiting."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fourplane.service.circuit_breaker import BreakerSettings, CircuitBreaker

OPTIONS = BreakerSettings(calls_min=3, window_s=2.0, open_s=1.0, open_s_max=8.0, probes=2)


class Breaker(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.breaker = CircuitBreaker(OPTIONS)
        self.now = 0.0
        self.under_way = 0
        self.opened = 0.0

    @rule(seconds=st.floats(0, 10))
    def wait(self, seconds):
        self.now += seconds

    @rule()
    def call(self):
        before = self.breaker.state
        left = self.breaker.retry_after_s(self.now)
        admitted = self.breaker.admit(self.now)
        if before == "closed":
            assert admitted
        if before == "open":
            assert admitted == (left == 0), "open admits nothing before its time, and something after it"
        self.under_way += admitted

    @precondition(lambda self: self.under_way)
    @rule(verdict=st.sampled_from(["succeeded", "failed", "abandoned"]))
    def answer(self, verdict):
        self.under_way -= 1
        if verdict == "abandoned":
            self.breaker.abandoned()
        else:
            getattr(self.breaker, verdict)(self.now)

    @rule()
    def heals(self):
        """Whatever happened, a dependency that is well again is used again."""
        for _ in range(4):
            self.now += OPTIONS.open_s_max
            for _ in range(self.under_way):
                self.breaker.abandoned()
            self.under_way = 0
            for _ in range(OPTIONS.probes):
                if self.breaker.admit(self.now):
                    self.breaker.succeeded(self.now)
        assert self.breaker.state == "closed"

    @invariant()
    def holds(self):
        self.breaker.check()


TestBreaker = Breaker.TestCase
TestBreaker.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)

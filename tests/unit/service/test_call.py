import asyncio

import pytest

from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, DeadlineExceeded, Overloaded, Unavailable
from fourplane.service.call import CallPolicy, CallSettings
from fourplane.service.circuit_breaker import BreakerSettings, CircuitBreaker
from fourplane.service.concurrency_limit import Aimd, Gradient2, LimitSettings
from fourplane.service.retry_budget import RetryBudget, RetrySettings
from fourplane.simulator import loop as simulator

QUICK_RETRY = RetrySettings(attempts_max=3, wait_s=0.00001, wait_s_max=0.00001)


class Dependency:
    """Answers what it is told to, in turn; the last for ever."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.calls = 0

    async def __call__(self):
        self.calls += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, asyncio.Event):
            await answer.wait()
        return answer


def run(main):
    """In virtual time: what opens for half a millisecond is open for as long on a slow machine too."""
    return simulator.run(lambda _: main(), 1).result


def test_good_answer_passes_and_so_does_a_no():
    async def main():
        policy = CallPolicy("stock")
        assert await policy.run(Dependency("yes")) == "yes"
        for _ in range(50):
            with pytest.raises(Conflict):
                await policy.run_with(Dependency(Conflict("sold out")), retry=True)
        seen = policy.statistics()
        assert (seen.calls, seen.failures, seen.breaker, seen.retries, seen.in_flight) == (51, 0, "closed", 0, 0)

    run(main)


def test_breaker_opens_after_failures_and_closes_after_good_probes():
    async def main():
        settings = CallSettings(breaker=BreakerSettings(calls_min=5, open_s=0.0005, probes=2))
        policy = CallPolicy("stock", settings)
        broken = Dependency(Unavailable("away"))
        for _ in range(5):
            with pytest.raises(Unavailable):
                await policy.run(broken)
        with pytest.raises(Unavailable) as refused:
            await policy.run(broken)
        assert (refused.value.reason, broken.calls) == ("breaker_open", 5)
        await clock.sleep(0.001)
        for _ in range(2):
            await policy.run(Dependency("well"))
        assert policy.breaker.state == "closed"

    run(main)


def test_retries_stop_at_the_first_answer_the_bound_or_the_budget():
    async def main():
        policy = CallPolicy("stock", CallSettings(retry=QUICK_RETRY))
        assert await policy.run_with(Dependency(Unavailable("a"), OSError("b"), "third"), retry=True) == "third"
        broken = Dependency(Unavailable("away"))
        with pytest.raises(Unavailable):
            await policy.run_with(broken, retry=True)
        assert broken.calls == 3
        single = Dependency(OSError("reset"))
        with pytest.raises(Unavailable):
            await policy.run_with(single, retry=True, deadline_s=0.0)
        poor = CallPolicy("stock", CallSettings(retry=RetrySettings(per_s=0.0, share=0.1, wait_s=0.00001)))
        tired = Dependency(Unavailable("away"))
        for _ in range(10):
            with pytest.raises(Unavailable):
                await poor.run_with(tired, retry=True)
        assert tired.calls <= 11, "ten calls earn one retry"

    run(main)


def test_deadline_ends_a_call_and_counts_as_failure():
    async def main():
        policy = CallPolicy("stock")
        with pytest.raises(DeadlineExceeded):
            await policy.run_with(Dependency(asyncio.Event()), deadline_s=0.001)
        seen = policy.statistics()
        assert (seen.failures, seen.expired, seen.in_flight) == (1, 1, 0)

    run(main)


def test_limit_refuses_what_is_too_much_at_once():
    async def main():
        policy = CallPolicy("stock", CallSettings(limit=LimitSettings(initial=2)))
        gate = asyncio.Event()
        slow = [asyncio.ensure_future(policy.run(Dependency(gate))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as full:
            await policy.run(Dependency("more"))
        assert full.value.reason == "too_many_calls"
        gate.set()
        await asyncio.gather(*slow)
        assert policy.statistics().in_flight == 0

    run(main)


def test_hedge_wins_over_a_slow_first_attempt():
    async def main():
        policy = CallPolicy("stock", CallSettings(hedge_after_s=0.0005))
        dependency = Dependency(asyncio.Event(), "second")
        assert await policy.run_with(dependency, retry=True) == "second"
        seen = policy.statistics()
        assert (seen.hedges, seen.hedges_won, seen.in_flight) == (1, 1, 0)
        assert await policy.run_with(Dependency("quick"), retry=True) == "quick"
        assert policy.statistics().hedges == 1
        with pytest.raises(Conflict):
            await policy.run_with(Dependency(Conflict("no")), retry=True)

    run(main)


def test_fallback_answers_failures_only():
    async def main():
        policy = CallPolicy("stock")
        assert await policy.run_with(Dependency(Unavailable("away")), fallback=lambda error: "cached") == "cached"
        with pytest.raises(Conflict):
            await policy.run_with(Dependency(Conflict("no")), fallback=lambda error: "cached")
        assert policy.statistics().fallbacks == 1

    run(main)


def test_cancelled_caller_leaves_nothing_under_way():
    async def main():
        policy = CallPolicy("stock")
        calling = asyncio.ensure_future(policy.run(Dependency(asyncio.Event())))
        await asyncio.sleep(0)
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)
        seen = policy.statistics()
        assert (seen.in_flight, seen.failures) == (0, 0)

    run(main)


def test_gradient_grows_while_latency_holds_and_shrinks_when_it_rises():
    limit = Gradient2(LimitSettings(initial=20, at_most=200))
    for _ in range(100):
        limit.sample(0.010, limit.value)
    grown = limit.value
    assert grown > 60
    for _ in range(30):
        limit.sample(0.100, limit.value)
    assert limit.value < grown / 2
    idle = Gradient2(LimitSettings(initial=20))
    for _ in range(100):
        idle.sample(0.010, 1)
    assert idle.value == 20, "an unused limit does not grow"


def test_aimd_adds_slowly_and_backs_off_at_once():
    limit = Aimd(LimitSettings(initial=10))
    for _ in range(200):
        limit.sample(0.01, limit.value)
    grown = limit.value
    assert 18 <= grown <= 25
    limit.sample(0.01, grown, dropped=True)
    assert limit.value < grown
    for _ in range(200):
        limit.sample(9.0, limit.value)
    assert limit.value == 4


def test_budget_bounds_the_load_of_a_retry_storm():
    budget = RetryBudget(RetrySettings(share=0.2, per_s=0.0))
    retries = 0
    for _ in range(1_000):
        budget.deposit()
        retries += budget.try_spend(0.0)
    assert retries in {199, 200}
    trickle = RetryBudget(RetrySettings(share=0.0, per_s=2.0))
    while trickle.try_spend(0.0):
        pass
    assert [trickle.try_spend(0.4), trickle.try_spend(0.6), trickle.try_spend(0.7)] == [False, True, False]


def test_waits_grow_within_their_bound_and_are_jittered():
    budget = RetryBudget(RetrySettings(wait_s=0.1, wait_s_max=0.5))
    rng = clock.random()
    for attempt, longest in ((1, 0.1), (2, 0.2), (3, 0.4), (4, 0.5), (50, 0.5)):
        waits = [budget.wait_s(attempt, rng) for _ in range(100)]
        assert 0 <= min(waits) < max(waits) <= longest


def test_open_time_doubles_while_probes_fail():
    breaker = CircuitBreaker(BreakerSettings(calls_min=1, open_s=1.0, open_s_max=3.0))
    now = 0.0
    breaker.failed(now)
    waits = []
    for _ in range(4):
        waits.append(breaker.retry_after_s(now))
        now += waits[-1]
        assert breaker.admit(now)
        breaker.failed(now)
    assert waits == [1.0, 2.0, 3.0, 3.0]

"""One policy between a caller and a dependency, in an order that can be read.

    1 deadline      no attempt begins behind it, none outlives it
    2 limit         at most as many calls under way as the dependency bears (concurrency_limit.py)
    3 breaker       none while it does not answer (circuit_breaker.py)
    4 the call      with a hedge: a second attempt when the first is slower than most, whichever answers first counts
    5 retry         of what may be repeated, within a budget, after a jittered wait (retry_budget.py)
    6 fallback      a worse answer, if the caller has one

Answers that say no to the caller (Rejected, NotFound, Conflict) are answers: they pass at once and count as success.
Unavailable, Overloaded, DeadlineExceeded and OSError are failures. Only idempotent calls are repeated or hedged: `retry=` and
`hedge_after_s=` say so. Without a deadline in the policy or the call nothing is timed.

The way of a good call is short, because all that can say no is one number, looked at anew whenever something was learned: below
`_quiet` calls under way nobody objects. One call in 32 takes the long way, is timed, and tells limit and breaker of all since.
Cost: 3.3 bare awaits per call when all is well, the call itself included (`benchmarks/runtime.py`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import TypeVar

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import DeadlineExceeded, FourplaneError, Overloaded, Unavailable
from fourplane.service.circuit_breaker import BreakerSettings, CircuitBreaker, State
from fourplane.service.concurrency_limit import Gradient2, Limit, LimitSettings
from fourplane.service.retry_budget import RetryBudget, RetrySettings

T = TypeVar("T")
FAILURES = (Unavailable, Overloaded, DeadlineExceeded, OSError)
SAMPLE_MASK = 31
SAMPLE_ALL_OVER = 16


class CallSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    deadline_s: float = 0.0  # 0: the caller says, or nothing is timed
    hedge_after_s: float = 0.0  # 0: never
    limit: LimitSettings = LimitSettings()
    breaker: BreakerSettings = BreakerSettings()
    retry: RetrySettings = RetrySettings()


class CallStatistics(msgspec.Struct, frozen=True):
    calls: int
    failures: int
    in_flight: int
    limit: int
    limited: int
    breaker: State
    refused: int
    retries: int
    hedges: int
    hedges_won: int
    fallbacks: int
    expired: int


class CallPolicy:
    """The policy towards one dependency, shared by all its callers in this process."""

    __slots__ = (
        "_begun", "_ended", "_expired", "_failures", "_fallbacks", "_hedges", "_hedges_won", "_limited", "_quiet", "_retries",
        "_said", "_settings", "_untimed", "breaker", "budget", "limit", "name",
    )  # fmt: skip

    def __init__(self, name: str, settings: CallSettings | None = None, *, limit: Limit | None = None) -> None:
        self.name = name
        self._settings = settings or CallSettings()
        self.limit: Limit = limit or Gradient2(self._settings.limit)
        self.breaker = CircuitBreaker(self._settings.breaker)
        self.budget = RetryBudget(self._settings.retry)
        self._untimed = not self._settings.deadline_s and not self._settings.hedge_after_s
        self._begun = self._ended = self._said = 0
        self._failures = self._limited = self._retries = self._expired = 0
        self._hedges = self._hedges_won = self._fallbacks = 0
        self._look()

    async def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """The answer of `work()`, as the policy's settings say.

        Raises Overloaded (`too_many_calls`), Unavailable (`breaker_open`), DeadlineExceeded, or what `work` raised.
        """
        begun = self._begun
        if begun - self._ended >= self._quiet or not begun & SAMPLE_MASK:
            if self._untimed:
                return await self._attempt(work)
            return await self._run(work, self._settings.deadline_s, None, retry=False)
        self._begun = begun + 1
        try:
            result = await work()
        except BaseException as error:
            self._note_error(error, 0.0, begun - self._ended, timed=False)
            raise
        self._ended += 1
        return result

    def run_with(
        self,
        work: Callable[[], Awaitable[T]],
        *,
        deadline_s: float | None = None,
        retry: bool = False,
        fallback: Callable[[FourplaneError], T] | None = None,
    ) -> Coroutine[object, object, T]:
        """The same with terms of this call: `deadline_s` is what is left now, `retry` says it may be repeated."""
        given_s = self._settings.deadline_s if deadline_s is None else deadline_s
        return self._run(work, given_s, fallback, retry=retry)

    def statistics(self) -> CallStatistics:
        return CallStatistics(
            calls=self._begun,
            failures=self._failures,
            in_flight=self._begun - self._ended,
            limit=self.limit.value,
            limited=self._limited,
            breaker=self.breaker.state,
            refused=self.breaker.refused,
            retries=self._retries,
            hedges=self._hedges,
            hedges_won=self._hedges_won,
            fallbacks=self._fallbacks,
            expired=self._expired,
        )

    async def _run(
        self,
        work: Callable[[], Awaitable[T]],
        given_s: float,
        fallback: Callable[[FourplaneError], T] | None,
        *,
        retry: bool,
    ) -> T:
        """Steps 1 and 6 around the attempts."""
        deadline = clock.monotonic_s() + given_s if given_s else 0.0
        try:
            return await self._repeat(work, deadline, retry=retry)
        except FAILURES as error:
            if fallback is None:
                raise
            self._fallbacks += 1
            return fallback(_as_ours(self.name, error))

    async def _repeat(self, work: Callable[[], Awaitable[T]], deadline: float, *, retry: bool) -> T:
        """Steps 1, 4 and 5: attempts until one is answered, the budget says no, or the time is over."""
        attempt = 0
        if retry:
            self.budget.deposit()
        while True:
            attempt += 1
            try:
                return await self._timed(work, deadline, hedge=retry)
            except FAILURES as error:
                now = clock.monotonic_s()
                if not retry or attempt >= self._settings.retry.attempts_max:
                    raise _as_ours(self.name, error) from error
                wait_s = self.budget.wait_s(attempt, clock.random())
                if isinstance(error, Overloaded):
                    wait_s += min(error.retry_after_s, self._settings.retry.wait_s_max)
                if (deadline and now + wait_s >= deadline) or not self.budget.try_spend(now):
                    raise _as_ours(self.name, error) from error
            self._retries += 1
            await clock.sleep(wait_s)

    async def _timed(self, work: Callable[[], Awaitable[T]], deadline: float, *, hedge: bool) -> T:
        hedged = hedge and self._settings.hedge_after_s > 0
        if not deadline:
            return await (self._hedged(work) if hedged else self._attempt(work))
        left_s = deadline - clock.monotonic_s()
        if left_s <= 0:
            self._expired += 1
            raise DeadlineExceeded(f"no time is left for {self.name}")
        try:
            async with asyncio.timeout(left_s):
                return await (self._hedged(work) if hedged else self._attempt(work, timed=True))
        except TimeoutError:
            self._expired += 1
            raise DeadlineExceeded(f"{self.name} did not answer in time") from None

    async def _hedged(self, work: Callable[[], Awaitable[T]]) -> T:
        """Two attempts at most; the second only when the first is slow and the budget allows it."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        async def first() -> None:
            try:
                result = await self._attempt(work)
            except Exception as error:  # noqa: BLE001 - raised to the caller below
                if not answer.done():
                    answer.set_exception(error)
            else:
                if not answer.done():
                    answer.set_result(result)

        async def second() -> None:
            await clock.sleep(self._settings.hedge_after_s)
            if not self.budget.try_spend(clock.monotonic_s()):
                return
            self._hedges += 1
            try:
                result = await self._attempt(work)
            except FAILURES:
                return  # the first attempt decides
            if not answer.done():
                self._hedges_won += 1
                answer.set_result(result)

        async with asyncio.TaskGroup() as group:
            attempts = [group.create_task(first()), group.create_task(second())]
            await asyncio.wait((answer,))
            for attempt in attempts:
                attempt.cancel()
        return answer.result()

    async def _attempt(self, work: Callable[[], Awaitable[T]], *, timed: bool = False) -> T:
        """Steps 2 to 4 for one attempt, timed, with the successes since the last one."""
        in_flight = self._begun - self._ended
        began = clock.monotonic_s()
        self._admit(in_flight, began)
        self._begun += 1
        try:
            result = await work()
        except BaseException as error:
            self._note_error(error, began, in_flight, timed=timed)
            raise
        self._ended += 1
        now = clock.monotonic_s()
        self._say_successes(now)
        self.limit.sample(now - began, in_flight)
        self._look()
        return result

    def _look(self) -> None:
        """Limit and breaker in one number, so that one comparison admits a quiet call."""
        well = self._untimed and self.breaker.state == "closed"
        self._quiet = min(self.limit.value, SAMPLE_ALL_OVER + 1) if well else 0

    def _admit(self, in_flight: int, now: float) -> None:
        """Say why a call may not be made, or let it (or a probe) pass."""
        if in_flight >= self.limit.value:
            self._limited += 1
            raise Overloaded(
                f"{in_flight} calls to {self.name} are under way", retry_after_s=0.05, code="too_many_calls"
            )
        if not self.breaker.admit(now):
            raise Unavailable(f"{self.name} does not answer at the moment", code="breaker_open")

    def _say_successes(self, now: float) -> None:
        """Tell the breaker of the calls that went well since it last heard."""
        said, self._said = self._said, self._ended
        if self._said > said:
            self.breaker.succeeded(now, self._said - said)

    def _note_error(self, error: BaseException, began: float, in_flight: int, *, timed: bool) -> None:
        now = clock.monotonic_s()
        self._ended += 1
        self._said += 1  # this one is told apart
        if self.breaker.state == "closed":
            self._say_successes(now)
        late = timed and isinstance(error, asyncio.CancelledError)  # our deadline, nearly always
        if late or isinstance(error, FAILURES):
            self._failures += 1
            self.breaker.failed(now)
            self.limit.sample(now - began if began else 0.0, in_flight, dropped=True)
        elif isinstance(error, Exception):
            self.breaker.succeeded(now)  # a no is an answer
        else:
            self.breaker.abandoned()
        self._look()


def _as_ours(name: str, error: BaseException) -> FourplaneError:
    return error if isinstance(error, FourplaneError) else Unavailable(f"{name} cannot be reached: {error}")

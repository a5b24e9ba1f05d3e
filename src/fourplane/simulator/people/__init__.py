"""The users of a simulated world: they act by the seed, remember what they were promised, and tell what they felt.

Unlike a crowd, which measures, people remember every promise (an acknowledged message, a placed order, an accepted ride),
so that a checker can hold the system to it. They speak the public protocols only.
"""

import asyncio
import math
from typing import Protocol

import msgspec

from fourplane.edge.http_client import HttpClient, HttpClientSettings, HttpResponse
from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError
from fourplane.foundation.telemetry import Histogram
from fourplane.simulator.deployment import HTTP_PORT, SimulatedDeployment
from fourplane.simulator.loop import World

REQUEST_S = 8.0
BEHIND_S_MAX = 10.0  # what a person of an open loop catches up on
GRACE_S = 1.0  # what a request may take beyond its deadline


class Second(msgspec.Struct):
    """What was felt during one second."""

    served: int = 0
    failed: int = 0
    slowest_s: float = 0.0


class Felt:
    """What users saw: per second served, failed and the slowest; errors by code; latencies by action."""

    def __init__(self) -> None:
        self.seconds: dict[int, Second] = {}
        self.errors: dict[str, int] = {}
        self.latency: dict[str, Histogram] = {}
        self.facts: dict[str, int] = {}
        self.violations: list[str] = []

    def served(self, action: str, took_s: float) -> None:
        """One action went well."""
        second = self._now()
        second.served += 1
        second.slowest_s = max(second.slowest_s, took_s)
        cell = self.latency.get(action)
        if cell is None:
            cell = self.latency[action] = Histogram()
        cell.record(took_s)

    def failed(self, code: str) -> None:
        """One action did not."""
        self._now().failed += 1
        self.errors[code] = self.errors.get(code, 0) + 1

    def count(self, fact: str, by: int = 1) -> None:
        """A fact worth telling, such as an order."""
        self.facts[fact] = self.facts.get(fact, 0) + by

    def violated(self, text: str) -> None:
        """A promise was broken; told once."""
        if text not in self.violations:
            self.violations.append(text)

    def totals(self, *, since_s: float = 0.0) -> tuple[int, int]:
        """Served and failed since a moment."""
        chosen = [second for at, second in self.seconds.items() if at >= int(since_s)]
        return sum(second.served for second in chosen), sum(second.failed for second in chosen)

    def _now(self) -> Second:
        return self.seconds.setdefault(int(clock.monotonic_s()), Second())


class People(Protocol):
    """One system's users."""

    felt: Felt
    pace: "Pace"

    async def begin(self) -> None:
        """Register, log in, look around: before the experiment."""

    async def drive(self, duration_s: float) -> None:
        """Act for this long."""

    async def settle(self) -> None:
        """When everything is whole again: finish what was begun, collect what is owed."""

    async def check(self) -> list[str]:
        """What of the system's promises is broken now; called in between and at the end."""

    def surge(self, factor: float) -> None:
        """Act this many times as often; 1 is the usual pace."""


class Caller:
    """HTTP as people use it: one deadline per request, every outcome felt, an endless one a violation."""

    def __init__(self, world: World, deployment: SimulatedDeployment, felt: Felt, host: str) -> None:
        self._world = world
        self._felt = felt
        with world.on(host):
            self._client = HttpClient(deployment.address, HTTP_PORT, settings=HttpClientSettings(connections_max=64))

    async def call(
        self, action: str, method: str, path: str, *, body: object = None, headers: dict[str, str] | None = None
    ) -> HttpResponse | None:
        """The answer, None when there was none in time; answers of 500 and more count as failed, others as served."""
        began = clock.monotonic_s()
        sent = {"content-type": "application/json", "accept": "*/*"} | (headers or {})
        content = b"" if body is None else msgspec.json.encode(body)
        try:
            async with asyncio.timeout(REQUEST_S + GRACE_S):
                answer = await self._client.request(method, path, body=content, headers=sent, timeout_s=REQUEST_S)
        except TimeoutError:
            self._felt.failed("endless")
            self._felt.violated(
                f"deadline: {method} {path.partition('?')[0]} did not end within {REQUEST_S + GRACE_S:g} s"
            )
            return None
        except FourplaneError as error:
            self._felt.failed(error.reason)
            return None
        except OSError as error:
            self._felt.failed(type(error).__name__)
            return None
        took = clock.monotonic_s() - began
        if answer.status >= 500 or answer.status == 429:
            self._felt.failed(f"http_{answer.status}")
        else:
            self._felt.served(action, took)
        return answer

    def close(self) -> None:
        self._client.close()


class Pace:
    """Pauses between the actions of one person, by the seed, the hour and the surge of the moment.

    In a closed loop a pause begins when the answer is there, so that a slow system is asked less. In an open loop the next moment
    is drawn from the last one: who waited too long acts at once, and a slow system gets no rest; what is missed is bounded.
    """

    def __init__(self, every_s: float) -> None:
        self.every_s = every_s
        self.factor = 1.0
        self._is_open = self._is_diurnal = False
        self._period_s = 1.0
        self._next_s: dict[object, float] = {}

    def shape(self, load: str, loop: str, *, period_s: float) -> None:
        """Steady or diurnal (a day in `period_s`), closed or open."""
        self._is_diurnal, self._is_open, self._period_s = load == "diurnal", loop == "open", period_s

    def rate(self, now_s: float) -> float:
        """How often people act now, 1 = usual: by night a fifth, in the evening nearly twice."""
        if not self._is_diurnal:
            return self.factor
        return self.factor * (1.0 - 0.8 * math.cos(2 * math.pi * now_s / self._period_s))

    async def wait(self, until_s: float = math.inf) -> None:
        """Until this person acts again, or until `until_s`."""
        now = clock.monotonic_s()
        pause = clock.random().expovariate(self.rate(now) / self.every_s)
        if self._is_open:
            person = asyncio.current_task()
            at = max(self._next_s.get(person, now), now - BEHIND_S_MAX) + pause
            self._next_s[person] = at
            pause = max(0.0, at - now)
        await clock.sleep(min(pause, max(0.0, until_s - now)))

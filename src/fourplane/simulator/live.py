"""The same experiment file on a running deployment: real processes, real time, real clients.

Clients of the system (`crowds`) drive it from this process, so that probes say what users felt and not what the servers
think. Faults are leases in the deployment (`control.live_faults`): this runner renews them every second, and they lapse
`LEASE_S` after it died. Order as in simulation: the hypothesis must hold, else nothing is done; the method; rollbacks and
the end of all faults always; the hypothesis must hold again. While faults last it is looked at every second: below
`halt_below` served the run is halted at once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from fourplane.control.live_faults import KINDS
from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError, Rejected, Unavailable
from fourplane.foundation.telemetry import Histogram, quantile
from fourplane.simulator.aftermath import Cost, Moment, cost
from fourplane.simulator.crowds import Auditing, Crowd, Plan, Tally, Target
from fourplane.simulator.experiment import Activity, Experiment, tolerates
from fourplane.simulator.experiments import VERSION, Result
from fourplane.simulator.stage import Span

LEASE_S = 5.0
TICK_S = 1.0
STILL_S = 15.0  # nobody is answered at all: longer than a restart takes
SERVED_MIN = 10  # before anything is said about how many
FIRST_S = 60.0  # for clients that must make something first, such as a film
RECOVER_S = 30.0
BACK_S = 15.0  # how long the worker that takes orders may be away, as when something else just killed it
LOOK_EVERY = 2  # seconds
OF_THE_RUNNER = frozenset({"retry_storm", "undo_all", "change"})
PROBES = frozenset({"availability", "slowest_s", "is_up"})

Order = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]  # (order, arguments) to the deployment's faults
Told = Callable[[str], None]


def check_possible(experiment: Experiment) -> None:
    """Raise Rejected, before anything is done, for a file with a step that no running deployment can take."""
    for activity in (*experiment.hypothesis, *experiment.method, *experiment.rollbacks):
        name = str(getattr(activity.call, "__name__", ""))
        if name not in {*KINDS, *OF_THE_RUNNER, *PROBES}:
            raise Rejected(
                f"{activity.name} needs {name}, which only a simulated world has; a running deployment can have "
                f"{', '.join((*KINDS, 'retry_storm'))}",
                code="not_live",
            )


class _Second:
    """What users felt until a second was over; differences of two of them are what they felt between."""

    def __init__(self, at_s: float, tally: Tally) -> None:
        self.at_s = at_s
        self.facts = dict(tally.facts)
        self.served = sum(cell.count for cell in tally.latency.values())
        self.failed = sum(tally.errors.values())
        self.buckets = _joined(tally)


class LiveRun:
    """One run against one deployment. `crowd` makes clients, `order` reaches the deployment's faults."""

    def __init__(
        self,
        experiment: Experiment,
        target: Target,
        *,
        order: Order,
        crowd: Callable[[], Crowd],
        plan: Plan,
        told: Told,
        halt_below: float = 0.2,
        baseline_s: float = 2.0,
        settle_s: float = 0.0,
    ) -> None:
        """`baseline_s`: how long users are looked at before anything is done; the cost is told against that pace.

        `settle_s`: how long runbooks are waited for at the end, so that the report tells how they ended.
        """
        self._experiment = experiment
        self._system = experiment.ours.system
        self._target = target
        self._order = order
        self._crowd = crowd
        self._plan = plan
        self._told = told
        self._halt_below = halt_below
        self._baseline_s = baseline_s
        self._settle_s = settle_s
        self._tally = Tally()
        self._seconds: list[_Second] = []
        self._spans: list[Span] = []
        self._leases: dict[str, Span] = {}
        self._entries: list[dict[str, Any]] = []
        self._states: dict[str, Any] = {"during": []}
        self._began_s = 0.0
        self._halted = ""
        self._undone: list[str] = []  # steps of the method that could not be done
        self._notes: list[dict[str, Any]] = []
        self._began_at_s = 0.0
        self._first_fault_at_s = 0.0
        self._budgets: dict[str, Any] = {}
        self._incident: dict[str, Any] = {}
        self._changes: dict[str, Span] = {}  # values of the configuration that are not as they were
        self._audit: tuple[int, list[str]] = (0, [])
        self._group: asyncio.TaskGroup

    async def run(self) -> Result:
        """All of it. The deployment is left without faults, whatever happens here."""
        ours, start, rollbacks = self._experiment.ours, _moment(), []
        self._began_s, self._began_at_s = clock.monotonic_s(), clock.now_us() / 1e6
        self._budgets["before"] = (await self._ask_incident()).get("budgets", {})
        self._seconds.append(_Second(0.0, self._tally))
        async with asyncio.TaskGroup() as group:
            self._group, crowd = group, self._crowd()
            jobs = [group.create_task(self._drive(crowd, self._tally)), group.create_task(self._watch())]
            try:
                await clock.sleep(self._baseline_s - 2.0)
                await self._calm("before", ours.warm_up_s)
                if self._states["before"]["steady_state_met"]:
                    self._told("steady: the method begins")
                    method = group.create_task(self._method())
                    await method
                else:
                    self._told("the steady state does not hold, so nothing is done to it")
            finally:
                rollbacks = [await self._perform(one) for one in self._experiment.rollbacks]
                await self._end_faults()
            if self._states["before"]["steady_state_met"]:
                await self._calm("after", RECOVER_S)
                self._incident = await self._settled()
            for job in jobs:
                job.cancel()
            await asyncio.wait(jobs)
            await self._look_back(crowd)
        self._budgets["after"] = self._incident.get("budgets", {})
        return self._result(start, rollbacks)

    async def _look_back(self, crowd: Crowd) -> None:
        """Whether what users were promised was kept, where they remember it."""
        if not isinstance(crowd, Auditing):
            return
        try:
            self._audit = await crowd.audit(self._target)
        except (FourplaneError, OSError) as error:
            self._audit = (0, [f"could not be looked at: {error}"])
        looked, broken = self._audit
        self._told(f"{looked} orders looked at: {'; '.join(broken[:5]) or 'none lost, none doubled'}")

    async def _ask_incident(self) -> dict[str, Any]:
        """What the deployment itself knows: alerts, runbooks, budgets, faults that ended."""
        try:
            return await self._order("incident", {"since_s": self._began_at_s})
        except (FourplaneError, OSError):
            return {}

    async def _settled(self) -> dict[str, Any]:
        """The same once no runbook is under way any more, `settle_s` at the longest."""
        until_s = self._now_s() + self._settle_s
        while True:
            found = await self._ask_incident()
            if self._now_s() >= until_s or all(run["ended_s"] for run in found.get("runs", [])):
                return found
            await clock.sleep(TICK_S)

    async def _method(self) -> None:
        begun_s = self._now_s()
        for activity in self._experiment.method:
            if self._halted:
                return
            entry = await self._perform(activity)
            self._entries.append(entry)
            if entry["status"] == "failed":
                self._undone.append(f"{activity.name} could not be done: {entry['output']}")
        while not self._halted and self._now_s() - begun_s < self._experiment.ours.duration_s:
            await clock.sleep(0.2)

    async def _drive(self, crowd: Crowd, tally: Tally, factor: float = 1.0) -> None:
        plan = Plan(max(1, int(self._plan.users * factor)), self._plan.rate_per_s * factor, 0.0, self._plan.shape)
        while True:
            try:
                await crowd.drive(self._target, plan, tally, lambda _share, _text: None)
                return
            except (FourplaneError, OSError) as error:  # the whole crowd gave up: it comes back, as people do
                tally.failed(getattr(error, "reason", type(error).__name__))
            except ExceptionGroup as errors:  # the same, of a crowd that works in groups
                expected, rest = errors.split((FourplaneError, OSError))
                if rest is not None or expected is None:
                    raise
                tally.failed(_reason(expected))
            await clock.sleep(0.5)

    async def _watch(self) -> None:
        while True:
            await clock.sleep(TICK_S)
            self._seconds.append(_Second(self._now_s(), self._tally))
            if self._leases:
                self._states["during"].append(self._steady())
                span_s = 5.0 if self._answered(5.0) else STILL_S  # who waits for a restart has not failed yet
                share = self._availability(span_s)
                if share < self._halt_below and not self._halted and self._now_s() >= span_s:
                    self._halted = f"only {share:.0%} was served for {span_s:g} seconds"
                    self._note(f"halted: {self._halted}")
                await self._renew()
            if self._changes and len(self._seconds) % LOOK_EVERY == 0:
                await self._look_at_changes()

    def _note(self, text: str) -> None:
        """Something that the report tells, too."""
        self._told(text)
        self._notes.append({"at_s": clock.now_us() / 1e6, "text": text})

    async def _look_at_changes(self) -> None:
        """Whether what was changed has been taken back, by a runbook or by a person: the fault ends then."""
        found, now_s = await self._ask_incident(), self._now_s()
        values, usual = found.get("values", {}), found.get("usual", {})
        for name, span in list(self._changes.items()):
            if values and values.get(name) == usual.get(name):
                span.ended_s = min(span.ended_s, now_s)
                del self._changes[name]

    async def _renew(self) -> None:
        now_s = self._now_s()
        for lease, span in list(self._leases.items()):
            if span.ended_s <= now_s:
                del self._leases[lease]
        if self._leases:
            try:
                await self._order("renew", {"ids": list(self._leases), "lease_s": LEASE_S})
            except (FourplaneError, OSError):
                return  # the worker is away: so are its leases

    async def _calm(self, when: str, wait_s: float) -> None:
        """Look until the hypothesis holds and a few were served, `wait_s` at the longest; longer for who waits for a film."""
        until_s = self._now_s() + max(wait_s, 2.0)
        await clock.sleep(2.0)
        while True:
            now_s, served = self._now_s(), sum(cell.count for cell in self._tally.latency.values())
            self._states[when] = state = self._steady()
            if (state["steady_state_met"] and served >= SERVED_MIN) or now_s >= until_s + FIRST_S * (
                served < SERVED_MIN
            ):
                return
            await clock.sleep(0.5)

    # -- actions

    async def _perform(self, activity: Activity) -> dict[str, Any]:
        await clock.sleep(activity.before_s)
        start, began = _moment(), clock.monotonic_s()
        try:
            output: object = await self._act(activity) if activity.kind == "action" else self._probe(activity)
            status = "succeeded"
        except (FourplaneError, OSError) as error:
            status, output = "failed", str(error)
            self._note(f"{activity.name} could not be done: {error}")
        took = clock.monotonic_s() - began
        await clock.sleep(activity.after_s)
        return {
            "activity": activity.raw, "output": output, "status": status, "start": start, "end": _moment(),
            "duration": round(took, 6),
        }  # fmt: skip

    async def _act(self, activity: Activity) -> object:
        kind, arguments = str(getattr(activity.call, "__name__", "")), dict(activity.arguments)
        duration_s = float(arguments.get("duration_s", 5.0))
        match kind:
            case "undo_all":
                return await self._end_faults()
            case "retry_storm":
                factor = float(arguments.get("factor", 10.0))
                self._span(f"{factor:g} times the traffic", duration_s)
                self._group.create_task(self._storm(factor, duration_s))
                return factor
        wanted = {"system": self._system, "kind": kind, "arguments": arguments, "lease_s": min(LEASE_S, duration_s)}
        self._first_fault_at_s = self._first_fault_at_s or clock.now_us() / 1e6
        answer = await self._begin(wanted)
        span = self._span(activity.name, duration_s)
        self._told(f"{activity.name}: {kind} for {duration_s:g} s")
        self._leases |= {str(lease): span for lease in answer["ids"]}
        if kind == "change":
            self._changes[str(arguments.get("name", ""))] = span
        return answer["ids"]

    async def _begin(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Ask for a fault, until whoever takes orders is there again."""
        until_s = self._now_s() + BACK_S
        while True:
            try:
                return await self._order("begin", wanted)
            except Unavailable as error:
                if error.reason != "not_running" or self._now_s() >= until_s:
                    raise
            await clock.sleep(TICK_S)

    async def _storm(self, factor: float, duration_s: float) -> None:
        """More of the same people beside the first ones; what they feel counts, too."""
        try:
            async with asyncio.timeout(duration_s):
                await self._drive(self._crowd(), self._tally, factor - 1)
        except TimeoutError:
            return

    def _span(self, name: str, duration_s: float) -> Span:
        span = Span(name, self._now_s(), self._now_s() + duration_s)
        self._spans.append(span)
        return span

    async def _end_faults(self) -> int:
        """End all faults; a worker that is away has none, and comes back by itself."""
        now_s = self._now_s()
        for span in self._leases.values():
            span.ended_s = min(span.ended_s, now_s)
        self._leases.clear()
        for _ in range(10):
            try:
                return int((await self._order("undo_all", {}))["ended"])
            except (FourplaneError, OSError):
                await clock.sleep(1.0)
        return 0

    # -- probes: what users felt

    def _steady(self) -> dict[str, Any]:
        probes, met = [], True
        for probe in self._experiment.hypothesis:
            value = self._probe(probe)
            kept = tolerates(probe.tolerance, value)
            met = met and kept
            now = _moment()
            probes.append(
                {
                    "activity": probe.raw,
                    "output": value,
                    "status": "succeeded",
                    "start": now,
                    "end": now,
                    "duration": 0.0,
                    "tolerance_met": kept,
                }
            )
        return {"steady_state_met": met, "probes": probes}

    def _probe(self, probe: Activity) -> object:
        window_s = float(probe.arguments.get("window_s", 10.0))
        match getattr(probe.call, "__name__", ""):
            case "availability":
                return round(self._availability(window_s), 6)
            case "slowest_s":
                before, now = self._since(window_s)
                recent = [new - old for new, old in zip(now.buckets, before.buckets, strict=True)]
                return round(quantile(recent, 1.0), 6)
            case "is_up":
                before, now = self._since(3.0)
                return now.served > before.served
        raise Rejected(f"the probe {probe.name} cannot be asked of a running deployment", code="experiment")

    def _answered(self, window_s: float) -> bool:
        """Whether anybody was served or refused."""
        before, now = self._since(window_s)
        return now.served + now.failed > before.served + before.failed

    def _availability(self, window_s: float) -> float:
        before, now = self._since(window_s)
        served, failed = now.served - before.served, now.failed - before.failed
        return served / (served + failed) if served + failed else 0.0

    def _since(self, window_s: float) -> tuple[_Second, _Second]:
        now = _Second(self._now_s(), self._tally)
        early = next((one for one in reversed(self._seconds) if one.at_s <= now.at_s - window_s), self._seconds[0])
        return early, now

    def _now_s(self) -> float:
        return clock.monotonic_s() - self._began_s

    def _result(self, start: str, rollbacks: list[dict[str, Any]]) -> Result:
        met = [self._states.get(when, {}).get("steady_state_met", False) for when in ("before", "after")]
        deviated = not all(met) or bool(self._audit[1])
        status = "interrupted" if self._halted else "failed" if deviated or self._undone else "completed"
        violations = [*filter(None, [self._halted]), *self._undone, *self._audit[1]]
        last = _Second(self._now_s(), self._tally)
        felt = {
            "served": last.served,
            "failed": last.failed,
            "errors": dict(sorted(self._tally.errors.items())),
            "facts": {name: round(value, 3) for name, value in sorted(self._tally.facts.items())},
            "p99_ms": {name: round(cell.quantile(0.99) * 1e3, 1) for name, cell in sorted(self._tally.latency.items())},
        }
        journal = {
            "chaoslib-version": VERSION,
            "platform": "fourplane, live",
            "node": self._target.host,
            "experiment": self._experiment.raw,
            "start": start,
            "status": status,
            "deviated": deviated,
            "steady_states": {"before": None, "after": None} | self._states,
            "run": self._entries,
            "rollbacks": rollbacks,
            "end": _moment(),
            "duration": round(self._now_s(), 6),
            "x-fourplane": {
                "felt": felt,
                "halted": self._halted,
                "began_at_s": self._began_at_s,
                "first_fault_at_s": self._first_fault_at_s,
                "alerts": self._incident.get("alerts", []),
                "runs": self._incident.get("runs", []),
                "faults": self._incident.get("over", []),
                "budgets": self._budgets,
                "audit": {"looked_at": self._audit[0], "broken": self._audit[1]},
                "notes": self._notes,
            },
        }
        return Result(
            seed=0, status=status, deviated=deviated, violations=violations, digest="",
            virtual_s=self._now_s(), steps=0, messages=last.served + last.failed, felt=felt, spans=self._spans,
            seconds=self._by_second(), journal=journal, ended=[],
        )  # fmt: skip

    def cost(self, dark: Sequence[str] = ()) -> Cost:
        """What the run cost its users; `dark`: the cache nodes that were."""
        moments = [Moment(one.at_s, one.served, one.failed, one.facts) for one in self._seconds]
        began_s = min((span.began_s for span in self._spans), default=0.0)
        ended_s = max((span.ended_s for span in self._spans), default=0.0)
        return cost(self._system, moments, began_s, ended_s, dark=dark)

    def _by_second(self) -> dict[int, tuple[int, int, float]]:
        found = {}
        for before, now in zip(self._seconds, self._seconds[1:], strict=False):
            recent = [new - old for new, old in zip(now.buckets, before.buckets, strict=True)]
            found[int(before.at_s)] = (now.served - before.served, now.failed - before.failed, quantile(recent, 1.0))
        return found


def _reason(errors: ExceptionGroup[Exception]) -> str:
    """What the first of them is, however deep it lies."""
    first = errors.exceptions[0]
    return _reason(first) if isinstance(first, ExceptionGroup) else str(getattr(first, "reason", type(first).__name__))


def _joined(tally: Tally) -> list[int]:
    buckets = list(Histogram().buckets)
    for cell in tally.latency.values():
        buckets = [one + other for one, other in zip(buckets, cell.buckets, strict=True)]
    return buckets


def _moment() -> str:
    return datetime.fromtimestamp(clock.now_us() / 1e6, UTC).isoformat(timespec="microseconds")

"""Runs an experiment in a world of one seed, and keeps Chaos Toolkit's journal of it.

Order: the system starts, people arrive, the hypothesis must hold; then the method runs while people act; faults lapse, rollbacks
always run; the hypothesis must hold again once everything is whole and settled. The checkers look every second and at the
end. An experiment fails when the hypothesis deviates or a promise is broken; both are in the journal with their times. Every run
ends: one in which nothing can happen any more, or which goes past its bounds, has failed and says so.
"""

import asyncio
from datetime import UTC, datetime
from typing import Any

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError
from fourplane.simulator import loop
from fourplane.simulator.experiment import Activity, Experiment, tolerates
from fourplane.simulator.stage import Span, Stage

CHECK_S = 1.0
RECOVER_S = 60.0
VERSION = "1.44.0"  # of the journal's form
AFTERWARDS_S_MAX = 3_600.0  # virtual seconds beyond its duration after which a run is taken to go on for ever


class Result(msgspec.Struct, frozen=True):
    """What one run was."""

    seed: int
    status: str  # completed, failed
    deviated: bool
    violations: list[str]
    digest: str
    virtual_s: float
    steps: int
    messages: int
    felt: dict[str, Any]
    spans: list[Span]
    seconds: dict[int, tuple[int, int, float]]  # served, failed, slowest
    journal: dict[str, Any]
    ended: list[str]  # processes that ended by themselves, and why

    @property
    def passed(self) -> bool:
        return self.status == "completed" and not self.violations

    def facts_text(self) -> str:
        """What was counted, in one line."""
        return ", ".join(f"{count} {fact}" for fact, count in self.felt["facts"].items())


def run(experiment: Experiment, seed: int) -> Result:
    """One run; everything in it is decided by the seed."""
    ours, begun = experiment.ours, list[_Run]()

    async def main(world: loop.World) -> Result:
        begun.append(_Run(experiment, world, seed))
        return await begun[0].all()

    try:
        outcome = loop.run(main, seed, virtual_s_max=ours.warm_up_s + ours.duration_s + AFTERWARDS_S_MAX)
    except (loop.Stalled, loop.Endless) as error:
        return begun[0].unfinished(error)
    kept = outcome.result
    return msgspec.structs.replace(
        kept, digest=outcome.digest, virtual_s=outcome.virtual_s, steps=outcome.steps, messages=outcome.messages
    )


class _Run:
    def __init__(self, experiment: Experiment, world: loop.World, seed: int) -> None:
        self._experiment = experiment
        self._world = world
        self._seed = seed
        self._stage = Stage(world, experiment.ours, seed)
        self._entries: list[dict[str, Any]] = []
        self._violations: list[str] = []
        self._states: dict[str, Any] = {}

    def unfinished(self, error: FourplaneError) -> Result:
        """What is known of a run whose loop gave up; it has failed."""
        self._violations.append(f"run: {_told(error)}")
        result = self._result(_at(0.0), [])
        return msgspec.structs.replace(result, virtual_s=round(self._world.now_s, 6))

    async def all(self) -> Result:
        ours, stage = self._experiment.ours, self._stage
        start = self._moment()
        rollbacks: list[dict[str, Any]] = []
        try:
            await stage.sites.start()
            await stage.people.begin()
            async with asyncio.TaskGroup() as group:
                group.create_task(stage.people.drive(ours.warm_up_s + ours.duration_s))
                watch = group.create_task(self._watch())
                await clock.sleep(ours.warm_up_s)
                self._states["before"] = self._steady()
                began = self._world.now_s
                try:
                    if self._states["before"]["steady_state_met"]:
                        self._entries += [await self._perform(one) for one in self._experiment.method]
                    await clock.sleep(max(0.0, ours.duration_s - (self._world.now_s - began)))
                finally:
                    rollbacks = [await self._perform(one) for one in self._experiment.rollbacks]
                    stage.undo_all()
                watch.cancel()
            await self._recover()
            await stage.people.settle()
            self._states["after"] = self._steady()
            self._note(await stage.people.check() + self._uncaught())
        except Exception as error:  # noqa: BLE001 - whatever ends a run early is what it found
            self._note([f"run: {_told(error)}"])
        finally:
            await stage.close()
        return self._result(start, rollbacks)

    async def _watch(self) -> None:
        while True:
            await clock.sleep(CHECK_S)
            self._note(await self._stage.people.check() + self._uncaught())

    async def _recover(self) -> None:
        """Wait until the system is up again; that it never comes is a broken promise."""
        until = self._world.now_s + RECOVER_S
        sites = self._stage.sites
        while not sites.is_up:
            if self._world.now_s > until:
                self._note([f"recovery: {host} is not up after {RECOVER_S:g} s" for host in sites.down])
                return
            await clock.sleep(0.5)

    def _uncaught(self) -> list[str]:
        """What a loop of the machine would only log: an error which no part of the system expected."""
        return [f"process: nobody caught {text}" for text in self._world.unhandled]

    def _note(self, violations: list[str]) -> None:
        for text in violations:
            if text not in self._violations:
                self._violations.append(text)
                self._world.note(text)

    def _steady(self) -> dict[str, Any]:
        probes, met = [], True
        for probe in self._experiment.hypothesis:
            value = probe.call(**probe.arguments)
            kept = tolerates(probe.tolerance, value)
            met = met and kept
            probes.append(self._entry(probe, "succeeded", value) | {"tolerance_met": kept})
        return {"steady_state_met": met, "probes": probes}

    async def _perform(self, activity: Activity) -> dict[str, Any]:
        await clock.sleep(activity.before_s)
        try:
            entry = self._entry(activity, "succeeded", activity.call(**activity.arguments))
        except FourplaneError as error:
            entry = self._entry(activity, "failed", str(error))
        await clock.sleep(activity.after_s)
        return entry

    def _entry(self, activity: Activity, status: str, output: object) -> dict[str, Any]:
        rounded = round(output, 6) if isinstance(output, float) else output
        now = self._moment()
        return {
            "activity": activity.raw,
            "output": rounded,
            "status": status,
            "start": now,
            "end": now,
            "duration": 0.0,
            "virtual_s": round(self._world.now_s, 6),
        }

    def _moment(self) -> str:
        return _at(self._world.now_s)

    def _result(self, start: str, rollbacks: list[dict[str, Any]]) -> Result:
        stage, felt = self._stage, self._stage.people.felt
        deviated = not all(self._states.get(when, {}).get("steady_state_met") for when in ("before", "after"))
        status = "failed" if deviated else "completed"
        summary = {
            "served": felt.totals()[0],
            "failed": felt.totals()[1],
            "errors": dict(sorted(felt.errors.items())),
            "facts": dict(sorted(felt.facts.items())),
            "p99_ms": {name: round(cell.quantile(0.99) * 1e3, 1) for name, cell in sorted(felt.latency.items())},
        }
        journal = {
            "chaoslib-version": VERSION,
            "platform": "fourplane simulator",
            "node": stage.deployment.host,
            "experiment": self._experiment.raw,
            "start": start,
            "status": status,
            "deviated": deviated,
            "steady_states": {"before": None, "after": None, "during": []} | self._states,
            "run": self._entries,
            "rollbacks": rollbacks,
            "end": self._moment(),
            "duration": round(self._world.now_s, 6),
            "x-fourplane": {"seed": self._seed, "violations": self._violations, "felt": summary},
        }
        seconds = {at: (one.served, one.failed, one.slowest_s) for at, one in sorted(felt.seconds.items())}
        ended = stage.sites.failures
        return Result(
            seed=self._seed, status=status, deviated=deviated, violations=self._violations, digest="", virtual_s=0.0, steps=0,
            messages=0, felt=summary, spans=stage.spans, seconds=seconds, journal=journal, ended=ended,
        )  # fmt: skip


def _told(error: BaseException) -> str:
    """An error in one line; of a group the first one in it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


def _at(virtual_s: float) -> str:
    """Virtual wall-clock time as the journal writes it."""
    return datetime.fromtimestamp(loop.START_US / 1e6 + virtual_s, UTC).isoformat(timespec="microseconds")

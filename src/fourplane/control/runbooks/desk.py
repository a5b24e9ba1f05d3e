"""Runbooks in a deployment: alerts in, actions out, every step written down before the next one.

A lifecycle part of the worker with the console. One run per runbook and alert at a time; past `per_hour_max` the run is not
begun and a person is paged instead, because a loop that acts for ever is a fault of its own. A run that was under way when the
process died goes on where its record ends: the step after the last one written.

Records: `control/runbooks/<id>` in the blobs, the newest RECORDS_MAX. Doors under `/control/api/runbooks`.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import msgspec

from fourplane.control.alerts.book import Condition
from fourplane.control.alerts.model import Alert
from fourplane.control.runbooks import course
from fourplane.control.runbooks.abilities import Abilities
from fourplane.control.runbooks.model import Action, Question, Run, Runbook, Step, filled
from fourplane.edge.routes import Call, Door, Reply, Route
from fourplane.foundation import clock, ids
from fourplane.foundation.errors import FourplaneError, NotFound
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Registry
from fourplane.state.contracts import Blobs

PREFIX = "control/runbooks"
RECORDS_MAX = 500
RUNS_MAX = 20  # at one time
HOUR_S = 3_600.0
STEP_S = 30.0
PAGES_MAX = 20
PAGE_S = 120.0


class RunbookView(msgspec.Struct, frozen=True):
    """A runbook as people read it."""

    runbook: Runbook
    runs_last_hour: int


class RunbooksView(msgspec.Struct, frozen=True):
    """What `GET /control/api/runbooks` answers."""

    runbooks: list[RunbookView]
    runs: list[Run]


class Runbooks:
    """See the module's essay."""

    def __init__(
        self,
        books: Sequence[Runbook],
        *,
        registry: Registry,
        blobs: Blobs,
        abilities: Callable[["Runbooks"], Abilities],
    ) -> None:
        self.books = {book.name: book for book in books}
        self._registry = registry
        self._blobs = blobs
        self.abilities = abilities(self)
        for book in books:
            asks = [one.ask for one in (*book.checks, *([book.verify] if book.verify else []))]
            self.abilities.check(asks, [one.do for one in (*book.actions, *book.undo, *book.escalate)])
        self._runs: dict[str, Run] = {}
        self._past: deque[Run] = deque(maxlen=100)
        self._begun: dict[str, deque[float]] = {book.name: deque(maxlen=100) for book in books}
        self._woken: dict[str, asyncio.Event] = {}
        self._pages: deque[tuple[float, str, str]] = deque(maxlen=PAGES_MAX)
        self._tasks: Tasks | None = None

    async def start(self, tasks: Tasks) -> None:
        """Go on with the runs that were under way."""
        self._tasks = tasks
        keys: list[str] = []
        while more := await self._blobs.keys(f"{PREFIX}/", after=keys[-1] if keys else ""):
            keys += more
        for key in keys[:-RECORDS_MAX]:
            await self._blobs.delete(key)
        for key in keys[-100:]:
            run = msgspec.json.decode(await self._blobs.get(key), type=Run)
            if run.over or run.runbook not in self.books:
                self._past.append(run)
                continue
            run.steps.append(Step(_now_s(), "note", "the process died", "goes on from the last step written"))
            self._go(run)

    async def drain(self) -> None:
        """A run that is under way goes on after the next start."""

    async def stop(self) -> None:
        """Every step is written already."""

    def hear(self, alert: Alert) -> None:
        """An alert began or ended."""
        for book in self.books.values():
            if not book.is_for(alert):
                continue
            run = next((one for one in self._runs.values() if _same(one, book, alert)), None)
            if alert.state == "resolved":
                if run is not None:
                    run.resolved = True
                    run.steps.append(Step(_now_s(), "alert", alert.name, f"over: {alert.summary}"))
                    self._woken[run.id].set()
            elif run is None:
                self._begin(book, alert)

    def page(self, text: str, service: str = "fleet") -> None:
        """Make a person hear of it: a condition of its own for a while, which the alerts tell whoever is told."""
        self._pages.append((_now_s(), service, text))
        self._registry.event("error", "runbooks", f"A person is asked: {text}")

    def conditions(self, now_s: float) -> Iterator[Condition]:
        """What runbooks ask people to look at."""
        for at_s, service, text in self._pages:
            if now_s - at_s < PAGE_S:
                yield Condition("PersonWanted", service, "page", text, {"why": text[:100]}, keep_s=0.0)

    def runs(self, since_s: float = 0.0) -> list[Run]:
        """Runs that began since then, the oldest first, those under way among them."""
        found = [*self._past, *self._runs.values()]
        return sorted((one for one in found if one.began_s >= since_s), key=lambda one: one.began_s)

    def doors(self) -> list[Door]:
        """What there is, what was done, and what was kept."""
        base = "/control/api/runbooks"
        return [
            Route("GET", base, self._all, "Runbooks and their runs", answer=RunbooksView),
            Route("GET", f"{base}/{{run}}", self._one, "The record of a run", answer=Run),
            Route("GET", "/control/api/dashboards/{at}", self._dashboard, "A dashboard that a runbook kept"),
        ]

    # -- one run

    def _begin(self, book: Runbook, alert: Alert) -> None:
        now_s, begun = _now_s(), self._begun[book.name]
        while begun and begun[0] < now_s - HOUR_S:
            begun.popleft()
        last = max((one.ended_s for one in self._past if _same(one, book, alert)), default=0.0)
        if now_s - last < book.pause_s:
            return
        if len(begun) >= book.per_hour_max or len(self._runs) >= RUNS_MAX:
            self.page(f"{book.name} has run {len(begun)} times within the hour and is not begun again: {alert.summary}")
            return
        begun.append(now_s)
        run = Run(f"{int(now_s * 1e3):014d}-{book.name}-{ids.capability(3)}", book.name, book.title, alert, now_s)
        run.steps.append(Step(now_s, "alert", alert.name, alert.summary))
        self._registry.event("warning", "runbooks", f"{book.name}: {book.title} ({alert.summary})")
        self._go(run)

    def _go(self, run: Run) -> None:
        assert self._tasks is not None
        self._runs[run.id] = run
        self._woken[run.id] = asyncio.Event()
        self._tasks.start(self._carry_out(self.books[run.runbook], run), f"runbook-{run.runbook}")

    async def _carry_out(self, book: Runbook, run: Run) -> None:
        await self._write(run)
        while (effect := course.due(book, run, _now_s())) is not None:
            match effect:
                case course.Ask(question=question):
                    value, told = await self._ask(question, run.alert)
                    again = course.answered(book, run, _now_s(), value=value, told=told)
                    if isinstance(again, course.Wait):
                        await clock.sleep(again.seconds)
                        continue
                case course.Do(action=action):
                    ok, told = await self._do(action, run.alert)
                    course.done(book, run, _now_s(), ok=ok, told=told)
                    self._registry.event("info" if ok else "warning", "runbooks", f"{book.name}: {action.name}: {told}")
                case course.Wait(seconds=seconds):
                    await self._write(run)
                    await self._await_end(run, seconds)
            await self._write(run)
        course.check(book, run)
        await self._write(run)
        del self._runs[run.id], self._woken[run.id]
        self._past.append(run)
        took_s = run.ended_s - run.began_s
        self._registry.event("info", "runbooks", f"{book.name}: {run.outcome} after {took_s:.0f} s")

    async def _await_end(self, run: Run, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._woken[run.id].wait()
        except TimeoutError:
            return

    async def _ask(self, question: Question, alert: Alert) -> tuple[float | None, str]:
        """The answer, and what is written down about it."""
        try:
            async with asyncio.timeout(STEP_S):
                value = await self.abilities.questions[question.ask](filled(question.arguments, alert))
        except (FourplaneError, OSError, TimeoutError, KeyError) as error:
            return None, f"could not be asked: {error}"
        return value, f"{value:g}, wanted {_wanted(question)}"

    async def _do(self, action: Action, alert: Alert) -> tuple[bool, str]:
        try:
            async with asyncio.timeout(STEP_S):
                return True, await self.abilities.actions[action.do](filled(action.arguments, alert))
        except (FourplaneError, OSError, TimeoutError, KeyError) as error:
            return False, f"could not be done: {error}"

    async def _write(self, run: Run) -> None:
        await self._blobs.put(f"{PREFIX}/{run.id}", msgspec.json.encode(run), media_type="application/json")

    # -- doors

    async def _all(self, _: Call[None]) -> RunbooksView:
        hour_ago = _now_s() - HOUR_S
        views = [
            RunbookView(book, sum(at_s > hour_ago for at_s in self._begun[name])) for name, book in self.books.items()
        ]
        return RunbooksView(views, self.runs()[::-1])

    async def _one(self, call: Call[None]) -> Run:
        wanted = call.params["run"]
        found = next((one for one in self.runs() if one.id == wanted), None)
        if found is None:
            raise NotFound("no such run", code="no_run")
        return found

    async def _dashboard(self, call: Call[None]) -> Reply:
        at = call.params["at"]
        if not at.isdigit() or len(at) > 12:
            raise NotFound("no such dashboard", code="no_dashboard")
        return Reply(await self.abilities.dashboard(int(at)), media_type="application/json")


def _same(run: Run, book: Runbook, alert: Alert) -> bool:
    return run.runbook == book.name and run.alert.fingerprint == alert.fingerprint


def _wanted(question: Question) -> str:
    parts = [f"at least {question.at_least:g}" if question.at_least is not None else ""]
    parts.append(f"at most {question.at_most:g}" if question.at_most is not None else "")
    return " and ".join(part for part in parts if part)


def _now_s() -> float:
    return clock.now_us() / 1e6

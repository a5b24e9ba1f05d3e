"""Drills: experiments with clients of their own, begun by a click or by the schedule, with a record and a report to send.

A drill is the `chaos` verb in a process of its own. It uses the public doors as anybody does, so what it says is what users
felt; it outlives the worker that began it, which a drill may kill; and the faults it asked for lapse when it dies. Its record and
its report are files in `data/chaos/drills`: `ID.json` from the first second, `ID.html` and `ID.md` at the end.

One drill at a time. Halting ends the process and every fault.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, get_args

import msgspec

from fourplane.control.chaos_schedule import Kind, ScheduleSettings, due
from fourplane.control.pages import page
from fourplane.edge.routes import Call, Door, Priority, Reply, Route
from fourplane.foundation import clock, ids, processes
from fourplane.foundation.errors import Conflict, FourplaneError, NotFound, Rejected
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Registry

KINDS: tuple[Kind, ...] = get_args(Kind)
RECORDS_MAX = 50
LOST_S = 20.0
LOOK_S = 60.0
MEDIA = {"html": "text/html; charset=utf-8", "md": "text/markdown; charset=utf-8", "json": "application/json"}
_FILE = re.compile(r"(\d{13}-[a-z0-9-]{3,60})\.(html|md|json)")

Order = Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]


class Running(Protocol):
    """A drill's process."""

    async def wait(self) -> int: ...
    async def stop(self) -> int: ...
    def terminate(self) -> None: ...


class Runner(Protocol):
    """Starts a program under the loop."""

    async def __call__(
        self, argv: Sequence[str], *, on_line: Callable[[str], None] | None = None, env: Mapping[str, str] | None = None
    ) -> Running: ...


class DrillOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A drill somebody wants."""

    system: str
    kind: Kind


class Line(msgspec.Struct, frozen=True):
    """Something the runner told."""

    at_s: float
    text: str


class DrillRecord(msgspec.Struct, frozen=True):
    """What is known of a drill; the runner writes it."""

    id: str
    title: str
    system: str
    status: str  # running, completed, failed, interrupted, lost
    began_s: float
    updated_s: float
    lines: list[Line] = []
    told: dict[str, str] = {}  # the figures of its report, by name


class DrillsView(msgspec.Struct, frozen=True):
    """What `GET /control/api/drills` answers."""

    running: bool
    kinds: dict[str, list[str]]
    records: list[DrillRecord]


class Drills:
    """A lifecycle part of the worker with the console."""

    def __init__(
        self,
        *,
        data: Path,
        systems: Sequence[str],
        order: Order,
        registry: Registry,
        schedule: ScheduleSettings,
        runner: Runner = processes.start,
    ) -> None:
        """`runner` starts a drill's process."""
        self._folder = folder_of(data)
        self._data = data
        self._systems = systems
        self._order = order
        self._registry = registry
        self._schedule = schedule
        self._runner = runner
        self._child: Running | None = None
        self._under_way = False  # from the click on, before there is a process or a record
        self._tasks: Tasks | None = None
        self._last_s: dict[str, float] = {}

    async def start(self, tasks: Tasks) -> None:
        """Wait for clicks, and for the schedule if there is one, which counts the drills before a restart, too."""
        self._tasks = tasks
        if self._schedule.enabled:
            for record in self.records():
                self._last_s[record.system] = max(record.began_s, self._last_s.get(record.system, 0.0))
            tasks.start(self._keep_schedule(), "schedule")

    async def drain(self) -> None:
        """A drill of a deployment that stops has nothing to learn any more."""
        if self._child is not None:
            await self._child.stop()

    async def stop(self) -> None:
        """The drill has ended."""

    def begin(self, system: str, kind: str, who: str) -> str:
        """Begin a drill; its id. Raises Rejected for one there is none of, Conflict while one is under way."""
        assert self._tasks is not None
        if system not in self._systems or kind not in KINDS:
            raise Rejected(f"there is no drill {kind[:20]!r} for {system[:20]!r}", code="no_drill")
        if self._under_way or any(one.status == "running" for one in self.records()):
            raise Conflict("a drill is under way; one at a time", code="drill_running")
        self._under_way = True
        drill = f"{clock.now_us() // 1_000:013d}-{system}-{kind}-{ids.capability(2)}"
        self._last_s[system] = clock.now_us() / 1e6
        self._registry.event("warning", "drills", f"{system}: {kind} begins, asked for by {who}")
        self._tasks.start(self._run(f"{system}-{kind}", drill), "drill")
        return drill

    async def halt(self) -> int:
        """End the drill and every fault; how many there were."""
        if self._child is not None:
            self._child.terminate()
        return int((await self._order({"order": "undo_all"})).get("ended", 0))

    def records(self) -> list[DrillRecord]:
        """The newest drills, the newest first."""
        found = []
        now_s = clock.now_us() / 1e6
        for file in sorted(self._folder.glob("*.json"), reverse=True)[:RECORDS_MAX]:
            try:
                record = msgspec.json.decode(file.read_bytes(), type=DrillRecord)
            except (msgspec.DecodeError, OSError):
                continue  # half a file of a runner that was killed
            if record.status == "running" and now_s - record.updated_s > LOST_S:
                record = msgspec.structs.replace(record, status="lost")
            found.append(record)
        return found

    def doors(self) -> list[Door]:
        """Drills and their reports; beginning and halting one is an operator's."""
        base, first = "/control/api/drills", Priority.CRITICAL
        return [
            Route("GET", base, self._all, "Drills and their reports", answer=DrillsView, priority=first),
            Route("POST", base, self._begin, "Begin a drill", body=DrillOrder, access="operator", priority=first),
            Route("POST", "/control/api/halt", self._halt, "End the drill and every fault", access="operator",
                  priority=first),
            page("drills"),
            Route("GET", "/control/drills/{file}", self._file, "A report, as a page or a text"),
        ]  # fmt: skip

    async def _run(self, name: str, drill: str) -> None:
        command = processes.python("fourplane", "chaos", name, "--record", drill)
        last: list[str] = []
        try:
            self._child = await self._runner(
                command,
                on_line=lambda line: last.append(line[:300]),
                env={"FOURPLANE_DATA": str(self._data.absolute())},
            )
            code = await self._child.wait()
        finally:
            self._child, self._under_way = None, False
        record = next((one for one in self.records() if one.id == drill), None)
        how = record.status if record is not None else f"could not begin: {' '.join(last[-2:])}"
        self._registry.event("info" if code == 0 else "warning", "drills", f"{name}: {how}")

    async def _keep_schedule(self) -> None:
        while True:
            await clock.sleep(LOOK_S)
            now_s, chance = clock.now_us() / 1e6, clock.random()
            draw = {system: chance.random() for system in self._systems}
            for system in due(self._schedule, self._systems, self._last_s, now_s, looked_s=LOOK_S, draw=draw):
                if self._schedule.leashed:
                    self._last_s[system] = now_s
                    self._registry.event(
                        "info", "drills", f"{system}: {self._schedule.drill} is due; leashed, so not done"
                    )
                    continue
                try:
                    self.begin(system, self._schedule.drill, "the schedule")
                except FourplaneError as error:
                    self._registry.event("info", "drills", f"{system}: the schedule's drill waits: {error.message}")

    async def _all(self, _: Call[None]) -> DrillsView:
        records = self.records()
        running = any(one.status == "running" for one in records) or self._under_way
        return DrillsView(running, {system: list(KINDS) for system in self._systems}, records)

    async def _begin(self, call: Call[DrillOrder]) -> dict[str, str]:
        who = call.identity.name if call.identity is not None else "somebody"
        return {"id": self.begin(call.body.system, call.body.kind, who)}

    async def _halt(self, _: Call[None]) -> dict[str, int]:
        return {"ended": await self.halt()}

    async def _file(self, call: Call[None]) -> Reply:
        found = _FILE.fullmatch(call.params["file"])
        file = self._folder / call.params["file"] if found is not None else None
        if found is None or file is None or not file.is_file():
            raise NotFound("no such report", code="no_report")
        content = file.read_bytes()
        save = {} if found[2] == "html" else {"content-disposition": f'attachment; filename="{found[0]}"'}
        return Reply(content, media_type=MEDIA[found[2]], headers={"cache-control": "no-store"} | save)


def folder_of(data: Path) -> Path:
    """Where records and reports lie."""
    return data / "chaos" / "drills"

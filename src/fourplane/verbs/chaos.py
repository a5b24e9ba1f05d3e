"""Break a running deployment on purpose, by the experiment files of `simulate`, while real clients use it; then it heals.

Faults are leases: they end by themselves when this command dies, and --halt ends all of them at once.
"""

import argparse
import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from fourplane.control import drills
from fourplane.edge.http_client import HttpClient
from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError, Rejected
from fourplane.verbs import deployment
from fourplane.verbs.load import WITH_ACCOUNTS
from fourplane.verbs.simulate import experiment_file, library_rows
from fourplane.verbs.table import table

if TYPE_CHECKING:
    from fourplane.simulator.aftermath import Cost
    from fourplane.simulator.crowds import Target
    from fourplane.simulator.experiment import Experiment
    from fourplane.simulator.experiments import Result

DRILLS = Path(__file__).parents[1] / "simulator" / "drills"
RECORD = re.compile(r"[a-z0-9-]{3,80}")
LINES_MAX = 200
BEAT_S = 2.0
SETTLE_S = 40.0  # runbooks wait for the end of their alert, and undo
BASELINE_S = 14.0  # of a drill whose cost is told


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", default="", metavar="FILE", help="an experiment, or a name of the library")
    parser.add_argument("--list", action="store_true", help="say what the library holds and do nothing")
    parser.add_argument("--halt", action="store_true", help="end every fault in the deployment now")
    parser.add_argument("--dry-run", action="store_true", help="check the file and say what would be done")
    parser.add_argument("--users", type=int, default=0, metavar="N", help="how many clients (default: fits the system)")
    parser.add_argument("--rate", type=float, default=0.0, metavar="R", help="actions per second over all of them")
    parser.add_argument("--halt-below", type=float, default=0.2, metavar="SHARE", help="stop when less is served (0.2)")
    parser.add_argument(
        "--report", default="", metavar="FILE.html", help="write what happened as a page (.md: as a text)"
    )
    parser.add_argument("--record", default="", metavar="ID", help="keep a record and the report in the data folder")
    parser.add_argument("--journal", default="", metavar="FILE.json", help="write Chaos Toolkit's journal")
    deployment.add(parser)


def run(options: argparse.Namespace) -> int:
    """Exit code 0 when the steady state held before and after, 1 when it did not or the run was halted."""
    if options.halt:
        answer = deployment.ask_now(deployment.folder(options), "faults", {"order": "undo_all"})
        print(msgspec.json.encode(answer).decode() if options.json else f"{answer['ended']} faults ended")
        return 0
    from fourplane.simulator import experiment, live  # noqa: PLC0415 - loads all systems; who wants a halt wants it now

    if options.list:
        print(table(("experiment", "what happens"), [*_drill_rows(), *library_rows()]))
        return 0
    folder = deployment.folder(options)
    if not options.file:
        raise Rejected("break what? name a file, or see --list", code="bad_arguments")
    chosen = experiment.parse(_file(options.file).read_bytes())
    live.check_possible(chosen)
    if options.dry_run:
        print(f"{chosen.title}\nin {chosen.ours.system}, for {chosen.ours.duration_s:g} s:")
        print(table(("step", "what"), [(one.kind, f"{one.name} {one.arguments}") for one in chosen.method]))
        return 0
    if options.record and not RECORD.fullmatch(options.record):
        raise Rejected("a record's name is small letters, digits and dashes", code="bad_arguments")
    record = _Record(folder, options.record, chosen.title, chosen.ours.system, quiet=options.json)
    try:
        result, cost = asyncio.run(_live(chosen, folder, options, record))
    except BaseException as error:
        record.write("interrupted", [str(error) or type(error).__name__])
        raise
    _keep(result, cost, options, record)
    record.say(msgspec.json.encode(result.journal).decode() if options.json else _told(result, cost))
    return 0 if result.status == "completed" else 1


class _Record:
    """The record of a drill in the data folder, rewritten whole whenever something is told."""

    def __init__(self, folder: Path, name: str, title: str, system: str, *, quiet: bool) -> None:
        self.base = drills.folder_of(folder) / name if name else None
        self._quiet = quiet
        self._is_heard = True
        self._state = drills.DrillRecord(name, title, system, "running", clock.now_us() / 1e6, 0.0)
        self.write("running", [])

    def told(self, text: str) -> None:
        """One line more."""
        if not self._quiet:
            self.say(text)
        self.write("running", text.splitlines())

    def say(self, text: str) -> None:
        """Print it, as long as anybody reads: the worker that began this drill may be what it killed."""
        if self._is_heard:
            try:
                print(text, flush=True)
            except OSError:
                self._is_heard = False

    def write(self, status: str, lines: list[str], told: dict[str, str] | None = None) -> None:
        """Say how it stands."""
        if self.base is None:
            return
        now_s = clock.now_us() / 1e6
        kept = [*self._state.lines, *(drills.Line(now_s, line) for line in lines)][-LINES_MAX:]
        self._state = msgspec.structs.replace(self._state, status=status, lines=kept, updated_s=now_s, told=told or {})
        self.base.parent.mkdir(parents=True, exist_ok=True)
        draft = self.base.with_suffix(".draft")
        draft.write_bytes(msgspec.json.encode(self._state))
        draft.replace(self.base.with_suffix(".json"))


def _keep(result: "Result", cost: "Cost", options: argparse.Namespace, record: _Record) -> None:
    """Write the reports that were asked for."""
    from fourplane.simulator import drill_report  # noqa: PLC0415 - see run

    page, text = drill_report.page(result, cost), drill_report.text(result, cost)
    if options.report:
        Path(options.report).write_text(text if options.report.endswith(".md") else page, encoding="utf-8")
    if options.journal:
        Path(options.journal).write_bytes(msgspec.json.format(msgspec.json.encode(result.journal)) + b"\n")
    if record.base is not None:
        record.base.with_suffix(".html").write_text(page, encoding="utf-8")
        record.base.with_suffix(".md").write_text(text, encoding="utf-8")
        record.write(result.status, [_told(result, cost)], dict(drill_report.costs(result, cost)))


def _file(name: str) -> Path:
    """A drill of ours, an experiment of the library, or a file."""
    own = DRILLS / f"{name}.json"
    return own if own.is_file() else experiment_file(name)


def _drill_rows() -> list[tuple[str, str]]:
    return [(file.stem, str(msgspec.json.decode(file.read_bytes())["title"])) for file in sorted(DRILLS.glob("*.json"))]


async def _live(
    chosen: "Experiment", folder: Path, options: argparse.Namespace, record: _Record
) -> "tuple[Result, Cost]":
    from fourplane.simulator import crowds  # noqa: PLC0415 - see run
    from fourplane.simulator.crowds import roll_call  # noqa: PLC0415
    from fourplane.simulator.live import LiveRun  # noqa: PLC0415

    system = chosen.ours.system
    target = msgspec.convert(await deployment.ask(folder, "target", {}), crowds.Target)
    plan = roll_call.plan(
        system, users=options.users, rate_per_s=options.rate, duration_s=0.0, shape="steady", gentle=True
    )
    accounts = await deployment.ask(folder, "crowd", {"count": plan.users}) if system in WITH_ACCOUNTS else []

    async def order(what: str, arguments: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = await deployment.ask(folder, "faults", {"order": what, **arguments})
        return answer

    record.told(f"{chosen.title}\n{plan.users} clients of {system} at {target.host}:{target.http_port}")
    live = LiveRun(
        chosen, target, order=order, crowd=lambda: roll_call.crowd(system, accounts), plan=plan, told=record.told,
        halt_below=options.halt_below, baseline_s=BASELINE_S if options.record else 2.0,
        settle_s=SETTLE_S if options.record else 0.0,
    )  # fmt: skip
    try:
        async with asyncio.TaskGroup() as group:
            beating = group.create_task(_beat(record))
            result = await live.run()
            beating.cancel()
    except ExceptionGroup as failed:
        expected, rest = failed.split(FourplaneError)
        if rest is not None or expected is None:
            raise
        raise _first(expected) from None
    cost = live.cost(await _dark_nodes(chosen, target))
    result.journal["x-fourplane"]["cost"] = msgspec.to_builtins(cost)
    return result, cost


def _first(errors: ExceptionGroup[FourplaneError]) -> FourplaneError:
    """The first of them, however deep it lies."""
    found = errors.exceptions[0]
    return _first(found) if isinstance(found, ExceptionGroup) else found


async def _beat(record: _Record) -> None:
    """Show that the runner lives."""
    while True:
        await clock.sleep(BEAT_S)
        record.write("running", [])


async def _dark_nodes(chosen: "Experiment", target: "Target") -> list[str]:
    """The cache nodes of the regions that the experiment takes away."""
    regions = {
        str(one.arguments.get("region")) for one in chosen.method if getattr(one.call, "__name__", "") == "region_loss"
    }
    if chosen.ours.system != "streaming" or not regions:
        return []
    client = HttpClient(target.host, target.http_port)
    headers = {"authorization": f"Bearer {target.operator_token}"}
    try:
        answer = await client.request("GET", "/streaming/api/delivery", headers=headers)
    finally:
        client.close()
    return [node["id"] for node in msgspec.json.decode(answer.body)["nodes"] if node["region"] in regions]


def _told(result: "Result", cost: "Cost") -> str:
    felt = result.felt
    lines = [f"  {span.began_s:>6.1f} to {span.ended_s:>6.1f} s  {span.name}" for span in result.spans]
    verdict = {"completed": "the steady state held before and after"}
    if result.deviated:
        verdict["failed"] = "the steady state did not hold"
    lines.append(f"{result.status}: {verdict.get(result.status, '; '.join(result.violations))}")
    share = felt["served"] / max(1, felt["served"] + felt["failed"])
    lines.append(f"users: {felt['served']:,} served, {felt['failed']:,} failed ({share:.2%} served)")
    if cost.moved_s is not None:
        lines.append(f"all players had left the dark nodes after {cost.moved_s:g} s")
    if felt["errors"]:
        lines.append("errors: " + ", ".join(f"{code} {count}" for code, count in felt["errors"].items()))
    return "\n".join(lines)

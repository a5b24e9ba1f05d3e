"""Break a running deployment on purpose, by the experiment files of `simulate`, while real clients use it; then it heals.

Faults are leases: they end by themselves when this command dies, and --halt ends all of them at once.
"""

import argparse
import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from fourplane.foundation.errors import FourplaneError, Rejected
from fourplane.verbs import deployment
from fourplane.verbs.load import WITH_ACCOUNTS
from fourplane.verbs.simulate import experiment_file, library_rows
from fourplane.verbs.table import table

if TYPE_CHECKING:
    from fourplane.simulator.experiments import Result


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", default="", metavar="FILE", help="an experiment, or a name of the library")
    parser.add_argument("--list", action="store_true", help="say what the library holds and do nothing")
    parser.add_argument("--halt", action="store_true", help="end every fault in the deployment now")
    parser.add_argument("--dry-run", action="store_true", help="check the file and say what would be done")
    parser.add_argument("--users", type=int, default=0, metavar="N", help="how many clients (default: fits the system)")
    parser.add_argument("--rate", type=float, default=0.0, metavar="R", help="actions per second over all of them")
    parser.add_argument("--halt-below", type=float, default=0.2, metavar="SHARE", help="stop when less is served (0.2)")
    parser.add_argument("--report", default="", metavar="FILE.html", help="write what happened as a page")
    parser.add_argument("--journal", default="", metavar="FILE.json", help="write Chaos Toolkit's journal")
    deployment.add(parser)


def run(options: argparse.Namespace) -> int:
    """Exit code 0 when the steady state held before and after, 1 when it did not or the run was halted."""
    from fourplane.simulator import experiment, live, report  # noqa: PLC0415 - loads all systems, so not for --help

    if options.list:
        print(table(("experiment", "what happens"), library_rows()))
        return 0
    folder = deployment.folder(options)
    if options.halt:
        answer = deployment.ask_now(folder, "faults", {"order": "undo_all"})
        print(msgspec.json.encode(answer).decode() if options.json else f"{answer['ended']} faults ended")
        return 0
    if not options.file:
        raise Rejected("break what? name a file, or see --list", code="bad_arguments")
    chosen = experiment.parse(experiment_file(options.file).read_bytes())
    live.check_possible(chosen)
    if options.dry_run:
        print(f"{chosen.title}\nin {chosen.ours.system}, for {chosen.ours.duration_s:g} s:")
        print(table(("step", "what"), [(one.kind, f"{one.name} {one.arguments}") for one in chosen.method]))
        return 0
    result = asyncio.run(_live(chosen, folder, options))
    if options.report:
        Path(options.report).write_text(report.page(result), encoding="utf-8")
    if options.journal:
        Path(options.journal).write_bytes(msgspec.json.format(msgspec.json.encode(result.journal)) + b"\n")
    print(msgspec.json.encode(result.journal).decode() if options.json else _told(result))
    return 0 if result.status == "completed" else 1


async def _live(chosen: Any, folder: Path, options: argparse.Namespace) -> "Result":
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

    def told(text: str) -> None:
        if not options.json:
            print(text, flush=True)

    told(f"{chosen.title}\n{plan.users} clients of {system} at {target.host}:{target.http_port}")
    try:
        return await LiveRun(
            chosen, target, order=order, crowd=lambda: roll_call.crowd(system, accounts), plan=plan, told=told,
            halt_below=options.halt_below,
        ).run()  # fmt: skip
    except ExceptionGroup as group:
        expected, rest = group.split(FourplaneError)
        if rest is not None or expected is None:
            raise
        raise expected.exceptions[0] from None


def _told(result: "Result") -> str:
    felt = result.felt
    lines = [f"  {span.began_s:>6.1f} to {span.ended_s:>6.1f} s  {span.name}" for span in result.spans]
    verdict = {"completed": "the steady state held before and after", "failed": "the steady state did not hold"}
    lines.append(f"{result.status}: {verdict.get(result.status, '; '.join(result.violations))}")
    share = felt["served"] / max(1, felt["served"] + felt["failed"])
    lines.append(f"users: {felt['served']:,} served, {felt['failed']:,} failed ({share:.2%} served)")
    if felt["errors"]:
        lines.append("errors: " + ", ".join(f"{code} {count}" for code, count in felt["errors"].items()))
    return "\n".join(lines)

"""Run the checks and all tests, section by section, each with a budget of seconds that is told but never red.

A section is one pytest of its own, so that a crash of one leaves the others standing. The checks run beside the unit
tests, which share nothing with them; every other section has both cores for itself. The last line counts everything.
"""

import argparse
import asyncio
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec

from fourplane.foundation import clock, processes
from fourplane.foundation.errors import NotFound
from fourplane.verbs import checkout
from fourplane.verbs.checks import checks, examine
from fourplane.verbs.table import table

HUNG_FACTOR = 4  # past this many budgets a section is ended: one hung test must not hold the run for ever
RESULTS = Path(".tools") / "results"
TEST_S = 60  # past this a single test tells where it stands
NO_TESTS = 5  # pytest's exit code when it collected nothing


class Section(msgspec.Struct, frozen=True):
    """A part of the test run, where its tests lie and how long it should take on two cores."""

    name: str
    folders: tuple[str, ...]
    budget_s: float


CHECKS = Section("checks", ("tests/tidy",), 60)
SECTIONS = (
    Section("unit, contracts, machines", ("tests/unit", "tests/contracts", "tests/machines"), 120),
    Section("protocol, failure", ("tests/protocol", "tests/failure"), 120),
    Section("journeys", ("tests/journeys",), 120),
    Section("simulation", ("tests/simulation",), 90),
)
RESERVE_S = 90


class Outcome(msgspec.Struct):
    """What came of one section."""

    section: str
    budget_s: float
    seconds: float = 0.0
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    failures: list[str] = []
    skips: dict[str, int] = {}


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="*", metavar="PATH", help="only these files or folders, without the checks")
    parser.add_argument("--all", action="store_true", help="the long tests too (marked slow)")
    parser.add_argument("--section", metavar="NAME", help="only the sections whose name contains NAME")


def run(options: argparse.Namespace) -> int:
    """Run what was asked; 0 when something ran and nothing failed."""
    folder = checkout.root()
    for path in options.paths:
        if not Path(path.partition("::")[0]).exists():
            raise NotFound(f"no such test file or folder: {path}", code="no_tests")
    options.paths = [str(Path(path).absolute()) for path in options.paths]
    began = clock.monotonic_s()
    outcomes = asyncio.run(_sections(folder, options))
    return report(outcomes, clock.monotonic_s() - began, as_json=options.json)


async def _sections(folder: Path, options: argparse.Namespace) -> list[Outcome]:
    if options.paths:
        return [await _pytest(folder, Section("chosen", tuple(options.paths), 600), options, _say)]
    wanted = [section for section in (CHECKS, *SECTIONS) if (options.section or "") in section.name]
    if not wanted:
        raise NotFound(f"no section of that name; there are {', '.join(s.name for s in (CHECKS, *SECTIONS))}")
    outcomes = []
    async with asyncio.TaskGroup() as together:
        beside = together.create_task(check(folder, options)) if CHECKS in wanted else None
        for section in wanted:
            if section is CHECKS:
                continue
            _say(f"\n=== {section.name}")
            outcomes.append(await _pytest(folder, section, options, _say))
            if beside is not None and not beside.done():
                await asyncio.wait([beside])  # the next sections measure and simulate: they want both cores
    return outcomes if beside is None else [beside.result(), *outcomes]


async def check(folder: Path, options: argparse.Namespace) -> Outcome:
    """The checks as one section; what a failed one says is printed when all are through."""
    began = clock.monotonic_s()
    lines: list[str] = []
    outcome = await _pytest(folder, CHECKS, options, lines.append)
    for verdict in [await examine(one, folder) for one in checks()]:
        lines.append(f"{verdict.name}: {'passed' if verdict.passed else 'failed'} in {verdict.seconds:.1f} s")
        if verdict.passed:
            outcome.passed += 1
        else:
            outcome.failed += 1
            outcome.failures.append(verdict.name)
            lines.append(verdict.said)
    outcome.seconds = clock.monotonic_s() - began
    _say("\n".join([f"\n=== {CHECKS.name}", *lines]))
    return outcome


async def _pytest(folder: Path, section: Section, options: argparse.Namespace, say: processes.OnLine) -> Outcome:
    outcome = Outcome(section.name, section.budget_s)
    paths = [path for path in section.folders if (folder / path.partition("::")[0]).exists()]
    if not paths:
        return outcome
    (folder / RESULTS).mkdir(parents=True, exist_ok=True)
    results = folder / RESULTS / f"{section.name.replace(', ', '-')}.xml"
    results.unlink(missing_ok=True)
    limit_s = section.budget_s * HUNG_FACTOR * (4 if options.all else 1)
    argv = processes.python("pytest", "--no-header", "--tb=short", f"--junitxml={results}", *paths)
    argv += ["--durations=3", "--durations-min=2", "-o", f"faulthandler_timeout={600 if options.all else TEST_S}"]
    argv += ["--all"] if options.all else []
    began = clock.monotonic_s()
    child = await processes.start(argv, on_line=say, cwd=folder)
    try:
        async with asyncio.timeout(limit_s):
            code = await child.wait()
    except TimeoutError:
        code = -9
        outcome.failures.append(f"{section.name} did not end within {limit_s:.0f} s")
    outcome.seconds = clock.monotonic_s() - began
    _count(results, outcome)
    if code not in {0, NO_TESTS} and outcome.failed == 0:
        outcome.failed = 1
        outcome.failures = outcome.failures or [f"{section.name}: pytest ended with exit code {code}"]
    return outcome


def _count(results: Path, outcome: Outcome) -> None:
    """Add up pytest's JUnit file; a missing or cut one counts nothing, the exit code speaks then."""
    try:
        cases = ET.parse(results).getroot().iter("testcase")  # noqa: S314 - a file this run has just written
    except (OSError, ET.ParseError):
        return
    skips: Counter[str] = Counter()
    for case in cases:
        kinds = {child.tag: child for child in case}
        if "failure" in kinds or "error" in kinds:
            outcome.failed += 1
            outcome.failures.append(f"{case.get('classname', '')}::{case.get('name', '')}")
        elif "skipped" in kinds:
            outcome.skipped += 1
            skips[kinds["skipped"].get("message", "no reason given")] += 1
        else:
            outcome.passed += 1
    outcome.skips = dict(skips)


def report(outcomes: list[Outcome], seconds: float, *, as_json: bool) -> int:
    """Print the sections, why tests were skipped, what failed, and the one closing line."""
    passed, failed, skipped = (sum(getattr(one, kind) for one in outcomes) for kind in ("passed", "failed", "skipped"))
    rows = [
        (one.section, str(one.passed), str(one.failed), str(one.skipped), f"{one.seconds:.1f}", f"{one.budget_s:.0f}")
        for one in outcomes
    ]
    rows.append(("together", str(passed), str(failed), str(skipped), f"{seconds:.1f}", ""))
    closing = [table(("section", "passed", "failed", "skipped", "seconds", "budget"), rows)]
    skips: Counter[str] = Counter()
    for one in outcomes:
        skips.update(one.skips)
    closing += [f"skipped {count}: {reason}" for reason, count in skips.most_common()]
    closing += [f"failed: {failure}" for one in outcomes for failure in one.failures]
    closing += [
        f"over budget: {one.section} took {one.seconds:.0f} s of {one.budget_s:.0f}"
        for one in outcomes
        if one.seconds > one.budget_s
    ]
    if not passed and not failed:
        closing.append("no test ran")
    _say("\n" + "\n".join(closing))
    code = 0 if passed and not failed else 1
    if as_json:
        print(
            msgspec.json.encode({"passed": passed, "failed": failed, "skipped": skipped, "sections": outcomes}).decode()
        )
    else:
        print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""), flush=True)
    return code


def _say(line: str) -> None:
    """Progress goes where errors go when the answer is JSON, so that a program can read it alone."""
    print(line, file=sys.stderr if "--json" in sys.argv else sys.stdout, flush=True)

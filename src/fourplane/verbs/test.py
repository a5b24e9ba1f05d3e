"""Run the checks and all tests, section by section, each with a budget of seconds that is told but never red.

A section is two pytests side by side, one for each core, with the section's files dealt out by how long they take
(`tests/seconds.json` names the long ones, the others say it by their size); a crash of one leaves the others standing. The
checks run beside the unit tests, which share nothing with them. The last line counts everything.
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
LANES = 2
LONG = Path("tests") / "seconds.json"  # what the long files took when somebody looked
BYTES_A_SECOND = 15_000  # of files that are not named there


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
    lanes = [paths] if options.paths or section is CHECKS else dealt(folder, paths)
    began = clock.monotonic_s()
    limit_s = section.budget_s * HUNG_FACTOR * (4 if options.all else 1)
    said: list[list[str]] = [[] for _ in lanes]
    async with asyncio.TaskGroup() as together:
        for number, lane in enumerate(lanes):
            name = f"{section.name.replace(', ', '-')}-{number}.xml"
            on_line = say if number == 0 else said[number].append
            argv = ["pytest", "--no-header", "--tb=short", *lane, "--durations=3", "--durations-min=2"]
            argv += [
                "-o",
                f"faulthandler_timeout={600 if options.all else TEST_S}",
                *(["--all"] if options.all else []),
            ]
            together.create_task(_lane(folder / RESULTS / name, argv, outcome, on_line, limit_s=limit_s, cwd=folder))
    for line in (line for lines in said for line in lines):
        say(line)
    outcome.seconds = clock.monotonic_s() - began
    return outcome


def dealt(folder: Path, paths: list[str]) -> list[list[str]]:
    """The test files under `paths` in as many hands as there are lanes, the longest first, each to the hand done first."""
    found = [folder / path for path in paths]
    files = {file for path in found for file in ([path] if path.is_file() else path.rglob("test_*.py"))}
    hands: list[tuple[float, list[str]]] = [(0.0, []) for _ in range(LANES)]
    long = msgspec.json.decode((folder / LONG).read_bytes(), type=dict[str, float]) if (folder / LONG).exists() else {}
    names = {str(file.relative_to(folder)): file for file in files}
    seconds = {name: long.get(name) or file.stat().st_size / BYTES_A_SECOND for name, file in names.items()}
    for name in sorted(names, key=lambda name: (-seconds[name], name)):
        taken, hand = min(hands, key=lambda one: one[0])
        hands[hands.index((taken, hand))] = (taken + seconds[name], [*hand, name])
    return [sorted(hand) for _, hand in hands if hand]


async def _lane(
    results: Path, argv: list[str], outcome: Outcome, say: processes.OnLine, *, limit_s: float, cwd: Path
) -> None:
    results.unlink(missing_ok=True)  # noqa: ASYNC240 - one system call
    child = await processes.start(processes.python(*argv, f"--junitxml={results}"), on_line=say, cwd=cwd)
    before = outcome.failed
    try:
        async with asyncio.timeout(limit_s):
            code = await child.wait()
    except TimeoutError:
        code = NO_TESTS
        outcome.failed += 1
        outcome.failures.append(f"{outcome.section} did not end within {limit_s:.0f} s")
    _count(results, outcome)
    if code not in {0, NO_TESTS} and outcome.failed == before:
        outcome.failed += 1
        outcome.failures.append(f"{outcome.section}: pytest ended with exit code {code}")


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
    for reason, count in skips.items():
        outcome.skips[reason] = outcome.skips.get(reason, 0) + count


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

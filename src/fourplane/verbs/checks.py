"""What is checked without running the product: lint, format, types, import directions. The tidy tests are pytest's.

Each check is one program; they run one after the other, because the tests that run beside them want the other core.
"""

import sys
from pathlib import Path

import msgspec

from fourplane.foundation import clock, processes
from fourplane.foundation.processes import python

LINES_MAX = 200  # of one failed check's output
_IMPORTS = "from importlinter.cli import lint_imports_command; lint_imports_command()"


class Check(msgspec.Struct, frozen=True):
    """A program that exits with 0 when all is well."""

    name: str
    argv: tuple[str, ...]


class Verdict(msgspec.Struct, frozen=True):
    """How one check ended; `said` is its output where it failed."""

    name: str
    passed: bool
    seconds: float
    said: str = ""


def checks() -> list[Check]:
    """All checks in the order in which they are quickest to tell."""
    code = ("src", "tests", "benchmarks")
    return [
        Check("ruff check", (*python("ruff"), "check", "--quiet", "--output-format=concise", *code)),
        Check("ruff format", (*python("ruff"), "format", "--check", "--quiet", "--output-format=concise", *code)),
        Check("import directions", (sys.executable, "-P", "-c", _IMPORTS, "--no-logo")),
        Check("mypy --strict", (*python("mypy"), "--no-error-summary")),
    ]


async def examine(check: Check, folder: Path) -> Verdict:
    """Run one check in the checkout."""
    began = clock.monotonic_s()
    lines: list[str] = []
    child = await processes.start(check.argv, on_line=lines.append, cwd=folder)
    code = await child.wait()
    said = "\n".join(lines[-LINES_MAX:]) or f"ended with exit code {code}"
    return Verdict(check.name, code == 0, clock.monotonic_s() - began, "" if code == 0 else said)

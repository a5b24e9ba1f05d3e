"""The product's source files, parsed once, and every text file of the repository."""

import ast
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "fourplane"


class Module(NamedTuple):
    """One Python file: `name` is its path below src/fourplane."""

    name: str
    text: str
    tree: ast.Module


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def modules() -> list[Module]:
    return [_parsed(path) for path in sorted(SOURCE.rglob("*.py"))]


@pytest.fixture(scope="session")
def files() -> list[Path]:
    """Every file that is, or could be, committed."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    else:
        hidden = {".git", ".venv", ".tools", "node_modules", "__pycache__", "data", "build", "dist"}
        paths = [path for path in ROOT.rglob("*") if not hidden & set(path.relative_to(ROOT).parts)]
    return sorted(path for path in paths if path.is_file())


@pytest.fixture(scope="session")
def texts(files) -> list[tuple[str, str]]:
    """Path and content of every committed text file."""
    found = []
    for path in files:
        try:
            found.append((str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue
    return found


def _parsed(path: Path) -> Module:
    text = path.read_text(encoding="utf-8")
    return Module(str(path.relative_to(SOURCE)), text, ast.parse(text))

"""The source checkout this code runs from, for the verbs that test, measure and document it."""

from pathlib import Path

import fourplane
from fourplane.foundation.errors import NotFound


def root() -> Path:
    """The folder that holds pyproject.toml and tests; raises NotFound where Fourplane was installed as a package."""
    folder = Path(fourplane.__file__).resolve().parents[2]
    if not (folder / "requirements.lock").is_file():
        raise NotFound("this verb works on a source checkout, and this is an installed package", code="no_checkout")
    return folder


def written(folder: Path, name: str, text: str) -> bool:
    """Write a generated file where it differs; returns whether it did."""
    path = folder / name
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return True

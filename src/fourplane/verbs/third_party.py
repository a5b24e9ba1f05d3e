"""THIRD_PARTY.md: what the set-up installs beside our code, under which licence, and why.

Names and versions are those of the lock files; licences come from the installed packages' own metadata. Nothing of
it is committed here or contained in the wheel.
"""

import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import msgspec

from fourplane.verbs.reference import WRITTEN

FILE = "THIRD_PARTY.md"
_PIN = re.compile(r"^([\w.-]+)==([\w.]+)", re.MULTILINE)
_REQUIREMENT = re.compile(r"^[\w.-]+")
WHY = {
    "needed": "needed to run",
    "video": "optional, extra `video`: its wheel holds an ffmpeg under the GPL, run only as a program of its own",
    "maps": "optional, extra `maps`",
    "speed": "optional, extra `speed`",
    "redis": "optional, extra `redis`",
    "postgres": "optional, extra `postgres`",
    "s3": "optional, extra `s3`",
    "dev": "tests and checks only",
}


def locked(folder: Path) -> list[tuple[str, str]]:
    """Name and version of every Python package of the lock."""
    return _PIN.findall((folder / "requirements.lock").read_text(encoding="utf-8"))


def page(folder: Path) -> str:
    """The whole page; the same lock files and installed packages give the same text."""
    reasons = _reasons(folder)
    lines = [
        WRITTEN,
        "# Third-party software\n",
        "Installed by the set-up from `requirements.lock` and `package-lock.json`; none of it is part of this repository.\n",
        "## Python packages\n",
        "| package | version | licence | why |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {version} | {_licence(name)} | {reasons.get(name, '')} |" for name, version in locked(folder)
    ]
    lines += ["", "## Browser libraries (npm)\n", "| package | version | licence | why |", "|---|---|---|---|"]
    lines += [f"| {name} | {version} | {licence} | {why} |" for name, version, licence, why in _browser(folder)]
    return "\n".join(lines) + "\n"


def _browser(folder: Path) -> Iterator[tuple[str, str, str, str]]:
    lock = msgspec.json.decode((folder / "package-lock.json").read_bytes())
    for path, package in sorted(lock["packages"].items()):
        if path:
            why = "tests only" if package.get("dev") else "served to browsers"
            yield path.rpartition("node_modules/")[2], package["version"], package.get("license", "see its files"), why


def _reasons(folder: Path) -> dict[str, str]:
    """Per package: the group that asks for it, else the packages of the lock that need it."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    groups = {"needed": project["project"]["dependencies"]}
    groups |= project["project"]["optional-dependencies"] | project["dependency-groups"]
    reasons = {_name(text): WHY[group] for group, texts in reversed(groups.items()) for text in texts}
    needed_by: dict[str, set[str]] = {}
    for name, _ in locked(folder):
        for text in _requires(name):
            needed_by.setdefault(_name(text), set()).add(name)
    for name, users in needed_by.items():
        reasons.setdefault(name, f"needed by {', '.join(sorted(users))}")
    return reasons


def _requires(name: str) -> list[str]:
    try:
        return [text for text in metadata.requires(name) or [] if "extra ==" not in text]
    except metadata.PackageNotFoundError:
        return []


def _name(requirement: str) -> str:
    found = _REQUIREMENT.match(requirement)
    return found[0].lower().replace("_", "-") if found else ""


def _licence(name: str) -> str:
    try:
        told = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return "not installed here"
    short = _first(told, "License-Expression") or _first(told, "License")
    if not short or len(short) > 60 or "\n" in short:
        of_classifiers = [text for text in told.get_all("Classifier") or [] if text.startswith("License ::")]
        short = ", ".join(text.rpartition(":: ")[2] for text in of_classifiers) or "see its files"
    return short


def _first(told: metadata.PackageMetadata, field: str) -> str:
    values = told.get_all(field) or [""]
    return str(values[0])

"""The version of everything inside a data folder: `format.json`.

A folder made by a newer program is refused, an older one is copied aside and then migrated step by step before anything
opens it. Each step takes the folder from version n to n + 1, only adds, and may run again after it was interrupted: the
number is raised after each finished step, so a killed migration goes on where it was. A step that leaves every file as it is
(`unchanged`: the new program reads what the old one wrote) needs no copy; it only keeps the old program out.

    1 -> 2   the journal of records holds a group of writes per frame; frames of one write are still read
    2 -> 3   records gather in sorted runs between journal and table; journals of both older forms are still read
    3 -> 4   filters of keys lie beside the runs; without them, and in runs without codes, keys are found as before
"""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import Corrupt, Misconfigured

FORMAT_NAME = "format.json"
CURRENT = 4
KEPT_OUT = ("backups", "deployment.lock", "control.sock")
Step = Callable[[Path], None]


class Format(msgspec.Struct, frozen=True):
    """What is written into the folder."""

    format: int
    written_by: str
    written_us: int


class Migrated(msgspec.Struct, frozen=True):
    """What `ensure_format` did: versions before and after, and where the copy from before lies."""

    before: int
    after: int
    backup: Path | None = None


def ensure_format(
    folder: Path, *, program: str, current: int = CURRENT, steps: Mapping[int, Step] | None = None
) -> Migrated:
    """Make the folder's format `current`; `steps[n]` leads from n to n + 1. The folder is held by the caller.

    Raises Misconfigured for a newer folder or a missing step (nothing changed), Corrupt when format.json cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = read_format(folder)
    if found is None:
        _write(folder, current, program)
        return Migrated(before=current, after=current)
    if found.format > current:
        told = (
            f"{folder} was written by {found.written_by} in format {found.format}; this program knows up to {current}"
        )
        raise Misconfigured(told, code="newer_format", format=found.format)
    if found.format == current:
        return Migrated(before=current, after=current)
    known = STEPS if steps is None else steps
    missing = [number for number in range(found.format, current) if number not in known]
    if missing:
        raise Misconfigured(
            f"no way from format {missing[0]} to {missing[0] + 1}", code="no_migration", format=missing[0]
        )
    wanted = [known[number] for number in range(found.format, current)]
    backup = None if all(step is unchanged for step in wanted) else back_up(folder, f"format-{found.format}")
    for number, step in enumerate(wanted, found.format):
        step(folder)
        _write(folder, number + 1, program)
    return Migrated(before=found.format, after=current, backup=backup)


def unchanged(_folder: Path) -> None:
    """A step for a format that only adds."""


STEPS: Mapping[int, Step] = {1: unchanged, 2: unchanged, 3: unchanged}


def read_format(folder: Path) -> Format | None:
    """The format of a folder, None for a new one; raises Corrupt when it cannot be read."""
    path = folder / FORMAT_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=Format)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise Corrupt(f"{path}: {error}", file=str(path), place="byte 0") from error


def back_up(folder: Path, label: str) -> Path:
    """Copy a folder that nobody writes to into its `backups/`; the copy appears whole or not at all."""
    target = folder / "backups" / f"{label}-{clock.now_us()}"
    partial = target.with_suffix(".partial")
    shutil.copytree(folder, partial, symlinks=True, ignore=shutil.ignore_patterns(*KEPT_OUT))
    partial.rename(target)
    _sync(target.parent)
    return target


def _write(folder: Path, number: int, program: str) -> None:
    fresh = folder / f"{FORMAT_NAME}.new"
    with fresh.open("wb") as file:
        file.write(msgspec.json.encode(Format(number, program, clock.now_us())))
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(folder / FORMAT_NAME)
    _sync(folder)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Bring in a file: a video for streaming, an OpenStreetMap extract for dispatch, a catalog for commerce."""

import argparse
import asyncio
from pathlib import Path
from typing import Any

import msgspec

from fourplane.foundation.errors import NotFound, Unavailable
from fourplane.verbs import deployment
from fourplane.verbs.progress import ProgressLine
from fourplane.verbs.table import table

OWNERS = {"video": "streaming", "map": "dispatch", "catalog": "commerce"}


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=sorted(OWNERS), help="what the file is")
    parser.add_argument("file", type=Path, help="the file to read, or a folder of films")
    parser.add_argument("--dry-run", action="store_true", help="check a catalog and change nothing")
    deployment.add(parser)


def run(options: argparse.Namespace) -> int:
    """Ask the running deployment, or open the data folder when none runs; prints what was made."""
    if not (options.file.is_file() or (options.kind == "video" and options.file.is_dir())):
        raise NotFound(f"no such file: {options.file}", code="no_file")
    line = ProgressLine(quiet=options.json)

    def told(facts: dict[str, Any]) -> None:
        line.show(float(facts.get("share", 0.0)), str(facts.get("text", "")))

    arguments = {"kind": options.kind, "file": str(options.file.absolute()), "dry_run": options.dry_run}
    try:
        result = asyncio.run(_import(options, arguments, told))
    finally:
        line.close()
    if options.json:
        print(msgspec.json.encode(result).decode())
    else:
        print(_readable(result))
    return 0


async def _import(options: argparse.Namespace, arguments: dict[str, Any], told: Any) -> Any:
    try:
        return await deployment.ask(deployment.folder(options), "import", arguments, told)
    except Unavailable as error:
        if not deployment.is_not_running(error):
            raise
    from fourplane.verbs.import_alone import import_alone  # noqa: PLC0415 - loads every system

    return await import_alone(deployment.of(options), OWNERS[arguments["kind"]], arguments, told)


def _readable(result: Any) -> str:
    if not isinstance(result, dict):
        return str(result)
    facts = {name: value for name, value in result.items() if name != "errors" and value not in (None, [], "")}
    lines = [f"{name:<14} {value}" for name, value in facts.items()]
    refused = [(f"row {one['row']}", str(one["field"]), str(one["reason"])) for one in result.get("errors") or ()]
    if refused:
        lines += ["", table(("refused", "field", "why"), refused)]
    if (more := int(result.get("errors_total") or 0) - len(refused)) > 0:
        lines.append(f"and {more:,} more")
    return "\n".join(lines)

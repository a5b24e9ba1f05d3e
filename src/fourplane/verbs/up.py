"""Start the systems on this machine, all four unless some are named; Ctrl-C stops them in order."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fourplane import __version__
from fourplane.control.fleet import limit_native_threads
from fourplane.verbs import settings, systems

if TYPE_CHECKING:
    from fourplane.settings import Settings


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("systems", nargs="*", metavar="SYSTEM", help="streaming, dispatch, commerce, messaging")
    parser.add_argument("--demo", action="store_true", help="drive all of them gently, to have something to see")
    parser.add_argument("--port", type=int, metavar="N", help="HTTP port (default 8000; 0 takes any free one)")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="the data folder (default ./data)")
    parser.add_argument("--workers", type=int, metavar="N", help="worker processes")
    parser.add_argument(
        "--takeover", action="store_true", help="take the place of what runs on the data folder; nobody is refused"
    )
    settings.add(parser)


def run(options: argparse.Namespace) -> int:
    """Stay until a signal asks to stop; the exit code of the deployment."""
    limit_native_threads()  # before numpy is loaded: a process with threads must not fork
    from fourplane.settings import Settings  # noqa: PLC0415 - not for --help

    loaded = settings.load(options).settings
    assert isinstance(loaded, Settings)
    chosen = _chosen(loaded, options)
    if not options.json:
        print(f"Fourplane {__version__} starts {', '.join(chosen.systems)} with data in {chosen.data}", flush=True)
    from fourplane import compose  # noqa: PLC0415 - loads every system, so not before the settings are right

    announce = _announce_json if options.json else _announce
    return compose.up(chosen, demo=options.demo, say=_say, announce=announce, takeover=options.takeover)


def _chosen(loaded: "Settings", options: argparse.Namespace) -> "Settings":
    """The settings with what the command line says on top."""
    replace = msgspec.structs.replace
    chosen = replace(loaded, systems=systems.chosen(options.systems, loaded.systems)) if options.systems else loaded
    if options.data is not None:
        chosen = replace(chosen, data=options.data)
    if options.workers is not None:
        chosen = replace(chosen, fleet=replace(chosen.fleet, workers=options.workers))
    if options.port is not None:
        listener = replace(chosen.http.listener, port=options.port)
        chosen = replace(chosen, http=replace(chosen.http, listener=listener))
    return chosen


def _say(line: str) -> None:
    print(f"fourplane: {line}", file=sys.stderr, flush=True)


def _announce(facts: dict[str, str]) -> None:
    lines = [
        "",
        f"  console   {facts['address']}",
        f"  operator  {facts['link']}",
        "            (opens once, within an hour: lets this browser stop and start things)",
        "",
        "Ctrl-C stops everything in order.",
    ]
    print("\n".join(lines), flush=True)


def _announce_json(facts: dict[str, str]) -> None:
    print(msgspec.json.encode(facts).decode(), flush=True)

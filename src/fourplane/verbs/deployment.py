"""How verbs find the deployment they talk to: the control socket in the data folder, or a short-lived one of their own."""

import argparse
import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourplane.foundation.errors import Unavailable
from fourplane.service import control_socket
from fourplane.verbs import settings

if TYPE_CHECKING:
    from fourplane.settings import Settings

CONTROL_SOCKET = "control.sock"


def add(parser: argparse.ArgumentParser) -> None:
    """The options that say which deployment is meant."""
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="its data folder (default ./data)")
    settings.add(parser)


def of(options: argparse.Namespace) -> "Settings":
    """The settings of the deployment that is meant."""
    from msgspec.structs import replace  # noqa: PLC0415

    from fourplane.settings import Settings  # noqa: PLC0415 - loads every system, so not for --help

    loaded = settings.load(options).settings
    assert isinstance(loaded, Settings)
    return loaded if options.data is None else replace(loaded, data=options.data)


def folder(options: argparse.Namespace) -> Path:
    """The data folder of the deployment that is meant, without the settings of every system: for verbs that only ask."""
    chosen: Path | None = options.data
    return settings.data_folder(options) if chosen is None else chosen


async def ask(
    chosen: Path, verb: str, arguments: Mapping[str, Any], on_progress: control_socket.Progress | None = None
) -> Any:
    """The answer of the deployment that runs in this folder; raises Unavailable (`not_running`) where none runs."""
    return await control_socket.ask(chosen / CONTROL_SOCKET, verb, arguments, on_progress)


def ask_now(chosen: Path, verb: str, arguments: Mapping[str, Any]) -> Any:
    """The same for a verb that needs no loop otherwise."""
    return asyncio.run(ask(chosen, verb, arguments))


def is_not_running(error: Unavailable) -> bool:
    """Whether this says that there is no deployment to ask."""
    return error.reason == "not_running"

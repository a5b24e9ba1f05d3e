"""How every verb finds its settings: `--config FILE`, else FOURPLANE_CONFIG, else `fourplane.toml` here.

The environment is read at this one place and handed on.
"""

import argparse
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from fourplane.foundation import config
from fourplane.foundation.errors import Misconfigured, NotFound

if TYPE_CHECKING:
    from fourplane.settings import Settings

FILE = Path("fourplane.toml")
DATA = Path("data")
ALIASES = {"FOURPLANE_FFMPEG": "streaming.ffmpeg"}


def add(parser: argparse.ArgumentParser) -> None:
    """The option that names the file."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="the settings file (default: fourplane.toml, if there)"
    )


def schema() -> "type[Settings]":
    """The root of all settings, which only the composition knows; it loads every system, so only on demand."""
    from fourplane.settings import Settings  # noqa: PLC0415

    return Settings


def load(options: argparse.Namespace) -> "config.Loaded[Settings]":
    """The settings and their origins; a file that was named must exist, bad settings raise Misconfigured."""
    return config.load(schema(), _file(options), os.environ, aliases=ALIASES)


def data_folder(options: argparse.Namespace) -> Path:
    """The one setting a verb needs that only asks a running deployment; the others are not loaded and not checked."""
    if "FOURPLANE_DATA" in os.environ:
        return Path(os.environ["FOURPLANE_DATA"])
    file = _file(options)
    try:
        return Path(str(tomllib.loads(file.read_text(encoding="utf-8")).get("data", DATA)))
    except FileNotFoundError:
        return DATA
    except (OSError, ValueError) as error:
        raise Misconfigured(f"{file.name}: {error}", code="bad_configuration") from error


def _file(options: argparse.Namespace) -> Path:
    named: Path | None = options.config or (
        Path(os.environ["FOURPLANE_CONFIG"]) if "FOURPLANE_CONFIG" in os.environ else None
    )
    if named is not None and not named.is_file():
        raise NotFound(f"no such settings file: {named}", code="no_settings_file")
    return named or FILE

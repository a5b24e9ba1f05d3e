"""How every verb finds its settings: `--config FILE`, else FOURPLANE_CONFIG, else `fourplane.toml` here.

The environment is read at this one place and handed on.
"""

import argparse
import importlib
import os
from importlib.util import find_spec
from pathlib import Path

import msgspec

from fourplane.foundation import config
from fourplane.foundation.errors import NotFound, Unavailable

FILE = Path("fourplane.toml")
ALIASES = {"FOURPLANE_FFMPEG": "streaming.ffmpeg"}


def add(parser: argparse.ArgumentParser) -> None:
    """The option that names the file."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="the settings file (default: fourplane.toml, if there)"
    )


def schema() -> type[msgspec.Struct]:
    """The root of all settings, which only the composition knows."""
    if find_spec("fourplane.compose") is None:
        raise Unavailable("nothing is composed in this version, so there are no settings", code="not_built")
    root = importlib.import_module("fourplane.compose").Settings
    assert isinstance(root, type) and issubclass(root, msgspec.Struct)  # noqa: PT018 - one fact
    return root


def load(options: argparse.Namespace) -> config.Loaded[msgspec.Struct]:
    """The settings and their origins; a file that was named must exist, bad settings raise Misconfigured."""
    named: Path | None = options.config or (
        Path(os.environ["FOURPLANE_CONFIG"]) if "FOURPLANE_CONFIG" in os.environ else None
    )
    if named is not None and not named.is_file():
        raise NotFound(f"no such settings file: {named}", code="no_settings_file")
    return config.load(schema(), named or FILE, os.environ, aliases=ALIASES)

"""Say what is set up; the launcher has repeated the steps that were missing before this runs."""

import argparse
import platform
import sys
from importlib.metadata import distributions

import msgspec

import fourplane
from fourplane.foundation import processes
from fourplane.verbs import checkout

BROWSER_LIBRARIES = ("hls.js", "leaflet")


def add(parser: argparse.ArgumentParser) -> None:
    del parser


def run(options: argparse.Namespace) -> int:
    """Print versions and what optional parts were found."""
    folder = checkout.root()
    names = {found.name.lower(): found.version for found in distributions()}
    state = {
        "fourplane": fourplane.__version__,
        "python": platform.python_version(),
        "packages": str(len(names)),
        "speed": _versions(names, ("uvloop", "numba")),
        "maps": _versions(names, ("osmium",)),
        "video": _versions(names, ("imageio-ffmpeg",)),
        "browser libraries": ", ".join(name for name in BROWSER_LIBRARIES if (folder / "node_modules" / name).is_dir())
        or "none: the pages use their fallbacks",
        "browser for tests": processes.find_program("chromium") or "none: browser tests are skipped",
        "interpreter": sys.executable,
    }
    if options.json:
        print(msgspec.json.encode(state).decode())
    else:
        print("\n".join(f"{name:<18} {value}" for name, value in state.items()))
    return 0


def _versions(names: dict[str, str], wanted: tuple[str, ...]) -> str:
    return ", ".join(f"{name} {names[name]}" for name in wanted if name in names) or "not installed"

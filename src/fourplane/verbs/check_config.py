"""Check the settings and show every value with its origin: default, file and line, or variable of the environment."""

import argparse

import msgspec

from fourplane.verbs import settings
from fourplane.verbs.table import table


def add(parser: argparse.ArgumentParser) -> None:
    settings.add(parser)
    parser.add_argument("--changed", action="store_true", help="only what differs from the defaults")


def run(options: argparse.Namespace) -> int:
    """Print the table or raise Misconfigured with one line per mistake."""
    origins = [
        origin for origin in settings.load(options).origins.values() if origin.kind != "default" or not options.changed
    ]
    if options.json:
        print(msgspec.json.encode({origin.key: origin for origin in origins}).decode())
        return 0
    rows = [(origin.key, origin.value, origin.place or origin.kind) for origin in origins]
    print(table(("setting", "value", "from"), rows))
    return 0

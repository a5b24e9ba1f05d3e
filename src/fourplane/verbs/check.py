"""Run the checks only: lint, format, types, import directions and the tidy tests."""

import argparse
import asyncio

from fourplane.foundation import clock
from fourplane.verbs import checkout, test


def add(parser: argparse.ArgumentParser) -> None:
    del parser


def run(options: argparse.Namespace) -> int:
    """0 when every check passed."""
    options.all, options.paths = False, []
    began = clock.monotonic_s()
    outcome = asyncio.run(test.check(checkout.root(), options))
    return test.report([outcome], clock.monotonic_s() - began, as_json=options.json)

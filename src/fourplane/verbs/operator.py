"""Print a fresh one-time link that makes the browser which opens it an operator's."""

import argparse

import msgspec

from fourplane.verbs import deployment


def add(parser: argparse.ArgumentParser) -> None:
    deployment.add(parser)


def run(options: argparse.Namespace) -> int:
    """Ask the running deployment."""
    answer = deployment.ask_now(deployment.folder(options), "operator", {})
    print(msgspec.json.encode(answer).decode() if options.json else answer["link"])
    return 0

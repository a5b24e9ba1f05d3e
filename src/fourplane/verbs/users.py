"""Create an account that can log in to the pages, the APIs and XMPP; the password is read from the terminal or standard input."""

import argparse
import getpass
import sys

import msgspec

from fourplane.foundation.errors import Rejected
from fourplane.verbs import deployment


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("add",), help="what to do")
    parser.add_argument("name", help="the account's name")
    parser.add_argument("--role", action="append", default=[], metavar="ROLE", help="such as operator; may repeat")
    deployment.add(parser)


def run(options: argparse.Namespace) -> int:
    """Ask the running deployment to create the account."""
    asked = sys.stdin.isatty()
    password = getpass.getpass(f"Password for {options.name}: ") if asked else sys.stdin.readline().rstrip("\n")
    if not password:
        raise Rejected("a password is needed: type it, or give it on standard input", code="no_password")
    arguments = {"name": options.name, "password": password, "roles": options.role}
    made = deployment.ask_now(deployment.folder(options), "users", arguments)
    print(msgspec.json.encode(made).decode() if options.json else f"account {made['name']} is ready")
    return 0

"""The command line: finds the verb, lets its module read the arguments, turns every expected error into one line.

A verb is a module of `fourplane.verbs` with `add(parser)` and `run(options) -> int`; it is imported only when asked
for, so that one verb does not pay for another. A verb of the table whose module does not exist is not offered.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple, NoReturn

import msgspec

from fourplane.foundation import config
from fourplane.foundation.errors import FourplaneError, Misconfigured, Rejected

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


class Verb(NamedTuple):
    """One thing to ask for."""

    name: str
    module: str
    summary: str


VERBS = (
    Verb("up", "up", "start the systems on this machine"),
    Verb("load", "load", "drive a running system with realistic clients"),
    Verb("import", "imports", "bring in a video, a map or a catalog"),
    Verb("cache", "cache", "put a cache in front of any origin"),
    Verb("query", "query", "ask a running deployment"),
    Verb("users", "users", "create and list accounts"),
    Verb("operator", "operator", "print a fresh one-time link for an operator's browser"),
    Verb("plan", "plan", "what a number of users would take: machines, cost, availability"),
    Verb("simulate", "simulate", "run the real services in virtual time from a seed"),
    Verb("reshard", "reshard", "move systems between the workers of a running deployment"),
    Verb("move-store", "move_store", "carry the stores of a deployment to PostgreSQL or S3"),
    Verb("alerts", "alerts", "see what is wrong, silence it for a while, look after it"),
    Verb("chaos", "chaos", "break a running deployment on purpose, with an end to every fault"),
    Verb("check-config", "check_config", "check the settings and show where each value comes from"),
    Verb("setup", "setup", "set the checkout up again and say what is there"),
    Verb("test", "test", "run the checks and all tests"),
    Verb("check", "check", "run the checks only: lint, format, types, imports, tidiness"),
    Verb("bench", "bench", "measure, against bare probes on the same machine"),
    Verb("docs", "docs", "write the generated pages of the documentation"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code is 0 done, 1 failed, 2 asked or configured wrongly, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    try:
        verb = _chosen(given)
        if verb is None:
            print(_overview())
            return 0 if given else EXIT_USAGE
        module = importlib.import_module(f"fourplane.verbs.{verb.module}")
        parser = _Parser(prog=f"fourplane {verb.name}", description=_described(module.__doc__), allow_abbrev=False)
        parser.add_argument("--json", action="store_true", help="answer in JSON, for programs")
        module.add(parser)
        return int(module.run(parser.parse_args(given[1:])))
    except FourplaneError as error:
        _tell(error, as_json=as_json)
        return EXIT_USAGE if isinstance(error, (Misconfigured, Rejected)) else EXIT_FAILED
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has left (`| head`): nothing more to say
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def offered() -> list[Verb]:
    """The verbs whose module exists, in the order of the table."""
    return [verb for verb in VERBS if find_spec(f"fourplane.verbs.{verb.module}") is not None]


class _Parser(argparse.ArgumentParser):
    """Refuses with one line instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise Rejected(
            f"{self.prog.removeprefix('fourplane ')}: {message}; see {self.prog} --help", code="bad_arguments"
        )


def _chosen(given: list[str]) -> Verb | None:
    if not given or given[0] in {"-h", "--help", "help"}:
        return None
    if given[0] in {"-V", "--version"}:
        given[:] = ["setup", "--json"] if "--json" in given else ["setup"]
    verbs = {verb.name: verb for verb in offered()}
    if given[0] not in verbs:
        near = config.nearest(given[0], verbs) or f"; there are {', '.join(verbs)}"
        raise Rejected(f"unknown verb {given[0]!r}{near}", code="unknown_verb")
    return verbs[given[0]]


def _overview() -> str:
    verbs = offered()
    width = max(len(verb.name) for verb in verbs)
    lines = [f"  {verb.name:<{width}}  {verb.summary}" for verb in verbs]
    head = "usage: fourplane VERB [options]\n\nFour production architectures on one runtime of four planes.\n"
    return "\n".join([head, *lines, "\nfourplane VERB --help tells more about one."])


def _described(docstring: str | None) -> str:
    return (docstring or "").partition("\n\n")[0].replace("\n", " ")


def _tell(error: FourplaneError, *, as_json: bool) -> None:
    if as_json:
        fields = {name: str(value) for name, value in error.fields.items()}
        told = {"error": {"code": error.reason, "message": error.message, "fields": fields}}
        print(msgspec.json.encode(told).decode())
        return
    for line in error.message.splitlines():
        print(f"fourplane: {line}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

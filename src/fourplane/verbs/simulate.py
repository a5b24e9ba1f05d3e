"""Run the real services in virtual time from a seed, with faults, and hold them to their promises.

An experiment is a file in Chaos Toolkit's format, the name of one of the library (--list), or drawn by the seed (--swarm). A
failing seed is shrunk to its smallest fault schedule and told as one command.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fourplane.foundation import processes
from fourplane.foundation.errors import NotFound, Rejected
from fourplane.verbs.table import table

if TYPE_CHECKING:
    from collections.abc import Callable

    from fourplane.simulator.experiment import Experiment
    from fourplane.simulator.experiments import Result
    from fourplane.simulator.search import Found

HASH_SEED = "0"
SEEDS_MAX = 1_000_000
ENDED_SHOWN = 12


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", default="", metavar="FILE", help="an experiment, or a name of the library")
    parser.add_argument("--list", action="store_true", help="say what the library holds and run nothing")
    parser.add_argument("--swarm", default="", metavar="SYSTEM", help="let each seed draw the faults itself")
    parser.add_argument("--people", type=int, default=0, metavar="N", help="this many instead of what the file says")
    parser.add_argument("--duration", type=float, default=0.0, metavar="S", help="virtual seconds under the faults")
    parser.add_argument("--sites", default="", metavar="ZONE,ZONE", help="spread the system over hosts in these zones")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="the seed that decides everything (default 1)")
    parser.add_argument("--seeds", default="", metavar="A..B", help="all seeds from A to B, until one fails")
    parser.add_argument("--only", default="", metavar="I,J", help="only these activities of the method, counted from 0")
    parser.add_argument("--report", default="", metavar="FILE.html", help="write what happened as a page")
    parser.add_argument(
        "--journal", default="", metavar="FILE.json", help="write Chaos Toolkit's journal of the last run"
    )


def run(options: argparse.Namespace) -> int:
    """Exit code 0 when every seed kept its promises, 1 when one did not."""
    from fourplane.simulator import report, search  # noqa: PLC0415 - loads all systems, so not for --help

    if options.list:
        return _list(as_json=options.json)
    if bool(options.file) == bool(options.swarm):
        raise Rejected("simulate what? name a file, see --list, or say --swarm SYSTEM", code="bad_arguments")
    if sys.flags.hash_randomization:
        _again()
    seeds = _seeds(options)
    experiment_of = _source(options)
    if not options.json:
        first = experiment_of(seeds[0])
        title = f"{options.swarm}: each seed draws its own faults" if options.swarm else first.title
        print(f"{title}\n{len(seeds)} seed{'s' if len(seeds) > 1 else ''}, {first.ours.people} people", flush=True)
    last: list[Result] = []

    def told(result: "Result") -> None:
        last[:] = [result]
        if not options.json:
            print(_line(result), flush=True)

    failed = search.first_failure(experiment_of, seeds, told)
    result = last[0]
    command = ""
    if failed is not None:
        found = search.shrink(experiment_of(failed.seed), failed)
        command = _command(options, found)
        result = found.result
    if options.report:
        again = command or _command(options, search.Found(result.seed, (), 0, result))
        Path(options.report).write_text(report.page(result, again), encoding="utf-8")
    if options.journal:
        Path(options.journal).write_bytes(msgspec.json.format(msgspec.json.encode(result.journal)) + b"\n")
    if options.json:
        print(msgspec.json.encode({"passed": failed is None, "repeat": command, "result": result}).decode())
    else:
        print(_told(result, command))
    return 0 if failed is None else 1


def _source(options: argparse.Namespace) -> "Callable[[int], Experiment]":
    """The experiment of each seed: what was named, or what the seed draws."""
    from fourplane.simulator import experiment, swarm  # noqa: PLC0415 - see run
    from fourplane.simulator.setting import SYSTEMS  # noqa: PLC0415 - see run

    if options.swarm and options.swarm not in SYSTEMS:
        raise NotFound(f"no system {options.swarm!r}; there are {', '.join(SYSTEMS)}", code="no_system")
    named = None if options.swarm else experiment.parse(experiment_file(options.file).read_bytes())

    def of(seed: int) -> "Experiment":
        chosen = named if named is not None else swarm.draw(options.swarm, seed, sites=_zones(options))
        chosen = chosen.sized(people=options.people, duration_s=options.duration, sites=_zones(options))
        return chosen.only(_places(options.only, len(chosen.method))) if options.only else chosen

    return of


def _command(options: argparse.Namespace, found: "Found") -> str:
    """What repeats a run: the seed, and of a failure's method only what it needs."""
    if not found.of:
        return " ".join(["./fourplane simulate", *_words(options, found.seed), *_said("only", options.only)])
    places = sorted({int(place) for place in options.only.split(",")}) if options.only else range(found.of)
    only = ",".join(str(places[place]) for place in found.kept)
    return " ".join(["./fourplane simulate", *_words(options, found.seed), *_said("only", only)])


def _words(options: argparse.Namespace, seed: int) -> list[str]:
    words = [f"--swarm {options.swarm}" if options.swarm else options.file, f"--seed {seed}"]
    words += _said("people", options.people) + _said("duration", f"{options.duration:g}" if options.duration else "")
    return words + _said("sites", options.sites)


def _said(name: str, value: object) -> list[str]:
    return [f"--{name} {value}"] if value else []


def _zones(options: argparse.Namespace) -> tuple[str, ...]:
    return tuple(zone.strip() for zone in options.sites.split(",")) if options.sites else ()


def _again() -> None:
    """Start this very command anew with a fixed hash seed, so that sets of strings have one order in every process."""
    processes.become(processes.python("fourplane", *sys.argv[1:]), env={"PYTHONHASHSEED": HASH_SEED})


def _library() -> dict[str, Path]:
    from fourplane import simulator  # noqa: PLC0415 - see run

    folder = Path(simulator.__file__).parent / "library"
    return {path.stem: path for path in sorted(folder.glob("*.json"))}


def library_rows() -> list[tuple[str, str]]:
    """Names and titles of the library."""
    return [(name, str(msgspec.json.decode(path.read_bytes())["title"])) for name, path in _library().items()]


def _list(*, as_json: bool) -> int:
    titles = dict(library_rows())
    print(
        msgspec.json.encode(titles).decode() if as_json else table(("experiment", "what happens"), list(titles.items()))
    )
    return 0


def experiment_file(name: str) -> Path:
    """The experiment of this name, from the library or from a file. Raises NotFound."""
    library = _library()
    path = library.get(name, Path(name))
    if not path.is_file():
        raise NotFound(f"no experiment {name!r}: neither a file nor a name of the library (--list)", code="no_file")
    return path


def _seeds(options: argparse.Namespace) -> range:
    if not options.seeds:
        return range(options.seed, options.seed + 1)
    first, dots, last = options.seeds.partition("..")
    if not (dots and first.isdigit() and last.isdigit() and 0 <= int(last) - int(first) < SEEDS_MAX):
        raise Rejected("--seeds says A..B, for example 1..100", code="bad_arguments")
    return range(int(first), int(last) + 1)


def _places(text: str, count: int) -> list[int]:
    places = text.split(",")
    if not all(place.isdigit() and int(place) < count for place in places):
        raise Rejected(f"--only names places from 0 to {count - 1}, for example 0,2", code="bad_arguments")
    return sorted({int(place) for place in places})


def _line(result: "Result") -> str:
    felt = result.felt
    verdict = "ok    " if result.passed else "FAILED"
    return (
        f"seed {result.seed:<6} {verdict}  {felt['served']:>6} served {felt['failed']:>5} failed  "
        f"{result.virtual_s:>6.1f} virtual s  {result.messages:>7} messages  digest {result.digest}"
    )


def _told(result: "Result", command: str) -> str:
    felt = result.felt
    lines = [f"  {span.began_s:>7.2f} to {span.ended_s:>7.2f} s  {span.name}" for span in result.spans]
    lines += [f"  {text}" for text in result.ended[:ENDED_SHOWN]]
    if len(result.ended) > ENDED_SHOWN:
        lines.append(f"  and {len(result.ended) - ENDED_SHOWN} times more that a process ended by itself")
    lines.append("  felt: " + (", ".join(f"{code} {count}" for code, count in felt["errors"].items()) or "no error"))
    lines += [f"  p99 of {name}: {took:g} ms" for name, took in felt["p99_ms"].items()]
    if result.facts_text():
        lines.append(f"  {result.facts_text()}")
    if result.passed:
        return "\n".join([*lines, "every promise was kept, and the steady state holds again"])
    broken = result.violations or ["the steady state does not hold"]
    return "\n".join([*lines, "broken:", *(f"  {text}" for text in broken[:20]), "repeat it with:", f"  {command}"])

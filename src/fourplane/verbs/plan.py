"""What a number of users would take: machines, storage, cost a month, availability, phase; beside the case study's own table."""

import argparse
from pathlib import Path
from typing import Any, get_args

import msgspec

from fourplane.control.plan import report
from fourplane.control.plan.demand import ASSUMPTIONS, System
from fourplane.control.plan.figures import figures
from fourplane.control.plan.prices import Prices, read_prices, written_prices
from fourplane.control.plan.results import bench_results, measured_scalability
from fourplane.control.plan.sizing import Plan, plan
from fourplane.control.plan.studies import USERS
from fourplane.foundation.errors import Misconfigured, NotFound, Rejected
from fourplane.verbs import checkout
from fourplane.verbs.table import table

SYSTEMS: tuple[System, ...] = get_args(System)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("system", choices=SYSTEMS, help="which system")
    parser.add_argument("--users", metavar="N", help="how many users: 5000, 2M, 1.5B (default: the case study's)")
    parser.add_argument("--regions", type=int, default=0, metavar="N", help="regions (default: what the phase has)")
    parser.add_argument("--zones", type=int, default=0, metavar="N", help="zones of each region")
    parser.add_argument(
        "--assume", action="append", default=[], metavar="NAME=VALUE", help="another habit of the users"
    )
    parser.add_argument("--prices", type=Path, metavar="FILE", help="an edited price table")
    parser.add_argument(
        "--write-prices", type=Path, metavar="FILE", help="write the price table, to be edited, and end"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write the plan as a page")
    parser.add_argument("--habits", action="store_true", help="list what is assumed of users, and end")


def run(options: argparse.Namespace) -> int:
    """Compute and print; nothing is started."""
    prices = read_prices(_text(options.prices)) if options.prices else Prices()
    if options.write_prices:
        options.write_prices.write_text(written_prices(prices), encoding="utf-8")
        print(f"wrote {options.write_prices}")
        return 0
    if options.habits:
        rows = [(one.name, f"{one.value:,.12g}", one.what) for one in ASSUMPTIONS[options.system]]
        print(table(("name", "value", "what"), rows))
        return 0
    results = _results()
    found = plan(
        options.system,
        counted(options.users) if options.users else USERS[options.system],
        figures=figures(results),
        prices=prices,
        regions=options.regions,
        zones=options.zones,
        habits=dict(_habit(text) for text in options.assume),
        scalability=measured_scalability(results),
    )
    if options.html:
        options.html.write_text(report.html(found), encoding="utf-8")
    print(msgspec.json.encode(found).decode() if options.json else text_of(found))
    return 0


def text_of(found: Plan) -> str:
    """The plan for a terminal."""
    parts = [report.headline(found), "", table(report.HEAD, report.rows(found)), ""]
    parts += [f"- {text}" for text in report.remarks(found)]
    parts += ["", f"the case study's own table, {found.study_users:,} users:", table(report.STUDY_HEAD, found.study)]
    return "\n".join(parts)


def counted(text: str) -> int:
    """A number of people as people write it."""
    units = {"k": 1e3, "m": 1e6, "b": 1e9}
    plain = text.replace(",", "").replace("_", "").strip().lower()
    try:
        return int(float(plain[:-1]) * units[plain[-1]]) if plain[-1:] in units else int(plain)
    except ValueError:
        raise Rejected(f"{text!r} is no number of users; 5000, 20k, 1.5M or 2B are", code="bad_users") from None


def _results() -> dict[str, dict[str, Any]]:
    try:
        return bench_results(checkout.root() / "benchmarks" / "results")
    except NotFound:
        return {}


def _habit(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError:
        raise Rejected(f"--assume takes NAME=NUMBER, not {text!r}", code="bad_assumption") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise Misconfigured(f"the price table {path} cannot be read: {error.strerror}", code="bad_prices") from None

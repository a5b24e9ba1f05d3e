"""Drive a running deployment with realistic clients over its public protocols, and report what they saw."""

import argparse
import asyncio
import platform
from typing import Any

import msgspec

from fourplane.foundation.errors import FourplaneError
from fourplane.verbs import deployment, systems
from fourplane.verbs.progress import ProgressLine
from fourplane.verbs.table import table

WITH_ACCOUNTS = ("messaging",)
ONE_ADDRESS = (
    "http_429: all of them came from this one address, and the gateway lets an address ask so often and no more; start the\n"
    "deployment with FOURPLANE_GATEWAY__RATE_PER_S=10000 to see what the system itself does under such a crowd"
)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("systems", nargs="+", metavar="SYSTEM", help="streaming, dispatch, commerce, messaging")
    parser.add_argument("--users", type=int, default=0, metavar="N", help="how many clients (default: fits the system)")
    parser.add_argument("--rate", type=float, default=0.0, metavar="R", help="actions per second over all of them")
    parser.add_argument("--seconds", type=float, default=30.0, metavar="S", help="how long (default 30)")
    parser.add_argument("--shape", default="steady", help="steady, flash-sale, rush-hour, ... as the system knows")
    parser.add_argument("--gentle", action="store_true", help="a small crowd until interrupted: the demonstration")
    deployment.add(parser)


def run(options: argparse.Namespace) -> int:
    """Exit code 0 when clients were served, 1 when every action failed."""
    from fourplane.simulator import crowds  # noqa: PLC0415 - loads the systems' protocols, so not for --help
    from fourplane.simulator.crowds import roll_call  # noqa: PLC0415

    chosen = systems.chosen(options.systems)
    folder = deployment.folder(options)
    target = msgspec.convert(deployment.ask_now(folder, "target", {}), crowds.Target)
    line = ProgressLine(quiet=options.json or options.gentle)
    tallies = {name: crowds.Tally() for name in chosen}
    shares = dict.fromkeys(chosen, 0.0)

    async def drive(name: str) -> None:
        plan = roll_call.plan(
            name,
            users=options.users,
            rate_per_s=options.rate,
            duration_s=0.0 if options.gentle else options.seconds,
            shape=options.shape,
            gentle=options.gentle,
        )

        def told(share: float, text: str) -> None:
            shares[name] = share
            line.show(sum(shares.values()) / len(shares), f"{name}: {text}")

        accounts = await deployment.ask(folder, "crowd", {"count": plan.users}) if name in WITH_ACCOUNTS else []
        try:
            await roll_call.crowd(name, accounts).drive(target, plan, tallies[name], told)
        except FourplaneError as error:
            if not options.gentle or len(chosen) == 1:
                raise
            print(f"The crowd of {name} left: {error.message}", flush=True)  # the others go on

    async def all_of_them() -> None:
        async with asyncio.TaskGroup() as group:
            for name in chosen:
                group.create_task(drive(name))

    try:
        asyncio.run(all_of_them())
    except KeyboardInterrupt:
        pass  # what was seen until now is still worth telling
    except ExceptionGroup as group:
        expected, rest = group.split(FourplaneError)
        if rest is not None or expected is None:
            raise
        raise _first(expected) from None
    finally:
        line.close()
    report = {name: _report(tally) for name, tally in tallies.items()}
    print(msgspec.json.encode(report).decode() if options.json else _readable(report))
    return 0 if any(tally.latency for tally in tallies.values()) else 1


def _first(group: ExceptionGroup[FourplaneError]) -> FourplaneError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, FourplaneError)
    return error


def _report(tally: Any) -> dict[str, Any]:
    actions = {
        name: {
            "count": cell.count,
            "p50_ms": round(cell.quantile(0.5) * 1e3, 2),
            "p99_ms": round(cell.quantile(0.99) * 1e3, 2),
        }
        for name, cell in tally.latency.items()
    }
    return {"actions": actions, "errors": tally.errors, "facts": tally.facts, "machine": platform.processor()}


def _readable(report: dict[str, Any]) -> str:
    parts = []
    for name, told in report.items():
        rows = [
            (action, f"{seen['count']:,}", f"{seen['p50_ms']:,} ms", f"{seen['p99_ms']:,} ms")
            for action, seen in told["actions"].items()
        ]
        parts.append(f"{name}\n" + table(("action", "done", "p50", "p99"), rows))
        if told["errors"]:
            parts.append("errors: " + ", ".join(f"{code} {count}" for code, count in told["errors"].items()))
        if "http_429" in told["errors"]:
            parts.append(ONE_ADDRESS)
        if told["facts"]:
            parts.append("facts:  " + ", ".join(f"{fact} {value:g}" for fact, value in told["facts"].items()))
    return "\n\n".join(parts)

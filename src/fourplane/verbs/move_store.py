"""Carry the stores of a deployment to servers without losing a write: `move-store sqlite:///data/state postgresql://...`.

Also `move-store folder:///data/blobs s3://...`. While the deployment runs everything is copied and compared again and again; when
it is stopped, what changed last is copied, both sides are counted and summed, and the settings for the switch are printed (or
written with --apply). Interrupted at any moment it goes on where it was when called again.
"""

import argparse
import asyncio
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import Misconfigured, Unavailable
from fourplane.verbs import deployment
from fourplane.verbs.progress import ProgressLine
from fourplane.verbs.table import table

if TYPE_CHECKING:
    from fourplane.state.data_folder import DataFolder
    from fourplane.state.mover import Mover
    from fourplane.state.moving import Proof

PAUSE_S = 2.0
LOOK_S = 0.1
SETTINGS = Path("fourplane.toml")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="FROM", help="such as sqlite:///data/state or folder:///data/blobs")
    parser.add_argument(
        "target", metavar="TO", help="such as postgresql://user:password@host/db or s3://key:secret@bucket"
    )
    parser.add_argument("--once", action="store_true", help="one pass while the deployment runs, then end")
    parser.add_argument("--apply", action="store_true", help="write the new engine into the settings file")
    deployment.add(parser)


def run(options: argparse.Namespace) -> int:
    """Move, or raise what stands in the way."""
    return asyncio.run(_move(options))


async def _move(options: argparse.Namespace) -> int:
    from fourplane.state.mover import BlobsMover, RowsMover  # noqa: PLC0415 - loads the engines
    from fourplane.state.stores import Stores, StoresSettings  # noqa: PLC0415 - the same

    data = deployment.folder(options)
    kinds = urlsplit(options.source).scheme, urlsplit(options.target).scheme
    folder = Path(options.source.partition(":///")[2].replace("{data}", str(data)))
    mover: Mover
    contracts: tuple[str, ...]
    match kinds:
        case ("sqlite", "postgresql"):
            contracts = ("sql", "records")
            source = Stores(StoresSettings(sql=options.source, records=options.source), data=data)
            to = Stores(StoresSettings(sql=options.target, records=options.target), data=data)
            mover = RowsMover(folder, source, to)
        case ("folder", "s3"):
            contracts = ("blobs",)
            source = Stores(StoresSettings(blobs=options.source), data=data)
            to = Stores(StoresSettings(blobs=options.target), data=data)
            mover = BlobsMover(folder, source, to)
        case _:
            told = f"no way from {kinds[0]!r} to {kinds[1]!r}: from sqlite to postgresql, from folder to s3"
            raise Misconfigured(told, code="no_move")
    line = ProgressLine(quiet=options.json)
    try:
        held = await _passes(mover, data, line, once=options.once)
        if held is None:
            return 0
        try:
            proofs, window_s = await _window(mover, line)
        finally:
            held.release()
    finally:
        line.close()
        await to.stop()
        await source.stop()
    _report(proofs, window_s, as_json=options.json)
    _switch(contracts, options.target, options.config or SETTINGS, write=options.apply, as_json=options.json)
    return 0


async def _passes(mover: "Mover", data: Path, line: ProgressLine, *, once: bool) -> "DataFolder | None":
    """Copy while the deployment runs; the held folder as soon as it has stopped, None after `once`."""
    told = False
    while True:
        held = _try_hold(data)
        if held is not None:
            return held
        began = clock.monotonic_s()
        moved = await mover.one_pass(line.show)
        took_s = clock.monotonic_s() - began
        line.close()
        written = sum(each.written + each.removed for each in moved)
        say = f"{sum(each.rows for each in moved):,} looked at, {written:,} copied in {took_s:.1f} s"
        print(say, file=sys.stderr, flush=True)
        if once:
            print("call it again, and stop the deployment when it asks, to finish the move", file=sys.stderr)
            return None
        if not told:
            told = True
            print(
                f"now stop the deployment: the rest takes about {2 * took_s:.0f} s from then on",
                file=sys.stderr,
                flush=True,
            )
        until = clock.monotonic_s() + max(PAUSE_S, took_s)
        while clock.monotonic_s() < until:
            held = _try_hold(data)
            if held is not None:
                return held
            await clock.sleep(LOOK_S)


async def _window(mover: "Mover", line: ProgressLine) -> tuple[list["Proof"], float]:
    """The last pass and the proof, with nobody writing; how long it took."""
    began = clock.monotonic_s()
    await mover.settle()
    await mover.one_pass(line.show, final=True)
    line.close()
    return await mover.proofs(line.show), clock.monotonic_s() - began


def _try_hold(data: Path) -> "DataFolder | None":
    from fourplane.state import data_folder  # noqa: PLC0415 - not for --help

    try:
        return data_folder.hold(data)
    except Unavailable:
        return None


def _report(proofs: list["Proof"], window_s: float, *, as_json: bool) -> None:
    if as_json:
        print(msgspec.json.encode({"window_s": round(window_s, 3), "stores": proofs}).decode())
        return
    rows = [(each.store, each.table, f"{each.rows:,}", each.checksum) for each in proofs]
    print(table(("store", "table", "rows", "checksum, both sides"), rows))
    print(f"equal; the window was {window_s:.1f} s")


def _switch(contracts: tuple[str, ...], url: str, file: Path, *, write: bool, as_json: bool) -> None:
    """Print the settings of the switch, or write them."""
    lines = [f'{contract} = "{url}"' for contract in contracts]
    if not write:
        if not as_json:
            print("\n".join((f"now put this into {file} and start again:", "", "[stores]", *lines)))
        return
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    stores = tomllib.loads(text).get("stores", {})
    if set(contracts) & set(stores):
        told = f"{file} names {', '.join(sorted(set(contracts) & set(stores)))} under [stores] already; change it there"
        raise Misconfigured(told, code="already_set")
    head = "[stores]"
    fresh = text.replace(head, "\n".join((head, *lines)), 1) if stores or head in text else ""
    written = fresh or "\n".join((text.rstrip("\n"), *([""] if text else []), head, *lines, "")).lstrip("\n")
    tomllib.loads(written)
    partial = file.with_suffix(".toml.new")
    partial.write_text(written, encoding="utf-8")
    partial.chmod(0o600)  # it holds a password
    partial.rename(file)
    if not as_json:
        print(f"{file} names the new engine; start the deployment again")

"""Write the generated pages: settings, metrics, errors, and THIRD_PARTY.md. With --check only say which are old."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import msgspec

from fourplane.verbs import checkout, reference, settings, third_party
from fourplane.verbs.systems import chosen

PAGES = ("config", "metrics", "errors", "third-party")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=f"only these of {', '.join(PAGES)}")
    parser.add_argument("--check", action="store_true", help="write nothing, fail when a page is older than the code")


def run(options: argparse.Namespace) -> int:
    """0 when the pages are written, or with --check when all are as the code says."""
    folder = checkout.root()
    old = []
    for name, text in pages(folder, chosen(options.pages, PAGES, "page")):
        path = folder / name
        if options.check:
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                old.append(name)
        elif checkout.written(folder, name, text):
            old.append(name)
    if options.json:
        print(msgspec.json.encode({"stale" if options.check else "written": old}).decode())
    elif options.check:
        print(
            "\n".join(f"{name} is older than the code: run ./fourplane docs" for name in old)
            or "every page is up to date"
        )
    else:
        print("\n".join(f"wrote {name}" for name in old) or "every page was up to date")
    return 1 if options.check and old else 0


def pages(folder: Path, wanted: tuple[str, ...] = PAGES) -> Iterator[tuple[str, str]]:
    """File name and text of each wanted page."""
    source = folder / "src" / "fourplane"
    if "config" in wanted:
        yield "docs/reference/config.md", reference.settings_page(settings.schema())
    if "metrics" in wanted:
        yield "docs/reference/metrics.md", reference.metrics_page(source)
    if "errors" in wanted:
        yield "docs/reference/errors.md", reference.errors_page(source)
    if "third-party" in wanted:
        yield third_party.FILE, third_party.page(folder)

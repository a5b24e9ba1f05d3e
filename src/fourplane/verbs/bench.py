"""Measure: run `benchmarks/<name>.py`, print each figure, keep all of them with the machine as JSON.

A benchmark is a file with `run(options) -> dict`; nested dictionaries become dotted names. Figures of one run are
comparable with each other and with the bare probes inside it, not with those of another machine.
"""

import argparse
import importlib.util
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

import fourplane
from fourplane.foundation import clock
from fourplane.foundation.errors import NotFound
from fourplane.verbs import checkout
from fourplane.verbs.systems import chosen
from fourplane.verbs.table import table

RESULTS = Path("benchmarks") / "results"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="which benchmarks (default: all)")
    parser.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="rounds of each measurement; the median counts"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--peers", action="store_true", help="with the peers that can be installed, in the same run")
    parser.add_argument("--only", default="", metavar="ROW", help="one row of a benchmark whose rows take long")
    parser.add_argument("--list", action="store_true", help="say what there is and measure nothing")


def run(options: argparse.Namespace) -> int:
    """Run the benchmarks one after the other; each writes benchmarks/results/<name>.json."""
    folder = checkout.root()
    known = tuple(sorted(path.stem for path in (folder / "benchmarks").glob("*.py") if path.stem[0] != "_"))
    if not known:
        raise NotFound("there are no benchmarks in this version", code="no_benchmarks")
    if options.list:
        print(msgspec.json.encode(known).decode() if options.json else "\n".join(known))
        return 0
    everything = {}
    for name in chosen(options.names, known, "benchmark"):
        began = clock.monotonic_s()
        figures = _load(folder / "benchmarks" / f"{name}.py").run(options)
        kept = {"machine": machine(), "seconds": round(clock.monotonic_s() - began, 1), "figures": figures}
        everything[name] = kept
        text = msgspec.json.format(msgspec.json.encode(kept, enc_hook=str)).decode()
        checkout.written(folder, str(RESULTS / f"{name}.json"), text + "\n")
        if not options.json:
            rows = [(key, _number(value)) for key, value in _flat(figures)]
            print(f"\n{name} ({kept['seconds']} s)\n{table(('figure', 'value'), rows)}", flush=True)
    if options.json:
        print(msgspec.json.encode(everything, enc_hook=str).decode())
    return 0


def machine() -> dict[str, str]:
    """What a figure must be read with."""
    model = platform.processor() or platform.machine()
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        model = next(line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {
        "cpu": model,
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "fourplane": fourplane.__version__,
    }


def _load(path: Path) -> Any:
    """The benchmark's module, read from its file: benchmarks are no part of the package."""
    spec = importlib.util.spec_from_file_location(f"benchmarks.{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _flat(figures: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in figures.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)

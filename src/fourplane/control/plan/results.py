"""What `bench` wrote on this machine: read for plans, missing or broken files count as not measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from fourplane.control.plan.scalability import Scalability


def bench_results(folder: Path) -> dict[str, dict[str, Any]]:
    """The JSON files of a `benchmarks/results` folder by the name of the benchmark."""
    results = {}
    for path in sorted(folder.glob("*.json")):
        try:
            results[path.stem] = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        except (OSError, msgspec.MsgspecError):
            continue
    return results


def measured_scalability(results: Mapping[str, Mapping[str, Any]]) -> Scalability | None:
    """The law that `bench control` fitted here; None where it did not run."""
    kept = results.get("control", {})
    fitted = kept.get("figures", kept).get("scalability")
    try:
        return None if fitted is None else msgspec.convert(fitted, Scalability)
    except msgspec.MsgspecError:
        return None

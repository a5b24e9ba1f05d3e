"""What one core does, from this machine's benchmarks; where one was not run, a figure of the reference machine, and said so.

`./fourplane bench NAME` writes `benchmarks/results/NAME.json`. A figure is looked up there by its place; the first that is
there counts.
"""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

Basis = Literal["measured", "derived", "assumed"]
REFERENCE = "reference machine (2 cores, 2.5 GHz)"


class Figure(msgspec.Struct, frozen=True):
    """A number with its unit and where it comes from."""

    name: str
    value: float
    unit: str
    basis: Basis
    source: str


class _Known(msgspec.Struct, frozen=True):
    unit: str
    places: tuple[str, ...]  # "benchmark/dotted.place", the first found counts
    reference: float
    factor: float = 1.0


KNOWN: dict[str, _Known] = {
    "messages": _Known("messages/s a core", ("messaging/rows.one-to-one, 16 in flight.fourplane.per_cpu_s",), 68_000),
    "group_deliveries": _Known(
        "deliveries/s a core", ("messaging/rows.group fan-out, deliveries.fourplane.per_cpu_s",), 140_000
    ),
    "logins": _Known("logins/s a core", ("messaging/rows.logins (SCRAM, roster, presence).fourplane.per_cpu_s",), 700),
    "session_bytes": _Known("bytes an idle session", ("messaging/rows.bytes per idle session.fourplane.bytes",), 3_000),
    "stored_messages": _Known(
        "durable messages/s a core", ("messaging/rows.offline messages stored.fourplane.per_cpu_s",), 15_000
    ),
    "positions": _Known(
        "positions/s a core", ("dispatch/tcp 1M.updates/cpu s", "dispatch/updates 1M.per_cpu_s"), 6_400_000
    ),
    "searches": _Known("searches with road ETA/s a core", ("dispatch/search + eta.per_cpu_s",), 6_000),
    "matches": _Known("trips begun/s a core", ("dispatch/whole path.matches/cpu s",), 250),
    "checkouts": _Known("checkouts/s a core", ("commerce/median.checkouts/cpu s",), 400),
    "pages": _Known("cached pages/s a core", ("commerce/median.pages/cpu s",), 12_000),
    "requests": _Known("API requests/s a core", ("edge/figures.gateway.requests_per_cpu_s",), 11_000),
    "delivered_gb": _Known("GB/s of video a core, TLS", ("streaming/2 MiB TLS node.gb_per_cpu_s",), 0.75),
    "writes": _Known("durable rows/s a writer", ("state/figures.sql appends.per_s",), 30_000),
    "points": _Known("metric points/s a core", ("control/in_memory",), 50_000_000),
}


def figures(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Figure]:
    """Every figure the plans use; `results` are the JSON files of `bench` by name."""
    return {name: _figure(name, known, results) for name, known in KNOWN.items()}


def _figure(name: str, known: _Known, results: Mapping[str, Mapping[str, Any]]) -> Figure:
    for place in known.places:
        benchmark, _, path = place.partition("/")
        found = results.get(benchmark)
        if found is None:
            continue
        inside = found.get("figures", found)
        for root in (found, inside):
            value = _at(root, path)
            if value is not None and value > 0:
                return Figure(name, value * known.factor, known.unit, "measured", f"bench {benchmark} on this machine")
    return Figure(name, known.reference, known.unit, "assumed", f"{REFERENCE}; ./fourplane bench measures yours")


def _at(found: Any, path: str) -> float | None:
    """The number at a dotted place; names may hold dots themselves, so the longest that fits is taken."""
    if path == "":
        return float(found) if isinstance(found, int | float) else None
    if not isinstance(found, Mapping):
        return None
    for name, inside in found.items():
        if path == name or path.startswith(f"{name}."):
            value = _at(inside, path[len(name) + 1 :])
            if value is not None:
                return value
    return None

"""A region and a worker are lost while clients use a deployment: how soon players move, what users see, how soon it pages.

The deployment and the clients are processes of their own on this machine; what is measured is what the clients felt, and what
the deployment wrote down about its alerts and runbooks.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fourplane.foundation.errors import Rejected

FREE_PORTS = {
    "FOURPLANE_MESSAGING__PORT": "0",
    "FOURPLANE_MESSAGING__TLS_PORT": "0",
    "FOURPLANE_STREAMING__ORIGIN_PORT": "0",
    "FOURPLANE_STREAMING__CDN_PORT": "0",
    "FOURPLANE_DISPATCH__FEED__PORT": "0",
    "FOURPLANE_STREAMING__ENCODING__DURATION_S_MAX": "30",
    "FOURPLANE_STREAMING__ENCODING__RUNGS_MAX": "2",
}
VIEWERS = 12
DRILLS = ("region", "kill")
MOVED_S_BAR, PAGE_S_BAR, ERRORS_BAR = 60.0, 10.0, 0.001


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", choices=DRILLS, default="", help="one of the two drills")


def run(options: argparse.Namespace) -> dict[str, object]:
    """Rounds of both drills; medians."""
    regions, kills = [], []
    only = getattr(options, "only", "")
    if only not in {"", *DRILLS}:
        raise Rejected(f"there is no row {only!r}; there are {', '.join(DRILLS)}", code="bad_arguments")
    with tempfile.TemporaryDirectory(prefix="fourplane-bench-") as folder, deployment(Path(folder)):
        if only != "kill":
            said(folder, "load", "streaming", "--users", "3", "--seconds", "8")
        for _ in range(getattr(options, "rounds", 1)):
            if only != "kill":
                regions.append(_facts(said(folder, "chaos", "streaming-zone-down", "--users", str(VIEWERS), "--json")))
            if only != "region":
                kills.append(_facts(said(folder, "chaos", "commerce-kill", "--users", "20", "--rate", "50", "--json")))
    rows = {
        "region lost: players moved after, s": (_median(regions, "moved_s"), MOVED_S_BAR),
        "region lost: alert after, s": (_median(regions, "alert_s"), PAGE_S_BAR),
        "region lost: runbook has acted after, s": (_median(regions, "acted_s"), MOVED_S_BAR),
        "worker killed: errors users saw, share": (_median(kills, "error_share"), ERRORS_BAR),
        "worker killed: orders lost or doubled": (_median(kills, "broken"), 0.0),
        "worker killed: alert after, s": (_median(kills, "alert_s"), PAGE_S_BAR),
    }
    print(f"{'figure':<44}{'reached':>12}{'bar':>12}")
    for name, (reached, bar) in rows.items():
        if only and only not in name:
            continue
        print(f"{name:<44}{'never' if reached is None else f'{reached:.4g}':>12}{f'{bar:g}':>12}")
    return {"rows": rows, "regions": regions, "kills": kills, "cpus": os.cpu_count()}


def region_lost() -> float | None:
    """Seconds until no player was left at a node of the lost region; None: some never moved."""
    with tempfile.TemporaryDirectory(prefix="fourplane-bench-") as folder, deployment(Path(folder), "streaming"):
        said(folder, "load", "streaming", "--users", "3", "--seconds", "8")
        return _facts(said(folder, "chaos", "streaming-zone-down", "--users", str(VIEWERS), "--json"))["moved_s"]


def _facts(journal: dict[str, Any]) -> dict[str, float | None]:
    ours = journal["x-fourplane"]
    zero_s = ours["first_fault_at_s"]
    alerts = [
        one["at_s"] - zero_s for one in ours["alerts"] if one["name"] in {"RegionDark", "WorkerDown", "ProbeFailing"}
    ]
    acted = [step["at_s"] - zero_s for one in ours["runs"] for step in one["steps"] if step["kind"] == "action"]
    return {
        "moved_s": ours["cost"]["moved_s"],
        "broken": float(len(ours["audit"]["broken"])),
        "error_share": ours["cost"]["error_share"],
        "alert_s": min(alerts, default=None),
        "acted_s": min(acted, default=None),
    }


def _median(rounds: list[dict[str, float | None]], name: str) -> float | None:
    known = [value for one in rounds if (value := one[name]) is not None]
    return statistics.median(known) if known and len(known) == len(rounds) else None


@contextlib.contextmanager
def deployment(folder: Path, *systems: str) -> Iterator[None]:
    """These systems, or streaming and commerce, until the end of the block."""
    named = systems or ("streaming", "commerce")
    command = [sys.executable, "-P", "-m", "fourplane", "up", *named, "--port", "0", "--json"]
    process = subprocess.Popen(
        [*command, "--data", str(folder / "data")], stdout=subprocess.PIPE, text=True, env=os.environ | FREE_PORTS
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline(), "the deployment does not start"
        yield
    finally:
        process.terminate()
        process.wait(60)


def said(folder: str, *arguments: str) -> dict[str, Any]:
    """What a verb answers in JSON, or nothing for one that says something else."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "fourplane", *arguments, "--data", f"{folder}/data"],
        capture_output=True, text=True, timeout=240, check=False, env=os.environ | FREE_PORTS,
    )  # fmt: skip
    with contextlib.suppress(json.JSONDecodeError):
        return dict(json.loads(done.stdout))
    return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add(parser)
    options = parser.parse_args()
    results = run(options)
    place = Path(__file__).parent / "results"
    place.mkdir(exist_ok=True)
    (place / "chaos.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

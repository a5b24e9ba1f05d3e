"""Workers that died: noticed within a second or two, however quickly they come back.

Every worker tells how long it has been up; the metrics store has that of all of them each second. A worker whose figure is
missing LOOKS_MISSING times is down; one whose figure fell has died and is back. Either is a condition that stays for HELD_S,
so that a restart of a second is not overlooked.

The worker that runs this cannot see its own death. It writes the time into a file every second and takes the file away when it
stops in order: a file at the start means that the process was killed, and how long nobody was there.
Pure but for that file.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from fourplane.control.alerts.book import Condition

LOOKS_MISSING = 2
HELD_S = 20.0
OUTAGE_S_MAX = 3_600.0  # longer and somebody had it switched off
FELL_S = 0.5


class WorkerWatch:
    """The workers of one deployment. `systems`: what each runs, for the text."""

    def __init__(self, systems: Mapping[str, str] | None = None) -> None:
        self._systems = dict(systems or {})
        self._up: dict[str, float] = {}
        self._missing: dict[str, int] = {}
        self._died: dict[str, tuple[float, str]] = {}
        self.deaths = 0

    def seen(self, now_s: float, up_s: Mapping[str, float]) -> None:
        """What each worker that answered said: seconds since its start."""
        for worker, seconds in up_s.items():
            before = self._up.get(worker)
            if before is not None and seconds < before - FELL_S:
                self._dead(now_s, worker, "died and is back")
            self._up[worker] = seconds
            self._missing[worker] = 0
        for worker in self._up.keys() - up_s.keys():
            self._missing[worker] += 1
            if self._missing[worker] >= LOOKS_MISSING:
                self._dead(now_s, worker, "does not answer")

    def was_killed(self, now_s: float, worker: str, away_s: float) -> None:
        """The worker that runs this was, before it started."""
        self._dead(now_s, worker, f"was killed and is back after {away_s:.1f} s")

    def conditions(self, now_s: float) -> Iterator[Condition]:
        """Workers that are down, or were a moment ago."""
        for worker, (at_s, what) in list(self._died.items()):
            if now_s - at_s > HELD_S:
                del self._died[worker]
                continue
            runs = self._systems.get(worker, "")
            summary = f"worker {worker}{f' ({runs})' if runs else ''} {what}"
            yield Condition("WorkerDown", "fleet", "page", summary, {"worker": worker}, keep_s=0.0)

    def _dead(self, now_s: float, worker: str, what: str) -> None:
        if worker not in self._died:
            self.deaths += 1
        self._died[worker] = (now_s, what)


class Heartbeat:
    """The file that stays behind when a process is killed."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def away_s(self, now_s: float) -> float | None:
        """How long nobody has been there when the process before was killed; None when it stopped in order."""
        try:
            written_s = float(self._file.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None
        away_s = now_s - written_s
        return away_s if 0 <= away_s <= OUTAGE_S_MAX else None

    def beat(self, now_s: float) -> None:
        """Still there."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(f"{now_s:.3f}", encoding="ascii")

    def rest(self) -> None:
        """Stopped in order."""
        self._file.unlink(missing_ok=True)

"""Who holds the loop: counts and names every callback that takes more than 20 ms of CPU time (ground rule 11).

While the process computes, the kernel sends SIGPROF every 5 ms of CPU time (ITIMER_PROF; an idle process gets none). The
handler runs between two instructions of whatever runs on the loop's thread, so the stack it is given is the truth. It looks
for the outermost frame above the loop, the callback, and reads the thread's own CPU clock. The same frame seen again is the
same step of the same task as long as a beat, queued on the loop when the frame was first seen, has not run: nothing
that is queued later runs before it. A call into C is seen when it returns; no tick was handled meanwhile, so the
gap between two ticks belongs to it.

Invariants: never a callback under `held_ms_max`, because only CPU time of this thread counts, between two sightings of
one step: a busy machine, a slow disk or a suspended process raise no alarm. Above it by two ticks (and the kernel's
tick) every one is found. Cost: about 10 us per 5 ms of CPU time, so 0.2 % of what is used and nothing when idle.
Live only, in the main thread (elsewhere it stays off): the simulator has virtual time and needs none.
"""

import asyncio
import gc
import signal
from collections import OrderedDict
from pathlib import Path
from types import FrameType

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Counter, Histogram, Registry

FOUNDATION = str(Path(__file__).parent) + "/"
PACKAGE = str(Path(__file__).parents[1]) + "/"
LOOP_FILES = frozenset(
    str(Path(asyncio.__file__).parent / name)
    for name in ("base_events.py", "events.py", "runners.py", "unix_events.py")
)


class WatchdogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a callback counts as holding the loop, and how often one place is told."""

    enabled: bool = True
    held_ms_max: float = 20.0
    tick_ms: float = 5.0
    quiet_s: float = 60.0
    places_max: int = 200


class Place(msgspec.Struct):
    """A function that held the loop."""

    count: int = 0
    longest_ms: float = 0.0
    told_s: float = float("-inf")


class WatchdogStatistics(msgspec.Struct, frozen=True):
    """What was seen since the start; `places` by "function (file:its first line)", the most frequent first."""

    watching: bool
    held_total: int
    places: dict[str, int]


class _Suspect:
    """The step under observation: its frame, since when it runs at the latest, where it stood when it was too long."""

    __slots__ = ("frame", "held_s", "line", "place", "since_s")

    def __init__(self, frame: FrameType, since_s: float) -> None:
        self.frame = frame
        self.since_s = since_s
        self.held_s = 0.0
        self.place = self.line = ""


class Watchdog:
    """A lifecycle part; the last to start, so that what happens before the doors open is not counted."""

    def __init__(self, registry: Registry, settings: WatchdogSettings | None = None) -> None:
        self.settings = settings or WatchdogSettings()
        self.watching = False
        self.places: OrderedDict[str, Place] = OrderedDict()
        self._registry = registry
        self._held: Counter = registry.counter(
            "fourplane_foundation_loop_held_total", "callbacks over 20 ms of CPU time"
        )
        self._seconds: Histogram = registry.histogram(
            "fourplane_foundation_loop_held_seconds", "CPU time of such callbacks"
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._suspect: _Suspect | None = None
        self._ticked_s = 0.0
        self._collecting_s = 0.0  # CPU time at which the running garbage collection began, 0 for none
        self._collected_s = 0.0  # spent in collections since the suspect was first seen

    async def start(self, tasks: Tasks) -> None:
        """Watch from now on."""
        del tasks
        if not self.settings.enabled:
            return
        self._loop = asyncio.get_running_loop()
        self._ticked_s = clock.thread_cpu_s()
        try:
            signal.signal(signal.SIGPROF, self._tick)
        except ValueError:
            return  # not the main thread, where alone Python runs signal handlers
        gc.callbacks.append(self._collection)
        signal.setitimer(signal.ITIMER_PROF, self.settings.tick_ms / 1e3, self.settings.tick_ms / 1e3)
        self.watching = True

    async def drain(self) -> None:
        """From here on nobody waits for the loop."""
        self._end()

    async def stop(self) -> None:
        self._end()

    def statistics(self) -> WatchdogStatistics:
        """How often and where."""
        found = sorted(self.places.items(), key=lambda entry: -entry[1].count)
        return WatchdogStatistics(self.watching, self._held.value, {name: place.count for name, place in found})

    def _end(self) -> None:
        if not self.watching:
            return
        self.watching = False
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, signal.SIG_IGN)  # one may be under way, and its default is to end the process
        gc.callbacks.remove(self._collection)
        self._suspect = None

    # -- in the signal handler: between two instructions of anything, so it only reads, counts and queues

    def _tick(self, _: int, frame: FrameType | None) -> None:
        now_s = clock.thread_cpu_s()
        before_s, self._ticked_s = self._ticked_s, now_s
        callback = _callback(frame)
        suspect = self._suspect
        if callback is None or frame is None:
            return
        if suspect is None or suspect.frame is not callback:
            # A tick that was due a period (and the kernel's grain) after the last one came now: until then it was in C.
            since_s = min(now_s, before_s + 2 * self.settings.tick_ms / 1e3)
            suspect = self._suspect = _Suspect(callback, since_s)
            self._collected_s = 0.0
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._beat, suspect)
        suspect.held_s = now_s - suspect.since_s
        if not suspect.place and suspect.held_s * 1e3 > self.settings.held_ms_max:
            collected = self._collected_s > suspect.held_s / 2
            suspect.place, suspect.line = ("garbage collection", "") if collected else _place(frame, callback)

    def _collection(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._collecting_s = clock.thread_cpu_s()
        else:
            self._collected_s += clock.thread_cpu_s() - self._collecting_s

    # -- on the loop again

    def _beat(self, suspect: _Suspect) -> None:
        """The step is over: what was not queued before it has not run yet."""
        if self._suspect is suspect:
            self._suspect = None
        if suspect.place and self.watching:
            self._tell(suspect.place, suspect.held_s, suspect.line)

    def _tell(self, name: str, held_s: float, line: str) -> None:
        self._held.value += 1
        self._seconds.record(held_s)
        place = self.places.get(name)
        if place is None:
            place = self.places[name] = Place()
            if len(self.places) > self.settings.places_max:
                self.places.popitem(last=False)
        place.count += 1
        place.longest_ms = max(place.longest_ms, held_s * 1e3)
        now_s = clock.monotonic_s()
        if now_s - place.told_s >= self.settings.quiet_s:
            place.told_s = now_s
            facts = {"held_ms": f"{held_s * 1e3:.0f}", "times": place.count, "line": line}
            self._registry.event("warning", "watchdog", f"{name} held the loop", **facts)


def _callback(frame: FrameType | None) -> FrameType | None:
    """The outermost frame that the loop called; None while the loop itself runs."""
    found: FrameType | None = None
    while frame is not None:
        if frame.f_code.co_filename in LOOP_FILES:
            return found
        found, frame = frame, frame.f_back
    return None


def _place(frame: FrameType, callback: FrameType) -> tuple[str, str]:
    """The innermost function of a plane or system on the stack, with the callback it worked for; and the line it is at."""
    inner: FrameType | None = frame
    while inner is not None and inner is not callback and not _ours(inner):
        inner = inner.f_back
    named = inner or callback
    name = f"{named.f_code.co_qualname} ({_file(named)}:{named.f_code.co_firstlineno})"
    line = f"{_file(named)}:{named.f_lineno}"
    return (name if named is callback else f"{name} for {callback.f_code.co_qualname}"), line


def _ours(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    return file.startswith(PACKAGE) and not file.startswith(FOUNDATION)


def _file(frame: FrameType) -> str:
    file = frame.f_code.co_filename
    return file.removeprefix(PACKAGE) if file.startswith(PACKAGE) else Path(file).name

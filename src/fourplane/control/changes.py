"""The configuration that may change while the deployment runs: every change a version, and the last one can be taken back.

Only what can be changed without a restart has a name here (`KNOBS`); everything else is in `fourplane.toml`. A change says
who made it and why, what was before, and lies in the blobs before it is carried out. What should be (all values) is told to
every worker again and again, so a worker that was restarted, or was away, comes to it by itself.

    http.in_flight_max           how many requests are under way at one time, per worker
    rehearsal.SYSTEM.delay_s     a release that is slower by so much, for rehearsing that it is noticed and taken back

Invariant: the values in force are those of the versions, applied in order.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from fourplane.edge.routes import Call, Door, Route
from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, NotFound, Rejected
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Registry
from fourplane.state.contracts import Blobs

VERSIONS_MAX = 500
KEY = "control/changes"
AGAIN_S = 2.0
KNOBS: dict[str, tuple[float, float, float]] = {  # pattern: lowest, highest, usual
    "http.in_flight_max": (1, 100_000, 2_000),
    "rehearsal.streaming.delay_s": (0, 10, 0),
    "rehearsal.dispatch.delay_s": (0, 10, 0),
    "rehearsal.commerce.delay_s": (0, 10, 0),
    "rehearsal.messaging.delay_s": (0, 10, 0),
}

Tell = Callable[[Mapping[str, float]], Awaitable[None]]


class Change(msgspec.Struct, frozen=True):
    """One version."""

    version: int
    at_s: float
    who: str
    name: str
    value: float
    before: float
    note: str = ""
    takes_back: int = 0  # the version it undoes
    lapse_after_s: float = 0.0  # taken back then, if it was not before; 0: it stays


class ChangeOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A change somebody wants."""

    name: str
    value: float
    note: str = ""


class RollbackOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which version is to be undone; 0: the last one that was not."""

    version: int = 0


class ChangesView(msgspec.Struct, frozen=True):
    """What is in force and how it came to be."""

    values: dict[str, float]
    versions: list[Change]


class Changes:
    """A lifecycle part of the worker with the console."""

    def __init__(self, blobs: Blobs, *, registry: Registry, tell: Tell, usual: Mapping[str, float]) -> None:
        """`usual`: what the settings say, where it is not what `KNOBS` say."""
        self._blobs = blobs
        self._registry = registry
        self._tell = tell
        self.usual = {name: usual.get(name, knob[2]) for name, knob in KNOBS.items()}
        self.versions: list[Change] = []
        self._lapses: dict[int, float] = {}  # versions that are taken back, on the steady clock
        self.on_change: list[Callable[[Change], None]] = []

    async def start(self, tasks: Tasks) -> None:
        """Read what was changed, and keep it in force."""
        try:
            self.versions = msgspec.json.decode(await self._blobs.get(KEY), type=list[Change])
        except NotFound:
            self.versions = []
        now_s, steady_s = clock.now_us() / 1e6, clock.monotonic_s()
        for one in self.versions:
            if one.lapse_after_s:  # the wall clock may have been wrong when it was made
                left_s = min(one.lapse_after_s, max(0.0, one.at_s + one.lapse_after_s - now_s))
                self._lapses[one.version] = steady_s + left_s
        tasks.start(self._keep(), "changes")

    async def drain(self) -> None:
        """Every change is written already."""

    async def stop(self) -> None:
        """The next start goes on with it."""

    def values(self) -> dict[str, float]:
        """What is in force: the usual values and the changes on top."""
        return self.usual | {one.name: one.value for one in self.versions}

    def last(self) -> Change | None:
        """The last change that was not taken back and takes nothing back."""
        undone = {one.takes_back for one in self.versions}
        return next((one for one in reversed(self.versions) if not one.takes_back and one.version not in undone), None)

    async def apply(
        self, name: str, value: float, *, who: str, note: str = "", takes_back: int = 0, lapse_after_s: float = 0.0
    ) -> Change:
        """Make a new version and carry it out. Raises Rejected for what cannot be changed, or not to that."""
        knob = KNOBS.get(name)
        if knob is None:
            raise Rejected(
                f"{name[:60]!r} cannot be changed while it runs; what can: {', '.join(KNOBS)}", code="no_knob"
            )
        if not knob[0] <= value <= knob[1]:
            raise Rejected(f"{name} is {knob[0]:g} to {knob[1]:g}", code="bad_value")
        change = self._made(name, value, who=who, note=note, takes_back=takes_back, lapse_after_s=lapse_after_s)
        await self._carry_out([change])
        return change

    async def rollback(self, version: int = 0, *, who: str) -> Change:
        """Undo a version, the last one when none is named. Raises NotFound, or Conflict when it is undone already."""
        found = self.last() if not version else next((one for one in self.versions if one.version == version), None)
        if found is None:
            raise NotFound("there is no change to take back", code="no_change")
        if any(one.takes_back == found.version for one in self.versions):
            raise Conflict(f"version {found.version} is taken back already", code="taken_back")
        note = f"takes version {found.version} back"
        return await self.apply(found.name, self._without(found), who=who, note=note, takes_back=found.version)

    async def take_back_lapsing(self) -> None:
        """Undo what experiments changed and nobody has undone yet."""
        await self._take_back([change for change in self.versions if change.lapse_after_s])

    def doors(self) -> list[Door]:
        """What is in force, for everybody; changing it, for operators."""
        base = "/control/api/changes"
        return [
            Route("GET", base, self._all, "The configuration's versions", answer=ChangesView),
            Route(
                "POST", base, self._change, "Change a value while it runs", body=ChangeOrder, answer=Change,
                access="operator",
            ),
            Route(
                "POST", f"{base}/rollback", self._back, "Take a change back", body=RollbackOrder, answer=Change,
                access="operator",
            ),
        ]  # fmt: skip

    async def _keep(self) -> None:
        while True:
            over = {version for version, until_s in self._lapses.items() if until_s <= clock.monotonic_s()}
            await self._take_back([change for change in self.versions if change.version in over])
            if self.versions:
                await self._tell(self.values())
            await clock.sleep(AGAIN_S)

    def _without(self, change: Change) -> float:
        """What its value would be without this version: the last change that nobody has undone, or the usual value.

        Versions are not undone in the order in which they were made, so what was before it may be long gone.
        """
        undone = {one.takes_back for one in self.versions} | {change.version}
        return next(
            (
                one.value
                for one in reversed(self.versions)
                if one.name == change.name and not one.takes_back and one.version not in undone
            ),
            self.usual[change.name],
        )

    def _made(
        self, name: str, value: float, *, who: str, note: str, takes_back: int = 0, lapse_after_s: float = 0.0
    ) -> Change:
        """The next version, not carried out yet."""
        number = self.versions[-1].version + 1 if self.versions else 1
        now_s, before = clock.now_us() / 1e6, self.values()[name]
        change = Change(number, now_s, who[:80], name, value, before, note[:200], takes_back, lapse_after_s)
        if lapse_after_s:
            self._lapses[number] = clock.monotonic_s() + lapse_after_s
        self.versions = [*self.versions, change][-VERSIONS_MAX:]
        return change

    async def _carry_out(self, made: Sequence[Change]) -> None:
        """Write versions down, then let all workers be so."""
        await self._blobs.put(KEY, msgspec.json.encode(self.versions), media_type="application/json")
        await self._tell(self.values())
        for change in made:
            what = f"version {change.version}: {change.name} is {change.value:g} now, was {change.before:g}"
            self._registry.event("warning" if change.takes_back else "info", "changes", f"{what} ({change.who})")
            for heard in self.on_change:
                heard(change)

    async def _take_back(self, lapsing: Sequence[Change]) -> None:
        """The oldest first, all in one step."""
        undone = {one.takes_back for one in self.versions}
        made = []
        for change in lapsing:
            self._lapses.pop(change.version, None)
            if change.version not in undone:
                note, value = f"takes version {change.version} back", self._without(change)
                made.append(
                    self._made(change.name, value, who="its time is over", note=note, takes_back=change.version)
                )
        if made:
            await self._carry_out(made)

    async def _all(self, _: Call[None]) -> ChangesView:
        return ChangesView(self.values(), self.versions[-100:])

    async def _change(self, call: Call[ChangeOrder]) -> Change:
        asked = call.body
        return await self.apply(asked.name, asked.value, who=_who(call.identity), note=asked.note)

    async def _back(self, call: Call[RollbackOrder]) -> Change:
        return await self.rollback(call.body.version, who=_who(call.identity))


def _who(identity: object) -> str:
    return str(getattr(identity, "name", "somebody"))

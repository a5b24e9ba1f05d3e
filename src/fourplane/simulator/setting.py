"""What an experiment says about its world beyond Chaos Toolkit's format: the extension `x-fourplane`.

    {"name": "x-fourplane", "system": "commerce", "people": 60, "duration_s": 30,
     "replicas": ["eu-a", "eu-b", "us-a"], "load": "diurnal", "loop": "open"}

`replicas` are zones, the part before the dash is the region. With one the system stands on one disk; with more, every write waits
for a majority of them, and another one takes over when the leader's host is lost. `sites` are zones too: each has a part of the
system on a disk of its own (`simulator.sites`), and when several `replicas` are said, copies of every part lie in these zones.
"""

import msgspec

from fourplane.foundation.errors import Rejected

EXTENSION = "x-fourplane"
SYSTEMS = ("streaming", "dispatch", "commerce", "messaging")
LOADS = ("steady", "diurnal")
LOOPS = ("closed", "open")
REPLICAS_MAX = 7
SITES_MAX = 8


class Ours(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The extension; see the module's essay."""

    system: str
    name: str = EXTENSION
    people: int = 12
    duration_s: float = 30.0
    warm_up_s: float = 5.0
    replicas: tuple[str, ...] = ("eu-a",)
    sites: tuple[str, ...] = ()  # zones with a part of the system each; none: the whole system is one process
    every_s: float = 0.0  # mean pause between two actions of a person; 0 = what is usual for the system
    load: str = "steady"  # diurnal: one day of quiet and busy hours within the run
    loop: str = "closed"  # open: people come when they come, however long the answers take

    def __post_init__(self) -> None:
        if self.system not in SYSTEMS:
            raise Rejected(f"unknown system {self.system[:40]!r}; there are {', '.join(SYSTEMS)}", code="experiment")
        if not (
            1 <= self.people <= 100_000
            and 0 < self.duration_s <= 86_400
            and 0 <= self.warm_up_s <= 3_600
            and 0 <= self.every_s <= 86_400
        ):
            raise Rejected("people, duration_s, warm_up_s or every_s is out of bounds", code="experiment")
        if not 1 <= len(self.replicas) <= REPLICAS_MAX or len(set(self.replicas)) < len(self.replicas):
            raise Rejected(f"replicas names 1 to {REPLICAS_MAX} different zones", code="experiment")
        if len(self.sites) > SITES_MAX or len(self.sites) == 1:
            raise Rejected(f"sites names 2 to {SITES_MAX} zones, or none", code="experiment")
        if self.load not in LOADS or self.loop not in LOOPS:
            raise Rejected(f"load is one of {', '.join(LOADS)}, loop of {', '.join(LOOPS)}", code="experiment")

"""Which worker slot owns what. Pure.

A shard is the smallest thing that has one owner: a system, or one of the shards of a system that is spread (service/shards.py);
the accounts with the payments ("accounts"); the console with the control socket ("console"). Slots are configured places,
not live processes: a restarted worker finds its shards where they were. Who says nothing gets the systems in turn; the console
is in slot 0, because it starts first, and the accounts are where messaging is, which asks them most.
"""

from collections.abc import Mapping, Sequence

from fourplane.foundation.errors import Misconfigured
from fourplane.service.shards import ShardMap

CONSOLE = "console"
ACCOUNTS = "accounts"


class Placement:
    """Every shard's slot."""

    __slots__ = ("slots", "spread", "workers")

    def __init__(
        self,
        systems: Sequence[str],
        workers: int,
        chosen: Mapping[str, int] | None = None,
        shards: Mapping[str, int] | None = None,
    ) -> None:
        """`chosen` says where some of the systems are, `shards` into how many each is cut.

        Raises Misconfigured for a place that cannot be.
        """
        self.workers = workers
        wanted = dict(chosen or {})
        slots = {name: number % workers for number, name in enumerate(systems)} | {CONSOLE: 0}
        for name, slot in wanted.items():
            if name not in slots or name == CONSOLE:
                raise Misconfigured(f"fleet.placement: there is no {name!r} to place", setting="fleet.placement")
            if not 0 <= slot < workers:
                raise Misconfigured(
                    f"fleet.placement: {name} cannot be in slot {slot}, there are {workers} workers (0 to {workers - 1})",
                    setting="fleet.placement",
                )
            slots[name] = slot
        slots[ACCOUNTS] = slots.get("messaging", 0)
        self.spread: dict[str, ShardMap] = {}
        for name, count in (shards or {}).items():
            if name in systems and count > 1:
                cut = self.spread[name] = ShardMap(count, workers, home=slots[name])
                slots |= {cut.store_name(name, shard): slot for shard, slot in enumerate(cut.slots)}
        self.slots = slots

    def runs(self, system: str, slot: int) -> bool:
        """Whether a slot owns any shard of a system."""
        cut = self.spread.get(system)
        return self.slots[system] == slot if cut is None else slot in cut.slots

    def slot_of(self, shard: str) -> int:
        return self.slots[shard]

    def of_path(self, path: str) -> int:
        """The slot that serves a request: the system its path begins with, else the console."""
        return self.slots.get(path.split("/", 2)[1] if path.startswith("/") else "", self.slots[CONSOLE])

    def shards_of(self, slot: int) -> list[str]:
        """What a slot owns, sorted."""
        return sorted(shard for shard, owner in self.slots.items() if owner == slot)

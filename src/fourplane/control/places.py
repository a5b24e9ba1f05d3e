"""Where the workers of this deployment stand: a zone each, and the region is the part of its name before the dash. Pure.

On one machine these are labels and not walls: they say which workers and which cache nodes an experiment takes away together.
Nobody said anything: the first worker stands in `eu-a`, the next ones in `us-a` and `asia-a`, in turn; that are the
regions of the usual delivery tree.
"""

from collections.abc import Sequence

from fourplane.foundation.errors import Rejected

USUAL = ("eu-a", "us-a", "asia-a")


def region_of(zone: str) -> str:
    """`eu` of `eu-a`."""
    return zone.partition("-")[0]


class Places:
    """The zone of every worker slot, and the regions in which cache nodes stand."""

    __slots__ = ("regions", "zones")

    def __init__(self, workers: int, zones: Sequence[str] = (), regions: Sequence[str] = ()) -> None:
        chosen = tuple(zones) or USUAL
        self.zones = tuple(chosen[slot % len(chosen)] for slot in range(workers))
        self.regions = tuple(dict.fromkeys((*regions, *(region_of(zone) for zone in self.zones))))

    def slots(self, *, zone: str = "", region: str = "") -> list[int]:
        """The workers that stand there; all when neither is said."""
        return [slot for slot, own in enumerate(self.zones) if zone in ("", own) and region in ("", region_of(own))]

    def check(self, *, zone: str = "", region: str = "") -> None:
        """Raise Rejected for a place where nothing stands."""
        if zone and zone not in self.zones:
            raise Rejected(f"nothing stands in zone {zone[:40]!r}; there are {', '.join(self.zones)}", code="no_place")
        if region and region not in self.regions:
            known = ", ".join(self.regions)
            raise Rejected(f"nothing stands in region {region[:40]!r}; there are {known}", code="no_place")

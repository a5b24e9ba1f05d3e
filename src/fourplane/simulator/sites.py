"""One system on several hosts: sites in zones and regions, each with a part of the work and a disk of its own.

What a site has follows from the system (`systems`): messaging's users are spread over shards; dispatch has a city at each site;
commerce has a shop at each site, half of whose stock lies on the disk of the next one; streaming has origin and steering
at the first site and a cache node at each. The accounts and payments are at the first site, HOME. Sites call each other by
`service.rpc` over the simulated network, as the workers of a deployment do, so a lost region takes its own part of the system
with it, and what others need of it. With copies (`replicas`) another host takes a site over when its zone is lost.
"""

import asyncio
from pathlib import Path
from random import Random

from fourplane.simulator.deployment import HOME, Recipe, SimulatedDeployment, Spot
from fourplane.simulator.loop import World
from fourplane.simulator.setting import Ours
from fourplane.state.stores import StoresSettings

START_S = 60.0


class Sites:
    """All sites of a system; with a single one it is that deployment."""

    def __init__(
        self, world: World, ours: Ours, recipe: Recipe, *, folder: Path, stores: StoresSettings, seed: int
    ) -> None:
        rows = _spots(ours)
        places = {slot: spots[0] for slot, spots in enumerate(rows)}
        self.all = [
            SimulatedDeployment(
                world,
                spots,
                recipe,
                folder=folder / f"site-{slot}" if len(rows) > 1 else folder,
                stores=stores,
                chance=Random(f"disk of {seed}" if slot == HOME else f"disk of {seed} at {slot}"),
                slot=slot,
                others={other: spot for other, spot in places.items() if other != slot},
                secrets=folder / "secrets",
            )
            for slot, spots in enumerate(rows)
        ]

    @property
    def home(self) -> SimulatedDeployment:
        """The site with the accounts and payments."""
        return self.all[HOME]

    @property
    def hosts(self) -> frozenset[str]:
        """Every host on which a part of the system may stand."""
        return frozenset().union(*(site.hosts for site in self.all))

    @property
    def is_up(self) -> bool:
        """Whether every site has started."""
        return all(site.is_up for site in self.all)

    @property
    def down(self) -> list[str]:
        """The hosts of the sites that have not."""
        return [site.host for site in self.all if not site.is_up]

    @property
    def failures(self) -> list[str]:
        """Processes that ended by themselves, and why, in the order of time."""
        return sorted((text for site in self.all for text in site.failures), key=lambda text: float(text.split()[0]))

    def of(self, number: int) -> SimulatedDeployment:
        """The site of the person, cart or car with this number."""
        return self.all[number % len(self.all)]

    async def start(self) -> None:
        """Bring all of them up; sites that need each other may have to begin more than once."""
        if len(self.all) == 1:
            await self.home.start()
            return
        for site in self.all:
            site.begin()
        try:
            async with asyncio.timeout(START_S):
                for site in self.all:
                    await site.wait_up()
        except TimeoutError:
            raise RuntimeError(f"{', '.join(self.down)} did not start: {self.failures[-1:]}") from None

    async def stop(self) -> None:
        """End the run for good."""
        for site in self.all:
            await site.stop()


def _spots(ours: Ours) -> list[list[Spot]]:
    """The hosts of each site, that which leads first."""
    if not ours.sites:
        return [[_spot(f"{ours.system}-{number}", zone) for number, zone in enumerate(ours.replicas, 1)]]
    copies = ours.replicas if len(ours.replicas) > 1 else ()
    return [
        [_spot(f"{ours.system}-{number}", zone)]
        + [_spot(f"{ours.system}-{number}-{other}", other) for other in copies if other != zone]
        for number, zone in enumerate(ours.sites, 1)
    ]


def _spot(host: str, zone: str) -> Spot:
    return Spot(host, zone, zone.partition("-")[0])

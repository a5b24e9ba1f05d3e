"""What makes one worker breakable on purpose and the deployment able to help itself, built in one place for `compose`.

Every worker has faults it can be given (live_faults.py). The one with the console also carries orders to the others
(fault_orders.py).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fourplane.control.fault_machine import Machine, Spoilable, Vanishing
from fourplane.control.fault_orders import FaultOrders
from fourplane.control.live_faults import FaultDesk, LiveFaults
from fourplane.control.neighbourhood import Neighbourhood
from fourplane.control.placement import CONSOLE
from fourplane.control.places import Places
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry
from fourplane.service.accounts import Accounts


class ChaosSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where workers stand, and what may be broken."""

    zones: tuple[str, ...] = ()  # of the worker slots, in turn; a region is the part before the dash


class Resilience:
    """The parts; `add_to` puts them into a worker's life."""

    def __init__(
        self,
        settings: ChaosSettings,
        *,
        near: Neighbourhood,
        data: Path,
        folder: Path,
        systems: Sequence[str],
        registry: Registry,
        accounts: Accounts,
        disk: Spoilable | None,
        regions: Callable[[], Mapping[str, Sequence[Vanishing]]],
        regions_named: Sequence[str] = (),
    ) -> None:
        """`folder`: of the sockets of the workers; `regions`: the cache nodes here, by region."""
        self.places = Places(near.placement.workers, settings.zones, regions_named)

        async def tenant_of(token: str) -> str:
            found = await accounts.session(token)
            return "" if found is None else found.tenant

        self.faults = LiveFaults(
            registry, data=data, slot=near.slot, zone=self.places.zones[near.slot],
            machine=Machine(disk=disk, peers=near.peers, regions=regions), tenant_of=tenant_of,
        )  # fmt: skip
        self.desk = FaultDesk(self.faults)
        self._orders: FaultOrders | None = None
        if near.owns(CONSOLE):
            self._orders = FaultOrders(self.desk, near, self.places, systems, folder)

    def add_to(self, lifecycle: Lifecycle) -> None:
        """Start with the worker, stop with it."""
        lifecycle.add("faults", self.faults)
        if self._orders is not None:
            lifecycle.add("fault orders", self._orders)

    async def order(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """An order about faults, wherever it has to go."""
        assert self._orders is not None
        return await self._orders.order(arguments)

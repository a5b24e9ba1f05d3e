"""Which workers a fault is an order for, and the orders carried to them.

A fault of requests, of an instance, a disk, a clock or a processor is for the worker that owns the system; the loss of a
zone for the workers that stand there; the loss of a region for all (each knows whether it stands there, and its cache
nodes go dark by region); a partition between services for both sides, unless it is one way.

Orders reach other workers on a way of their own, so that the order to end a partition gets through it. A worker that
does not answer within `ANSWER_S` is skipped: it is away or hung, and what it had lapses.
"""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fourplane.control.fault_scope import OF_PLACES, kind_of, wanted_of
from fourplane.control.fleet import neighbour_path
from fourplane.control.live_faults import FaultDesk
from fourplane.control.neighbourhood import Neighbourhood
from fourplane.control.places import Places
from fourplane.foundation.errors import FourplaneError, Rejected
from fourplane.foundation.lifecycle import Tasks
from fourplane.service import call_context
from fourplane.service.rpc import remote
from fourplane.service.rpc_client import Peer

ANSWER_S = 2.0
OWN = "own"


class FaultOrders:
    """A lifecycle part of the worker with the console."""

    def __init__(
        self, desk: FaultDesk, near: Neighbourhood, places: Places, systems: Sequence[str], folder: Path
    ) -> None:
        """`folder`: of the sockets of the workers."""
        self._near = near
        self._places = places
        self._systems = systems
        self._peers = {slot: Peer(neighbour_path(folder, slot, "calls")) for slot in near.peers}
        self._desks: dict[int, FaultDesk] = {near.slot: desk} | {
            slot: remote(FaultDesk, peer, "faults") for slot, peer in self._peers.items()
        }

    async def start(self, tasks: Tasks) -> None:
        """Ways open when they are needed."""
        del tasks

    async def drain(self) -> None:
        """Nothing to finish."""

    async def stop(self) -> None:
        for peer in self._peers.values():
            peer.close()

    async def order(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out `arguments["order"]`; the answers of all workers that were meant, joined."""
        order, wanted = str(arguments.get("order", "")), dict(arguments)
        if order == "places":
            return {"zones": list(self._places.zones), "regions": list(self._places.regions)}
        if order != "begin":
            return _joined(await self._ask_all(list(self._desks), order, wanted))
        kind, system = str(wanted.get("kind", "")), str(wanted.get("system", ""))
        if system not in self._systems:
            raise Rejected(f"{system or 'no system'} is not part of this deployment", code="system_not_running")
        own_zone = self._places.zones[self._near.placement.slot_of(system)]
        scope = wanted["arguments"] = dict(wanted.get("arguments", {}))
        if scope.get("zone") == OWN:  # where the system stands, for files that fit every deployment
            scope["zone"] = own_zone
        meant = self._meant(kind, system, dict(wanted.get("arguments", {})))
        own = meant.pop(self._near.slot, None)
        asked = [
            answer
            for slot, parted in meant.items()
            for answer in await self._ask_all([slot], order, wanted | {"parted": parted}, must=True)
        ]
        if own is not None:  # last: it may be the end of this worker
            asked.append(await self._desks[self._near.slot].order(order, wanted | {"parted": own}))
        return _joined(asked)

    def _meant(self, kind: str, system: str, arguments: Mapping[str, Any]) -> dict[int, list[int]]:
        """The slots an order is for, each with the slots it is parted from."""
        known, wanted = kind_of(kind), wanted_of(kind, arguments)
        self._places.check(zone=wanted.zone, region=wanted.region)
        if known in OF_PLACES:
            slots = self._places.slots(zone=wanted.zone, region=wanted.region)
            everywhere = range(len(self._places.zones))
            return {slot: [] for slot in (everywhere if known == "region_loss" else slots)}
        slot_of = self._near.placement.slot_of
        home = slot_of(system)
        inside = self._places.slots(zone=wanted.zone, region=wanted.region)
        if known == "service_partition" and (wanted.zone or wanted.region):
            return _parted(inside, [slot for slot in self._desks if slot not in inside], one_way=wanted.one_way)
        if home not in inside:
            place = wanted.zone or wanted.region
            raise Rejected(f"{system} stands in {self._places.zones[home]}, not in {place}", code="no_place")
        if known != "service_partition":
            return {home: []}
        if wanted.to and wanted.to not in self._near.placement.slots:
            raise Rejected(f"there is no service {wanted.to[:40]!r} to be parted from", code="no_service")
        others = [slot_of(wanted.to)] if wanted.to else [slot for slot in self._desks if slot != home]
        return _parted([home], [slot for slot in others if slot != home], one_way=wanted.one_way)

    async def _ask_all(
        self, slots: Sequence[int], order: str, wanted: dict[str, Any], *, must: bool = False
    ) -> list[dict[str, Any]]:
        """The answers of these workers, asked at the same time; with `must` no answer is an error."""
        found: dict[int, dict[str, Any]] = {}
        failed: list[FourplaneError] = []

        async def ask(slot: int) -> None:
            try:
                with call_context.within(ANSWER_S):
                    found[slot] = await self._desks[slot].order(order, wanted)
            except FourplaneError as error:
                failed.append(error)

        async with asyncio.TaskGroup() as group:
            for slot in slots:
                group.create_task(ask(slot))
        if must and failed:
            raise failed[0]
        return [found[slot] for slot in sorted(found)]


def _parted(here: Sequence[int], there: Sequence[int], *, one_way: bool) -> dict[int, list[int]]:
    """Every slot with those it does not reach."""
    if not here or not there:
        raise Rejected("all services are on one side, nothing can part them", code="one_process")
    cuts = {slot: list(there) for slot in here}
    return cuts if one_way else cuts | {slot: list(here) for slot in there}


def _joined(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    joined: dict[str, Any] = {}
    for answer in answers:
        for name, value in answer.items():
            joined[name] = joined[name] + value if name in joined else value
    return joined

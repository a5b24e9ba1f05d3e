"""The workers of one deployment, as one of them sees the others.

With one worker nothing here does anything. With more, every shard (placement.py) has one owner: its worker holds the shard's
file lock and has raised its epoch before it opens a store, and only it opens them. Everybody else reaches what the owner has
through its Unix sockets, which the parent process holds so that callers wait while it restarts:

    requests      HTTP requests and WebSockets as they came (edge/neighbour.py, edge/tunnel.py)
    calls         typed calls (service/rpc.py): accounts and payments from their owner, each worker's desk, messages (courier.py)
    connections   client connections whose user is elsewhere (SCM_RIGHTS)
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

from fourplane.control.colleagues import Colleagues
from fourplane.control.desk import Desk
from fourplane.control.fleet import neighbour_path
from fourplane.control.nodes import Node
from fourplane.control.placement import ACCOUNTS, Placement
from fourplane.edge.neighbour import Neighbour
from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.network import InheritedSocket
from fourplane.foundation.telemetry import Registry
from fourplane.service import remote_accounts
from fourplane.service.accounts import Accounts, AccountSettings
from fourplane.service.card_simulator import CardSimulator
from fourplane.service.ownership import EpochGate, Grant, OwnedShard, OwnershipTable
from fourplane.service.rpc import remote
from fourplane.service.rpc_client import Peer
from fourplane.service.rpc_server import RpcServer
from fourplane.state.stores import Stores

PAYMENTS = "payments"
PAYMENT_METHODS = frozenset(("authorise", "capture", "capture_many", "find", "find_by_key", "held", "refund", "void"))
LOCK_WAIT_S = 5.0  # a killed owner's last forks may hold its lock for a moment
LOCK_TRY_S = 0.02


class Neighbourhood:
    """One worker among the others. A lifecycle part."""

    def __init__(self, placement: Placement, slot: int, folder: Path, ports: Mapping[str, int]) -> None:
        self.placement = placement
        self.slot = slot
        self.ports = ports
        self.grants: dict[str, Grant] = {}
        self._folder = folder
        self._held: list[OwnedShard] = []
        self._server: RpcServer | None = None
        others = range(placement.workers) if placement.workers > 1 else ()
        self._peers = {one: Peer(neighbour_path(folder, one, "calls")) for one in others if one != slot}
        self._neighbours = {
            one: Neighbour(f"worker {one}", neighbour_path(folder, one, "requests")) for one in self._peers
        }

    @property
    def alone(self) -> bool:
        """Whether this is the only worker."""
        return not self._peers

    def owns(self, shard: str) -> bool:
        """Whether this worker is the one that may open the shard."""
        return self.placement.slot_of(shard) == self.slot

    def runs(self, system: str) -> bool:
        """Whether this worker owns any shard of a system."""
        return self.placement.runs(system, self.slot)

    @property
    def peers(self) -> Mapping[int, Peer]:
        """The other workers, to be called."""
        return self._peers

    def way(self, slot: int) -> str:
        """Where a slot takes connections."""
        return neighbour_path(self._folder, slot, "connections")

    def elsewhere(self, path: str) -> Neighbour | None:
        """The worker that serves this path, None when it is this one."""
        return self._neighbours.get(self.placement.of_path(path)) if path not in ("/healthz", "/readyz") else None

    async def take_shards(self, stores: Stores) -> None:
        """Hold this worker's shards: file lock, then a new epoch. A shard whose slot was changed is moved first.

        Raises Conflict (`locked`) when another process still holds one.
        """
        if self.alone:
            return
        owner = f"slot-{self.slot}"
        for shard in self.placement.shards_of(self.slot):
            lock = self._folder / f"{shard}.lock"
            store = await stores.sql(f"ownership-{shard}")
            table = OwnershipTable(store)
            await table.open()
            before = await table.find(shard)
            if before is not None and before.owner != owner:
                await table.begin_move(shard, owner)
                await table.finish_move(shard, owner)
            owned = OwnedShard(table, shard, owner, lock)
            until = clock.monotonic_s() + LOCK_WAIT_S
            while shard not in self.grants:
                try:
                    self.grants[shard] = await owned.take(store)
                except Conflict as error:
                    if error.reason != "locked" or clock.monotonic_s() > until:
                        raise
                    await clock.sleep(LOCK_TRY_S)
            self._held.append(owned)

    def far_accounts(self, settings: AccountSettings) -> Accounts:
        """The accounts, as their owner answers."""
        peer = self._peers[self.placement.slot_of(ACCOUNTS)]
        return cast("Accounts", remote_accounts.RemoteAccounts(peer, settings))

    def far_payments(self) -> CardSimulator:
        """The payments, as their owner answers: what `PaymentGateway` names."""
        peer = self._peers[self.placement.slot_of(ACCOUNTS)]
        return remote(CardSimulator, peer, PAYMENTS, only=PAYMENT_METHODS)

    def desk_of(self, shard: str) -> Desk:
        """The desk of the worker that owns a shard, which is not this one."""
        return remote(Desk, self._peers[self.placement.slot_of(shard)], "desk")

    def colleagues(
        self,
        registry: Registry,
        adopt: Callable[[str, Sequence[Node]], None],
        own: Mapping[str, Sequence[Node]],
    ) -> Colleagues:
        """The part that listens to all others; `own`: the boxes here, some of which others have too."""
        desks = {slot: remote(Desk, peer, "desk") for slot, peer in self._peers.items()}
        return Colleagues(desks, registry=registry, adopt=adopt, own=own)

    def serve(
        self,
        registry: Registry,
        inherited: InheritedSocket | None,
        *,
        desk: Desk,
        services: Mapping[str, object],
        calls: Mapping[str, tuple[type, object, frozenset[str] | None]],
    ) -> None:
        """Let the others call this worker's desk, the accounts and payments if they are here, and `calls`; before the start."""
        if self.alone:
            return
        server = self._server = RpcServer(
            registry, path=neighbour_path(self._folder, self.slot, "calls"), inherited=inherited
        )
        server.add("desk", Desk, desk)
        for name, (source, target, only) in calls.items():
            server.add(name, source, target, only=only)
        gate = EpochGate(self.grants[ACCOUNTS].epoch if ACCOUNTS in self.grants else 0)
        if ACCOUNTS in services:
            server.add(ACCOUNTS, Accounts, services[ACCOUNTS], only=remote_accounts.METHODS, gate=gate)
            server.add(PAYMENTS, CardSimulator, services[PAYMENTS], only=PAYMENT_METHODS, gate=gate)

    # -- lifecycle

    async def start(self, tasks: Tasks) -> None:
        """Answer the others."""
        if self._server is not None:
            await self._server.start(tasks)

    async def drain(self) -> None:
        """Others may need this worker to drain themselves: it answers until it stops."""

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop()
        for peer in self._peers.values():
            peer.close()
        for neighbour in self._neighbours.values():
            neighbour.close()

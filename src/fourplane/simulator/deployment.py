"""One system in a simulated world: the real service code on embedded engines, on a disk that can lose and tear writes.

`start` builds it as `compose` would; `crash` is a pulled plug (nothing is finished, unsynced writes are lost or torn, by the
seed); `start` again finds what was durable. A background task that fails ends the process, and its parent starts it
again `RESTART_S` later, as in a real deployment. With several replicas the disk is a replicated volume (`replicas`): when the
leader's host is lost, another host takes over, and users find it under the same name (`address`).
One of several sites of a system (`sites`) has the accounts and payments of the first one, by the calls of `service.rpc`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from random import Random
from typing import Any, TypeVar, cast

import msgspec

from fourplane.control.neighbourhood import PAYMENT_METHODS, PAYMENTS
from fourplane.control.placement import ACCOUNTS
from fourplane.edge.gateway import Gateway, GatewaySettings
from fourplane.edge.http_server import HttpServer, HttpServerSettings
from fourplane.edge.listener import ListenerSettings
from fourplane.edge.routes import Door
from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.lifecycle import Lifecycle, Part
from fourplane.foundation.money import Money
from fourplane.foundation.telemetry import Registry
from fourplane.service import remote_accounts
from fourplane.service.accounts import Accounts
from fourplane.service.card_simulator import CardSettings, CardSimulator
from fourplane.service.key_ring import KeyRing
from fourplane.service.payment_gateway import Authorisation, Capture, Payment
from fourplane.service.rpc import remote
from fourplane.service.rpc_client import Peer
from fourplane.service.rpc_server import RpcServer
from fourplane.service.tokens import Signer
from fourplane.simulator.loop import World
from fourplane.simulator.replicas import LEASE_S, Replicas
from fourplane.state.embedded.vfs import Disk, Faults
from fourplane.state.stores import Stores, StoresSettings

T = TypeVar("T")

HTTP_PORT = 8_000
RPC_PORT = 8_001
HOME = 0  # the slot of the site that has the accounts and payments
THERE = 0.2  # the share of a slow provider's delay before it acts
RESTART_S = 1.0
WATCH_S = 0.5
CARDS = CardSettings(slow_s=0.05, silent_s=20.0)


class Spot(msgspec.Struct, frozen=True):
    """Where a host stands."""

    host: str
    zone: str
    region: str

    @property
    def address(self) -> str:
        """The name under which whatever leads a volume that began here is found."""
        return f"service-of-{self.host}"


class SlowPayments:
    """The payment gateway as it answers when its provider is slow: most of `delay_s` passes after the provider has done it.

    Whoever gives up while waiting does not know that it was done, which is what makes slow providers dangerous.
    """

    def __init__(self, cards: CardSimulator) -> None:
        self.cards = cards
        self.delay_s = 0.0

    async def authorise(self, key: str, amount: Money, method: str) -> Authorisation:
        return await self._slowly(self.cards.authorise(key, amount, method))

    async def capture(self, key: str, authorisation_id: str, amount: Money | None = None) -> Payment:
        return await self._slowly(self.cards.capture(key, authorisation_id, amount))

    async def capture_many(self, captures: list[Capture]) -> list[str]:
        return await self._slowly(self.cards.capture_many(captures))

    async def void(self, key: str, authorisation_id: str) -> Payment:
        return await self._slowly(self.cards.void(key, authorisation_id))

    async def refund(self, key: str, authorisation_id: str, amount: Money) -> Payment:
        return await self._slowly(self.cards.refund(key, authorisation_id, amount))

    async def held(self, prefix: str) -> list[str]:
        return await self._slowly(self.cards.held(prefix))

    async def find(self, authorisation_id: str) -> Payment | None:
        return await self._slowly(self.cards.find(authorisation_id))

    async def find_by_key(self, key: str) -> Payment | None:
        return await self._slowly(self.cards.find_by_key(key))

    async def _slowly(self, work: Coroutine[Any, Any, T]) -> T:
        delay = self.delay_s
        if not delay:
            return await work
        try:
            await asyncio.sleep(delay * THERE)
        except BaseException:
            work.close()
            raise
        result = await work
        await asyncio.sleep(delay * (1 - THERE))
        return result


class Platform(msgspec.Struct, frozen=True):
    """What a system is built on, of one life of a host."""

    host: str
    folder: Path
    stores: Stores
    accounts: Accounts
    payments: SlowPayments
    signer: Signer
    ids: IdGenerator
    registry: Registry
    slot: int = HOME  # of several sites
    peers: Mapping[int, Peer] = {}  # the other sites
    others: Mapping[int, Spot] = {}  # where they stand
    calls: RpcServer | None = None  # what the others may call here; None for a single site


class Built(msgspec.Struct, frozen=True):
    """What a recipe made: the system, and its doors on the gateway."""

    system: Part
    doors: list[Door]


Recipe = Callable[[Platform], Awaitable[Built]]


class SimulatedDeployment:
    """A system that can be crashed and started again."""

    def __init__(
        self,
        world: World,
        spots: list[Spot],
        recipe: Recipe,
        *,
        folder: Path,
        stores: StoresSettings,
        chance: Random,
        slot: int = HOME,
        others: Mapping[int, Spot] | None = None,
        secrets: Path | None = None,
    ) -> None:
        """`slot`, `others`: which of several sites this is, and where all others stand."""
        self.world = world
        self.slot = slot
        self.replicas = Replicas(world, [spot.host for spot in spots])
        self.host = spots[0].host  # of the leader
        self.address = spots[0].address
        self.disk = Disk(faults=Faults())
        self.system: Part | None = None
        self.platform: Platform | None = None
        self.is_up = False
        self.lives = 0
        self.payment_delay_s = 0.0
        self.failures: list[str] = []  # why a process ended by itself
        self._recipe = recipe
        self._others = others or {}
        self._secrets = secrets or folder / "secrets"
        self._folder = folder
        self._stores = stores
        self._chance = chance
        self._open_stores: _Opened | None = None
        self._settled = asyncio.Event()
        self._gateway: Gateway | None = None
        for spot in spots:
            world.network.place(spot.host, zone=spot.zone, region=spot.region)
            if len(spots) > 1:
                world.replicate(spot.host, self.replicas.volume(spot.host))
        world.network.names[self.address] = self.host
        if len(spots) > 1:
            world.later(WATCH_S, self._watch, 0.0)

    @property
    def hosts(self) -> frozenset[str]:
        """Every host the system may stand on."""
        return frozenset(self.replicas.hosts)

    async def start(self) -> None:
        """Bring the system up on its host and wait until it is, or has failed; raises what stopped it."""
        self.begin()
        await self._settled.wait()
        if not self.is_up:
            raise RuntimeError(f"{self.host} did not start: {self.failures[-1]}")

    def begin(self) -> None:
        """Bring the system up without waiting, where a majority is in reach; nothing to do when it runs."""
        self.replicas.lost.clear()
        self._lead()

    def _lead(self) -> None:
        leader = self.replicas.next_leader()
        if self._open_stores is not None or leader is None:
            return
        self.host = self.world.network.names[self.address] = leader
        self.world.revive(self.host)
        self._settled.clear()
        self.lives += 1
        with self.world.on(self.host):
            asyncio.get_running_loop().create_task(self._live(), name=f"{self.host} life {self.lives}")

    def crash(self, *, silent: bool = False) -> None:
        """Pull the plug; what was not synced is lost, some of it torn."""
        stores, self._open_stores = self._open_stores, None
        if stores is None:
            return
        self.platform = self.system = None
        self.is_up = False
        self.world.crash(self.host, silent=silent)
        stores.abandon()
        self.disk.crash(self._chance)
        if self._gateway is not None:
            self._gateway.close()
            self._gateway = None

    def lose_host(self) -> None:
        """The leader's machine is gone until `begin`; without a word, so others wait for it in vain."""
        self.replicas.lost.add(self.host)
        self.crash(silent=True)
        if len(self.replicas.hosts) > 1:
            self.world.later(LEASE_S, self._lead)

    def _watch(self, alone_s: float) -> None:
        """Every moment: a leader without a majority gives up when its lease ends, and one is looked for where none is."""
        if self._open_stores is None:
            alone_s += WATCH_S
            if alone_s >= LEASE_S and self.lives:
                self._lead()
                alone_s = 0.0
        elif self.replicas.quorum_s(self.host) is not None:
            alone_s = 0.0
        elif alone_s < LEASE_S:
            alone_s += WATCH_S
        else:
            self.failures.append(f"{self.world.now_s:.3f} s: {self.host} reaches no majority and gives up")
            self.crash()
        self.world.later(WATCH_S, self._watch, alone_s)

    async def stop(self) -> None:
        """End the run for good: the plug again, because nothing after it is looked at."""
        self.crash()
        self.disk.close()

    async def _live(self) -> None:
        """One life: start, then until something in it fails."""
        life = self.lives
        try:
            lifecycle = await self._build()
            await lifecycle.start()
            self.is_up = True
            self._settled.set()
            error = await lifecycle.wait_failed()
        except Exception as failed:  # noqa: BLE001 - a process that does not start is an observation of the run
            error = failed
        self.failures.append(f"{self.world.now_s:.3f} s: {type(error).__name__}: {error}")
        self.world.note(f"{self.host} ended: {type(error).__name__}")
        self._settled.set()
        asyncio.get_running_loop().call_soon(self._end, life)

    def _end(self, life: int) -> None:
        if self.lives != life:
            return
        self.crash()
        self.world.later(RESTART_S, self._again, life)

    def _again(self, life: int) -> None:
        if self.lives == life:
            self._lead()

    async def wait_up(self) -> None:
        """Until it runs, however often its process has to begin anew for that."""
        while not self.is_up:
            self._settled.clear()
            await self._settled.wait()

    async def _build(self) -> Lifecycle:
        registry, ids = Registry(), IdGenerator(self.slot)
        stores = self._open_stores = _Opened(self._stores, data=self._folder, disk=self.disk)
        lifecycle = Lifecycle(registry)
        lifecycle.add("stores", stores)
        calls = RpcServer(registry, host=self.host, port=RPC_PORT) if self._others else None
        peers = {slot: Peer(host=spot.address, port=RPC_PORT) for slot, spot in self._others.items()}
        shared: list[tuple[str, Part]] = []
        if self.slot == HOME:
            cards = CardSimulator(await stores.sql("payments"), ids=ids, settings=CARDS)
            accounts = Accounts(await stores.sql("accounts"), ids=ids)
            shared = [("accounts", accounts), ("cards", cards)]
        else:
            cards = remote(CardSimulator, peers[HOME], PAYMENTS, only=PAYMENT_METHODS)
            accounts = cast("Accounts", remote_accounts.RemoteAccounts(peers[HOME]))
        payments = SlowPayments(cards)
        payments.delay_s = self.payment_delay_s
        if calls is not None:
            if self.slot == HOME:
                calls.add(ACCOUNTS, Accounts, accounts, only=remote_accounts.METHODS)
                calls.add(PAYMENTS, CardSimulator, payments, only=PAYMENT_METHODS)
            shared.append(("calls", calls))
        signer = Signer(KeyRing.open(self._secrets / "keys.json"))
        self.platform = Platform(
            self.host, self._folder, stores, accounts, payments, signer, ids, registry,
            self.slot, peers, self._others, calls,
        )  # fmt: skip
        built = await self._recipe(self.platform)
        self.system = built.system
        self._gateway = Gateway(
            built.doors, accounts, registry=registry, settings=GatewaySettings(hosts=("*",), rate_per_s=1e6)
        )
        server = HttpServer(
            HttpServerSettings(listener=ListenerSettings(host=self.host, port=HTTP_PORT)),
            self._gateway,
            registry=registry,
            sockets=self._gateway.open_socket,
            classify=self._gateway.classify,
            first_lines=self._gateway.first_lines,
        )
        for name, part in (*shared, ("system", built.system), ("http", server)):
            lifecycle.add(name, part)
        return lifecycle


class _Opened(Stores):
    """Stores that can be let go as a killed process does."""

    def abandon(self) -> None:
        """Finish nothing, release every file."""
        for engine in self._open.values():
            for holder in (engine, getattr(engine, "database", None)):
                abandon = getattr(holder, "abandon", None)
                if abandon is not None:
                    abandon()
                    break
        self._open.clear()

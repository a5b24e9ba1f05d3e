"""The process dies at every write of a checkout, with unsynced bytes lost; after the restart nothing is half done."""

import asyncio
import random
import shutil
from pathlib import Path

import pytest
from tests.journeys.commerce.rig import ADDRESS, COLD, CommerceSettings, build, shop

from fourplane.commerce.checkout import PlaceOrder
from fourplane.commerce.orders import Address
from fourplane.foundation.errors import FourplaneError
from fourplane.state.embedded.vfs import Disk, Faults

SETTINGS = CommerceSettings(generated_products=8, standing_offers=False, pages=COLD)
REQUEST = PlaceOrder(address=Address(**ADDRESS))
BUYERS = 3


class Fuse:
    """Lets `left` writes through, then the process is dead: the next write, before or after it took effect, never returns."""

    def __init__(self, left: int, *, after: bool) -> None:
        self.left = left
        self.after = after
        self.blown = asyncio.Event()
        self.count = 0

    def wrap(self, store):
        return Fused(store, self)


class Fused:
    def __init__(self, store, fuse: Fuse) -> None:
        self._store = store
        self._fuse = fuse

    def __getattr__(self, name: str):
        found = getattr(self._store, name)
        if name == "commit_soon":
            return self._guarded_soon(found)
        return found if name not in ("commit", "write", "read", "get", "scan") else self._guarded(name, found)

    def _guarded(self, name: str, work):
        fuse = self._fuse

        async def guarded(*args, **kwargs):
            if fuse.blown.is_set():
                await asyncio.Event().wait()
            if name not in ("commit", "write"):
                return await work(*args, **kwargs)
            fuse.count += 1
            if fuse.left >= 0 and fuse.count > fuse.left:
                if fuse.after:
                    await work(*args, **kwargs)
                fuse.blown.set()
                await asyncio.Event().wait()
            return await work(*args, **kwargs)

        return guarded

    def _guarded_soon(self, work):
        fuse = self._fuse

        def guarded(statements, told):
            if fuse.blown.is_set():
                return
            fuse.count += 1
            if not 0 <= fuse.left < fuse.count:
                work(statements, told)
            elif fuse.after:
                work(statements, lambda _: fuse.blown.set())
            else:
                fuse.blown.set()

        return guarded


async def fill_carts(s) -> list[str]:
    """Three carts over two skus, of different shards where there are several; there is enough for two of them."""
    inventory = s.commerce.inventory
    skus = [product.variants[0].sku for product in await s.commerce.catalog.page("", 8)]
    if len(inventory.shards) > 1:
        skus = list({inventory.shard_of(sku): sku for sku in skus}.values())
    chosen = skus[:2]
    assert len(chosen) == 2, "two skus take part"
    carts = []
    for number in range(BUYERS):
        cart = f"{number:032d}"
        for sku in chosen:
            await s.commerce.store.add(cart, sku, 1, operation=f"{number}-{sku}", country="PT")
        carts.append(cart)
    for sku in chosen:
        await s.set_stock(sku, 2)
    return carts


async def crashed(data: Path, left: int, *, after: bool, shards: int, seed: int) -> tuple[dict[str, int], int]:
    """Run until the fuse blows; what was acknowledged before, and how many writes there were."""
    disk = Disk(faults=Faults())
    fuse = Fuse(1 << 30, after=after)
    s = await build(data=data, settings=SETTINGS, disk=disk, wrap=fuse.wrap, shards=shards)
    fuse.count, fuse.left = 0, left
    acknowledged: dict[str, int] = {}

    async def buy(number: int) -> None:
        try:
            order = await s.commerce.store.place(f"{number:032d}", f"attempt-{number}", REQUEST)
        except FourplaneError:
            return
        acknowledged[order.id] = order.body.quote.total

    async def buy_all() -> None:
        """Until also what follows the answers is written."""
        await asyncio.gather(*(buy(number) for number in range(BUYERS)))
        await s.commerce.coordinator.settle()

    buyers, blown = asyncio.ensure_future(buy_all()), asyncio.ensure_future(fuse.blown.wait())
    await asyncio.wait((buyers, blown), return_when=asyncio.FIRST_COMPLETED)
    fuse.blown.set()
    for store in s.stores._open.values():
        if hasattr(store, "database"):
            store.database.abandon()
    rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    s.client.close()
    s.server.listener.close()
    s.gateway.close()
    disk.crash(random.Random(seed))
    disk.close()
    return acknowledged, fuse.count


async def everything_agrees(data: Path, acknowledged: dict[str, int], shards: int) -> None:
    """Order, stock and money tell the same story, before and after the buyers try again."""
    async with shop(data=data, settings=SETTINGS, shards=shards) as s:
        await whole(s, acknowledged)
        for number in range(BUYERS):
            try:
                order = await s.commerce.store.place(f"{number:032d}", f"attempt-{number}", REQUEST)
            except FourplaneError:
                continue
            acknowledged[order.id] = order.body.quote.total
        orders = await whole(s, acknowledged)
        assert len(orders) == len({order.attempt for order in orders}) <= 2


async def whole(s, acknowledged: dict[str, int]):
    inventory = s.commerce.inventory
    await s.commerce.coordinator.settle()
    await inventory.check()
    counts = await s.commerce.orders.counts()
    assert not counts.get("placing"), "no order is left half placed"
    orders = await s.commerce.orders.in_state("paid")
    assert set(acknowledged) <= {order.id for order in orders}, "no acknowledged order is lost"
    for shard in inventory.shards:
        assert await shard._sql.read("SELECT COUNT(*) FROM holds") == [(0,)], "nothing stays held"
    sold = 0
    for order in orders:
        pieces = [piece for shard in inventory.shards for piece in await shard.sold_in(order.number)]
        assert sorted(piece.sku for piece in pieces) == sorted(line.sku for line in order.body.quote.lines)
        cart = await s.commerce.carts.find(order.cart)
        assert not cart.entries, "what was ordered is in no cart any more"
        payment = await s.commerce.payments.of_order(order.number)
        assert payment is not None
        assert (payment.state, payment.captured.amount) == ("captured", order.body.quote.total)
        sold += len(pieces)
    ledger = [
        await shard._sql.read("SELECT COUNT(*) FROM stock_ledger WHERE reason = 'sale'") for shard in inventory.shards
    ]
    assert sum(int(rows[0][0]) for rows in ledger) == sold, "stock left only for orders"
    assert sold <= 4, "oversold"
    total = sum(order.body.quote.total for order in orders)
    balances = (await s.money()).get("EUR", {"held": 0, "merchant": 0})
    assert (balances.get("held", 0), balances.get("merchant", 0)) == (0, total), "money moved only for orders, once"
    return orders


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> dict[int, Path]:
    data = {shards: tmp_path_factory.mktemp("shop") for shards in (0, 2)}

    async def main(shards: int) -> None:
        async with shop(data=data[shards], settings=SETTINGS, shards=shards) as s:
            await fill_carts(s)

    for shards in data:
        asyncio.run(main(shards))
    return data


def run_once(filled: Path, data: Path, left: int, *, after: bool, shards: int) -> int:
    async def main() -> int:
        acknowledged, count = await crashed(data, left, after=after, shards=shards, seed=left)
        await everything_agrees(data, acknowledged, shards)
        return count

    shutil.copytree(filled, data)
    return asyncio.run(main())


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("shards", [0, 2], ids=["one store", "stock apart"])
def test_a_crash_at_every_write_of_a_checkout_leaves_all_or_nothing(
    filled: dict[int, Path], tmp_path: Path, shards: int, *, after: bool
) -> None:
    """Stock beside the orders: every write, before and after. Stock in shards of its own has twice as many: every second one."""
    writes = run_once(filled[shards], tmp_path / "whole", 1 << 30, after=after, shards=shards)
    assert writes >= (11 if shards else 5), "what is asked, decided, captured, and two carts that are emptied"
    for left in range(int(after) if shards else 0, writes, 2 if shards else 1):
        run_once(filled[shards], tmp_path / f"cut-{left}", left, after=after, shards=shards)

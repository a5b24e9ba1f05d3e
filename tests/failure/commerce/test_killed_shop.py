"""A shop process is killed with -9 again and again while buyers buy; nothing is oversold, lost or charged twice."""

import asyncio
import contextlib
import os
import random
import signal
import sys
from pathlib import Path
from typing import Self

import msgspec
import pytest
from tests.journeys.commerce.rig import ADDRESS, COLD, CommerceSettings, shop

from fourplane.commerce.checkout import PlaceOrder
from fourplane.commerce.fulfilment import FulfilmentSettings
from fourplane.commerce.inventory import Adjustment
from fourplane.commerce.orders import Address
from fourplane.edge.http_client import HttpClient
from fourplane.foundation.errors import FourplaneError

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = CommerceSettings(
    generated_products=8,
    standing_offers=False,
    pages=COLD,
    fulfilment=FulfilmentSettings(pass_s=3_600.0),  # the last look may take a while; nothing is packed meanwhile
)
REQUEST = PlaceOrder(address=Address(**ADDRESS))


class Shops:
    """One shop process after the other on the same folder."""

    def __init__(self, data: Path) -> None:
        self._data = data

    async def __aenter__(self) -> Self:
        self._parent = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.failure.commerce.forking_shop",
            str(self._data),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": f"{ROOT}/src:{ROOT}"},
            cwd=ROOT,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self._parent.stdin.close()
        await self._parent.wait()

    async def start(self) -> tuple[int, int]:
        """The new shop's pid and port."""
        self._parent.stdin.write(b"start\n")
        told = dict([(await self._parent.stdout.readline()).split() for _ in range(2)])
        return int(told[b"pid"]), int(told[b"port"])

    async def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        self._parent.stdin.write(b"reap\n")
        assert await self._parent.stdout.readline() == b"reaped\n"


async def buy_on(port: int, prefix: str, skus: list[str], acknowledged: dict[str, str], tried: dict[str, str]) -> None:
    """Order after order until the connection breaks."""
    client = HttpClient("127.0.0.1", port)
    chance = random.Random(prefix)
    json = {"content-type": "application/json"}
    with contextlib.suppress(FourplaneError):
        for turn in range(10_000):
            cart = f"{prefix}{turn:06d}".rjust(32, "0")
            line = msgspec.json.encode({"sku": chance.choice(skus), "quantity": chance.choice((1, 1, 2))})
            await client.request("POST", f"/commerce/api/carts/{cart}/lines?country=PT", body=line, headers=json)
            tried[cart] = attempt = f"attempt-{cart}"
            answer = await client.request(
                "POST",
                f"/commerce/api/carts/{cart}/orders",
                body=msgspec.json.encode(REQUEST),
                headers=json | {"idempotency-key": attempt},
            )
            assert answer.status in (201, 409), answer.body
            if answer.status == 201:
                acknowledged[cart] = msgspec.json.decode(answer.body)["id"]
    client.close()


async def paid_orders(s) -> list:
    """All of them, however many."""
    orders = s.commerce.orders
    found, after = [], 0
    while rows := await orders._sql.read(
        "SELECT id FROM orders WHERE state = 'paid' AND id > ?1 ORDER BY id LIMIT 5000", after
    ):
        found += [await orders.fetch(number) for (number,) in rows]
        after = rows[-1][0]
    return found


@pytest.mark.parametrize(
    ("rounds", "buyers"), [(60, 6), pytest.param(1_000, 4, marks=pytest.mark.slow)], ids=["60 rounds", "1000 rounds"]
)
def test_a_shop_killed_again_and_again_keeps_its_books(tmp_path: Path, rounds: int, buyers: int) -> None:
    async def main() -> None:
        data = tmp_path / "shop"
        data.mkdir()
        async with shop(data=data, settings=SETTINGS, shards=0) as s:
            products = await s.commerce.catalog.page("", 8)
            rare, common = products[0].variants[0].sku, products[1].variants[0].sku
            await s.commerce.inventory.set_stock(
                [Adjustment(rare, 20, "count"), Adjustment(common, 1_000_000, "count")]
            )
        acknowledged: dict[str, str] = {}
        tried: dict[str, str] = {}
        chance = random.Random(rounds)
        async with Shops(data) as shops:
            for number in range(rounds):
                pid, port = await shops.start()
                buying = asyncio.gather(
                    *(
                        buy_on(port, f"{number}a{buyer}b", [rare, common], acknowledged, tried)
                        for buyer in range(buyers)
                    )
                )
                await asyncio.sleep(chance.uniform(0.02, 0.2))
                await shops.kill(pid)
                await buying
        async with shop(data=data, settings=SETTINGS, shards=0) as s:
            for cart, attempt in tried.items():
                if cart not in acknowledged:
                    with contextlib.suppress(FourplaneError):
                        acknowledged[cart] = (await s.commerce.store.place(cart, attempt, REQUEST)).id
            await s.commerce.inventory.check()
            orders = await paid_orders(s)
            known, found = set(acknowledged.values()), {order.id for order in orders}
            assert known == found, f"lost: {sorted(known - found)[:5]}, unheard of: {sorted(found - known)[:5]}"
            assert len({order.cart for order in orders}) == len(orders)
            assert sum(line.quantity for order in orders for line in order.body.quote.lines if line.sku == rare) <= 20
            total = sum(order.body.quote.total for order in orders)
            assert (await s.money())["EUR"] == {"card": -total, "held": 0, "merchant": total}
            assert len(orders) > rounds

    asyncio.run(main())

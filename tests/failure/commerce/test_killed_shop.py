"""A shop process is killed with -9 again and again while buyers buy; nothing is oversold, lost or charged twice."""

import asyncio
import contextlib
import os
import random
import signal
import sys
from pathlib import Path

import msgspec
from tests.journeys.commerce.rig import ADDRESS, CommerceSettings, shop

from fourplane.commerce.checkout import PlaceOrder
from fourplane.commerce.inventory import Adjustment
from fourplane.commerce.orders import Address
from fourplane.edge.http_client import HttpClient
from fourplane.foundation.errors import FourplaneError

ROUNDS = int(os.environ.get("KILL_ROUNDS", "3"))
BUYERS = 12
ROOT = Path(__file__).resolve().parents[3]
SETTINGS = CommerceSettings(generated_products=8, standing_offers=False)
REQUEST = PlaceOrder(address=Address(**ADDRESS))


async def started(data: Path) -> tuple[asyncio.subprocess.Process, int]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}/src:{ROOT}"}
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.journeys.commerce.rig",
        str(data),
        stdout=asyncio.subprocess.PIPE,
        env=environment,
        cwd=ROOT,
    )
    assert child.stdout is not None
    return child, int(await child.stdout.readline())


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


def test_a_shop_killed_again_and_again_keeps_its_books(tmp_path: Path) -> None:
    async def main() -> None:
        data = tmp_path / "shop"
        data.mkdir()
        async with shop(data=data, settings=SETTINGS) as s:
            products = await s.commerce.catalog.page("", 8)
            rare, common = products[0].variants[0].sku, products[1].variants[0].sku
            await s.commerce.inventory.set_stock([Adjustment(rare, 20, "count"), Adjustment(common, 100_000, "count")])
        acknowledged: dict[str, str] = {}
        tried: dict[str, str] = {}
        for number in range(ROUNDS):
            child, port = await started(data)
            buyers = asyncio.gather(
                *(buy_on(port, f"{number}x{buyer}x", [rare, common], acknowledged, tried) for buyer in range(BUYERS))
            )
            await asyncio.sleep(random.Random(number).uniform(0.2, 0.9))
            child.send_signal(signal.SIGKILL)
            await child.wait()
            await buyers
        async with shop(data=data, settings=SETTINGS) as s:
            for cart, attempt in tried.items():
                if cart not in acknowledged:
                    with contextlib.suppress(FourplaneError):
                        acknowledged[cart] = (await s.commerce.store.place(cart, attempt, REQUEST)).id
            await s.commerce.inventory.check()
            orders = await s.commerce.orders.in_state("paid", limit=10_000)
            assert set(acknowledged.values()) == {order.id for order in orders}
            assert len({order.cart for order in orders}) == len(orders)
            assert sum(line.quantity for order in orders for line in order.body.quote.lines if line.sku == rare) <= 20
            total = sum(order.body.quote.total for order in orders)
            assert (await s.money())["EUR"] == {"card": -total, "held": 0, "merchant": total}
            assert len(orders) > ROUNDS

    asyncio.run(main())

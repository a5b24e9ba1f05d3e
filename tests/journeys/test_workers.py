"""Two workers, one deployment: work finds its owner, a killed owner costs time and nothing else."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import websockets
from tests.journeys.console.deployment import deployment

from fourplane.edge.http_client import HttpClient, HttpClientSettings
from fourplane.foundation.errors import Unavailable

BOUND_S = 60
ADDRESS = {
    "name": "Ada Vale", "street": "12 Harbour Road", "city": "Porto", "postcode": "4000-001", "country": "PT",
    "email": "ada@example.org",
}  # fmt: skip
PLACED = {"FOURPLANE_GATEWAY__RATE_PER_S": "100000", "FOURPLANE_FLEET__PLACEMENT": "{commerce = 1, messaging = 0}"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers") / "data"
    with deployment(folder, "commerce", "messaging", settings=PLACED, extra=("--workers", "2")) as facts:
        yield {**facts, "folder": folder}


def workers(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


def owner_of(pair, shard):
    """The pid of the worker that holds a shard's lock."""
    return int(json.loads((pair["folder"] / "workers" / f"{shard}.lock").read_bytes().rstrip(b"\0"))["pid"])


def fresh_client(pair, connections=64):
    return HttpClient("127.0.0.1", int(pair["http_port"]), settings=HttpClientSettings(connections_max=connections))


async def call(client, method, path, body=None, **headers):
    answer = await client.request(
        method, path, body=b"" if body is None else json.dumps(body).encode(), timeout_s=BOUND_S,
        headers={"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}},
    )  # fmt: skip
    is_json = answer.headers.get("content-type", "").startswith("application/json")
    return answer.status, json.loads(answer.body) if is_json and answer.body else answer.body


async def everywhere(pair, method, path, **headers):
    """The same request over connections of their own, enough to reach both workers."""
    found = []
    for _ in range(12):
        client = fresh_client(pair)
        found.append(await call(client, method, path, **headers))
        client.close()
    return found


def verb(pair, *arguments, said=""):
    answer = subprocess.run(
        [sys.executable, "-P", "-m", "fourplane", *arguments, "--data", str(pair["folder"]), "--json"],
        capture_output=True, text=True, timeout=BOUND_S, check=True, input=said,
    )  # fmt: skip
    return json.loads(answer.stdout)


def test_every_shard_has_one_owner_with_an_epoch(pair):
    assert owner_of(pair, "commerce") != owner_of(pair, "messaging")
    assert owner_of(pair, "accounts") == owner_of(pair, "messaging")
    assert {owner_of(pair, shard) for shard in ("commerce", "messaging", "console")} == set(workers(pair["pid"]))


def test_whichever_worker_has_the_connection_every_door_answers(pair):
    async def main():
        for path in (
            "/",
            "/commerce/",
            "/messaging/",
            "/console/api/frame",
            "/openapi.json",
            "/readyz",
            "/api/session",
        ):
            answers = await everywhere(pair, "GET", path)
            assert {status for status, _ in answers} == {200}, path
        assert {status for status, _ in await everywhere(pair, "GET", "/commerce/nothing")} == {404}
        _, metrics = (await everywhere(pair, "GET", "/metrics"))[0]
        served = dict(re.findall(r'http_requests_total\{server="http",worker="(\d)"\} (\d+)', metrics.decode()))
        assert min(map(int, served.values())) > 0, "both workers had connections"

    asyncio.run(main())


def test_one_login_is_known_to_all(pair):
    async def main():
        client = fresh_client(pair)
        answer = await client.request("GET", pair["link"][pair["link"].index("/api/operator") :])
        cookie = answer.headers["set-cookie"].partition(";")[0]
        for path in ("/api/session", "/commerce/api/orders", "/commerce/api/webhooks"):
            assert {status for status, _ in await everywhere(pair, "GET", path, cookie=cookie)} == {200}
        client.close()

    asyncio.run(main())


def test_figures_of_all_workers_meet_on_the_console(pair):
    async def main():
        client = fresh_client(pair)
        _, opening = await call(client, "GET", "/console/api/frame")
        client.close()
        assert {"commerce", "messaging"} <= {system for system, nodes in opening["nodes"].items() if nodes}
        async with websockets.connect(f"ws://127.0.0.1:{pair['http_port']}/console/live", max_size=None) as page:
            await page.recv()
            before = None
            async with asyncio.timeout(BOUND_S):
                while True:
                    nodes = json.loads(await page.recv())["nodes"]
                    await asyncio.gather(*(_page(pair) for _ in range(3)))
                    total = nodes["commerce"]["CATALOG"][7]
                    if before is not None and total > before:
                        break
                    before = total if before is None else before

    asyncio.run(main())


async def _page(pair):
    client = fresh_client(pair)
    await call(client, "GET", "/commerce/api/products")
    client.close()


async def _order(client, number, skus):
    """Buy one thing; the order's id and the cart that proves it, once it was acknowledged."""
    status, cart = await call(client, "POST", "/commerce/api/carts")
    assert status == 200, cart
    sku = skus[sum(number.encode()) % len(skus)]
    lines = f"/commerce/api/carts/{cart['id']}/lines?country=PT"
    status, view = await call(client, "POST", lines, {"sku": sku, "quantity": 1})
    assert status == 200, view
    body = {"address": ADDRESS}
    status, order = await call(
        client, "POST", f"/commerce/api/carts/{cart['id']}/orders", body, idempotency_key=f"buying-{number}"
    )
    assert status == 201, order
    return order["id"], cart["id"]


async def _skus(client):
    _, page = await call(client, "GET", "/commerce/api/products?limit=20")
    details = [(await call(client, "GET", f"/commerce/api/products/{one['id']}"))[1] for one in page["products"][:12]]
    return [sku for detail in details for sku, count in detail["stock"].items() if count > 20]


@pytest.mark.parametrize("shard", ["commerce", "accounts"])
def test_orders_acknowledged_before_a_kill_are_there_after_it(pair, shard):
    async def main():
        client = fresh_client(pair, connections=16)
        skus = await _skus(client)
        acknowledged, errors, lost, kill_after = [], [], 0, 12

        async def buyer(first):
            nonlocal lost
            for number in range(first, first + 6):
                try:
                    acknowledged.append(await _order(client, f"{shard}-{number}", skus))
                except (Unavailable, AssertionError) as error:
                    errors.append(str(error)[:150])
                    lost += 1  # its connection was at the killed worker: a browser would load again

        async def killer():
            while len(acknowledged) < kill_after and lost < 30:
                await asyncio.sleep(0.005)
            os.kill(owner_of(pair, shard), signal.SIGKILL)

        await asyncio.gather(killer(), *(buyer(first * 10) for first in range(8)))
        assert len(acknowledged) > kill_after, errors[-3:]
        assert len(acknowledged) + lost == 48
        for order, cart in acknowledged:
            status, told = await call(client, "GET", f"/commerce/api/orders/{order}", x_cart=cart)
            assert (status, told.get("id")) == (200, order), told
        client.close()

    before = set(workers(pair["pid"]))
    asyncio.run(main())
    ends = time.monotonic() + BOUND_S
    while len(workers(pair["pid"])) < 2 and time.monotonic() < ends:
        continue
    assert len(before & set(workers(pair["pid"]))) == 1, "one worker is new, the other went on"


def test_verbs_reach_systems_in_any_worker(pair):
    made = verb(pair, "users", "add", "grace", said="a long enough word\n")
    assert made["name"] == "grace"


def test_a_connection_moves_to_the_worker_whose_work_it_brings(pair):
    async def main():
        clients = [fresh_client(pair, connections=1) for _ in range(12)]
        for _ in range(4):
            for path in ("/commerce/api/products?limit=1", "/messaging/api/configuration"):
                for client in clients:
                    for _ in range(4):
                        assert (await call(client, "GET", path))[0] == 200
        before = await forwarded(pair)
        for client in clients:
            for _ in range(10):
                assert (await call(client, "GET", "/messaging/api/configuration"))[0] == 200
        assert await forwarded(pair) - before < 10, "nearly all of 120 were answered where they came in"
        for client in clients:
            client.close()

    asyncio.run(main())


async def forwarded(pair):
    """How many requests one worker has taken for another."""
    client = fresh_client(pair)
    _, text = await call(client, "GET", "/metrics")
    client.close()
    return sum(
        int(n) for n in re.findall(r'http_requests_total\{server="neighbours",worker="\d"\} (\d+)', text.decode())
    )


class Anew:
    """Connects for every request, as visitors do who come and go."""

    def __init__(self, pair):
        self.pair = pair

    async def request(self, *arguments, **named):
        client = fresh_client(self.pair, connections=1)
        try:
            return await client.request(*arguments, **named)
        finally:
            client.close()


def test_a_system_moves_to_another_worker_while_its_callers_wait(pair):
    made, over = [], []

    async def buyer(client, skus, name):
        while not over:
            made.append(await _order(client, f"{name}-{len(made)}", skus))

    async def main():
        client = Anew(pair)
        skus = await _skus(client)
        buyers = [asyncio.ensure_future(buyer(client, skus, name)) for name in ("Ada", "Grace")]
        for slot in (0, 1):  # there, and back
            before = len(made)
            where = await asyncio.to_thread(verb, pair, "reshard", f"commerce={slot}")
            assert where == {"commerce": slot, "messaging": 0}
            assert (owner_of(pair, "commerce") == owner_of(pair, "messaging")) is (slot == 0)
            while len(made) < before + 4 and not any(one.done() for one in buyers):
                await asyncio.sleep(0.02)
        over.append(True)
        await asyncio.gather(*buyers)
        for order, cart in made:
            status, told = await call(client, "GET", f"/commerce/api/orders/{order}", x_cart=cart)
            assert (status, told["id"]) == (200, order)

    asyncio.run(main())

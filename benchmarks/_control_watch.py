"""What watching costs a request, and how soon somebody is paged when a worker dies under load.

`request_ns`: CPU time of a request through the gateway with tracing on and off, in the same process by turns, with two calls of
stores inside. `death`: a deployment of two workers sells to shoppers who look, search, fill carts and order; the worker of the
shop is killed; a receiver of Alertmanager's webhook notes when the page is there. Shoppers do what the storefront's page does
(`simulator/crowds/again.py`): a request with a key that got no answer is sent again with the same key for five seconds; what
is left is an error they saw. Afterwards every order somebody was told of is looked at, and what the stock lost is compared
with what was ordered, so that neither an order lost nor one doubled can hide.
"""

import asyncio
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fourplane.control.traces.stores import TracedStores
from fourplane.edge.gateway import Gateway, GatewaySettings
from fourplane.edge.http_client import HttpClient
from fourplane.edge.routes import Call, Reply, Route
from fourplane.foundation.telemetry import Registry
from fourplane.simulator.crowds import Plan, Tally, Target
from fourplane.simulator.crowds.commerce import CommerceCrowd
from fourplane.state.contracts import Put
from fourplane.state.stores import StoresSettings

TURNS, TURN_CALLS = 14, 2_000
READY_S = 60.0
WARM_S, AFTER_S = 8.0, 12.0
HTTP_OK, BOOKS_S = 200, 30
CLIENTS = 60
RATE_PER_S = 100.0
PORTS = (
    "MESSAGING__PORT",
    "MESSAGING__TLS_PORT",
    "STREAMING__ORIGIN_PORT",
    "STREAMING__CDN_PORT",
    "DISPATCH__FEED__PORT",
)


async def request_ns() -> tuple[float, float]:
    """CPU nanoseconds of one request with tracing, and without."""
    registry = Registry()
    with tempfile.TemporaryDirectory() as folder:
        stores = TracedStores(StoresSettings(records="memory://"), data=Path(folder))
        stores.tracer = registry.tracer
        records = await stores.records("bench")
        await records.write(b"p", [Put(b"s", b"1")])

        async def handler(_: Call[None]) -> Reply:
            await records.get(b"p", b"s")
            await records.get(b"p", b"t")
            return Reply(b"ok")

        settings = GatewaySettings(rate_per_s=1e9)
        gateway = Gateway([Route("GET", "/a/api/b", handler, "x")], None, registry=registry, settings=settings)  # type: ignore[arg-type]
        scope = {
            "type": "http", "method": "GET", "path": "/a/api/b", "raw_path": b"/a/api/b", "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"user-agent", b"bench")], "client": ("127.0.0.1", 1),
        }  # fmt: skip

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(_: Any) -> None:
            return

        found: dict[bool, list[float]] = {True: [], False: []}
        for turn in range(2 * TURNS):
            registry.tracer.enabled = traced = turn % 2 == 0
            began = time.process_time()
            for _ in range(TURN_CALLS):
                await gateway(scope, receive, send)  # type: ignore[arg-type]
            found[traced].append((time.process_time() - began) / TURN_CALLS * 1e9)
            registry.tracer.take()
        await stores.stop()
        gateway.close()
    return statistics.median(found[True]), statistics.median(found[False])


class Death:
    """What happened around the death of a worker."""

    def __init__(self) -> None:
        self.killed_s = self.paged_s = 0.0
        self.tally = Tally()
        self.looked_at = 0
        self.broken: list[str] = []
        self.page = ""

    def figures(self) -> dict[str, float]:
        failed = sum(self.tally.errors.values())
        asked = failed + sum(cell.count for cell in self.tally.latency.values())
        return {
            "paged_after_s": self.paged_s - self.killed_s if self.paged_s else -1.0,
            "requests": asked,
            "orders": self.tally.facts.get("orders", 0.0),
            "failed": failed,
            "failed_share": failed / max(1, asked),
            "sent_again": self.tally.facts.get("asked_again", 0.0),
            "waited_in_room": self.tally.facts.get("let_in", 0.0) + self.tally.facts.get("waiting", 0.0),
            "orders_looked_at": self.looked_at,
            "orders_broken": len(self.broken),
            "slowest_s": max((cell.quantile(1.0) for cell in self.tally.latency.values()), default=0.0),
        }


async def death() -> Death:
    """Kill the shop's worker under load and note who hears what."""
    seen = Death()

    async def receiver(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(
                next(one for one in head.lower().split(b"\r\n") if one.startswith(b"content-length")).split(b":")[1]
            )
            body = json.loads(await reader.readexactly(length))
            names = {one["labels"]["alertname"] for one in body["alerts"] if one["status"] == "firing"}
            if seen.killed_s and not seen.paged_s and "WorkerDown" in names:
                seen.paged_s = time.monotonic()
                seen.page = body["alerts"][0]["annotations"]["summary"]
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    def quietly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> asyncio.Task[None]:
        async def served() -> None:
            try:
                await receiver(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()

        return asyncio.ensure_future(served())

    server = await asyncio.start_server(quietly, "127.0.0.1", 0)
    hook = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    with tempfile.TemporaryDirectory() as folder:
        process = _up(folder, hook)
        try:
            assert process.stdout is not None
            ready = await asyncio.to_thread(select.select, [process.stdout], [], [], READY_S)
            facts = json.loads(process.stdout.readline() if ready[0] else "")
            port = int(facts["http_port"])
            await _sell(port, process.pid, seen)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
    server.close()
    return seen


def _up(folder: str, hook: str) -> "subprocess.Popen[str]":
    receivers = f'[{{name = "ops", url = "{hook}"}}]'
    settings = {f"FOURPLANE_{name}": "0" for name in PORTS} | {
        "FOURPLANE_GATEWAY__RATE_PER_S": "100000",  # all clients come from one address
        "FOURPLANE_FLEET__WORKERS": "2", "FOURPLANE_FLEET__PLACEMENT": "{commerce = 1, messaging = 0}",
        "FOURPLANE_OBSERVABILITY__ALERTS__RECEIVERS": receivers,
    }  # fmt: skip
    command = [sys.executable, "-P", "-m", "fourplane", "up", "commerce", "messaging", "--port", "0", "--json"]
    return subprocess.Popen(
        [*command, "--data", f"{folder}/data"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, **settings},
    )  # fmt: skip


async def _sell(port: int, parent: int, seen: Death) -> None:
    """Shoppers until AFTER_S after the death; then the shop's books against theirs."""
    target = Target(http_port=port)
    before = await _stock(port)

    async def kill() -> None:
        await asyncio.sleep(WARM_S)
        pid = _shop_of(parent)
        seen.killed_s = time.monotonic()
        os.kill(pid, signal.SIGKILL)

    crowd, plan = CommerceCrowd(), Plan(CLIENTS, RATE_PER_S, WARM_S + AFTER_S, "steady")
    await asyncio.gather(kill(), crowd.drive(target, plan, seen.tally, lambda _share, _text: None))
    seen.looked_at, seen.broken = await crowd.audit(target)
    left = await _stock(port)
    sold = sum(before.values()) - sum(left[sku] for sku in before)
    if sold != crowd.pieces:
        seen.broken.append(f"{sold} pieces left the stock, {crowd.pieces} are in orders somebody was told of")


async def _stock(port: int) -> dict[str, int]:
    """What the shop has of the products on its first pages, which are those the shoppers see."""
    http = HttpClient("127.0.0.1", port)
    found: dict[str, int] = {}
    cursor = ""
    for _ in range(3):
        page = await _got(http, f"/commerce/api/products?limit=60&cursor={cursor}")
        for product in page["products"]:
            found |= (await _got(http, f"/commerce/api/products/{product['id']}"))["stock"]
        cursor = page["next"]
        if not cursor:
            break
    http.close()
    return found


async def _got(http: HttpClient, path: str) -> dict[str, Any]:
    """The answer, once the shop has room for a question that is in no hurry."""
    for _ in range(BOOKS_S):
        answer = await http.request("GET", path)
        if answer.status == HTTP_OK:
            return dict(json.loads(answer.body))
        await asyncio.sleep(1.0)
    raise AssertionError(f"{path} answers {answer.status}")


def _shop_of(parent: int) -> int:
    """The pid of the second worker: the shop is where the console is not."""
    children = [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    return max(children)


def main() -> None:
    traced, plain = asyncio.run(request_ns())
    print(
        f"request through the gateway, two store calls: {traced:.0f} ns traced, {plain:.0f} ns not; {traced - plain:.0f} ns"
    )
    seen = asyncio.run(death())
    print(json.dumps(seen.figures() | {"errors": seen.tally.errors, "broken": seen.broken}))


if __name__ == "__main__":
    main()

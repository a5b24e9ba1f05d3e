"""What watching costs a request, and how soon somebody is paged when a worker dies under load.

`request_ns`: CPU time of a request through the gateway with tracing on and off, in the same process by turns, with two calls of
stores inside. `death`: a deployment of two workers sells to clients; the worker of the shop is killed; a receiver of
Alertmanager's webhook notes when the page is there; clients search and fill their carts, and count what they were not given
after what any browser does: an idempotent request on a kept connection that broke is sent again.
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
from fourplane.foundation.errors import FourplaneError
from fourplane.foundation.telemetry import Registry
from fourplane.state.contracts import Put
from fourplane.state.stores import StoresSettings

TURNS, TURN_CALLS = 14, 2_000
READY_S = 60.0
WARM_S, AFTER_S = 8.0, 12.0
CLIENTS = 16
PAUSE_S = 0.04
JSON = {"content-type": "application/json"}
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
        self.asked = self.failed = 0
        self.killed_s = self.paged_s = 0.0
        self.errors: dict[str, int] = {}
        self.slowest_s = 0.0
        self.page = ""

    def figures(self) -> dict[str, float]:
        return {
            "paged_after_s": self.paged_s - self.killed_s if self.paged_s else -1.0,
            "requests": self.asked,
            "failed": self.failed,
            "failed_share": self.failed / max(1, self.asked),
            "slowest_s": self.slowest_s,
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
    """Clients until AFTER_S after the death."""
    ends_s = time.monotonic() + WARM_S + AFTER_S

    async def client(number: int) -> None:
        http = HttpClient("127.0.0.1", port)
        listed = json.loads((await http.request("GET", "/commerce/api/products?limit=20")).body)["products"]
        product = json.loads((await http.request("GET", f"/commerce/api/products/{listed[number]['id']}")).body)
        sku = max(product["stock"], key=product["stock"].get)
        cart = json.loads((await http.request("POST", "/commerce/api/carts")).body)["id"]
        turn = 0
        while time.monotonic() < ends_s:
            turn += 1
            began_s = time.monotonic()
            seen.asked += 1
            method, path, body = "GET", "/commerce/api/products?limit=5", b""
            if turn % 5 == 0:
                method, path = "PUT", f"/commerce/api/carts/{cart}/lines/{sku}"
                body = b'{"quantity":%d}' % (1 + turn % 3)
            try:
                answer = await http.request(method, path, body=body, headers=JSON, timeout_s=10.0)
                error = f"http {answer.status}" if answer.status >= 400 else ""
            except FourplaneError as failed:
                error = failed.reason
            if error:
                seen.failed += 1
                seen.errors[f"{method} {error}"] = seen.errors.get(f"{method} {error}", 0) + 1
            seen.slowest_s = max(seen.slowest_s, time.monotonic() - began_s)
            await asyncio.sleep(PAUSE_S * (0.5 + (number + turn) % 2))
        http.close()

    async def kill() -> None:
        await asyncio.sleep(WARM_S)
        pid = _shop_of(parent)
        seen.killed_s = time.monotonic()
        os.kill(pid, signal.SIGKILL)

    await asyncio.gather(kill(), *(client(number) for number in range(CLIENTS)))


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
    print(json.dumps(seen.figures() | {"errors": seen.errors}))


if __name__ == "__main__":
    main()

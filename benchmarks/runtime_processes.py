"""What runtime.py measures between processes: calls over a Unix socket beside a bare echo, and a killed worker.

The server of the calls and the echo live in one child; client and child share the machine with whatever else runs, so calls are
also given per CPU second of the client.
"""

import asyncio
import contextlib
import gc
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from fourplane.control.fleet import COLLECT_AFTER
from fourplane.foundation import network
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry
from fourplane.service.rpc import remote
from fourplane.service.rpc_client import Peer
from fourplane.service.rpc_server import RpcServer

IN_FLIGHT = 50


class Stock:
    async def available(self, product: str, count: int) -> int:
        return count + 1


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


class Probe(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, _data):
        if not self.answer.done():
            self.answer.set_result(None)

    async def ask_as_batch(self):
        """What 50 calls in flight cost without any calls: their bytes to the other process and back."""
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(b"0123456789abcdef" * 2 * IN_FLIGHT)
        await self.answer

    async def ask(self):
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(b"0123456789abcdef" * 2)
        await self.answer


async def serve(folder):
    gc.set_threshold(*COLLECT_AFTER)  # as every worker does
    registry = Registry()
    server = RpcServer(registry, path=f"{folder}/calls")
    server.add("stock", Stock, Stock())
    lifecycle = Lifecycle(registry)
    lifecycle.add("calls", server)
    await lifecycle.start()
    await network.listen_unix(Echo, f"{folder}/echo")
    Path(folder, "ready").touch()
    await asyncio.Event().wait()


async def measure(folder, figures, *, calls):
    """One round: the bare echo, a call alone, 50 calls in flight."""

    def note(name, value):
        figures.setdefault(name, []).append(value)

    _, probe = await network.connect_unix(Probe, f"{folder}/echo")
    peer = Peer(f"{folder}/calls")
    stock = remote(Stock, peer, "stock")
    await stock.available("ball", 1)
    for name, ask in (("unix_echo_alone_us", probe.ask), ("call_alone_us", lambda: stock.available("ball", 1))):
        began = time.perf_counter()
        for _ in range(1_000):
            await ask()
        note(name, (time.perf_counter() - began) / 1_000 * 1e6)
    began = time.perf_counter()
    for _ in range(1_000):
        await probe.ask_as_batch()
    note("unix_echo_of_50_per_s", 1_000 * IN_FLIGHT / (time.perf_counter() - began))
    took = []

    async def caller(turns):
        for _ in range(turns):
            began = time.perf_counter()
            await stock.available("ball", 1)
            took.append(time.perf_counter() - began)

    began, began_cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(caller(calls // IN_FLIGHT) for _ in range(IN_FLIGHT)))
    note("calls_50_in_flight_per_s", calls / (time.perf_counter() - began))
    note("calls_50_in_flight_per_cpu_s", calls / (time.process_time() - began_cpu))
    note("calls_50_in_flight_p50_ms", statistics.median(took) * 1e3)
    peer.close()
    probe.transport.close()


@contextlib.contextmanager
def serving():
    """A child that serves; yields its folder."""
    with tempfile.TemporaryDirectory() as folder:
        child = subprocess.Popen([sys.executable, __file__, folder])
        try:
            while not Path(folder, "ready").exists() and child.poll() is None:
                time.sleep(0.01)
            yield folder
        finally:
            child.kill()
            child.wait()


def killed_worker(figures):
    """Milliseconds from SIGKILL of the shop's worker to its next answer, asked without a pause through both workers."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        command = [
            sys.executable,
            "-P",
            "-m",
            "fourplane",
            "up",
            "commerce",
            "messaging",
            "--port",
            "0",
            "--workers",
            "2",
        ]
        free = {"FOURPLANE_MESSAGING__PORT": "0", "FOURPLANE_MESSAGING__TLS_PORT": "0"}
        process = subprocess.Popen(
            [*command, "--data", str(data), "--json"], stdout=subprocess.PIPE, text=True, env={**os.environ, **free}
        )
        try:
            address = json.loads(process.stdout.readline())["address"] + "commerce/api/products"
            urllib.request.urlopen(address, timeout=30).close()
            owner = json.loads((data / "workers" / "commerce.lock").read_bytes().rstrip(b"\0"))["pid"]
            os.kill(int(owner), signal.SIGKILL)
            began, errors = time.perf_counter(), 0
            while True:
                try:
                    urllib.request.urlopen(address, timeout=30).close()
                    break
                except (OSError, urllib.error.URLError):
                    errors += 1
            figures.setdefault("killed_worker_first_answer_ms", []).append((time.perf_counter() - began) * 1e3)
            figures.setdefault("killed_worker_errors_until_then", []).append(errors)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


if __name__ == "__main__":
    with contextlib.suppress(ImportError):
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(serve(sys.argv[1]))

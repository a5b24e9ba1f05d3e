"""Cost of the edge per request, beside a bare socket echo in the same run.

Each round serves from a child process and asks over `CONNECTIONS` kept connections: every connection sends one request, then
every answer is read, so the server sees bursts as under load and the client stays cheap. What counts is requests per CPU
second of the server (user and system time of its process); wall time on shared cores says little. The bare echo
answers each read with one prebuilt answer and no parsing: the floor of loop and kernel. Rounds alternate between all
kinds; the median of each is compared. A bar holds by its absolute figure or by its share of the echo.

A rejection is counted whole: the kernel's receive and send, the loop, and the decision about a request whose class is closed.
Every connection says the same bytes again, as a client that tries again does, so the server remembers them; bytes never
seen before cost one regular expression more (about 1 us, 3 us with a browser's head).
"""

import argparse
import asyncio
import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from fourplane.edge.gateway import Gateway, GatewaySettings
from fourplane.edge.http_answers import answer
from fourplane.edge.http_server import HttpServer, HttpServerSettings
from fourplane.edge.listener import ListenerSettings
from fourplane.edge.routes import Priority, Route
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Registry

CONNECTIONS = 50
SECONDS = 1.0
ROUNDS = 5
ANSWER = answer(200, b"x" * 100, media_type="text/plain", dated=False)
ITEM = "/a/api/items/5"
PATHS = {"echo": "/hot", "hot": "/hot", "asgi": "/raw", "gateway": ITEM, "starlette": ITEM, "rejection": ITEM}
# kind: requests per CPU second that must be reached, or this share of the echo's. The shares are the bars over the 150,000
# a second that the echo makes on the reference machine when it is left alone.
BARS = {"hot": (60_000, 0.4), "asgi": (20_000, 0.13), "rejection": (100_000, 0.6)}


class Item(msgspec.Struct):
    number: int
    name: str = "a thing"


async def item(call):
    return Item(int(call.params["number"]))


async def raw_app(_scope, _receive, send):
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"100")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"x" * 100})


def starlette_app():
    """The same item behind Starlette's routing, without the gateway's checks of host, origin, identity, rate and priority."""
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Route as StarletteRoute

    async def starlette_item(request):
        body = msgspec.json.encode(Item(int(request.path_params["number"])))
        return Response(body, media_type="application/json")

    return Starlette(routes=[StarletteRoute("/a/api/items/{number}", starlette_item)])


class NoSessions:
    """The gateway asks for sessions only when a request carries a token; these carry none."""


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, _data):
        self.transport.write(ANSWER)


async def serve(kind):
    """The child: print the port, serve until the parent closes our standard input."""
    loop = asyncio.get_running_loop()
    if kind == "echo":
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
    else:
        registry = Registry()
        route = Route("GET", "/a/api/items/{number}", item, "One item", rate_per_s=1e9, answer=Item)
        gateway = Gateway(
            [route], NoSessions(), registry=registry, settings=GatewaySettings(), mounts={"/raw": raw_app}
        )
        settings = HttpServerSettings(listener=ListenerSettings(port=0))
        app = starlette_app() if kind == "starlette" else gateway
        http = HttpServer(settings, app, registry=registry, classify=gateway.classify)
        http.hot("GET", "/hot", lambda _request: ANSWER)
        if kind == "rejection":
            http.admission.close_from(Priority.CRITICAL)
        await http.start(Tasks("bench", loop.create_future()))
        port = http.port
    print(port, flush=True)
    gone = loop.create_future()
    loop.add_reader(sys.stdin.fileno(), lambda: gone.done() or gone.set_result(None))
    await gone


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/schedstat").read_text().split()
    return int(fields[0]) / 1e9


def drive(port, path, seconds):
    """Ask as fast as bursts over all connections allow; how many answers came."""
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(CONNECTIONS)]
    for one in connections:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    count, ends = 0, time.monotonic() + seconds
    while time.monotonic() < ends:
        for one in connections:
            one.send(request)
        for one in connections:
            if not one.recv(65_536):
                raise ConnectionError("the server closed a connection")
        count += CONNECTIONS
    for one in connections:
        one.close()
    return count


def measure(kind, seconds):
    """Requests per CPU second of one server in one round."""
    child = subprocess.Popen(
        [sys.executable, __file__, "--serve", kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        port = int(child.stdout.readline())
        drive(port, PATHS[kind], seconds / 5)
        before = cpu_seconds(child.pid)
        count = drive(port, PATHS[kind], seconds)
        return count / (cpu_seconds(child.pid) - before)
    finally:
        child.stdin.close()
        child.wait(10)


def run(options: argparse.Namespace) -> dict:
    rounds, seconds = getattr(options, "rounds", ROUNDS), getattr(options, "seconds", SECONDS)
    found = {kind: [] for kind in PATHS}
    for _ in range(rounds):
        for kind, figures in found.items():
            figures.append(measure(kind, seconds))
    medians = {kind: statistics.median(figures) for kind, figures in found.items()}
    shares = {
        kind: statistics.median(one / echo for one, echo in zip(figures, found["echo"], strict=True))
        for kind, figures in found.items()
    }
    return {
        "system": "edge",
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "model": _model()},
        "rounds": rounds,
        "connections": CONNECTIONS,
        "figures": {
            kind: {
                "requests_per_cpu_s": round(medians[kind]),
                "us_per_request": round(1e6 / medians[kind], 2),
                "share_of_echo": round(shares[kind], 3),
                "lowest": round(min(found[kind])),
                "highest": round(max(found[kind])),
            }
            for kind in PATHS
        },
        "bars": {
            kind: {"at_least": least, "or_share": share, "holds": medians[kind] >= least or shares[kind] >= share}
            for kind, (least, share) in BARS.items()
        },
    }


def _model():
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--serve", choices=PATHS, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.serve:
        try:
            import uvloop
        except ImportError:
            asyncio.run(serve(options.serve))
        else:
            uvloop.run(serve(options.serve))
        return
    result = run(options)
    place = Path(__file__).parent / "results"
    place.mkdir(exist_ok=True)
    (place / "edge.json").write_text(json.dumps(result, indent=1))
    if options.json:
        print(json.dumps(result))
        return
    for kind, figures in result["figures"].items():
        bar = result["bars"].get(kind)
        verdict = (
            ""
            if bar is None
            else f"   bar {bar['at_least']:,} or {bar['or_share']:.0%}: {'holds' if bar['holds'] else 'MISSED'}"
        )
        print(
            f"{kind:10} {figures['requests_per_cpu_s']:>9,} per CPU s {figures['us_per_request']:>7.2f} us"
            f" {figures['share_of_echo']:>6.0%} of echo{verdict}"
        )


if __name__ == "__main__":
    main()

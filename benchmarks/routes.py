"""A gateway route beside the same handler in Starlette, called as ASGI applications without a server or a socket.

Three applications answer the same GET with the same JSON: the gateway with everything it does for each request (host,
origin, request id, rate limit, metrics), bare Starlette with none of that, and Starlette behind the same checks as a plain
ASGI wrapper. CPU time of the thread, median of alternating rounds.
"""

import argparse
import asyncio
import os
import platform
import statistics
import time

import msgspec
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute

from fourplane.edge.gate_checks import HostCheck, origin_passes, request_id, trace_of
from fourplane.edge.gateway import Gateway, GatewaySettings
from fourplane.edge.rate_limit import RateLimit
from fourplane.edge.routes import Route
from fourplane.foundation import clock, telemetry
from fourplane.foundation.telemetry import Registry

PATH = "/a/api/items/{number}"
CALLS = 4_000
SCOPE = {
    "type": "http",
    "http_version": "1.1",
    "method": "GET",
    "path": "/a/api/items/5",
    "raw_path": b"/a/api/items/5",
    "query_string": b"",
    "root_path": "",
    "scheme": "http",
    "headers": [(b"host", b"127.0.0.1:8000"), (b"accept", b"*/*")],
    "client": ("127.0.0.1", 1),
    "server": ("127.0.0.1", 8000),
    "extensions": {},
}


class Item(msgspec.Struct):
    number: int
    name: str = "a thing"


async def item(call):
    return Item(int(call.params["number"]))


async def starlette_item(request):
    return Response(msgspec.json.encode(Item(int(request.path_params["number"]))), media_type="application/json")


def checked(app):
    """What the gateway does beside routing, around any application."""
    registry, hosts = Registry(), HostCheck(("localhost", "127.0.0.1"))
    limit = RateLimit(1e9, 2e9, count_max=20_000)
    requests, latency = registry.counter("requests"), registry.histogram("latency")

    async def call(scope, receive, send):
        began = clock.monotonic_s()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        rid = request_id(headers.get("x-request-id"))
        telemetry.set_trace(trace_of(headers.get("traceparent"), rid))
        assert hosts.passes(headers["host"])
        assert origin_passes(headers.get("origin"), headers["host"], frozenset())
        verdict = limit.take(scope["client"][0], began)
        added = [(b"x-request-id", rid.encode())]
        added += [(b"ratelimit-limit", b"%d" % verdict.limit), (b"ratelimit-remaining", b"%d" % verdict.remaining)]

        async def with_fields(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *added]
            await send(message)

        await app(scope, receive, with_fields)
        requests.value += 1
        latency.record(clock.monotonic_s() - began)

    return call


async def receive():
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(_message):
    """The answer goes nowhere."""


async def us_per_call(app):
    began = time.thread_time()
    for _ in range(CALLS):
        await app(dict(SCOPE), receive, send)
    return (time.thread_time() - began) / CALLS * 1e6


def run(options: argparse.Namespace) -> dict:
    route = Route("GET", PATH, item, "One item", rate_per_s=1e9, answer=Item)
    gateway = Gateway([route], None, registry=Registry(), settings=GatewaySettings())
    bare = Starlette(routes=[StarletteRoute(PATH, starlette_item)])
    kinds = {"gateway": gateway, "starlette": bare, "starlette with the gateway's checks": checked(bare)}
    found = {kind: [] for kind in kinds}

    async def rounds():
        for _ in range(3 * getattr(options, "rounds", 5)):
            for kind, app in kinds.items():
                found[kind].append(await us_per_call(app))

    asyncio.run(rounds())
    gateway.close()
    ratios = {
        kind: statistics.median(one / ours for one, ours in zip(figures, found["gateway"], strict=True))
        for kind, figures in found.items()
    }
    return {
        "system": "routes",
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "us per call": {kind: round(statistics.median(figures), 1) for kind, figures in found.items()},
        "times the gateway": {kind: round(ratio, 2) for kind, ratio in ratios.items()},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    print(msgspec.json.format(msgspec.json.encode(run(parser.parse_args())), indent=1).decode())


if __name__ == "__main__":
    main()

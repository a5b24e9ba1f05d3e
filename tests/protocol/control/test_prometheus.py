"""Debian's Prometheus scrapes us and answers a query with our figures; our store scrapes it back."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
from contextlib import asynccontextmanager

import pytest

from fourplane.control import exporters
from fourplane.control.metrics.query import latest
from fourplane.control.metrics.store import MetricsSettings, MetricsStore
from fourplane.edge.gateway import Gateway, GatewaySettings
from fourplane.edge.http_client import HttpClient
from fourplane.edge.http_server import HttpServer, HttpServerSettings
from fourplane.edge.listener import ListenerSettings
from fourplane.foundation.errors import FourplaneError
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry

BOUND_S = 30
PROGRAM = shutil.which("prometheus")
CONFIG = """
global: {{scrape_interval: 250ms, scrape_timeout: 250ms}}
scrape_configs:
  - job_name: fourplane
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Prometheus here (apt-get install prometheus)")


def started(folder, port, own):
    config = folder / "prometheus.yml"
    config.write_text(CONFIG.format(port=port))
    return subprocess.Popen(
        [PROGRAM, f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}",
         f"--web.listen-address=127.0.0.1:{own}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder, env={**os.environ, "GOMAXPROCS": "1"},
    )  # fmt: skip


@asynccontextmanager
async def prometheus(folder, port):
    """A Prometheus that scrapes `port`; a client of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        own = free.getsockname()[1]
    process = started(folder, port, own)
    client = HttpClient("127.0.0.1", own)
    try:
        yield client, own
    finally:
        client.close()
        process.kill()
        process.wait()


async def answered(client, query):
    """The series Prometheus knows for a query, asked until there is one."""
    async with asyncio.timeout(BOUND_S):
        while True:
            try:
                answer = await client.request("GET", f"/api/v1/query?query={query}")
                result = json.loads(answer.body)["data"]["result"] if answer.status == 200 else []
            except FourplaneError:
                result = []
            if result:
                return {tuple(sorted(one["metric"].items())): float(one["value"][1]) for one in result}
            await asyncio.sleep(0.05)


def test_prometheus_scrapes_us_answers_a_query_and_is_scraped_back(tmp_path):
    async def main():
        registry = Registry()
        hits = registry.counter("shop_hits_total", 'hits with "quotes"\nand lines', route='a "b" \\ c')
        took = registry.histogram("shop_took_seconds", "time")
        registry.gauge("shop_open_count", "carts", read=lambda: 7.0)
        for number in range(100):
            hits.add()
            took.record(0.001 * number)
        gateway = Gateway(exporters.doors(registry, lambda: True), None, registry=registry, settings=GatewaySettings())
        lifecycle = Lifecycle(Registry())
        server = HttpServer(HttpServerSettings(listener=ListenerSettings(port=0)), gateway, registry=registry)
        lifecycle.add("gateway", gateway)
        lifecycle.add("http", server)
        await lifecycle.start()
        async with prometheus(tmp_path, server.port) as (client, port):
            found = [
                await answered(client, query)
                for query in (
                    "shop_hits_total", "shop_open_count", "shop_took_seconds_count",
                    "histogram_quantile(0.5,shop_took_seconds_bucket)", "up",
                )
            ]  # fmt: skip
            store = MetricsStore(
                MetricsSettings(targets=(f"http://127.0.0.1:{port}/metrics",), scrape_s=0.2), registry=Registry()
            )
            watching = Lifecycle(Registry())
            watching.add("metrics", store)
            await watching.start()
            async with asyncio.timeout(BOUND_S):
                while not (back := latest(store.run("up", seconds=5))) or not store.statistics().targets_up:
                    await asyncio.sleep(0.05)
            names = store.table.names()
            await watching.stop()
        await lifecycle.stop()
        return found, back, names

    (hits, open_, count, median, up), back, names = asyncio.run(main())
    assert list(hits.values()) == [100.0]
    assert dict(next(iter(hits)))["route"] == 'a "b" \\ c'
    assert (list(open_.values()), list(count.values()), list(up.values())) == ([7.0], [100.0], [1.0])
    assert next(iter(median.values())) == pytest.approx(0.05, rel=0.35)
    assert [value for _, value in back] == [1.0]
    assert "prometheus_tsdb_head_series" in names

"""Runs the public suite for HTTP caches (http-tests/cache-tests) against a cache node, and counts what it says.

Two editions: a checkout of the suite's repository (`FOURPLANE_TEST_CACHE_SUITE`, else `.tools/cache-tests`; a plain
`git clone https://github.com/http-tests/cache-tests .tools/cache-tests`, then `npm install --prefix .tools/cache-tests
--omit=dev --ignore-scripts`) and the older one on npm.
"""

import asyncio
import contextlib
import json
import os
import shutil
from pathlib import Path

from fourplane.edge.cache_node import CacheNode, CacheNodeSettings
from fourplane.edge.cache_origin import OriginSettings
from fourplane.edge.listener import ListenerSettings
from fourplane.foundation import clock, network, processes
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry

ROOT = Path(__file__).resolve().parents[3]
CURRENT = Path(os.environ.get("FOURPLANE_TEST_CACHE_SUITE") or ROOT / ".tools" / "cache-tests")
NPM = ROOT / "node_modules" / "http-cache-tests"
JUDGE = """
import fs from 'fs'
const {default: suites} = await import(process.argv[1] + '/tests/index.mjs')
const results = JSON.parse(fs.readFileSync(0))
const tests = new Map(suites.flatMap(s => s.tests.map(t => [t.id, {cdn: s.id === 'cdn-cache-control', ...t}])))
const passed = id => results[id] === true && (tests.get(id).depends_on || []).every(passed)
const met = id => (tests.get(id).depends_on || []).every(passed)
const told = {total: Object.keys(results).length, counts: {}, failed: {}}
for (const t of tests.values()) {
  if (t.browser_only) continue
  const kind = (t.cdn ? 'cdn ' : '') + (t.kind || 'required')
  told.counts[kind] = (told.counts[kind] || 0) + 1
  if (!passed(t.id)) (told.failed[kind] ||= []).push({id: t.id, met: met(t.id)})
}
console.log(JSON.stringify(told))
"""


def at_hand(suite):
    """Why this edition cannot run here; empty when it can."""
    if shutil.which("node") is None:
        return "node is missing"
    if not (suite / "tests" / "index.mjs").is_file():
        return f"the suite for HTTP caches is not here ({suite.name})"
    needs_undici = (suite / "test-engine").is_dir() and not (suite / "node_modules" / "undici").is_dir()
    return "undici is not installed beside the suite" if needs_undici else ""


def failed(found, kind, *, dependencies=True):
    """Tests of a kind that were not passed; those that only waited for another one count where `dependencies`."""
    return [one["id"] for one in found["failed"].get(kind, []) if dependencies or one["met"]]


async def judged(suite, folder):
    """What the suite in this folder says of a fresh node."""
    engine = "test-engine/" if (suite / "test-engine").is_dir() else ""
    probe = await network.listen(asyncio.Protocol, "127.0.0.1", 0)
    port = network.port_of(probe)
    probe.close()
    environment = {
        "npm_config_protocol": "http",
        "npm_config_port": str(port),
        "npm_config_pidfile": str(folder / "pid"),
        "npm_config_id": "",
        "npm_package_config_id": "",
    }
    origin = await processes.start(["node", f"{engine}server/server.mjs"], env=environment, cwd=suite)
    registry = Registry()
    node = CacheNode(
        CacheNodeSettings(listener=ListenerSettings(port=0), origin=OriginSettings(port=port), folder=folder / "cache"),
        registry=registry,
    )
    lifecycle = Lifecycle(registry)
    lifecycle.add("cache", node)
    await lifecycle.start()
    try:
        await listening(port)
        environment["npm_config_base"] = f"http://127.0.0.1:{node.port}"
        code, said = await cli(suite, engine, environment)
        assert code == 0
    finally:
        await lifecycle.stop()
        with contextlib.suppress(ProcessLookupError):
            await origin.stop()
    judge = await asyncio.create_subprocess_exec(
        "node",
        "--input-type=module",
        "-e",
        JUDGE,
        str(suite),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await judge.communicate(said)
    return json.loads(out)


async def listening(port):
    """Wait until the suite's origin is there: a request that comes before it is a 502 of the node."""
    while True:
        try:
            transport, _ = await network.connect(asyncio.Protocol, "127.0.0.1", port)
        except OSError:
            await clock.sleep(0.05)
        else:
            transport.abort()
            return


async def cli(suite, engine, environment):
    run = await asyncio.create_subprocess_exec(
        "node",
        "--no-warnings",
        f"{engine}cli.mjs",
        cwd=suite,
        env=os.environ | environment,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await run.communicate()
    return run.returncode, out

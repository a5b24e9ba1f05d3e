"""The public suite for HTTP caches (npm `http-cache-tests`) against a cache node.

The npm edition is older than the suite's repository. Where the two disagree the node follows the repository, which follows
RFC 9111 as published; those tests are listed with the reason. Needs node and the package (`npm install http-cache-tests`).
"""

import asyncio
import contextlib
import json
import os
import shutil
from pathlib import Path

import pytest

from fourplane.edge.cache_node import CacheNode, CacheNodeSettings
from fourplane.edge.cache_origin import OriginSettings
from fourplane.edge.listener import ListenerSettings
from fourplane.foundation import clock, network, processes
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry

ROOT = Path(__file__).resolve().parents[3]
OUTDATED = {
    **dict.fromkeys(
        [
            "age-parse-nonnumeric",
            "age-parse-negative",
            "age-parse-float",
            "age-parse-prefix-twoline",
            "age-parse-dup-0",
            "age-parse-dup-0-twoline",
            "age-parse-dup-old",
            "age-parse-parameter",
            "age-parse-numeric-parameter",
        ],
        "an invalid Age is ignored (RFC 9111 5.1), the old edition wants the response to be stale",
    ),
    **dict.fromkeys(
        [
            "stale-close-must-revalidate",
            "stale-close-proxy-revalidate",
            "stale-close-no-cache",
            "stale-close-s-maxage=2",
        ],
        "the old edition takes the node's own 502 for a response from the cache",
    ),
    **dict.fromkeys(
        [
            "304-etag-update-response-Content-Encoding",
            "304-etag-update-response-Content-MD5",
            "304-etag-update-response-Content-Range",
            "304-etag-update-response-ETag",
        ],
        "a 304 updates every stored field except Content-Length (RFC 9111 3.2), the old edition exempts more",
    ),
}
JUDGE = """
import fs from 'fs'
const {default: suites} = await import(process.argv[1] + '/tests/index.mjs')
const results = JSON.parse(fs.readFileSync(0))
const tests = new Map(suites.flatMap(s => s.tests).map(t => [t.id, t]))
const passed = id => results[id] === true && (tests.get(id).depends_on || []).every(passed)
const met = id => (tests.get(id).depends_on || []).every(passed)
const failed = kind => [...tests.values()].filter(
  t => !t.browser_only && (t.kind || 'required') === kind && met(t.id) && results[t.id] !== true).map(t => t.id)
console.log(JSON.stringify({required: failed('required'), optimal: failed('optimal'), total: Object.keys(results).length}))
"""


@pytest.mark.slow
def test_every_required_behaviour_of_the_public_suite(tmp_path):
    suite = ROOT / "node_modules" / "http-cache-tests"
    if not suite.is_dir() or shutil.which("node") is None:
        pytest.skip("http-cache-tests is not installed (npm install http-cache-tests)")
    found = asyncio.run(asyncio.wait_for(judged(suite, tmp_path), 240))
    assert found["total"] > 300
    assert set(found["required"]) - set(OUTDATED) == set()
    assert len(found["optimal"]) <= 6


async def judged(suite, folder):
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
    origin = await processes.start(["node", "server/server.mjs"], env=environment, cwd=suite)
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
        code, said = await cli(suite, environment)
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


async def cli(suite, environment):
    run = await asyncio.create_subprocess_exec(
        "node", "--no-warnings", "cli.mjs", cwd=suite, env=os.environ | environment, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await run.communicate()
    return run.returncode, out

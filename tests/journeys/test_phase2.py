"""`deploy/phase2.toml` on real servers: one process per service, PostgreSQL, Redis, S3; the same promises as in one folder."""

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.contracts.conftest import free_port, new_postgres, new_redis, running
from tests.journeys.console.deployment import SHORT_FILM, deployment, said
from tests.journeys.test_shards import heard, online
from tests.journeys.test_workers import _order, _skus, call, fresh_client

from fourplane.foundation.errors import Unavailable
from fourplane.service import control_socket

BOUND_S = 60
FILE = Path(__file__).parents[2] / "deploy" / "phase2.toml"
S3_SERVER = Path(__file__).parents[1] / "contracts" / "s3_server.py"


@pytest.fixture(scope="module")
def postgres():
    yield from running(new_postgres())


@pytest.fixture(scope="module")
def redis():
    yield from running(new_redis())


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """A small S3 server of the contract suites: address with key and secret."""
    if not S3_SERVER.is_file():
        pytest.skip("the S3 server of the contract suites is not there")
    port, key, secret = free_port(), "key", secrets.token_hex(8)
    folder = tmp_path_factory.mktemp("s3")
    process = subprocess.Popen([sys.executable, S3_SERVER, str(port), str(folder), "fourplane", key, secret])
    yield f"s3://{key}:{secret}@fourplane?endpoint=http://127.0.0.1:{port}&region=eu-west-1"
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def on_servers(postgres, redis, s3):
    """What a deployment of the file is told besides, to run on these servers."""
    return {
        "FOURPLANE_STORES__SQL": postgres.url,
        "FOURPLANE_STORES__RECORDS": postgres.url,
        "FOURPLANE_STORES__CACHE": redis.url,
        "FOURPLANE_STORES__BLOBS": s3,
        "FOURPLANE_GATEWAY__RATE_PER_S": "100000",
        "FOURPLANE_FLEET__WORKERS": "4",  # the file's own number, also where all journeys run with two workers
        "FOURPLANE_MESSAGING__TLS_REQUIRED": "false",
        **SHORT_FILM,
    }


@pytest.fixture(scope="module")
def phase2(tmp_path_factory, on_servers):
    folder = tmp_path_factory.mktemp("phase2") / "data"
    with deployment(folder, settings=on_servers, extra=("--config", str(FILE))) as facts:
        accounts = asyncio.run(control_socket.ask(folder / "control.sock", "crowd", {"count": 4}))
        yield {**facts, "folder": folder, "port": int(facts["xmpp_port"]), "password": accounts[0][1]}


def owner_of(facts, shard):
    return int(json.loads((facts["folder"] / "workers" / f"{shard}.lock").read_bytes().rstrip(b"\0"))["pid"])


def test_every_service_is_a_process_of_its_own(phase2):
    owners = {owner_of(phase2, name) for name in ("streaming", "dispatch", "commerce", "messaging")}
    assert len(owners) == 4
    databases = {path.name for path in (phase2["folder"] / "state").glob("*.db")}
    assert not {name for name in databases if name.startswith(("sql-", "records-"))}, (
        "nothing of these is in the folder"
    )


def test_every_page_and_the_state_of_all_workers(phase2):
    async def main():
        client = fresh_client(phase2)
        for path in ("/", "/streaming/", "/dispatch/", "/commerce/", "/messaging/", "/readyz", "/metrics"):
            assert (await call(client, "GET", path))[0] == 200, path
        client.close()

    asyncio.run(main())


def test_an_order_outlives_its_worker(phase2):
    async def main():
        client = fresh_client(phase2)
        skus = await _skus(client)
        orders = [await _order(client, f"phase2-{number}", skus) for number in range(5)]
        os.kill(owner_of(phase2, "commerce"), signal.SIGKILL)
        for order, cart in orders:
            status, told = await call(client, "GET", f"/commerce/api/orders/{order}", x_cart=cart)
            assert (status, told.get("id")) == (200, order)
        client.close()

    asyncio.run(main())


def test_a_message_waits_for_its_reader_on_the_database(phase2):
    async def main():
        async with online(phase2, "crowd-1") as one:
            one.message("crowd-2@localhost", "kept by PostgreSQL")
            await one.request("get", "<ping xmlns='urn:xmpp:ping'/>")
        async with online(phase2, "crowd-2") as other:
            await heard(other, "kept by PostgreSQL")

    asyncio.run(main())


@pytest.mark.slow
def test_a_film_is_encoded_kept_in_s3_and_played_also_after_its_worker_was_killed(phase2, s3, shared_data):
    film = shared_data / "video" / "big_buck_bunny_trailer_720p.mp4"
    made = said(phase2["folder"], "import", "video", str(film), "--json")
    assert made.returncode == 0, made.stderr
    assert not list((phase2["folder"] / "blobs").glob("streaming/**/*.m4s")), "segments are in S3"
    for killed in (False, True):
        if killed:
            os.kill(owner_of(phase2, "streaming"), signal.SIGKILL)
            while said(phase2["folder"], "operator").returncode:  # the door of the verbs is in that worker too
                time.sleep(0.1)
        played = said(phase2["folder"], "load", "streaming", "--users", "2", "--seconds", "5", "--json")
        assert played.returncode == 0, played.stderr
        report = json.loads(played.stdout)["streaming"]
        assert report["actions"]["start"]["count"] >= 1, report
        assert killed or not report["errors"], report


def test_the_database_is_killed_and_comes_back(phase2, postgres):
    async def main():
        client = fresh_client(phase2)
        skus = await _skus(client)
        before = [await _order(client, f"before-{number}", skus) for number in range(3)]
        postgres.kill()
        postgres.start()
        ends = time.monotonic() + BOUND_S
        after = []
        while len(after) < 3 and time.monotonic() < ends:
            try:
                after.append(await _order(client, f"after-{len(after)}", skus))
            except (AssertionError, Unavailable):
                await asyncio.sleep(0.1)
        assert len(after) == 3
        for order, cart in before + after:
            assert (await call(client, "GET", f"/commerce/api/orders/{order}", x_cart=cart))[0] == 200
        client.close()

    asyncio.run(main())

"""The operator's door of a cache node that stands alone, and the verb that opens one in front of any origin."""

import asyncio
import json
import signal
import ssl
import sys

import pytest
from tests.protocol.cache.rig import Client, node, response

from fourplane.edge.cache_operator import CacheOperator, purge_url
from fourplane.edge.http_client import HttpClient
from fourplane.foundation import network, processes
from fourplane.foundation.errors import Rejected
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry
from fourplane.verbs.cache import origin_of, size_of


def run(main):
    asyncio.run(asyncio.wait_for(main(), 20))


def tagged(_method, target, _head):
    return response(target.encode(), "Cache-Control: max-age=60", f"Cache-Tag: all, {target[1:]}")


def test_purges_by_address_and_by_tag_need_the_token():
    async def main():
        async with node(tagged) as (cache, origin, connect):
            registry = Registry()
            operator = CacheOperator(cache, port=0, token="word", registry=registry)
            lifecycle = Lifecycle(registry)
            lifecycle.add("operator", operator)
            await lifecycle.start()
            door, client = HttpClient("127.0.0.1", operator.port), await connect()

            async def told(method, path, token="word"):
                answer = await door.request(method, path, headers={"authorization": f"Bearer {token}"})
                return answer.status, json.loads(answer.body)

            try:
                for target in ("/a", "/b", "/c"):
                    await client.ask(target)
                assert (await told("POST", "/purge?tag=all", token="guess"))[0] == 401
                assert (await door.request("GET", "/statistics")).status == 401
                assert (await told("GET", "/statistics"))[1]["entries"] == 3
                assert await told("POST", "/purge?url=http://here/a") == (200, {"purged": 1})
                assert await told("POST", "/purge?url=http://elsewhere/b") == (200, {"purged": 0})
                assert await told("POST", "/purge?url=/b") == (200, {"purged": 1})
                assert await told("POST", "/purge?tag=all") == (200, {"purged": 1})
                for bad in ("/purge", "/purge?url=ftp:a", "/purge?url=/a&tag=b"):
                    assert (await told("POST", bad))[0] == 400, bad
                assert (await told("GET", "/purge?tag=all"))[0] == 404
                assert (await client.ask("/a"))[1]["cache-status"].startswith("node; fwd")
                assert len(origin.seen) == 4
            finally:
                door.close()
                await lifecycle.stop()

    run(main)


def test_an_address_names_one_response():
    async def main():
        async with node(tagged) as (cache, _, connect):
            client = await connect()
            await client.ask("/a?x=1")
            assert purge_url(cache.store, "http://here/a", hosts=True) == 0
            assert purge_url(cache.store, "http://here/a?x=1", hosts=True) == 1

    run(main)


@pytest.mark.parametrize("url", ["", "host", "ftp://host", "http://host/path", "http://host:port", "http://u:p@host"])
def test_what_is_no_origin_is_refused(url):
    with pytest.raises(Rejected):
        origin_of(url)


def test_sizes_and_origins_are_read():
    assert (size_of("500M"), size_of("2g"), size_of("10")) == (500 << 20, 2 << 30, 10)
    found = origin_of("https://films.example")
    assert (found.host, found.port, found.secure, found.host_header) == ("films.example", 443, True, "films.example")
    assert origin_of("http://films.example:81", keep_host=True).host_header == ""


def test_the_verb_caches_an_origin_over_tls(tmp_path):
    hosts = []

    def answer(_method, _target, head):
        hosts.append(head.lower().partition("host: ")[2].partition("\r")[0])
        return response(b"a film", "Cache-Control: max-age=60")

    async def main():
        async with node(answer) as (behind, _origin, _connect):
            origin = f"http://127.0.0.1:{behind.settings.origin.port}"
            told = asyncio.Queue()
            arguments = ["cache", "--origin", origin, "--port", "0", "--operator-port", "0", "--tls", "--json"]
            child = await processes.start(
                [sys.executable, "-m", "fourplane", *arguments, "--folder", str(tmp_path)], on_line=told.put_nowait
            )
            try:
                started = json.loads(await told.get())
                context = ssl.create_default_context(cafile=tmp_path / "tls" / "tls-certificate.pem")
                reader = asyncio.StreamReader()
                transport, protocol = await network.connect(
                    lambda: asyncio.StreamReaderProtocol(reader),
                    "127.0.0.1",
                    int(started["address"].rpartition(":")[2]),
                    tls=context,
                    server_name="localhost",
                )
                client = Client(reader, asyncio.StreamWriter(transport, protocol, reader, asyncio.get_running_loop()))
                answers = [await client.ask("/film") for _ in range(4)]
                assert {body for _, _, body in answers} == {b"a film"}
                assert answers[3][1]["cache-status"].startswith("fourplane; hit")
                assert hosts == [origin.removeprefix("http://")]
                transport.abort()
                token = (tmp_path / "operator-token").read_text().strip()
                door = HttpClient("127.0.0.1", int(started["operator"].rpartition(":")[2]))
                seen = await door.request("GET", "/statistics", headers={"authorization": f"Bearer {token}"})
                assert json.loads(seen.body)["hits"] == 3
                door.close()
            finally:
                child.terminate()
                assert await child.wait() in {0, -signal.SIGTERM}

    run(main)

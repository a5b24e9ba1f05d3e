"""A file goes up into a slot and comes down again, whole and in parts; wrong slots, sizes and old files are refused."""

import asyncio
import re
from urllib.parse import urlsplit

from tests.journeys.messaging.house import PASSWORD
from tests.journeys.messaging.web_house import web_house

from fourplane.edge.http_client import HttpClient
from fourplane.foundation import clock
from fourplane.messaging.media import wanted_range
from fourplane.simulator.crowds.messaging_client import XmppClient

UPLOAD = "urn:xmpp:http:upload:0"
PICTURE = bytes(range(256)) * 8


async def slot(alice, size, name="cat photo.png", media_type="image/png"):
    request = f"<request xmlns='{UPLOAD}' filename='{name}' size='{size}' content-type='{media_type}'/>"
    answer = await alice.request("get", request, to="upload.localhost")
    return [
        urlsplit(found.replace("&amp;", "&")) for found in re.findall(r"url='([^']+)'", answer.raw.decode())
    ], answer


def test_a_file_goes_up_and_comes_down_whole_and_in_parts(tmp_path):
    async def main():
        async with web_house(tmp_path, ("alice",), upload_max=100_000) as (here, url):
            alice = XmppClient("alice", PASSWORD)
            await alice.connect("127.0.0.1", here.messaging.tls_port, tls=here.client_tls(), direct=True)
            await alice.login()
            web = HttpClient("127.0.0.1", urlsplit(url).port)
            (put, get), _ = await slot(alice, len(PICTURE))
            wrong = await web.request("PUT", f"{put.path}?{put.query}", body=PICTURE[:-1])
            stored = await web.request("PUT", f"{put.path}?{put.query}", body=PICTURE)
            again = await web.request("PUT", f"{put.path}?{put.query}", body=PICTURE)
            unsigned = await web.request("PUT", get.path, body=PICTURE)
            assert [wrong.status, stored.status, again.status, unsigned.status] == [413, 201, 409, 401]
            whole = await web.request("GET", get.path)
            part = await web.request("GET", get.path, headers={"range": "bytes=100-199"})
            beyond = await web.request("GET", get.path, headers={"range": "bytes=9999-"})
            assert (whole.status, whole.body, whole.headers["content-type"]) == (200, PICTURE, "image/png")
            assert (part.status, part.body) == (206, PICTURE[100:200])
            assert part.headers["content-range"] == f"bytes 100-199/{len(PICTURE)}"
            assert beyond.status == 416
            (put, get), _ = await slot(alice, 10, "page.html", "text/html")
            await web.request("PUT", f"{put.path}?{put.query}", body=b"<script>1<")
            page = await web.request("GET", get.path)
            assert page.headers["content-disposition"] == "attachment"
            urls, refusal = await slot(alice, 100_001)
            assert not urls
            assert b"<file-too-large" in refusal.raw
            assert b"<max-file-size>100000<" in refusal.raw
            web.close()
            await alice.close()

    asyncio.run(main())


def test_a_file_is_over_by_its_day(tmp_path, monkeypatch):
    async def main():
        async with web_house(tmp_path, ("alice",), upload_s=2 * 86_400.0) as (here, url):
            alice = XmppClient("alice", PASSWORD)
            await alice.connect("127.0.0.1", here.messaging.tls_port, tls=here.client_tls(), direct=True)
            await alice.login()
            web = HttpClient("127.0.0.1", urlsplit(url).port)
            (put, get), _ = await slot(alice, len(PICTURE))
            await web.request("PUT", f"{put.path}?{put.query}", body=PICTURE)
            assert await here.messaging.media.sweep() == 0
            now_us = clock.now_us()
            monkeypatch.setattr(clock, "now_us", lambda: now_us + 4 * 86_400_000_000)
            assert (await web.request("GET", get.path)).status == 404
            assert await here.messaging.media.sweep() == 1
            web.close()
            await alice.close()

    asyncio.run(main())


def test_ranges_are_read_as_written_or_ignored():
    assert wanted_range("", 10) == (0, 10)
    assert wanted_range("bytes=2-3", 10) == (2, 4)
    assert wanted_range("bytes=2-", 10) == (2, 10)
    assert wanted_range("bytes=-4", 10) == (6, 10)
    assert wanted_range("bytes=-40", 10) == (0, 10)
    assert wanted_range("bytes=3-2", 10) == (0, 10)
    assert wanted_range("bytes=0-1,4-5", 10) == (0, 10)

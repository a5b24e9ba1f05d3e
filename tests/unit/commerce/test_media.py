"""Pictures are kept in the sizes that pages need; what is no picture is refused."""

import asyncio
import struct
import zlib

import msgspec
import pytest

from fourplane.commerce.media import WIDTHS, Media, MediaSettings, _found_ffmpeg
from fourplane.foundation.errors import NotFound, Rejected, Unavailable
from fourplane.state.embedded.blobs import EmbeddedBlobs


def png(width, height):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\x00" + b"\x30\x80\xc0" * width for _ in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def with_media(tmp_path, body, **settings):
    async def main():
        blobs = await EmbeddedBlobs(tmp_path / "blobs").open()
        try:
            await body(Media(MediaSettings(**settings), blobs=blobs))
        finally:
            await blobs.close()

    asyncio.run(main())


def width_of(jpeg):
    at = 2
    while True:
        marker, length = struct.unpack_from(">HH", jpeg, at)
        if 0xFFC0 <= marker <= 0xFFC2:
            return struct.unpack_from(">H", jpeg, at + 7)[0]
        at += 2 + length


@pytest.mark.skipif(not _found_ffmpeg(), reason="no ffmpeg at hand")
def test_a_picture_comes_in_every_size_and_never_larger_than_it_was(tmp_path):
    async def body(media):
        name = await media.keep(png(600, 300))
        assert name == await media.keep(png(600, 300))
        found = [width_of((await media.find(name, width))[0]) for width in WIDTHS]
        assert found == [160, 480, 600]
        assert (await media.find(name, 160))[1] == "image/jpeg"

    with_media(tmp_path, body)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"MZ\x90 a program",
        b"<svg onload='alert(1)'/>",
        b"%PDF-1.7",
        b"\x89PNG\r\n\x1a\n",
        b"\x89PNG\r\n\x1a\n" + b"\x00" * 60,
        b"\xff\xd8\xff\xe0\x00\x04",
        b"GIF89a",
        png(30_000, 1)[:20] + struct.pack(">I", 30_000) + b"\x00" * 30,
    ],
)
def test_uploads_that_are_no_pictures_are_refused(tmp_path, content):
    async def body(media):
        with pytest.raises(Rejected):
            await media.keep(content)
        assert media.kept == 0

    with_media(tmp_path, body)


@pytest.mark.skipif(not _found_ffmpeg(), reason="no ffmpeg at hand")
def test_a_picture_whose_middle_is_missing_is_refused(tmp_path):
    async def body(media):
        with pytest.raises(Rejected):
            await media.keep(png(600, 300)[:60])

    with_media(tmp_path, body)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "x" * 24, "0" * 24])
def test_unknown_pictures_are_not_found(tmp_path, name):
    async def body(media):
        with pytest.raises(NotFound):
            await media.find(name, 480)

    with_media(tmp_path, body)


def test_without_a_store_uploads_say_so():
    async def main():
        with pytest.raises(Unavailable):
            await Media(MediaSettings(), blobs=None).keep(png(4, 4))

    asyncio.run(main())


@pytest.mark.skipif(not _found_ffmpeg(), reason="no ffmpeg at hand")
def test_an_operator_uploads_a_picture_and_visitors_see_it(tmp_path):
    from tests.journeys.commerce.rig import shop

    async def main():
        async with shop(data=tmp_path) as s:
            product = (await s.commerce.catalog.page("", 1))[0]
            where = f"/commerce/api/products/{product.id}/images"
            assert (await s.client.request("POST", where, body=png(300, 200))).status == 401
            operator = await s.accounts.create("operator", "a long enough password", roles=("operator",))
            bearer = {"authorization": f"Bearer {await s.accounts.open_session(operator)}"}
            assert (await s.client.request("POST", where, body=b"GIF89a nothing", headers=bearer)).status == 400
            assert (await s.client.request("POST", where, body=png(300, 200), headers=bearer)).status == 200
            page = await s.client.request("GET", f"/commerce/p/{product.id}")
            address = page.body.partition(b'src="/commerce/media/')[2].partition(b'"')[0].decode()
            picture = await s.client.request("GET", f"/commerce/media/{address}")
            assert (picture.status, picture.headers["content-type"]) == (200, "image/jpeg")
            assert "immutable" in picture.headers["cache-control"]
            assert width_of(picture.body) == 300

            catalog = s.commerce.catalog  # the next one comes to a product as processes share it
            catalog._snapshot_path = tmp_path / "products.snapshot"
            await catalog.renew_snapshot()
            catalog._decoded.clear()
            told = await s.client.request("GET", f"/commerce/api/products/{product.id}")
            answer = await s.client.request("POST", where, body=png(200, 300), headers=bearer)
            names = msgspec.json.decode(answer.body)["images"]
            assert (answer.status, names[1:]) == (200, [address.partition("/")[0]])
            assert catalog.statistics().shared_hits > 0
            after = await s.client.request("GET", f"/commerce/api/products/{product.id}")
            assert msgspec.json.decode(after.body)["product"]["images"] == names
            assert after.headers["etag"] != told.headers["etag"]
            again = await s.client.request("GET", f"/commerce/media/{names[0]}/480.jpg")
            assert (again.status, width_of(again.body)) == (200, 200)
            assert (await s.client.request("GET", f"/commerce/media/{address}")).body == picture.body

    asyncio.run(main())

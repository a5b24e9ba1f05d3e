import asyncio
import gzip
import os

import pytest

from fourplane.edge.routes import StaticFolder
from fourplane.edge.static_files import StaticFiles, StaticSettings, UnusableRange
from fourplane.foundation.errors import NotFound

TEXT = "/* a style */\n" * 200


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "static"
    place.mkdir()
    (place / "style.css").write_text(TEXT)
    (place / "index.html").write_text("<p>x</p>")
    (place / ".secret").write_text("no")
    (place / "big.bin").write_bytes(bytes(range(256)) * 40)
    (place / "empty.txt").write_text("")
    (tmp_path / "outside.txt").write_text("no")
    (place / "link.txt").symlink_to(tmp_path / "outside.txt")
    (place / "inside").mkdir()
    return StaticFolder("/s/", place)


def ask(folder, *requests, **bounds):
    async def main():
        files = StaticFiles(StaticSettings(**bounds))
        found = []
        for path, headers in requests:
            reply = await files.reply(folder, path, headers)
            if not isinstance(reply.body, bytes):
                reply.body = b"".join([piece async for piece in reply.body])
            found.append(reply)
        files.close()
        return found

    return asyncio.run(main())


def test_a_file_has_its_type_and_validators(folder):
    [found] = ask(folder, ("/s/style.css", {}))
    assert found.body.decode() == TEXT
    assert found.media_type == "text/css; charset=utf-8"
    assert found.headers["etag"].startswith('"')
    assert found.headers["cache-control"] == "public, max-age=60"
    assert found.headers["vary"] == "accept-encoding"


def test_a_folder_shows_its_index_and_no_listing(folder):
    assert ask(folder, ("/s/", {}))[0].body == b"<p>x</p>"
    with pytest.raises(NotFound):
        ask(folder, ("/s/inside/", {}))
    with pytest.raises(NotFound):
        ask(folder, ("/s/inside", {}))


@pytest.mark.parametrize(
    "path",
    [
        "../outside.txt",
        "%2e%2e/outside.txt",
        "..%2foutside.txt",
        "..%5coutside.txt",
        "inside/../../outside.txt",
        "//etc/passwd",
        "link.txt",
        ".secret",
        "style.css/",
        "a%00b",
        "%ff%fe",
        "x" * 5000,
    ],
)
def test_nothing_outside_of_the_folder_can_be_read(folder, path):
    with pytest.raises(NotFound):
        ask(folder, ("/s/" + path, {}))


def test_unchanged_files_are_304(folder):
    [first] = ask(folder, ("/s/style.css", {}))
    etag, changed = first.headers["etag"], first.headers["last-modified"]
    found = ask(
        folder,
        ("/s/style.css", {"if-none-match": etag}),
        ("/s/style.css", {"if-none-match": f'"other", W/{etag}'}),
        ("/s/style.css", {"if-none-match": "*"}),
        ("/s/style.css", {"if-modified-since": changed}),
        ("/s/style.css", {"if-none-match": '"other"', "if-modified-since": changed}),
        ("/s/style.css", {"if-modified-since": "nonsense"}),
    )
    assert [one.status for one in found] == [304, 304, 304, 304, 200, 200]


def test_text_is_packed_for_those_who_take_it(folder):
    packed, refused = ask(
        folder, ("/s/style.css", {"accept-encoding": "br, gzip"}), ("/s/style.css", {"accept-encoding": "gzip;q=0"})
    )
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body).decode() == TEXT
    assert packed.headers["etag"] != refused.headers["etag"]
    (known,) = ask(folder, ("/s/style.css", {"accept-encoding": "gzip", "if-none-match": packed.headers["etag"]}))
    assert (known.status, known.headers["etag"]) == (304, packed.headers["etag"])
    assert "content-encoding" not in refused.headers


def test_an_edit_shows_at_once(folder):
    async def main():
        files = StaticFiles()
        before = (await files.reply(folder, "/s/index.html", {})).body
        place = folder.folder / "index.html"
        place.write_text("<p>y</p>")
        os.utime(place, ns=(1, 1))
        after = (await files.reply(folder, "/s/index.html", {})).body
        files.close()
        return before, after

    assert asyncio.run(main()) == (b"<p>x</p>", b"<p>y</p>")


@pytest.mark.parametrize("file_bytes_max", [1 << 20, 100])
def test_ranges_from_memory_and_from_disk(folder, file_bytes_max):
    whole = bytes(range(256)) * 40
    cases = {
        "bytes=0-9": whole[:10],
        "bytes=10000-": whole[10000:],
        "bytes=-5": whole[-5:],
        "bytes=10000-99999999": whole[10000:],
        "bytes=5-5": whole[5:6],
    }
    for asked, expected in cases.items():
        [found] = ask(folder, ("/s/big.bin", {"range": asked}), file_bytes_max=file_bytes_max, piece_bytes=64)
        assert (found.status, found.body) == (206, expected)
        assert found.headers["content-range"].endswith(f"/{len(whole)}")


@pytest.mark.parametrize("asked", ["bytes=9-1", "bytes=a-b", "items=0-1", "bytes=0-1,3-4", "bytes=-", "bytes=1"])
def test_a_range_that_makes_no_sense_is_the_whole_file(folder, asked):
    [found] = ask(folder, ("/s/big.bin", {"range": asked}))
    assert (found.status, len(found.body)) == (200, 10_240)


def test_a_range_outside_is_416_and_if_range_decides(folder):
    with pytest.raises(UnusableRange):
        ask(folder, ("/s/big.bin", {"range": "bytes=10240-"}))
    with pytest.raises(UnusableRange):
        ask(folder, ("/s/empty.txt", {"range": "bytes=0-"}))
    [stale] = ask(folder, ("/s/big.bin", {"range": "bytes=0-1", "if-range": '"old"'}))
    assert stale.status == 200


def test_memory_is_bounded(folder):
    for number in range(20):
        (folder.folder / f"{number}.txt").write_bytes(b"x" * 1_000)

    async def main():
        files = StaticFiles(StaticSettings(memory_bytes_max=5_000, gzip_bytes_min=10_000))
        for number in range(20):
            await files.reply(folder, f"/s/{number}.txt", {})
        files.close()
        return len(files._kept), files._held

    assert asyncio.run(main()) == (5, 5_000)

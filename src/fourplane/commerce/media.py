"""Pictures of products: uploaded once, kept in the sizes that pages need, addressed by what they show.

A picture's name is the hash of its bytes, so the same picture is kept once, its address never changes its content, and it may be
cached for ever. What is uploaded must begin like a PNG, JPEG, WebP or GIF and must be readable by ffmpeg, which makes the
sizes as JPEG in a process of its own (bounded in time and in pixels); where there is no ffmpeg, PNG, JPEG and WebP are kept as
they came and shown in their own size. Products without a picture have drawn tiles (`tiles.py`).

Bounds: 10 MiB an upload (the route), `pixels_max`, `convert_s`, `at_once` conversions.
"""

import asyncio
import shutil
import struct
import tempfile
from hashlib import blake2b
from pathlib import Path

import msgspec

from fourplane.foundation import processes
from fourplane.foundation.blocking import Pool
from fourplane.foundation.errors import NotFound, Rejected, Unavailable
from fourplane.state.contracts import Blobs

WIDTHS = (160, 480, 960)
_KINDS = ((b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff", "jpeg"), (b"GIF8", "gif"))


class MediaSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of pictures; `ffmpeg` is looked for when empty."""

    ffmpeg: str = ""
    pixels_max: int = 40_000_000
    convert_s: float = 20.0
    at_once: int = 2
    per_product_max: int = 8


class Media:
    """The owner of pictures. Without a store for objects uploads are refused and pages show tiles."""

    def __init__(self, settings: MediaSettings, *, blobs: Blobs | None) -> None:
        self._settings = settings
        self._blobs = blobs
        self._turn = asyncio.Semaphore(settings.at_once)
        self.per_product_max = settings.per_product_max
        self.kept = self.refused = 0

    async def keep(self, content: bytes) -> str:
        """Keep a picture; its name. Raises Rejected for what is no picture, Unavailable without a store."""
        if self._blobs is None:
            raise Unavailable("this shop has no store for pictures", code="no_media_store")
        try:
            kind, width, height = _looked_at(content)
            if width * height > self._settings.pixels_max:
                raise Rejected(f"a picture has at most {self._settings.pixels_max:,} pixels", code="bad_image")
            sizes = await self._sizes(content, kind)
        except Rejected:
            self.refused += 1
            raise
        name = blake2b(content, digest_size=12).hexdigest()
        for size, bytes_of_it in sizes.items():
            await self._blobs.put(f"media/{name}/{size}.jpg", bytes_of_it, media_type=_media_type(bytes_of_it))
        self.kept += 1
        return name

    async def find(self, name: str, width: int) -> tuple[bytes, str]:
        """A picture in one size and its media type; raises NotFound."""
        good = len(name) == 24 and all(letter in "0123456789abcdef" for letter in name)
        if self._blobs is None or not good or width not in WIDTHS:
            raise NotFound("no such picture", code="no_such_picture")
        content = await self._blobs.get(f"media/{name}/{width}.jpg")
        return content, _media_type(content)

    async def _sizes(self, content: bytes, kind: str) -> dict[int, bytes]:
        ffmpeg = self._settings.ffmpeg or _found_ffmpeg()
        if not ffmpeg:
            if kind == "gif":
                raise Rejected("pictures are PNG, JPEG or WebP here", code="bad_image")
            return dict.fromkeys(WIDTHS, content)
        async with self._turn:
            return await self._converted(ffmpeg, content, kind)

    async def _converted(self, ffmpeg: str, content: bytes, kind: str) -> dict[int, bytes]:
        """All sizes by one ffmpeg, in a folder that goes away."""
        disk = Pool("media", threads=1)
        folder = Path(await disk.run(lambda: tempfile.mkdtemp(prefix="fourplane-media-")))
        try:
            source = folder / f"in.{kind}"
            await disk.run(lambda: source.write_bytes(content))
            argv = [ffmpeg, "-nostdin", "-v", "error", "-y", "-i", str(source)]
            for width in WIDTHS:
                scale = f"scale='min({width},iw)':-2:flags=lanczos,format=yuvj420p"
                argv += ["-frames:v", "1", "-vf", scale, "-q:v", "3", str(folder / f"{width}.jpg")]
            child = await processes.start(argv, nice=5)
            try:
                async with asyncio.timeout(self._settings.convert_s):
                    code = await child.wait()
            except TimeoutError:
                child.kill()
                raise Rejected("this picture takes too long to read", code="bad_image") from None
            if code != 0:
                raise Rejected("this is no picture that can be read", code="bad_image")
            return await disk.run(lambda: {width: (folder / f"{width}.jpg").read_bytes() for width in WIDTHS})
        finally:
            await disk.run(lambda: shutil.rmtree(folder, ignore_errors=True))
            disk.close()


def _looked_at(content: bytes) -> tuple[str, int, int]:
    """Kind, width and height by the first bytes; raises Rejected for anything else than a picture."""
    kind = next((kind for magic, kind in _KINDS if content.startswith(magic)), "")
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        kind = "webp"
    try:
        match kind:
            case "png":
                width, height = struct.unpack_from(">II", content, 16)
            case "gif":
                width, height = struct.unpack_from("<HH", content, 6)
            case "jpeg":
                width, height = _jpeg_size(content)
            case "webp":
                width, height = 1, 1  # ffmpeg says
            case _:
                raise Rejected("a picture is PNG, JPEG, WebP or GIF", code="bad_image")
    except struct.error as error:
        raise Rejected("this picture is cut off", code="bad_image") from error
    if not (width and height):
        raise Rejected("a picture without any extent", code="bad_image")
    return kind, width, height


def _jpeg_size(content: bytes) -> tuple[int, int]:
    """From the frame header; struct.error where there is none."""
    at = 2
    while True:
        marker, length = struct.unpack_from(">HH", content, at)
        if 0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC):
            height, width = struct.unpack_from(">HH", content, at + 5)
            return width, height
        if marker < 0xFFC0 or length < 2:
            raise Rejected("this JPEG is damaged", code="bad_image")
        at += 2 + length


def _media_type(content: bytes) -> str:
    kind = next((kind for magic, kind in _KINDS if content.startswith(magic)), "webp")
    return f"image/{kind}"


def _found_ffmpeg() -> str:
    """On the PATH, or the one of the extra `video`."""
    found = shutil.which("ffmpeg")
    if found:
        return found
    try:
        import imageio_ffmpeg  # noqa: PLC0415 - an extra, only where a picture comes
    except ImportError:
        return ""
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:
        return ""

"""The origin: turns a path of a published version into bytes of blobs, and says how long they may be kept.

    /v/<title>/<version>/master.m3u8 | manifest.mpd | <track>.m3u8 | <track>.iframes.m3u8 | poster.jpg | sprite.jpg | scrub.vtt
    /v/<title>/<version>/<track>/init.mp4 | <track>/<number>.m4s | <captions>.vtt | <captions>.m3u8 | <captions>/<number>.vtt

A version never changes, so everything may be kept for a year (`immutable`); its entity tag is version and path.
The origin answers whole objects; ranges are the CDN nodes' work. Indexes in use are kept in memory, `INDEXES_MAX` of them.
"""

import base64
from collections import OrderedDict

import msgspec

from fourplane.foundation.errors import NotFound
from fourplane.state.contracts import Blobs
from fourplane.streaming import dash, hls
from fourplane.streaming.captions import PIECE_S, piece
from fourplane.streaming.packaging import TitleIndex, Track, blob_key, load_index

INDEXES_MAX = 256
INITS_MAX = 2_000
PIECE_MAX = 320 << 10  # of a segment that comes along with a play call
PIECES_BYTES_MAX = 32 << 20
KEEP = "public, max-age=31536000, immutable"
TYPES = {
    "m3u8": "application/vnd.apple.mpegurl",
    "mpd": "application/dash+xml",
    "mp4": "video/mp4",
    "m4s": "video/iso.segment",
    "jpg": "image/jpeg",
    "vtt": "text/vtt; charset=utf-8",
}


class OriginObject(msgspec.Struct, frozen=True):
    """One answer of the origin."""

    body: bytes
    media_type: str
    etag: str
    cache_control: str = KEEP


class Origin:
    """Reads published versions; knows nothing of HTTP connections, players or tokens."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._indexes: OrderedDict[tuple[str, str], TitleIndex] = OrderedDict()
        self._inits: dict[tuple[str, str, str], str] = {}
        self._pieces: OrderedDict[tuple[str, str, str, int], bytes] = OrderedDict()
        self._pieces_bytes = 0

    async def index(self, title: str, version: str) -> TitleIndex:
        """The index of a version, from memory when it was used lately; raises NotFound."""
        key = (title, version)
        found = self._indexes.get(key)
        if found is None:
            found = self._indexes[key] = await load_index(self._blobs, title, version)
            if len(self._indexes) > INDEXES_MAX:
                self._indexes.popitem(last=False)
        else:
            self._indexes.move_to_end(key)
        return found

    async def init(self, index: TitleIndex, track: Track) -> str:
        """The init segment of a track in base64, from memory when it was used lately."""
        key = (index.title, index.version, track.name)
        found = self._inits.get(key)
        if found is None:
            found = base64.b64encode(await self._range(index, track, 0, track.init_size)).decode()
            if len(self._inits) >= INITS_MAX:
                self._inits.clear()
            self._inits[key] = found
        return found

    async def piece(self, index: TitleIndex, track: Track, number: int) -> bytes:
        """A segment small enough to come along with a play call, from memory when it was used lately; else empty."""
        if number >= len(track.segments) or track.segments[number].size > PIECE_MAX:
            return b""
        key = (index.title, index.version, track.name, number)
        found = self._pieces.get(key)
        if found is None:
            segment = track.segments[number]
            found = await self._range(index, track, segment.offset, segment.size)
            if key not in self._pieces:
                self._pieces[key] = found
                self._pieces_bytes += len(found)
            while self._pieces_bytes > PIECES_BYTES_MAX:
                self._pieces_bytes -= len(self._pieces.popitem(last=False)[1])
        else:
            self._pieces.move_to_end(key)
        return found

    async def fetch(self, path: str) -> OriginObject:
        """The object at `path`; raises NotFound for anything that is not one."""
        parts = path.partition("?")[0].split("/")
        if len(parts) < 5 or parts[0] or parts[1] != "v" or not all(_is_plain(part) for part in parts[2:]):
            raise NotFound("no such object", code="no_such_object")
        index = await self.index(parts[2], parts[3])
        name = "/".join(parts[4:])
        body = await self._body(index, name)
        kind = TYPES[name.rpartition(".")[2]]
        if kind == "video/mp4" and index.track(parts[4]).kind == "audio":
            kind = "audio/mp4"
        return OriginObject(body, kind, f'"{index.version}-{name.replace("/", "-")}"')

    async def _body(self, index: TitleIndex, name: str) -> bytes:
        match name.split("/"):
            case [file] if file.endswith((".m3u8", ".mpd")) or file == "scrub.vtt":
                return _written(index, file).encode()
            case ["poster.jpg" | "sprite.jpg"]:
                return await self._blobs.get(blob_key(index.title, index.version, name))
            case [file] if file.endswith(".vtt"):
                return await self._text(index, file.removesuffix(".vtt"))
            case [caption, part] if part.endswith(".vtt") and part[:-4].isdecimal() and len(part) < 10:
                if int(part[:-4]) * PIECE_S < index.duration_s:
                    text = (await self._text(index, caption)).decode(errors="replace")
                    return piece(text, int(part[:-4])).encode()
            case [track, "init.mp4"]:
                return await self._range(index, index.track(track), 0, index.track(track).init_size)
            case [track, part] if part.endswith(".m4s") and part[:-4].isdecimal():
                segments = index.track(track).segments
                number = int(part[:-4])
                if number < len(segments):
                    return await self._range(index, index.track(track), segments[number].offset, segments[number].size)
        raise NotFound("no such object", code="no_such_object")

    async def _text(self, index: TitleIndex, name: str) -> bytes:
        return await self._blobs.get(blob_key(index.title, index.version, f"{index.caption(name).name}.vtt"))

    async def _range(self, index: TitleIndex, track: Track, offset: int, size: int) -> bytes:
        key = blob_key(index.title, index.version, f"{track.name}.mp4")
        return await self._blobs.get(key, start=offset, end=offset + size)


def _written(index: TitleIndex, file: str) -> str:
    """A manifest or list that is written from the index; raises NotFound."""
    match file:
        case "master.m3u8":
            return hls.master(index)
        case "manifest.mpd":
            return dash.manifest(index)
        case "scrub.vtt" if index.sprite_every_s:
            return scrub_vtt(index)
    name, _, kind = file.rpartition(".")
    if kind == "m3u8" and name.startswith("captions_"):
        return hls.captions(index, index.caption(name))
    if kind == "m3u8" and name.endswith(".iframes"):
        return hls.key_frames(index, index.track(name.removesuffix(".iframes")))
    if kind == "m3u8":
        return hls.media(index, index.track(name))
    raise NotFound("no such object", code="no_such_object")


def scrub_vtt(index: TitleIndex) -> str:
    """Which part of the scrub sheet shows which seconds (WebVTT with #xywh fragments)."""
    top = index.video[-1]
    width = 160
    height = 2 * round(width * top.height / top.width / 2)
    lines = ["WEBVTT\n"]
    count = min(100, int(index.duration_s / index.sprite_every_s) + 1)
    for number in range(count):
        start, end = number * index.sprite_every_s, min(index.duration_s, (number + 1) * index.sprite_every_s)
        column, row = number % index.sprite_columns, number // index.sprite_columns
        if end > start:
            lines.append(
                f"{_stamp(start)} --> {_stamp(end)}\nsprite.jpg#xywh={column * width},{row * height},{width},{height}\n"
            )
    return "\n".join(lines)


def _stamp(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}.{round((seconds - whole) * 1000) % 1000:03d}"


def _is_plain(part: str) -> bool:
    return bool(part) and part not in {".", ".."} and part.replace(".", "").replace("_", "").replace("-", "").isalnum()

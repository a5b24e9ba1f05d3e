"""Files of one folder over HTTP: validators, ranges, compression, a bounded memory for small files.

Small files are kept with their gzip twin and looked at again (one `stat`) at every use, so an edit shows at once. Larger
ones are read in pieces off the loop. A path is refused when a segment is empty, begins with a dot or holds a NUL
or backslash, and when it leads out of the folder through a link. Sources: RFC 9110 sections 8.8, 13, 14.
"""

import gzip
import os
import stat
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import msgspec

from fourplane.edge.http_answers import http_date
from fourplane.edge.routes import Reply, StaticFolder
from fourplane.foundation.blocking import Pool
from fourplane.foundation.errors import NotFound, Rejected

MEDIA_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".gif": "image/gif",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".m3u8": "application/vnd.apple.mpegurl",
    ".m4s": "video/iso.segment",
    ".map": "application/json",
    ".md": "text/markdown; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".mp4": "video/mp4",
    ".mpd": "application/dash+xml",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".vtt": "text/vtt; charset=utf-8",
    ".wasm": "application/wasm",
    ".webm": "video/webm",
    ".webp": "image/webp",
    ".woff2": "font/woff2",
    ".xml": "application/xml",
}
COMPRESSED: Final = frozenset(
    {".css", ".html", ".js", ".json", ".map", ".md", ".mjs", ".svg", ".txt", ".vtt", ".wasm", ".xml"}
)


class StaticSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of the memory for files."""

    file_bytes_max: int = 1 << 20
    memory_bytes_max: int = 64 << 20
    gzip_bytes_min: int = 512
    piece_bytes: int = 256 << 10


class Kept(msgspec.Struct, frozen=True):
    """One file in memory; `packed` is its gzip twin where that is worth it."""

    mtime_ns: int
    size: int
    body: bytes
    packed: bytes


class StaticFiles:
    """All static folders of one gateway; shares one memory and one pool."""

    def __init__(self, settings: StaticSettings | None = None) -> None:
        self._settings = settings or StaticSettings()
        self._pool = Pool("static", threads=1, queue_max=1_000)
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._held = 0

    def close(self) -> None:
        """End the reading thread."""
        self._pool.close()

    async def reply(self, door: StaticFolder, path: str, headers: Mapping[str, str]) -> Reply:
        """The answer for a raw path below the door's prefix; raises NotFound, Rejected for an unusable range."""
        file = _locate(door, path)
        try:
            found = file.stat()
        except OSError:
            raise NotFound("no such file") from None
        if not stat.S_ISREG(found.st_mode):
            raise NotFound("no such file")
        etag = f'"{found.st_mtime_ns:x}-{found.st_size:x}"'
        answer = {
            "etag": etag,
            "last-modified": http_date(found.st_mtime_ns // 1_000_000_000),
            "cache-control": f"public, max-age={door.cache_s}" if door.cache_s else "no-cache",
            "accept-ranges": "bytes",
        }
        suffix = file.suffix.lower()
        media_type = MEDIA_TYPES.get(suffix, "application/octet-stream")
        if suffix in COMPRESSED:
            answer["vary"] = "accept-encoding"
        if _unchanged(headers, etag, found.st_mtime_ns):
            if f'{etag[:-1]}-gz"' in headers.get("if-none-match", ""):
                answer["etag"] = f'{etag[:-1]}-gz"'  # of the form that the client has
            return Reply(status=304, headers=answer, media_type=media_type)
        wanted = _range(headers, etag, found.st_mtime_ns, found.st_size)
        if found.st_size > self._settings.file_bytes_max:
            return self._large(file, found.st_size, wanted, answer, media_type)
        kept = await self._small(file, found)
        if wanted is not None:
            first, last = wanted
            answer["content-range"] = f"bytes {first}-{last}/{kept.size}"
            return Reply(kept.body[first : last + 1], status=206, headers=answer, media_type=media_type)
        body = kept.body
        if kept.packed and _takes_gzip(headers.get("accept-encoding", "")):
            body = kept.packed
            answer["content-encoding"] = "gzip"
            answer["etag"] = f'{etag[:-1]}-gz"'
        return Reply(body, headers=answer, media_type=media_type)

    def _large(
        self, file: Path, size: int, wanted: tuple[int, int] | None, answer: dict[str, str], media_type: str
    ) -> Reply:
        first, last = wanted if wanted is not None else (0, size - 1)
        answer["content-length"] = str(last - first + 1)
        if wanted is not None:
            answer["content-range"] = f"bytes {first}-{last}/{size}"
        status = 200 if wanted is None else 206
        return Reply(self._pieces(file, first, last), status=status, headers=answer, media_type=media_type)

    async def _pieces(self, file: Path, first: int, last: int) -> AsyncIterator[bytes]:
        position = first
        while position <= last:
            count = min(self._settings.piece_bytes, last + 1 - position)
            piece = await self._pool.run(_read_piece, file, position, count)
            if not piece:
                return  # the file became shorter; the connection ends short of its Content-Length
            position += len(piece)
            yield piece

    async def _small(self, file: Path, found: os.stat_result) -> Kept:
        key = str(file)
        kept = self._kept.get(key)
        if kept is not None and kept.mtime_ns == found.st_mtime_ns and kept.size == found.st_size:
            self._kept.move_to_end(key)
            return kept
        pack = file.suffix.lower() in COMPRESSED and found.st_size >= self._settings.gzip_bytes_min
        kept = await self._pool.run(_read_kept, file, found.st_mtime_ns, pack)
        before = self._kept.pop(key, None)
        if before is not None:
            self._held -= before.size + len(before.packed)
        self._kept[key] = kept
        self._held += kept.size + len(kept.packed)
        while self._held > self._settings.memory_bytes_max:
            _, oldest = self._kept.popitem(last=False)
            self._held -= oldest.size + len(oldest.packed)
        return kept


def _locate(door: StaticFolder, path: str) -> Path:
    below = unquote(path[len(door.prefix) :])
    if below == "" or below.endswith("/"):
        below += "index.html"
    segments = below.lstrip("/").split("/")
    if any(not part or part.startswith(".") or "\0" in part or "\\" in part for part in segments):
        raise NotFound("no such file")
    folder = door.folder.resolve()
    try:
        file = folder.joinpath(*segments).resolve()
    except OSError:
        raise NotFound("no such file") from None
    if not file.is_relative_to(folder):
        raise NotFound("no such file")
    return file


def _unchanged(headers: Mapping[str, str], etag: str, mtime_ns: int) -> bool:
    match = headers.get("if-none-match")
    if match is not None:
        return any(_weakly(one) in (etag, f'{etag[:-1]}-gz"', "*") for one in match.split(","))
    since = _seconds(headers.get("if-modified-since"))
    return since is not None and mtime_ns // 1_000_000_000 <= since


def _range(headers: Mapping[str, str], etag: str, mtime_ns: int, size: int) -> tuple[int, int] | None:
    """First and last byte of a single range; None for the whole file; raises Rejected (416) outside of it."""
    asked = headers.get("range", "")
    if not asked.startswith("bytes=") or "," in asked:
        return None
    condition = headers.get("if-range")
    if condition is not None and condition != etag and _seconds(condition) != mtime_ns // 1_000_000_000:
        return None
    begin, dash, end = asked[6:].strip().partition("-")
    if not dash or not (begin or end) or not (begin + end).isascii() or not (begin + end).isdigit():
        return None
    if len(begin) > 18 or len(end) > 18:
        return None
    if not begin:
        first, last = max(0, size - int(end)), size - 1
    else:
        first, last = int(begin), min(int(end), size - 1) if end else size - 1
        if end and int(end) < first:
            return None
    if first >= size or last < first:
        raise UnusableRange(size)
    return first, last


class UnusableRange(Rejected):
    """A range outside of the file (416)."""

    code = "range_not_satisfiable"
    http_status = 416

    def __init__(self, size: int) -> None:
        super().__init__("the range lies outside of the file", size=size)


def _takes_gzip(accepted: str) -> bool:
    for part in accepted.split(","):
        coding, _, weight = part.strip().partition(";")
        if coding.strip().lower() in ("gzip", "*"):
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def _weakly(tag: str) -> str:
    return tag.strip().removeprefix("W/")


def _seconds(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return int(parsedate_to_datetime(text).timestamp())
    except (ValueError, TypeError, OverflowError):
        return None


def _read_piece(file: Path, position: int, count: int) -> bytes:
    with file.open("rb") as source:
        source.seek(position)
        return source.read(count)


def _read_kept(file: Path, mtime_ns: int, pack: bool) -> Kept:  # noqa: FBT001 - runs in a worker, arguments by place
    body = file.read_bytes()
    packed = gzip.compress(body, 9, mtime=0) if pack else b""
    if len(packed) > len(body) * 0.9:
        packed = b""
    return Kept(mtime_ns, len(body), body, packed)

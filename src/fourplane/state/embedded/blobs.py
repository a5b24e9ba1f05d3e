"""Whole objects in a folder: the `Blobs` contract on the machine's file system, safe to share between processes.

    <root>/keys/a~/b~/c           a symbolic link; directories end with ~, so that `a` and `a/b` coexist
    <root>/content/3f/<etag>,<token>,<media type>      the bytes, never changed after they are complete
    <root>/incoming/<token>       what is being written; emptied of leftovers older than a day

A put writes and syncs the content under a name of its own, renames it into place, then renames a new link over the old one
and syncs the folder: readers see the old or the new object, a killed process leaves at most an unreferenced file, which
`collect` removes. Because content never changes, `local_path` may be handed to sendfile. The etag is SHA-256.
"""

import hashlib
import os
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.blocking import Pool
from fourplane.foundation.errors import Conflict, NotFound, Rejected, TooLarge, Unavailable
from fourplane.state.contracts import BlobInfo

CHUNK_BYTES = 1 << 20
WHOLE_BYTES_MAX = 64 << 20
KEY_CHARS_MAX = 900
LISTED_MAX = 10_000
LEFTOVER_S = 86_400
_KEY = re.compile(r"[A-Za-z0-9_.=-]+(?:/[A-Za-z0-9_.=-]+)*")
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9.+_-]+/[A-Za-z0-9.+_-]+(?:; ?[a-z]+=[A-Za-z0-9_-]+)?")
_ATTEMPTS = 4


class BlobsStatistics(msgspec.Struct, frozen=True):
    """One folder since it was opened."""

    root: str
    puts: int
    gets: int
    read_bytes: int
    written_bytes: int


class EmbeddedBlobs:
    """`Blobs` in a folder. `info` and `local_path` are inline (about 10 us), the rest runs on two threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._pool = Pool("blobs")
        self._puts = self._gets = self._read_bytes = self._written_bytes = 0

    async def open(self) -> "EmbeddedBlobs":
        """Make the folders and clear what was never finished."""
        await self._pool.run(self._prepare)
        return self

    async def put(self, key: str, content: bytes, *, media_type: str = "application/octet-stream") -> BlobInfo:
        if len(content) > WHOLE_BYTES_MAX:
            raise TooLarge(f"an object given whole has at most {WHOLE_BYTES_MAX} bytes; use put_file")
        return await self._store(key, iter((content,)), media_type)

    async def put_file(self, key: str, path: Path, *, media_type: str = "application/octet-stream") -> BlobInfo:
        return await self._store(key, _chunks_of(path), media_type)

    async def info(self, key: str) -> BlobInfo | None:
        found = self._resolve(key)
        return None if found is None else found[1]

    def local_path(self, key: str) -> Path | None:
        """The file that holds exactly the object's bytes and never changes; None when there is no such object."""
        found = self._resolve(key)
        return None if found is None else found[0]

    async def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        content = b"".join([chunk async for chunk in self._read(key, start, end, WHOLE_BYTES_MAX)])
        self._gets += 1
        return content

    def stream(self, key: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        self._gets += 1
        return self._read(key, start, end, None)

    async def keys(self, prefix: str, *, after: str = "", limit: int = 1_000) -> list[str]:
        if not 0 < limit <= LISTED_MAX:
            raise Rejected(f"a listing has 1 to {LISTED_MAX} keys, not {limit}", code="bad_limit")
        return await self._pool.run(self._list, prefix, after, limit)

    async def delete(self, key: str) -> None:
        await self._pool.run(self._delete, key)

    async def collect(self) -> int:
        """Remove content that no key names and that is older than a day; how many files went."""
        return await self._pool.run(self._collect)

    def statistics(self) -> BlobsStatistics:
        return BlobsStatistics(str(self.root), self._puts, self._gets, self._read_bytes, self._written_bytes)

    async def close(self) -> None:
        self._pool.close()

    # ---- inside ----

    def _prepare(self) -> None:
        for name in ("keys", "content", "incoming"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        self._sweep(self.root / "incoming", keep=frozenset())

    async def _store(self, key: str, chunks: Iterator[bytes], media_type: str) -> BlobInfo:
        check_key(key)
        check_media_type(media_type)
        token = clock.token_bytes(8).hex()
        modified_us = clock.now_us()
        return await self._pool.run(self._write, key, chunks, media_type, token, modified_us)

    def _write(self, key: str, chunks: Iterator[bytes], media_type: str, token: str, modified_us: int) -> BlobInfo:
        incoming = self.root / "incoming" / token
        digest, size = hashlib.sha256(), 0
        try:
            with incoming.open("xb") as file:
                for chunk in chunks:
                    digest.update(chunk)
                    file.write(chunk)
                    size += len(chunk)
                file.flush()
                os.utime(file.fileno(), ns=(modified_us * 1_000, modified_us * 1_000))
                os.fsync(file.fileno())
            etag = digest.hexdigest()
            name = f"{etag[:2]}/{etag},{token},{_quoted(media_type)}"
            content = self.root / "content" / name
            content.parent.mkdir(exist_ok=True)
            incoming.rename(content)
            _sync_folder(content.parent)
            self._link(key, content, token)
        except OSError as error:
            incoming.unlink(missing_ok=True)
            raise Unavailable(f"cannot store {key}: {error.strerror}", code="disk_failed", key=key) from error
        self._puts += 1
        self._written_bytes += size
        return BlobInfo(key, size, etag, modified_us, media_type)

    def _link(self, key: str, content: Path, token: str) -> None:
        """Point `key` at its new content and remove the old."""
        link = self._link_path(key)
        fresh = self.root / "incoming" / f"{token}.link"
        for _ in range(_ATTEMPTS):
            link.parent.mkdir(parents=True, exist_ok=True)
            if not fresh.is_symlink():
                fresh.symlink_to(os.path.relpath(content, link.parent))
            before = _target(link)
            try:
                fresh.rename(link)
            except FileNotFoundError:
                continue  # somebody deleted the last neighbour and the folder with it
            break
        else:
            raise Conflict(f"{key} is being deleted again and again", key=key)
        _sync_folder(link.parent)
        if before is not None:
            before.unlink(missing_ok=True)

    def _resolve(self, key: str) -> tuple[Path, BlobInfo] | None:
        check_key(key)
        link = self._link_path(key)
        for _ in range(_ATTEMPTS):
            try:
                content = (link.parent / link.readlink()).resolve()
                stat = content.stat()
            except FileNotFoundError:
                if not link.is_symlink():
                    return None
                continue  # replaced between the two calls
            except OSError:
                return None
            etag, _, media_type = content.name.split(",", 2)
            return content, BlobInfo(key, stat.st_size, etag, stat.st_mtime_ns // 1_000, _unquoted(media_type))
        raise Unavailable(f"the content of {key} is missing", code="content_missing", key=key)

    async def _read(self, key: str, start: int, end: int | None, most: int | None) -> AsyncIterator[bytes]:
        file, size = await self._pool.run(self._open_content, key)
        try:
            stop = size if end is None else min(end, size)
            if start < 0 or (end is not None and end < start):
                raise Rejected(f"no range {start} to {end}", code="bad_range")
            if most is not None and stop - start > most:
                raise TooLarge(f"{stop - start} bytes at once, {most} are allowed; use stream")
            while start < stop:
                chunk = await self._pool.run(_pread, file, min(CHUNK_BYTES, stop - start), start)
                if not chunk:
                    raise Unavailable(f"{key} is cut short at {start}", code="content_missing", key=key)
                start += len(chunk)
                self._read_bytes += len(chunk)
                yield chunk
        finally:
            file.close()

    def _open_content(self, key: str) -> tuple[BinaryIO, int]:
        for _ in range(_ATTEMPTS):
            found = self._resolve(key)
            if found is None:
                raise NotFound(f"no object {key}", key=key)
            try:
                return found[0].open("rb"), found[1].size
            except FileNotFoundError:
                continue
        raise Unavailable(f"{key} is being replaced again and again", key=key)

    def _list(self, prefix: str, after: str, limit: int) -> list[str]:
        found: list[str] = []
        for key in _walk(str(self.root / "keys"), "", prefix, after):
            found.append(key)
            if len(found) == limit:
                break
        return found

    def _delete(self, key: str) -> None:
        check_key(key)
        link = self._link_path(key)
        content = _target(link)
        try:
            link.unlink()
        except (FileNotFoundError, NotADirectoryError):
            return
        _sync_folder(link.parent)
        if content is not None:
            content.unlink(missing_ok=True)
        folder = link.parent
        while folder != self.root / "keys":
            try:
                folder.rmdir()
            except OSError:
                break
            folder = folder.parent

    def _collect(self) -> int:
        links = (self._link_path(key) for key in _walk(str(self.root / "keys"), "", "", ""))
        named = frozenset(target.name for link in links if (target := _target(link)) is not None)
        return sum(self._sweep(folder, keep=named) for folder in (self.root / "content").iterdir())

    def _sweep(self, folder: Path, *, keep: frozenset[str]) -> int:
        oldest_s = clock.now_us() / 1e6 - LEFTOVER_S
        gone = 0
        for path in folder.iterdir():
            if path.name not in keep and path.lstat().st_ctime < oldest_s:
                path.unlink(missing_ok=True)
                gone += 1
        return gone

    def _link_path(self, key: str) -> Path:
        folders, _, name = key.rpartition("/")
        parts = [f"{part}~" for part in folders.split("/")] if folders else []
        return Path(self.root, "keys", *parts, name)


def check_key(key: str) -> None:
    """Raise Rejected for a key that is not letters, digits and `-_./=` in parts that are neither empty nor dots only."""
    if len(key) > KEY_CHARS_MAX or not _KEY.fullmatch(key) or any(not part.strip(".") for part in key.split("/")):
        raise Rejected(f"not a blob key: {key[:80]!r}", code="bad_key")
    if any(len(part) > 200 for part in key.split("/")):
        raise Rejected("a part of a blob key has at most 200 characters", code="bad_key")


def check_media_type(media_type: str) -> None:
    """Raise Rejected for what is no media type."""
    if not _MEDIA_TYPE.fullmatch(media_type):
        raise Rejected(f"not a media type: {media_type[:60]!r}", code="bad_media_type")


def _walk(folder: str, above: str, prefix: str, after: str) -> Iterator[str]:
    """Keys below `folder` in order, leaving out folders that cannot hold a wanted key."""
    try:
        names = os.listdir(folder)  # noqa: PTH208 - names only, this is the hot loop
    except FileNotFoundError:
        return
    for name in sorted(name.replace("~", "/") for name in names):
        key = above + name
        if not (key.startswith(prefix) or (name.endswith("/") and prefix.startswith(key))):
            continue
        if not name.endswith("/"):
            if key > after:
                yield key
        elif after < key or after.startswith(key):
            yield from _walk(f"{folder}/{name[:-1]}~", key, prefix, after)


def _chunks_of(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _pread(file: BinaryIO, count: int, offset: int) -> bytes:
    return os.pread(file.fileno(), count, offset)


def _target(link: Path) -> Path | None:
    try:
        return (link.parent / link.readlink()).resolve()
    except OSError:
        return None


def _quoted(media_type: str) -> str:
    return media_type.replace("/", "@").replace(";", "!").replace(" ", "")


def _unquoted(name: str) -> str:
    return name.replace("@", "/").replace("!", "; ")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

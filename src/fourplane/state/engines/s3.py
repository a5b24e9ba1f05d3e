"""Whole objects in a bucket: the `Blobs` contract on S3 or a server that speaks it, through obstore.

    s3://bucket/prefix?endpoint=https://host:port&region=us-east-1&ca=/path/to/ca.pem
    s3://KEY:SECRET@bucket ...     without them AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of the environment count

A PUT replaces an object as a whole, large files go up in parts and appear when the last one is there. The etag is the
server's and means nothing but equality. The time of a change is kept beside the object in microseconds (S3 has seconds).
S3 lists by folder here, so a prefix in the middle of a name lists its folder from there on and stops behind the prefix.

A request that finds nobody is tried again for `retry_s`, then raises Unavailable; the next one begins anew, so a server that was
killed and came back is found by itself. Bounds: `in_flight_max` requests, then Overloaded.
"""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec
import obstore
from obstore.exceptions import (
    BaseError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import S3Store

from fourplane.foundation import clock
from fourplane.foundation.errors import (
    Corrupt,
    FourplaneError,
    Misconfigured,
    NotFound,
    Overloaded,
    Rejected,
    TooLarge,
    Unavailable,
)
from fourplane.state.contracts import BlobInfo
from fourplane.state.embedded.blobs import CHUNK_BYTES, LISTED_MAX, WHOLE_BYTES_MAX, check_key, check_media_type

_MODIFIED = "modified-us"
_LETTERS = "-.0123456789=ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"
_NO_BUCKET = "NoSuchBucket"
_REFUSED = ("SignatureDoesNotMatch", "InvalidAccessKeyId", "AccessDenied", "InvalidToken")
_OPTIONS = {"endpoint", "region", "ca"}
_EXAMPLE = "an S3 URL looks like s3://KEY:SECRET@bucket?endpoint=https://host:9000&region=us-east-1"


class S3Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of one bucket."""

    in_flight_max: int = 256
    connect_s: float = 3.0
    timeout_s: float = 30.0
    retry_s: float = 3.0
    retries_max: int = 4
    part_bytes: int = 8 << 20
    parts_at_once: int = 4


class S3Statistics(msgspec.Struct, frozen=True):
    """One bucket since it was opened."""

    bucket: str
    puts: int
    gets: int
    read_bytes: int
    written_bytes: int
    in_flight: int
    failed: int
    unanswered: int  # requests that the server was away for, since it last answered one


class S3Blobs:
    """`Blobs` in one bucket, below the store's name."""

    def __init__(self, store: S3Store, bucket: str, prefix: str, settings: S3Settings) -> None:
        self._store = store
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._settings = settings
        self._puts = self._gets = self._read_bytes = self._written_bytes = self._in_flight = self._failed = 0
        self._unanswered = 0

    @classmethod
    async def open(cls, url: str, *, name: str, settings: S3Settings | None = None) -> "S3Blobs":
        """Look whether the bucket answers; raises Misconfigured (URL, key, bucket) or Unavailable."""
        bounds = settings or S3Settings()
        parts = urlsplit(url)
        options = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        if parts.scheme != "s3" or not parts.hostname or options.keys() - _OPTIONS:
            raise Misconfigured(_EXAMPLE, code="store_url")
        bucket = parts.netloc.rpartition("@")[2]
        prefix = "/".join(part for part in (parts.path.strip("/"), name) if part)
        blobs = cls(_store(bucket, parts.username, parts.password, options, bounds), bucket, prefix, bounds)
        await blobs.keys("", limit=1)
        return blobs

    async def put(self, key: str, content: bytes, *, media_type: str = "application/octet-stream") -> BlobInfo:
        if len(content) > WHOLE_BYTES_MAX:
            raise TooLarge(f"an object given whole has at most {WHOLE_BYTES_MAX} bytes; use put_file")
        return await self._put(key, content, len(content), media_type)

    async def put_file(self, key: str, path: Path, *, media_type: str = "application/octet-stream") -> BlobInfo:
        size = path.stat().st_size  # noqa: ASYNC240 - microseconds
        return await self._put(key, path, size, media_type)

    async def info(self, key: str) -> BlobInfo | None:
        check_key(key)
        try:
            async with self._turn(key):
                found = await obstore.get_async(self._store, self._prefix + key, options={"head": True})
        except NotFound:
            return None
        return _info(key, found)

    async def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        async with self._turn(key):
            found, stop = await self._found(key, start, end)
            if stop - start > WHOLE_BYTES_MAX:
                raise TooLarge(f"{stop - start} bytes at once, {WHOLE_BYTES_MAX} are allowed; use stream")
            content = b"" if found is None else bytes(await found.bytes_async())
        self._read_bytes += len(content)
        return content

    async def stream(self, key: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        async with self._turn(key):
            found, stop = await self._found(key, start, end)
            if found is None:
                return
            waiting = bytearray()
            async for part in found.stream(min_chunk_size=CHUNK_BYTES):
                waiting += part
                while len(waiting) >= CHUNK_BYTES:
                    yield bytes(waiting[:CHUNK_BYTES])
                    del waiting[:CHUNK_BYTES]
                    start += CHUNK_BYTES
                    self._read_bytes += CHUNK_BYTES
            if start + len(waiting) != stop:
                raise Corrupt(f"{key} is cut short at {start}", file=f"{self._bucket}/{key}", place=f"byte {start}")
            if waiting:
                self._read_bytes += len(waiting)
                yield bytes(waiting)

    async def keys(self, prefix: str, *, after: str = "", limit: int = 1_000) -> list[str]:
        if not 0 < limit <= LISTED_MAX:
            raise Rejected(f"a listing has 1 to {LISTED_MAX} keys, not {limit}", code="bad_limit")
        offset = max(after, _before(prefix))
        folder = self._prefix + prefix.rpartition("/")[0]
        found: list[str] = []
        async with self._turn(prefix):
            listing = obstore.list(
                self._store,
                folder.rstrip("/") or None,
                offset=self._prefix + offset if offset else None,
                chunk_size=min(limit, 1_000),
            )
            async for chunk in listing:
                for each in chunk:
                    key = each["path"].removeprefix(self._prefix)
                    if key.startswith(prefix) and key > after:
                        found.append(key)
                    elif key > prefix and not key.startswith(prefix):
                        return found
                    if len(found) == limit:
                        return found
        return found

    async def delete(self, key: str) -> None:
        check_key(key)
        try:
            async with self._turn(key):
                await obstore.delete_async(self._store, self._prefix + key)
        except NotFound:
            return  # some servers say so, S3 does not

    def statistics(self) -> S3Statistics:
        return S3Statistics(
            bucket=self._bucket,
            puts=self._puts,
            gets=self._gets,
            read_bytes=self._read_bytes,
            written_bytes=self._written_bytes,
            in_flight=self._in_flight,
            failed=self._failed,
            unanswered=self._unanswered,
        )

    async def close(self) -> None:
        """Connections belong to the client and end with it."""

    # ---- inside ----

    async def _put(self, key: str, content: bytes | Path, size: int, media_type: str) -> BlobInfo:
        check_key(key)
        check_media_type(media_type)
        modified_us = clock.now_us()
        async with self._turn(key):
            done = await obstore.put_async(
                self._store,
                self._prefix + key,
                content,
                attributes={"Content-Type": media_type, _MODIFIED: str(modified_us)},
                use_multipart=size > self._settings.part_bytes,
                chunk_size=self._settings.part_bytes,
                max_concurrency=self._settings.parts_at_once,
            )
        self._puts += 1
        self._written_bytes += size
        return BlobInfo(key, size, _plain(done["e_tag"]), modified_us, media_type)

    async def _found(self, key: str, start: int, end: int | None) -> tuple[Any, int]:
        """The answer to a GET, None where the range is empty, and the end of the range."""
        check_key(key)
        if start < 0 or (end is not None and end < start):
            raise Rejected(f"no range {start} to {end}", code="bad_range")
        self._gets += 1
        name = self._prefix + key
        if start == 0 and end is None:
            found = await obstore.get_async(self._store, name)
            return found, found.meta["size"]
        size = (await obstore.head_async(self._store, name))["size"]
        stop = size if end is None else min(end, size)
        if start >= stop:
            return None, start
        return await obstore.get_async(self._store, name, options={"range": (start, stop)}), stop

    def _turn(self, key: str) -> "_Turn":
        return _Turn(self, key)

    def begin(self) -> None:
        """Count a request under way; raises Overloaded."""
        if self._in_flight >= self._settings.in_flight_max:
            raise Overloaded(f"{self._in_flight} requests wait for S3", retry_after_s=0.2)
        self._in_flight += 1

    def finish(self, error: BaseException | None, key: str) -> None:
        """Count it off, and raise its error in our words."""
        self._in_flight -= 1
        if error is None:
            self._unanswered = 0
        if error is None or isinstance(error, FourplaneError):
            return
        said = str(error)
        if _NO_BUCKET in said:
            raise Misconfigured(
                f"the bucket {self._bucket} does not exist", code="s3_bucket", bucket=self._bucket
            ) from error
        if isinstance(error, NotFoundError | FileNotFoundError):
            raise NotFound(f"no object {key}", key=key) from error
        if isinstance(error, PermissionDeniedError | UnauthenticatedError) or any(code in said for code in _REFUSED):
            raise Misconfigured(
                f"S3 refused the key of the URL for the bucket {self._bucket}", code="s3_login"
            ) from error
        if "InvalidCertificate" in said:
            told = (
                f"the certificate of the S3 server of {self._bucket} is not trusted; name who signed it with &ca=FILE"
            )
            raise Misconfigured(told, code="certificate") from error
        if isinstance(error, BaseError | OSError | TimeoutError):
            self._failed += 1
            self._unanswered += 1
            raise Unavailable(
                f"S3 cannot be reached or failed: {self._bucket}", code="s3_unreachable", key=key
            ) from error


class _Turn:
    """One request: counted, bounded, its errors told in our words."""

    def __init__(self, blobs: S3Blobs, key: str) -> None:
        self._blobs = blobs
        self._key = key

    async def __aenter__(self) -> None:
        self._blobs.begin()

    async def __aexit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self._blobs.finish(error, self._key)


def _store(
    bucket: str, user: str | None, password: str | None, options: dict[str, str], settings: S3Settings
) -> S3Store:
    endpoint = options.get("endpoint", "")
    client: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=settings.connect_s),
        "timeout": timedelta(seconds=settings.timeout_s),
        "allow_http": endpoint.startswith("http://"),
    }
    config: dict[str, Any] = {"region": options.get("region", "us-east-1")}
    if endpoint:
        config["endpoint"] = endpoint
    if user:
        config["access_key_id"], config["secret_access_key"] = unquote(user), unquote(password or "")
    try:
        if options.get("ca"):
            client["root_certificate"] = Path(options["ca"]).read_bytes()
        return S3Store(
            bucket,
            config=cast("Any", config),
            client_options=cast("Any", client),
            retry_config={
                "max_retries": settings.retries_max,
                "retry_timeout": timedelta(seconds=settings.retry_s),
            },
        )
    except OSError as error:
        raise Misconfigured(
            f"cannot read the certificate {options['ca']}: {error.strerror}", code="store_url"
        ) from None
    except (BaseError, ValueError) as error:
        raise Misconfigured(_EXAMPLE, code="store_url") from error


def _info(key: str, found: Any) -> BlobInfo:
    meta, attributes = found.meta, found.attributes
    written = str(attributes.get(_MODIFIED, ""))
    modified_us = int(written) if written.isdigit() else int(meta["last_modified"].timestamp() * 1e6)
    media_type = str(attributes.get("Content-Type", "application/octet-stream"))
    return BlobInfo(key, meta["size"], _plain(meta["e_tag"]), modified_us, media_type)


def _plain(etag: str | None) -> str:
    return (etag or "").removeprefix("W/").strip('"')


def _before(prefix: str) -> str:
    """A name behind which every key with this prefix comes; the nearer the less is listed in vain."""
    smaller = [letter for letter in _LETTERS if prefix and letter < prefix[-1]]
    if not smaller:
        return ""
    return f"{prefix[:-1]}{smaller[-1]}zzzz"

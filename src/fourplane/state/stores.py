"""From a URL to an engine: the only place that knows which engine serves which contract.

    memory://                     sql, records, log, cache, blobs (none), search: gone with the process
    sqlite:///FOLDER              sql, records, log: one file `<contract>-<name>.db` each; FOLDER may be one `.db` file
    folder:///FOLDER              blobs: FOLDER/<name>
    s3://KEY:SECRET@bucket/prefix?endpoint=https://host:9000&region=..&ca=..    blobs: prefix/<name>/
    tantivy:///FOLDER             search: FOLDER/<name>
    redis://[:password@]host:port/db            cache, keys prefixed with the name (rediss://..?ca=FILE with TLS)
    postgresql://user:password@host:port/db     sql, in a schema called like the name; records, in `r_` and the name
                                                (with TLS: ?sslmode=verify-full&sslrootcert=FILE)

`{data}` in a URL stands for the data folder. Three slashes and a name are relative to the working directory, four absolute.
"""

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol, TypeVar, cast
from urllib.parse import urlsplit

import msgspec

from fourplane.foundation.errors import FourplaneError, Misconfigured
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Registry
from fourplane.state import store_metrics
from fourplane.state.contracts import Blobs, Cache, EventLog, Records, Search, Sql
from fourplane.state.embedded import event_log
from fourplane.state.embedded.blobs import EmbeddedBlobs
from fourplane.state.embedded.cache import CacheSettings, EmbeddedCache
from fourplane.state.embedded.database import Database, DatabaseSettings
from fourplane.state.embedded.event_log import EmbeddedEventLog
from fourplane.state.embedded.records import EmbeddedRecords
from fourplane.state.embedded.sql import EmbeddedSql
from fourplane.state.embedded.vfs import Disk, Faults

T = TypeVar("T")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,59}")


class StoresSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A URL per contract; `overrides` has one for a single store, such as `{"sql.commerce": "postgresql://..."}`."""

    sql: str = "sqlite:///{data}/state"
    records: str = "sqlite:///{data}/state"
    log: str = "sqlite:///{data}/state"
    cache: str = "memory://"
    blobs: str = "folder:///{data}/blobs"
    search: str = "tantivy:///{data}/search"
    overrides: dict[str, str] = {}
    database: DatabaseSettings = DatabaseSettings()
    memory_cache: CacheSettings = CacheSettings()


class Engine(Protocol):
    """What every engine offers besides its contract."""

    def statistics(self) -> msgspec.Struct: ...
    async def close(self) -> None: ...


class Stores:
    """Opens stores by name, remembers them, and closes them last opened first. Opening a name again returns the same store."""

    def __init__(
        self, settings: StoresSettings | None = None, *, data: Path = Path("data"), disk: Disk | None = None
    ) -> None:
        self._settings = settings or StoresSettings()
        self._data = data
        self._disk = disk
        self._disks: list[Disk] = []  # under every database that was opened
        self._open: dict[str, Engine] = {}
        self._registry: Registry | None = None

    async def sql(self, name: str) -> Sql:
        """The relational store called `name`."""
        return cast("Sql", await self._once("sql", name, self._settings.sql, self._open_sql))

    async def records(self, name: str) -> Records:
        """The wide-row store called `name`."""
        return cast("Records", await self._once("records", name, self._settings.records, self._open_records))

    async def log(self, name: str) -> EventLog:
        """The event log called `name`."""
        return cast("EventLog", await self._once("log", name, self._settings.log, self._open_log))

    async def cache(self, name: str) -> Cache:
        """The cache called `name`."""
        return cast("Cache", await self._once("cache", name, self._settings.cache, self._open_cache))

    async def blobs(self, name: str) -> Blobs:
        """The object store called `name`."""
        return cast("Blobs", await self._once("blobs", name, self._settings.blobs, self._open_blobs))

    async def search(self, name: str) -> Search:
        """The search index called `name`."""
        return cast("Search", await self._once("search", name, self._settings.search, self._open_search))

    async def rows(self, contract: str, name: str) -> Sql:
        """The tables under a store of rows on a relational server, for moving it there; the caller closes nothing."""
        if contract == "sql":
            return await self.sql(name)
        await self.records(name)  # makes its table
        url = self._settings.overrides.get(f"records.{name}", self._settings.records)
        return cast("Sql", await self._once("rows", f"r_{name}", url, self._open_sql))

    async def start(self, tasks: Tasks) -> None:
        """Stores open when asked for."""

    async def drain(self) -> None:
        """Nothing to finish: whoever wrote has waited."""

    async def stop(self) -> None:
        """Close everything, last opened first; the first error is raised when all had their turn."""
        failed: Exception | None = None
        while self._open:
            key = next(reversed(self._open))
            try:
                await self._open[key].close()
            except (FourplaneError, OSError) as error:
                failed = failed or error
            self._open.pop(key, None)
        self._disks.clear()
        if failed is not None:
            raise failed

    def spoil(self, *, free_bytes: int | None = None, stall_s: float = 0.0) -> None:
        """Let the disk of the embedded engines be full, or its next job slow, until `heal`: what an experiment wishes."""
        for disk in self._disks:
            if disk.faults is None:
                disk.faults = Faults(free_bytes=free_bytes)
            disk.faults.stall_s = stall_s

    def heal(self) -> None:
        """The disk is whole again."""
        for disk in self._disks:
            disk.faults = None
            disk.unlearn()

    def register(self, registry: Registry) -> None:
        """Show every store opened so far, and those opened later, as `fourplane_state_*` with a label `store`."""
        self._registry = registry
        for key, engine in self._open.items():
            store_metrics.register(registry, key, engine.statistics)

    def statistics(self) -> dict[str, msgspec.Struct]:
        """The statistics of every open store by `contract.name`."""
        return {key: engine.statistics() for key, engine in self._open.items()}

    async def _once(
        self, contract: str, name: str, url: str, opener: Callable[[str, str], Awaitable[Engine]]
    ) -> Engine:
        key = f"{contract}.{name}"
        if not _NAME.fullmatch(name):
            raise Misconfigured(f"not a store name: {name[:80]!r}", code="store_name")
        found = self._open.get(key)
        if found is None:
            chosen = self._settings.overrides.get(key, url)
            found = await opener(name, chosen.replace("{data}", str(self._data.absolute())))
            self._open[key] = found
            if self._registry is not None:
                store_metrics.register(self._registry, key, found.statistics)
        return found

    async def _open_sql(self, name: str, url: str) -> Engine:
        match urlsplit(url).scheme:
            case "memory" | "sqlite":
                return EmbeddedSql(await self._database("sql", name, url, self._settings.database))
            case "postgresql":
                from fourplane.state.engines.postgres import PostgresSql  # noqa: PLC0415 - an extra, only where asked for

                return await PostgresSql.open(url, schema=name)
        raise _no_engine("sql", url)

    async def _open_records(self, name: str, url: str) -> Engine:
        match urlsplit(url).scheme:
            case "memory" | "sqlite":
                return await EmbeddedRecords(await self._database("records", name, url, self._settings.database)).open()
            case "postgresql":
                from fourplane.state.engines.postgres import PostgresSql  # noqa: PLC0415 - an extra, only where asked for
                from fourplane.state.engines.sql_records import SqlRecords  # noqa: PLC0415 - the same

                return await SqlRecords(await PostgresSql.open(url, schema=f"r_{name}")).open()
        raise _no_engine("records", url)

    async def _open_log(self, name: str, url: str) -> Engine:
        match urlsplit(url).scheme:
            case "memory" | "sqlite":
                return await EmbeddedEventLog(await self._database("log", name, url, event_log.SETTINGS)).open()
        raise _no_engine("log", url)

    async def _open_cache(self, name: str, url: str) -> Engine:
        match urlsplit(url).scheme:
            case "memory":
                return EmbeddedCache(self._settings.memory_cache)
            case "redis" | "rediss":
                from fourplane.state.engines.redis import RedisCache  # noqa: PLC0415 - an extra, only where asked for

                return await RedisCache.open(url, prefix=f"{name}:")
        raise _no_engine("cache", url)

    async def _open_blobs(self, name: str, url: str) -> Engine:
        match urlsplit(url).scheme:
            case "folder":
                return await EmbeddedBlobs(_path(url) / name).open()
            case "s3":
                from fourplane.state.engines.s3 import S3Blobs  # noqa: PLC0415 - an extra, only where asked for

                return await S3Blobs.open(url, name=name)
        raise _no_engine("blobs", url)

    async def _open_search(self, name: str, url: str) -> Engine:
        match urlsplit(url).scheme:
            case "memory":
                from fourplane.state.embedded.memory_search import MemorySearch  # noqa: PLC0415 - only where asked for

                return MemorySearch()
            case "tantivy":
                from fourplane.state.embedded.search import TantivySearch  # noqa: PLC0415 - loads a large library

                return await TantivySearch(_path(url) / name).open()
        raise _no_engine("search", url)

    async def _database(self, contract: str, name: str, url: str, settings: DatabaseSettings) -> Database:
        if urlsplit(url).scheme == "memory":
            return await Database(None, settings=settings).open()
        path = _path(url)
        if path.suffix != ".db":
            path /= f"{contract}-{name}.db"
        opened = await Database(path, disk=self._disk, settings=settings).open()
        if opened.disk is not None:
            self._disks.append(opened.disk)
        return opened


def _path(url: str) -> Path:
    """The path behind `scheme:///`; raises Misconfigured where there is none."""
    _, _, rest = url.partition(":///")
    if not rest:
        raise Misconfigured(f"{url} names no path; write for example sqlite:///data/state", code="store_url")
    return Path(rest)


def _no_engine(contract: str, url: str) -> Misconfigured:
    scheme = urlsplit(url).scheme
    return Misconfigured(f"no engine for {contract} behind {scheme or url[:40]!r}", code="store_url", contract=contract)

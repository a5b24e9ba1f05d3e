"""A deployment's stores carried to servers: passes while it runs, one last pass in the window, proof, then the switch.

`RowsMover` carries SQL and records to PostgreSQL (`moving` has the mechanism), `BlobsMover` objects to S3: an object counts as
there when its size is right and it is not older; the proof reads every object back and compares SHA-256 with the folder's own.
The event log and the search index stay where they are, a cache starts empty.
"""

import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, Misconfigured
from fourplane.state.contracts import BlobInfo, Blobs, Sql
from fourplane.state.embedded.blobs import EmbeddedBlobs
from fourplane.state.embedded.records import EmbeddedRecords
from fourplane.state.moving import Moved, Proof, SourceFile, copy_table, make_tables, prove, remove_gone, source_files
from fourplane.state.stores import Stores

Show = Callable[[float, str], None]
KEYS_AT_ONCE = 500


class Mover(Protocol):
    """What a move consists of, whatever is moved."""

    async def one_pass(self, show: Show, *, final: bool = False) -> list[Moved]: ...
    async def settle(self) -> None:
        """With nobody writing: bring what is still in journals into the tables."""

    async def proofs(self, show: Show) -> list[Proof]: ...


TELLING = 0.05  # a smaller share says nothing of how long the rest takes


class _Share:
    """How far a pass is, and for how long it still goes on."""

    def __init__(self, total: int, what: str, show: Show) -> None:
        self._total = max(1, total)
        self._what = what
        self._show = show
        self._done = 0
        self._began = clock.monotonic_s()

    def add(self, count: int) -> None:
        self._done += count
        spent_s = clock.monotonic_s() - self._began
        self._show(min(1.0, self._done / self._total), progress(self._what, self._done, self._total, spent_s))


def progress(what: str, done: int, total: int, spent_s: float) -> str:
    """How far a pass is; how long the rest takes too, once enough is done to tell and while it is a second or more."""
    share = done / total
    told = f"{what}: {done:,} of {total:,}"
    if share < TELLING or (left_s := spent_s / share - spent_s) < 1.0:
        return told
    return f"{told}, about {left_s:.0f} s left"


class RowsMover:
    """SQL and records of one folder, to the relational server `to` opens."""

    def __init__(self, folder: Path, source: Stores, to: Stores) -> None:
        self._folder = folder
        self._source = source
        self._to = to

    async def one_pass(self, show: Show, *, final: bool = False) -> list[Moved]:
        """Compare and copy every table of every store."""
        found = await self._opened()
        share = _Share(sum(file.count(table) for file, _ in found for table in file.tables), "rows", show)
        moved: list[Moved] = []
        try:
            for file, target in found:
                await make_tables(file, target)
                for table in file.tables:  # in the order they were made: parents first
                    done = await copy_table(file, table, target, told=share.add, final=final)
                    moved.append(done)
                for table, done in zip(reversed(file.tables), reversed(moved), strict=False):
                    try:
                        done.removed = await remove_gone(file, table, target)
                    except Conflict:
                        if final:
                            raise
        finally:
            _close(found)
        return moved

    async def settle(self) -> None:
        """Open every store once: logs are folded, journals too, damage is told."""
        for contract, name, _ in source_files(self._folder):
            if contract == "records":
                records = await self._source.records(name)
                assert isinstance(records, EmbeddedRecords)
                await records.fold()
            else:
                await self._source.sql(name)
        await self._source.stop()

    async def proofs(self, show: Show) -> list[Proof]:
        """Counts and checksums of every table, both sides; raises Conflict where they differ."""
        found = await self._opened()
        tables = [(file, table, target) for file, target in found for table in file.tables]
        share = _Share(len(tables), "tables compared", show)
        proofs = []
        try:
            for file, table, target in tables:
                proofs.append(await prove(file, table, target))
                share.add(1)
        finally:
            _close(found)
        return proofs

    async def _opened(self) -> list[tuple[SourceFile, Sql]]:
        files = source_files(self._folder)
        if not files:
            raise Misconfigured(f"no stores of rows in {self._folder}", code="no_source")
        return [
            (SourceFile(path, f"{contract}.{name}"), await self._to.rows(contract, name))
            for contract, name, path in files
        ]


class BlobsMover:
    """Objects of every store in a folder, to the bucket `to` opens."""

    def __init__(self, folder: Path, source: Stores, to: Stores) -> None:
        self._folder = folder
        self._source = source
        self._to = to

    async def one_pass(self, show: Show, *, final: bool = False) -> list[Moved]:  # noqa: ARG002 - the same in every pass
        """Copy what is missing or older there, remove what is gone here."""
        moved = []
        for name in self._names():
            here, there = await self._source.blobs(name), await self._to.blobs(name)
            assert isinstance(here, EmbeddedBlobs)
            done = Moved(f"blobs.{name}", "objects")
            keys = [key async for key in _all_keys(here)]
            share = _Share(len(keys), f"objects of {name}", show)
            for key in keys:
                done.rows += 1
                wanted, known = await here.info(key), await there.info(key)
                path = here.local_path(key)
                if wanted is not None and path is not None and not _same(wanted, known):
                    await there.put_file(key, path, media_type=wanted.media_type)
                    done.written += 1
                share.add(1)
            present = set(keys)
            async for key in _all_keys(there):
                if key not in present and await here.info(key) is None:
                    await there.delete(key)
                    done.removed += 1
            moved.append(done)
        return moved

    async def settle(self) -> None:
        """Objects are whole at any time."""

    async def proofs(self, show: Show) -> list[Proof]:
        """Every object read back; raises Conflict where one differs."""
        proofs = []
        for name in self._names():
            here, there = await self._source.blobs(name), await self._to.blobs(name)
            keys = [key async for key in _all_keys(here)]
            share = _Share(len(keys), f"objects of {name} read back", show)
            total = hashlib.sha256()
            if keys != [key async for key in _all_keys(there)]:
                raise Conflict(f"blobs.{name}: other keys there than here", code="not_equal", store=f"blobs.{name}")
            for key in keys:
                wanted, digest = await here.info(key), hashlib.sha256()
                async for chunk in there.stream(key):
                    digest.update(chunk)
                if wanted is None or wanted.etag != digest.hexdigest():
                    raise Conflict(f"blobs.{name}: {key} differs", code="not_equal", store=f"blobs.{name}", key=key)
                total.update(digest.digest())
                share.add(1)
            proofs.append(Proof(f"blobs.{name}", "objects", len(keys), total.hexdigest()[:16]))
        return proofs

    def _names(self) -> list[str]:
        names = sorted(path.name for path in self._folder.iterdir() if path.is_dir()) if self._folder.is_dir() else []
        if not names:
            raise Misconfigured(f"no stores of objects in {self._folder}", code="no_source")
        return names


async def _all_keys(blobs: Blobs) -> AsyncIterator[str]:
    after = ""
    while page := await blobs.keys("", after=after, limit=KEYS_AT_ONCE):
        for key in page:
            yield key
        after = page[-1]


def _same(wanted: BlobInfo, known: BlobInfo | None) -> bool:
    return (
        known is not None
        and (known.size, known.media_type) == (wanted.size, wanted.media_type)
        and known.modified_us >= wanted.modified_us
    )


def _close(found: list[tuple[SourceFile, Sql]]) -> None:
    for file, _ in found:
        file.close()

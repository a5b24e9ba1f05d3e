"""The streaming system: a studio file becomes a film on every screen.

Its rooms: `jobs` encode, `packaging` publishes, `origin` answers paths, `delivery` runs the cache nodes, `playback` signs
addresses, `quality` listens to players. This module makes them a part of the process and tells the console what they are.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from fourplane.control.nodes import Node
from fourplane.edge.cache_node import CacheStatistics
from fourplane.edge.routes import Door
from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError, Rejected
from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Registry
from fourplane.service.tokens import Signer
from fourplane.state.contracts import Blobs, Search, Sql
from fourplane.state.schema import ensure
from fourplane.streaming import ffmpeg
from fourplane.streaming.about import About
from fourplane.streaming.api import Api
from fourplane.streaming.diagram import nodes_of
from fourplane.streaming.file_names import Named, films, named
from fourplane.streaming.jobs import ENDED, JobStatistics
from fourplane.streaming.playback import Entitlement
from fourplane.streaming.quality import QualityStatistics
from fourplane.streaming.schema import METADATA, MIGRATIONS
from fourplane.streaming.settings import StreamingSettings
from fourplane.streaming.system import StreamingRooms, everybody

Told = Callable[[dict[str, Any]], None]
TELL_EVERY_S = 0.25


class StreamingStatistics(msgspec.Struct, frozen=True):
    """What streaming does now."""

    quality: QualityStatistics
    jobs: JobStatistics
    nodes: dict[str, CacheStatistics]
    origin_requests: int
    origin_bytes: int


class ImportedVideo(msgspec.Struct, frozen=True):
    """What an import made."""

    title: str
    name: str
    duration_s: float
    rungs: int
    height: int
    bytes: int
    took_s: float
    page: str


class ImportedFolder(msgspec.Struct, frozen=True):
    """What an import of a folder made; `failed` names each file that could not be read with its fault."""

    imported: int
    duration_s: float
    bytes: int
    took_s: float
    page: str
    failed: list[str] = []


class Streaming:
    """The system as a lifecycle part; `import_file` is the verb `import video`."""

    def __init__(
        self,
        settings: StreamingSettings,
        *,
        sql: Sql,
        blobs: Blobs,
        signer: Signer,
        ids: IdGenerator,
        registry: Registry,
        sockets: Mapping[str, socket.socket] | None = None,
        entitlement: Entitlement = everybody,
        search: Search | None = None,
        data: Path = Path("data"),
    ) -> None:
        self._sql = sql
        cache = None if settings.cache_folder is None else data / settings.cache_folder
        settings = msgspec.structs.replace(
            settings, folder=data / settings.folder, cache_folder=cache, cdn=settings.tree()
        )
        self.rooms = StreamingRooms(
            settings,
            sql=sql,
            blobs=blobs,
            signer=signer,
            id_generator=ids,
            registry=registry,
            sockets=sockets or {},
            entitlement=entitlement,
            search=search,
        )
        self._api = Api(self.rooms)

    async def start(self, tasks: Tasks) -> None:
        """Bring the tables up, listen on origin and nodes, take up waiting imports."""
        await ensure(self._sql, "streaming", METADATA, MIGRATIONS)
        await self.rooms.finder.rebuild()
        await self.rooms.delivery.start(tasks)
        tasks.start(self.rooms.jobs.run(), "encoder")
        tasks.start(self.rooms.fill.run(), "fill")
        tasks.start(self.rooms.titles.keep_plays(), "plays")
        tasks.start(self.rooms.positions.keep(), "positions")

    async def drain(self) -> None:
        """Finish the answers under way."""
        await self.rooms.delivery.drain()
        await self.rooms.titles.store_plays()
        await self.rooms.positions.store()

    async def stop(self) -> None:
        """Release ports; a running encode is queued again at the next start."""
        await self.rooms.delivery.stop()
        self.rooms.uploads.close()
        self.rooms.jobs.close()

    def doors(self) -> list[Door]:
        return self._api.doors()

    def nodes(self) -> list[Node]:
        return nodes_of(self.rooms)

    def statistics(self) -> StreamingStatistics:
        rooms = self.rooms
        return StreamingStatistics(
            rooms.quality.statistics(clock.monotonic_s()),
            rooms.jobs.statistics(),
            {name: node.statistics() for name, node in rooms.delivery.nodes.items()},
            rooms.delivery.origin_requests,
            rooms.delivery.origin_bytes,
        )

    @staticmethod
    def ports(settings: StreamingSettings) -> list[tuple[str, str, int, str]]:
        """(name in `sockets`, host, port, setting) of every port the system listens on."""
        listed = [("origin", settings.host, settings.origin_port, "streaming.origin_port")]
        return listed + [(f"cdn-{node.id}", settings.host, node.port, "streaming.cdn_port") for node in settings.tree()]

    @property
    def cdn_port(self) -> int:
        """The port of the first cache node."""
        return next(iter(self.rooms.delivery.nodes.values())).port

    async def import_file(self, file: Path, progress: Told, *, dry_run: bool = False) -> ImportedVideo | ImportedFolder:
        """Encode a video, or all of a folder, and publish; a title of the same name gets a new version.

        Raises the fault of the input; one broken film does not keep a folder's others out.
        """
        if file.is_dir():  # noqa: ASYNC240 - one look at a local file
            return await self._import_folder(file, progress, dry_run=dry_run)
        return await self._import_one(file, named(file), progress, dry_run=dry_run)

    async def _import_folder(self, folder: Path, progress: Told, *, dry_run: bool) -> ImportedFolder:
        began_s, found = clock.monotonic_s(), films(folder)
        made: list[ImportedVideo] = []
        failed: list[FourplaneError] = []
        said: list[str] = []
        for number, file in enumerate(found):

            def told(facts: dict[str, Any], number: int = number, file: Path = file) -> None:
                share = (number + float(facts.get("share", 0.0))) / len(found)
                progress(
                    {"share": share, "text": f"{number + 1} of {len(found)}, {file.name}: {facts.get('text', '')}"}
                )

            try:
                made.append(await self._import_one(file, named(file, folder), told, dry_run=dry_run))
            except FourplaneError as error:
                failed.append(error)
                said.append(f"{file.relative_to(folder)}: {error.message}")
        if not made:
            raise failed[0]
        return ImportedFolder(
            len(made),
            round(sum(one.duration_s for one in made), 2),
            sum(one.bytes for one in made),
            round(clock.monotonic_s() - began_s, 1),
            "/streaming/",
            said,
        )

    async def _import_one(self, file: Path, said: Named, progress: Told, *, dry_run: bool) -> ImportedVideo:
        began_s = clock.monotonic_s()
        if dry_run:
            encoder = await ffmpeg.find(self.rooms.settings.ffmpeg)
            found = await encoder.probe(file)
            return ImportedVideo("", said.name, found.duration_s, 0, found.height, 0, 0.0, "")
        before = await self.rooms.titles.by_name(said.name, said.about)
        job = await self.rooms.submit(file, said.name, replace="" if before is None else before.id)
        if before is None and said.about != About():
            await self.rooms.titles.describe(job.title, said.name, "", said.about)
        while job.state not in ENDED:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TELL_EVERY_S):
                    job = await self.rooms.jobs.wait_ended(job.id)
                    break
            job = await self.rooms.jobs.get(job.id)
            now = job.progress
            if now is not None:
                left = f", {now.remaining_s:.0f} s left" if now.remaining_s is not None else ""
                pace = f", {now.speed:.1f}x" if now.speed else ""
                progress({"share": now.share, "text": f"{now.step}{pace}{left}"})
        if job.state != "done":
            raise Rejected(job.said or f"the import was {job.state}", code=job.error or job.state)
        title = await self.rooms.titles.get(job.title)
        took_s = clock.monotonic_s() - began_s
        return ImportedVideo(
            title.id,
            title.name,
            round(title.duration_s, 2),
            title.rungs,
            title.height,
            title.bytes,
            round(took_s, 1),
            f"/streaming/watch/{title.id}",
        )

    async def ensure_title(self, *, duration_s: float = 20.0, size: str = "1280x720") -> str:
        """The id of a title that can be played; without any, a generated clip is encoded first."""
        for title in await self.rooms.titles.all():
            if title.version:
                return title.id
        job = await self.rooms.jobs.wait_ended((await self.rooms.test_title(duration_s=duration_s, size=size)).id)
        if job.state != "done":
            raise Rejected(job.said or f"the import was {job.state}", code=job.error or job.state)
        return job.title


__all__ = ["ImportedFolder", "ImportedVideo", "Streaming", "StreamingSettings", "StreamingStatistics"]

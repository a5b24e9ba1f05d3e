"""The rooms of streaming, made once and handed to doors, diagram and crowd."""

import socket
from collections.abc import Mapping
from pathlib import Path

from fourplane.control.nodes import Switch
from fourplane.edge.routes import Identity
from fourplane.foundation import ids
from fourplane.foundation.errors import FourplaneError
from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.telemetry import Histogram, Registry
from fourplane.service.tokens import Signer
from fourplane.state.contracts import Blobs, Search, Sql
from fourplane.streaming import ffmpeg
from fourplane.streaming.clip import generate_clip
from fourplane.streaming.delivery import Delivery
from fourplane.streaming.finding import TitleFinder
from fourplane.streaming.jobs import Job, Jobs
from fourplane.streaming.origin import Origin
from fourplane.streaming.playback import Entitlement, MediaGuard, Playback
from fourplane.streaming.positions import Positions
from fourplane.streaming.proactive_fill import ProactiveFill
from fourplane.streaming.quality import Quality
from fourplane.streaming.settings import StreamingSettings
from fourplane.streaming.titles import Title, Titles
from fourplane.streaming.uploads import Uploads


async def everybody(identity: Identity | None, title: Title) -> None:
    """The entitlement of a deployment without billing: whoever comes may watch."""


class StreamingRooms:
    """Everything streaming is made of."""

    def __init__(
        self,
        settings: StreamingSettings,
        *,
        sql: Sql,
        blobs: Blobs,
        signer: Signer,
        id_generator: IdGenerator,
        registry: Registry,
        sockets: Mapping[str, socket.socket],
        entitlement: Entitlement,
        search: Search | None = None,
    ) -> None:
        self.settings = settings
        self.registry = registry
        self.titles = Titles(sql, id_generator)
        self.finder = TitleFinder(self.titles, search)
        self.positions = Positions(sql)
        self.jobs = Jobs(
            settings,
            sql=sql,
            blobs=blobs,
            titles=self.titles,
            ids=id_generator,
            registry=registry,
            published=self.finder.changed,
        )
        self.uploads = Uploads(settings)
        self.origin = Origin(blobs)
        self.quality = Quality(sessions_max=settings.sessions_max, idle_s=settings.session_idle_s)
        self.guard = MediaGuard(signer)
        self.delivery = Delivery(settings, origin=self.origin, guard=self.guard, registry=registry, sockets=sockets)
        self.fill = ProactiveFill(
            settings,
            titles=self.titles,
            origin=self.origin,
            delivery=self.delivery,
            signer=signer,
            registry=registry,
        )
        self.play_switch = Switch("playback")
        self.studio_switch = Switch("studio")
        self.play_seconds = Histogram()
        self.playback = Playback(
            settings,
            titles=self.titles,
            origin=self.origin,
            signer=signer,
            quality=self.quality,
            nodes=self.delivery.seen,
            ports=_Ports(self.delivery),
            entitlement=entitlement,
            positions=self.positions,
        )

    async def submit(
        self, file: Path, name: str, description: str = "", *, replace: str = "", owned: bool = False
    ) -> Job:
        """Queue the import of a file as a new title, or as the next version of `replace`; a refused file leaves no title."""
        made = not replace
        title = await self.titles.get(replace) if replace else await self.titles.create(name, description)
        try:
            return await self.jobs.submit(file, title, owned=owned)
        except FourplaneError:
            if made:
                await self.titles.remove(title.id)
            if owned:
                file.unlink(missing_ok=True)  # noqa: ASYNC240 - one system call
            raise

    async def test_title(self, *, duration_s: float = 20.0, size: str = "1280x720") -> Job:
        """Queue a generated clip (colours, a clock, a chord) as a title, for a deployment that has no film."""
        encoder = await ffmpeg.find(self.settings.ffmpeg)
        file = self.settings.folder / "uploads" / ids.capability() / "Living colours.mp4"
        file.parent.mkdir(parents=True, exist_ok=True)
        shown_s = min(duration_s, self.settings.encoding.duration_s_max or duration_s)
        await generate_clip(encoder, file, duration_s=shown_s, size=size)
        return await self.submit(
            file, "Living colours", "Slow colours, a living automaton and a clock, drawn by ffmpeg.", owned=True
        )


class _Ports(Mapping[str, int]):
    """The ports of the nodes as they are now: they are only known once the nodes listen."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery

    def __getitem__(self, name: str) -> int:
        return self._delivery.nodes[name].port

    def __iter__(self):  # type: ignore[no-untyped-def] # noqa: ANN204 - of Mapping
        return iter(self._delivery.nodes)

    def __len__(self) -> int:
        return len(self._delivery.nodes)

"""The HTTP doors of streaming: browse, play, steer, report, upload, jobs, delivery; and the pages."""

from pathlib import Path

import msgspec

from fourplane.edge.routes import Access, Call, Door, Priority, Reply, Route, StaticFolder
from fourplane.edge.steering import isp_of
from fourplane.foundation import clock
from fourplane.foundation.errors import NotFound, Rejected
from fourplane.streaming.about import About
from fourplane.streaming.cmcd import CmcdStatistics
from fourplane.streaming.encode_plan import CAPTIONS_MAX
from fourplane.streaming.file_names import named
from fourplane.streaming.jobs import Job
from fourplane.streaming.playback import Play
from fourplane.streaming.positions import resume_at
from fourplane.streaming.proactive_fill import FillStatistics
from fourplane.streaming.quality import Beacon, QualityStatistics
from fourplane.streaming.system import StreamingRooms
from fourplane.streaming.titles import Title

STATIC = Path(__file__).parent / "static"
REGIONS = ("us", "eu", "asia")
PATH_MAX = 1_000
STEERING_TYPE = "application/vnd.apple.steering-list"


class PlayAsked(msgspec.Struct, frozen=True):
    title: str
    region: str = "us"
    isp: str = ""


class StartAsked(PlayAsked, frozen=True):
    at_s: float = 0.0  # where the viewer stopped, as this browser remembers
    language: str = ""  # of the sound


class UploadAsked(msgspec.Struct, frozen=True):
    name: str
    size: int


class CaptionAsked(msgspec.Struct, frozen=True):
    language: str
    text: str  # WebVTT or SubRip
    kind: str = "vtt"


class ImportAsked(msgspec.Struct, frozen=True):
    name: str = ""  # empty: what the file's name says
    path: str = ""  # of the file below the folder it was dropped with, which may say series and season
    captions: list[CaptionAsked] = []
    description: str = ""
    replace: str = ""  # a title whose next version this is


class DescribeAsked(msgspec.Struct, frozen=True):
    name: str
    description: str = ""
    about: About = About()


class TitleList(msgspec.Struct, frozen=True):
    titles: list[Title]


class Begun(msgspec.Struct, frozen=True):
    title: Title
    at_s: float


class BegunList(msgspec.Struct, frozen=True):
    begun: list[Begun]


class JobList(msgspec.Struct, frozen=True):
    jobs: list[Job]


class UploadState(msgspec.Struct, frozen=True):
    id: str
    offset: int
    size: int


class TrackFacts(msgspec.Struct, frozen=True):
    name: str
    kind: str
    codec: str
    width: int
    height: int
    peak_bps: int
    average_bps: int
    segments: int
    language: str = ""
    vmaf: float = 0.0


class TitleFacts(msgspec.Struct, frozen=True):
    title: Title
    tracks: list[TrackFacts]
    captions: list[str] = []
    at_s: float = 0.0  # where this account stopped
    episodes: list[Title] = []  # of the same series, in order


class RegionAsked(msgspec.Struct, frozen=True):
    evacuated: bool


class NodeFacts(msgspec.Struct, frozen=True):
    id: str
    region: str
    parent: str
    port: int
    on: bool
    evacuated: bool
    requests: int
    hits: int
    hit_ratio: float
    bytes_out: int
    bytes_filled: int
    bytes_stored: int
    bytes_max: int
    entries: int
    connections: int


class DeliveryFacts(msgspec.Struct, frozen=True):
    nodes: list[NodeFacts]
    origin_requests: int
    origin_bytes: int
    fill: FillStatistics
    quality: QualityStatistics
    cost: float
    cmcd: CmcdStatistics


class Api:
    """Handlers over the rooms of streaming."""

    def __init__(self, rooms: StreamingRooms) -> None:
        self._rooms = rooms
        self._pages: dict[str, bytes] = {}

    def doors(self) -> list[Door]:
        """Every route of the system and its static files."""
        base = "/streaming/api"
        play, bulk = Priority.CRITICAL, Priority.BULK
        staff: Access = "operator"
        return [
            Route("GET", "/streaming/", self._page("index.html"), "browse and watch"),
            Route("GET", "/streaming/watch/{title}", self._page("index.html"), "watch one title"),
            Route("GET", "/streaming/title/{title}", self._page("index.html"), "about one title"),
            Route("GET", "/streaming/studio", self._page("studio.html"), "upload films and follow their encoding"),
            Route("GET", "/streaming/cdn", self._page("cdn.html"), "the delivery tree, live"),
            Route("GET", f"{base}/titles", self.titles, "titles: ?q=words&genre=&region=", answer=TitleList),
            Route("GET", f"{base}/continue", self.begun, "what you began", answer=BegunList),
            Route("GET", f"{base}/titles/{{title}}", self.title, "one title and its ladder", answer=TitleFacts),
            Route("GET", f"{base}/titles/{{title}}/poster.jpg", self.poster, "its poster"),
            Route("POST", f"{base}/play", self.play, "play a title", body=PlayAsked, answer=Play, priority=play),
            Route(
                "POST",
                f"{base}/start",
                self.start,
                "play a title whose first segments come along (length, JSON, bytes)",
                body=StartAsked,
                priority=play,
            ),
            Route(
                "GET", f"{base}/sessions/{{session}}/master.m3u8", self.steered, "the steered playlist", priority=play
            ),
            Route(
                "GET", f"{base}/sessions/{{session}}/manifest.mpd", self.steered_dash, "the steered MPD", priority=play
            ),
            Route(
                "GET", f"{base}/sessions/{{session}}/steering", self.steering, "the steering manifest", priority=play
            ),
            Route("POST", f"{base}/beacons", self.beacon, "what a player measured", body=Beacon, priority=bulk),
            Route("GET", f"{base}/delivery", self.delivery, "nodes, quality and cost", answer=DeliveryFacts),
            Route("POST", f"{base}/fill", self.fill, "fill the nodes ahead now", access=staff, answer=FillStatistics),
            Route(
                "POST",
                f"{base}/regions/{{region}}",
                self.region,
                "evacuate a region, or let its viewers back",
                access=staff,
                body=RegionAsked,
                answer=DeliveryFacts,
            ),
            *self._studio_doors(base),
            StaticFolder("/streaming/static/", STATIC),
        ]

    def _studio_doors(self, base: str) -> list[Door]:
        """Uploads and encodes: the staff's."""
        chunk = self._rooms.settings.upload_chunk_max
        staff: Access = "operator"
        return [
            Route(
                "POST",
                f"{base}/uploads",
                self.upload,
                "begin an upload",
                access=staff,
                body=UploadAsked,
                answer=UploadState,
            ),
            Route(
                "GET",
                f"{base}/uploads/{{upload}}",
                self.upload_state,
                "how far it is",
                access=staff,
                answer=UploadState,
            ),
            Route(
                "PUT",
                f"{base}/uploads/{{upload}}/{{offset}}",
                self.piece,
                "one piece of a file",
                access=staff,
                body=bytes,
                answer=UploadState,
                body_max=chunk,
            ),
            Route(
                "POST",
                f"{base}/uploads/{{upload}}/import",
                self.imported,
                "encode it",
                access=staff,
                body=ImportAsked,
                answer=Job,
                body_max=8 << 20,
            ),
            Route(
                "POST", f"{base}/test-title", self.make_test_title, "encode a test picture", answer=Job, access=staff
            ),
            Route(
                "PUT",
                f"{base}/titles/{{title}}",
                self.describe,
                "name, description, series, people, licence",
                access=staff,
                body=DescribeAsked,
                answer=Title,
            ),
            Route("GET", f"{base}/jobs", self.jobs, "recent imports", access=staff, answer=JobList),
            Route("GET", f"{base}/jobs/{{job}}", self.job, "one import", access=staff, answer=Job),
            Route("DELETE", f"{base}/jobs/{{job}}", self.cancel, "stop an import", access=staff),
        ]

    def _page(self, name: str):  # type: ignore[no-untyped-def] # noqa: ANN202 - a Handler
        async def show(_: Call[None]) -> Reply:
            if name not in self._pages:
                self._pages[name] = (STATIC / name).read_bytes()
            return Reply(self._pages[name])

        return show

    # -- watching

    async def titles(self, call: Call[None]) -> TitleList:
        asked = call.query
        words, genre, region = asked.get("q", ""), asked.get("genre", ""), asked.get("region", "")
        return TitleList(await self._rooms.finder.find(words[:256], genre=genre[:100], region=region[:20]))

    async def begun(self, call: Call[None]) -> BegunList:
        if call.identity is None:
            return BegunList([])
        known = {title.id: title for title in await self._rooms.titles.all() if title.version}
        places = await self._rooms.positions.recent(call.identity.account_id)
        kept = [(known[one.title], one.at_s) for one in places if one.title in known]
        return BegunList([Begun(title, at_s) for title, at_s in kept if resume_at(at_s, title.duration_s)])

    async def title(self, call: Call[None]) -> TitleFacts:
        title = await self._rooms.titles.get(call.params["title"])
        series, viewer = title.about.series, call.identity
        at_s = await self._rooms.positions.of(viewer.account_id, title.id) if viewer else 0.0
        mates = [one for one in await self._rooms.titles.all() if series and one.about.series == series]
        mates.sort(key=lambda one: (one.about.season, one.about.episode, one.name))
        if not title.version:
            return TitleFacts(title, [], [], at_s, mates)
        index = await self._rooms.origin.index(title.id, title.version)
        tracks = [
            TrackFacts(
                track.name,
                track.kind,
                track.codec,
                track.width,
                track.height,
                track.peak_bps(index.target_s),
                track.average_bps(),
                len(track.segments),
                track.language,
                track.vmaf,
            )
            for track in [*index.video, *index.audio]
        ]
        return TitleFacts(title, tracks, [caption.language for caption in index.captions], at_s, mates)

    async def poster(self, call: Call[None]) -> Reply:
        title = await self._rooms.titles.get(call.params["title"])
        if not title.version:
            raise NotFound("this title has no picture yet", code="no_poster")
        found = await self._rooms.origin.fetch(f"/v/{title.id}/{title.version}/poster.jpg")
        return Reply(
            found.body, media_type="image/jpeg", headers={"etag": found.etag, "cache-control": "public, max-age=60"}
        )

    async def play(self, call: Call[PlayAsked]) -> Play:
        began_s = clock.monotonic_s()
        found = await self._play(call, call.body)
        self._rooms.play_seconds.record(clock.monotonic_s() - began_s)
        return found

    async def start(self, call: Call[StartAsked]) -> Reply:
        """The same with what the player shows first: four bytes of length, a `Start` in JSON, its pieces."""
        began_s, asked = clock.monotonic_s(), call.body
        play = await self._play(call, asked)
        start, pieces = await self._rooms.playback.start(play, at_s=asked.at_s, language=asked.language)
        told = msgspec.json.encode(start)
        self._rooms.play_seconds.record(clock.monotonic_s() - began_s)
        return Reply(
            b"".join((len(told).to_bytes(4, "big"), told, *pieces)),
            media_type="application/octet-stream",
            headers={"cache-control": "no-store"},
        )

    async def _play(self, call: Call[PlayAsked] | Call[StartAsked], asked: PlayAsked) -> Play:
        if asked.region not in REGIONS:
            raise Rejected(f"a region is one of {', '.join(REGIONS)}", code="bad_region")
        self._rooms.play_switch.check()
        host = call.headers.get("host", "").rpartition(":")[0] or call.headers.get("host", "")
        isp = isp_of(call.peer, {node.id: node.prefixes for node in self._rooms.settings.cdn if node.prefixes})
        return await self._rooms.playback.play(
            asked.title, call.identity, host=host, region=asked.region, isp=asked.isp[:20] or isp
        )

    async def steered(self, call: Call[None]) -> Reply:
        host = call.headers.get("host", "").rpartition(":")[0] or call.headers.get("host", "")
        text = await self._rooms.playback.steered_master(call.params["session"], host)
        return Reply(text.encode(), media_type="application/vnd.apple.mpegurl", headers={"cache-control": "no-store"})

    async def steered_dash(self, call: Call[None]) -> Reply:
        host = call.headers.get("host", "").rpartition(":")[0] or call.headers.get("host", "")
        text = await self._rooms.playback.steered_manifest(call.params["session"], host)
        return Reply(text.encode(), media_type="application/dash+xml", headers={"cache-control": "no-store"})

    async def steering(self, call: Call[None]) -> Reply:
        manifest = self._rooms.playback.steering(call.params["session"])
        return Reply(msgspec.json.encode(manifest), media_type=STEERING_TYPE, headers={"cache-control": "no-store"})

    async def beacon(self, call: Call[Beacon]) -> None:
        told = call.body
        watched = self._rooms.quality.find(told.session)
        if watched is not None and watched.account and told.at_s is not None:
            self._rooms.positions.note(int(watched.account), watched.title, min(told.at_s, 1e6))
        self._rooms.quality.hear(told, clock.monotonic_s())

    async def delivery(self, _: Call[None]) -> DeliveryFacts:
        return await self._facts()

    async def _facts(self) -> DeliveryFacts:
        delivery, settings = self._rooms.delivery, self._rooms.settings
        nodes = []
        for node in settings.cdn:
            if node.id in delivery.nodes:
                seen = delivery.nodes[node.id].statistics()
                nodes.append(
                    NodeFacts(
                        node.id,
                        node.region,
                        node.parent,
                        delivery.nodes[node.id].port,
                        delivery.is_on(node),
                        node.region in delivery.evacuated,
                        seen.requests,
                        seen.hits,
                        seen.hits / seen.requests if seen.requests else 0.0,
                        seen.bytes_out,
                        seen.bytes_filled,
                        seen.bytes_stored,
                        seen.bytes_max,
                        seen.entries,
                        seen.connections,
                    )
                )
        delivered = sum(node.bytes_out for node in nodes)
        return DeliveryFacts(
            nodes,
            delivery.origin_requests,
            delivery.origin_bytes,
            self._rooms.fill.statistics(),
            self._rooms.quality.statistics(clock.monotonic_s()),
            delivered / 1e9 * settings.cost_per_gb,
            self._rooms.guard.cmcd.statistics(),
        )

    async def region(self, call: Call[RegionAsked]) -> DeliveryFacts:
        self._rooms.delivery.evacuate(call.params["region"], back=not call.body.evacuated)
        return await self._facts()

    async def fill(self, _: Call[None]) -> FillStatistics:
        await self._rooms.titles.store_plays()
        self._rooms.fill.ask()
        return self._rooms.fill.statistics()

    # -- the studio

    async def upload(self, call: Call[UploadAsked]) -> UploadState:
        self._rooms.studio_switch.check()
        begun = self._rooms.uploads.open(call.body.name, call.body.size)
        return UploadState(begun.id, begun.offset, begun.size)

    async def upload_state(self, call: Call[None]) -> UploadState:
        found = self._rooms.uploads.get(call.params["upload"])
        return UploadState(found.id, found.offset, found.size)

    async def piece(self, call: Call[bytes]) -> UploadState:
        offset = call.params["offset"]
        if not offset.isdecimal() or len(offset) > 15:
            raise Rejected("the offset is not a number", code="bad_offset")
        found = await self._rooms.uploads.put(call.params["upload"], int(offset), call.body)
        return UploadState(found.id, found.offset, found.size)

    async def imported(self, call: Call[ImportAsked]) -> Job:
        upload = self._rooms.uploads.finish(call.params["upload"])
        asked = call.body
        path = Path((asked.path or upload.name).lstrip("/")[:PATH_MAX])
        said = named(path, Path(path.parts[0]) if len(path.parts) > 1 else None)
        for caption in asked.captions[:CAPTIONS_MAX]:
            await self._rooms.uploads.put_beside(upload, caption.language, caption.kind, caption.text)
        name = asked.name or said.name
        job = await self._rooms.submit(upload.path, name, asked.description, replace=asked.replace, owned=True)
        if not asked.replace and said.about != About():
            await self._rooms.titles.describe(job.title, name, asked.description, said.about)
        return _told(job)

    async def describe(self, call: Call[DescribeAsked]) -> Title:
        asked = call.body
        title = await self._rooms.titles.describe(call.params["title"], asked.name, asked.description, asked.about)
        await self._rooms.finder.changed(title)
        return title

    async def make_test_title(self, _: Call[None]) -> Job:
        return _told(await self._rooms.test_title())

    async def jobs(self, _: Call[None]) -> JobList:
        return JobList([_told(job) for job in await self._rooms.jobs.recent()])

    async def job(self, call: Call[None]) -> Job:
        return _told(await self._rooms.jobs.get(call.params["job"]))

    async def cancel(self, call: Call[None]) -> None:
        await self._rooms.jobs.cancel(call.params["job"])


def _told(job: Job) -> Job:
    """A job without the places of files on this machine."""
    return msgspec.structs.replace(job, file=Path(job.file).name)

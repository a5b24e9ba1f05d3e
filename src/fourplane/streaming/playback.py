"""Play: entitlement, the nearest healthy node, signed URLs, a manifest.

A token is bound to one version of one title and one session; it stands in the path (`/t/<token>/v/<title>/<version>/...`), so
relative addresses inside manifests carry it, and nodes leave it out of what they store under. `MediaGuard` is what nodes
and the origin ask: it verifies a token once and remembers the answer for `REMEMBER_S`.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from fourplane.edge.routes import Identity
from fourplane.edge.steering import CdnNode, Viewer, preference
from fourplane.foundation import clock, ids
from fourplane.foundation.errors import Forbidden, NotFound, Overloaded, Rejected, Unavailable
from fourplane.service.tokens import Signer
from fourplane.streaming import dash, hls
from fourplane.streaming.cmcd import Cmcd
from fourplane.streaming.origin import INDEXES_MAX, Origin
from fourplane.streaming.packaging import TitleIndex, Track
from fourplane.streaming.positions import Positions, resume_at
from fourplane.streaming.quality import Quality
from fourplane.streaming.settings import StreamingSettings
from fourplane.streaming.titles import Title, Titles

AUDIENCE = "media"
REMEMBER_S = 30.0
REMEMBERED_MAX = 50_000
DISTANCES = {
    (one, other): km
    for first, second, km in (("us", "eu", 6_000.0), ("us", "asia", 10_000.0), ("eu", "asia", 9_000.0))
    for one, other in ((first, second), (second, first))
}

Entitlement = Callable[[Identity | None, Title], Awaitable[None]]


class MediaGuard:
    """Turns `/t/<token>/v/...` into `/v/...` for whoever may see it; a cache node's guard."""

    __slots__ = ("_known", "_signer", "cmcd", "refused")

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self._known: OrderedDict[bytes, tuple[bytes, float]] = OrderedDict()
        self.cmcd = Cmcd()
        self.refused = 0

    def __call__(self, target: bytes) -> bytes:
        """The target without its token; raises Unauthenticated or Forbidden."""
        if not target.startswith(b"/t/"):
            self.refused += 1
            raise Forbidden("media is only served with a signed address", code="no_token")
        end = target.find(b"/", 3)
        token, (path, _, query) = target[3:end], target[end:].partition(b"?")  # players append CMCD queries
        if query and b"CMCD=" in query:
            self.cmcd.hear(query)
        known = self._known.get(token)
        now_s = clock.monotonic_s()
        if known is None or known[1] < now_s:
            known = self._verify(token, now_s)
        if not path.startswith(known[0]) or b"/../" in path:
            self.refused += 1
            raise Forbidden("this address was signed for another title", code="other_title")
        return path

    def _verify(self, token: bytes, now_s: float) -> tuple[bytes, float]:
        try:
            claims = self._signer.verify(AUDIENCE, token.decode("latin-1"))
        except Rejected:
            self.refused += 1
            self._known.pop(token, None)
            raise
        known = (claims["path"].encode(), now_s + REMEMBER_S)
        self._known[token] = known
        if len(self._known) > REMEMBERED_MAX:
            self._known.popitem(last=False)
        return known


class PlayCaption(msgspec.Struct, frozen=True):
    """A text track: one WebVTT file below the base."""

    name: str
    language: str
    label: str


class PlayTrack(msgspec.Struct, frozen=True):
    """A rendition for players that read no manifest: segment n lies at `<name>/<n>.m4s` and lasts `segment_s` (the last less)."""

    name: str
    kind: str
    codec: str
    height: int
    bps: int
    segment_s: float
    count: int
    language: str
    label: str = ""
    init: str = ""  # base64 of what must come before the first segment; only of tracks that a player starts with


class Play(msgspec.Struct, frozen=True):
    """Everything a player page needs for one title."""

    session: str
    title: str
    name: str
    duration_s: float
    node: str
    region: str
    hls: str  # on the chosen node
    steered_hls: str  # all nodes as pathways, with content steering
    dash: str
    poster: str
    scrub: str
    base: str
    tracks: list[PlayTrack]
    expires_s: float
    captions: list[PlayCaption] = []
    resume_s: float = 0.0
    steered_dash: str = ""
    steering_s: float = 10.0  # how often a player without steering of its own asks which node to use


class StartPiece(msgspec.Struct, frozen=True):
    """A segment that comes along: so many bytes of it."""

    track: str
    number: int
    bytes: int


class Start(msgspec.Struct, frozen=True):
    """A play whose first segments follow in the same answer, in this order."""

    play: Play
    pieces: list[StartPiece]


class Playback:
    """The play call and what it hands out."""

    def __init__(
        self,
        settings: StreamingSettings,
        *,
        titles: Titles,
        origin: Origin,
        signer: Signer,
        quality: Quality,
        nodes: Callable[[], list[CdnNode]],
        ports: Mapping[str, int],
        entitlement: Entitlement,
        positions: Positions,
    ) -> None:
        self._positions = positions
        self._settings = settings
        self._titles = titles
        self._origin = origin
        self._signer = signer
        self._quality = quality
        self._nodes = nodes
        self._ports = ports
        self._entitlement = entitlement
        self._tracks: OrderedDict[tuple[str, str], list[PlayTrack]] = OrderedDict()
        self.refused = 0

    async def play(self, title_id: str, identity: Identity | None, *, host: str, region: str, isp: str = "") -> Play:
        """Addresses for one session; raises NotFound, Forbidden (entitlement, too many streams), Unavailable."""
        title = await self._titles.get(title_id)
        if not title.version:
            raise NotFound("this title is not ready yet", code="not_ready")
        account = "" if identity is None else str(identity.account_id)
        try:
            title.about.admit(region, clock.now_us())
            await self._entitlement(identity, title)
            if self._quality.watching(account, clock.monotonic_s()) >= self._settings.streams_per_viewer_max:
                raise Forbidden("too many streams of this account are running", code="too_many_streams")
        except Forbidden:
            self.refused += 1
            raise
        session = ids.capability()
        order = self.order(session, region, isp)
        index = await self._origin.index(title.id, title.version)
        path = self._signed_path(title.id, title.version, session)
        public = self._settings.public_host or host or "127.0.0.1"
        base = f"http://{public}:{self._ports[order[0]]}{path}"
        self._quality.open(session, title.id, region, account, clock.monotonic_s(), isp=isp)
        self._titles.count_play(title.id)
        return Play(
            session,
            title.id,
            title.name,
            index.duration_s,
            order[0],
            region,
            f"{base}master.m3u8",
            f"/streaming/api/sessions/{session}/master.m3u8",
            f"{base}manifest.mpd",
            f"{base}poster.jpg" if index.poster else "",
            f"{base}scrub.vtt" if index.sprite_every_s else "",
            base,
            await self._play_tracks(index),
            self._settings.token_s,
            _captions(index),
            resume_at(await self._positions.of(identity.account_id, title.id), index.duration_s) if identity else 0.0,
            f"/streaming/api/sessions/{session}/manifest.mpd",
            float(self._settings.steering_ttl_s),
        )

    async def start(self, play: Play, *, at_s: float, language: str) -> tuple[Start, list[bytes]]:
        """What a player shows first, for a play just made: picture and sound of the start rung at `at_s`.

        Costs the service some tens of kilobytes per play and spares the viewer a round trip; too large segments stay out.
        """
        index = await self._origin.index(play.title, play.base.split("/")[-2])  # a new version may just have come
        spoken = [track for track in index.audio if track.language == language and language]
        pieces, content = [], []
        for track in (*index.video[:1], *(spoken or index.audio)[:1]):
            lasts_s = track.segments[0].duration / track.timescale
            number = min(int(max(0.0, play.resume_s or at_s) / lasts_s), len(track.segments) - 1)
            found = await self._origin.piece(index, track, number)
            if found:
                pieces.append(StartPiece(track.name, number, len(found)))
                content.append(found)
        return Start(play, pieces), content

    async def _play_tracks(self, index: TitleIndex) -> list[PlayTrack]:
        """Every rendition; those a player starts with carry their init segment, which spares two requests."""
        key = (index.title, index.version)
        found = self._tracks.get(key)
        if found is None:  # peaks are measured over all segments: once per version, not per play
            found = self._tracks[key] = await self._measured(index)
            if len(self._tracks) > INDEXES_MAX:
                self._tracks.popitem(last=False)
        return found

    async def _measured(self, index: TitleIndex) -> list[PlayTrack]:
        sounds = hls.names([track.language for track in index.audio], "Sound")
        labels = {track.name: label for track, label in zip(index.audio, sounds, strict=True)}
        first = {track.name for track in (*index.video[:1], *index.audio)}
        return [
            msgspec.structs.replace(
                _play_track(index, track),
                label=labels.get(track.name, ""),
                init=await self._origin.init(index, track) if track.name in first else "",
            )
            for track in [*index.video, *index.audio]
        ]

    async def steered_manifest(self, session: str, host: str) -> str:
        """The session's DASH manifest with every node as a service location."""
        index, pathways = await self._pathways(session, host)
        return dash.manifest(
            index, steering_uri=f"/streaming/api/sessions/{session}/steering?dash=1", pathways=pathways
        )

    async def steered_master(self, session: str, host: str) -> str:
        """The session's multivariant playlist with every node as a pathway."""
        index, pathways = await self._pathways(session, host)
        return hls.master(index, steering_uri=f"/streaming/api/sessions/{session}/steering", pathways=pathways)

    async def _pathways(self, session: str, host: str) -> tuple[TitleIndex, tuple[tuple[str, str], ...]]:
        """The index of what a session watches, and (node, address) in the session's order."""
        found = self._quality.find(session)
        if found is None:
            raise NotFound("this session has ended", code="no_such_session")
        title = await self._titles.get(found.title)
        index = await self._origin.index(title.id, title.version)
        path = self._signed_path(title.id, title.version, session)
        public = self._settings.public_host or host or "127.0.0.1"
        pathways = tuple(
            (node, f"http://{public}:{self._ports[node]}{path}")
            for node in self.order(session, found.region, found.isp)
        )
        return index, pathways

    def steering(self, session: str) -> dict[str, object]:
        """The steering manifest of a session: the order of nodes from now on (HLS content steering, version 1)."""
        found = self._quality.find(session)
        region, isp = ("", "") if found is None else (found.region, found.isp)
        return {
            "VERSION": 1,
            "TTL": self._settings.steering_ttl_s,
            "RELOAD-URI": f"/streaming/api/sessions/{session}/steering",
            "PATHWAY-PRIORITY": self.order(session, region, isp),
        }

    def order(self, viewer: str, region: str, isp: str = "") -> list[str]:
        """Nodes for a viewer, the best first; raises Unavailable when there is none, Overloaded when all are full."""
        nodes = self._nodes()
        if not nodes:
            raise Unavailable("no cache node is running", code="no_nodes")
        if not any(node.healthy for node in nodes):
            raise Overloaded("no cache node can take viewers now", code="no_healthy_nodes")
        return preference(Viewer(viewer, region, isp), nodes, DISTANCES)

    def _signed_path(self, title: str, version: str, session: str) -> str:
        path = f"/v/{title}/{version}/"
        token = self._signer.sign(AUDIENCE, {"path": path, "session": session}, self._settings.token_s)
        return f"/t/{token}{path}"


def _captions(index: TitleIndex) -> list[PlayCaption]:
    labels = hls.names([caption.language for caption in index.captions], "Text")
    return [
        PlayCaption(caption.name, caption.language, label)
        for caption, label in zip(index.captions, labels, strict=True)
    ]


def _play_track(index: TitleIndex, track: Track) -> PlayTrack:
    return PlayTrack(
        track.name,
        track.kind,
        track.codec,
        track.height,
        track.peak_bps(index.target_s),
        track.segments[0].duration / track.timescale,
        len(track.segments),
        track.language,
    )

"""One CMAF set per title version: an index of its segments, published atomically, from which every manifest is written.

A version is a folder of blobs (`titles/<title>/<version>/`): one track file per rung and sound, pictures, and `index.json`.
Segments are not files: `720p/12.m4s` is a byte range of `720p.mp4` that the index knows. So HLS, DASH and anything later
are views over the same bytes. The index is put last and the title's row points to a version only after
that: whoever plays the older version goes on undisturbed.
"""

from pathlib import Path

import msgspec

from fourplane.foundation.errors import Corrupt, NotFound
from fourplane.state.contracts import Blobs
from fourplane.streaming.captions import language_tag
from fourplane.streaming.encode_plan import SPRITE_COLUMNS
from fourplane.streaming.encoding import Encoded
from fourplane.streaming.mp4_boxes import index_file

SCHEMA = 1
INDEX_MAX = 32 << 20


class MediaSegment(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Bytes offset..offset+size of a track file; duration in units of the track; `key_size` holds the first picture."""

    offset: int
    size: int
    duration: int
    key_size: int


class Track(msgspec.Struct, frozen=True):
    """One rendition: a rung of picture or a language of sound."""

    name: str
    kind: str  # video | audio
    codec: str
    timescale: int
    init_size: int
    segments: tuple[MediaSegment, ...]
    width: int = 0
    height: int = 0
    fps: float = 0.0
    language: str = ""
    channels: int = 0
    sample_rate: int = 0
    vmaf: float = 0.0  # as the search for the title's ladder predicts it; 0: nobody looked

    def duration_s(self) -> float:
        """How long the track plays."""
        return sum(segment.duration for segment in self.segments) / self.timescale

    def average_bps(self) -> int:
        """Bits of all segments over their time."""
        return round(8 * sum(segment.size for segment in self.segments) / max(self.duration_s(), 1e-6))

    def peak_bps(self, target_s: float) -> int:
        """The largest rate of any run of segments of 0.5 to 1.5 target durations (RFC 8216bis 4.4.6.2)."""
        peak = 0.0
        durations = [segment.duration / self.timescale for segment in self.segments]
        for first in range(len(durations)):
            span, size = 0.0, 0
            for at in range(first, len(durations)):
                span += durations[at]
                size += self.segments[at].size
                if span > 1.5 * target_s:
                    break
                if span >= 0.5 * target_s:
                    peak = max(peak, 8 * size / span)
        return max(round(peak + 0.5), self.average_bps())


class Caption(msgspec.Struct, frozen=True):
    """One text track: `name` is its file without `.vtt`."""

    name: str
    language: str  # RFC 5646, such as en


class TitleIndex(msgspec.Struct, frozen=True):
    """Everything a manifest needs to know of one version."""

    title: str
    version: str
    duration_s: float
    tracks: tuple[Track, ...]
    poster: bool = False
    sprite_every_s: float = 0.0
    sprite_columns: int = 10
    schema: int = SCHEMA
    captions: tuple[Caption, ...] = ()

    def caption(self, name: str) -> Caption:
        """The text track of this name; raises NotFound."""
        for caption in self.captions:
            if caption.name == name:
                return caption
        raise NotFound(f"no text track {name[:40]!r}", code="no_such_track")

    def track(self, name: str) -> Track:
        """The track of this name; raises NotFound."""
        for track in self.tracks:
            if track.name == name:
                return track
        raise NotFound(f"no track {name[:40]!r}", code="no_such_track")

    @property
    def video(self) -> list[Track]:
        """Rungs from the smallest to the largest."""
        return sorted((track for track in self.tracks if track.kind == "video"), key=_order)

    @property
    def audio(self) -> list[Track]:
        return [track for track in self.tracks if track.kind == "audio"]

    @property
    def target_s(self) -> int:
        """The longest segment of all tracks, rounded: EXT-X-TARGETDURATION."""
        longest = max(segment.duration / track.timescale for track in self.tracks for segment in track.segments)
        return max(1, int(longest + 0.5))


def _order(track: Track) -> tuple[int, int]:
    return track.height, track.average_bps()


def index_track(path: Path, name: str, *, fps: float = 0.0, language: str = "", vmaf: float = 0.0) -> Track:
    """Read the boxes of one finished track file; raises Corrupt when a segment could not be played on its own."""
    with path.open("rb") as file:
        init, fragments = index_file(file, name)
    clock_at = fragments[0].start
    for fragment in fragments:
        if not fragment.starts_with_key:
            raise Corrupt(
                f"{name} has a segment that does not start with a key frame", file=name, place=fragment.offset
            )
        if abs(fragment.start - clock_at) > init.timescale // 50:
            raise Corrupt(f"{name} has a hole in its times", file=name, place=fragment.offset)
        clock_at = fragment.start + fragment.duration
    segments = tuple(MediaSegment(part.offset, part.size, part.duration, part.key_size) for part in fragments)
    return Track(
        name,
        init.kind,
        init.codec,
        init.timescale,
        init.size,
        segments,
        init.width,
        init.height,
        fps,
        language,
        init.channels,
        init.sample_rate,
        vmaf,
    )


def index_title(title: str, version: str, encoded: Encoded) -> TitleIndex:
    """The index of finished files; reads boxes, so call it off the loop for long films."""
    plan = encoded.plan
    fps = plan.rate[0] / plan.rate[1]
    tracks = [index_track(path, rung.name, fps=fps, vmaf=rung.vmaf) for rung, path in encoded.video]
    tracks += [index_track(path, path.stem, language=language) for language, path in encoded.audio]
    length = max(track.duration_s() for track in tracks)
    every = encoded.sprite_every_s if encoded.sprite is not None else 0.0
    captions = tuple(Caption(made.path.stem, language_tag(made.language)) for made in encoded.captions)
    return TitleIndex(
        title, version, length, tuple(tracks), encoded.poster is not None, every, SPRITE_COLUMNS, SCHEMA, captions
    )


def blob_key(title: str, version: str, name: str) -> str:
    """Where a file of a version lies."""
    return f"titles/{title}/{version}/{name}"


async def publish(blobs: Blobs, index: TitleIndex, encoded: Encoded) -> int:
    """Put a version's files, its index last; returns the bytes stored. A failure leaves no index, so no version."""
    total = 0
    for _, path in (*encoded.video, *encoded.audio):
        info = await blobs.put_file(blob_key(index.title, index.version, path.name), path, media_type="video/mp4")
        total += info.size
    for picture in (encoded.poster, encoded.sprite):
        if picture is not None:
            key = blob_key(index.title, index.version, picture.name)
            total += (await blobs.put_file(key, picture, media_type="image/jpeg")).size
    for caption in encoded.captions:
        key = blob_key(index.title, index.version, caption.path.name)
        total += (await blobs.put_file(key, caption.path, media_type="text/vtt")).size
    content = msgspec.json.encode(index)
    await blobs.put(blob_key(index.title, index.version, "index.json"), content, media_type="application/json")
    return total + len(content)


async def load_index(blobs: Blobs, title: str, version: str) -> TitleIndex:
    """The index of a published version; raises NotFound, or Corrupt when it cannot be read."""
    key = blob_key(title, version, "index.json")
    content = await blobs.get(key)
    try:
        return msgspec.json.decode(content, type=TitleIndex)
    except msgspec.DecodeError as error:
        raise Corrupt(f"the index of {title} cannot be read: {error}", file=key, place=0) from error


async def remove_version(blobs: Blobs, title: str, version: str) -> None:
    """Delete a version, its index first, so that nobody starts playing half of it."""
    await blobs.delete(blob_key(title, version, "index.json"))
    for key in await blobs.keys(f"titles/{title}/{version}/"):
        await blobs.delete(key)

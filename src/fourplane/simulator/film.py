"""A film without an encoder: the boxes that packaging reads, around bytes that say where they belong.

Every segment's content repeats the name of its title, track and number, so a checker knows from any answer whose bytes it
holds. Source: ISO/IEC 14496-12, the boxes of fragmented files.
"""

import struct
from pathlib import Path
from typing import Protocol

import msgspec

from fourplane.state.contracts import Blobs
from fourplane.streaming.packaging import TitleIndex, blob_key, index_track
from fourplane.streaming.titles import Titles

FILMS = ("Harbour", "Lighthouse")
SEGMENTS = 6
SEGMENT_S = 2.0
FPS = 24
RUNGS = (("360p", 640, 360, 24_000), ("720p", 1_280, 720, 60_000))
SOUND = "audio_0"


class _Rooms(Protocol):
    @property
    def titles(self) -> Titles: ...


class Publisher(Protocol):
    """What of the streaming system is needed to publish."""

    @property
    def rooms(self) -> _Rooms: ...


async def publish_film(streaming: Publisher, blobs: Blobs, work: Path) -> None:
    """Publish the films as an import would, the index last."""
    work.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - a few kilobytes of a simulated host
    for name in FILMS:
        title = await streaming.rooms.titles.create(name)
        tracks, total, version = [], 0, f"v_{name.lower()}"
        for rung, width, height, size in RUNGS:
            content = video_file(name, rung, size=size, width=width, height=height)
            (work / f"{rung}.mp4").write_bytes(content)
            tracks.append(index_track(work / f"{rung}.mp4", rung, fps=float(FPS)))
            await blobs.put(blob_key(title.id, version, f"{rung}.mp4"), content, media_type="video/mp4")
            total += len(content)
        content = audio_file(name)
        (work / f"{SOUND}.mp4").write_bytes(content)
        tracks.append(index_track(work / f"{SOUND}.mp4", SOUND))
        await blobs.put(blob_key(title.id, version, f"{SOUND}.mp4"), content, media_type="video/mp4")
        index = TitleIndex(title.id, version, SEGMENTS * SEGMENT_S, tuple(tracks))
        await blobs.put(blob_key(title.id, version, "index.json"), msgspec.json.encode(index))
        await streaming.rooms.titles.publish(index, total + len(content))


def mark(film: str, track: str, number: int) -> bytes:
    """What the content of a segment repeats."""
    return f"<{film} {track} {number}>".encode()


def video_file(film: str, track: str, *, size: int, width: int, height: int) -> bytes:
    """Segments of two seconds with a key frame first; `size` bytes of samples each."""
    frames = int(SEGMENT_S * FPS)
    parts = [_init(_video_entry(width, height), FPS)]
    for number in range(SEGMENTS):
        sizes = [size // 2] + [size // 2 // (frames - 1)] * (frames - 1)
        parts.append(_fragment(number, number * frames, sizes, 1, mark(film, track, number)))
    return b"".join(parts)


def audio_file(film: str) -> bytes:
    """Segments of about two seconds of sound."""
    parts = [_init(_audio_entry(2, 48_000), 48_000)]
    parts += [
        _fragment(number, number * 96_256, [21] * 94, 1_024, mark(film, SOUND, number)) for number in range(SEGMENTS)
    ]
    return b"".join(parts)


def _box(kind: bytes, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I4s", len(content) + 8, kind) + content


def _full(kind: bytes, *parts: bytes, version: int = 0, flags: int = 0) -> bytes:
    return _box(kind, bytes([version]) + flags.to_bytes(3, "big"), *parts)


def _video_entry(width: int, height: int) -> bytes:
    configuration = _box(b"avcC", bytes([1, 0x64, 0, 0x1F, 0xFF, 0xE1]))
    return _box(b"avc1", bytes(24), struct.pack(">HH", width, height), bytes(50), configuration)


def _audio_entry(channels: int, rate: int) -> bytes:
    config = bytes([5, 2, 0x12, 0x10])
    decoder = bytes([4, 13 + len(config), 0x40]) + bytes(12) + config
    esds = _full(b"esds", bytes([3, 3 + len(decoder), 0, 1, 0]), decoder)
    return _box(b"mp4a", bytes(16), struct.pack(">HHHHI", channels, 16, 0, 0, rate << 16), esds)


def _init(entry: bytes, timescale: int) -> bytes:
    mdhd = _full(b"mdhd", struct.pack(">IIII", 0, 0, timescale, 0), bytes(4))
    stsd = _full(b"stsd", struct.pack(">I", 1), entry)
    mdia = _box(b"mdia", mdhd, _box(b"minf", _box(b"stbl", stsd)))
    trex = _full(b"trex", struct.pack(">IIIII", 1, 1, 0, 0, 0))
    return _box(b"ftyp", b"iso6", bytes(4)) + _box(b"moov", _box(b"trak", mdia), _box(b"mvex", trex))


def _fragment(number: int, start: int, sizes: list[int], duration: int, content: bytes) -> bytes:
    samples = b"".join(struct.pack(">I", size) for size in sizes)
    tfhd = _full(b"tfhd", struct.pack(">III", 1, duration, 0x01010000), flags=0x20028)
    tfdt = _full(b"tfdt", struct.pack(">Q", start), version=1)
    trun = _full(b"trun", struct.pack(">IiI", len(sizes), 0, 0x02000000), samples, flags=0x205)
    moof = _box(b"moof", _full(b"mfhd", struct.pack(">I", number + 1)), _box(b"traf", tfhd, tfdt, trun))
    filling = content * (sum(sizes) // len(content) + 1)
    return moof + _box(b"mdat", filling[: sum(sizes)])

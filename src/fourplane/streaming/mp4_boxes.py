"""Reads fragmented MP4 (CMAF, ISO/IEC 14496-12): the init segment, its codec string, and where every fragment lies.

A fragment is one `moof` and its `mdat`; ffmpeg is told to start one at every key frame, so a fragment is a segment that a
player can begin with. Only boxes are read, never samples: a two-hour rendition costs some thousand seeks.
Every length is checked against the file, so a cut file is `Corrupt` with its place, not a wrong index.
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO

import msgspec

from fourplane.foundation.errors import Corrupt

HEAD_MAX = 16 << 20
SYNC_FLAG_CLEAR = 0x00010000  # sample_is_non_sync_sample


class Init(msgspec.Struct, frozen=True):
    """The head of a track file: what a player must load before any segment."""

    size: int
    kind: str  # video | audio
    codec: str  # RFC 6381, such as avc1.64001f
    timescale: int
    width: int = 0
    height: int = 0
    channels: int = 0
    sample_rate: int = 0
    default_duration: int = 0


class Fragment(msgspec.Struct, frozen=True):
    """One moof with its mdat: bytes offset..offset+size of the file, times in units of the track."""

    offset: int
    size: int
    start: int
    duration: int
    samples: int
    starts_with_key: bool
    key_size: int  # bytes from `offset` that hold the moof and the first sample


class _Box(msgspec.Struct, frozen=True):
    kind: bytes
    start: int  # of the payload
    end: int


def read_init(data: bytes, name: str = "track") -> Init:
    """What the bytes before the first fragment say; raises Corrupt."""
    for box in _boxes(data, 0, len(data), name):
        if box.kind == b"moov":
            return _track(data, box, name)
    raise Corrupt(f"{name} has no moov box", file=name, place=0)


def index_file(file: BinaryIO, name: str = "track") -> tuple[Init, list[Fragment]]:
    """The init segment and all fragments of an open track file, in order; raises Corrupt."""
    file.seek(0, 2)
    total = file.tell()
    init: Init | None = None
    fragments: list[Fragment] = []
    moof: tuple[int, bytes] | None = None
    offset = 0
    while offset < total:
        kind, size = _head(file, offset, total, name)
        if kind == b"moov":
            file.seek(0)
            init = read_init(file.read(_bounded(offset + size, name, offset)), name)
        elif kind == b"moof":
            file.seek(offset)
            moof = (offset, file.read(_bounded(size, name, offset)))
        elif kind == b"mdat" and moof is not None:
            if init is None:
                raise Corrupt(f"{name} has a fragment before its moov", file=name, place=offset)
            fragments.append(_fragment(moof, offset + size, init, name))
            moof = None
        offset += size
    if init is None or not fragments:
        raise Corrupt(f"{name} holds no fragments", file=name, place=offset)
    first = fragments[0].offset
    return msgspec.structs.replace(init, size=first if first < HEAD_MAX else init.size), fragments


def _head(file: BinaryIO, offset: int, total: int, name: str) -> tuple[bytes, int]:
    file.seek(offset)
    head = file.read(16)
    if len(head) < 8:
        raise Corrupt(f"{name} ends inside a box", file=name, place=offset)
    size, kind = struct.unpack(">I4s", head[:8])
    if size == 1 and len(head) == 16:
        size = struct.unpack(">Q", head[8:])[0]
    if size < 8 or offset + size > total:
        raise Corrupt(f"{name} is cut off inside {kind!r}", file=name, place=offset)
    return kind, size


def _bounded(size: int, name: str, place: int) -> int:
    if size > HEAD_MAX:
        raise Corrupt(f"{name} has a head of {size} bytes", file=name, place=place)
    return size


def _boxes(data: bytes, start: int, end: int, name: str) -> Iterator[_Box]:
    while start < end:
        if end - start < 8:
            raise Corrupt(f"{name} ends inside a box", file=name, place=start)
        size, kind = struct.unpack_from(">I4s", data, start)
        if size < 8 or start + size > end:
            raise Corrupt(f"{name} is cut off inside {kind!r}", file=name, place=start)
        yield _Box(kind, start + 8, start + size)
        start += size


def _find(data: bytes, box: _Box, path: tuple[bytes, ...], name: str) -> _Box:
    for kind in path:
        inner = next((found for found in _boxes(data, box.start, box.end, name) if found.kind == kind), None)
        if inner is None:
            raise Corrupt(f"{name} has no {kind.decode()} box", file=name, place=box.start)
        box = inner
    return box


def _track(data: bytes, moov: _Box, name: str) -> Init:
    trak = _find(data, moov, (b"trak",), name)
    mdhd = _find(data, trak, (b"mdia", b"mdhd"), name)
    timescale = struct.unpack_from(">I", data, mdhd.start + (20 if data[mdhd.start] == 1 else 12))[0]
    stsd = _find(data, trak, (b"mdia", b"minf", b"stbl", b"stsd"), name)
    entry = next(_boxes(data, stsd.start + 8, stsd.end, name))
    default = 0
    for box in _boxes(data, moov.start, moov.end, name):
        if box.kind == b"mvex":
            default = struct.unpack_from(">I", data, _find(data, box, (b"trex",), name).start + 12)[0]
    if entry.kind in {b"avc1", b"avc3"}:
        width, height = struct.unpack_from(">HH", data, entry.start + 24)
        inner = _Box(entry.kind, entry.start + 78, entry.end)
        avcc = _find(data, inner, (b"avcC",), name)
        codec = f"{entry.kind.decode()}.{data[avcc.start + 1 : avcc.start + 4].hex()}"
        return Init(moov.end, "video", codec, timescale, width, height, default_duration=default)
    if entry.kind == b"av01":
        width, height = struct.unpack_from(">HH", data, entry.start + 24)
        av1c = _find(data, _Box(entry.kind, entry.start + 78, entry.end), (b"av1C",), name)
        codec = _av1_codec(data[av1c.start : av1c.start + 4])
        return Init(moov.end, "video", codec, timescale, width, height, default_duration=default)
    if entry.kind == b"Opus":
        channels = struct.unpack_from(">H", data, entry.start + 16)[0]
        return Init(moov.end, "audio", "opus", timescale, 0, 0, channels, 48_000, default)
    if entry.kind == b"mp4a":
        channels = struct.unpack_from(">H", data, entry.start + 16)[0]
        rate = struct.unpack_from(">I", data, entry.start + 24)[0] >> 16
        inner = _Box(entry.kind, entry.start + 28, entry.end)
        codec = _audio_codec(data[slice(*_span(_find(data, inner, (b"esds",), name)))])
        return Init(moov.end, "audio", codec, timescale, 0, 0, channels, rate, default)
    raise Corrupt(f"{name} has a codec that is not packaged here: {entry.kind!r}", file=name, place=entry.start)


def _span(box: _Box) -> tuple[int, int]:
    return box.start, box.end


def _av1_codec(config: bytes) -> str:
    """`av01.0.05M.08` from profile, level, tier and bit depth of an av1C box."""
    profile, level = config[1] >> 5, config[1] & 31
    tier = "H" if config[2] & 0x80 else "M"
    depth = (12 if config[2] & 0x20 else 10) if config[2] & 0x40 else 8
    return f"av01.{profile}.{level:02d}{tier}.{depth:02d}"


def _audio_codec(esds: bytes) -> str:
    """`mp4a.40.2` from the descriptors: object type of tag 4, then five bits of tag 5."""
    at, object_type = 4, 0x40
    while at < len(esds) - 1:
        tag, at = esds[at], at + 1
        length = 0
        while True:
            length, more, at = length << 7 | esds[at] & 0x7F, esds[at] & 0x80, at + 1
            if not more:
                break
        if tag == 3:
            at += 3
        elif tag == 4:
            object_type, at = esds[at], at + 13
        elif tag == 5:
            audio_type = esds[at] >> 3
            if audio_type == 31:
                audio_type = 32 + ((esds[at] & 7) << 3 | esds[at + 1] >> 5)
            return f"mp4a.{object_type:x}.{audio_type}"
        else:
            at += length
    return f"mp4a.{object_type:x}"


def _fragment(moof: tuple[int, bytes], end: int, init: Init, name: str) -> Fragment:
    offset, data = moof
    traf = _find(data, _Box(b"moof", 8, len(data)), (b"traf",), name)
    tfhd = _find(data, traf, (b"tfhd",), name)
    default_duration, default_flags = _defaults(data, tfhd, init.default_duration)
    tfdt = _find(data, traf, (b"tfdt",), name)
    start = struct.unpack_from(">Q" if data[tfdt.start] == 1 else ">I", data, tfdt.start + 4)[0]
    duration = samples = key_size = 0
    starts_with_key = init.kind == "audio"
    for box in _boxes(data, traf.start, traf.end, name):
        if box.kind != b"trun":
            continue
        run = _Run(data, box, default_duration, default_flags)
        if samples == 0:
            starts_with_key = starts_with_key or not run.first_flags & SYNC_FLAG_CLEAR
            key_size = len(data) + 8 + run.first_size
        duration += run.duration
        samples += run.count
    return Fragment(offset, end - offset, start, duration, samples, starts_with_key, key_size)


def _defaults(data: bytes, tfhd: _Box, duration: int) -> tuple[int, int]:
    flags = int.from_bytes(data[tfhd.start + 1 : tfhd.start + 4], "big")
    at = tfhd.start + 8
    at += 8 * bool(flags & 0x1) + 4 * bool(flags & 0x2)
    if flags & 0x8:
        duration, at = struct.unpack_from(">I", data, at)[0], at + 4
    at += 4 * bool(flags & 0x10)
    return duration, struct.unpack_from(">I", data, at)[0] if flags & 0x20 else 0


class _Run:
    """The samples of one trun: how many, how long, and the first one's size and flags."""

    __slots__ = ("count", "duration", "first_flags", "first_size")

    def __init__(self, data: bytes, box: _Box, default_duration: int, default_flags: int) -> None:
        flags = int.from_bytes(data[box.start + 1 : box.start + 4], "big")
        self.count = struct.unpack_from(">I", data, box.start + 4)[0]
        at = box.start + 8 + 4 * bool(flags & 0x1)
        self.first_flags = default_flags
        if flags & 0x4:
            self.first_flags, at = struct.unpack_from(">I", data, at)[0], at + 4
        fields = [bit for bit in (0x100, 0x200, 0x400, 0x800) if flags & bit]
        step = 4 * len(fields)
        if at + step * self.count > box.end:
            raise Corrupt("a trun box is shorter than its samples", file="trun", place=box.start)
        self.first_size = 0
        if 0x200 in fields and self.count:
            self.first_size = struct.unpack_from(">I", data, at + 4 * fields.index(0x200))[0]
        if 0x400 in fields and self.count and not flags & 0x4:
            self.first_flags = struct.unpack_from(">I", data, at + 4 * fields.index(0x400))[0]
        if 0x100 in fields:
            self.duration = sum(struct.unpack_from(">I", data, at + step * number)[0] for number in range(self.count))
        else:
            self.duration = default_duration * self.count

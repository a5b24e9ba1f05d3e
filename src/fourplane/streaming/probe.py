"""What is in a file, as ffmpeg sees it; the wheel has no ffprobe, so this reads the lines of `ffmpeg -i`.

A file that cannot be a title is refused with one of five names: `empty_file`, `not_a_video` (no container ffmpeg knows),
`truncated` (a container whose index is missing), `no_video` (sound only), `no_duration` (a still picture or nothing).
"""

import re
from pathlib import Path

import msgspec

from fourplane.foundation.errors import NotFound, Rejected, TooLarge

_DURATION = re.compile(r"^\s*Duration: (\d+):(\d\d):(\d\d(?:\.\d+)?)", re.MULTILINE)
_STREAM = re.compile(r"^\s*Stream #0:(\d+)(?:\[[^]]*\])?(?:\((\w+)\))?: (Video|Audio|Subtitle): (.*)$", re.MULTILINE)
_SIZE = re.compile(r"\b(\d{2,5})x(\d{2,5})\b")
_FPS = re.compile(r"(\d+(?:\.\d+)?)(k?) fps")
_TBR = re.compile(r"(\d+(?:\.\d+)?)(k?) tbr")
_SAR = re.compile(r"SAR (\d+):(\d+)")
_RATE = re.compile(r"(\d+) Hz")
_ROTATION = re.compile(r"rotation of (-?\d+(?:\.\d+)?) degrees")
TEXTS = frozenset({"subrip", "srt", "ass", "ssa", "webvtt", "mov_text", "text"})  # those that are not pictures
_LAYOUTS = {"mono": 1, "stereo": 2, "2.1": 3, "quad": 4, "5.0": 5, "5.1": 6, "7.1": 8}


class AudioStream(msgspec.Struct, frozen=True):
    """One sound track of the source."""

    index: int
    codec: str
    channels: int
    sample_rate: int
    language: str = ""


class CaptionStream(msgspec.Struct, frozen=True):
    """One text track of the source; `number` counts its subtitle streams."""

    number: int
    codec: str
    language: str = ""


class Source(msgspec.Struct, frozen=True):
    """The picture and sound of a source file; width and height as shown (rotation and pixel shape applied)."""

    duration_s: float
    width: int
    height: int
    fps: float
    codec: str
    audio: tuple[AudioStream, ...] = ()
    variable_rate: bool = False
    captions: tuple[CaptionStream, ...] = ()


def check_file(path: Path, *, bytes_max: int) -> int:
    """The size of a file that may be probed; raises NotFound, Rejected `empty_file` or TooLarge."""
    if not path.is_file():
        raise NotFound(f"there is no file {path.name}", code="no_such_file")
    size = path.stat().st_size
    if size == 0:
        raise Rejected(f"{path.name} is empty (0 bytes)", code="empty_file")
    if size > bytes_max:
        raise TooLarge(f"{path.name} has {size} bytes, more than the allowed {bytes_max}", code="source_too_large")
    return size


def read_source(text: str, name: str) -> Source:
    """What `ffmpeg -i` said about `name`; raises Rejected with the fault of the input."""
    if "Input #0" not in text:
        if "moov atom not found" in text and "low score" not in text:
            raise Rejected(f"{name} is cut off: its index (moov) is missing", code="truncated")
        raise Rejected(f"{name} is not a video file that ffmpeg can read", code="not_a_video")
    text = text.partition("Input #0")[2]
    streams = list(_STREAM.finditer(text))
    videos = [found for found in streams if found[3] == "Video" and "attached pic" not in found[4]]
    if not videos:
        raise Rejected(f"{name} has no picture, only {_kinds(streams)}", code="no_video")
    duration = _DURATION.search(text)
    length = 0.0 if duration is None else int(duration[1]) * 3600 + int(duration[2]) * 60 + float(duration[3])
    if length <= 0:
        raise Rejected(f"{name} has no duration: a still picture or a broken file", code="no_duration")
    width, height, fps, variable = _picture(videos[0][4], name)
    rotation = _ROTATION.search(text)
    if rotation and round(abs(float(rotation[1]))) % 180 == 90:
        width, height = height, width
    audio = tuple(_sound(found) for found in streams if found[3] == "Audio")
    codec = videos[0][4].split(maxsplit=1)[0].rstrip(",")
    texts = [found for found in streams if found[3] == "Subtitle"]
    captions = tuple(
        CaptionStream(number, kind, "" if found[2] in {None, "und"} else found[2])
        for number, found in enumerate(texts)
        if (kind := found[4].split(maxsplit=1)[0].rstrip(",")) in TEXTS
    )
    return Source(length, width, height, fps, codec, audio, variable, captions)


def _picture(line: str, name: str) -> tuple[int, int, float, bool]:
    size = _SIZE.search(line)
    if size is None:
        raise Rejected(f"the picture size of {name} is unknown", code="not_a_video")
    width, height = int(size[1]), int(size[2])
    shape = _SAR.search(line)
    if shape and int(shape[2]) and shape[1] != shape[2]:
        width = round(width * int(shape[1]) / int(shape[2]))
    fps, tbr = _rate(_FPS, line), _rate(_TBR, line)
    rate = fps or tbr or 25.0
    return width, height, min(rate, 120.0), bool(tbr) and bool(fps) and abs(tbr - fps) > 0.02 * fps


def _rate(pattern: re.Pattern[str], line: str) -> float:
    found = pattern.search(line)
    return 0.0 if found is None else float(found[1]) * (1000 if found[2] else 1)


def _sound(found: re.Match[str]) -> AudioStream:
    line = found[4]
    rate = _RATE.search(line)
    parts = [part.strip().split("(")[0] for part in line.split(",")]
    channels = next((_LAYOUTS[part] for part in parts if part in _LAYOUTS), 2)
    language = found[2] or ""
    return AudioStream(
        int(found[1]),
        parts[0].split()[0],
        channels,
        int(rate[1]) if rate else 48_000,
        "" if language == "und" else language,
    )


def _kinds(streams: list[re.Match[str]]) -> str:
    return ", ".join(sorted({found[3].lower() for found in streams})) or "nothing"

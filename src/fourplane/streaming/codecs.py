"""What ffmpeg is told for each codec that a title may be encoded with, and what that codec's quality numbers mean.

H.264 and AAC play everywhere and are the default; AV1 and Opus are chosen by configuration. Every encoder runs at
constant quality (`crf`) below a cap, with closed groups of pictures of one fixed length, so that chunks join and
segments of all rungs begin together.
"""

from collections.abc import Mapping

import msgspec

from fourplane.foundation.errors import Misconfigured


class VideoCodec(msgspec.Struct, frozen=True):
    """One picture codec: ffmpeg's encoder, the quality of the fixed ladder, and the qualities that a search tries."""

    name: str
    encoder: str
    crf: float
    tried: tuple[float, ...]  # from the best to the cheapest
    presets: Mapping[str, str]  # ours to the encoder's

    def arguments(self, *, crf: float, cap_kbps: int, gop: int, preset: str, threads: int = 0) -> list[str]:
        """Ffmpeg's output options of one rung."""
        chosen = self.presets.get(preset, preset)
        told = ["-c:v", self.encoder, "-preset", chosen, "-crf", f"{crf:g}", "-g", str(gop)]
        if self.name == "av1":
            parameters = f"keyint={gop}:scd=0:irefresh-type=2" + (f":mbr={cap_kbps}" if cap_kbps else "")
            return [*told, "-svtav1-params", parameters + (f":lp={threads}" if threads else "")]
        told += ["-keyint_min", str(gop), "-sc_threshold", "0", "-flags", "+cgop"]
        told += ["-maxrate", f"{cap_kbps}k", "-bufsize", f"{2 * cap_kbps}k"] if cap_kbps else []
        return told + (["-threads", str(threads)] if threads else [])


class AudioCodec(msgspec.Struct, frozen=True):
    """One sound codec."""

    name: str
    encoder: str


VIDEO = {
    "h264": VideoCodec("h264", "libx264", 23.0, (21.0, 27.0, 34.0), {}),
    "av1": VideoCodec(
        "av1",
        "libsvtav1",
        35.0,
        (28.0, 38.0, 50.0),
        {
            "ultrafast": "12",
            "superfast": "11",
            "veryfast": "10",
            "faster": "9",
            "fast": "8",
            "medium": "7",
            "slow": "5",
        },
    ),
}
AUDIO = {"aac": AudioCodec("aac", "aac"), "opus": AudioCodec("opus", "libopus")}


def video_codec(name: str) -> VideoCodec:
    """The picture codec of this name; raises Misconfigured."""
    if name not in VIDEO:
        raise Misconfigured(f"streaming.encoding.video_codec is one of {', '.join(VIDEO)}, not {name!r}")
    return VIDEO[name]


def audio_codec(name: str) -> AudioCodec:
    """The sound codec of this name; raises Misconfigured."""
    if name not in AUDIO:
        raise Misconfigured(f"streaming.encoding.audio_codec is one of {', '.join(AUDIO)}, not {name!r}")
    return AUDIO[name]

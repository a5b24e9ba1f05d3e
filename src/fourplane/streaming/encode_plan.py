"""What an encode will do, decided before it does anything: ladder, groups of pictures, chunks, and ffmpeg's arguments.

A plan is a value: the same source and settings give the same plan, so whatever was finished for an equal plan is used again.
"""

from fractions import Fraction
from pathlib import Path

import msgspec

from fourplane.streaming.codecs import audio_codec, video_codec
from fourplane.streaming.ladder import Rung, ladder_for
from fourplane.streaming.probe import Source
from fourplane.streaming.settings import EncodingSettings

CHUNK_S = 20.0  # of a long film; a short one is cut into `CHUNKS_MIN` pieces, so that every core has some
CHUNKS_MIN = 4
AUDIO_MAX = 8
CAPTIONS_MAX = 20
SPRITE_COLUMNS = 10
SPRITE_WIDTH = 160
SPRITES_MAX = 100
MISSING_S = 1.5  # of a chunk that a healthy file may lack: pictures end a little before the sound
NTSC = (24, 30, 48, 60, 120)


class Plan(msgspec.Struct, frozen=True):
    """Everything that decides the bytes of an encode; stored beside the chunks."""

    source_name: str
    source_bytes: int
    source_modified_ns: int
    source: Source
    rungs: tuple[Rung, ...]  # the fixed ladder; a per-title search replaces it afterwards
    rate: tuple[int, int]  # frames per second as a fraction
    gop: int  # frames
    chunk_frames: int
    duration_s: float
    preset: str
    audio_kbps: int
    video_codec: str = "h264"
    audio_codec: str = "aac"
    per_title: bool = False

    @property
    def chunks(self) -> int:
        """How many chunks the film has."""
        return max(1, -int(-(self.duration_s - 1e-3) // self.chunk_s))

    @property
    def chunk_s(self) -> float:
        """Seconds of film in a whole chunk."""
        return self.chunk_frames * self.rate[1] / self.rate[0]

    def length_of(self, chunk: int) -> float:
        """Seconds of film in this chunk."""
        return min(self.chunk_s, self.duration_s - chunk * self.chunk_s)

    def may_lack(self, chunk: int) -> bool:
        """Whether a healthy film may have no picture at all for this chunk."""
        return chunk > 0 and self.length_of(chunk) <= MISSING_S


def make_plan(file: Path, source: Source, settings: EncodingSettings, *, judged: bool = False) -> Plan:
    """The ladder, GOP and chunks for one source; `judged`: this ffmpeg knows VMAF. Pure but for the file's size and time."""
    rate = exact_rate(source.fps)
    gop = max(2, 2 * round(float(rate) * settings.segment_s / 2))
    stat = file.stat()
    length = min(source.duration_s, settings.duration_s_max) if settings.duration_s_max > 0 else source.duration_s
    per_title = judged and settings.per_title and length >= settings.per_title_from_s
    fixed = ladder_for(
        source.width,
        source.height,
        float(rate),
        rungs_max=settings.rungs_max,
        height_max=settings.height_max,
    )
    return Plan(
        file.name,
        stat.st_size,
        stat.st_mtime_ns,
        source,
        fixed,
        (rate.numerator, rate.denominator),
        gop,
        gop * max(1, round(min(CHUNK_S, max(2 * settings.segment_s, length / CHUNKS_MIN)) * float(rate) / gop)),
        length,
        settings.preset,
        settings.audio_kbps,
        settings.video_codec,
        settings.audio_codec,
        per_title,
    )


def exact_rate(fps: float) -> Fraction:
    """23.98 as 24000/1001: ffmpeg prints rounded rates, and a rounded rate drifts."""
    for whole in NTSC:
        if abs(fps - whole * 1000 / 1001) < 0.006 and abs(fps - whole) > 0.006:
            return Fraction(whole * 1000, 1001)
    return Fraction(fps).limit_denominator(100) if fps >= 1 else Fraction(1)


def chunk_arguments(plan: Plan, file: Path, folder: Path, chunk: int, *, threads: int = 0) -> list[str]:
    """Ffmpeg's arguments for one chunk at all rungs."""
    start = Fraction(chunk * plan.chunk_frames * plan.rate[1], plan.rate[0])
    rate = f"{plan.rate[0]}/{plan.rate[1]}"
    frames = plan.chunk_frames
    if chunk == plan.chunks - 1:
        left = Fraction(plan.duration_s).limit_denominator(1000) - start
        frames = max(1, round(left * plan.rate[0] / plan.rate[1]))
    inlets = "".join(f"[s{number}]" for number in range(len(plan.rungs)))
    graph = f"[0:v:0]fps={rate},split={len(plan.rungs)}{inlets}"
    for number, rung in enumerate(plan.rungs):
        graph += f";[s{number}]scale={rung.width}:{rung.height}:flags=bicubic,setsar=1,format=yuv420p[v{number}]"
    arguments = ["-ss", f"{float(start):.6f}", "-i", str(file), "-filter_complex", graph]
    codec = video_codec(plan.video_codec)
    for number, rung in enumerate(plan.rungs):
        arguments += ["-map", f"[v{number}]", "-frames:v", str(frames)]
        arguments += codec.arguments(
            crf=rung.crf or codec.crf, cap_kbps=rung.cap_kbps, gop=plan.gop, preset=plan.preset, threads=threads
        )
        arguments += ["-video_track_timescale", str(plan.rate[0]), "-map_metadata", "-1", "-map_chapters", "-1"]
        arguments += ["-movflags", "+frag_keyframe+empty_moov+default_base_moof+negative_cts_offsets+skip_trailer"]
        arguments += ["-f", "mp4", str(folder / f"{rung.name}_{chunk:05d}.mp4.part")]
    return arguments


def audio_arguments(plan: Plan, file: Path, folder: Path, number: int) -> list[str]:
    """Ffmpeg's arguments for one sound track: stereo in fragments as long as the picture's."""
    fragment_us = plan.gop * plan.rate[1] * 1_000_000 // plan.rate[0]
    encoder = audio_codec(plan.audio_codec).encoder
    return [
        *("-i", str(file), "-t", f"{plan.duration_s:.3f}", "-map", f"0:a:{number}", "-c:a", encoder),
        *("-b:a", f"{plan.audio_kbps}k", "-ac", "2", "-ar", "48000", "-map_metadata", "-1", "-map_chapters", "-1"),
        *("-movflags", "+empty_moov+default_base_moof+skip_trailer", "-frag_duration", str(fragment_us)),
        *("-f", "mp4", str(folder / f"audio_{number}.mp4.part")),
    ]


def caption_arguments(file: Path, folder: Path, stream: int, name: str) -> list[str]:
    """Ffmpeg's arguments for one text track as WebVTT; `stream` counts the subtitle streams of the file."""
    return ["-i", str(file), "-map", f"0:s:{stream}", "-c:s", "webvtt", "-f", "webvtt", str(folder / f"{name}.part")]


def picture_arguments(plan: Plan, file: Path, folder: Path) -> tuple[list[str], list[str]]:
    """The poster and the scrub sheet (key frames only, 10 columns): their files and ffmpeg's arguments."""
    every = sprite_every_s(plan)
    rows = -(-min(SPRITES_MAX, int(plan.duration_s / every) + 1) // SPRITE_COLUMNS)
    sheet = f"fps=1/{every:g},scale={SPRITE_WIDTH}:-2,tile={SPRITE_COLUMNS}x{rows}"
    at_s = plan.duration_s * 0.2  # the first picture from here on, or the very first of a film with one key frame
    poster = f"scale='min(1280,iw)':-2,select='eq(n,0)+gte(t,{at_s:.2f})*lt(prev_selected_t,{at_s:.2f})'"
    graph = f"[0:v:0]split[p][s];[p]{poster}[po];[s]{sheet}[sh]"
    arguments = ["-skip_frame", "nokey", "-i", str(file), "-t", f"{plan.duration_s:.3f}", "-filter_complex", graph]
    arguments += ["-map", "[po]", "-fps_mode", "passthrough", "-q:v", "4", "-c:v", "mjpeg", "-update", "1"]
    arguments += ["-f", "image2", str(folder / "poster.jpg.part")]
    arguments += ["-map", "[sh]", "-frames:v", "1", "-q:v", "6", "-f", "mjpeg", str(folder / "sprite.jpg.part")]
    return ["poster.jpg", "sprite.jpg"], arguments


def sprite_every_s(plan: Plan) -> float:
    """Seconds of film between two pictures of the scrub sheet."""
    return max(2.0, float(-int(-plan.duration_s // SPRITES_MAX)))

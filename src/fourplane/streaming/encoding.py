"""Encodes a source into the tracks of a ladder: chunks of whole GOPs in parallel, resumable, cancellable.

The film is cut into chunks of whole GOPs. One ffmpeg run encodes one chunk at all rungs (the source is decoded once, `split`,
one x264 per rung: closed GOPs of `segment_s`, constant frame rate, capped constant quality). A chunk is written
as `*.part` and renamed when ffmpeg ended well, so a step that exists is a step that is done, and a second run goes on where
the first one ended. `plan.json` holds what the chunks were made for; a different source or ladder starts anew.
Afterwards the chunks of a rung are joined: fragments are copied and their decode times moved (`tfdt`), nothing is re-encoded.
Sound is one run per track; pictures (poster, scrub sheet) are one more.
"""

import asyncio
import os
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import Corrupt, Rejected
from fourplane.streaming.ffmpeg import EncodeFailed, Ffmpeg
from fourplane.streaming.ladder import Rung, ladder_for
from fourplane.streaming.mp4_boxes import index_file
from fourplane.streaming.probe import Source
from fourplane.streaming.settings import EncodingSettings

CHUNK_S = 20.0
AUDIO_MAX = 8
SPRITE_COLUMNS = 10
SPRITE_WIDTH = 160
SPRITES_MAX = 100
COPY_BYTES = 1 << 20
CHORD = ((220.0, 7), (277.18, 5), (329.63, 9))  # hertz and the seconds in which each note swells
NTSC = (24, 30, 48, 60, 120)


class Progress(msgspec.Struct, frozen=True):
    """How far an encode is: share 0..1, what it does now, and an honest guess of what remains (None before any pace)."""

    share: float
    step: str
    remaining_s: float | None = None
    speed: float = 0.0  # seconds of film per second


class Plan(msgspec.Struct, frozen=True):
    """Everything that decides the bytes of an encode; stored beside the chunks."""

    source_name: str
    source_bytes: int
    source_modified_ns: int
    source: Source
    rungs: tuple[Rung, ...]
    rate: tuple[int, int]  # frames per second as a fraction
    gop: int  # frames
    chunk_frames: int
    duration_s: float
    preset: str
    audio_kbps: int

    @property
    def chunks(self) -> int:
        """How many chunks the film has."""
        per_chunk = self.chunk_frames * self.rate[1] / self.rate[0]
        return max(1, -int(-(self.duration_s - 1e-3) // per_chunk))


class Encoded(msgspec.Struct, frozen=True):
    """Finished files in the work folder: one per rung and sound track, and the pictures."""

    plan: Plan
    video: tuple[tuple[Rung, Path], ...]
    audio: tuple[tuple[str, Path], ...]  # language, file
    poster: Path | None
    sprite: Path | None
    sprite_every_s: float
    took_s: float


def make_plan(file: Path, source: Source, settings: EncodingSettings) -> Plan:
    """The ladder, GOP and chunks for one source; pure but for the file's size and time."""
    rate = exact_rate(source.fps)
    gop = max(2, 2 * round(float(rate) * settings.segment_s / 2))
    stat = file.stat()
    length = min(source.duration_s, settings.duration_s_max) if settings.duration_s_max > 0 else source.duration_s
    return Plan(
        file.name,
        stat.st_size,
        stat.st_mtime_ns,
        source,
        ladder_for(
            source.width,
            source.height,
            float(rate),
            rungs_max=settings.rungs_max,
            height_max=settings.height_max,
        ),
        (rate.numerator, rate.denominator),
        gop,
        gop * max(1, round(CHUNK_S * float(rate) / gop)),
        length,
        settings.preset,
        settings.audio_kbps,
    )


def exact_rate(fps: float) -> Fraction:
    """23.98 as 24000/1001: ffmpeg prints rounded rates, and a rounded rate drifts."""
    for whole in NTSC:
        if abs(fps - whole * 1000 / 1001) < 0.006 and abs(fps - whole) > 0.006:
            return Fraction(whole * 1000, 1001)
    return Fraction(fps).limit_denominator(100) if fps >= 1 else Fraction(1)


class Encode:
    """One encode in one work folder; `run` may be called again after a failure, a cancel or a restart."""

    def __init__(
        self,
        ffmpeg: Ffmpeg,
        file: Path,
        folder: Path,
        settings: EncodingSettings,
        *,
        report: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self._ffmpeg = ffmpeg
        self._file = file
        self._folder = folder
        self._settings = settings
        self._report = report
        self._done: dict[str, float] = {}  # seconds of film per step
        self._resumed = 0.0
        self._began = 0.0
        self._total = 1.0

    async def run(self) -> Encoded:
        """All tracks of the title; raises Rejected (the input's fault) or EncodeFailed."""
        self._began = clock.monotonic_s()
        source = await self._ffmpeg.probe(self._file)
        plan = make_plan(self._file, source, self._settings)
        self._adopt(plan)
        sounds = source.audio[:AUDIO_MAX]
        self._total = plan.duration_s * (1 + 0.05 * len(sounds)) + 0.05 * plan.duration_s
        jobs = self._steps(plan)
        self._resumed = sum(length for name, length, _, _ in jobs if self._is_done(name))
        await self._run_all(jobs)
        self._tell("joining")
        video = tuple([(rung, await self._join(plan, rung)) for rung in plan.rungs])
        audio = tuple(
            (sound.language or f"track{number + 1}" * bool(number), self._folder / f"audio_{number}.mp4")
            for number, sound in enumerate(sounds)
        )
        poster, sprite = self._folder / "poster.jpg", self._folder / "sprite.jpg"
        return Encoded(
            plan,
            video,
            audio,
            poster if poster.exists() else None,
            sprite if sprite.exists() else None,
            _sprite_every(plan),
            clock.monotonic_s() - self._began,
        )

    def _adopt(self, plan: Plan) -> None:
        """Keep what an earlier run of the same plan finished, drop everything else."""
        self._folder.mkdir(parents=True, exist_ok=True)
        stored = self._folder / "plan.json"
        content = msgspec.json.encode(plan)
        if not stored.exists() or stored.read_bytes() != content:
            for old in self._folder.iterdir():
                old.unlink()
            stored.write_bytes(content)

    def _steps(self, plan: Plan) -> list[tuple[str, float, list[str], list[str]]]:
        """(name, seconds of film it stands for, its files, ffmpeg's arguments) in the order in which they start."""
        steps: list[tuple[str, float, list[str], list[str]]] = []
        per_chunk = plan.chunk_frames * plan.rate[1] / plan.rate[0]
        files, arguments = picture_arguments(plan, self._file, self._folder)
        steps.append(("pictures", 0.05 * plan.duration_s, files, arguments))
        for number in range(len(plan.source.audio[:AUDIO_MAX])):
            name = f"audio_{number}.mp4"
            steps.append(
                (name, 0.05 * plan.duration_s, [name], audio_arguments(plan, self._file, self._folder, number))
            )
        for chunk in range(plan.chunks):
            length = min(per_chunk, plan.duration_s - chunk * per_chunk)
            files = [f"{rung.name}_{chunk:05d}.mp4" for rung in plan.rungs]
            arguments = chunk_arguments(plan, self._file, self._folder, chunk, threads=self._settings.threads)
            steps.append((f"chunk {chunk + 1} of {plan.chunks}", length, files, arguments))
        return steps

    def _is_done(self, name: str) -> bool:
        return (self._folder / f"{name}.done").exists()

    async def _run_all(self, steps: list[tuple[str, float, list[str], list[str]]]) -> None:
        gate = asyncio.Semaphore(max(1, min(len(steps), os.cpu_count() or 1)))

        async def run(name: str, length: float, files: list[str], arguments: list[str]) -> None:
            async with gate:
                await self._step(name, length, files, arguments)

        try:
            async with asyncio.TaskGroup() as group:
                for step in steps:
                    group.create_task(run(*step))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _step(self, name: str, length: float, files: list[str], arguments: list[str]) -> None:
        if not self._is_done(name):

            def hear(film_s: float) -> None:
                self._done[name] = min(length, film_s)
                self._tell(name)

            try:
                await self._ffmpeg.run(arguments, on_time=hear, nice=self._settings.nice)
            except EncodeFailed:
                if name != "pictures":  # a title without a poster is still a title
                    raise
            for file in files:
                part = self._folder / f"{file}.part"
                if part.exists() and part.stat().st_size:
                    part.rename(self._folder / file)
                elif name != "pictures":
                    raise Rejected(f"the source gave nothing to encode in {name}", code="broken_source")
            (self._folder / f"{name}.done").touch()
        self._done[name] = length
        self._tell(name)

    def _tell(self, step: str) -> None:
        done = sum(self._done.values())
        elapsed = clock.monotonic_s() - self._began
        fresh = done - self._resumed
        speed = fresh / elapsed if elapsed > 0.5 and fresh > 0 else 0.0
        remaining = (self._total - done) / speed if speed > 0 else None
        self._report(Progress(min(1.0, done / self._total), step, remaining, speed))

    async def _join(self, plan: Plan, rung: Rung) -> Path:
        """One track file of all chunks of a rung, with continuous decode times; yields to the loop per chunk."""
        joined = self._folder / f"{rung.name}.mp4"
        if joined.exists():
            return joined
        part = joined.with_suffix(".joining")
        sequence = 0
        with part.open("wb") as out:
            for chunk in range(plan.chunks):
                await clock.sleep(0)
                base = chunk * plan.chunk_frames * plan.rate[1]
                sequence = _append_chunk(out.write, self._folder / f"{rung.name}_{chunk:05d}.mp4", base, sequence)
        part.rename(joined)
        return joined


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
    for number, rung in enumerate(plan.rungs):
        arguments += ["-map", f"[v{number}]", "-frames:v", str(frames), "-c:v", "libx264", "-preset", plan.preset]
        arguments += ["-crf", str(rung.crf), "-maxrate", f"{rung.cap_kbps}k", "-bufsize", f"{2 * rung.cap_kbps}k"]
        arguments += ["-g", str(plan.gop), "-keyint_min", str(plan.gop), "-sc_threshold", "0", "-flags", "+cgop"]
        arguments += ["-threads", str(threads)] if threads else []
        arguments += ["-video_track_timescale", str(plan.rate[0]), "-map_metadata", "-1", "-map_chapters", "-1"]
        arguments += ["-movflags", "+frag_keyframe+empty_moov+default_base_moof+negative_cts_offsets+skip_trailer"]
        arguments += ["-f", "mp4", str(folder / f"{rung.name}_{chunk:05d}.mp4.part")]
    return arguments


def audio_arguments(plan: Plan, file: Path, folder: Path, number: int) -> list[str]:
    """Ffmpeg's arguments for one sound track: stereo AAC in fragments as long as the picture's."""
    fragment_us = plan.gop * plan.rate[1] * 1_000_000 // plan.rate[0]
    return [
        *("-i", str(file), "-t", f"{plan.duration_s:.3f}", "-map", f"0:a:{number}", "-c:a", "aac"),
        *("-b:a", f"{plan.audio_kbps}k", "-ac", "2", "-ar", "48000", "-map_metadata", "-1", "-map_chapters", "-1"),
        *("-movflags", "+empty_moov+default_base_moof+skip_trailer", "-frag_duration", str(fragment_us)),
        *("-f", "mp4", str(folder / f"audio_{number}.mp4.part")),
    ]


def picture_arguments(plan: Plan, file: Path, folder: Path) -> tuple[list[str], list[str]]:
    """The poster and the scrub sheet (key frames only, 10 columns): their files and ffmpeg's arguments."""
    every = _sprite_every(plan)
    rows = -(-min(SPRITES_MAX, int(plan.duration_s / every) + 1) // SPRITE_COLUMNS)
    sheet = f"fps=1/{every:g},scale={SPRITE_WIDTH}:-2,tile={SPRITE_COLUMNS}x{rows}"
    graph = (
        f"[0:v:0]split[p][s];[p]scale='min(1280,iw)':-2,select='gte(t,{plan.duration_s * 0.2:.2f})'[po];[s]{sheet}[sh]"
    )
    arguments = ["-skip_frame", "nokey", "-i", str(file), "-t", f"{plan.duration_s:.3f}", "-filter_complex", graph]
    arguments += ["-map", "[po]", "-frames:v", "1", "-q:v", "4", "-f", "mjpeg", str(folder / "poster.jpg.part")]
    arguments += ["-map", "[sh]", "-frames:v", "1", "-q:v", "6", "-f", "mjpeg", str(folder / "sprite.jpg.part")]
    return ["poster.jpg", "sprite.jpg"], arguments


def _sprite_every(plan: Plan) -> float:
    return max(2.0, float(-int(-plan.duration_s // SPRITES_MAX)))


def _append_chunk(write: Callable[[bytes], int], path: Path, base: int, sequence: int) -> int:
    """Copy a chunk's fragments with `base` added to their decode times; the init segment only from the first chunk."""
    with path.open("rb") as file:
        init, fragments = index_file(file, path.name)
        if sequence == 0:
            file.seek(0)
            write(file.read(init.size))
        for fragment in fragments:
            sequence += 1
            file.seek(fragment.offset)
            data = bytearray(file.read(fragment.size))
            _renumber(data, base, sequence, path.name)
            write(bytes(data))
    return sequence


def _renumber(data: bytearray, base: int, sequence: int, name: str) -> None:
    mfhd, tfdt = data.find(b"mfhd", 0, 64), data.find(b"tfdt", 0, 256)
    if mfhd < 0 or tfdt < 0:
        raise Corrupt(f"{name} has a fragment without times", file=name, place=0)
    struct.pack_into(">I", data, mfhd + 8, sequence)
    if data[tfdt + 4] != 1:
        raise Corrupt(f"{name} has 32-bit decode times", file=name, place=tfdt)
    at = tfdt + 8
    struct.pack_into(">Q", data, at, struct.unpack_from(">Q", data, at)[0] + base)


async def generate_clip(ffmpeg: Ffmpeg, file: Path, *, duration_s: float = 20.0, size: str = "1280x720") -> None:
    """Slow colours, a living automaton, a title, a clock and a chord: a first title where no film is at hand."""
    usable = (ffmpeg.filters, ffmpeg.filters - {"drawtext"}, frozenset[str]())  # drawtext needs a font, too
    for number, filters in enumerate(usable):
        arguments = [
            *clip_inputs(filters, duration_s, size),
            *("-t", f"{duration_s:g}", "-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-g", "48"),
            *("-c:a", "aac", "-b:a", "96k", "-ac", "2", "-f", "mp4", str(file)),
        ]
        try:
            await ffmpeg.run(arguments)
        except EncodeFailed as error:
            if error.reason == "disk_full" or number == len(usable) - 1:
                raise
        else:
            return


def clip_inputs(filters: frozenset[str], duration_s: float, size: str) -> list[str]:
    """Ffmpeg's arguments up to the encoder: the best picture that these filters can draw."""
    width, height = (int(side) for side in size.split("x"))
    chord = "+".join(f"0.12*sin(2*PI*{hertz}*t)*(0.6+0.4*sin(2*PI*t/{beat}))" for hertz, beat in CHORD)
    sound = ["-f", "lavfi", "-i", f"aevalsrc='{chord}':s=48000:d={duration_s:g}"]
    if "gradients" not in filters:
        return ["-f", "lavfi", "-i", f"testsrc2=size={size}:rate=24", *sound]
    colours = "c0=0x0b1d51:c1=0x7b2d8b:c2=0xff6f61:c3=0x1f7a8c"
    sky = f"gradients=size={width // 4}x{height // 4}:rate=24:n=4:speed=0.012:{colours}:duration={duration_s:g}"
    smooth = f"[0:v]scale={width}:{height}:flags=bilinear,format=yuv420p[sky]"  # drawn small: a sixteenth of the time
    inputs, graph, last = ["-f", "lavfi", "-i", sky], smooth, "sky"
    if "life" in filters:
        cells = f"life=size={width // 8}x{height // 8}:rate=12:mold=12:life_color=white:death_color=0x8fd3fe:ratio=0.12:seed=7"
        inputs += ["-f", "lavfi", "-i", cells]
        scaled = f"[1:v]fps=24,scale={width}:{height}:flags=neighbor,format=yuv420p[cells]"
        graph += f";{scaled};[sky][cells]blend=all_mode=screen:all_opacity=0.45[alive]"
        last = "alive"
    if "drawtext" in filters:
        title = f"drawtext=text='Fourplane':fontcolor=white:fontsize={height // 8}:x=(w-tw)/2:y=h*0.38"
        time = f"drawtext=text='%{{pts\\:hms}}':fontcolor=white@0.8:fontsize={height // 18}:x=(w-tw)/2:y=h*0.56"
        graph += f";[{last}]{title},{time}[named]"
        last = "named"
    number = 2 if "life" in filters else 1
    return [*inputs, *sound, "-filter_complex", graph, "-map", f"[{last}]", "-map", f"{number}:a"]

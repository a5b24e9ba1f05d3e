"""Encodes a source into the tracks of a ladder: chunks of whole GOPs in parallel, resumable, cancellable.

The film is cut into chunks of whole GOPs. One ffmpeg run encodes one chunk at all rungs (the source is decoded once, `split`,
one encoder per rung: closed GOPs of `segment_s`, constant frame rate, capped constant quality). A chunk is written
as `*.part` and renamed when ffmpeg ended well, so a step that exists is a step that is done, and a second run goes on where
the first one ended. `plan.json` holds what the chunks were made for; a different source or ladder starts anew.
Where the plan asks for it, samples of the film are judged first (`per_title`) and `ladder.json` holds the rungs found.
Afterwards the chunks of a rung are joined: fragments are copied and their decode times moved (`tfdt`), nothing is re-encoded.
Sound is one run per track, text one per language; pictures (poster, scrub sheet) are one more.
"""

import asyncio
import os
import struct
from collections.abc import Callable
from pathlib import Path

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import Corrupt, FourplaneError, Rejected
from fourplane.streaming import encode_plan, per_title
from fourplane.streaming.captions import CaptionFile, sidecars
from fourplane.streaming.codecs import video_codec
from fourplane.streaming.encode_plan import AUDIO_MAX, CAPTIONS_MAX, MISSING_S, Plan, make_plan
from fourplane.streaming.ffmpeg import EncodeFailed, Ffmpeg
from fourplane.streaming.ladder import Rung
from fourplane.streaming.mp4_boxes import index_file
from fourplane.streaming.settings import EncodingSettings

EXTRAS = frozenset({"pictures", "captions"})  # a title without a poster or a text track is still a title


class Progress(msgspec.Struct, frozen=True):
    """How far an encode is: share 0..1, what it does now, and an honest guess of what remains (None before any pace)."""

    share: float
    step: str
    remaining_s: float | None = None
    speed: float = 0.0  # seconds of film per second


class Step(msgspec.Struct, frozen=True):
    """One run of ffmpeg: the seconds of film it stands for, the files it makes, its arguments."""

    name: str
    film_s: float
    files: tuple[str, ...]
    arguments: tuple[str, ...]
    covers_s: float = 0.0  # film that must come out; 0: whatever comes

    may_lack: bool = False  # a last chunk so short that a film whose sound is longer has no picture for it

    @property
    def extra(self) -> bool:
        """Whether the title can do without it."""
        return self.name.partition(" ")[0] in EXTRAS


class Encoded(msgspec.Struct, frozen=True):
    """Finished files in the work folder: one per rung, sound track and language of text, and the pictures."""

    plan: Plan
    video: tuple[tuple[Rung, Path], ...]
    audio: tuple[tuple[str, Path], ...]  # language, file
    poster: Path | None
    sprite: Path | None
    sprite_every_s: float
    took_s: float
    captions: tuple[CaptionFile, ...] = ()


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
        self._need(video_codec(self._settings.video_codec).encoder)
        source = await self._ffmpeg.probe(self._file)
        plan = make_plan(self._file, source, self._settings, judged="libvmaf" in self._ffmpeg.filters)
        self._adopt(plan)
        search, rest = self._search_steps(plan), [*self._other_steps(plan), *self._chunk_steps(plan)]
        self._total = sum(step.film_s for step in [*search, *rest])
        self._resumed = sum(step.film_s for step in [*search, *rest] if self._is_done(step.name))
        if search:
            plan = await self._search(plan, search)
        await self._run_all([*self._other_steps(plan), *self._chunk_steps(plan)])
        self._tell("joining")
        video = tuple([(rung, await self._join(plan, rung)) for rung in plan.rungs])
        audio = tuple(
            (sound.language or f"track{number + 1}" * bool(number), self._folder / f"audio_{number}.mp4")
            for number, sound in enumerate(source.audio[:AUDIO_MAX])
        )
        poster, sprite = self._folder / "poster.jpg", self._folder / "sprite.jpg"
        return Encoded(
            plan,
            video,
            audio,
            poster if poster.exists() else None,
            sprite if sprite.exists() else None,
            encode_plan.sprite_every_s(plan),
            clock.monotonic_s() - self._began,
            self._caption_files(plan),
        )

    def _need(self, encoder: str) -> None:
        if encoder not in self._ffmpeg.encoders:
            raise EncodeFailed(f"this ffmpeg has no {encoder}", code="no_encoder")

    def _adopt(self, plan: Plan) -> None:
        """Keep what an earlier run of the same plan finished, drop everything else."""
        self._folder.mkdir(parents=True, exist_ok=True)
        stored = self._folder / "plan.json"
        content = msgspec.json.encode(plan)
        if not stored.exists() or stored.read_bytes() != content:
            for old in self._folder.iterdir():
                old.unlink()
            stored.write_bytes(content)

    # -- the steps

    def _search_steps(self, plan: Plan) -> list[Step]:
        """Samples of the film and their judgement, where the plan wants a ladder of the title's own."""
        if not plan.per_title:
            return []
        codec, steps = video_codec(plan.video_codec), []
        dear_s = per_title.WINDOW_S * len(codec.tried)
        for window in range(len(per_title.windows(plan.duration_s))):
            arguments = per_title.encode_arguments(plan, self._file, codec, window)
            steps.append(Step(f"sample {window + 1}", dear_s, (), tuple(arguments)))
            arguments = per_title.judge_arguments(plan, self._file, codec, window)
            steps.append(Step(f"judging {window + 1}", dear_s, (), tuple(arguments)))
        return steps

    def _other_steps(self, plan: Plan) -> list[Step]:
        """Pictures, sound and text."""
        files, arguments = encode_plan.picture_arguments(plan, self._file, self._folder)
        steps = [Step("pictures", 0.05 * plan.duration_s, tuple(files), tuple(arguments))]
        for number in range(len(plan.source.audio[:AUDIO_MAX])):
            name = f"audio_{number}.mp4"
            arguments = encode_plan.audio_arguments(plan, self._file, self._folder, number)
            steps.append(Step(name, 0.05 * plan.duration_s, (name,), tuple(arguments)))
        for number, (name, file, stream) in enumerate(self._texts(plan)):
            arguments = encode_plan.caption_arguments(file, self._folder, stream, name)
            steps.append(Step(f"captions {number + 1}", 0.01 * plan.duration_s, (name,), tuple(arguments)))
        return steps

    def _chunk_steps(self, plan: Plan) -> list[Step]:
        """The picture, chunk by chunk."""
        steps = []
        for chunk in range(plan.chunks):
            files = tuple(f"{rung.name}_{chunk:05d}.mp4" for rung in plan.rungs)
            enough = plan.chunks >= 2 * (os.cpu_count() or 1)  # chunks for all cores: one thread each wastes nothing
            threads, length = self._settings.threads or int(enough), plan.length_of(chunk)
            arguments = encode_plan.chunk_arguments(plan, self._file, self._folder, chunk, threads=threads)
            name = f"chunk {chunk + 1} of {plan.chunks}"
            lack = plan.may_lack(chunk)
            steps.append(Step(name, length, files, tuple(arguments), covers_s=length, may_lack=lack))
        return steps

    def _texts(self, plan: Plan) -> list[tuple[str, Path, int]]:
        """(file to make, where it comes from, which stream there) of every text track, those of the source first."""
        streams = [(sub.language, self._file, sub.number) for sub in plan.source.captions]
        found = [*streams, *((language, file, 0) for language, file in sidecars(self._file))][:CAPTIONS_MAX]
        return [
            (f"captions_{number}_{language or 'und'}.vtt", file, at)
            for number, (language, file, at) in enumerate(found)
        ]

    def _caption_files(self, plan: Plan) -> tuple[CaptionFile, ...]:
        made = [(name, self._folder / name) for name, _, _ in self._texts(plan)]
        return tuple(
            CaptionFile(name.rpartition("_")[2][:-4], path)
            for name, path in made
            if path.exists() and b"-->" in path.read_bytes()
        )

    # -- running them

    async def _search(self, plan: Plan, steps: list[Step]) -> Plan:
        """The plan with the title's own ladder; where the samples cannot be judged, the fixed one stays."""
        stored = self._folder / "ladder.json"
        codec = video_codec(plan.video_codec)
        if not stored.exists():
            try:
                for first in range(0, len(steps), 2):
                    for step in steps[first : first + 2]:
                        await self._step(step)
                windows = len(per_title.windows(plan.duration_s))
                samples = [per_title.read_scores(plan, self._folder, codec, window) for window in range(windows)]
            except (EncodeFailed, Corrupt):
                return plan
            means = per_title.merged(sample for some in samples for sample in some)
            rungs = per_title.choose(means, rungs_max=self._settings.rungs_max)
            stored.write_bytes(msgspec.json.encode(rungs))
            for old in self._folder.glob("try_*"):
                old.unlink()
        for step in steps:
            self._done[step.name] = step.film_s
        return msgspec.structs.replace(plan, rungs=msgspec.json.decode(stored.read_bytes(), type=tuple[Rung, ...]))

    def _is_done(self, name: str) -> bool:
        return (self._folder / f"{name}.done").exists()

    async def _run_all(self, steps: list[Step]) -> None:
        gate = asyncio.Semaphore(max(1, min(len(steps), os.cpu_count() or 1)))

        async def run(step: Step) -> None:
            async with gate:
                await self._step(step)

        try:
            async with asyncio.TaskGroup() as group:
                for step in steps:
                    group.create_task(run(step))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _step(self, step: Step) -> None:
        if not self._is_done(step.name):
            came = 0.0

            def hear(film_s: float) -> None:
                nonlocal came
                came = max(came, film_s)
                self._done[step.name] = min(step.film_s, came)  # times of several outputs may step back
                self._tell(step.name)

            try:
                await self._ffmpeg.run(step.arguments, on_time=hear, nice=self._settings.nice, folder=self._folder)
            except FourplaneError:
                if not step.extra:
                    raise
            self._keep(step, came)
            (self._folder / f"{step.name}.done").touch()
        self._done[step.name] = step.film_s
        self._tell(step.name)

    def _keep(self, step: Step, came_s: float) -> None:
        """Give finished files their names; raises Rejected where the source gave too little."""
        if step.covers_s - came_s > MISSING_S:
            whole = msgspec.json.decode((self._folder / "plan.json").read_bytes(), type=Plan)
            raise Rejected(
                f"{self._file.name} is cut off: pictures end long before its {whole.duration_s:.0f} s are over, in {step.name}",
                code="truncated",
            )
        for file in step.files:
            part = self._folder / f"{file}.part"
            if step.may_lack and not came_s:
                part.unlink(missing_ok=True)
            elif part.exists() and part.stat().st_size:
                part.rename(self._folder / file)
            elif not step.extra:
                raise Rejected(f"the source gave nothing to encode in {step.name}", code="broken_source")

    def _tell(self, step: str) -> None:
        done = sum(self._done.values())
        elapsed = clock.monotonic_s() - self._began
        fresh = done - self._resumed
        speed = fresh / elapsed if elapsed > 0.5 and fresh > 0 else 0.0
        remaining = max(0.0, self._total - done) / speed if speed > 0 else None
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
                base, made = chunk * plan.chunk_frames * plan.rate[1], self._folder / f"{rung.name}_{chunk:05d}.mp4"
                if made.exists() or not plan.may_lack(chunk):
                    sequence = _append_chunk(out.write, made, base, sequence)
        part.rename(joined)
        return joined


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

"""The ffmpeg program: where it is, what it can do, and one run of it with progress.

It is only ever run as a child process with explicit arguments, never through a shell. `-progress pipe:1` tells how far a run
is in the time of the film; whatever else it prints is kept (bounded) to name the fault when it fails.
"""

import importlib.util
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from fourplane.foundation import processes
from fourplane.foundation.errors import FourplaneError, Misconfigured, NotFound, Rejected
from fourplane.streaming.probe import Source, read_source

LINES_MAX = 200
FULL_DISK = ("No space left on device", "Disk quota exceeded")
BROKEN_INPUT = ("Invalid data found", "moov atom not found", "Error while decoding", "does not contain any stream")


class EncodeFailed(FourplaneError):
    """ffmpeg gave up; the message holds its own last words."""

    code = "encode_failed"


class Ffmpeg(msgspec.Struct, frozen=True):
    """A usable ffmpeg: its path, version and the encoders that matter here."""

    path: str
    version: str
    encoders: frozenset[str]
    filters: frozenset[str] = frozenset()

    async def probe(self, file: Path) -> Source:
        """What is in `file`; raises Rejected with the fault of the input."""
        lines: list[str] = []
        await _collect([self.path, "-nostdin", "-hide_banner", "-i", str(file)], lines, 2_000)
        return read_source("\n".join(lines), file.name)

    async def run(
        self,
        arguments: Sequence[str],
        *,
        on_time: Callable[[float], None] | None = None,
        nice: int = 0,
        folder: Path | None = None,
    ) -> None:
        """Run to the end in `folder`; `on_time` hears the seconds of film done. Raises EncodeFailed or Rejected (broken input).

        Cancelling the caller ends the child.
        """
        words: deque[str] = deque(maxlen=LINES_MAX)

        def hear(line: str) -> None:
            key, _, value = line.strip().partition("=")
            if key in {"out_time_us", "out_time_ms"}:  # both are microseconds, an old quirk of ffmpeg
                if on_time is not None and value.lstrip("-").isdigit():
                    on_time(max(0.0, int(value) / 1e6))
            elif key and not (value and key.replace("_", "").replace("-", "").isalnum() and " " not in key):
                words.append(line.strip())

        head = [self.path, "-nostdin", "-hide_banner", "-loglevel", "error", "-y", "-progress", "pipe:1"]
        child = await processes.start([*head, *arguments], on_line=hear, nice=nice, cwd=folder)
        code = await child.wait()
        if code != 0:
            raise _failure(code, list(words))


def _failure(code: int, words: list[str]) -> FourplaneError:
    said = " | ".join(words[-3:]) or f"exit code {code}"
    whole = "\n".join(words)
    if any(mark in whole for mark in FULL_DISK):
        return EncodeFailed("the disk is full", code="disk_full", said=said)
    if any(mark in whole for mark in BROKEN_INPUT):
        return Rejected(f"the source is broken: {said}", code="broken_source")
    return EncodeFailed(f"ffmpeg failed: {said}", exit_code=code)


_known: dict[tuple[str, int, int], Ffmpeg] = {}  # a program asked once: path, size, time of change; a handful at most


async def find(configured: str = "") -> Ffmpeg:
    """The first usable ffmpeg: the configured one, the imageio-ffmpeg wheel's, the one on PATH; raises Misconfigured."""
    for path in _candidates(configured):
        key = _file_key(path)
        if key in _known:
            return _known[key]
        lines: list[str] = []
        try:
            await _collect([path, "-hide_banner", "-version"], lines, 20)
            if not lines or not lines[0].startswith("ffmpeg version"):
                continue
            encoders: list[str] = []
            await _collect([path, "-hide_banner", "-encoders"], encoders, 1_000)
            filters: list[str] = []
            await _collect([path, "-hide_banner", "-filters"], filters, 2_000)
        except (OSError, NotFound):
            continue
        found = _known[key] = Ffmpeg(path, lines[0].split()[2], _second_words(encoders), _second_words(filters))
        return found
    raise Misconfigured(
        "no ffmpeg was found: install the extra `video` (imageio-ffmpeg), put ffmpeg on PATH or set FOURPLANE_FFMPEG",
        code="no_ffmpeg",
    )


def _file_key(path: str) -> tuple[str, int, int]:
    program = Path(processes.find_program(path) or path)
    try:
        facts = program.stat()
    except OSError:
        return path, 0, 0
    return path, facts.st_size, facts.st_mtime_ns


def _candidates(configured: str) -> list[str]:
    if configured:
        return [configured]
    found: list[str] = []
    wheel = importlib.util.find_spec("imageio_ffmpeg")  # not imported: its own look-up would hold the loop
    if wheel is not None and wheel.origin:
        found += sorted(str(path) for path in (Path(wheel.origin).parent / "binaries").glob("ffmpeg-*"))
    on_path = processes.find_program("ffmpeg")
    return [*found, on_path] if on_path else found


async def _collect(argv: Sequence[str], lines: list[str], bound: int) -> None:
    def hear(line: str) -> None:
        if len(lines) < bound:
            lines.append(line.rstrip("\n"))

    child = await processes.start(list(argv), on_line=hear)
    await child.wait()


def _second_words(lines: list[str]) -> frozenset[str]:
    return frozenset(words[1] for line in lines if len(words := line.split()) > 1)

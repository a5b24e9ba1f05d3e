"""The ladder of one title, found by looking at it: short samples at several sizes and qualities, judged by VMAF.

A calm film looks perfect at half the rate of a busy one, and at a low rate a small sharp picture beats a large blurred
one. So a few windows of the film are encoded at every size of the fixed ladder and at three qualities each, and compared
with the source by VMAF (at the top rung's size, at most 1080 lines). Rates are logarithmic and VMAF linear in the quality
number between the samples, which gives a curve per size; of all curves only the upper edge counts: the best picture
any size gives for a rate. Rungs are placed on that edge at even ratios of rate, from a start rung that a bad
connection can play up to the rate at which the full size reaches `TOP_VMAF`; a rung that no viewer could tell from the one
below it (`NOTICEABLE`) is left out. Pure, but for `read_scores`. Source: Netflix, "Per-Title Encode Optimization" (2015).
"""

import bisect
import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from fourplane.foundation.errors import Corrupt
from fourplane.streaming.codecs import VideoCodec
from fourplane.streaming.encode_plan import Plan
from fourplane.streaming.ladder import Rung

WINDOW_S = 2.0
WINDOWS = (2, 6)  # at least, at most
WINDOW_EVERY_S = 60.0
REFERENCE_MAX = 1080  # lines; VMAF's default model stands for a 1080p screen
SUBSAMPLE = 4  # of pictures that are judged
TOP_VMAF = 95.0
START_KBPS = 300.0
START_VMAF = 30.0
RATIO = 1.8  # of rates between rungs, at least
NOTICEABLE = 3.0  # VMAF; six are what half of all viewers notice
STEP = 0.5  # of quality along a curve
PEAK = 2.0  # a rung's cap over its average


class Sample(msgspec.Struct, frozen=True):
    """One size at one quality: what it costs and how it looks."""

    width: int
    height: int
    crf: float
    kbps: float
    vmaf: float


def windows(duration_s: float) -> list[float]:
    """Where the samples of a film begin, in seconds."""
    count = min(WINDOWS[1], max(WINDOWS[0], round(duration_s / WINDOW_EVERY_S)))
    count = max(1, min(count, int(duration_s / WINDOW_S)))
    return [max(0.0, (number + 0.5) * duration_s / count - WINDOW_S / 2) for number in range(count)]


def tried(plan: Plan, codec: VideoCodec) -> list[tuple[Rung, float]]:
    """Every size and quality that a window is encoded at."""
    return [(rung, crf) for rung in plan.rungs for crf in codec.tried]


def encode_arguments(plan: Plan, file: Path, codec: VideoCodec, window: int) -> list[str]:
    """Ffmpeg's arguments for one window at everything tried; files are named by place, in the working folder."""
    at, count = windows(plan.duration_s)[window], len(plan.rungs)
    frames = max(1, round(WINDOW_S * plan.rate[0] / plan.rate[1]))
    inlets = "".join(f"[s{number}]" for number in range(count))
    graph = f"[0:v:0]fps={plan.rate[0]}/{plan.rate[1]},trim=end_frame={frames},split={count}{inlets}"
    outputs: list[str] = []
    for number, rung in enumerate(plan.rungs):
        copies = "".join(f"[v{number}_{place}]" for place in range(len(codec.tried)))
        size = f"scale={rung.width}:{rung.height}:flags=bicubic,setsar=1,format=yuv420p"
        graph += f";[s{number}]{size},split={len(codec.tried)}{copies}"
        for place, crf in enumerate(codec.tried):
            outputs += ["-map", f"[v{number}_{place}]"]
            outputs += codec.arguments(crf=crf, cap_kbps=0, gop=plan.gop, preset=plan.preset)
            outputs += ["-f", "mp4", f"try_{window}_{number}_{place}.mp4"]
    return ["-ss", f"{at:.3f}", "-i", str(file), "-filter_complex", graph, *outputs]


def judge_arguments(plan: Plan, file: Path, codec: VideoCodec, window: int) -> list[str]:
    """Ffmpeg's arguments that compare the window's encodes with the source; each writes a log beside its file."""
    at, candidates = windows(plan.duration_s)[window], tried(plan, codec)
    frames = max(1, round(WINDOW_S * plan.rate[0] / plan.rate[1]))
    rate, top = f"{plan.rate[1]}/{plan.rate[0]}", plan.rungs[0]
    scale = min(1.0, REFERENCE_MAX / min(top.width, top.height))
    size = f"{2 * round(top.width * scale / 2)}:{2 * round(top.height * scale / 2)}"
    same = f"scale={size}:flags=bicubic,setsar=1,format=yuv420p,settb={rate},setpts=N"
    inputs = ["-ss", f"{at:.3f}", "-i", str(file)]
    outlets = "".join(f"[r{number}]" for number in range(len(candidates)))
    graph = f"[0:v:0]fps={plan.rate[0]}/{plan.rate[1]},trim=end_frame={frames},{same},split={len(candidates)}{outlets}"
    outputs: list[str] = []
    for number in range(len(candidates)):
        name = f"try_{window}_{number // len(codec.tried)}_{number % len(codec.tried)}"
        inputs += ["-i", f"{name}.mp4"]
        judge = f"libvmaf=n_subsample={SUBSAMPLE}:log_fmt=json:log_path={name}.json:shortest=1"
        graph += f";[{number + 1}:v]{same}[d{number}];[d{number}][r{number}]{judge}[o{number}]"
        outputs += ["-map", f"[o{number}]", "-f", "null", "-"]
    return [*inputs, "-filter_complex", graph, *outputs]


def read_scores(plan: Plan, folder: Path, codec: VideoCodec, window: int) -> list[Sample]:
    """What came of one window; raises Corrupt when a log lacks its score."""
    found = []
    for number, (rung, crf) in enumerate(tried(plan, codec)):
        name = f"try_{window}_{number // len(codec.tried)}_{number % len(codec.tried)}"
        try:
            told = msgspec.json.decode((folder / f"{name}.json").read_bytes())
            vmaf = float(told["pooled_metrics"]["vmaf"]["mean"])
        except (msgspec.DecodeError, KeyError, TypeError, OSError) as error:
            raise Corrupt(f"the comparison of {name} left no score", file=name, place=0) from error
        kbps = 8 * (folder / f"{name}.mp4").stat().st_size / 1000 / WINDOW_S
        found.append(Sample(rung.width, rung.height, crf, kbps, vmaf))
    return found


def merged(samples: Iterable[Sample]) -> list[Sample]:
    """The mean of all windows for each size and quality."""
    groups: dict[tuple[int, int, float], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.width, sample.height, sample.crf), []).append(sample)
    return [
        Sample(*key, sum(one.kbps for one in some) / len(some), sum(one.vmaf for one in some) / len(some))
        for key, some in groups.items()
    ]


def curve(points: Sequence[Sample]) -> list[Sample]:
    """One size from its best to its cheapest quality in small steps between the samples."""
    known = sorted(points, key=lambda point: point.crf)
    found = []
    for left, right in itertools.pairwise(known):
        for step in range(round((right.crf - left.crf) / STEP)):
            share = step * STEP / (right.crf - left.crf)
            kbps = math.exp((1 - share) * math.log(left.kbps) + share * math.log(right.kbps))
            vmaf = (1 - share) * left.vmaf + share * right.vmaf
            found.append(Sample(left.width, left.height, left.crf + step * STEP, kbps, vmaf))
    return [*found, known[-1]]


def best_edge(samples: Sequence[Sample]) -> list[Sample]:
    """Rising in rate and VMAF: for every rate the best picture that any size gives."""
    sizes: dict[tuple[int, int], list[Sample]] = {}
    for sample in samples:
        sizes.setdefault((sample.width, sample.height), []).append(sample)
    points = sorted((point for some in sizes.values() for point in curve(some)), key=lambda one: (one.kbps, -one.vmaf))
    edge: list[Sample] = []
    for point in points:
        if not edge or point.vmaf > edge[-1].vmaf:
            edge.append(point)
    return edge


def choose(samples: Sequence[Sample], *, rungs_max: int) -> tuple[Rung, ...]:
    """The rungs of a title, the largest first; `samples` are the means over its windows."""
    assert samples
    edge = best_edge(samples)
    full = max(sample.width * sample.height for sample in samples)
    tops = curve([sample for sample in samples if sample.width * sample.height == full])
    good = [point for point in tops if point.vmaf >= TOP_VMAF]
    top = min(good, key=lambda point: point.kbps) if good else max(tops, key=lambda point: point.vmaf)
    usable = [point for point in edge if point.kbps < top.kbps / RATIO and point.vmaf >= START_VMAF]
    chosen = [top]
    if usable and rungs_max > 1:
        start = _nearest(usable, START_KBPS)
        between = max(1, min(rungs_max - 1, int(math.log(top.kbps / start.kbps) / math.log(RATIO) + 0.5)))
        for place in range(1, between + 1):
            point = _nearest(usable, top.kbps * (start.kbps / top.kbps) ** (place / between))
            if point.height <= chosen[-1].height and chosen[-1].vmaf - point.vmaf >= NOTICEABLE:
                chosen.append(point)
    return _named(chosen)


def _nearest(points: Sequence[Sample], kbps: float) -> Sample:
    """The best point that costs no more than `kbps`, or the cheapest of all."""
    at = bisect.bisect_right([point.kbps for point in points], kbps * 1.001)
    return points[max(0, at - 1)]


def _named(points: Sequence[Sample]) -> tuple[Rung, ...]:
    rungs: list[Rung] = []
    for point in points:
        lines = min(point.width, point.height)
        name = f"{lines}p"
        if any(rung.name == name for rung in rungs):
            name = f"{name}-{round(point.kbps)}k"
        cap = max(150, round(PEAK * point.kbps))
        rungs.append(Rung(name, point.width, point.height, cap, point.crf, round(point.vmaf, 1)))
    return tuple(rungs)

"""Which sizes and rates a source is encoded at when nobody looked at it closely: the fixed ladder (`per_title` looks).

The top rung is the source's own height (never enlarged), the others follow the usual steps down to a start rung that a bad
connection can play. Rates scale with the pixels per second to the power 0.75 around 3 Mb/s for 720p24, the relation that
per-title ladders cluster around (Netflix, 2015); x264 runs at constant quality below that cap, so a calm film costs
less than its cap. Sizes are even and keep the source's shape.
"""

import msgspec

STEPS = (2160, 1440, 1080, 720, 540, 360, 240)
ANCHOR_PIXELS = 1280 * 720 * 24
ANCHOR_KBPS = 3_000


class Rung(msgspec.Struct, frozen=True):
    """One rendition to make; `cap_kbps` bounds the rate over one second of buffer."""

    name: str
    width: int
    height: int
    cap_kbps: int
    crf: float = 0.0  # 0: the codec's usual one
    vmaf: float = 0.0  # as the per-title search predicts it; 0: nobody looked


def ladder_for(width: int, height: int, fps: float, *, rungs_max: int = 5, height_max: int = 2160) -> tuple[Rung, ...]:
    """Rungs from the largest to the smallest; portrait sources are measured by their short side."""
    short = min(width, height)
    tops = [step for step in STEPS if step <= min(short, height_max)]
    heights = tops or [short]
    if short <= height_max and heights[0] < short * 0.9:
        heights.insert(0, short)
    if len(heights) > 3 and heights[-1] == 240:
        heights.pop()
    if len(heights) > rungs_max:
        heights = [*heights[: rungs_max - 1], heights[-1]] if rungs_max > 1 else heights[-1:]
    return tuple(_rung(width, height, short, wanted, fps) for wanted in heights)


def _rung(width: int, height: int, short: int, wanted: int, fps: float) -> Rung:
    scale = wanted / short
    wide, high = max(2, 2 * round(width * scale / 2)), max(2, 2 * round(height * scale / 2))
    kbps = round(ANCHOR_KBPS * (wide * high * fps / ANCHOR_PIXELS) ** 0.75)
    return Rung(f"{wanted}p", wide, high, max(150, kbps))

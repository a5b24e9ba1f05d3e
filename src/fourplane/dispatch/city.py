"""A city for those who bring no map: a bent grid with a hierarchy of streets, avenues, two rings, a river with bridges.

Everything follows from the seed. Streets are the lines of a grid that is turned, stretched and bent a little; every
third is tertiary, every sixth secondary, every twelfth primary; the old centre is one-way. Eight avenues run out from
the middle, one ring encloses the centre and a trunk ring the city. A river cuts the grid: only larger streets cross it.
Blocks grow sparse towards the edge and parks hold no streets, as in cities people know.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fourplane.dispatch.cells import EARTH_RADIUS_M
from fourplane.dispatch.roads import CLASS_NUMBERS, Roads, Way, build

NAME = "Four Rivers"
CENTER = (42.5, -20.5)  # in the Atlantic: nobody will take it for a real place
COLUMNS, ROWS, BLOCK_M = 116, 92, 112.0
RIVER_M = 210.0
AVENUES = 8
Place = tuple[int, int]


def make_city(seed: int = 4) -> Roads:
    """The whole city as a road network, the same for the same seed."""
    rng = np.random.default_rng(seed)
    x, y = _bent_grid(rng)
    classes = _streets(rng, x, y)
    _avenues(classes)
    for radius, name in ((14, "primary"), (38, "trunk")):
        _ring(classes, radius, CLASS_NUMBERS[name])
    ways = [
        Way((_number(a), _number(b)), kind, _one_way(a, b, kind))
        if not _backwards(a, b)
        else Way((_number(b), _number(a)), kind, _one_way(a, b, kind))
        for (a, b), kind in classes.items()
    ]
    scale = EARTH_RADIUS_M * math.pi / 180
    lat = CENTER[0] + y.ravel() / scale
    lng = CENTER[1] + x.ravel() / (scale * math.cos(math.radians(CENTER[0])))
    return build(lat, lng, ways, name=NAME)


def _number(place: Place) -> int:
    return place[1] * COLUMNS + place[0]


def _bent_grid(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    column, row = np.meshgrid(np.arange(COLUMNS) - COLUMNS / 2, np.arange(ROWS) - ROWS / 2)
    x, y = column * BLOCK_M, row * BLOCK_M
    for _ in range(5):  # long soft waves, shorter ones weaker
        length, strength = rng.uniform(2_500, 7_000), rng.uniform(40, 130)
        angle, phase = rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi)
        wave = strength * np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / length + phase)
        x, y = x + wave * np.sin(angle), y + wave * np.cos(angle)
    x, y = x + rng.normal(0, 7, x.shape), y + rng.normal(0, 7, y.shape)
    turn = math.radians(14)
    return x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)


def _river_m(x: float, y: float) -> float:
    """How far a place is from the middle of the river."""
    return abs(y + 1_250 - 620 * math.sin(x / 1_900) - 260 * math.sin(x / 760 + 1)) * 0.86


def _park(x: float, y: float) -> bool:
    return any(
        ((x - px) / rx) ** 2 + ((y - py) / ry) ** 2 < 1
        for px, py, rx, ry in (
            (-1_500, 1_250, 620, 380),
            (2_300, 2_250, 500, 640),
            (-3_300, -2_700, 900, 520),
            (3_600, -600, 420, 420),
        )
    )


def _kind(line: int, half: int) -> str:
    distance = abs(line - half)
    return (
        "primary"
        if distance % 12 == 0
        else "secondary"
        if distance % 6 == 0
        else "tertiary"
        if distance % 3 == 0
        else "residential"
    )


def _streets(
    rng: np.random.Generator, x: NDArray[np.float64], y: NDArray[np.float64]
) -> dict[tuple[Place, Place], int]:
    classes: dict[tuple[Place, Place], int] = {}
    half_column, half_row = COLUMNS // 2, ROWS // 2
    for row in range(ROWS):
        for column in range(COLUMNS):
            for a, b, kind in (
                ((column, row), (column + 1, row), _kind(row, half_row)),
                ((column, row), (column, row + 1), _kind(column, half_column)),
            ):
                if b[0] >= COLUMNS or b[1] >= ROWS:
                    continue
                out = math.hypot((column - half_column) / half_column, (row - half_row) / half_row)
                mid_x, mid_y = (x[a[1], a[0]] + x[b[1], b[0]]) / 2, (y[a[1], a[0]] + y[b[1], b[0]]) / 2
                if out > 1.0 + 0.06 * math.sin(7 * math.atan2(row - half_row, column - half_column)):
                    continue
                small = kind == "residential"
                if kind not in {"primary", "secondary"} and _river_m(mid_x, mid_y) < RIVER_M:
                    continue
                if kind != "primary" and _park(mid_x, mid_y):
                    continue
                if rng.random() < (0.04 + 0.55 * max(0.0, out - 0.45) if small else 0.0):
                    continue
                if out > 0.8 and kind == "tertiary" and rng.random() < 0.3:
                    continue
                classes[a, b] = CLASS_NUMBERS[kind]
    return classes


def _steps(points: list[Place]) -> Iterator[tuple[Place, Place]]:
    """Neighbouring places of the grid along a line, diagonals included."""
    for (a, b), (c, d) in pairwise(points):
        count = max(abs(c - a), abs(d - b))
        line = (
            [(round(a + (c - a) * n / count), round(b + (d - b) * n / count)) for n in range(count + 1)]
            if count
            else []
        )
        yield from pairwise(line)


def _lay(classes: dict[tuple[Place, Place], int], points: list[Place], kind: int) -> None:
    for a, b in _steps(points):
        if a != b and all(0 <= p[0] < COLUMNS and 0 <= p[1] < ROWS for p in (a, b)):
            key = (b, a) if (b, a) in classes else (a, b)
            classes[key] = min(kind, classes.get(key, kind))


def _avenues(classes: dict[tuple[Place, Place], int]) -> None:
    middle = (COLUMNS // 2, ROWS // 2)
    for number in range(AVENUES):
        angle = 2 * math.pi * (number + 0.25) / AVENUES
        knee = (round(middle[0] + 20 * math.cos(angle)), round(middle[1] + 17 * math.sin(angle)))
        end = (
            round(middle[0] + 0.9 * middle[0] * math.cos(angle + 0.12)),
            round(middle[1] + 0.9 * middle[1] * math.sin(angle + 0.12)),
        )
        _lay(classes, [middle, knee, end], CLASS_NUMBERS["primary"])


def _ring(classes: dict[tuple[Place, Place], int], radius: float, kind: int) -> None:
    middle = (COLUMNS / 2, ROWS / 2)
    points = [
        (
            round(middle[0] + radius * math.cos(2 * math.pi * n / 40)),
            round(middle[1] + 0.86 * radius * math.sin(2 * math.pi * n / 40)),
        )
        for n in range(41)
    ]
    _lay(classes, points, kind)


def _centre(place: Place) -> bool:
    return math.hypot(place[0] - COLUMNS / 2, place[1] - ROWS / 2) < 13


def _one_way(a: Place, b: Place, kind: int) -> bool:
    straight = a[0] == b[0] or a[1] == b[1]
    return straight and kind >= CLASS_NUMBERS["tertiary"] and _centre(a) and _centre(b)


def _backwards(a: Place, b: Place) -> bool:
    """Neighbouring one-way streets run against each other."""
    return (a[1] % 2 == 1) if a[1] == b[1] else (a[0] % 2 == 0)

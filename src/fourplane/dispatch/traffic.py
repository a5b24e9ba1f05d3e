"""Cars that drive along the roads of a city, thousands at once in columns: for load, demonstrations and simulated worlds.

A car is on an edge, so many metres from its tail. A step moves all cars; those past the end of their edge take the next
one: of their planned way where they have one, else a street by chance (seeldom back where they came from, and towards
the middle when they are far out). Places follow the bends of the road. Cost: 0.3 us a car and step.
"""

from collections import deque

import numpy as np
from numpy.typing import NDArray

from fourplane.dispatch.roads import Roads

Floats = NDArray[np.float64]
HOME_M = 4_500.0
HOPS_MAX = 8  # edges a car may pass in one step


class Traffic:
    """`count` cars spread around the middle; `pace` 1 is as fast as the roads say."""

    def __init__(self, roads: Roads, count: int, rng: np.random.Generator, *, pace: float = 1.0) -> None:
        self._roads, self._rng, self._pace = roads, rng, pace
        self._center = (roads.center[1] - roads.west) * roads.x_scale, (roads.center[0] - roads.south) * roads.y_scale
        self._out = np.hypot(roads.x - self._center[0], roads.y - self._center[1])
        nodes = pick_nodes(roads, count, rng)
        self.edges = self._cruise(nodes, np.full(count, -1))
        self.metres = rng.random(count) * roads.metres[self.edges]
        self._speeds = np.asarray(roads.metres / np.maximum(roads.seconds, 0.1), np.float64)
        self._temper = rng.uniform(0.85, 1.15, count)
        self._parked = np.zeros(count, bool)
        self._ways: dict[int, deque[int]] = {}
        self._bend()

    def step(self, seconds: float) -> list[int]:
        """Move everybody; the cars that reached the end of their way and park there."""
        roads, arrived = self._roads, []
        moving = ~self._parked
        self.metres[moving] += (self._speeds[self.edges] * self._temper)[moving] * (seconds * self._pace)
        for _ in range(HOPS_MAX):
            over = np.flatnonzero(moving & (self.metres >= roads.metres[self.edges]))
            if len(over) == 0:
                break
            self.metres[over] -= roads.metres[self.edges[over]]
            planned = np.array([int(car) in self._ways for car in over], bool)
            free = over[~planned]
            self.edges[free] = self._cruise(roads.heads[self.edges[free]], roads.tails[self.edges[free]])
            for car in over[planned].tolist():
                way = self._ways[car]
                if way:
                    self.edges[car] = way.popleft()
                else:
                    self._park(car)
                    moving[car] = False
                    arrived.append(car)
        self.metres = np.minimum(self.metres, roads.metres[self.edges])
        return arrived

    def send(self, car: int, edges: list[int]) -> None:
        """Give a car a way that begins where its present edge ends; it parks at the end of it."""
        self._ways[car] = deque(edges)
        self._parked[car] = False

    def release(self, car: int) -> None:
        """Let a car cruise again."""
        self._ways.pop(car, None)
        self._parked[car] = False

    def next_node(self, car: int) -> int:
        """Where the car's present edge ends."""
        return int(self._roads.heads[self.edges[car]])

    def places(self) -> tuple[Floats, Floats]:
        """Latitude and longitude of every car."""
        share = self.metres / np.maximum(self._roads.metres[self.edges], 1e-6)
        first, last = self._first[self.edges], self._first[self.edges + 1] - 1
        at = self._along[first] + share * (self._along[last] - self._along[first])
        before = np.clip(np.searchsorted(self._along, at, side="right") - 1, first, last - 1)
        width = np.maximum(self._along[before + 1] - self._along[before], 1e-9)
        part = np.clip((at - self._along[before]) / width, 0, 1)
        lat = self._lat[before] + (self._lat[before + 1] - self._lat[before]) * part
        lng = self._lng[before] + (self._lng[before + 1] - self._lng[before]) * part
        return lat, lng

    def _park(self, car: int) -> None:
        self._parked[car] = True
        self.metres[car] = float(self._roads.metres[self.edges[car]])

    def _cruise(self, nodes: NDArray[np.int32], came_from: NDArray[np.int64]) -> NDArray[np.int32]:
        roads = self._roads
        first, degree = roads.starts[nodes], np.diff(roads.starts)[nodes]
        one = first + (self._rng.random(len(nodes)) * degree).astype(np.int32)
        other = first + (self._rng.random(len(nodes)) * degree).astype(np.int32)
        back = roads.heads[one] == came_from
        far = self._out[nodes] > HOME_M
        better = self._out[roads.heads[other]] < self._out[roads.heads[one]]
        return np.where(back | (far & better), other, one).astype(np.int32)

    def _bend(self) -> None:
        """All edges' lines one after the other, and how far along each point is; edges lie a metre apart."""
        roads = self._roads
        counts = roads.columns["shape_count"].astype(np.int64)
        lengths = np.abs(counts) + 2
        self._first = np.concatenate([[0], np.cumsum(lengths)])
        edge = np.repeat(np.arange(len(lengths)), lengths)
        number = np.arange(len(edge)) - self._first[edge]
        inner = np.where(counts[edge] >= 0, number - 1, np.abs(counts[edge]) - number)
        shape = np.clip(roads.columns["shape_at"][edge] + inner, 0, max(len(roads.columns["shape_lat"]) - 1, 0))
        ends = np.where(number == 0, roads.tails[edge], roads.heads[edge])
        is_end = (number == 0) | (number == lengths[edge] - 1)
        lats, lngs = roads.columns["shape_lat"], roads.columns["shape_lng"]
        if len(lats) == 0:
            lats = lngs = np.zeros(1, np.int32)
        self._lat = np.where(is_end, roads.lat[ends], lats[shape] * 1e-7)
        self._lng = np.where(is_end, roads.lng[ends], lngs[shape] * 1e-7)
        steps = np.hypot(np.diff(self._lng) * roads.x_scale, np.diff(self._lat) * roads.y_scale)
        steps[self._first[1:-1] - 1] = 1.0
        self._along = np.concatenate([[0.0], np.cumsum(steps)])


def pick_nodes(
    roads: Roads, count: int, rng: np.random.Generator, *, spread_m: float = 2_600.0, centers: int = 4
) -> NDArray[np.int32]:
    """Road nodes where people are: dense around the middle and a few other centres, thin outside."""
    home = np.random.default_rng(7)  # the centres belong to the city, not to the draw
    x0, y0 = (roads.center[1] - roads.west) * roads.x_scale, (roads.center[0] - roads.south) * roads.y_scale
    weights = np.exp(-((roads.x - x0) ** 2 + (roads.y - y0) ** 2) / (2 * spread_m**2))
    near = np.flatnonzero(weights > 0.1)
    for node in home.choice(near, min(centers, len(near)), replace=False):
        away = (roads.x - roads.x[node]) ** 2 + (roads.y - roads.y[node]) ** 2
        weights = weights + 1.5 * np.exp(-away / (2 * 500.0**2))
    chosen = rng.choice(len(weights), count, p=weights / weights.sum())
    return np.asarray(chosen, np.int32)

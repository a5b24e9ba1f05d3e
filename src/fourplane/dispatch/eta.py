"""How long until a driver is there: road time for every candidate of a request from one search.

Twenty drivers want to reach one rider. Instead of twenty searches, one runs backwards from the pick-up over the reversed
network and stops when it has met all twenty (or after `limit_s`). A driver counts from the nearest node, plus the way to it.
`route` finds one way forward with its line for the map, by A*.

What a road costs depends on the hour (`at_hour`; big roads more than small ones), and `pace` multiplies every answer:
finished trips correct the pace of their hour online (an exponential mean of real over expected seconds), so that a rainy
evening shows in the next estimate. Cost per request, Porto, 20 candidates: 30-80 us compiled, 5-20 ms plain.
"""

import heapq
import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from fourplane.dispatch import compiled
from fourplane.dispatch.cells import EARTH_RADIUS_M
from fourplane.dispatch.driver_index import DriverIndex, to_e7
from fourplane.dispatch.index_layout import BUCKET_RING, ENTRY, LINK, MARK, WAY
from fourplane.dispatch.packed_index import PackedIndex
from fourplane.dispatch.roads import GRID_M, LOCAL_SPEED_MPS, SNAP_M_MAX, Roads, Snapped
from fourplane.foundation.errors import Rejected

Seconds = NDArray[np.float64]
PACE_WEIGHT = 0.02
GENERATIONS_MAX = (1 << 31) - 2  # searches before the marks are wiped
PACE_RANGE = (0.5, 3.0)
LINE_MAX = 20_000  # points of a way that are drawn in one call
ROW_BYTES, CANDIDATE_BYTES = 96, 80  # of an answer, at most: a place's keys, and a candidate's five numbers


class Route(msgspec.Struct, frozen=True):
    """A way through the city."""

    seconds: float
    metres: float
    line: list[tuple[float, float]]  # (lat, lng) from the first point to the last
    edges: list[int] = []


class Ranked(msgspec.Struct, frozen=True):
    """Candidates of one request, nearest by line first: numbers, metres by line, seconds by road (inf: too far)."""

    drivers: NDArray[np.int64]
    metres: Seconds
    etas: Seconds


class Space:
    """Where the kernels find some places (1e-7 degrees) and leave who is near them; kept by who asks often."""

    __slots__ = ("angles", "answer", "counts", "etas", "found", "lats", "lngs")

    def __init__(self, places: int, count: int) -> None:
        self.lats, self.lngs = np.zeros(places, np.int32), np.zeros(places, np.int32)
        self.found, self.angles = np.empty((places, count + 1), np.int64), np.empty((places, count))
        self.etas, self.counts = np.empty((places, count)), np.empty(places, np.int64)
        self.answer = np.empty(places * (ROW_BYTES + count * CANDIDATE_BYTES), np.uint8)


class EtaStatistics(msgspec.Struct, frozen=True):
    """Cumulative counts and the present pace (1 = as the map says)."""

    searches: int
    candidates: int
    routes: int
    settled: int
    pace: float
    hour: int  # of the local day, -1: none in particular
    learned: int  # pick-ups that corrected the pace


class Eta:
    """Times on one network. Not for two threads: the columns it searches with are its own."""

    def __init__(self, roads: Roads) -> None:
        self.roads = roads
        self.pace = 1.0
        self.paces: list[float] = [0.0] * 24  # by hour of the local day, 0: nothing known
        self.hour = -1
        self._learned = 0
        self._kernels = compiled.load("road_kernels")
        self._answers = compiled.load("answer_kernels")
        nodes, edges = len(roads.lat), len(roads.heads)
        self._ways, self._edges = np.zeros(nodes, WAY), np.empty(nodes, np.int32)
        self._marks = np.zeros(nodes, MARK)
        self._links = np.empty(edges, LINK)
        self._links["head"] = roads.back_heads
        self._points = np.empty((LINE_MAX, 2))
        self._ring, self._entries = np.full(BUCKET_RING, -1, np.int32), np.zeros(2 * edges + nodes + 2, ENTRY)
        self._generation = self._path_generation = 0
        self._searches = self._candidates = self._routes = self._settled = 0
        self._ground = (
            np.array([roads.west, roads.south, roads.x_scale, roads.y_scale]), GRID_M, roads.grid_width,
            roads.grid_height, SNAP_M_MAX, roads.x, roads.y, roads.grid_starts, roads.grid_nodes,
        )  # fmt: skip
        self._use(roads.seconds)

    def at_hour(self, hour: int) -> None:
        """Go by the traffic of this hour of the local day from now on; cheap where it is the hour already."""
        if hour != self.hour:
            self.hour = hour
            self._use(self.roads.seconds * self.roads.hour_factors(hour))
            self.pace = self.paces[hour] or self.pace  # an hour nobody knows begins as the last one ended

    def _use(self, seconds: NDArray[np.float32]) -> None:
        self.seconds = seconds
        self._links["cost"] = seconds[self.roads.back_edges]
        self._speed_mps = float((self.roads.metres / np.maximum(seconds, 1e-3)).max()) * 1.001
        self._per_second = min(1.0, (BUCKET_RING - 3) / float(seconds.max()))
        self._per_second_of_way = min(2.0, (BUCKET_RING - 3) / (2.01 * float(seconds.max())))

    def snap_many(self, lats: Seconds, lngs: Seconds) -> tuple[NDArray[np.int32], Seconds]:
        """Nearest node (-1: no road near) and metres to it for each place in degrees."""
        roads = self.roads
        nodes, metres = np.full(len(lats), -1, np.int32), np.full(len(lats), SNAP_M_MAX)
        if self._kernels is not None:
            xs = np.ascontiguousarray((lngs - roads.west) * roads.x_scale)
            ys = np.ascontiguousarray((lats - roads.south) * roads.y_scale)
            self._kernels.snap_many(
                xs, ys, GRID_M, roads.grid_width, roads.grid_height, SNAP_M_MAX,
                roads.x, roads.y, roads.grid_starts, roads.grid_nodes, nodes, metres,
            )  # fmt: skip
            return nodes, metres
        for n, (lat, lng) in enumerate(zip(lats, lngs, strict=True)):
            found = roads.find_node(float(lat), float(lng))
            if found is not None:
                nodes[n], metres[n] = found.node, found.metres
        return nodes, metres

    def snap(self, lat: float, lng: float, what: str = "this place") -> Snapped:
        """The nearest node; raises Rejected where there is no road near."""
        if self._kernels is None:
            return self.roads.snap(lat, lng, what)
        nodes, metres = self.snap_many(np.array([lat]), np.array([lng]))
        return Snapped(int(nodes[0]), float(metres[0])) if nodes[0] >= 0 else self.roads.snap(lat, lng, what)

    def to_pickup(
        self,
        lat: float,
        lng: float,
        lats: Seconds,
        lngs: Seconds,
        *,
        limit_s: float = 900.0,
        source: Snapped | None = None,
    ) -> Seconds:
        """Seconds from each driver to the pick-up by road, inf past the limit; raises Rejected off the roads.

        `source` is the pick-up's node where the caller knows it.
        """
        source = source or self.snap(lat, lng, "the pick-up")
        nodes, metres = self.snap_many(lats, lngs)
        seconds = self._reach(source.node, np.maximum(nodes, 0), limit_s / self.pace) * self.pace
        seconds[nodes < 0] = np.inf
        self._searches += 1
        self._candidates += len(lats)
        return np.asarray(seconds + (metres + source.metres) / LOCAL_SPEED_MPS)

    def rank_many(
        self, index: DriverIndex, lats: Seconds, lngs: Seconds, *, radius_m: float, count: int, mask: int, wanted: int,
        limit_s: float = 900.0,
    ) -> list[Ranked]:  # fmt: skip
        """Nearest drivers and their road times for many requests at once; nobody where no road is near a request."""
        if self._kernels is None or not isinstance(index, PackedIndex):
            return [
                self._rank(index, float(lat), float(lng), radius_m, count, mask, wanted, limit_s)
                for lat, lng in zip(lats, lngs, strict=True)
            ]
        space = Space(len(lats), count)
        space.lats[:], space.lngs[:] = to_e7(lats), to_e7(lngs)
        self._kernels.rank_many(
            *self._question(index, space, radius_m=radius_m, mask=mask, wanted=wanted, limit_s=limit_s)
        )
        found, angles, etas, counts = space.found, space.angles, space.etas, space.counts
        ranked = []
        for n, many in enumerate(np.maximum(counts, 0).tolist()):
            self._candidates += many
            ranked.append(Ranked(found[n, :many], angles[n, :many] * EARTH_RADIUS_M, etas[n, :many] * self.pace))
        return ranked

    def near_json(
        self, index: DriverIndex, space: "Space", *, radius_m: float, mask: int, wanted: int, limit_s: float = 900.0
    ) -> bytes | None:
        """The same for the places in `space`, as JSON objects of columns with commas between; None where nothing is compiled.

        `space.counts` then tells how many are near each place, below zero where no road is.
        """
        if self._answers is None or not isinstance(index, PackedIndex):
            return None
        size = self._answers.near_json(
            *self._question(index, space, radius_m=radius_m, mask=mask, wanted=wanted, limit_s=limit_s),
            EARTH_RADIUS_M, self.pace, space.answer,
        )  # fmt: skip
        self._candidates += sum(count for count in space.counts.tolist() if count > 0)
        return space.answer[:size].tobytes()

    def _question(
        self, index: PackedIndex, space: "Space", *, radius_m: float, mask: int, wanted: int, limit_s: float
    ) -> tuple[Any, ...]:
        """What the kernel that ranks wants to know; the generations it uses are taken."""
        count = len(space.lats)
        self._searches += count
        if self._generation + count > GENERATIONS_MAX:
            self._marks[:], self._generation = 0, 0
        first, self._generation = self._generation + 1, self._generation + count
        return (
            space.lats, space.lngs, radius_m / EARTH_RADIUS_M, mask, wanted, index.settings.level, *index.columns(),
            *self._ground, limit_s / self.pace, LOCAL_SPEED_MPS, self.roads.back_starts, self._links, self._marks, first,
            self.roads.next_twin, self._per_second, self._ring, self._entries,
            space.found, space.angles, space.etas, space.counts,
        )  # fmt: skip

    def _rank(  # noqa: PLR0917 - what rank_many was asked
        self, index: DriverIndex, lat: float, lng: float, radius_m: float, count: int, mask: int, wanted: int, limit_s: float
    ) -> "Ranked":  # fmt: skip
        self._searches += 1
        source = self.roads.find_node(lat, lng)
        drivers, metres = index.nearest(lat, lng, radius_m=radius_m, count=count, mask=mask, wanted=wanted)
        if source is None or len(drivers) == 0:
            return Ranked(np.empty(0, np.int64), np.empty(0), np.empty(0))
        etas = self.to_pickup(lat, lng, *index.places(drivers), limit_s=limit_s, source=source)
        self._searches -= 1
        return Ranked(drivers.astype(np.int64), metres, etas)

    def route(self, lat: float, lng: float, to_lat: float, to_lng: float) -> Route:
        """The quickest way; raises Rejected where either end has no road near."""
        nodes, metres = self.snap_many(np.array([lat, to_lat]), np.array([lng, to_lng]))
        if nodes.min() < 0:
            self.roads.snap(lat, lng, "the start")
            self.roads.snap(to_lat, to_lng, "the destination")
        self._routes += 1
        edges = self._path(int(nodes[0]), int(nodes[1]))
        if edges is None:
            raise Rejected("no road leads there", code="no_route")
        local = float(metres.sum())
        seconds = float(self.seconds[edges].sum(dtype=np.float64)) * self.pace + local / LOCAL_SPEED_MPS
        line = [(lat, lng), *self._line(edges), (to_lat, to_lng)]
        return Route(seconds, float(self.roads.metres[edges].sum(dtype=np.float64)) + local, line, edges.tolist())

    def learn(self, expected_s: float, real_s: float) -> None:
        """Let one finished trip correct the pace; absurd ones are ignored."""
        if expected_s < 30 or not 0.2 < real_s / expected_s < 5:
            return
        pace = self.pace * (1 + PACE_WEIGHT * (real_s / expected_s - 1))
        self.pace = min(max(pace, PACE_RANGE[0]), PACE_RANGE[1])
        self._learned += 1
        if self.hour >= 0:
            self.paces[self.hour] = self.pace

    def statistics(self) -> EtaStatistics:
        return EtaStatistics(
            self._searches, self._candidates, self._routes, self._settled, round(self.pace, 3), self.hour, self._learned
        )

    def _reach(self, source: int, targets: NDArray[np.int32], limit_s: float) -> Seconds:
        roads = self.roads
        if self._kernels is None:
            return _reach_plain(roads, self._links, source, targets, limit_s)
        self._generation += 1
        if self._generation > GENERATIONS_MAX:
            self._marks[:], self._generation = 0, 1
        out = np.empty(len(targets))
        self._settled += self._kernels.reach(
            source,
            targets,
            limit_s,
            roads.back_starts,
            self._links,
            self._marks,
            self._generation,
            roads.next_twin,
            self._per_second,
            self._ring,
            self._entries,
            out,
        )
        return out

    def _path(self, source: int, target: int) -> NDArray[np.int32] | None:
        """The edges of the quickest way."""
        roads = self.roads
        if self._kernels is None:
            plain = _path_plain(roads, self.seconds, source, target)
            return None if plain is None else np.array(plain, np.int32)
        self._path_generation += 1
        if self._path_generation > GENERATIONS_MAX:
            self._ways["seen"], self._path_generation = 0, 1
        count = self._kernels.way(
            source, target, self._speed_mps, roads.starts, roads.tails, roads.heads, self.seconds, roads.x, roads.y,
            self._ways, self._path_generation, roads.owners, self._per_second_of_way, self._ring, self._entries, self._edges,
        )  # fmt: skip
        return None if count < 0 else self._edges[:count].copy()

    def _line(self, edges: NDArray[np.int32]) -> list[tuple[float, float]]:
        """The points along these edges."""
        roads, columns = self.roads, self.roads.columns
        if self._kernels is None or len(edges) == 0:
            return roads.shape(edges)
        count = self._kernels.draw(
            edges, len(edges), roads.tails, roads.heads, roads.lat, roads.lng, columns["shape_count"],
            columns["shape_at"], columns["shape_lat"], columns["shape_lng"], self._points,
        )  # fmt: skip
        return roads.shape(edges) if count < 0 else [tuple(point) for point in self._points[:count].tolist()]


def _reach_plain(
    roads: Roads, links: NDArray[np.void], source: int, targets: NDArray[np.int32], limit_s: float
) -> Seconds:
    left = set(targets.tolist())
    done: dict[int, float] = {}
    best: dict[int, float] = {}
    while source >= 0:
        best[source], source = 0.0, int(roads.next_twin[source])
    heap = [(0.0, node) for node in best]
    while heap and left:
        key, node = heapq.heappop(heap)
        if key > best[node]:
            continue
        if key > limit_s:
            break
        if node in left:
            left.discard(node)
            done[node] = key
        for edge in range(roads.back_starts[node], roads.back_starts[node + 1]):
            head, cost = int(links["head"][edge]), key + float(links["cost"][edge])
            if cost < best.get(head, math.inf):
                best[head] = cost
                heapq.heappush(heap, (cost, head))
    return np.array([done.get(int(target), math.inf) for target in targets], np.float64)


def _path_plain(roads: Roads, seconds: NDArray[np.float32], source: int, target: int) -> list[int] | None:
    best: dict[int, float] = {source: 0.0}
    by_edge: dict[int, int] = {}
    heap = [(0.0, source)]
    while heap:
        key, node = heapq.heappop(heap)
        if roads.owners[node] == target:
            return _walk_back(roads, by_edge, node)
        if key > best[node]:
            continue
        for edge in range(roads.starts[node], roads.starts[node + 1]):
            head, cost = int(roads.heads[edge]), key + float(seconds[edge])
            if cost < best.get(head, math.inf):
                best[head], by_edge[head] = cost, edge
                heapq.heappush(heap, (cost, head))
    return None


def _walk_back(roads: Roads, by_edge: dict[int, int], node: int) -> list[int]:
    edges = []
    while node in by_edge:
        edges.append(by_edge[node])
        node = int(roads.tails[by_edge[node]])
    return edges[::-1]


def line_length_m(line: Sequence[tuple[float, float]]) -> float:
    """Metres along a line of (lat, lng)."""
    if len(line) < 2:
        return 0.0
    points = np.radians(np.array(line))
    across = np.diff(points[:, 1]) * np.cos((points[1:, 0] + points[:-1, 0]) / 2)
    return float(np.hypot(np.diff(points[:, 0]), across).sum() * 6_371_008.8)

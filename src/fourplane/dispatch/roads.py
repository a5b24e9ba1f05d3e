"""The road network: a directed graph in flat columns (CSR), made from ways, saved as one file, snapped to in microseconds.

Ways share points; a point where ways meet or end is a junction and becomes a node, the points between give an edge its
shape. No edge is longer than `EDGE_M_MAX` (longer ones get nodes in between), so the nearest node is never more than half
of that from the nearest place on a road, and snapping to nodes is snapping to edges. Only the largest part in which every
node reaches every other is kept: a driver can always get to a rider and away again.

Edges from node n are `starts[n]:starts[n + 1]`; the reversed graph, which the ETA walks, has its own columns. Seconds
per edge come from the road's class (or its stated limit) in ordinary traffic plus what a junction costs; `hour_factors`
says what an hour of the day makes of them.

A forbidden turn is a twin: the edge on which it begins does not lead to the junction but to a second node at the same
place (`twin_of`), which has every way out but the forbidden one. So the graph stays one of nodes, and every search over it
obeys. Twins come last and nothing snaps to them; whoever looks for the junction looks for its twins too (`next_twin`).
"""

import io
import zipfile
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from fourplane.dispatch.cells import EARTH_RADIUS_M, cell_ids
from fourplane.foundation.errors import Corrupt, Rejected

FORMAT = 2
EDGE_M_MAX = 200.0
NODES_MAX = 20_000_000
SNAP_M_MAX = 500.0
GRID_M = 120.0
# What each class is called, how fast traffic on it really is (km/h), seconds lost at each junction along it.
CLASSES: tuple[tuple[str, float, float], ...] = (
    ("motorway", 90, 0), ("trunk", 70, 0.5), ("primary", 44, 2), ("secondary", 38, 2.5),
    ("tertiary", 32, 3), ("unclassified", 27, 3), ("residential", 23, 3), ("living_street", 11, 3),
)  # fmt: skip
CLASS_NUMBERS = {name: number for number, (name, _, _) in enumerate(CLASSES)}
LOCAL_SPEED_MPS = 4.0  # from a doorway to the road

COLUMNS = (
    "lat", "lng", "starts", "heads", "seconds", "metres", "shape_at", "shape_count", "shape_lat", "shape_lng",
    "line_class", "line_count", "line_lat", "line_lng", "edge_class", "twin_of",
)  # fmt: skip
# How much longer a way takes at each hour of the day, on the big roads (up to secondary) and on the small ones.
BIG_ROADS = 3
BIG_HOURS = (0.80, 0.78, 0.78, 0.78, 0.79, 0.84, 0.95, 1.18, 1.35, 1.22, 1.06, 1.03,
             1.07, 1.08, 1.05, 1.08, 1.18, 1.33, 1.38, 1.20, 1.02, 0.93, 0.88, 0.83)  # fmt: skip
SMALL_HOURS = (0.90, 0.89, 0.89, 0.89, 0.89, 0.92, 0.98, 1.08, 1.16, 1.08, 1.02, 1.01,
               1.03, 1.04, 1.02, 1.04, 1.09, 1.15, 1.17, 1.08, 1.01, 0.97, 0.94, 0.92)  # fmt: skip


class Way(msgspec.Struct, frozen=True):
    """A road as a map gives it: its points by number, in driving order when one-way."""

    points: Sequence[int]
    road_class: int
    one_way: bool = False
    speed_kmh: float = 0.0  # stated limit, 0 = unknown


class Turn(msgspec.Struct, frozen=True):
    """A rule at a junction: coming from one way (by its place in the list), another may not or alone may be taken."""

    from_way: int
    via: int
    to_way: int
    only: bool = False


class Snapped(msgspec.Struct, frozen=True):
    """The road node nearest to a place."""

    node: int
    metres: float


class Roads:
    """A finished network. Columns never change; `name` and `attribution` are for people."""

    def __init__(self, columns: dict[str, NDArray[Any]], *, name: str, attribution: str) -> None:
        self.name, self.attribution = name, attribution
        self.columns = columns
        self.lat: NDArray[np.float64] = columns["lat"]
        self.lng: NDArray[np.float64] = columns["lng"]
        self.starts: NDArray[np.int32] = columns["starts"]
        self.heads: NDArray[np.int32] = columns["heads"]
        self.seconds: NDArray[np.float32] = columns["seconds"]
        self.metres: NDArray[np.float32] = columns["metres"]
        self.south, self.north = float(self.lat.min()), float(self.lat.max())
        self.west, self.east = float(self.lng.min()), float(self.lng.max())
        self.tails = np.repeat(np.arange(len(self.lat), dtype=np.int32), np.diff(self.starts))
        self._join_twins(columns["twin_of"])
        self._reverse()
        self._project()

    @cached_property
    def center(self) -> tuple[float, float]:
        """Where junctions lie densest (within about two kilometres): the city, not the middle of its frame."""
        square = 250.0
        rows, columns = int(self.y.max() / square) + 1, int(self.x.max() / square) + 1
        counts, _, _ = np.histogram2d(
            self.y, self.x, bins=(rows, columns), range=((0, rows * square), (0, columns * square))
        )
        row, column = np.unravel_index(int(_blurred(counts, 8.0).argmax()), counts.shape)
        return (
            self.south + (float(row) + 0.5) * square / self.y_scale,
            self.west + (float(column) + 0.5) * square / self.x_scale,
        )

    def hour_factors(self, hour: int) -> NDArray[np.float32]:
        """By how much each edge's seconds are multiplied at this hour of the local day."""
        big = self.columns["edge_class"] <= BIG_ROADS
        return np.where(big, np.float32(BIG_HOURS[hour % 24]), np.float32(SMALL_HOURS[hour % 24])).astype(np.float32)

    def _join_twins(self, twin_of: NDArray[np.int32]) -> None:
        """`owners`: the junction a node stands for, itself for most; `next_twin`: a junction's twins as a chain, -1 ends."""
        self.junctions = len(self.lat) - len(twin_of)
        self.owners = np.arange(len(self.lat), dtype=np.int32)
        self.owners[self.junctions :] = twin_of
        self.next_twin = np.full(len(self.lat), -1, np.int32)
        for twin, owner in enumerate(twin_of.tolist(), self.junctions):
            self.next_twin[twin], self.next_twin[owner] = self.next_twin[owner], twin

    def _reverse(self) -> None:
        order = np.argsort(self.heads, kind="stable")
        self.back_edges = order.astype(np.int32)
        self.back_heads = self.tails[order]
        self.back_seconds = self.seconds[order]
        counts = np.bincount(self.heads, minlength=len(self.lat))
        self.back_starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)

    def _project(self) -> None:
        """Metres east and north of the south-west corner, and the raster of nodes that snapping looks into."""
        scale = EARTH_RADIUS_M * np.pi / 180
        self.x_scale = scale * float(np.cos(np.radians((self.south + self.north) / 2)))
        self.y_scale = scale
        self.x = (self.lng - self.west) * self.x_scale
        self.y = (self.lat - self.south) * self.y_scale
        self.grid_width = int(self.x.max() / GRID_M) + 1
        self.grid_height = int(self.y.max() / GRID_M) + 1
        row, column = (self.y / GRID_M).astype(np.int64), (self.x / GRID_M).astype(np.int64)
        square = (row * self.grid_width + column)[: self.junctions]
        self.grid_nodes = np.argsort(square, kind="stable").astype(np.int32)
        counts = np.bincount(square, minlength=self.grid_width * self.grid_height)
        self.grid_starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)

    def find_node(self, lat: float, lng: float, *, metres_max: float = SNAP_M_MAX) -> Snapped | None:
        """The node nearest to a place, None when no road is within `metres_max`."""
        x, y = (lng - self.west) * self.x_scale, (lat - self.south) * self.y_scale
        column, row = int(x // GRID_M), int(y // GRID_M)
        reach = int(metres_max // GRID_M) + 1
        best, best_node = metres_max, -1
        for ring in range(reach + 1):
            if best < (ring - 1) * GRID_M:
                break
            for at_row in range(max(row - ring, 0), min(row + ring, self.grid_height - 1) + 1):
                step = 1 if abs(at_row - row) == ring else max(2 * ring, 1)
                for at_column in range(column - ring, column + ring + 1, step):
                    if not 0 <= at_column < self.grid_width:
                        continue
                    square = at_row * self.grid_width + at_column
                    nodes = self.grid_nodes[self.grid_starts[square] : self.grid_starts[square + 1]]
                    if len(nodes) == 0:
                        continue
                    away = np.hypot(self.x[nodes] - x, self.y[nodes] - y)
                    nearest = int(away.argmin())
                    if away[nearest] < best:
                        best, best_node = float(away[nearest]), int(nodes[nearest])
        return None if best_node < 0 else Snapped(best_node, best)

    def snap(self, lat: float, lng: float, what: str = "this place") -> Snapped:
        """The same; raises Rejected where there is no road: the sea, a forest, another city."""
        found = self.find_node(lat, lng)
        if found is None:
            raise Rejected(
                f"{what} is more than {SNAP_M_MAX:.0f} m from any road of {self.name}",
                code="no_road", lat=round(lat, 6), lng=round(lng, 6),
            )  # fmt: skip
        return found

    def shape(self, edges: Sequence[int] | NDArray[np.int32]) -> list[tuple[float, float]]:
        """The line along edges that follow each other, as (lat, lng): each edge's bends, then its head."""
        if len(edges) == 0:
            return []
        own = np.asarray(edges, np.int64)
        counts = self.columns["shape_count"][own].astype(np.int64)
        bends = np.abs(counts)
        ends = np.cumsum(bends + 1)
        edge = np.repeat(np.arange(len(own)), bends + 1)
        number = np.arange(int(ends[-1])) - (ends - bends - 1)[edge]
        inner = np.where(counts[edge] >= 0, number, bends[edge] - 1 - number)
        is_head = number == bends[edge]
        point = np.where(is_head, 0, self.columns["shape_at"][own][edge] + inner)
        heads = self.heads[own][edge]
        if len(self.columns["shape_lat"]):
            lat = np.where(is_head, self.lat[heads], self.columns["shape_lat"][point] * 1e-7)
            lng = np.where(is_head, self.lng[heads], self.columns["shape_lng"][point] * 1e-7)
        else:
            lat, lng = self.lat[heads], self.lng[heads]
        first = int(self.tails[own[0]])
        return [(float(self.lat[first]), float(self.lng[first])), *zip(lat.tolist(), lng.tolist(), strict=True)]

    def to_bytes(self) -> bytes:
        """The network as one file."""
        out = io.BytesIO()
        facts = msgspec.json.encode({"format": FORMAT, "name": self.name, "attribution": self.attribution})
        columns: dict[str, Any] = {name: self.columns[name] for name in COLUMNS}
        np.savez_compressed(out, facts=np.frombuffer(facts, np.uint8), **columns)
        return out.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Roads":
        """What `to_bytes` made; raises Corrupt for anything else."""
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                facts = msgspec.json.decode(file["facts"].tobytes(), type=dict[str, str | int])
                if facts["format"] != FORMAT:
                    raise Corrupt(f"road network of format {facts['format']}, this version reads {FORMAT}")
                columns = {name: file[name] for name in COLUMNS}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, msgspec.DecodeError) as error:
            raise Corrupt(f"not a road network: {error}") from error
        return cls(columns, name=str(facts["name"]), attribution=str(facts["attribution"]))


class _Edges:
    """Edges as they are found, in columns."""

    def __init__(self) -> None:
        self.tails: list[int] = []
        self.heads: list[int] = []
        self.metres: list[float] = []
        self.speeds: list[float] = []
        self.costs: list[float] = []
        self.shape_at: list[int] = []
        self.shape_count: list[int] = []
        self.shape: list[int] = []
        self.ways: list[int] = []
        self.classes: list[int] = []

    def add(  # noqa: PLR0917 - one row
        self, points: Sequence[int], metres: float, speed: float, cost: float, way: int, kind: int, *, one_way: bool
    ) -> None:  # fmt: skip
        """One piece of road between two junctions; both directions share the shape (a negative count: backwards)."""
        inner = len(points) - 2
        for tail, head, count in ((points[0], points[-1], inner), (points[-1], points[0], -inner)):
            self.tails.append(tail)
            self.heads.append(head)
            self.metres.append(metres)
            self.speeds.append(speed)
            self.costs.append(cost)
            self.shape_at.append(len(self.shape))
            self.shape_count.append(count)
            self.ways.append(way)
            self.classes.append(kind)
            if one_way:
                break
        self.shape.extend(points[1:-1])


def build(
    lat: NDArray[np.float64], lng: NDArray[np.float64], ways: Sequence[Way], *, name: str, attribution: str = "",
    turns: Sequence[Turn] = (),
) -> Roads:  # fmt: skip
    """A network from ways over points; raises Rejected when they hold no road that leads anywhere."""
    places = {n: at for at, n in enumerate(n for n, way in enumerate(ways) if len(way.points) >= 2)}
    turns = [
        Turn(places[t.from_way], t.via, places[t.to_way], t.only)
        for t in turns
        if {t.from_way, t.to_way} <= places.keys()
    ]
    ways = [way for way in ways if len(way.points) >= 2]
    if not ways:
        raise Rejected(f"{name} holds no roads for cars", code="no_roads")
    if len(lat) > NODES_MAX:
        raise Rejected(f"{name} has more than {NODES_MAX:,} points; cut a smaller area", code="map_too_large")
    lines = _lines(ways, lat, lng)
    lat, lng, ways = _with_points_between(lat, lng, ways)
    uses = [0] * len(lat)
    for way in ways:
        for point in {*way.points}:
            uses[point] += 1
        uses[way.points[0]] = uses[way.points[-1]] = 2
    edges = _Edges()
    for number, (way, lengths) in enumerate(zip(ways, _lengths(lat, lng, ways), strict=True)):
        _cut(way, number, uses, lengths, edges)
    columns = _finish(edges, lat, lng, name=name, turns=turns)
    return Roads(columns | lines, name=name, attribution=attribution)


def _lengths(lat: NDArray[np.float64], lng: NDArray[np.float64], ways: Sequence[Way]) -> list[list[float]]:
    """Metres between neighbours of each way; flat within a step, which is exact enough below a kilometre."""
    points = np.array([point for way in ways for point in way.points], np.int64)
    lat, lng, scale = lat[points], lng[points], EARTH_RADIUS_M * np.pi / 180
    across = np.diff(lng) * np.cos(np.radians((lat[1:] + lat[:-1]) / 2))
    steps = (np.hypot(np.diff(lat), across) * scale).tolist()
    ends = np.cumsum([len(way.points) for way in ways]).tolist()
    return [steps[end - len(way.points) : end - 1] for way, end in zip(ways, ends, strict=True)]


def _with_points_between(
    lat: NDArray[np.float64], lng: NDArray[np.float64], ways: Sequence[Way]
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[Way]]:
    """The same ways with no two neighbouring points farther apart than an edge may be long."""
    more_lat: list[float] = []
    more_lng: list[float] = []
    between: dict[tuple[int, int], list[int]] = {}
    result = []
    for way, lengths in zip(ways, _lengths(lat, lng, ways), strict=True):
        if max(lengths) <= EDGE_M_MAX:
            result.append(way)
            continue
        longer: list[int] = []
        for n, (a, b) in enumerate(zip(way.points, way.points[1:], strict=False)):
            longer.append(a)
            if lengths[n] <= EDGE_M_MAX:
                continue
            made = between.get((b, a), [])[::-1] or between.get((a, b))
            if made is None:
                parts = int(lengths[n] / EDGE_M_MAX) + 1
                made = list(range(len(lat) + len(more_lat), len(lat) + len(more_lat) + parts - 1))
                more_lat.extend(lat[a] + (lat[b] - lat[a]) * k / parts for k in range(1, parts))
                more_lng.extend(lng[a] + (lng[b] - lng[a]) * k / parts for k in range(1, parts))
                between[a, b] = made
            longer.extend(made)
        longer.append(way.points[-1])
        result.append(Way(longer, way.road_class, way.one_way, way.speed_kmh))
    return np.concatenate([lat, more_lat]), np.concatenate([lng, more_lng]), result


def _cut(way: Way, number: int, uses: Sequence[int], lengths: Sequence[float], edges: _Edges) -> None:
    """Cut a way at junctions and before a piece gets too long."""
    points = list(way.points)
    _, kmh, cost = CLASSES[way.road_class]
    if way.speed_kmh > 0:
        kmh = min(way.speed_kmh * 0.85, max(kmh, way.speed_kmh * 0.6))
    first, metres = 0, 0.0
    for n in range(1, len(points)):
        metres += lengths[n - 1]
        junction = uses[points[n]] >= 2
        if not junction and metres + (lengths[n] if n < len(lengths) else 0) <= EDGE_M_MAX:
            continue
        if points[first] != points[n] and metres > 0:
            lost = cost if junction else 0.0
            edges.add(points[first : n + 1], metres, kmh / 3.6, lost, number, way.road_class, one_way=way.one_way)
        first, metres = n, 0.0


def _finish(
    edges: _Edges, lat: NDArray[np.float64], lng: NDArray[np.float64], *, name: str, turns: Sequence[Turn]
) -> dict[str, NDArray[Any]]:
    tails, heads = np.array(edges.tails, np.int64), np.array(edges.heads, np.int64)
    if len(tails) == 0:
        raise Rejected(f"{name} holds no roads for cars", code="no_roads")
    from scipy.sparse import csr_matrix  # noqa: PLC0415 - a second of loading, needed by a new map only
    from scipy.sparse.csgraph import connected_components  # noqa: PLC0415 - the same

    graph = csr_matrix((np.ones(len(tails), np.int8), (tails, heads)), shape=(len(lat), len(lat)))
    _, part = connected_components(graph, directed=True, connection="strong")
    keep = np.flatnonzero(part == np.bincount(part).argmax())
    if len(keep) < 2:
        raise Rejected(f"the roads of {name} lead nowhere: no two places reach each other", code="no_roads")
    keep = keep[np.argsort(cell_ids(lat[keep], lng[keep], 30))]  # neighbours in the city are neighbours in memory
    number = np.full(len(lat), -1, np.int64)
    number[keep] = np.arange(len(keep))
    inside = np.flatnonzero((number[tails] >= 0) & (number[heads] >= 0))
    order = inside[np.argsort(number[tails[inside]], kind="stable")]
    metres = np.array(edges.metres)[order]
    seconds = metres / np.array(edges.speeds)[order] + np.array(edges.costs)[order]
    counts = np.bincount(number[tails[order]], minlength=len(keep))
    shape = np.array(edges.shape, np.int64)
    columns: dict[str, NDArray[Any]] = {
        "lat": lat[keep], "lng": lng[keep],
        "starts": np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        "heads": number[heads[order]].astype(np.int32),
        "seconds": seconds.astype(np.float32), "metres": metres.astype(np.float32),
        "shape_at": np.array(edges.shape_at)[order].astype(np.int32),
        "shape_count": np.array(edges.shape_count)[order].astype(np.int16),
        "shape_lat": np.round(lat[shape] * 1e7).astype(np.int32), "shape_lng": np.round(lng[shape] * 1e7).astype(np.int32),
        "edge_class": np.array(edges.classes)[order].astype(np.uint8), "twin_of": np.zeros(0, np.int32),
    }  # fmt: skip
    return _with_twins(columns, np.array(edges.ways)[order], [(turn, int(number[turn.via])) for turn in turns])


def _with_twins(
    columns: dict[str, NDArray[Any]], ways: NDArray[np.int64], turns: Sequence[tuple[Turn, int]]
) -> dict[str, NDArray[Any]]:
    """The network in which forbidden turns cannot be taken. A rule that leaves no way out is a slip and is not kept."""
    starts, heads = columns["starts"], columns["heads"].copy()
    tails = np.repeat(np.arange(len(columns["lat"])), np.diff(starts))
    forbidden: dict[int, set[int]] = {}
    for turn, via in turns:
        if via < 0:
            continue
        out = range(int(starts[via]), int(starts[via + 1]))
        for edge in np.flatnonzero((heads == via) & (ways == turn.from_way)).tolist():
            named = {n for n in out if ways[n] == turn.to_way}
            if turn.from_way == turn.to_way:  # no turning back
                named = {n for n in named if heads[n] == tails[edge]}
            if named:
                forbidden.setdefault(edge, set()).update(set(out) - named if turn.only else named)
    twins: dict[tuple[int, frozenset[int]], int] = {}
    owners: list[int] = []
    more: list[int] = []
    counts: list[int] = []
    for edge, banned in sorted(forbidden.items()):
        via = int(heads[edge])
        left = [n for n in range(int(starts[via]), int(starts[via + 1])) if n not in banned]
        if not left:
            continue
        key = via, frozenset(banned)
        if key not in twins:
            twins[key] = len(columns["lat"]) + len(owners)
            owners.append(via)
            more += left
            counts.append(len(left))
        heads[edge] = twins[key]
    if not owners:
        return columns
    grown = {name: np.concatenate([columns[name], columns[name][more]]) for name in
             ("seconds", "metres", "shape_at", "shape_count", "edge_class")}  # fmt: skip
    return columns | grown | {
        "heads": np.concatenate([heads, heads[more]]).astype(np.int32),
        "starts": np.concatenate([starts, starts[-1] + np.cumsum(counts)]).astype(np.int32),
        "lat": np.concatenate([columns["lat"], columns["lat"][owners]]),
        "lng": np.concatenate([columns["lng"], columns["lng"][owners]]),
        "twin_of": np.array(owners, np.int32),
    }  # fmt: skip


def _lines(ways: Sequence[Way], lat: NDArray[np.float64], lng: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
    """The ways as a map draws them, important ones last so that they lie on top."""
    drawn = sorted(ways, key=lambda way: -way.road_class)
    points = np.concatenate([np.asarray(way.points, np.int64) for way in drawn])
    return {
        "line_class": np.array([way.road_class for way in drawn], np.uint8),
        "line_count": np.array([len(way.points) for way in drawn], np.int32),
        "line_lat": np.round(lat[points] * 1e7).astype(np.int32),
        "line_lng": np.round(lng[points] * 1e7).astype(np.int32),
    }


def _blurred(counts: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """Counts of a grid smeared by a Gaussian of `sigma` squares; beyond the frame there is nothing."""
    reach = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    for axis in (0, 1):
        smeared = np.apply_along_axis(np.convolve, axis, counts, kernel / kernel.sum())
        counts = np.take(smeared, range(reach, smeared.shape[axis] - reach), axis=axis)
    return counts

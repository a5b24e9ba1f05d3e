"""Shortest paths on the road network, compiled: the inner loops of `eta`.

`reach` walks the reversed graph outward from the pick-up and ends as soon as every candidate has been reached or the
limit is passed. It is Dijkstra's algorithm with a ring of buckets instead of a heap (Dial, 1969): nodes wait in the bucket of
their second, a bucket is worked until it is empty, and what improves within it is worked again, so the times are exact. Marks
carry a generation, so nothing is cleared between searches. `way` is A* in such a ring, with the straight line at the
network's best speed as its bound. A node with turn restrictions has twins (see `roads`): a search towards it begins at all
of them, a way may end at any. Cost: 20 us for 5 minutes of city around, 0.3 ms across it.
"""

import math

import numpy as np
from numba import boolean, float32, float64, from_dtype, int16, int32, int64, njit, types, uint32

from fourplane.dispatch.index_layout import BUCKET_RING, ENTRY, LINK, MARK, WAY
from fourplane.dispatch.kernels import BUCKETS, DRIVERS, SLOTS, nearest

LINKS, MARKS, ENTRIES = from_dtype(LINK)[::1], from_dtype(MARK)[::1], from_dtype(ENTRY)[::1]
WAYS = from_dtype(WAY)[::1]
LAST = BUCKET_RING - 1
I16S, I32S, I64S, F32S, F64S = int16[::1], int32[::1], int64[::1], float32[::1], float64[::1]


@njit(
    int64(int32, I32S, float64, I32S, LINKS, MARKS, int32, I32S, float64, I32S, ENTRIES, F64S),
    cache=True,
    nogil=True,
    error_model="numpy",
)
def reach(  # noqa: PLR0915 - one loop, all of it hot
    source: int, targets: np.ndarray, limit: float, starts: np.ndarray, links: np.ndarray, marks: np.ndarray,
    generation: int, twins: np.ndarray, per_second: float, ring: np.ndarray, entries: np.ndarray, out: np.ndarray,
) -> int:  # fmt: skip
    """Seconds from `source` to each target (inf past `limit`) into `out`; how many nodes were settled.

    `ring` holds -1 in every place, before and after; no link costs more than BUCKET_RING - 2 buckets.
    """
    left = 0
    for target in targets:
        if marks[target].wanted != generation:
            marks[target].wanted = generation
            left += 1
    size, waiting, settled, bucket, unused = 0, 0, 0, 0, -1
    node = source
    while node >= 0:
        marks[node].best, marks[node].seen = 0.0, generation
        entries[size].key, entries[size].node, entries[size].next = 0.0, node, ring[0]
        ring[0] = size
        size += 1
        node = twins[node]
    waiting = size
    while waiting > 0:
        at = ring[bucket & LAST]
        if at < 0:
            bucket += 1
            if left == 0 or bucket > limit * per_second + 1:
                break
            continue
        entry = entries[at]
        key, node = entry.key, entry.node
        ring[bucket & LAST], entry.next = entry.next, unused
        unused = at
        waiting -= 1
        if key > marks[node].best:
            continue
        settled += 1
        if marks[node].wanted == generation:
            marks[node].wanted = -generation
            left -= 1
        for edge in range(starts[node], starts[node + 1]):
            link = links[edge]
            cost, mark = key + link.cost, marks[link.head]
            if mark.seen != generation or cost < mark.best:
                mark.seen, mark.best = generation, cost
                if unused >= 0:
                    at = unused
                    unused = entries[at].next
                elif size < entries.size:
                    at = size
                    size += 1
                else:  # more waits than the network has links: cannot be
                    continue
                place = int(cost * per_second) & LAST
                entries[at].key, entries[at].node, entries[at].next = cost, link.head, ring[place]
                ring[place] = at
                waiting += 1
    for place in range(BUCKET_RING):
        ring[place] = -1
    for n in range(targets.size):
        mark = marks[targets[n]]
        out[n] = mark.best if mark.wanted == -generation and mark.best <= limit else math.inf
    return settled


@njit(
    int64(
        int32, int32, float64, I32S, I32S, I32S, F32S, F64S, F64S, WAYS, int32, I32S, float64, I32S, ENTRIES, I32S,
    ),
    cache=True,
    nogil=True,
    error_model="numpy",
)  # fmt: skip
def way(  # noqa: PLR0915 - one loop, all of it hot
    source: int, target: int, speed: float, starts: np.ndarray, tails: np.ndarray, heads: np.ndarray, costs: np.ndarray,
    xs: np.ndarray, ys: np.ndarray, ways: np.ndarray, generation: int,
    owners: np.ndarray, per_second: float, ring: np.ndarray, entries: np.ndarray, out: np.ndarray,
) -> int:  # fmt: skip
    """The edges of the quickest way from source to target, in order, into `out`; how many, -1 where no way leads.

    `ring` as in `reach`; no two edges together cost more than BUCKET_RING - 2 buckets.
    """
    first = ways[source]
    first.best, first.by, first.seen = 0.0, -1, generation
    first.rest = math.hypot(xs[source] - xs[target], ys[source] - ys[target]) / speed
    bucket, size, waiting, unused = int(first.rest * per_second), 1, 1, -1
    entries[0].key, entries[0].node, entries[0].next = first.rest, source, -1
    ring[bucket & LAST] = 0
    goal, best = -1, math.inf
    while waiting > 0:
        at = ring[bucket & LAST]
        if at < 0:
            bucket += 1
            if bucket > best * per_second:
                break
            continue
        entry = entries[at]
        key, node = entry.key, entry.node
        ring[bucket & LAST], entry.next = entry.next, unused
        unused = at
        waiting -= 1
        here = ways[node]
        if key > here.best + here.rest or key >= best:
            continue
        if owners[node] == target:
            best, goal = here.best, node
            continue
        so_far = here.best
        for edge in range(starts[node], starts[node + 1]):
            head, cost = heads[edge], so_far + costs[edge]
            there = ways[head]
            if there.seen != generation:
                there.seen = generation
                there.rest = math.hypot(xs[head] - xs[target], ys[head] - ys[target]) / speed
            elif cost >= there.best:
                continue
            there.best, there.by = cost, edge
            key = cost + there.rest
            if key >= best:
                continue
            if unused >= 0:
                at = unused
                unused = entries[at].next
            elif size < entries.size:
                at = size
                size += 1
            else:  # more waits than the network has links: cannot be
                continue
            place = max(int(key * per_second), bucket) & LAST
            entries[at].key, entries[at].node, entries[at].next = key, head, ring[place]
            ring[place] = at
            waiting += 1
    for place in range(BUCKET_RING):
        ring[place] = -1
    if goal < 0:
        return -1
    count, node = 0, goal
    while ways[node].by >= 0:
        node = tails[ways[node].by]
        count += 1
    at, node = count, goal
    while at > 0:
        at -= 1
        out[at] = ways[node].by
        node = tails[ways[node].by]
    return count


@njit(
    int64(I32S, int64, I32S, I32S, F64S, F64S, I16S, I32S, I32S, I32S, float64[:, ::1]),
    cache=True,
    nogil=True,
    error_model="numpy",
)
def draw(
    edges: np.ndarray, count: int, tails: np.ndarray, heads: np.ndarray, lats: np.ndarray, lngs: np.ndarray,
    shape_count: np.ndarray, shape_at: np.ndarray, shape_lat: np.ndarray, shape_lng: np.ndarray, out: np.ndarray,
) -> int:  # fmt: skip
    """The line along edges that follow each other, from the first tail to the last head; how many points, -1: no room."""
    out[0, 0], out[0, 1] = lats[tails[edges[0]]], lngs[tails[edges[0]]]
    at = 1
    for n in range(count):
        edge = edges[n]
        bends = np.int64(shape_count[edge])
        if at + abs(bends) + 1 > out.shape[0]:
            return -1
        for bend in range(abs(bends)):
            point = shape_at[edge] + (bend if bends >= 0 else -bends - 1 - bend)
            out[at, 0], out[at, 1] = shape_lat[point] * 1e-7, shape_lng[point] * 1e-7
            at += 1
        out[at, 0], out[at, 1] = lats[heads[edge]], lngs[heads[edge]]
        at += 1
    return at


@njit(
    types.void(F64S, F64S, float64, int64, int64, float64, F64S, F64S, I32S, I32S, I32S, F64S),
    cache=True,
    nogil=True,
    error_model="numpy",
)
def snap_many(
    px: np.ndarray,
    py: np.ndarray,
    size_m: float,
    width: int,
    height: int,
    metres_max: float,
    xs: np.ndarray,
    ys: np.ndarray,
    grid_starts: np.ndarray,
    grid_nodes: np.ndarray,
    nodes: np.ndarray,
    metres: np.ndarray,
) -> None:
    """The nearest node (-1: none within `metres_max`) and its distance for each place, in metres from the corner."""
    reach_count = int(metres_max / size_m) + 1
    for n in range(px.size):
        x, y = px[n], py[n]
        best, best_node = metres_max * metres_max, -1
        column, row = math.floor(x / size_m), math.floor(y / size_m)
        for ring in range(reach_count + 1):
            away = (ring - 1) * size_m
            if ring > 1 and best < away * away:
                break
            for at_row in range(max(row - ring, 0), min(row + ring, height - 1) + 1):
                edge: boolean = abs(at_row - row) == ring
                step = 1 if edge or ring == 0 else 2 * ring
                for at_column in range(column - ring, column + ring + 1, step):
                    if at_column < 0 or at_column >= width:
                        continue
                    square = at_row * width + at_column
                    for at in range(grid_starts[square], grid_starts[square + 1]):
                        node = grid_nodes[at]
                        squared = (xs[node] - x) ** 2 + (ys[node] - y) ** 2
                        if squared < best:
                            best, best_node = squared, node
        nodes[n], metres[n] = best_node, math.sqrt(best)


@njit(
    types.void(
        I32S, I32S, float64, uint32, uint32, int64, SLOTS, DRIVERS, BUCKETS, I32S, I64S,
        F64S, float64, int64, int64, float64, F64S, F64S, I32S, I32S,
        float64, float64, I32S, LINKS, MARKS, int32, I32S, float64, I32S, ENTRIES,
        int64[:, ::1], float64[:, ::1], float64[:, ::1], I64S,
    ),
    cache=True,
    nogil=True,
    error_model="numpy",
)  # fmt: skip
def rank_many(
    lats: np.ndarray, lngs: np.ndarray, radius: float, mask: int, wanted: int, level: int,
    slots: np.ndarray, drivers: np.ndarray, buckets: np.ndarray, table: np.ndarray, meta: np.ndarray,
    frame: np.ndarray, size_m: float, width: int, height: int, metres_max: float,
    xs: np.ndarray, ys: np.ndarray, grid_starts: np.ndarray, grid_nodes: np.ndarray,
    limit: float, local_mps: float, starts: np.ndarray, links: np.ndarray, marks: np.ndarray, generation: int,
    twins: np.ndarray, per_second: float, ring: np.ndarray, entries: np.ndarray,
    found: np.ndarray, angles: np.ndarray, etas: np.ndarray, counts: np.ndarray,
) -> None:  # fmt: skip
    """For each request: nearest drivers, snapped, and their road seconds; -1 in `counts` where no road is near.

    `frame` is west, south, metres per degree east, metres per degree north. Generations from `generation` on are used.
    """
    most = angles.shape[1]
    px, py, metres = np.empty(most + 1), np.empty(most + 1), np.empty(most + 1)
    nodes = np.empty(most + 1, np.int32)
    for n in range(lats.size):
        count = nearest(
            lats[n], lngs[n], radius, most, mask, wanted, level, slots, buckets, table, meta, found[n], angles[n]
        )
        counts[n] = count
        px[0], py[0] = (lngs[n] * 1e-7 - frame[0]) * frame[2], (lats[n] * 1e-7 - frame[1]) * frame[3]
        for k in range(count):
            at = slots[drivers[found[n, k]].slot]
            px[k + 1], py[k + 1] = (at.lng * 1e-7 - frame[0]) * frame[2], (at.lat * 1e-7 - frame[1]) * frame[3]
        snap_many(
            px[: count + 1], py[: count + 1], size_m, width, height, metres_max, xs, ys, grid_starts, grid_nodes,
            nodes[: count + 1], metres[: count + 1],
        )  # fmt: skip
        if nodes[0] < 0:
            counts[n] = -1
            continue
        off = np.zeros(count, np.bool_)
        for k in range(count):
            if nodes[k + 1] < 0:
                off[k], nodes[k + 1] = True, nodes[0]
        reach(
            nodes[0], nodes[1 : count + 1], limit, starts, links, marks, generation + n,
            twins, per_second, ring, entries, etas[n],
        )  # fmt: skip
        for k in range(count):
            etas[n, k] = math.inf if off[k] else etas[n, k] + (metres[0] + metres[k + 1]) / local_mps

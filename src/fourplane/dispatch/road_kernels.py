"""Shortest paths on the road network, compiled: the inner loops of `eta`.

`reach` walks the reversed graph outward from the pick-up and ends as soon as every candidate has been reached or the
limit is passed. It is Dijkstra's algorithm with a ring of buckets instead of a heap (Dial, 1969): nodes wait in the bucket of
their second, a bucket is worked until it is empty, and what improves within it is worked again, so the times are exact. Marks
carry a generation, so nothing is cleared between searches. `path` is A* with the straight line at the network's best
speed as its bound. A node with turn restrictions has twins (see `roads`): a search towards it begins at all of them, a
path may end at any. Cost: 20 us for 5 minutes of city around, 1 ms across it.
"""

import math

import numpy as np
from numba import boolean, float32, float64, from_dtype, int32, int64, njit, types, uint32

from fourplane.dispatch.index_layout import BUCKET_RING, ENTRY, LINK, MARK
from fourplane.dispatch.kernels import BUCKETS, DRIVERS, SLOTS, nearest

LINKS, MARKS, ENTRIES = from_dtype(LINK)[::1], from_dtype(MARK)[::1], from_dtype(ENTRY)[::1]
LAST = BUCKET_RING - 1
I32S, I64S, F32S, F64S = int32[::1], int64[::1], float32[::1], float64[::1]


@njit(types.void(F64S, I32S, int64, float64, int32), cache=True, nogil=True, error_model="numpy")
def _push(keys: np.ndarray, items: np.ndarray, size: int, key: float, item: int) -> None:
    at = size
    while at > 0:
        up = (at - 1) >> 1
        if keys[up] <= key:
            break
        keys[at], items[at] = keys[up], items[up]
        at = up
    keys[at], items[at] = key, item


@njit(types.void(F64S, I32S, int64), cache=True, nogil=True, error_model="numpy")
def _pop(keys: np.ndarray, items: np.ndarray, size: int) -> None:
    """Take the first of `size` entries away."""
    last = size - 1
    key, item = keys[last], items[last]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= last:
            break
        if child + 1 < last and keys[child + 1] < keys[child]:
            child += 1
        if keys[child] >= key:
            break
        keys[at], items[at] = keys[child], items[child]
        at = child
    keys[at], items[at] = key, item


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
    float64(
        int32, int32, float64, I32S, I32S, F32S, F64S, F64S, F64S, I64S, I32S, int64, F64S, I32S, I32S,
    ),
    cache=True,
    nogil=True,
    error_model="numpy",
)  # fmt: skip
def path(
    source: int,
    target: int,
    speed: float,
    starts: np.ndarray,
    heads: np.ndarray,
    costs: np.ndarray,
    xs: np.ndarray,
    ys: np.ndarray,
    best: np.ndarray,
    seen: np.ndarray,
    by_edge: np.ndarray,
    generation: int,
    keys: np.ndarray,
    items: np.ndarray,
    owners: np.ndarray,
) -> float:
    """Seconds from source to target, inf where no way leads; `by_edge` then holds the last edge to each node on it."""
    best[source], seen[source], by_edge[source] = 0.0, generation, -1
    _push(keys, items, 0, 0.0, source)
    size = 1
    while size > 0:
        key, node = keys[0], items[0]
        if owners[node] == target:
            by_edge[target] = by_edge[node]
            return best[node]
        _pop(keys, items, size)
        size -= 1
        so_far = best[node]
        if key > so_far + math.hypot(xs[node] - xs[target], ys[node] - ys[target]) / speed + 1e-6:
            continue
        for edge in range(starts[node], starts[node + 1]):
            head, cost = heads[edge], so_far + costs[edge]
            if seen[head] != generation or cost < best[head]:
                seen[head], best[head], by_edge[head] = generation, cost, edge
                _push(keys, items, size, cost + math.hypot(xs[head] - xs[target], ys[head] - ys[target]) / speed, head)
                size += 1
    return math.inf


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

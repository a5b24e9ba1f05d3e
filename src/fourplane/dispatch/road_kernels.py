"""Shortest paths on the road network, compiled: the inner loops of `eta`.

`reach` walks the reversed graph outward from the pick-up (Dijkstra, binary heap) and ends as soon as every candidate has
been reached or the limit is passed; marks carry a generation, so nothing is cleared between searches. `path` is A* with
the straight line at the network's best speed as its bound. Cost: 40 us for 5 minutes of city around, 1 ms across it.
"""

import math

import numpy as np
from numba import boolean, float32, float64, int32, int64, njit, types

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
    int64(int32, I32S, float64, I32S, I32S, F32S, F64S, I64S, I64S, int64, F64S, I32S, F64S),
    cache=True,
    nogil=True,
    error_model="numpy",
)
def reach(
    source: int,
    targets: np.ndarray,
    limit: float,
    starts: np.ndarray,
    heads: np.ndarray,
    costs: np.ndarray,
    best: np.ndarray,
    seen: np.ndarray,
    wanted: np.ndarray,
    generation: int,
    keys: np.ndarray,
    items: np.ndarray,
    out: np.ndarray,
) -> int:
    """Seconds from `source` to each target (inf past `limit`) into `out`; how many nodes were settled."""
    left = 0
    for target in targets:
        if wanted[target] != generation:
            wanted[target] = generation
            left += 1
    best[source], seen[source] = 0.0, generation
    _push(keys, items, 0, 0.0, source)
    size, settled = 1, 0
    while size > 0 and left > 0:
        key, node = keys[0], items[0]
        _pop(keys, items, size)
        size -= 1
        if key > best[node]:
            continue
        if key > limit:
            break
        settled += 1
        if wanted[node] == generation:
            wanted[node] = -generation
            left -= 1
        for edge in range(starts[node], starts[node + 1]):
            head, cost = heads[edge], key + costs[edge]
            if seen[head] != generation or cost < best[head]:
                seen[head], best[head] = generation, cost
                _push(keys, items, size, cost, head)
                size += 1
    for n in range(targets.size):
        out[n] = best[targets[n]] if wanted[targets[n]] == -generation else math.inf
    return settled


@njit(
    float64(
        int32, int32, float64, I32S, I32S, F32S, F64S, F64S, F64S, I64S, I32S, int64, F64S, I32S,
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
) -> float:
    """Seconds from source to target, inf where no way leads; `by_edge` then holds the last edge to each node on it."""
    best[source], seen[source], by_edge[source] = 0.0, generation, -1
    _push(keys, items, 0, 0.0, source)
    size = 1
    while size > 0:
        key, node = keys[0], items[0]
        if node == target:
            return best[target]
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

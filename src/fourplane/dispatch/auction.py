"""Who gets whom when the sum counts: an auction (Bertsekas, 1988) over the pairs of one pool.

Everybody of the shorter side bids for whom it would gain most, and pays as much more as it gains over its second
choice, plus one step; who is outbid bids again. When nobody is left without a pair, the total is within a step per pair
of the best there is. Three things keep it from price wars that cost seconds where riders are many and cars few:

    the shorter side bids (2,000 cars bid for 3,000 riders, not the other way round);
    being served is worth `value_s` and no more, so that a bidder may give up;
    parts of the city that share no candidate are auctions of their own, and one that exceeds its bids is handed to
    scipy's exact sparse solver, where every request may also take a stand-in of cost `value_s`.

Pairs must be distinct. Cost: about 3 us a bid; most pools need two or three bids a pair.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components, min_weight_full_bipartite_matching

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Chances = list[list[tuple[int, float, int]]]  # per bidder: object, gain, position of the pair


def assign(
    requests: Ints, drivers: Ints, cost: Floats, *, value_s: float, step_s: float, bids_per_pair: float
) -> list[int]:
    """Positions of the pairs taken, each request and driver at most once; none that costs `value_s` or more."""
    usable = np.flatnonzero(cost < value_s)
    if len(usable) == 0:
        return []
    _, rows = np.unique(requests[usable], return_inverse=True)
    _, columns = np.unique(drivers[usable], return_inverse=True)
    gain, chosen = value_s - cost[usable], []
    for part in _parts(rows, columns):
        found = _auction(rows[part], columns[part], gain[part], step_s, bids_per_pair)
        if found is None:
            found = _solve(rows[part], columns[part], gain[part])
        chosen += part[found].tolist()
    return sorted(usable[chosen].tolist())


def _parts(rows: Ints, columns: Ints) -> Iterator[Ints]:
    """Pairs that are connected through shared requests or drivers, together."""
    count = int(rows.max()) + 1
    size = count + int(columns.max()) + 1
    graph = coo_matrix((np.ones(len(rows), np.int8), (rows, columns + count)), shape=(size, size))
    _, label = connected_components(graph, directed=False)
    order = np.argsort(label[rows], kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(label[rows][order])) + 1)


def _auction(rows: Ints, columns: Ints, gain: Floats, step_s: float, bids_per_pair: float) -> list[int] | None:
    """Positions of the pairs taken; None when the bids are used up."""
    _, rows = np.unique(rows, return_inverse=True)
    _, columns = np.unique(columns, return_inverse=True)
    bidders, objects = (columns, rows) if columns.max() < rows.max() else (rows, columns)
    chances: Chances = [[] for _ in range(int(bidders.max()) + 1)]
    for pair, (bidder, thing, worth) in enumerate(zip(bidders.tolist(), objects.tolist(), gain.tolist(), strict=True)):
        chances[bidder].append((thing, worth, pair))
    return _bid(chances, int(objects.max()) + 1, step_s, int(bids_per_pair * len(chances)) + 100)


def _bid(chances: Chances, objects: int, step_s: float, bids_left: int) -> list[int] | None:
    price, owner, held = [0.0] * objects, [-1] * objects, [-1] * objects
    waiting = list(range(len(chances)))[::-1]
    while waiting:
        if bids_left == 0:
            return None
        bids_left -= 1
        bidder = waiting.pop()
        best, second, pick, taken = 0.0, 0.0, -1, -1  # going without gains nothing
        for thing, worth, pair in chances[bidder]:
            net = worth - price[thing]
            if net > best:
                best, second, pick, taken = net, best, thing, pair
            elif net > second:
                second = net
        if pick < 0:
            continue
        if owner[pick] >= 0:
            waiting.append(owner[pick])
        owner[pick], held[pick] = bidder, taken
        price[pick] += best - second + step_s
    return [pair for pair in held if pair >= 0]


def _solve(rows: Ints, columns: Ints, gain: Floats) -> list[int]:
    """Exactly, for a part whose prices would climb for long."""
    _, rows = np.unique(rows, return_inverse=True)
    _, columns = np.unique(columns, return_inverse=True)
    count, first = int(rows.max()) + 1, int(columns.max()) + 1
    everybody = np.arange(count)
    top = float(gain.max()) + 1.0  # weights must not be zero; every request takes one, so a constant changes nothing
    weights = np.concatenate([top - gain, np.full(count, top)])
    places = (np.concatenate([rows, everybody]), np.concatenate([columns, first + everybody]))
    taken_rows, taken = min_weight_full_bipartite_matching(
        coo_matrix((weights, places), shape=(count, first + count)).tocsr()
    )
    pair_of = {place: pair for pair, place in enumerate(zip(rows.tolist(), columns.tolist(), strict=True))}
    chosen = zip(taken_rows.tolist(), taken.tolist(), strict=True)
    return [pair_of[row, column] for row, column in chosen if column < first]

"""An evening of seeded demand on our roads, decided by one rule or another: the paired test of the matching rules.

Riders come as a Poisson stream between stops that lie where people are (`pick_nodes`); cars wait where their last ride
ended. Times between stops are road times from one Dijkstra per stop. Every two seconds a rule sees the waiting riders
with their candidates by the limits of `MatchingSettings` (nearest by line within the radius, wider after a while) and
gives pairs; who waits longer than the patience leaves. The same seed gives every rule the same riders and cars, so
differences are paired. `horizon` is the cheapest pair with cars that end a ride within `horizon_s` among the candidates: a
rider given to one of them just waits on. `fifo` serves riders in the order they came, each with the car that is there soonest.
"""

import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra

from fourplane.dispatch.matching import MatchingSettings, choose_pairs
from fourplane.dispatch.roads import Roads
from fourplane.dispatch.traffic import pick_nodes

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Rule = Callable[[Ints, Ints, Floats], list[int]]
STOPS, CARS, TICK_S, WARM_S, RUN_S = 1_200, 500, 2.0, 1_200.0, 4_800.0
DEMANDS = {"ample": 0.8, "full": 1.1, "scarce": 1.35}  # times what the cars could serve, driving empty for 110 s
EMPTY_S = 110.0
RULES = ("fifo", "cheapest", "auction", "horizon")


class Evening(msgspec.Struct, frozen=True):
    """What one rule made of one evening."""

    served: float  # percent of those who came after warming up
    empty_s: float  # mean road seconds from a car to its rider
    wait_s: float  # mean seconds from request to pick-up, of the served


class City:
    """Stops with the road seconds and metres by line between all of them."""

    def __init__(self, roads: Roads) -> None:
        nodes = np.unique(pick_nodes(roads, STOPS, np.random.default_rng(11)))
        graph = csr_matrix((roads.seconds.astype(np.float64), roads.heads, roads.starts), shape=(len(roads.lat),) * 2)
        self.seconds = np.asarray(dijkstra(graph, indices=nodes))[:, nodes]
        self.metres = np.hypot(*(np.subtract.outer(axis[nodes], axis[nodes]) for axis in (roads.x, roads.y)))
        self.stops = len(nodes)
        self.ride_s = float(self.seconds.mean())


def fifo(requests: Ints, drivers: Ints, cost: Floats) -> list[int]:
    """Each request in turn takes the cheapest car that is left."""
    taken: set[int] = set()
    chosen, done = [], -1
    for pair in np.lexsort((drivers, cost, requests)).tolist():
        if requests[pair] > done and int(drivers[pair]) not in taken and cost[pair] < math.inf:
            done = int(requests[pair])
            taken.add(int(drivers[pair]))
            chosen.append(pair)
    return chosen


def rule_named(name: str, settings: MatchingSettings) -> Rule:
    if name == "fifo":
        return fifo
    chosen = msgspec.structs.replace(settings, rule="auction" if name == "auction" else "cheapest")
    return lambda requests, drivers, cost: choose_pairs(requests, drivers, cost, chosen)


def evening(
    city: City, per_hour: float, rule: Rule, settings: MatchingSettings, seed: int, horizon_s: float = 0.0
) -> Evening:  # fmt: skip
    """Run one evening; riders who come while warming up and at the very end are served but not counted."""
    rng = np.random.default_rng(seed)
    comes = np.cumsum(rng.exponential(3_600 / per_hour, int(per_hour * RUN_S / 3_600 * 1.3) + 50))
    comes = comes[comes < RUN_S]
    start, end = (rng.integers(0, city.stops, len(comes)) for _ in range(2))
    place, free_at = rng.integers(0, city.stops, CARS), np.zeros(CARS)
    empty, wait = np.full(len(comes), np.nan), np.full(len(comes), np.nan)
    waiting, upcoming = np.empty(0, np.int64), 0
    for tick in range(int((RUN_S + settings.patience_s) / TICK_S)):
        now = tick * TICK_S
        came = int(np.searchsorted(comes, now, side="right"))
        waiting = np.concatenate([waiting[now - comes[waiting] <= settings.patience_s], np.arange(upcoming, came)])
        upcoming, idle = came, np.flatnonzero(free_at <= now + horizon_s)
        if len(waiting) == 0 or len(idle) == 0:
            continue
        requests, cars, seconds = candidates(city, start[waiting], now - comes[waiting], place[idle], settings)
        seconds = seconds + np.maximum(free_at[idle[cars]] - now, 0)
        if horizon_s:  # who has waited half of the patience takes whom there is
            late = (now - comes[waiting[requests]] > settings.patience_s / 2) & (free_at[idle[cars]] > now)
            seconds = np.where(late, np.inf, seconds)
        taken = np.asarray(rule(requests, idle[cars], seconds), np.int64)
        taken = taken[free_at[idle[cars[taken]]] <= now]
        riders, chosen, eta = waiting[requests[taken]], idle[cars[taken]], seconds[taken]
        empty[riders], wait[riders] = eta, now - comes[riders] + eta
        free_at[chosen] = now + eta + city.seconds[start[riders], end[riders]] + 60  # a minute to get in and out
        place[chosen] = end[riders]
        waiting = np.delete(waiting, requests[taken])
    counted = (comes > WARM_S) & (comes < RUN_S - settings.patience_s)
    served = counted & np.isfinite(empty)
    return Evening(100 * served.sum() / counted.sum(), float(empty[served].mean()), float(wait[served].mean()))


def candidates(
    city: City, starts: Ints, waited_s: Floats, places: Ints, settings: MatchingSettings
) -> tuple[Ints, Ints, Floats]:
    """Requests, cars and road seconds of all pairs the matching service would consider."""
    metres = city.metres[np.ix_(starts, places)]
    if metres.shape[1] > settings.candidates:
        limit = np.partition(metres, settings.candidates - 1, axis=1)[:, settings.candidates - 1 : settings.candidates]
    else:
        limit = np.full((len(starts), 1), np.inf)
    radius = np.where(waited_s > settings.widen_s, settings.radius_wide_m, settings.radius_m)[:, None]
    requests, cars = np.nonzero(metres <= np.minimum(limit, radius))
    seconds = city.seconds[places[cars], starts[requests]]
    near = seconds <= settings.eta_s_max
    return requests[near], cars[near], seconds[near]


_city: list[City] = []  # of a process that runs evenings


def _take_city(city: City) -> None:
    _city[:] = [city]


def _run(job: tuple[str, float, int]) -> Evening:
    name, per_hour, seed = job
    settings = MatchingSettings()
    horizon_s = settings.horizon_s if name == "horizon" else 0.0
    return evening(_city[0], per_hour, rule_named(name, settings), settings, seed, horizon_s)


def compare(roads: Roads, *, seeds: int = 5) -> dict[str, dict[str, float]]:
    """Means of every rule, and what the auction adds to the cheapest pair, evening by evening, with standard errors.

    Evenings run on all cores: nothing in them depends on how long they take.
    """
    city = City(roads)
    capacity = CARS * 3_600 / (city.ride_s + 60 + EMPTY_S)
    figures = {}
    jobs = [(name, capacity * share, seed) for share in DEMANDS.values() for name in RULES for seed in range(seeds)]
    with ProcessPoolExecutor(mp_context=get_context("spawn"), initializer=_take_city, initargs=(city,)) as pool:
        done = dict(zip(jobs, pool.map(_run, jobs), strict=True))
    for demand, share in DEMANDS.items():
        runs = {name: [done[name, capacity * share, seed] for seed in range(seeds)] for name in RULES}
        for name, evenings in runs.items():
            figures[f"match {demand} {name}"] = {
                field: float(np.mean([getattr(one, field) for one in evenings])) for field in Evening.__struct_fields__
            }
        for over, under in (("cheapest", "fifo"), ("auction", "cheapest"), ("horizon", "cheapest")):
            row = figures[f"match {demand} {over} - {under}"] = {"riders per h": capacity * share}
            for field in Evening.__struct_fields__:
                apart = [getattr(a, field) - getattr(b, field) for a, b in zip(runs[over], runs[under], strict=True)]
                row[field] = float(np.mean(apart))
                row[f"{field} error"] = float(np.std(apart, ddof=1) / math.sqrt(len(apart))) if seeds > 1 else 0.0
    return figures

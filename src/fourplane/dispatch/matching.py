"""Which driver gets which rider: requests wait a moment together, then all of them are decided at once.

Why wait: deciding riders in the order they came sends each the nearest car even when it is the only one for the next
rider, and once nobody is idle every car that becomes free crosses the city for whoever waited longest. Pooling for two
seconds costs riders less than it saves them. For each request the index gives free drivers within 2 km by straight
line; they are ranked by what matters, the cost:

    cost = road ETA + rating_s * (5 - rating) - idle fairness (grows with the driver's idle time, bounded)

Then the cheapest pair of all is taken, again and again, until riders or drivers run out. `./fourplane bench dispatch`
(or `python -m benchmarks.dispatch --only matching`) plays the same seeded evenings by three rules, 500 cars on the
generated city, five seeds, in brackets the standard error of the mean difference:

    riders an hour         | 2,249 (ample) | 3,092 (full)  | 3,795 (scarce)
    nearest, first come    | 100 %, 97 s   | 68.6 %, 358 s | 53.6 %, 357 s   served, driven empty for a ride
    cheapest pair first    | 100 %, 96 s   | 91.6 %, 97 s  | 79.2 %, 67 s
    auction (`auction.py`) | 100 %, 97 s   | 91.7 %, 97 s  | 79.2 %, 67 s
    auction - cheapest     | +0.3 (0.5) s  | +0.04 (0.11) points, -0.2 (0.5) s | -0.09 (0.09) points, 0.0 (0.3) s
    horizon 45 s - without | -14.1 s       | +0.99 points, -5.9 s  | +0.51 points, -1.5 s

The auction's smaller sums do not reach riders (its mean wait is 0.9 (0.4) s longer at 3,092), so the simple rule ships;
`rule = "auction"` selects the other. Every decision keeps its reasons: candidates, costs, and why the nearest one did not
get it (`Story`). Pure: no clock, no I/O, no chance.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from fourplane.foundation.errors import Misconfigured

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class MatchingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How requests are pooled, searched and ranked."""

    window_s: float = 2.0  # 0 decides each request as it comes
    radius_m: float = 2_000.0
    radius_wide_m: float = 5_000.0  # after `widen_s` without a driver
    widen_s: float = 20.0
    candidates: int = 20
    eta_s_max: float = 900.0
    rating_floor: float = 4.0
    rating_s: float = 20.0  # a star less weighs as much as this many seconds of ETA
    idle_weight: float = 0.03  # seconds of cost per second idle
    idle_s_max: float = 1_800.0
    offer_s: float = 15.0
    patience_s: float = 300.0
    waiting_max: int = 20_000
    horizon_s: float = 45.0  # a driver who ends a ride within this is waited for where nobody free is as near; 0: never
    slice_count: int = 48  # requests searched before the loop gets a breath
    rule: Literal["cheapest", "auction"] = "cheapest"  # how the pairs of a pool are chosen
    value_s: float = 1_000.0  # auction: what serving a rider is worth, in seconds of cost; more is not paid
    step_s: float = 0.5  # auction: the least raise
    bids_per_pair: float = 30.0  # auction: bids per bidder before the exact solver takes over

    def __post_init__(self) -> None:
        if not 0 <= self.window_s <= 30:
            raise Misconfigured(f"dispatch.matching.window_s is {self.window_s}, allowed are 0 to 30")
        if not 0 <= self.horizon_s <= 300:
            raise Misconfigured(f"dispatch.matching.horizon_s is {self.horizon_s}, allowed are 0 to 300")
        if not 1 <= self.candidates <= 200:
            raise Misconfigured(f"dispatch.matching.candidates is {self.candidates}, allowed are 1 to 200")
        if not (self.step_s > 0 and self.value_s > self.eta_s_max and self.bids_per_pair >= 0):
            raise Misconfigured("dispatch.matching needs step_s > 0, value_s > eta_s_max and bids_per_pair >= 0")


class Candidate(msgspec.Struct, frozen=True):
    """One driver considered for one request."""

    driver: int
    metres: float
    eta_s: float
    rating: float
    idle_s: float
    cost: float
    note: str = ""


class Story(msgspec.Struct, frozen=True):
    """Why a request got the driver it got, or none."""

    at_us: int
    driver: int  # -1: nobody this time
    candidates: tuple[Candidate, ...]
    text: str


class Decision:
    """One decision as columns; `story` tells it. Kept for every request, told for few."""

    __slots__ = ("_at_us", "_columns", "_driver", "_settings", "_wait_s")

    def __init__(
        self,
        columns: tuple[Ints, Floats, Floats, Floats, Floats, Floats],
        driver: int,
        at_us: int,
        settings: MatchingSettings,
        *,
        wait_s: float = 0.0,
    ) -> None:
        """Columns: drivers, metres by line, seconds by road, ratings, seconds idle, costs.

        `wait_s` above zero: the driver is not free yet, and the request waits so long for them.
        """
        self._columns, self._driver, self._at_us, self._settings = columns, driver, at_us, settings
        self._wait_s = wait_s

    def story(self) -> Story:
        """Candidates, costs and why the nearest did not get it."""
        candidates = [
            Candidate(
                int(driver),
                round(metres, 1),
                round(min(eta, 1e6), 1),
                round(rating, 2),
                round(idle),
                round(min(cost, 1e6), 1),
                "is too far by road or rated too low" if cost == np.inf else "",
            )
            for driver, metres, eta, rating, idle, cost in zip(
                *(column.tolist() for column in self._columns), strict=True
            )
        ]
        if self._wait_s > 0:
            text = f"waits for driver {self._driver}, whose ride ends near in {self._wait_s:.0f} s: sooner than any free one"
            return Story(self._at_us, -1, tuple(candidates), text)
        return explain(candidates, self._driver, self._at_us, self._settings)


def costs(etas: Floats, ratings: Floats, idle_s: Floats, settings: MatchingSettings) -> Floats:
    """What each candidate costs, in seconds; inf for those who may not be asked."""
    cost = etas + settings.rating_s * (5 - ratings) - settings.idle_weight * np.minimum(idle_s, settings.idle_s_max)
    refused = (etas > settings.eta_s_max) | (ratings < settings.rating_floor)
    return np.where(refused, np.inf, cost)


def choose_pairs(requests: Ints, drivers: Ints, cost: Floats, settings: MatchingSettings) -> list[int]:
    """Edges (positions in the columns) by the rule of the settings, each request and driver at most once."""
    if settings.rule == "cheapest":
        return cheapest_pairs(requests, drivers, cost)
    from fourplane.dispatch import auction  # noqa: PLC0415 - it loads scipy, a second that only this rule needs

    return auction.assign(
        requests, drivers, cost,
        value_s=settings.value_s, step_s=settings.step_s, bids_per_pair=settings.bids_per_pair,
    )  # fmt: skip


def cheapest_pairs(requests: Ints, drivers: Ints, cost: Floats) -> list[int]:
    """Edges (positions in the columns) taken cheapest first, each request and driver at most once; ties go to older requests."""
    taken_requests: set[int] = set()
    taken_drivers: set[int] = set()
    chosen = []
    for edge in np.lexsort((drivers, requests, cost)).tolist():
        if cost[edge] == np.inf:
            break
        request, driver = int(requests[edge]), int(drivers[edge])
        if request not in taken_requests and driver not in taken_drivers:
            taken_requests.add(request)
            taken_drivers.add(driver)
            chosen.append(edge)
    return chosen


def explain(candidates: Sequence[Candidate], driver: int, at_us: int, settings: MatchingSettings) -> Story:
    """The story of one decision from its candidates, nearest first by road."""
    if driver < 0:
        text = (
            f"no free driver within {settings.radius_m / 1_000:.0f} km" if not candidates
            else f"{len(candidates)} near, but each was refused, too far by road or given to another rider"
        )  # fmt: skip
        return Story(at_us, -1, tuple(candidates), text)
    chosen = next(candidate for candidate in candidates if candidate.driver == driver)
    nearest = min(candidates, key=lambda candidate: candidate.metres)
    text = f"driver {driver}, {chosen.eta_s / 60:.1f} min away by road, cheapest of {len(candidates)}"
    if nearest.driver != driver:
        text += f"; the nearest by line ({nearest.driver}, {nearest.metres:.0f} m) {_why_not(nearest, chosen)}"
    return Story(at_us, driver, tuple(candidates), text)


def _why_not(nearest: Candidate, chosen: Candidate) -> str:
    if nearest.note:
        return nearest.note
    if nearest.cost < chosen.cost:
        return "went to another rider for whom it mattered more"
    if nearest.eta_s > chosen.eta_s:
        return f"needs {nearest.eta_s / 60:.1f} min by road"
    if nearest.rating < chosen.rating - 0.05:
        return f"is rated {nearest.rating:.2f} against {chosen.rating:.2f}"
    return "has waited less for a ride"

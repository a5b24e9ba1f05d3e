"""How throughput grows with size: the universal scalability law, fitted to what was measured.

    X(n) = lambda n / (1 + sigma (n - 1) + kappa n (n - 1))

`lambda`: what one does alone; `sigma`: the share that waits in line; `kappa`: the cost of keeping everybody consistent, which
makes more be less past a peak. n / X(n) is linear in (n - 1) and n (n - 1), so a least-squares fit with both not negative
is enough. Source: N. Gunther, "A General Theory of Computational Scalability" (2008).
"""

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from fourplane.foundation.errors import Rejected

POINTS_MIN = 3


class Scalability(msgspec.Struct, frozen=True):
    """A fitted law."""

    single: float
    contention: float
    coherence: float

    def throughput(self, size: float) -> float:
        """What `size` of them do together."""
        return self.single * size / (1 + self.contention * (size - 1) + self.coherence * size * (size - 1))

    def effective(self, size: float) -> float:
        """How many of one alone `size` of them are worth."""
        return self.throughput(size) / self.single

    def peak(self) -> float:
        """The size past which more is less; infinite without a cost of coherence."""
        return math.sqrt((1 - self.contention) / self.coherence) if self.coherence > 0 else math.inf


def fit(points: Sequence[tuple[float, float]]) -> Scalability:
    """The law through (size, throughput) pairs of at least three sizes. Raises Rejected with fewer."""
    if len({size for size, _ in points}) < POINTS_MIN or any(size < 1 or rate <= 0 for size, rate in points):
        raise Rejected("a scalability fit needs positive throughputs of at least three sizes", code="bad_fit")
    size = np.array([one for one, _ in points])
    rate = np.array([one for _, one in points])
    terms = np.stack([np.ones_like(size), size - 1, size * (size - 1)], axis=1)
    best: tuple[float, tuple[float, float, float]] | None = None
    for kept in ((0, 1, 2), (0, 1), (0, 2), (0,)):  # non-negative least squares over three columns: try every support
        weights = 1 / (size / rate)  # relative errors count, not absolute ones
        solution, *_ = np.linalg.lstsq(terms[:, kept] * weights[:, None], np.ones_like(size), rcond=None)
        full = [0.0, 0.0, 0.0]
        for column, value in zip(kept, solution.tolist(), strict=True):
            full[column] = value
        if min(full) < 0 or full[0] <= 0:
            continue
        error = float(np.square(terms @ np.array(full) * weights - 1).sum())
        if best is None or error < best[0]:
            best = (error, (full[0], full[1], full[2]))
    assert best is not None  # a constant alone is always positive
    alone, contention, coherence = best[1]
    return Scalability(1 / alone, contention / alone, coherence / alone)

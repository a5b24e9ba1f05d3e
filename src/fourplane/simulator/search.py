"""Many seeds of one experiment, and of a failing one the smallest fault schedule that still fails.

Shrinking drops activities of the method as long as the run still breaks a promise or misses its steady state: first halves,
then one by one (delta debugging). What is left is told as the places in the file, so one command repeats it.
Source: Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002.
"""

from collections.abc import Callable, Iterable

import msgspec

from fourplane.simulator.experiment import Experiment
from fourplane.simulator.experiments import Result, run

Told = Callable[[Result], None]
Source = Callable[[int], Experiment]  # the experiment of a seed
SHRINK_RUNS_MAX = 40


class Found(msgspec.Struct, frozen=True):
    """A failing seed and what of the method it needs."""

    seed: int
    kept: tuple[int, ...]
    of: int  # activities there were
    result: Result


def first_failure(experiment: Experiment | Source, seeds: Iterable[int], told: Told = lambda _: None) -> Result | None:
    """Run seed after seed until one fails; None when all pass."""
    for seed in seeds:
        result = run(experiment if isinstance(experiment, Experiment) else experiment(seed), seed)
        told(result)
        if not result.passed:
            return result
    return None


def shrink(experiment: Experiment, failed: Result) -> Found:
    """The same failure with as few activities as the bound of runs allows."""
    kept, result, runs = list(range(len(experiment.method))), failed, 0
    size = max(1, len(kept) // 2)
    while size and runs < SHRINK_RUNS_MAX:
        dropped = False
        for begin in range(0, len(kept), size):
            fewer = kept[:begin] + kept[begin + size :]
            runs += 1
            tried = run(experiment.only(fewer), failed.seed)
            if not tried.passed:
                kept, result, dropped = fewer, tried, True
                break
            if runs >= SHRINK_RUNS_MAX:
                break
        if not dropped:
            size //= 2
    return Found(failed.seed, tuple(kept), len(experiment.method), result)

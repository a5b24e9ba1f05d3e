"""A city's crowd: what ends with the evening leaves nothing behind."""

import asyncio
import gc
import warnings

from fourplane.simulator.crowds import Tally
from fourplane.simulator.crowds.dispatch import DispatchCrowd


def test_a_ride_that_is_cancelled_before_its_first_step_leaves_no_coroutine_behind():
    crowd, begun = DispatchCrowd(), []
    crowd._open, crowd._tally = set(), Tally()

    async def ride():
        begun.append("ride")

    async def main():
        async with asyncio.TaskGroup() as group:
            crowd._start(group, ride)
            for task in crowd._open:
                task.cancel()

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        asyncio.run(main())
        gc.collect()
    assert [str(warning.message) for warning in told] == []
    assert begun == []

"""How often people act: by the hour, in a closed or an open loop."""

import asyncio

from fourplane.foundation import clock
from fourplane.simulator import loop
from fourplane.simulator.people import Pace


def acts(*, loop_kind, slow_s, load="steady", seconds=100.0):
    """When one person acts while every answer takes `slow_s`."""

    async def main(_):
        pace, moments = Pace(1.0), []
        pace.shape(load, loop_kind, period_s=seconds)
        while clock.monotonic_s() < seconds:
            await pace.wait()
            moments.append(clock.monotonic_s())
            await clock.sleep(slow_s)
        return moments

    return loop.run(main, 5).result


def test_a_closed_loop_asks_a_slow_system_less():
    assert len(acts(loop_kind="closed", slow_s=0.0)) > 70
    assert len(acts(loop_kind="closed", slow_s=4.0)) < 30


def test_an_open_loop_does_not_wait_for_answers():
    assert len(acts(loop_kind="open", slow_s=0.8)) > 70


def test_a_day_has_quiet_and_busy_hours():
    moments = acts(loop_kind="closed", slow_s=0.0, load="diurnal")
    night = sum(moment < 15 or moment > 85 for moment in moments)
    noon = sum(35 < moment < 65 for moment in moments)
    assert noon > 3 * night


def test_each_person_of_an_open_loop_has_an_own_clock():
    async def main(_):
        pace = Pace(1.0)
        pace.shape("steady", "open", period_s=10.0)
        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(pace.wait())
        return clock.monotonic_s()

    assert loop.run(main, 1).result < 10

"""kill -9 after each acknowledged step: the ride stands where the rider was told it stands, and can be finished."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.journeys.dispatch.rig import MAPS, running

from fourplane.foundation import clock, ids

ROOT = Path(__file__).parents[3]
VERBS = {"accepted": "arrive", "arriving": "start", "in_progress": "finish"}


ORDER = ("processing", "accepted", "arriving", "in_progress", "completed")


def said_before_the_kill(folder: Path, lines: int) -> dict[str, tuple[int, int]]:
    """Run the load until it has said so many lines, kill it: how far each ride was acknowledged, and by which driver."""
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.failure.dispatch.load_until_killed", str(folder)],
        stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "DISPATCH_TEST_MAPS": MAPS},
    )  # fmt: skip
    assert program.stdout is not None
    heard: dict[str, tuple[int, int]] = {}
    try:
        for count, line in enumerate(program.stdout):
            status, ride, driver = line.split()
            heard[ride] = max(heard.get(ride, (-1, -1)), (ORDER.index(status), int(driver)))
            if count >= lines:
                return heard
        raise AssertionError("the program ended early")
    finally:
        program.send_signal(signal.SIGKILL)
        program.wait()
        program.stdout.close()


def test_a_kill_under_load_loses_no_ride_and_no_step(tmp_path: Path) -> None:
    heard = said_before_the_kill(tmp_path, 160)
    assert len(heard) > 12
    assert {how_far for how_far, _ in heard.values()} >= {4}

    async def main() -> None:
        async with running(data=tmp_path) as city:
            rides = city.dispatch.rides
            for name, (how_far, driver) in heard.items():
                trip = (await rides.find(ids.decode("trip", name))).trip
                status = "processing" if trip.status == "offered" else trip.status
                assert ORDER.index(status) >= how_far, name
                assert driver < 0 or trip.driver == driver
            rides.check()
            for _ in range(200):
                if all(ride.trip.settled or not ride.trip.ended for ride in rides.active.values()):
                    break
                await clock.sleep(0.05)
            assert sum((await city.payments.balances())["EUR"].values()) == 0

    asyncio.run(main())


def killed_after(folder: Path, status: str) -> tuple[int, str, int]:
    """Run the program until it acknowledged `status`, kill it; the ride, its rider and its driver."""
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.failure.dispatch.rides_until_killed", str(folder), status],
        stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "DISPATCH_TEST_MAPS": MAPS},
    )  # fmt: skip
    assert program.stdout is not None
    try:
        for line in program.stdout:
            told, ride, rider, driver = line.split()
            if told == status:
                return ids.decode("trip", ride), rider, int(driver)
        raise AssertionError("the program ended early")
    finally:
        program.send_signal(signal.SIGKILL)
        program.wait()
        program.stdout.close()


@pytest.mark.parametrize("status", ["processing", "accepted", "completed"])
def test_a_ride_survives_kill_minus_nine(tmp_path: Path, status: str) -> None:
    trip_id, _, driver = killed_after(tmp_path, status)

    async def main() -> None:
        async with running(data=tmp_path) as city:
            rides = city.dispatch.rides
            trip = (await rides.find(trip_id)).trip
            assert trip.status in ({"processing", "offered"} if status == "processing" else {status})
            if status != "processing":
                assert trip.driver == driver
            rides.check()
            while trip.status in VERBS:
                verb = VERBS[trip.status]
                await (rides.start(trip_id, driver) if verb == "start" else getattr(rides, verb)(trip_id, driver))
            if not trip.ended:
                await rides.cancel(trip_id, trip.rider)
            while trip.settled is None:
                await clock.sleep(0.05)
            assert trip.settled.payment == ("voided" if status == "processing" else "captured")
            assert sum((await city.payments.balances())["EUR"].values()) == 0

    asyncio.run(main())

"""A program: takes one ride on a folder as far as it is asked, says each acknowledged step, waits to be killed."""

import asyncio
import sys
from pathlib import Path

from tests.journeys.dispatch.rig import running


async def main(folder: Path, last: str) -> None:
    async with running(data=folder) as city:
        start, end, place = city.points(3)
        driver, rider = await city.driver(*place), await city.guest()
        ride = (await rider.request(start, end, key="once"))["request_id"]
        say("processing", ride, rider.rider, driver.number)
        if last != "processing":
            await driver.wait_offer()
            for verb, status in (
                ("accept", "accepted"),
                ("arrive", "arriving"),
                ("start", "in_progress"),
                ("finish", "completed"),
            ):
                await driver.do(verb, ride)
                say(status, ride, rider.rider, driver.number)
                if status == last:
                    break
        await asyncio.Event().wait()


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))

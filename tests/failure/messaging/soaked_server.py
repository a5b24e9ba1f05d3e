"""The messaging system in a process whose memory is watched: its store folds early, so that what it keeps is seen coming back.

python -m tests.failure.messaging.soaked_server DATA NAME ...
"""

import asyncio
import functools
import json
import sys
from pathlib import Path

from tests.journeys.messaging.house import house

from fourplane.state import stores
from fourplane.state.embedded.records import EmbeddedRecords, RecordsSettings

FOLD_ROWS = 1_000  # 50,000 otherwise, which few people take an hour to write


async def serve(data: Path, users: tuple[str, ...]) -> None:
    stores.EmbeddedRecords = functools.partial(EmbeddedRecords, settings=RecordsSettings(fold_rows=FOLD_ROWS))
    async with house(data, users) as here:
        sys.stdout.write(json.dumps({"port": here.messaging.port}) + "\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), tuple(sys.argv[2:])))

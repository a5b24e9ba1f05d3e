"""The messaging system in a process whose memory is watched, with a store that soon holds as much in memory as it ever will.

python -m tests.failure.messaging.soaked_server DATA NAME ...
"""

import asyncio
import functools
import json
import sys
from pathlib import Path

from tests.journeys.messaging import house

from fourplane.state import stores
from fourplane.state.embedded.database import DatabaseSettings
from fourplane.state.embedded.database_file import FileSettings
from fourplane.state.embedded.levels import LevelsSettings
from fourplane.state.embedded.records import EmbeddedRecords, RecordsSettings
from fourplane.state.stores import Stores, StoresSettings

FOLD_ROWS = 1_000  # 50,000 otherwise, which a dozen people take an hour to write
CACHE_MIB = 1  # of pages, in each of two connections


small_records = functools.partial(EmbeddedRecords, settings=RecordsSettings(levels=LevelsSettings(fold_rows=FOLD_ROWS)))


async def serve(data: Path, users: tuple[str, ...]) -> None:
    stores.EmbeddedRecords = small_records
    small = StoresSettings(database=DatabaseSettings(file=FileSettings(cache_mib=CACHE_MIB)))
    house.Stores = functools.partial(Stores, small)
    async with house.house(data, users) as here:
        sys.stdout.write(json.dumps({"port": here.messaging.port}) + "\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), tuple(sys.argv[2:])))

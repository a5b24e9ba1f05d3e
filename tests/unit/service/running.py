"""Parts under test, started and stopped around one coroutine, on an empty embedded store."""

import asyncio
from collections.abc import Awaitable, Callable

from fourplane.foundation.lifecycle import Lifecycle, Part
from fourplane.foundation.telemetry import Registry
from fourplane.state.contracts import Sql
from fourplane.state.embedded.database import Database
from fourplane.state.embedded.sql import EmbeddedSql


def run_with_sql(main: Callable[[Sql], Awaitable[None]]) -> None:
    """Run `main(sql)` on an empty store in memory."""

    async def body() -> None:
        database = await Database(None).open()
        try:
            await main(EmbeddedSql(database))
        finally:
            await database.close()

    asyncio.run(body())


async def started(*parts: Part) -> Lifecycle:
    """A lifecycle in which `parts` run; the caller stops it."""
    lifecycle = Lifecycle(Registry())
    for number, part in enumerate(parts):
        lifecycle.add(f"part{number}", part)
    await lifecycle.start()
    return lifecycle

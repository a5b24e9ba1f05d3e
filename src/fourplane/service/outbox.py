"""Events that leave exactly when the state they tell of is there: written in the same commit, relayed afterwards.

`statement()` goes into the commit that changes the state. A relay moves the rows to the event log in id order and
then removes them; a crash between the two brings an event twice, with the same id. One relay runs per store, in
its owner; `wake()` after a commit makes it prompt, polling makes it certain. Lag is the number of rows. Ids go on behind those
of the rows an earlier process left, so that a clock set back meanwhile lets nothing overtake them (stored_order.py).
"""

import asyncio

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError
from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.lifecycle import Tasks
from fourplane.service import events
from fourplane.service.schema import OUTBOX
from fourplane.service.stored_order import next_id
from fourplane.state import schema
from fourplane.state.contracts import EventLog, Sql, Statement


class OutboxSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    poll_s: float = 1.0
    batch: int = 500
    retry_s: float = 0.5


class OutboxStatistics(msgspec.Struct, frozen=True):
    written: int
    relayed: int
    failures: int


class Outbox:
    """The outbox of one Sql store. A lifecycle part."""

    def __init__(self, sql: Sql, log: EventLog, *, ids: IdGenerator, settings: OutboxSettings | None = None) -> None:
        self._sql = sql
        self._log = log
        self._ids = ids
        self._settings = settings or OutboxSettings()
        self._more = asyncio.Event()
        self._relaying = asyncio.Lock()
        self._last = 0  # the largest id of a row
        self._written = self._relayed = self._failures = 0

    async def start(self, tasks: Tasks) -> None:
        """Make the table and relay what an earlier process left."""
        await schema.ensure(self._sql, "outbox", OUTBOX, ())
        [[largest]] = await self._sql.read("SELECT MAX(id) FROM outbox")
        self._last = max(self._last, int(largest or 0))
        tasks.start(self._run(), "relay")

    async def drain(self) -> None:
        """Relay everything that is written."""
        while await self.relay():
            pass

    async def stop(self) -> None:
        """The relay's task ends with the part; rows stay for the next start."""

    def statement(self, topic: str, partition: int, payload: bytes, *, event_id: int = 0) -> Statement:
        """The row of one event, for the commit that makes it true. Call `wake()` when that has returned."""
        if not event_id:
            event_id = self._last = next_id(self._ids, self._last)
        event = events.Event(events.SCHEMA, event_id, clock.now_us(), payload)
        self._written += 1
        insert = "INSERT INTO outbox (id, topic, partition, event) VALUES (?1, ?2, ?3, ?4)"
        return Statement(insert, (event.id, topic, partition, events.encode(event)), expect_rows=1)

    def wake(self) -> None:
        """Something was committed: relay now instead of at the next poll."""
        self._more.set()

    async def relay(self) -> int:
        """Move one batch; how many events went."""
        async with self._relaying:
            sql = "SELECT id, topic, partition, event FROM outbox ORDER BY id LIMIT ?1"
            rows = await self._sql.read(sql, self._settings.batch)
            targets: dict[tuple[str, int], list[bytes]] = {}
            for _, topic, partition, event in rows:
                assert isinstance(event, bytes), "an event is bytes"
                targets.setdefault((str(topic), int(partition or 0)), []).append(event)
            for (topic, partition), batch in targets.items():
                await self._log.append(topic, partition, batch)
            if rows:
                await self._sql.commit([Statement("DELETE FROM outbox WHERE id = ?1", (row[0],)) for row in rows])
            self._relayed += len(rows)
            return len(rows)

    async def lag(self) -> int:
        """Events that are written and not relayed."""
        [[count]] = await self._sql.read("SELECT COUNT(*) FROM outbox")
        return int(count or 0)

    def statistics(self) -> OutboxStatistics:
        return OutboxStatistics(self._written, self._relayed, self._failures)

    async def _run(self) -> None:
        while True:
            self._more.clear()
            try:
                more = await self.relay() == self._settings.batch
            except FourplaneError:
                self._failures += 1  # the store or the log is away; nothing is lost
                await clock.sleep(self._settings.retry_s)
                continue
            if not more:
                await self._wait()

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._settings.poll_s):
                await self._more.wait()
        except TimeoutError:
            return

"""The same promise as outbox.py for state that lives in Records: events in the same partition as what they tell of.

Records know no scan across partitions, so a restarted relay must know where to look: before the first event of a
partition in this process's life a hint is written to a partition of hints. At start every hinted partition is relayed
and its hint removed, before anything new is written, so that rows of an earlier process are never overtaken, whatever the
wall clock says now. Event rows sort behind everything else, behind a prefix of byte 255.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError, Overloaded
from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.lifecycle import Tasks
from fourplane.service import events
from fourplane.service.outbox import OutboxSettings, OutboxStatistics
from fourplane.state.contracts import Change, Delete, EventLog, Put, Records

PREFIX = b"\xffoutbox\x00"
PREFIX_END = b"\xffoutbox\x01"
PENDING_MAX = 100_000
CHANGES_MAX = 100


class RecordsOutbox:
    """The outbox of all partitions that one owner writes; `name` separates owners. A lifecycle part."""

    def __init__(
        self,
        records: Records,
        log: EventLog,
        name: str,
        *,
        ids: IdGenerator,
        settings: OutboxSettings | None = None,
    ) -> None:
        self._records = records
        self._log = log
        self._ids = ids
        self._settings = settings or OutboxSettings()
        self._hints = b"outbox-hints/" + name.encode()
        self._hinted: set[bytes] = set()
        self._pending: OrderedDict[bytes, None] = OrderedDict()
        self._more = asyncio.Event()
        self._relaying = asyncio.Lock()
        self._written = self._relayed = self._failures = 0

    async def start(self, tasks: Tasks) -> None:
        """Relay what an earlier process left, then go on behind the writers."""
        while hints := await self._records.scan(self._hints, limit=CHANGES_MAX):
            for hint in hints:
                await self.relay(hint.sort)
            await self._records.write(self._hints, [Delete(hint.sort) for hint in hints])
        tasks.start(self._run(), "relay")

    async def drain(self) -> None:
        """Relay every partition that is noted."""
        while self._pending:
            partition, _ = self._pending.popitem(last=False)
            await self.relay(partition)

    async def stop(self) -> None:
        """Rows stay for the next start."""

    async def changes(
        self, partition: bytes, topic: str, log_partition: int, payloads: Sequence[bytes]
    ) -> list[Change]:
        """Rows for the batch that makes the events true; call `note(partition)` when it is written.

        Waits only for the first event of a partition, for its hint.
        """
        if len(self._pending) >= PENDING_MAX:
            raise Overloaded("the event log is too far behind", code="outbox_full")
        if partition not in self._hinted:
            await self._records.write(self._hints, [Put(partition, b"\x01")])
            self._hinted.add(partition)
        head = f"{topic}\x00{log_partition}\x00".encode()
        rows: list[Change] = []
        for payload in payloads:
            event = events.Event(events.SCHEMA, self._ids.next(), clock.now_us(), payload)
            rows.append(Put(PREFIX + event.id.to_bytes(8, "big"), head + events.encode(event), expect_version=0))
        self._written += len(rows)
        return rows

    def note(self, partition: bytes) -> None:
        """Events of this partition were written."""
        self._pending[partition] = None
        self._more.set()

    async def relay(self, partition: bytes) -> int:
        """Move the events of one partition; how many went."""
        moved = 0
        async with self._relaying:
            while rows := await self._records.scan(partition, start=PREFIX, end=PREFIX_END, limit=CHANGES_MAX):
                targets: dict[tuple[str, int], list[bytes]] = {}
                for row in rows:
                    topic, log_partition, event = row.value.split(b"\x00", 2)
                    targets.setdefault((topic.decode(), int(log_partition)), []).append(event)
                for (name, number), batch in targets.items():
                    await self._log.append(name, number, batch)
                await self._records.write(partition, [Delete(row.sort) for row in rows])
                moved += len(rows)
        self._relayed += moved
        return moved

    def statistics(self) -> OutboxStatistics:
        return OutboxStatistics(self._written, self._relayed, self._failures)

    async def _run(self) -> None:
        while True:
            if not self._pending:
                self._more.clear()
                await self._more.wait()
            partition, _ = self._pending.popitem(last=False)
            try:
                await self.relay(partition)
            except FourplaneError:
                self._failures += 1
                self._pending[partition] = None
                await clock.sleep(self._settings.retry_s)

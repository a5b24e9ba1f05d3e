"""A group's reader of a topic: in order per partition, each event handled once as far as memory reaches, none skipped.

Batches are read from where the group's committed offset stands, handed to `handle`, and committed behind it: at least once.
Events carry stable ids (events.py); the last `window` ids per partition are remembered, and at a start read again from
the log, so a relay's or a crash's repetition within the window is dropped. Whoever needs more stores the id with the effect.
A batch whose handler fails is given one event at a time; one that fails `attempts_max` times goes to the dead-letter
topic `<topic>.dead.<group>` with its reason, so that one bad event stops nothing. `Unavailable` and `Overloaded` are
nobody's fault: they are waited out, without limit.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import Corrupt, FourplaneError, Overloaded, Unavailable
from fourplane.foundation.lifecycle import Tasks
from fourplane.service import events
from fourplane.state.contracts import EventLog, LogEntry


class ConsumerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    batch: int = 500
    poll_s: float = 0.1
    poll_s_max: float = 1.0
    attempts_max: int = 3
    retry_s: float = 0.05
    retry_s_max: float = 5.0
    window: int = 10_000


class Delivered(msgspec.Struct, frozen=True, gc=False):
    """One event and where it stood."""

    id: int
    at_us: int
    payload: bytes
    partition: int
    offset: int


class DeadLetter(msgspec.Struct, frozen=True, array_like=True):
    """An event nobody could handle: schema number, where it stood, why, and its bytes."""

    schema: int
    topic: str
    partition: int
    offset: int
    reason: str
    value: bytes


class ConsumerStatistics(msgspec.Struct, frozen=True):
    handled: int
    dropped: int
    dead: int
    retries: int
    lag: int


Handle = Callable[[Sequence[Delivered]], Awaitable[None]]


class Consumer:
    """Reads `partitions` of one topic for one group. A lifecycle part."""

    def __init__(
        self,
        log: EventLog,
        group: str,
        topic: str,
        handle: Handle,
        *,
        partitions: Sequence[int] = (0,),
        settings: ConsumerSettings | None = None,
    ) -> None:
        self._log = log
        self._group = group
        self._topic = topic
        self._handle = handle
        self._partitions = tuple(partitions)
        self._settings = settings or ConsumerSettings()
        self._offsets: dict[int, int] = {}
        self._ends: dict[int, int] = {}
        self._seen: dict[int, OrderedDict[int, None]] = {}
        self._stopping = False
        self._handled = self._dropped = self._dead = self._retries = 0

    @property
    def dead_topic(self) -> str:
        """Where events go that could not be handled."""
        return f"{self._topic}.dead.{self._group}"

    async def start(self, tasks: Tasks) -> None:
        """Find the committed offsets and the ids just before them, then read in the background."""
        for partition in self._partitions:
            await self.seek(partition, await self._log.committed_offset(self._group, self._topic, partition))
            tasks.start(self._run(partition), f"{self._group}.{self._topic}.{partition}")

    async def drain(self) -> None:
        """Begin no further batch."""
        self._stopping = True

    async def stop(self) -> None:
        self._stopping = True

    async def seek(self, partition: int, offset: int) -> None:
        """Go on at `offset`: 0 replays everything that was not trimmed. What lies just before is remembered as seen."""
        seen: OrderedDict[int, None] = OrderedDict()
        before = max(0, offset - self._settings.window)
        while before < offset:
            try:
                entries = await self._log.read(self._topic, partition, before, limit=min(1_000, offset - before))
            except FourplaneError:
                break  # trimmed: nothing to remember there
            if not entries:
                break
            for entry in entries:
                seen[_delivered(entry, partition).id] = None
            before = entries[-1].offset + 1
        self._seen[partition] = seen
        self._offsets[partition] = offset

    async def step(self, partition: int) -> int:
        """Handle one batch and commit behind it; how many entries were read."""
        offset = self._offsets[partition]
        entries = await self._log.read(self._topic, partition, offset, limit=self._settings.batch)
        if not entries:
            self._ends[partition] = offset
            return 0
        fresh, seen = [], self._seen[partition]
        in_batch: set[int] = set()
        for entry in entries:
            try:
                one = _delivered(entry, partition)
            except Corrupt as error:
                await self._bury(partition, entry.offset, entry.value, error)
                continue
            if one.id in seen or one.id in in_batch:
                self._dropped += 1
            else:
                in_batch.add(one.id)
                fresh.append(one)
        if fresh:
            await self._give(fresh)
        if self._offsets[partition] != offset:
            return len(entries)  # somebody sought elsewhere meanwhile
        for one in fresh:
            seen[one.id] = None
        while len(seen) > self._settings.window:
            seen.popitem(last=False)
        after = entries[-1].offset + 1
        await self._log.commit_offset(self._group, self._topic, partition, after)
        self._offsets[partition] = after
        self._ends[partition] = await self._log.end_offset(self._topic, partition)
        return len(entries)

    async def lag(self) -> int:
        """Events that are in the log and not handled."""
        ends = [await self._log.end_offset(self._topic, partition) for partition in self._partitions]
        return sum(ends) - sum(self._offsets.values())

    def statistics(self) -> ConsumerStatistics:
        lag = sum(end - self._offsets[partition] for partition, end in self._ends.items())
        return ConsumerStatistics(self._handled, self._dropped, self._dead, self._retries, max(0, lag))

    async def _run(self, partition: int) -> None:
        poll_s, retry_s = self._settings.poll_s, self._settings.retry_s
        while not self._stopping:
            try:
                count = await self.step(partition)
            except (Unavailable, Overloaded):
                await clock.sleep(retry_s)
                retry_s = min(retry_s * 2, self._settings.retry_s_max)
                continue
            retry_s = self._settings.retry_s
            if count:
                poll_s = self._settings.poll_s
            else:
                await clock.sleep(poll_s)
                poll_s = min(poll_s * 2, self._settings.poll_s_max)

    async def _give(self, batch: Sequence[Delivered]) -> None:
        try:
            await self._handle(batch)
        except (Unavailable, Overloaded):
            raise
        except Exception as error:  # noqa: BLE001 - any failure of one event must not stop those behind it
            self._retries += 1
            if len(batch) == 1:
                await self._retry(batch[0], error)
            else:
                for one in batch:
                    await self._give((one,))
        else:
            self._handled += len(batch)

    async def _retry(self, one: Delivered, error: Exception) -> None:
        delay_s = self._settings.retry_s
        for _ in range(self._settings.attempts_max - 1):
            await clock.sleep(delay_s)
            delay_s = min(delay_s * 2, self._settings.retry_s_max)
            try:
                await self._handle((one,))
            except (Unavailable, Overloaded):
                raise
            except Exception as again:  # noqa: BLE001 - counted, then buried
                self._retries += 1
                error = again
            else:
                self._handled += 1
                return
        value = events.encode(events.Event(events.SCHEMA, one.id, one.at_us, one.payload))
        await self._bury(one.partition, one.offset, value, error)

    async def _bury(self, partition: int, offset: int, value: bytes, error: Exception) -> None:
        letter = DeadLetter(1, self._topic, partition, offset, f"{type(error).__name__}: {error}"[:1_000], value)
        await self._log.append(self.dead_topic, partition, [msgspec.msgpack.encode(letter)])
        self._dead += 1


def _delivered(entry: LogEntry, partition: int) -> Delivered:
    event = events.decode(entry.value)
    return Delivered(event.id, event.at_us, event.payload, partition, entry.offset)

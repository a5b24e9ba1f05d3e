"""Trips that outlive the process: every event is one record, and the records are the outbox.

A trip lives in the partition of the hour of its id and one of 16 buckets. One batch writes its new events
(`e` + trip + number, only where absent: two writers cannot both append event 7) and, with the first, its open mark
(`o` + trip). The mark goes when nothing can happen any more and every event has reached the event log; a restart
reads the marks of all hours that still have some, folds those trips and sends their events again. Each event has the
stable id `trip:number`, so consumers drop what they know. Hours are listed in one small partition.

Before a trip's first event there may be an intent (`i` + trip) to hold money for it, which that event's batch takes away;
what became of one that was left stands in `holds` (`v` + trip says that it was undone).
"""

from collections.abc import Sequence

import msgspec

from fourplane.dispatch import trips
from fourplane.dispatch.trips import Event, Trip
from fourplane.foundation import ids
from fourplane.foundation.errors import Conflict, Overloaded
from fourplane.foundation.money import Money
from fourplane.state.contracts import Change, Delete, EventLog, Put, Records

BUCKETS = 16
HOURS = b"dispatch/trip-hours"
TOPIC = "trip.state.changed"
PAGE = 1_000
WAITING_MAX = 100_000
OPEN, EVENT, TRACK, INTENT, BURIED = b"o", b"e", b"t", b"i", b"v"
TRACK_KEPT_S = 7 * 86_400.0
BURIED_KEPT_S = 2 * 86_400.0  # longer than anybody's Idempotency-Key

Track = Sequence[tuple[int, float, float]]


class TripNotice(msgspec.Struct, frozen=True, array_like=True):
    """One event on its way to those who listen: `id` is stable over repetitions."""

    id: str
    trip: int
    number: int
    event: bytes


class Intent(msgspec.Struct, frozen=True, array_like=True):
    """Whose money is about to be held for a trip, how much, by which card."""

    rider: str
    amount: Money
    method: str


class TripStore:
    """Reads and writes trips; one owner at a time, which the absent-only writes enforce."""

    def __init__(self, records: Records, log: EventLog) -> None:
        self._records, self._log = records, log
        self._hours: set[int] = set()
        self._waiting: list[TripNotice] = []

    async def append(self, trip: Trip, events: Sequence[Event], *, intended: bool = False) -> None:
        """Write what was decided, durably, then fold it in; raises Conflict when somebody else wrote meanwhile.

        `intended`: with the first event its intent goes, and where that was condemned nothing is written.
        """
        if not events:
            return
        partition, key = _partition(trip.id), trip.id.to_bytes(8, "big")
        changes: list[Change] = []
        if trip.length == 0:
            if len(self._waiting) > WAITING_MAX:
                raise Overloaded("trip events wait for the event log; no new trips for a moment")
            await self._open_hour(_hour(trip.id))
            changes.append(Put(OPEN + key, bytes((trips.SCHEMA,)), expect_version=0))
            if intended:
                changes.append(Delete(INTENT + key, expect_version=1))
        numbers = range(trip.length, trip.length + len(events))
        values = [trips.encode(event) for event in events]
        changes += [
            Put(EVENT + key + number.to_bytes(2, "big"), value, expect_version=0)
            for number, value in zip(numbers, values, strict=True)
        ]
        await self._records.write(partition, changes)
        for number, value, event in zip(numbers, values, events, strict=True):
            self._waiting.append(_notice(trip.id, number, value))
            trips.apply(trip, event)

    async def intend(self, trip_id: int, intent: Intent) -> None:
        """Write down that money will be held for a trip. The same again is fine; raises Conflict for another intent."""
        await self._open_hour(_hour(trip_id))
        partition, sort = _partition(trip_id), INTENT + trip_id.to_bytes(8, "big")
        value = bytes((trips.SCHEMA,)) + msgspec.msgpack.encode(intent)
        try:
            await self._records.write(partition, [Put(sort, value, expect_version=0)])
        except Conflict:
            row = await self._records.get(partition, sort)
            if row is not None and row.value != value:
                raise Conflict("this key was used for another request", code="key_reused") from None
            if row is None or row.version != 1:
                raise Conflict("the first try is being undone; ask again in a moment", code="try_again") from None

    async def condemn(self, trip_id: int) -> bool:
        """No first event may follow this intent any more; False when the trip is there, or the intent is not."""
        partition, sort = _partition(trip_id), INTENT + trip_id.to_bytes(8, "big")
        row = await self._records.get(partition, sort)
        if row is not None and row.version == 1:
            try:
                await self._records.write(partition, [Put(sort, row.value, expect_version=1)])
            except Conflict:
                return False
        return row is not None

    async def bury(self, trip_id: int) -> None:
        """A condemned intent was undone: who asks again under its key begins anew."""
        key = trip_id.to_bytes(8, "big")
        buried = Put(BURIED + key, bytes((trips.SCHEMA,)), ttl_s=BURIED_KEPT_S)
        await self._records.write(_partition(trip_id), [Delete(INTENT + key), buried])

    async def buried(self, trip_id: int) -> bool:
        """Whether the money of this trip-to-be was given back."""
        return await self._records.get(_partition(trip_id), BURIED + trip_id.to_bytes(8, "big")) is not None

    async def load_intents(self) -> list[tuple[int, Intent]]:
        """The intents that are left, of the hours `load_open` has listed."""
        found = []
        for hour in sorted(self._hours):
            for bucket in range(BUCKETS):
                start = INTENT
                while rows := await self._records.scan(_name(hour, bucket), start=start, end=b"j", limit=PAGE):
                    for row in rows:
                        intent = msgspec.msgpack.decode(row.value[1:], type=Intent)
                        found.append((int.from_bytes(row.sort[1:], "big"), intent))
                    start = rows[-1].sort + b"\0"
        return found

    async def find(self, trip_id: int) -> Trip | None:
        """A trip, folded from its events; None when there is none."""
        events = await self.history(trip_id)
        if not events:
            return None
        trip = Trip(trip_id)
        for event in events:
            trips.apply(trip, event)
        return trip

    async def history(self, trip_id: int) -> list[Event]:
        """Everything that happened to a trip, in order."""
        return [trips.decode(value) for value in await self._values(trip_id)]

    async def load_open(self) -> list[Trip]:
        """The trips that were under way when the last owner stopped; their events will be sent again."""
        found = []
        for row in await self._records.scan(HOURS, limit=10_000):
            hour = int.from_bytes(row.sort, "big")
            self._hours.add(hour)
            for bucket in range(BUCKETS):
                found += await self._load_bucket(_name(hour, bucket))
        return found

    async def relay(self) -> int:
        """Send the events that wait to the event log; how many. At least once: a failure keeps them waiting."""
        batch = self._waiting[:PAGE]
        if batch:
            await self._log.append(TOPIC, 0, [msgspec.msgpack.encode(notice) for notice in batch])
            del self._waiting[: len(batch)]
        return len(batch)

    async def close(self, trip: Trip, track: Track = ()) -> None:
        """Take the open mark of a closed trip away; its events must have been relayed. The car's track stays for a week."""
        key = trip.id.to_bytes(8, "big")
        changes: list[Change] = [Delete(OPEN + key)]
        if track:
            value = bytes((trips.SCHEMA,)) + msgspec.msgpack.encode(track)
            changes.append(Put(TRACK + key, value, ttl_s=TRACK_KEPT_S))
        await self._records.write(_partition(trip.id), changes)

    async def track(self, trip_id: int) -> Track:
        """Where the car of a closed trip was: microseconds, latitude, longitude."""
        row = await self._records.get(_partition(trip_id), TRACK + trip_id.to_bytes(8, "big"))
        return () if row is None else msgspec.msgpack.decode(row.value[1:], type=list[tuple[int, float, float]])

    async def forget_hours(self, before_us: int) -> None:
        """Stop listing hours that began before `before_us` and have no open trip and no intent left."""
        for hour in sorted(self._hours):
            if hour * 3_600_000_000 >= before_us:
                continue
            left = [await self._records.scan(_name(hour, b), start=INTENT, end=b"p", limit=1) for b in range(BUCKETS)]
            if not any(left):
                await self._records.write(HOURS, [Delete(hour.to_bytes(4, "big"))])
                self._hours.discard(hour)

    @property
    def waiting(self) -> int:
        """Events not yet in the event log."""
        return len(self._waiting)

    async def _load_bucket(self, partition: bytes) -> list[Trip]:
        found, start = [], OPEN
        while marks := await self._records.scan(partition, start=start, end=b"p", limit=PAGE):
            for mark in marks:
                trip = Trip(int.from_bytes(mark.sort[1:], "big"))
                for number, value in enumerate(await self._values(trip.id)):
                    trips.apply(trip, trips.decode(value))
                    self._waiting.append(_notice(trip.id, number, value))
                found.append(trip)
            start = marks[-1].sort + b"\0"
        return found

    async def _values(self, trip_id: int) -> list[bytes]:
        key = EVENT + trip_id.to_bytes(8, "big")
        rows = await self._records.scan(_partition(trip_id), start=key, end=key + b"\xff\xff\xff", limit=PAGE)
        return [row.value for row in rows]

    async def _open_hour(self, hour: int) -> None:
        if hour not in self._hours:
            await self._records.write(HOURS, [Put(hour.to_bytes(4, "big"), bytes((trips.SCHEMA,)))])
            self._hours.add(hour)


def _notice(trip_id: int, number: int, value: bytes) -> TripNotice:
    return TripNotice(f"{ids.encode('trip', trip_id)}:{number}", trip_id, number, value)


def _hour(trip_id: int) -> int:
    return ids.created_us(trip_id) // 3_600_000_000


def _partition(trip_id: int) -> bytes:
    return _name(_hour(trip_id), (trip_id ^ trip_id >> 22) % BUCKETS)


def _name(hour: int, bucket: int) -> bytes:
    return f"dispatch/trips/{hour}/{bucket:02d}".encode()

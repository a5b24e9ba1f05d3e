"""Reads `trip.state.changed` and keeps what people look up: a rider's rides, a driver's rides and earnings.

A group of the event log with its own offset: it may be behind, fall over and read an event twice; every row is written
under the trip's id, so a repetition writes the same row again. Nothing in a ride waits for it.
"""

from collections.abc import Awaitable, Callable

import msgspec

from fourplane.control.nodes import Switch
from fourplane.dispatch import trips
from fourplane.dispatch.trip_store import TOPIC, TripNotice
from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError
from fourplane.foundation.money import Money
from fourplane.foundation.telemetry import Registry
from fourplane.state.contracts import EventLog, Put, Records

Find = Callable[[int], Awaitable[trips.Trip | None]]  # a trip by number, from memory where it is there
GROUP = "dispatch-history"
SCHEMA = 1
ROW = b"t/"


class HistoryRow(msgspec.Struct, frozen=True, array_like=True):
    """One ride in somebody's list."""

    trip: int
    at_us: int
    status: str
    pickup: str
    dropoff: str
    total: Money
    earned: Money


class ProcessorStatistics(msgspec.Struct, frozen=True):
    """Events handled, rows written, events still to read."""

    events: int
    rows: int
    behind: int


class TripProcessor:
    """Runs as one task."""

    def __init__(self, find: Find, log: EventLog, records: Records, *, registry: Registry, switch: Switch) -> None:
        self._find, self._log, self._records, self._registry, self._switch = find, log, records, registry, switch
        self._events = self._rows = self._behind = 0

    async def run(self) -> None:
        """Follow the log until cancelled."""
        while True:
            try:
                busy = self._switch.on and await self.step() > 0
            except FourplaneError as error:
                self._registry.event("warning", "dispatch", f"trip events are not processed: {error}")
                busy = False
            await clock.sleep(0.0 if busy else 0.5)

    async def step(self) -> int:
        """Handle one batch; how many events it held."""
        offset = await self._log.committed_offset(GROUP, TOPIC, 0)
        entries = await self._log.read(TOPIC, 0, offset, limit=500)
        for entry in entries:
            notice = msgspec.msgpack.decode(entry.value, type=TripNotice)
            await self._handle(notice)
            self._events += 1
        if entries:
            await self._log.commit_offset(GROUP, TOPIC, 0, entries[-1].offset + 1)
        self._behind = await self._log.end_offset(TOPIC, 0) - (entries[-1].offset + 1 if entries else offset)
        return len(entries)

    def statistics(self) -> ProcessorStatistics:
        return ProcessorStatistics(self._events, self._rows, self._behind)

    async def _handle(self, notice: TripNotice) -> None:
        event = trips.decode(notice.event)
        if isinstance(event, trips.Settled):
            trip = await self._find(notice.trip)
            assert trip is not None, "an event of a trip that was never stored"
            await self._write(trip, event)

    async def _write(self, trip: trips.Trip, event: trips.Settled) -> None:
        row = HistoryRow(
            trip.id,
            trip.requested_us,
            trip.status,
            trip.pickup.name,
            trip.dropoff.name,
            event.amount,
            event.driver_part,
        )
        value = bytes((SCHEMA,)) + msgspec.msgpack.encode(row)
        owners = [f"dispatch/riders/{trip.rider}"]
        if trip.driver >= 0:
            owners.append(f"dispatch/driver/{trip.driver}")
        for owner in owners:
            await self._records.write(owner.encode(), [Put(ROW + trip.id.to_bytes(8, "big"), value)])
            self._rows += 1


async def read_history(records: Records, owner: str, *, limit: int = 50) -> list[HistoryRow]:
    """Somebody's latest rides, newest first."""
    rows = await records.scan(owner.encode(), start=ROW, end=ROW + b"\xff" * 9, limit=limit, reverse=True)
    return [msgspec.msgpack.decode(row.value[1:], type=HistoryRow) for row in rows]

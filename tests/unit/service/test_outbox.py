import asyncio

import pytest
from tests.unit.service.running import started

from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, Unavailable
from fourplane.foundation.ids import IdGenerator
from fourplane.service import events
from fourplane.service.outbox import Outbox, OutboxSettings
from fourplane.service.records_outbox import RecordsOutbox
from fourplane.state.contracts import Put, Statement
from fourplane.state.embedded.database import Database
from fourplane.state.embedded.event_log import EmbeddedEventLog
from fourplane.state.embedded.records import EmbeddedRecords
from fourplane.state.embedded.sql import EmbeddedSql

QUICK = OutboxSettings(poll_s=0.001, retry_s=0.0001, batch=10)


def with_engines(main):
    async def body():
        databases = [await Database(None).open() for _ in range(3)]
        sql = EmbeddedSql(databases[0])
        records = await EmbeddedRecords(databases[1]).open()
        log = await EmbeddedEventLog(databases[2]).open()
        try:
            await main(sql, records, log)
        finally:
            for database in databases:
                await database.close()

    asyncio.run(body())


async def told(log, topic="orders", partition=0):
    return [events.decode(entry.value) for entry in await log.read(topic, partition, 0)]


class FlakyLog:
    """Appends, and loses the answer `left` times."""

    def __init__(self, log, left):
        self.log = log
        self.left = left

    async def append(self, topic, partition, values):
        offset = await self.log.append(topic, partition, values)
        if self.left > 0:
            self.left -= 1
            raise Unavailable("the answer is lost")
        return offset


def test_event_leaves_with_its_commit_and_not_without():
    async def main(sql, records, log):
        outbox = Outbox(sql, log, ids=IdGenerator(), settings=QUICK)
        lifecycle = await started(outbox)
        await sql.commit([Statement("CREATE TABLE orders (id BIGINT PRIMARY KEY)")])
        order = Statement("INSERT INTO orders VALUES (1)", expect_rows=1)
        await sql.commit([order, outbox.statement("orders", 0, b"first")])
        with pytest.raises(Conflict):
            await sql.commit([order, outbox.statement("orders", 0, b"never")])
        outbox.wake()
        await outbox.drain()
        assert [event.payload for event in await told(log)] == [b"first"]
        assert await outbox.lag() == 0
        await lifecycle.stop()

    with_engines(main)


def test_lost_answer_brings_an_event_twice_with_one_id():
    async def main(sql, records, log):
        outbox = Outbox(sql, FlakyLog(log, 1), ids=IdGenerator(), settings=QUICK)
        lifecycle = await started(outbox)
        await sql.commit([outbox.statement("orders", 0, b"once")])
        outbox.wake()
        async with asyncio.timeout(5):
            while await outbox.lag():
                await asyncio.sleep(0.001)
        first, second = await told(log)
        assert first == second
        assert outbox.statistics().failures == 1
        await lifecycle.stop()

    with_engines(main)


def test_relay_runs_by_itself_and_in_order():
    async def main(sql, records, log):
        outbox = Outbox(sql, log, ids=IdGenerator(), settings=QUICK)
        lifecycle = await started(outbox)
        await sql.commit([outbox.statement("orders", n % 2, str(n).encode()) for n in range(95)])
        outbox.wake()
        async with asyncio.timeout(5):
            while await outbox.lag():
                await asyncio.sleep(0.001)
        assert [int(event.payload) for event in await told(log, partition=1)] == list(range(1, 95, 2))
        await lifecycle.stop()

    with_engines(main)


def test_events_of_records_leave_from_their_partition_also_after_a_restart():
    async def main(sql, records, log):
        outbox = RecordsOutbox(records, log, "slot-0", ids=IdGenerator(), settings=QUICK)
        trip = b"trip-1"
        rows = await outbox.changes(trip, "trips", 3, [b"requested", b"offered"])
        await records.write(trip, [Put(b"state", b"offered"), *rows])
        # the process dies here: nothing was noted or relayed
        again = RecordsOutbox(records, log, "slot-0", ids=IdGenerator(), settings=QUICK)
        lifecycle = await started(again)
        assert [event.payload for event in await told(log, "trips", 3)] == [b"requested", b"offered"]
        assert [record.sort for record in await records.scan(trip)] == [b"state"]
        rows = await again.changes(trip, "trips", 3, [b"accepted"])
        await records.write(trip, rows)
        again.note(trip)
        await again.drain()
        assert [event.payload for event in await told(log, "trips", 3)][-1] == b"accepted"
        await lifecycle.stop()

    with_engines(main)


class SetBack(clock.MachineSource):
    """The machine's clock, an hour behind."""

    def now_us(self):
        return super().now_us() - 3_600_000_000


def test_events_an_earlier_process_left_are_not_overtaken_when_the_clock_was_set_back():
    async def main(sql, records, log):
        before = Outbox(sql, Stuck(), ids=IdGenerator(), settings=QUICK)
        lifecycle = await started(before)
        await sql.commit([before.statement("orders", 0, b"placed"), before.statement("orders", 0, b"paid")])
        await lifecycle.stop()
        with clock.installed(SetBack()):
            outbox = Outbox(sql, Stuck(), ids=IdGenerator(), settings=QUICK)
            lifecycle = await started(outbox)
            await sql.commit([outbox.statement("orders", 0, b"sent"), outbox.statement("orders", 0, b"received")])
            await lifecycle.stop()
            outbox = Outbox(sql, log, ids=IdGenerator(), settings=QUICK)
            lifecycle = await started(outbox)
            await outbox.drain()
            await lifecycle.stop()
        events_told = await told(log)
        assert [event.payload for event in events_told] == [b"placed", b"paid", b"sent", b"received"]
        assert sorted({event.id for event in events_told}) == [event.id for event in events_told]

    with_engines(main)


def test_events_left_in_records_are_told_before_anything_new_when_the_clock_was_set_back():
    async def main(sql, records, log):
        before = RecordsOutbox(records, Stuck(), "dispatch", ids=IdGenerator(), settings=QUICK)
        await records.write(b"trip/1", await before.changes(b"trip/1", "orders", 0, [b"asked", b"offered"]))
        with clock.installed(SetBack()):
            outbox = RecordsOutbox(records, log, "dispatch", ids=IdGenerator(), settings=QUICK)
            lifecycle = await started(outbox)
            await records.write(b"trip/1", await outbox.changes(b"trip/1", "orders", 0, [b"taken"]))
            outbox.note(b"trip/1")
            await outbox.drain()
            await lifecycle.stop()
        assert [event.payload for event in await told(log)] == [b"asked", b"offered", b"taken"]

    with_engines(main)


class Stuck:
    """A log that is away."""

    async def append(self, _topic, _partition, _values):
        raise Unavailable("the log is away")

import asyncio

import msgspec
from tests.unit.service.running import started
from tests.unit.service.test_outbox import with_engines

from fourplane.foundation.errors import Unavailable
from fourplane.service import events
from fourplane.service.consumer import Consumer, ConsumerSettings, DeadLetter

QUICK = ConsumerSettings(batch=10, poll_s=0.0001, retry_s=0.0001, retry_s_max=0.0001, window=50)


def event(number):
    return events.encode(events.Event(events.SCHEMA, number, 0, str(number).encode()))


async def emptied(consumer):
    async with asyncio.timeout(5):
        while await consumer.lag():
            await asyncio.sleep(0.0005)


def test_each_event_is_handled_once_in_order_though_relays_repeat():
    async def main(sql, records, log):
        handled = []

        async def handle(batch):
            handled.extend(one.id for one in batch)

        await log.append("orders", 0, [event(n) for n in (1, 2, 2, 3)])
        await log.append("orders", 0, [event(n) for n in (3, 4, 1)])
        consumer = Consumer(log, "mail", "orders", handle, settings=QUICK)
        lifecycle = await started(consumer)
        await emptied(consumer)
        assert handled == [1, 2, 3, 4]
        assert consumer.statistics().dropped == 3
        await lifecycle.stop()
        await log.append("orders", 0, [event(4), event(5)])
        again = Consumer(log, "mail", "orders", handle, settings=QUICK)
        lifecycle = await started(again)
        await emptied(again)
        assert handled == [1, 2, 3, 4, 5], "a restarted reader goes on, and knows what came before"
        await lifecycle.stop()

    with_engines(main)


def test_event_nobody_can_handle_goes_to_the_dead_letters_and_stops_nothing():
    async def main(sql, records, log):
        handled = []

        async def handle(batch):
            if any(one.id == 13 for one in batch):
                raise ValueError("unlucky")
            handled.extend(one.id for one in batch)

        await log.append("orders", 0, [*(event(n) for n in range(10, 20)), b"rubbish"])
        consumer = Consumer(log, "mail", "orders", handle, settings=QUICK)
        lifecycle = await started(consumer)
        await emptied(consumer)
        assert handled == [10, 11, 12, 14, 15, 16, 17, 18, 19]
        entries = await log.read(consumer.dead_topic, 0, 0)
        letters = [msgspec.msgpack.decode(entry.value, type=DeadLetter) for entry in entries]
        assert [(letter.offset, letter.reason.split(":")[0]) for letter in letters] == [
            (3, "ValueError"),
            (10, "Corrupt"),
        ]
        assert letters[0].value == event(13)
        await lifecycle.stop()

    with_engines(main)


def test_dependency_that_is_away_is_waited_out():
    async def main(sql, records, log):
        handled, away = [], [Unavailable("not now")] * 20

        async def handle(batch):
            if away:
                raise away.pop()
            handled.extend(one.id for one in batch)

        await log.append("orders", 0, [event(1), event(2)])
        consumer = Consumer(log, "mail", "orders", handle, settings=QUICK)
        lifecycle = await started(consumer)
        await emptied(consumer)
        assert (handled, consumer.statistics().dead) == ([1, 2], 0)
        await lifecycle.stop()

    with_engines(main)


def test_groups_read_apart_and_replay_starts_where_one_seeks():
    async def main(sql, records, log):
        first, second = [], []

        async def into_first(batch):
            first.extend(one.id for one in batch)

        async def into_second(batch):
            second.extend(one.id for one in batch)

        await log.append("orders", 1, [event(n) for n in range(1, 6)])
        one = Consumer(log, "mail", "orders", into_first, partitions=(0, 1), settings=QUICK)
        two = Consumer(log, "stock", "orders", into_second, partitions=(1,), settings=QUICK)
        lifecycle = await started(one, two)
        await emptied(one)
        await emptied(two)
        await one.seek(1, 3)
        await emptied(one)
        assert (first, second) == ([1, 2, 3, 4, 5, 4, 5], [1, 2, 3, 4, 5])
        assert one.statistics().lag == 0
        await lifecycle.stop()

    with_engines(main)

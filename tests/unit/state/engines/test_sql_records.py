"""Records on a relational server: who shares a transaction with whom, in virtual time."""

import asyncio

from fourplane.foundation import clock
from fourplane.simulator import loop as simulator
from fourplane.state.contracts import Put
from fourplane.state.engines import sql_records
from fourplane.state.engines.sql_records import PACE_FROM, PACE_S, SqlRecords


class NotingSql:
    """Takes every commit after a turn of the loop and notes when it came."""

    dialect = "postgresql"

    def __init__(self):
        self.began_us = []

    async def commit(self, statements):
        self.began_us.append(clock.now_us())
        await clock.sleep(0)
        return [[] for _ in statements]


def written(records, *names):
    return [asyncio.ensure_future(records.write(name.encode(), [Put(b"s", b"x")])) for name in names]


async def after_a_crowd():
    sql = NotingSql()
    records = SqlRecords(sql)
    await asyncio.gather(*written(records, *"abcdefgh"))
    assert len(sql.began_us) == 2  # the first alone, then all who came meanwhile
    sql.began_us.clear()
    return sql, records


def test_one_writer_or_two_never_wait():
    async def main(_):
        before, records = clock.now_us(), SqlRecords(NotingSql())
        for _ in range(20):
            await asyncio.gather(*written(records, "a", "b"))
        return clock.now_us() - before

    assert simulator.run(main, 1).result == 0


def test_after_a_crowd_those_who_come_within_the_pace_share_a_transaction():
    async def main(_):
        sql, records = await after_a_crowd()
        before, writers = clock.now_us(), []
        for name in "ijklm":
            writers += written(records, name)
            await clock.sleep(PACE_S / 10)
        await asyncio.gather(*writers)
        assert sql.began_us == [before + int(PACE_S * 1e6)]
        alone = clock.now_us()
        for name in "no":  # the first of them still keeps the pace, the second has nobody to wait for
            await asyncio.gather(*written(records, name))
        return sql.began_us[1:], alone

    began_us, alone = simulator.run(main, 1).result
    assert began_us == [alone + int(PACE_S * 1e6)] * 2


def test_a_crowd_that_is_long_over_makes_nobody_wait():
    async def main(_):
        _, records = await after_a_crowd()
        await clock.sleep(1)
        before = clock.now_us()
        await asyncio.gather(*written(records, "i"))
        return clock.now_us() - before

    assert simulator.run(main, 1).result == 0


def test_who_is_stopped_while_it_waits_for_others_leaves_the_line_to_them(monkeypatch):
    seen = []
    plain = sql_records._statements
    monkeypatch.setattr(
        sql_records, "_statements", lambda batch, now: (seen.append([w.partition for w in batch]), plain(batch, now))[1]
    )

    async def main(_):
        sql, records = await after_a_crowd()
        seen.clear()
        first, second, third = written(records, *"ijk")
        await clock.sleep(PACE_S / 10)
        first.cancel()
        await asyncio.gather(second, third)
        assert first.cancelled()
        await asyncio.gather(*written(records, "l"))  # the line goes on
        return len(sql.began_us)

    assert simulator.run(main, 1).result == 2
    assert seen == [[b"j", b"k"], [b"l"]]
    assert PACE_FROM > 2

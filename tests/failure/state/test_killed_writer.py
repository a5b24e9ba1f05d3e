"""A writer that is killed with SIGKILL loses nothing it acknowledged, fifty times in a row on the same files."""

import asyncio
import gc
import os
import signal

from fourplane.state.contracts import Put, Statement
from fourplane.state.stores import Stores

ROUNDS = 50
LANES = 4


async def write_for_ever(folder, round_number, told):
    """Write to three stores at once and tell a number through the pipe only when all three acknowledged it."""
    stores = Stores(data=folder)
    sql, records, log = await stores.sql("s"), await stores.records("r"), await stores.log("l")
    await sql.commit([Statement("CREATE TABLE IF NOT EXISTS told (id BIGINT PRIMARY KEY)")])

    async def write(lane):
        step = 0
        while True:
            number = round_number * 1_000_000 + step * 10 + lane
            key = b"%d" % number
            await asyncio.gather(
                sql.commit([Statement("INSERT INTO told (id) VALUES (?1)", (number,))]),
                records.write(b"p%d" % lane, [Put(key, b"x" * 300)]),
                log.append("t", lane, [key] * 3),
            )
            os.write(told, b"%d\n" % number)
            step += 1

    await asyncio.gather(*[write(lane) for lane in range(LANES)])


def run_and_kill(folder, round_number, acknowledged_min):
    """Numbers whose three writes were acknowledged before the kill."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            gc.freeze()
            asyncio.run(write_for_ever(folder, round_number, writing))
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        numbers = [int(told.readline()) for _ in range(acknowledged_min)]
        os.kill(pid, signal.SIGKILL)
        numbers += [int(line) for line in told.read().split(b"\n")[:-1]]
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    return numbers


async def check(folder, told):
    stores = Stores(data=folder)
    sql, records, log = await stores.sql("s"), await stores.records("r"), await stores.log("l")
    stored = {row[0] for row in await sql.read("SELECT id FROM told ORDER BY id DESC LIMIT 10000")}
    for lane in range(LANES):
        mine = [number for number in told if number % 10 == lane]
        end = await log.end_offset("t", lane)
        entries = await log.read("t", lane, max(0, end - 3_000), limit=3_000)
        assert end % 3 == 0
        assert [entry.offset for entry in entries] == list(range(max(0, end - 3_000), end))
        values = {entry.value for entry in entries}
        for number in mine:
            assert number in stored
            assert b"%d" % number in values
            assert (await records.get(b"p%d" % lane, b"%d" % number)).version == 1
    await sql.database.check()
    await stores.stop()


def test_nothing_acknowledged_is_lost_in_fifty_kills(tmp_path):
    total = 0
    for round_number in range(ROUNDS):
        told = run_and_kill(tmp_path, round_number, acknowledged_min=1 + round_number * 3 % 40)
        total += len(told)
        asyncio.run(check(tmp_path, told))
    assert total > ROUNDS

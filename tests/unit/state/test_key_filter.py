import asyncio
import random

from fourplane.state.contracts import Delete, Put
from fourplane.state.embedded.database import Database
from fourplane.state.embedded.key_filter import KeyFilter
from fourplane.state.embedded.key_scan import CAPACITY_MIN, ROWS_AT_ONCE
from fourplane.state.embedded.records import EmbeddedRecords


def test_what_was_added_is_never_denied_and_little_else_is_claimed():
    rng = random.Random(3)
    keys = [(rng.randbytes(8), b"s") for _ in range(20_000)]
    known = KeyFilter(20_000)
    known.add(keys)
    assert all(known.may_hold(key) for key in keys)
    assert sum(known.may_hold((rng.randbytes(8), b"s")) for _ in range(10_000)) < 200


def test_a_large_table_is_known_after_a_while_and_keys_written_meanwhile_are_not_missed(tmp_path):
    async def body():
        path, total = tmp_path / "a.db", CAPACITY_MIN + ROWS_AT_ONCE
        records = await EmbeddedRecords(await Database(path).open()).open()
        for start in range(0, total, 100):
            await records.write(b"p", [Put(b"%06d" % number, b"") for number in range(start, min(total, start + 100))])
        await records.fold()
        await records.close()
        records = await EmbeddedRecords(await Database(path).open()).open()
        assert records.statistics().filtered_keys == 0
        await asyncio.gather(*[records.write(b"q%d" % number, [Put(b"s", b"")]) for number in range(50)])
        await records.fold()
        while not records.statistics().filtered_keys:
            await asyncio.sleep(0.01)
        assert records.statistics().filtered_keys > 0.95 * total  # one in a hundred looks as if it had been there
        assert all(records._keys.may_hold((b"p", b"%06d" % number)) for number in range(total))
        reads = records.database.statistics().reads
        assert await records.get(b"nobody", b"s") is None
        assert records.database.statistics().reads == reads
        for number in range(50):
            assert (await records.get(b"q%d" % number, b"s")).version == 1
        await records.write(b"p", [Put(b"000007", b"again"), Delete(b"000008")])
        assert (await records.get(b"p", b"000007")).version == 2
        await records.close()

    asyncio.run(body())

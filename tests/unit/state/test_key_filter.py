import asyncio
import random

import pytest

from fourplane.state.contracts import Delete, Put
from fourplane.state.embedded.database import Database
from fourplane.state.embedded.key_filter import KeyFilter, KeyFilters, codes_of, decode, key_code
from fourplane.state.embedded.key_scan import ROWS_AT_ONCE
from fourplane.state.embedded.levels import LevelsSettings
from fourplane.state.embedded.records import EmbeddedRecords, RecordsSettings

TOTAL = 3 * ROWS_AT_ONCE
KEEPING = RecordsSettings(levels=LevelsSettings(known_keys_least=1))


async def opened(path, bounds=KEEPING):
    return await EmbeddedRecords(await Database(path).open(), settings=bounds).open()


async def with_table(path, bounds=KEEPING):
    """Records that were merged into the table and closed."""
    records = await opened(path, bounds)
    for start in range(0, TOTAL, 100):
        await records.write(b"p", [Put(b"%06d" % number, b"") for number in range(start, start + 100)])
    await records.fold()
    await records.close()


def knows(records, numbers=range(TOTAL)):
    return all(records._levels.may_hold(key_code(b"p", b"%06d" % number)) for number in numbers)


def test_what_was_added_is_never_denied_and_little_else_is_claimed():
    rng = random.Random(3)
    codes = codes_of([(rng.randbytes(8), b"s") for _ in range(20_000)])
    known = KeyFilter(20_000)
    known.add(codes)
    assert all(known.may_hold(code) for code in codes.tolist())
    assert not len(known.unknown(codes))
    assert sum(known.may_hold(key_code(rng.randbytes(8), b"s")) for _ in range(10_000)) < 200


def test_filters_grow_are_written_down_and_refuse_what_was_not_written():
    rng = random.Random(4)
    codes = codes_of([(rng.randbytes(8), b"s") for _ in range(9_000)])
    known = KeyFilters([KeyFilter(500)])
    assert known.parts[0].capacity == 512
    for at in range(0, 9_000, 300):
        assert known.grow(6_000) or at > 6_600
        assert at < 7_200 or not known.grow(6_000)
        known.add(codes[at : at + 300])
        known.add(codes[:100])  # again: takes no room
    assert [part.capacity for part in known.parts] == [512, 4_096, 2_048]
    content = b"".join(known.encode())
    for found in (known, decode(content)):
        assert all(found.may_hold(code) for code in codes.tolist())
        assert 0.9 * len(codes) < found.count <= len(codes)
        assert sum(found.may_hold(key_code(rng.randbytes(8), b"t")) for _ in range(2_000)) < 300
    for damaged in (b"", content[:-1], content[1:], content[:700] + b"\x07" + content[701:]):
        assert decode(damaged) is None


def test_a_table_without_filters_is_read_and_keys_written_meanwhile_are_not_missed(tmp_path):
    async def body():
        await with_table(tmp_path / "a.db", RecordsSettings())
        records = await opened(tmp_path / "a.db")
        assert records.statistics().filtered_keys == 0
        await asyncio.gather(*[records.write(b"q%d" % number, [Put(b"s", b"")]) for number in range(50)])
        await records.fold()
        while not records.statistics().filtered_keys:
            await asyncio.sleep(0.01)
        assert records.statistics().filtered_keys > 0.95 * TOTAL  # one in a hundred looks as if it had been there
        assert knows(records)
        reads = records.database.statistics().reads
        assert await records.get(b"nobody", b"s") is None
        assert records.database.statistics().reads == reads
        for number in range(50):
            assert (await records.get(b"q%d" % number, b"s")).version == 1
        await records.write(b"p", [Put(b"000007", b"again"), Delete(b"000008")])
        assert (await records.get(b"p", b"000007")).version == 2
        await records.close()

    asyncio.run(body())


def kept(path):
    return list((path.parent / f"{path.name}-runs").iterdir())


@pytest.mark.parametrize("killed", [False, True])
def test_filters_are_known_again_at_once_with_what_runs_and_merges_added(tmp_path, killed):
    async def body():
        path = tmp_path / "a.db"
        await with_table(path)
        (before,) = kept(path)
        bounds = RecordsSettings(levels=LevelsSettings(known_keys_least=1, fold_rows=50, runs_kept=2))
        records = await opened(path, bounds)
        for number in range(TOTAL, TOTAL + 50):
            await records.write(b"p", [Put(b"%06d" % number, b"")])
        while not records.statistics().levels.flushes:
            await asyncio.sleep(0.001)
        if killed:
            records.abandon()
        else:
            await records.close()
        assert len(kept(path)) == 2
        records = await opened(path, bounds)
        assert records.statistics().filtered_keys > 0.95 * TOTAL
        assert knows(records, range(TOTAL + 50))
        assert not records._levels.may_hold(key_code(b"p", b"nothing"))
        await records.fold()
        await records.close()
        (after,) = kept(path)
        assert after != before
        records = await opened(path, bounds)
        assert knows(records, range(TOTAL + 50))
        await records.close()

    asyncio.run(body())


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
def test_damaged_filters_are_made_anew_from_the_table(tmp_path, damage):
    async def body():
        path = tmp_path / "a.db"
        await with_table(path)
        (file,) = kept(path)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content[:-5] if damage == "cut" else content)
        if damage == "missing":
            file.unlink()
        records = await opened(path)
        assert records.statistics().filtered_keys == 0
        assert (await records.get(b"p", b"000001")).version == 1
        while not records.statistics().filtered_keys:
            await asyncio.sleep(0.01)
        assert knows(records)
        await records.close()
        records = await opened(path)
        assert records.statistics().filtered_keys
        await records.close()

    asyncio.run(body())


def test_at_the_bound_the_table_is_read_once_more_and_then_there_is_no_filter(tmp_path):
    async def body():
        path, most = tmp_path / "a.db", 2_000
        bounds = RecordsSettings(filter_keys_max=most, levels=LevelsSettings(known_keys_least=1))
        await with_table(path)
        records = await opened(path, bounds)
        known = records._keys
        while known._filling is not None:
            await asyncio.sleep(0.01)
        known.add(codes_of([(b"x", b"%d" % number) for number in range(20_000)]))
        while known._filling is not None:
            await asyncio.sleep(0.01)
        assert known.whole is None
        assert knows(records)
        assert records._levels.may_hold(key_code(b"p", b"nothing"))
        await records.close()

    asyncio.run(body())

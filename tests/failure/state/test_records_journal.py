"""The journal of records: kills, power cuts and full disks at any moment, with folding under way."""

import asyncio
import contextlib
import random
import struct
import zlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourplane.foundation.errors import Conflict, Corrupt, Unavailable
from fourplane.state.contracts import Delete, Put, Record
from fourplane.state.embedded.database import Database
from fourplane.state.embedded.frame_writer import WriterSettings
from fourplane.state.embedded.levels import LevelsSettings
from fourplane.state.embedded.records import EmbeddedRecords, RecordsSettings
from fourplane.state.embedded.vfs import Disk, Faults

SMALL = RecordsSettings(
    writer=WriterSettings(segment_bytes=3_000),
    overlay_rows_max=40,
    levels=LevelsSettings(fold_rows=10, merge_rows_synced=20, runs_kept=2, runs_max=4, known_keys_least=1),
)

TINY = RecordsSettings(levels=LevelsSettings(fold_rows=2, merge_rows_synced=3, runs_kept=3, known_keys_least=1))


async def opened(path, disk=None, bounds=SMALL):
    return await EmbeddedRecords(await Database(path, disk=disk).open(), settings=bounds).open()


KEYS = st.sampled_from([b"a", b"b", b"c", b"d"])
VERSIONS = st.sampled_from([None, None, 0, 1, 2])
CHANGES = st.builds(Put, KEYS, st.binary(max_size=3), VERSIONS) | st.builds(Delete, KEYS, VERSIONS)
STEPS = st.lists(st.tuples(KEYS, CHANGES) | st.sampled_from(["fold", "kill", "close", "settle"]), max_size=25)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_any_history_with_folds_and_kills_equals_the_model(steps, tmp_path_factory):
    async def body():
        path = tmp_path_factory.mktemp("r") / "a.db"
        records = await opened(path, bounds=TINY)
        model = {}
        for step in steps:
            match step:
                case "fold":
                    await records.fold()
                case "settle":
                    await asyncio.sleep(0)
                case "kill" | "close":
                    if step == "kill":
                        records.abandon()
                    else:
                        await records.close()
                    records = await opened(path, bounds=TINY)
                case (partition, change):
                    before = model.get((partition, change.sort))
                    version = before.version if before else 0
                    if change.expect_version not in {None, version}:
                        with pytest.raises(Conflict):
                            await records.write(partition, [change])
                    else:
                        await records.write(partition, [change])
                        model.pop((partition, change.sort), None)
                        if isinstance(change, Put):
                            model[partition, change.sort] = Record(change.sort, change.value, version + 1)
            for partition in (b"a", b"b", b"c", b"d"):
                expected = [model[key] for key in sorted(model) if key[0] == partition]
                assert await records.scan(partition) == expected
                assert await records.scan(partition, reverse=True, limit=2) == expected[::-1][:2]
        for (partition, sort), record in model.items():
            assert await records.get(partition, sort) == record
        await records.close()

    asyncio.run(body())


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_power_cuts_lose_nothing_acknowledged_while_folding(tmp_path, seed, torn):
    async def body():
        rng = random.Random(seed)
        disk = Disk(faults=Faults())
        kept = {}
        for _ in range(10):
            records = await opened(tmp_path / "a.db", disk)
            for key, (value, version) in kept.items():
                found = await records.get(key, b"s")
                assert (found.value, found.version) == (value, version)
            for _ in range(rng.randrange(60)):
                key, value = b"%d" % rng.randrange(30), rng.randbytes(rng.randrange(200))
                await records.write(key, [Put(b"s", value)])
                kept[key] = value, kept.get(key, (b"", 0))[1] + 1
            disk.faults.failing_syncs = 2  # the cut comes before the syncs under way are through
            results = await asyncio.gather(
                *[records.write(b"lost %d" % number, [Put(b"s", b"")]) for number in range(3)], return_exceptions=True
            )
            assert all(isinstance(result, Unavailable) for result in results) or disk.faults.failing_syncs == 0
            records.abandon()
            disk.faults.failing_syncs = 0
            disk.crash(rng if torn else None)
        disk.close()

    asyncio.run(body())


def test_a_full_disk_refuses_goes_on_and_keeps_versions(tmp_path):
    async def body():
        disk = Disk(faults=Faults())
        records = await opened(tmp_path / "a.db", disk)
        kept, refused = 0, 0
        for number in range(60):
            disk.faults.free_bytes = 2_000 if number == 10 else None if number == 40 else disk.faults.free_bytes
            try:
                await records.write(b"p", [Put(b"s", b"x" * 100)])
                kept += 1
            except Unavailable as error:
                refused += error.reason == "disk_full"
            found = await records.get(b"p", b"s")
            assert found.version == kept
        assert kept + refused == 60
        assert refused > 5
        records.abandon()
        records = await opened(tmp_path / "a.db", disk)
        assert (await records.get(b"p", b"s")).version == kept
        await records.close()
        disk.close()

    asyncio.run(body())


def test_folded_segments_are_removed_and_writers_wait_for_room(tmp_path):
    async def body():
        path = tmp_path / "a.db"
        records = await opened(path)
        for start in range(0, 400, 50):
            await asyncio.gather(
                *[records.write(b"%d" % number, [Put(b"s", b"x" * 100)]) for number in range(start, start + 50)]
            )
            assert records.statistics().overlay_rows <= 40 + 50
        await records.fold()
        assert records.statistics().overlay_rows == 0
        assert records.statistics().levels.merges > 3
        await records.close()
        assert len(list((tmp_path / "a.db-changes").glob("*.segment"))) <= 2
        records = await opened(path)
        assert (await records.get(b"399", b"s")).version == 1
        await records.close()

    asyncio.run(body())


def test_a_flipped_byte_of_the_journal_is_corrupt(tmp_path):
    async def body():
        path = tmp_path / "a.db"
        records = await opened(path, bounds=RecordsSettings())
        for number in range(5):
            await records.write(b"p", [Put(b"%d" % number, b"x" * 50)])
        records.abandon()
        segment = next((tmp_path / "a.db-changes").glob("*.segment"))
        content = bytearray(segment.read_bytes())
        content[len(content.rstrip(b"\0")) // 2] ^= 4
        segment.write_bytes(content)
        with pytest.raises(Corrupt) as told:
            await opened(path)
        assert told.value.fields["file"] == str(segment)

    asyncio.run(body())


def test_journals_of_the_first_format_are_read(tmp_path):
    """One write per frame, as the program before format 2 wrote them."""

    async def body():
        path = tmp_path / "a.db"
        records = await opened(path, bounds=RecordsSettings())
        journal = records._writer.frames
        for number in range(3):
            change = (b"p", [(b"s%d" % number, b"old", 1, None)])
            await records._writer.worker.submit(journal.write, [(0, 1, b"\x01" + msgspec.msgpack.encode(change))])
        await records.write(b"p", [Put(b"s3", b"new")])
        records.abandon()
        records = await opened(path, bounds=RecordsSettings())
        assert [record.value for record in await records.scan(b"p")] == [b"old", b"old", b"old", b"new"]
        await records.close()

    asyncio.run(body())


def test_a_group_that_was_being_written_when_the_power_went_is_gone_as_a_whole(tmp_path):
    async def body():
        path, disk = tmp_path / "a.db", Disk(faults=Faults())
        records = await opened(path, disk, RecordsSettings())
        await records.write(b"p", [Put(b"kept", b"1")])
        disk.faults.failing_syncs = 1
        told = await asyncio.gather(
            *[records.write(b"p", [Put(b"lost %d" % number, b"x")]) for number in range(20)], return_exceptions=True
        )
        assert all(isinstance(each, Unavailable) for each in told)
        records.abandon()
        disk.crash(None)
        records = await opened(path, disk, RecordsSettings())
        assert [record.sort for record in await records.scan(b"p")] == [b"kept"]
        await records.close()
        disk.close()

    asyncio.run(body())


def test_a_disk_that_stops_at_any_byte_of_flushing_and_merging_loses_nothing(tmp_path):
    async def body():
        room, stopped = 20_000, 0
        for number in range(15):
            path, disk = tmp_path / f"{number}.db", Disk(faults=Faults())
            records = await opened(path, disk)
            disk.faults.free_bytes = room
            kept, whole = 0, False
            with contextlib.suppress(Unavailable):
                while kept < 80:
                    await records.write(b"%d" % (kept % 30), [Put(b"s", b"x" * 60)])
                    kept += 1
                await records.fold()
                whole = True
            stopped += not whole
            records.abandon()
            disk.faults.free_bytes = None
            disk.crash(random.Random(number) if number % 2 else None)
            records = await opened(path, disk)
            for key in range(30):
                found = await records.get(b"%d" % key, b"s")
                assert (found.version if found else 0) == len(range(key, kept, 30))
            await records.fold()
            assert (await records.get(b"0", b"s") is None) == (kept == 0)
            await records.close()
            disk.close()
            room = room * 7 // 5
        assert 3 < stopped < 15

    asyncio.run(body())


async def with_a_run(path):
    """Records whose rows are in one run; the file of it."""
    records = await opened(path, bounds=RecordsSettings(levels=LevelsSettings(fold_rows=40)))
    await records.write(b"p", [Put(b"%02d" % number, b"x" * 50) for number in range(40)])
    while not records.statistics().levels.flushes:
        await asyncio.sleep(0.001)
    (run,) = (path.parent / f"{path.name}-runs").glob("*.run")
    return records, run


async def first_row(path):
    return await (await opened(path)).get(b"p", b"00")


@pytest.mark.parametrize("damage", ["a block", "the contents", "cut", "missing"])
def test_a_damaged_run_is_corrupt(tmp_path, damage):
    async def body():
        records, run = await with_a_run(tmp_path / "a.db")
        records.abandon()
        content = bytearray(run.read_bytes())
        content[len(content) - 30 if damage == "the contents" else 30] ^= 4
        run.write_bytes(content[:-1] if damage == "cut" else content)
        if damage == "missing":
            run.unlink()
        with pytest.raises(Corrupt) as told:
            await first_row(tmp_path / "a.db")
        assert told.value.fields["file"] == str(run)

    asyncio.run(body())


def test_rows_of_a_run_are_read_scanned_and_changed_and_what_was_never_listed_is_removed(tmp_path):
    async def body():
        records, run = await with_a_run(tmp_path / "a.db")
        records.abandon()
        left = run.with_name("0000000009.run")
        left.write_bytes(b"half a run")
        records = await opened(tmp_path / "a.db", bounds=RecordsSettings())
        assert not left.exists()
        assert records.statistics().levels.run_rows == 40
        assert records.statistics().overlay_rows == 0
        await records.write(b"p", [Put(b"05", b"again", expect_version=1), Delete(b"06"), Put(b"055", b"between")])
        with pytest.raises(Conflict):
            await records.write(b"p", [Put(b"07", b"", expect_version=0)])
        for _ in range(2):
            assert (await records.get(b"p", b"05")).version == 2
            assert await records.get(b"p", b"06") is None
            found = await records.scan(b"p", start=b"04", end=b"08")
            assert [record.sort for record in found] == [b"04", b"05", b"055", b"07"]
            assert await records.scan(b"p", start=b"04", end=b"08", reverse=True, limit=3) == found[:0:-1]
            await records.fold()
        assert records.statistics().levels.runs == 0
        await records.close()
        assert not list(run.parent.iterdir())  # too few keys for a file of their own

    asyncio.run(body())


def test_runs_of_the_third_format_have_no_codes_and_are_read(tmp_path):
    async def body():
        records, run = await with_a_run(tmp_path / "a.db")
        records.abandon()
        content = run.read_bytes()
        _, _, length, at = struct.unpack("<4sIIQ", content[-20:])
        *contents, codes = msgspec.msgpack.decode(content[at : at + length])
        assert len(codes) == 4 * 40
        older = msgspec.msgpack.encode(contents)
        run.write_bytes(content[:at] + older + struct.pack("<4sIIQ", b"FPr1", zlib.crc32(older), len(older), at))
        database = await Database(tmp_path / "a.db").open()
        size = run.stat().st_size
        await database.transact(lambda writer: writer.execute("UPDATE run SET bytes=?1", (size,)).fetchall())
        await database.close()
        for _ in range(2):  # the second time beside filters that know nothing of it
            records = await opened(tmp_path / "a.db", bounds=RecordsSettings(levels=LevelsSettings(known_keys_least=0)))
            assert (await records.get(b"p", b"07")).version == 1
            with pytest.raises(Conflict):
                await records.write(b"p", [Put(b"08", b"", expect_version=0)])
            assert await records.get(b"p", b"nothing") is None
            await records.close()
        assert len(list(run.parent.iterdir())) == 2

    asyncio.run(body())

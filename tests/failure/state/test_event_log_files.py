"""The event log's own files under kills, power cuts, full disks and flipped bits: nothing acknowledged is lost in silence."""

import asyncio
import random
import shutil

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fourplane.foundation.errors import Corrupt, Unavailable
from fourplane.state.contracts import LogEntry
from fourplane.state.embedded.database import Database, DatabaseSettings
from fourplane.state.embedded.event_batch import encode
from fourplane.state.embedded.event_log import EmbeddedEventLog, EventLogSettings
from fourplane.state.embedded.frame_writer import WriterSettings
from fourplane.state.embedded.vfs import Disk, Faults

SMALL = EventLogSettings(writer=WriterSettings(segment_bytes=4_000), index_batches=7)


async def opened(path, disk=None):
    return await EmbeddedEventLog(await Database(path, disk=disk).open(), settings=SMALL).open()


async def everything(path):
    log = await opened(path)
    try:
        return [entry.value for entry in await log.read("t", 0, 0, limit=10_000)]
    finally:
        log.abandon()


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A log that was killed: 60 batches in several segments, the last ones not indexed."""

    async def body():
        log = await opened(tmp_path_factory.getbasetemp() / "original" / "a.db")
        for number in range(60):
            await log.append("t", 0, [b"%03d" % number * 60, b""])
        assert log.statistics().not_indexed
        log.abandon()

    asyncio.run(body())
    return tmp_path_factory.getbasetemp() / "original"


@pytest.fixture
def copy(original, tmp_path):
    def make():
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(original, tmp_path / "copy")
        return tmp_path / "copy" / "a.db"

    return make


RIGHT = [value for number in range(60) for value in (b"%03d" % number * 60, b"")]


def segments(path):
    return sorted((path.parent / f"{path.name}-segments").glob("*.segment"))


def written(file):
    """How many bytes of a segment are frames; behind them are zeros for the next ones."""
    return len(file.read_bytes().rstrip(b"\0"))


def test_a_killed_log_reads_back_whole(copy):
    path = copy()
    assert len(segments(path)) > 2
    assert asyncio.run(everything(path)) == RIGHT
    assert asyncio.run(everything(path)) == RIGHT


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 100), share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@example(which=0, share=0.997, bit=0)
@example(which=1, share=0.997, bit=0)
@example(which=2, share=0.997, bit=0)
@example(which=3, share=0.997, bit=0)
def test_a_flipped_bit_is_corrupt_with_file_and_byte(copy, which, share, bit):
    path = copy()
    files = segments(path)
    file = files[which % len(files)]
    content = bytearray(file.read_bytes())
    at, frames = int(len(content) * share), written(file)
    content[at] ^= 1 << bit
    file.write_bytes(content)
    # There are no events behind the frames of the last segment, nor in the end frames of others; but the end frame before the
    # last segment is read, because what is not indexed begins in front of it.
    no_events = at >= frames if file == files[-1] else file != files[-2] and at >= len(content) - 24
    if no_events:
        assert asyncio.run(everything(path)) == RIGHT
        return
    with pytest.raises(Corrupt) as told:
        asyncio.run(everything(path))
    assert told.value.fields["file"] == str(file)
    assert told.value.fields["place"].startswith("byte ")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
def test_a_cut_or_missing_segment_is_corrupt(copy, share):
    for which in (0, -1):
        path = copy()
        file = segments(path)[which]
        if share:
            with file.open("r+b") as cut:
                cut.truncate(int(written(file) * share))
        else:
            file.unlink()
        with pytest.raises(Corrupt):
            asyncio.run(everything(path))


def test_a_missing_mark_is_corrupt(copy):
    path = copy()
    (path.parent / "a.db-segments" / "acknowledged").unlink()
    with pytest.raises(Corrupt):
        asyncio.run(everything(path))


def test_a_tail_that_was_never_acknowledged_is_cut_off(copy):
    async def body(path):
        log = await opened(path)
        assert await log.append("t", 0, [b"next"]) == 120
        log.abandon()
        assert (await everything(path))[-1] == b"next"

    path = copy()
    last = segments(path)[-1]
    frames = last.read_bytes()[: written(last)]
    last.write_bytes(frames + frames[:40] + bytes(1_000))
    assert asyncio.run(everything(path)) == RIGHT
    asyncio.run(body(path))


def test_a_full_disk_refuses_and_goes_on_when_there_is_room(tmp_path):
    async def body():
        disk = Disk(faults=Faults())
        log = await opened(tmp_path / "a.db", disk)
        kept, reasons = [], set()
        for number in range(60):
            if number == 10:
                disk.faults.free_bytes = 1_000
            if number == 40:
                disk.faults.free_bytes = None
            try:
                await log.append("t", 0, [b"%d" % number * 20])
                kept.append(b"%d" % number * 20)
            except Unavailable as error:
                reasons.add((error.reason, 10 <= number < 40))
        assert reasons == {("disk_full", True)}
        assert len(kept) < 50
        expected = [LogEntry(at, value) for at, value in enumerate(kept)]
        assert await log.read("t", 0, 0) == expected
        log.abandon()
        log = await opened(tmp_path / "a.db", disk)
        assert await log.read("t", 0, 0) == expected
        await log.close()
        disk.close()

    asyncio.run(body())


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_power_cuts_lose_nothing_acknowledged(tmp_path, seed, torn):
    async def body():
        rng = random.Random(seed)
        disk = Disk(faults=Faults())
        acknowledged, number = [], 0
        for _ in range(10):
            log = await opened(tmp_path / "a.db", disk)
            entries = await log.read("t", 0, 0, limit=10_000)
            assert [entry.offset for entry in entries] == list(range(len(entries)))
            found = [entry.value for entry in entries]
            assert [value for value in found if value in set(acknowledged)] == acknowledged
            for _ in range(rng.randrange(30)):
                number += 1
                await log.append("t", 0, [b"%d" % number * rng.randrange(1, 60)])
                acknowledged.append((await log.read("t", 0, await log.end_offset("t", 0) - 1))[0].value)
            if rng.random() < 0.5:
                await log.index()
            disk.faults.failing_syncs = 2  # the cut comes before this group's sync is through
            cut = [log.append("t", 0, [b"lost %d" % number]) for _ in range(3)]
            results = await asyncio.gather(*cut, return_exceptions=True)
            assert all(isinstance(result, Unavailable) for result in results)
            log.abandon()
            disk.faults.failing_syncs = 0
            disk.crash(rng if torn else None)
        disk.close()

    asyncio.run(body())


def test_a_failed_sync_is_final_until_the_log_is_opened_again(tmp_path):
    async def body():
        disk = Disk(faults=Faults())
        log = await opened(tmp_path / "a.db", disk)
        await log.append("t", 0, [b"1"])
        disk.faults.failing_syncs = 1
        for value in (b"2", b"3"):
            with pytest.raises(Unavailable) as told:
                await log.append("t", 0, [value])
            assert told.value.reason == "sync_failed"
        assert [entry.value for entry in await log.read("t", 0, 0)] == [b"1"]
        await log.close()
        log = await opened(tmp_path / "a.db", disk)
        assert [entry.value for entry in await log.read("t", 0, 0)] in ([b"1"], [b"1", b"2"])
        await log.append("t", 0, [b"4"])
        await log.close()
        disk.close()

    asyncio.run(body())


def test_trimming_gives_whole_segments_back(tmp_path):
    async def body():
        path = tmp_path / "a.db"
        log = await opened(path)
        for number in range(100):
            await log.append("t", number % 2, [b"x" * 300])
        many = len(segments(path))
        await log.trim("t", 0, 50)
        assert len(segments(path)) == many
        await log.trim("t", 1, 40)
        assert len(segments(path)) < many / 2
        assert len(await log.read("t", 1, 40)) == 10
        await log.close()
        log = await opened(path)
        assert await log.append("t", 0, [b"y"]) == 50
        assert len(await log.read("t", 1, 40)) == 10
        await log.close()

    asyncio.run(body())


def test_a_log_whose_bodies_were_rows_is_brought_over(tmp_path):
    """The first format: bodies in a table `batch`, their places in `place`."""

    async def body():
        path = tmp_path / "a.db"
        database = await Database(path, settings=DatabaseSettings()).open()

        def first_format(writer):
            for statement in (
                "CREATE TABLE stream (id INTEGER PRIMARY KEY, topic TEXT, partition INTEGER, floor INTEGER)",
                "CREATE TABLE batch (id INTEGER PRIMARY KEY, body BLOB NOT NULL)",
                "CREATE TABLE place (key INTEGER PRIMARY KEY, batch INTEGER NOT NULL, count INTEGER NOT NULL)",
                "INSERT INTO stream (id, topic, partition, floor) VALUES (1, 't', 0, 4), (2, 'u', 7, 0)",
            ):
                writer.execute(statement).fetchall()
            for number, key in enumerate((1 << 40 | 4, 2 << 40, 1 << 40 | 6)):
                writer.execute("INSERT INTO batch VALUES (?1,?2)", (number, encode([b"%d" % key] * 2))).fetchall()
                writer.execute("INSERT INTO place VALUES (?1,?2,2)", (key, number)).fetchall()

        await database.transact(first_format)
        await database.close()
        for _ in range(2):
            log = await opened(path)
            assert [entry.offset for entry in await log.read("t", 0, 4)] == [4, 5, 6, 7]
            assert (await log.read("u", 7, 1))[0].value == b"%d" % (2 << 40)
            assert await log.end_offset("t", 0) == 8
            await log.close()

    asyncio.run(body())

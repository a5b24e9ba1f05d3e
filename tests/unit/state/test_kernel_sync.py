"""A database whose disk syncs are the kernel's: durable when told, refused when the kernel says so, folded in order."""

import asyncio
import errno

import pytest

from fourplane.foundation.disk_sync import DiskSync
from fourplane.foundation.errors import FourplaneError, Unavailable
from fourplane.state.embedded.database import Database, DatabaseSettings
from fourplane.state.embedded.write_ahead_log import read_mark

SMALL_LOG = DatabaseSettings(checkpoint_bytes=40_000)


def insert(database, number):
    return database.transact(lambda writer: writer.execute("INSERT INTO t VALUES (?1, ?2)", (number, "x" * 500)))


async def opened(path, settings=None):
    database = await Database(path, settings=settings).open()
    await database.transact(lambda writer: writer.execute("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, v)"))
    if database._file.syncs is None:
        pytest.skip("this kernel does not sync without a thread")
    return database


def count_of(database):
    return database.read("SELECT COUNT(*) FROM t")[0][0]


def run(main):
    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_commit_is_synced_and_marked_when_it_returns(tmp_path):
    async def main():
        database = await opened(tmp_path / "d.db")
        for number in range(20):
            before = database.disk.syncs
            await insert(database, number)
            assert database.disk.syncs == before + 1
            mark = read_mark(tmp_path / "d.db-mark")
            assert (mark.end, mark.settled) == ((tmp_path / "d.db-wal").stat().st_size, False)
        await database.close()

    run(main)


def test_the_log_is_folded_again_and_again_and_nothing_is_missing(tmp_path):
    async def main():
        database = await opened(tmp_path / "d.db", SMALL_LOG)
        for start in range(0, 1_000, 10):
            await asyncio.gather(*[insert(database, number) for number in range(start, start + 10)])
        assert database.statistics().checkpoints > 5
        assert database._file.syncs is not None
        database.abandon()
        database = await opened(tmp_path / "d.db")
        assert count_of(database) == 1_000
        await database.check()
        await database.close()

    run(main)


class Syncs:
    """In the kernel's place: says no at once, or fails later."""

    def __init__(self, error):
        self.error = error
        self.closed = False

    def begin(self, _descriptor, told):
        if self.error is None:
            return False
        asyncio.get_running_loop().call_soon(told, self.error)
        return True

    def close(self):
        self.closed = True


class Slow:
    """The kernel's syncs, of which those of the main file end when the test says so."""

    def __init__(self, database):
        self.file, self.syncs = database._file, database._file.syncs
        self.held, self.holds = [], True
        self.file.syncs = self

    def begin(self, descriptor, told):
        if self.holds and descriptor == self.file.disk.descriptor(self.file.name):
            self.held.append(told)
            return True
        return self.syncs.begin(descriptor, told)

    def close(self):
        self.syncs.close()

    def end(self, error=None):
        self.holds = False
        for told in [self.held.pop() for _ in range(len(self.held))]:
            told(error)


async def grown(path, rows):
    """A database that has folded a part of its log into a file whose sync does not end."""
    database = await opened(path, SMALL_LOG)
    slow = Slow(database)
    for number in range(rows):
        await insert(database, number)
    assert len(slow.held) == 1
    return database, slow


def test_commits_go_on_while_what_was_folded_is_synced_and_the_log_keeps_all_of_it(tmp_path):
    async def main():
        database, slow = await grown(tmp_path / "d.db", 12)
        assert database.statistics().checkpoints == 0
        assert count_of(database) == 12
        size = (tmp_path / "d.db-wal").stat().st_size
        await insert(database, 12)
        assert (tmp_path / "d.db-wal").stat().st_size > size, "it did not begin anew"
        slow.end()
        for number in range(13, 30):
            await insert(database, number)
        await database.drain()
        assert database.statistics().checkpoints > 0
        assert not database._folding
        rows = count_of(database)
        database.abandon()
        database = await opened(tmp_path / "d.db")
        assert count_of(database) == rows
        await database.check()
        await database.close()

    run(main)


def test_a_disk_that_cannot_keep_up_holds_commits_back_at_twice_the_log(tmp_path):
    async def main():
        database, slow = await grown(tmp_path / "d.db", 12)
        rest = [insert(database, number) for number in range(12, 14)]
        await asyncio.gather(*rest)
        more = []
        for number in range(14, 60):
            more.append(asyncio.ensure_future(insert(database, number)))
            await asyncio.sleep(0.002)
        waiting = [one for one in more if not one.done()]
        assert len(waiting) > 10
        assert database._file.log_end < 3 * SMALL_LOG.checkpoint_bytes
        slow.end()
        await asyncio.gather(*more)
        assert count_of(database) == 60
        await database.close()
        database = await opened(tmp_path / "d.db")
        assert count_of(database) == 60
        await database.close()

    run(main)


def test_a_part_that_cannot_be_synced_is_final_and_the_log_still_has_it(tmp_path):
    async def main():
        database, slow = await grown(tmp_path / "d.db", 12)
        slow.end(OSError(errno.EIO, "the disk is gone"))
        with pytest.raises(Unavailable):
            await insert(database, 12)
        assert count_of(database) == 12
        await database.close()
        database = await opened(tmp_path / "d.db")
        assert count_of(database) == 12
        await database.check()
        await database.close()

    run(main)


def test_somebody_who_reads_further_back_keeps_the_log_and_nothing_turns_in_circles(tmp_path):
    async def main():
        database = await opened(tmp_path / "d.db", SMALL_LOG)
        await insert(database, 0)
        other = database._file._connect()
        other.execute("BEGIN")
        assert other.execute("SELECT COUNT(*) FROM t").fetchall() == [(1,)]
        for number in range(1, 40):
            await insert(database, number)
            if number % 4 == 0:
                syncs = database.disk.syncs
                await asyncio.sleep(0.02)
                assert database.disk.syncs <= syncs + 2
        assert other.execute("SELECT COUNT(*) FROM t").fetchall() == [(1,)]
        other.execute("COMMIT")
        other.close()
        for number in range(40, 60):
            await insert(database, number)
        assert database._file.log_end < SMALL_LOG.checkpoint_bytes + 20_000
        await database.close()
        database = await opened(tmp_path / "d.db")
        assert count_of(database) == 60
        await database.close()

    run(main)


def test_a_log_that_would_begin_anew_over_what_is_not_yet_durable_is_refused(tmp_path):
    """Nobody reads at the log's end, as if a part had been folded without that: SQLite would begin the log anew."""

    async def main():
        database, _slow = await grown(tmp_path / "d.db", 4)
        await insert(database, 4)
        if database._in_snapshot:
            database._reader.execute("COMMIT")
            database._in_snapshot = False
        assert database._file.fold()
        with pytest.raises(FourplaneError):
            await insert(database, 5)
        database.abandon()
        database = await opened(tmp_path / "d.db")
        assert count_of(database) == 5
        await database.close()

    run(main)


def test_a_failed_sync_is_final_and_reading_goes_on(tmp_path):
    async def main():
        database = await opened(tmp_path / "d.db")
        await insert(database, 1)
        database._file.syncs.close()
        database._file.syncs = Syncs(OSError(errno.EIO, "the disk is gone"))
        acknowledged = read_mark(tmp_path / "d.db-mark")
        for _ in range(2):
            with pytest.raises(Unavailable):
                await insert(database, 2)
        assert count_of(database) == 1
        assert read_mark(tmp_path / "d.db-mark") == acknowledged
        database.abandon()

    run(main)


def test_where_the_kernel_refuses_a_thread_waits_from_then_on(tmp_path):
    async def main():
        database = await opened(tmp_path / "d.db", SMALL_LOG)
        database._file.syncs.close()
        refusing = database._file.syncs = Syncs(None)
        for number in range(300):
            await insert(database, number)
        assert refusing.closed
        assert database._file.syncs is None
        assert database.statistics().checkpoints > 1
        mark = read_mark(tmp_path / "d.db-mark")
        assert not mark.settled
        database.abandon()
        database = await opened(tmp_path / "d.db")
        assert count_of(database) == 300
        await database.close()

    run(main)


def test_who_is_let_go_of_in_the_midst_of_a_sync_tells_the_caller_and_has_what_it_told(tmp_path):
    async def main():
        database = await opened(tmp_path / "d.db")
        under_way = [insert(database, number) for number in range(10)]
        await asyncio.sleep(0)  # they are written, and the kernel syncs
        database.abandon()
        found = await asyncio.gather(*under_way, return_exceptions=True)
        kept = [number for number, one in enumerate(found) if not isinstance(one, FourplaneError)]
        database = await opened(tmp_path / "d.db")
        assert {row[0] for row in database.read("SELECT id FROM t")} >= set(kept)
        await database.close()

    run(main)


def test_without_the_kernel_a_thread_does_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(DiskSync, "open", classmethod(lambda _: None))

    async def main():
        database = await Database(tmp_path / "d.db", settings=SMALL_LOG).open()
        await database.transact(lambda writer: writer.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v)"))
        for number in range(300):
            await insert(database, number)
        assert database.statistics().checkpoints > 1
        await database.close()
        database = await Database(tmp_path / "d.db").open()
        assert count_of(database) == 300
        await database.close()

    run(main)

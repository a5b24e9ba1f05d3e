import asyncio

import apsw
import pytest

from fourplane.foundation.errors import Corrupt
from fourplane.state.embedded import write_ahead_log
from fourplane.state.embedded.database import Database
from fourplane.state.embedded.write_ahead_log import Mark


@pytest.mark.parametrize("page_bytes", [512, 4_096, 65_536])
def test_a_log_of_plain_sqlite_scans_whole(tmp_path, page_bytes):
    path = tmp_path / "plain.db"
    connection = apsw.Connection(str(path))
    for pragma in (f"page_size={page_bytes}", "journal_mode=WAL", "wal_autocheckpoint=0"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    connection.execute("CREATE TABLE t (v BLOB)").fetchall()
    for _ in range(700):
        connection.execute("INSERT INTO t VALUES (randomblob(?1))", (page_bytes // 3,)).fetchall()
    found = write_ahead_log.scan(tmp_path / "plain.db-wal")
    assert found.page_bytes == page_bytes
    assert found.end == found.size == (tmp_path / "plain.db-wal").stat().st_size
    connection.close()


def test_a_log_without_header_scans_as_empty(tmp_path):
    assert write_ahead_log.scan(tmp_path / "none").size == 0
    (tmp_path / "x").write_bytes(b"\xff" * 5_000)
    assert write_ahead_log.scan(tmp_path / "x").end == 0


def test_marks_read_back_and_any_flipped_bit_shows(tmp_path):
    mark = Mark(salts=b"saltsalt", end=12_345, settled=False)
    path = tmp_path / "mark"
    path.write_bytes(mark.encode())
    assert write_ahead_log.read_mark(path) == mark
    for at in [*range(32), 60, 63]:
        damaged = bytearray(mark.encode())
        damaged[at] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(Corrupt):
            write_ahead_log.read_mark(path)


def test_the_log_of_a_running_database_never_ends_before_its_mark(tmp_path):
    async def body():
        path = tmp_path / "a.db"
        database = await Database(path).open()
        await database.transact(lambda writer: writer.execute("CREATE TABLE t (v BLOB)").fetchall())
        for _ in range(20):
            await database.transact(lambda writer: writer.execute("INSERT INTO t VALUES (randomblob(9000))").fetchall())
            mark = write_ahead_log.read_mark(tmp_path / "a.db-mark")
            assert write_ahead_log.scan(tmp_path / "a.db-wal").end == mark.end
            assert not mark.settled
        await database.close()
        assert write_ahead_log.read_mark(tmp_path / "a.db-mark").settled

    asyncio.run(body())

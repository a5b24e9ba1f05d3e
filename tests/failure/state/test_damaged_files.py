"""Bytes that are not what was written are reported with file and place, wherever they are."""

import asyncio
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fourplane.foundation.errors import Corrupt, Unavailable
from fourplane.state.contracts import Statement
from fourplane.state.embedded.database import Database
from fourplane.state.embedded.sql import EmbeddedSql

ROWS = 200
INSERT = "INSERT INTO t (id, v) VALUES (?1, ?2)"


async def write(path, *, fold):
    """A table of 200 rows whose commits lie in the main file, or still in the log."""
    sql = EmbeddedSql(await Database(path).open())
    await sql.commit([Statement("CREATE TABLE t (id BIGINT PRIMARY KEY, v BLOB)")])
    for start in range(0, ROWS, 20):
        await sql.commit([Statement(INSERT, (number, bytes([number]) * 200)) for number in range(start, start + 20)])
    if fold:
        await sql.close()
    else:
        sql.database.abandon()


async def read_all(path):
    sql = EmbeddedSql(await Database(path).open())
    try:
        rows = await sql.read("SELECT id, v FROM t ORDER BY id")
        await sql.database.check()
        return rows
    finally:
        sql.database.abandon()


RIGHT = [(number, bytes([number]) * 200) for number in range(ROWS)]


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    for name, fold in (("folded", True), ("open", False)):
        asyncio.run(write(folder / name / "a.db", fold=fold))
    return folder


@pytest.fixture
def copy(originals, tmp_path):
    def make(name):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        shutil.copytree(originals / name, tmp_path / name)
        return tmp_path / name / "a.db"

    return make


def flip(path: Path, at, mask=0xFF):
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ mask]))


def test_whole_files_read_back(copy):
    assert asyncio.run(read_all(copy("folded"))) == RIGHT
    assert asyncio.run(read_all(copy("open"))) == RIGHT


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_in_the_main_file_is_corrupt(copy, share, bit):
    path = copy("folded")
    flip(path, int(path.stat().st_size * share), 1 << bit)
    with pytest.raises(Corrupt) as told:
        asyncio.run(read_all(path))
    assert told.value.fields["file"] == str(path)
    assert told.value.fields["place"].startswith("page ")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_in_the_acknowledged_log_is_corrupt(copy, share, bit):
    path = copy("open")
    wal = path.with_name("a.db-wal")
    flip(wal, int(wal.stat().st_size * share), 1 << bit)
    with pytest.raises(Corrupt) as told:
        asyncio.run(read_all(path))
    assert told.value.fields["file"] == str(wal)
    assert told.value.fields["place"].startswith("byte ")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_cut_log_is_corrupt(copy, share):
    path = copy("open")
    wal = path.with_name("a.db-wal")
    with wal.open("r+b") as file:
        file.truncate(int(wal.stat().st_size * share))
    with pytest.raises(Corrupt) as told:
        asyncio.run(read_all(path))
    assert told.value.fields["file"] == str(wal)


def test_missing_files_are_corrupt(copy):
    for name in ("a.db", "a.db-wal"):
        path = copy("open")
        path.with_name(name).unlink()
        with pytest.raises(Corrupt):
            asyncio.run(read_all(path))


@pytest.mark.parametrize("left", [0, 100, 4_096, 3 * 4_096, -1])
def test_a_cut_main_file_is_corrupt(copy, left):
    path = copy("folded")
    with path.open("r+b") as file:
        file.truncate(left if left >= 0 else path.stat().st_size - 1)
    with pytest.raises(Corrupt):
        asyncio.run(read_all(path))


def test_a_damaged_mark_is_corrupt(copy):
    path = copy("open")
    flip(path.with_name("a.db-mark"), 20)
    with pytest.raises(Corrupt) as told:
        asyncio.run(read_all(path))
    assert told.value.fields["file"].endswith("a.db-mark")


def test_a_tail_that_was_never_acknowledged_is_normal_recovery(copy):
    path = copy("open")
    wal = path.with_name("a.db-wal")
    with wal.open("ab") as file:
        file.write(wal.read_bytes()[32 : 32 + 4_120] + b"half a frame")
    assert asyncio.run(read_all(path)) == RIGHT


def test_swapped_pages_are_corrupt(copy):
    path = copy("folded")
    content = path.read_bytes()
    page = 4_096
    path.write_bytes(
        content[: 2 * page] + content[3 * page : 4 * page] + content[2 * page : 3 * page] + content[4 * page :]
    )
    with pytest.raises(Corrupt) as told:
        asyncio.run(read_all(path))
    assert told.value.fields["place"] in {"page 3", "page 4"}


def test_another_programs_database_is_refused(tmp_path):
    path = tmp_path / "a.db"
    path.write_bytes(b"%PDF-1.7" + bytes(5_000))
    with pytest.raises(Corrupt):
        asyncio.run(read_all(path))


def test_damage_to_the_open_log_stays_recognisable_in_the_main_file(tmp_path):
    async def body():
        path = tmp_path / "a.db"
        await write(path, fold=False)
        sql = EmbeddedSql(await Database(path).open())
        await sql.commit([Statement("UPDATE t SET v=?1", (b"new" * 50,))])
        wal = path.with_name("a.db-wal")
        for at in range(32 + 24 + 2_000, wal.stat().st_size, 4_120):
            flip(wal, at)
        await sql.close()
        with pytest.raises(Corrupt) as told:
            await read_all(path)
        assert told.value.fields["place"].startswith("page ")

    asyncio.run(body())


def test_a_file_has_one_opener(tmp_path):
    async def body():
        path = tmp_path / "a.db"
        first = await Database(path).open()
        with pytest.raises(Unavailable):
            await Database(path).open()
        await first.close()
        await (await Database(path).open()).close()

    asyncio.run(body())

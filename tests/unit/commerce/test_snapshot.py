"""The table that processes share."""

import pytest

from fourplane.commerce.snapshot import Snapshot, write
from fourplane.foundation.errors import Corrupt


def test_every_name_is_found_and_no_other(tmp_path):
    path = tmp_path / "t"
    assert write(path, ((f"name-{number}", b"%d" % number) for number in range(3_000))) == 3_000
    with Snapshot(path) as table:
        assert all(bytes(table.find(f"name-{number}")) == b"%d" % number for number in range(3_000))
        assert table.find("name-3000") is None
        assert table.find("") is None


def test_a_reader_keeps_its_table_until_it_looks_again(tmp_path):
    path = tmp_path / "t"
    write(path, [("a", b"1")])
    with Snapshot(path) as old:
        assert not old.renewed()
        write(path, [("a", b"2")])
        assert bytes(old.find("a")) == b"1"
        assert old.renewed()
        with Snapshot(path) as new:
            assert bytes(new.find("a")) == b"2"


def test_an_empty_table_answers(tmp_path):
    write(tmp_path / "t", [])
    with Snapshot(tmp_path / "t") as table:
        assert table.find("a") is None


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 500, b"FPSNAP01" + bytes(16)])
def test_another_file_is_refused(tmp_path, content):
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(Corrupt):
        Snapshot(tmp_path / "t")


def test_a_cut_off_table_is_refused(tmp_path):
    path = tmp_path / "t"
    write(path, [("a", b"1"), ("b", b"2")])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Corrupt):
        Snapshot(path)

"""The table that processes share."""

import mmap
from struct import Struct
from zlib import crc32

import msgspec
import pytest

from fourplane.commerce import snapshot
from fourplane.commerce.snapshot import LINE, Snapshot, write
from fourplane.foundation.errors import Corrupt


class Thing(msgspec.Struct, frozen=True, array_like=True):
    """What these tables hold."""

    id: str
    value: int


def entries(**values):
    return [(name, msgspec.msgpack.encode(Thing(name, value))) for name, value in values.items()]


def opened(path):
    return Snapshot(path, msgspec.msgpack.Decoder(Thing).decode)


def test_every_name_is_found_and_no_other(tmp_path):
    path = tmp_path / "t"
    assert write(path, entries(**{f"name-{number}": number for number in range(3_000)})) == 3_000
    with opened(path) as table:
        assert all(table.find(f"name-{number}") == Thing(f"name-{number}", number) for number in range(3_000))
        assert table.find("name-3000") is None
        assert table.find("") is None


def test_a_name_with_the_checksum_of_another_is_another(tmp_path):
    one, other = "plumless", "buckeroo"  # the same crc32
    assert crc32(one.encode()) == crc32(other.encode())
    write(tmp_path / "t", entries(**{one: 1}))
    with opened(tmp_path / "t") as table:
        assert (table.find(one).value, table.find(other)) == (1, None)
    write(tmp_path / "t", entries(**{one: 1, other: 2}))
    with opened(tmp_path / "t") as table:
        assert (table.find(one).value, table.find(other).value) == (1, 2)


def test_no_slot_lies_across_two_cache_lines_and_every_entry_begins_one(tmp_path):
    path = tmp_path / "t"
    write(path, entries(**{f"name-{number:0{number}d}": number for number in range(1, 100)}))
    content, slot = path.read_bytes(), Struct("<III4x")
    _, base, slots = Struct("<8sQQ").unpack_from(content)
    places = [at for _, at, _ in slot.iter_unpack(content[base:]) if at]
    assert (len(places), slots & (slots - 1), base % mmap.ALLOCATIONGRANULARITY, LINE % slot.size) == (99, 0, 0, 0)
    assert all(at % LINE == 0 for at in places)


def test_a_reader_keeps_its_table_until_it_looks_again(tmp_path):
    path = tmp_path / "t"
    write(path, entries(a=1))
    with opened(path) as old:
        assert not old.renewed()
        write(path, entries(a=2))
        assert old.find("a").value == 1
        assert old.renewed()
        with opened(path) as new:
            assert new.find("a").value == 2


def test_what_has_no_room_is_not_found(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "BYTES_MAX", 3 * LINE + 1)
    assert write(tmp_path / "t", entries(a=1, b=2, c=3)) == 2
    with opened(tmp_path / "t") as table:
        assert (table.find("a").value, table.find("b").value, table.find("c")) == (1, 2, None)


def test_what_is_written_in_several_pieces_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "_HUGE", snapshot._PAGE)
    path = tmp_path / "t"
    write(path, entries(**{f"name-{number}": number for number in range(3_000)}))
    _, base, slots = Struct("<8sQQ").unpack_from(path.read_bytes())
    assert base > 2 * snapshot._PAGE
    assert slots * 16 > snapshot._PAGE
    with opened(path) as table:
        assert all(table.find(f"name-{number}") == Thing(f"name-{number}", number) for number in range(3_000))


def test_an_empty_table_answers(tmp_path):
    write(tmp_path / "t", [])
    with opened(tmp_path / "t") as table:
        assert table.find("a") is None


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 500, b"FPSNAP03" + bytes(16), b"FPSNAP03" + bytes(56)])
def test_another_file_is_refused(tmp_path, content):
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(Corrupt):
        opened(tmp_path / "t")


@pytest.mark.parametrize(("magic", "base", "slot"), [(b"FPSNAP01", 24, "<IIQQ"), (b"FPSNAP02", 64, "<III4x")])
def test_a_table_of_an_older_release_is_refused(tmp_path, magic, base, slot):
    slots = bytes(Struct(slot).size * 8)
    (tmp_path / "t").write_bytes(Struct("<8sQQ").pack(magic, base, 8).ljust(base, b"\0") + slots)
    with pytest.raises(Corrupt):
        opened(tmp_path / "t")


def test_a_cut_off_table_is_refused(tmp_path):
    path = tmp_path / "t"
    write(path, entries(a=1, b=2))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Corrupt):
        opened(path)

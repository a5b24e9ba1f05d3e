import os
import subprocess
import sys

import pytest

from fourplane.foundation.errors import Corrupt, Misconfigured, Unavailable
from fourplane.state import data_folder
from fourplane.state.format import CURRENT, Format, ensure_format, read_format


def test_second_opener_is_refused_with_pid_and_address(tmp_path):
    held = data_folder.hold(tmp_path / "data")
    held.announce("http://127.0.0.1:8000")
    code = f"""
from pathlib import Path
from fourplane.state import data_folder
try:
    data_folder.hold(Path({str(tmp_path / "data")!r}))
except Exception as error:
    print(type(error).__name__, error.fields["pid"], error.fields["address"], error)
"""
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said.startswith(f"Unavailable {os.getpid()} http://127.0.0.1:8000 ")
    with pytest.raises(Unavailable):
        data_folder.hold(tmp_path / "data")
    held.release()
    data_folder.hold(tmp_path / "data").release()


def test_a_file_in_the_way_is_one_clear_error(tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(Misconfigured):
        data_folder.hold(tmp_path / "data")


def test_new_folder_gets_the_current_format_and_newer_is_refused(tmp_path):
    assert ensure_format(tmp_path, program="0.1", current=2).after == 2
    assert read_format(tmp_path).written_by == "0.1"
    before = (tmp_path / "format.json").read_bytes()
    with pytest.raises(Misconfigured):
        ensure_format(tmp_path, program="0.0", current=1)
    assert (tmp_path / "format.json").read_bytes() == before


def test_older_folder_is_copied_then_migrated_step_by_step(tmp_path):
    ensure_format(tmp_path, program="0.1", current=1)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "rows").write_text("old")

    def second(folder):
        (folder / "state" / "rows").write_text("new")

    def broken(_folder):
        raise OSError("pulled")

    with pytest.raises(OSError, match="pulled"):
        ensure_format(tmp_path, program="0.3", current=3, steps={1: second, 2: broken})
    assert read_format(tmp_path).format == 2
    done = ensure_format(tmp_path, program="0.3", current=3, steps={2: lambda _folder: None})
    assert (done.before, done.after) == (2, 3)
    backups = sorted((tmp_path / "backups").iterdir())
    assert (backups[0] / "state" / "rows").read_text() == "old"
    assert (backups[1] / "state" / "rows").read_text() == "new"
    with pytest.raises(Misconfigured):
        ensure_format(tmp_path, program="0.5", current=5, steps={3: second})


def test_unreadable_format_is_corrupt(tmp_path):
    (tmp_path / "format.json").write_text("{")
    with pytest.raises(Corrupt):
        ensure_format(tmp_path, program="0.1")
    assert Format(1, "x", 0).format == 1


def test_folders_of_the_first_format_are_raised_without_a_copy(tmp_path):
    ensure_format(tmp_path, program="0.1", current=1)
    done = ensure_format(tmp_path, program="0.2")
    assert (done.before, done.after, done.backup) == (1, CURRENT, None)
    with pytest.raises(Misconfigured) as told:
        ensure_format(tmp_path, program="0.1", current=1)
    assert told.value.reason == "newer_format"

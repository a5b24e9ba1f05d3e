"""What a deployment makes of its settings."""

from pathlib import Path

import msgspec

from fourplane.settings import Settings, placed


def test_folders_lie_in_the_data_folder_and_do_not_depend_on_where_a_child_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    there = placed(Settings(data=Path("mine"))).streaming
    assert (there.folder, there.cache_folder) == (tmp_path / "mine" / "streaming", tmp_path / "mine" / "cdn")


def test_a_folder_given_whole_is_taken_as_it_is(tmp_path):
    settings = Settings(data=tmp_path)
    own = msgspec.structs.replace(settings.streaming, folder=Path("/films"), cache_folder=None)
    there = placed(msgspec.structs.replace(settings, streaming=own)).streaming
    assert (there.folder, there.cache_folder) == (Path("/films"), None)

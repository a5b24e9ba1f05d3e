"""check-config on the real settings: every value with its origin, every mistake in one line."""

import json

import pytest

from fourplane import __main__ as command_line


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("FOURPLANE_CONFIG", "FOURPLANE_DATA"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_file_every_value_is_a_default(capsys):
    assert command_line.main(["check-config", "--json"]) == 0
    origins = json.loads(capsys.readouterr().out)
    assert {origin["kind"] for origin in origins.values()} == {"default"}
    assert "data" in origins


def test_a_changed_value_says_where_it_comes_from(capsys, tmp_path, monkeypatch):
    (tmp_path / "fourplane.toml").write_text('data = "elsewhere"\n')
    monkeypatch.setenv("FOURPLANE_MESSAGING__PORT", "0")
    assert command_line.main(["check-config", "--changed"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["data", '"elsewhere"', "fourplane.toml:1"],
        ["messaging.port", "0", "FOURPLANE_MESSAGING__PORT"],
    ]


def test_a_mistake_is_one_line_and_exit_code_2(capsys, tmp_path):
    (tmp_path / "fourplane.toml").write_text("[messaging]\nprot = 1\n")
    assert command_line.main(["check-config"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == (
        "",
        'fourplane: fourplane.toml:2: unknown setting "messaging.prot" (did you mean "messaging.port"?)\n',
    )


def test_a_named_file_must_exist(capsys):
    assert command_line.main(["check-config", "--config", "nowhere.toml"]) == 1
    assert capsys.readouterr().err == "fourplane: no such settings file: nowhere.toml\n"

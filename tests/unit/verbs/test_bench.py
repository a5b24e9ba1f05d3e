"""The bench verb on a checkout of its own: runs a file, prints its figures, keeps them with the machine."""

import json

import pytest

from fourplane import __main__ as command_line
from fourplane.verbs import checkout


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "pebble.py").write_text(
        "def run(options):\n    return {'reads': {'per_s': 12345.6, 'rounds': options.rounds, 'only': options.only},"
        " 'holds': True}\n"
    )
    monkeypatch.setattr(checkout, "root", lambda: tmp_path)
    return tmp_path


def test_figures_are_printed_and_kept_with_the_machine(folder, capsys):
    assert command_line.main(["bench", "pebble", "--rounds", "3", "--only", "reads"]) == 0
    out = capsys.readouterr().out
    assert "reads.per_s   12,346" in out
    kept = json.loads((folder / "benchmarks" / "results" / "pebble.json").read_text())
    assert kept["figures"] == {"reads": {"per_s": 12345.6, "rounds": 3, "only": "reads"}, "holds": True}
    assert set(kept["machine"]) >= {"cpu", "cores", "python"}


def test_a_program_gets_json(folder, capsys):
    assert command_line.main(["bench", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pebble"]["figures"]["holds"] is True


def test_an_unknown_benchmark_gets_the_nearest_right_name(folder, capsys):
    assert command_line.main(["bench", "peble"]) == 2
    assert 'did you mean "pebble"' in capsys.readouterr().err


def test_a_list_measures_nothing(folder, capsys):
    assert command_line.main(["bench", "--list"]) == 0
    assert capsys.readouterr().out == "pebble\n"
    assert not (folder / "benchmarks" / "results").exists()

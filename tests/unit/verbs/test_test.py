"""How the test run counts, and what its closing line says."""

import argparse
import asyncio
import json
from pathlib import Path

import pytest

from fourplane.verbs import check
from fourplane.verbs import test as verb
from fourplane.verbs.test import Outcome, Section

OPTIONS = argparse.Namespace(all=False, paths=[], section=None)

MIXED = """
import pytest
def test_good(): pass
def test_bad(): assert 1 == 2
def test_absent(): pytest.skip("no such server here")
@pytest.fixture
def broken(): raise RuntimeError("set-up")
def test_never(broken): pass
"""


def outcome_of(tmp_path, text, **section):
    (tmp_path / "test_it.py").write_text(text)
    lines = []
    made = Section("chosen", ("test_it.py",), section.get("budget_s", 60))
    return asyncio.run(verb._pytest(tmp_path, made, OPTIONS, lines.append)), lines


def test_passed_failed_and_skipped_are_counted_with_their_reasons(tmp_path):
    outcome, lines = outcome_of(tmp_path, MIXED)
    assert (outcome.passed, outcome.failed, outcome.skipped) == (1, 2, 1)
    assert any("no such server here" in reason for reason in outcome.skips)
    assert [failure.rpartition("::")[2] for failure in outcome.failures] == ["test_bad", "test_never"]
    assert any("1 == 2" in line for line in lines)


def test_a_file_that_cannot_be_read_is_a_failure(tmp_path):
    outcome, _ = outcome_of(tmp_path, "import nothing_of_this_name")
    assert (outcome.passed, outcome.failed) == (0, 1)


def test_a_run_that_dies_is_a_failure(tmp_path):
    outcome, _ = outcome_of(tmp_path, "import os\ndef test_dies(): os._exit(9)")
    assert (outcome.passed, outcome.failed) == (0, 1)
    assert outcome.failures == ["chosen: pytest ended with exit code 9"]


def test_a_run_that_hangs_is_ended_and_a_failure(tmp_path):
    outcome, _ = outcome_of(tmp_path, "import signal\ndef test_hangs(): signal.pause()", budget_s=0.25)
    assert outcome.failed == 1
    assert outcome.failures == ["chosen did not end within 1 s"]


def test_a_folder_without_tests_is_no_failure(tmp_path):
    outcome, _ = outcome_of(tmp_path, "x = 1")
    assert (outcome.passed, outcome.failed, outcome.skipped) == (0, 0, 0)


def test_the_checks_run_by_a_verb_of_their_own(tmp_path, monkeypatch, capsys):
    (tmp_path / "tests" / "tidy").mkdir(parents=True)
    (tmp_path / "tests" / "tidy" / "test_it.py").write_text("def test_tidy(): pass")
    monkeypatch.setattr(check.checkout, "root", lambda: tmp_path)
    monkeypatch.setattr(verb, "checks", list)  # what ruff and mypy say is not asked here
    assert check.run(argparse.Namespace(json=False)) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 passed, 0 failed"


def closing(capsys, *outcomes):
    code = verb.report(list(outcomes), 1.0, as_json=False)
    return code, capsys.readouterr().out.splitlines()


def test_the_last_line_counts_everything(capsys):
    code, lines = closing(
        capsys, Outcome("a", 60, passed=3), Outcome("b", 60, passed=2, skipped=1, skips={"no browser": 1})
    )
    assert (code, lines[-1]) == (0, "5 passed, 0 failed, 1 skipped")
    assert "skipped 1: no browser" in lines


def test_a_failure_is_named_and_the_run_is_red(capsys):
    code, lines = closing(capsys, Outcome("a", 60, passed=3, failed=1, failures=["test_x"]))
    assert (code, lines[-1]) == (1, "3 passed, 1 failed")
    assert "failed: test_x" in lines


def test_a_slow_section_is_named_and_stays_green(capsys):
    code, lines = closing(capsys, Outcome("a", 60, seconds=75.2, passed=3))
    assert code == 0
    assert "over budget: a took 75 s of 60" in lines


def test_a_run_without_a_test_is_red(capsys):
    code, lines = closing(capsys, Outcome("a", 60))
    assert (code, lines[-1]) == (1, "0 passed, 0 failed")
    assert "no test ran" in lines


def test_a_program_gets_the_sections(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["fourplane", "test", "--json"])
    assert verb.report([Outcome("a", 60, passed=1)], 1.0, as_json=True) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["passed"], said["sections"][0]["section"]) == (1, "a")


def test_the_longest_files_are_dealt_first_each_to_the_hand_that_is_done_first(tmp_path):
    (tmp_path / "tests").mkdir()
    for name in "abcde":
        (tmp_path / "tests" / f"test_{name}.py").write_text("#" * 1_500)  # a tenth of a second
    (tmp_path / "tests" / "seconds.json").write_text(
        '{"tests/test_b.py": 9, "tests/test_d.py": 5, "tests/test_e.py": 4}'
    )
    dealt = verb.dealt(tmp_path, ["tests"])
    assert dealt == [[f"tests/test_{name}.py" for name in names] for names in ("ab", "cde")]
    (tmp_path / "tests" / "seconds.json").unlink()
    assert sorted(map(len, verb.dealt(tmp_path, ["tests"]))) == [2, 3]


def test_every_file_that_is_named_as_long_is_there():
    root = Path(__file__).parents[3]
    named = json.loads((root / verb.LONG).read_text())
    assert [name for name in named if not (root / name).is_file()] == []


def test_every_folder_of_tests_belongs_to_exactly_one_section():
    folders = [folder for section in (verb.CHECKS, *verb.SECTIONS) for folder in section.folders]
    assert sorted(folders) == sorted(set(folders))
    assert {folder.partition("/")[2] for folder in folders} == {
        "contracts",
        "failure",
        "journeys",
        "machines",
        "protocol",
        "simulation",
        "tidy",
        "unit",
    }


def test_the_budgets_leave_the_promised_ten_minutes():
    assert sum(section.budget_s for section in (verb.CHECKS, *verb.SECTIONS)) + verb.RESERVE_S == pytest.approx(600)

"""The page of one run."""

from pathlib import Path

import msgspec
import pytest

from fourplane import simulator
from fourplane.simulator import experiment, experiments, report

LIBRARY = Path(simulator.__file__).parent / "library"


@pytest.fixture(scope="module")
def result():
    chosen = experiment.parse((LIBRARY / "streaming-instance-loss.json").read_bytes())
    return experiments.run(chosen.sized(people=4, duration_s=15.0), 1)


def test_the_page_tells_faults_and_what_users_felt(result):
    page = report.page(result, "./fourplane simulate x --seed 1")
    assert "kept every promise" in page
    assert page.count("class=name") == len(result.spans) == 2
    assert "./fourplane simulate x --seed 1" in page
    assert result.digest in page
    assert "http://" not in page, "no other file is needed"
    assert "<script" not in page


def test_a_broken_promise_stands_first_and_cannot_break_the_page(result):
    broken = msgspec.structs.replace(result, violations=["films: <b>wrong</b> & lost"] * 60)
    page = report.page(broken)
    assert "broke a promise" in page
    assert "films: &lt;b&gt;wrong&lt;/b&gt; &amp; lost" in page
    assert "and 10 more" in page


def test_a_run_in_which_nobody_acted_has_a_page(result):
    empty = {"served": 0, "failed": 0, "errors": {}, "facts": {}, "p99_ms": {}}
    page = report.page(msgspec.structs.replace(result, felt=empty, seconds={}, spans=[]))
    assert "none" in page


def test_no_line_is_drawn_through_seconds_in_which_nobody_was_answered(result):
    answered = {1: (3, 0, 0.5), 2: (3, 0, 0.2), 3: (0, 3, 0.0), 4: (0, 3, 0.0), 5: (2, 0, 0.1)}
    drawn = report.picture(msgspec.structs.replace(result, seconds=answered))
    line = drawn.partition("<path d='")[2].partition("'")[0]
    assert line.count("M") == 2
    assert line.count("L") == 1

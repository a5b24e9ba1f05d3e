"""The record of a drill goes on when nobody reads what the drill prints."""

import sys

import msgspec

from fourplane.control.drills import DrillRecord, folder_of
from fourplane.verbs.chaos import _Record


class Broken:
    """Standard output whose reader was killed."""

    def __init__(self):
        self.written = 0

    def write(self, _text):
        self.written += 1
        raise BrokenPipeError

    def flush(self):
        raise BrokenPipeError


def test_a_drill_that_killed_its_own_reader_keeps_its_record(tmp_path, monkeypatch):
    broken = Broken()
    monkeypatch.setattr(sys, "stdout", broken)
    record = _Record(tmp_path, "a-drill", "a drill", "commerce", quiet=False)
    record.told("the process dies")
    record.told("it is back")
    record.say("the end")
    record.write("completed", [])
    assert broken.written == 1, "nothing is said to nobody twice"
    kept = msgspec.json.decode((folder_of(tmp_path) / "a-drill.json").read_bytes(), type=DrillRecord)
    assert kept.status == "completed"
    assert [line.text for line in kept.lines] == ["the process dies", "it is back"]

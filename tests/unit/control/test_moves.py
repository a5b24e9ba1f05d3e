import pytest

from fourplane.control.moves import FILE, decide, moved
from fourplane.foundation.errors import Corrupt


def test_a_move_stays_until_the_settings_say_something_new(tmp_path):
    assert moved(tmp_path, {"commerce": 0}, 2) == {"commerce": 0}
    decide(tmp_path, {"commerce": 0}, {"commerce": 1, "messaging": 0})
    assert moved(tmp_path, {"commerce": 0}, 2) == {"commerce": 1, "messaging": 0}
    assert moved(tmp_path, {}, 2) == {}, "the settings were changed since"
    decide(tmp_path, {}, {"commerce": 3, "messaging": 1})
    assert moved(tmp_path, {}, 2) == {"messaging": 1}, "slot 3 is not there any more"
    assert moved(tmp_path, {}, 1) == {}, "one worker has everything"


def test_a_torn_file_is_named_and_half_a_decision_is_none(tmp_path):
    decide(tmp_path, {}, {"commerce": 1})
    (tmp_path / f"{FILE}.new").write_bytes(b'{"slots": {"commerce"')
    assert moved(tmp_path, {}, 2) == {"commerce": 1}
    (tmp_path / FILE).write_bytes(b'{"slots": {"commerce"')
    with pytest.raises(Corrupt) as told:
        moved(tmp_path, {}, 2)
    assert FILE in told.value.message

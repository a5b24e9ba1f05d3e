"""The experiment format: our files are Chaos Toolkit's, and what is wrong with a file is said before anything runs."""

from pathlib import Path

import msgspec
import pytest
from chaoslib.experiment import ensure_experiment_is_valid

from fourplane import simulator
from fourplane.foundation.errors import Rejected
from fourplane.simulator.experiment import parse, tolerates, validate

LIBRARY = sorted((Path(simulator.__file__).parent / "library").glob("*.json"))


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
def test_every_file_of_the_library_is_valid_for_us_and_for_chaos_toolkit(path):
    parsed = parse(path.read_bytes())
    assert path.stem.startswith(parsed.ours.system)
    ensure_experiment_is_valid(msgspec.json.decode(path.read_bytes()))


def broken(**changes):
    raw = msgspec.json.decode(LIBRARY[0].read_bytes())
    return raw | changes


def test_what_is_wrong_is_said():
    action = {"type": "action", "name": "x", "provider": {"type": "python", "module": "os", "func": "system"}}
    unknown = action | {"provider": {"type": "python", "module": "fourplane.simulator.faults", "func": "current"}}
    argument = action | {
        "provider": {
            "type": "python",
            "module": "fourplane.simulator.faults",
            "func": "zone_loss",
            "arguments": {"zones": 1},
        }
    }
    for changes, said in (
        ({"title": ""}, "title is missing"),
        ({"method": [action]}, "provider.module"),
        ({"method": [unknown]}, "there is no 'current'"),
        ({"method": [argument]}, "zone_loss"),
        ({"extensions": []}, "x-fourplane"),
        ({"extensions": [{"name": "x-fourplane", "system": "mail"}]}, "unknown system"),
        ({"extensions": [{"name": "x-fourplane", "system": "commerce", "peple": 1}]}, "peple"),
    ):
        with pytest.raises(Rejected, match=said):
            validate(broken(**changes))
    with pytest.raises(Rejected, match="not JSON"):
        parse(b"{")


def test_tolerances():
    assert tolerates(True, True)
    assert not tolerates(True, 1)
    assert tolerates({"type": "range", "range": [0.9, 1]}, 0.95)
    assert not tolerates({"type": "range", "range": [0.9, 1]}, 0.5)
    assert tolerates(["a", "b"], "b")
    assert tolerates({"type": "regex", "pattern": "^o"}, "ok")
    with pytest.raises(Rejected):
        tolerates({"type": "jsonpath"}, 1)

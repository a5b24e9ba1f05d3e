"""Short experiments over the four systems: every promise is kept, the same seed is the same run."""

from pathlib import Path

import pytest

from fourplane import simulator
from fourplane.simulator import experiment, experiments

LIBRARY = {path.stem: path for path in sorted((Path(simulator.__file__).parent / "library").glob("*.json"))}
DAILY = [name for name in LIBRARY if not name.endswith(("-latency", "-region-loss", "-partition"))]


def run(name, seed):
    return experiments.run(experiment.parse(LIBRARY[name].read_bytes()), seed)


@pytest.mark.parametrize("name", DAILY)
def test_promises_are_kept(name):
    result = run(name, 1)
    assert result.violations == []
    assert result.status == "completed"
    assert result.felt["served"] > 50


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARY)
@pytest.mark.parametrize("seed", range(2, 12))
def test_promises_are_kept_for_more_seeds(name, seed):
    result = run(name, seed)
    assert result.violations == []
    assert result.status == "completed"


def test_one_seed_is_one_run_and_another_is_another():
    first, second = run("messaging-instance-loss", 3), run("messaging-instance-loss", 3)
    assert first.digest == second.digest
    assert first.felt == second.felt
    assert run("messaging-instance-loss", 4).digest != first.digest


def test_the_journal_tells_hypothesis_method_and_rollbacks():
    journal = run("streaming-zone-loss", 1).journal
    assert journal["status"] == "completed"
    assert not journal["deviated"]
    assert [entry["status"] for entry in journal["run"]] == ["succeeded"]
    assert [entry["activity"]["name"] for entry in journal["rollbacks"]] == ["undo-all"]
    assert all(probe["tolerance_met"] for probe in journal["steady_states"]["after"]["probes"])

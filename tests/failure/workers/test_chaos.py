"""A person breaks a running deployment by an experiment file: it heals, nothing is left, and there is a report to send."""

import json

from tests.journeys.console.deployment import deployment, said

DEATH = {
    "title": "the shop's process dies",
    "description": "The shop dies for a second while people buy; afterwards it sells again.",
    "steady-state-hypothesis": {
        "title": "the shop sells",
        "probes": [
            {
                "type": "probe",
                "name": "nearly everything is served",
                "tolerance": {"type": "range", "range": [0.9, 1.0]},
                "provider": {
                    "type": "python",
                    "module": "fourplane.simulator.probes",
                    "func": "availability",
                    "arguments": {"window_s": 2.0},
                },
            }
        ],
    },
    "method": [
        {
            "type": "action",
            "name": "death",
            "provider": {
                "type": "python",
                "module": "fourplane.simulator.faults",
                "func": "instance_loss",
                "arguments": {"duration_s": 1.0},
            },
        }
    ],
    "rollbacks": [],
    "extensions": [{"name": "x-fourplane", "system": "commerce", "people": 5, "duration_s": 2.0, "warm_up_s": 10.0}],
}


def test_a_process_dies_while_people_buy_and_the_shop_sells_again(tmp_path):
    file, report = tmp_path / "death.json", tmp_path / "report.html"
    file.write_text(json.dumps(DEATH))
    with deployment(tmp_path / "data", "commerce"):
        told = said(tmp_path / "data", "chaos", str(file), "--report", str(report), "--json")
        assert told.returncode == 0, told.stderr + told.stdout
        journal = json.loads(told.stdout)
        assert (journal["status"], journal["deviated"]) == ("completed", False)
        assert [entry["status"] for entry in journal["run"]] == ["succeeded"]
        assert "death" in report.read_text()
        left = said(tmp_path / "data", "chaos", "--halt", "--json")
        assert json.loads(left.stdout) == {"ended": 0}
        refused = said(tmp_path / "data", "chaos", "streaming-narrow-link")
        assert (refused.returncode, "only a simulated world" in refused.stderr) == (2, True)

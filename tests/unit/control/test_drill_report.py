"""The report of a drill: everything that happened stands in it, in order, and nothing in it is markup from outside."""

from fourplane.simulator import drill_report
from fourplane.simulator.aftermath import Cost
from fourplane.simulator.experiments import Result
from fourplane.simulator.stage import Span

RUN = {
    "runbook": "kong", "outcome": "recovered", "ended_s": 1_047.0,
    "steps": [
        {"at_s": 1_002.8, "kind": "alert", "name": "RegionDark", "told": "", "ok": True},
        {"at_s": 1_003.0, "kind": "action", "name": "evacuate", "told": "steering avoids us", "ok": True},
        {"at_s": 1_004.0, "kind": "verify", "name": "steered", "told": "0, wanted at least 1", "ok": False},
    ],
}  # fmt: skip
GROUP = {"requests": 10, "errors": 4, "p50_ms": 310.0, "p99_ms": 420.0}
OURS = {
    "began_at_s": 986.0, "first_fault_at_s": 1_000.0, "runs": [RUN],
    "alerts": [{"at_s": 1_002.8, "name": "RegionDark", "state": "firing", "summary": "no <b>node</b> | answers"}],
    "faults": [{"kind": "latency", "told": "percent 30", "experiment": GROUP, "control": GROUP | {"errors": 0}}],
    "budgets": {"before": {"a": (0, 0)}, "after": {"a": (3, 100)}},
}  # fmt: skip
TOLD = {"title": "a region <script>", "description": "d", "extensions": [{"system": "streaming"}]}
FELT = {"served": 100, "failed": 2, "errors": {"http_503": 2}, "facts": {}, "p99_ms": {"play": 20.0}}
JOURNAL = {
    "experiment": TOLD, "x-fourplane": OURS, "steady_states": {"before": None, "after": None}, "duration": 60.0, "node": "here"
}  # fmt: skip
RESULT = Result(
    seed=0, status="completed", deviated=False, violations=[], digest="", virtual_s=60.0, steps=0, messages=102, felt=FELT,
    spans=[Span("region us is dark", 14.0, 54.0)], seconds={0: (10, 0, 0.1), 15: (5, 2, 0.4)}, journal=JOURNAL, ended=[],
)  # fmt: skip
COST = Cost(43.0, 0.02, 2, 0.02, {"sold USD": 12.5}, 0.5, 20_000.0, 5.0, 6.0, 4)


def test_what_happened_stands_in_order_with_seconds_since_the_first_fault():
    assert drill_report.timeline(RESULT) == [
        (0.0, "fault", "region us is dark"),
        (2.8, "alert", "RegionDark: no <b>node</b> | answers"),
        (3.0, "runbook", "kong: evacuate: steering avoids us"),
        (4.0, "runbook", "kong: steered: 0, wanted at least 1 (not)"),
        (40.0, "fault", "over: region us is dark"),
        (47.0, "runbook", "kong: recovered"),
    ]


def test_the_page_and_the_text_say_what_it_cost_and_hold_no_markup_from_outside():
    page, text = drill_report.page(RESULT, COST), drill_report.text(RESULT, COST)
    assert "<script" not in page
    assert "<b>node</b>" not in page
    for said in ("6 s", "sales, USD less than at the pace before", "3 bad of 100 events", "$20,000"):
        assert said in page
        assert said in text
    assert "| latency (percent 30), control | 10 | 0 | 310 ms | 420 ms |" in text
    assert all(line.count("|") in {3, 4, 6} for line in text.splitlines() if line.startswith("|"))

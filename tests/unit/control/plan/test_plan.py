"""Plans: what follows from figures and habits, where phases change, and what is refused."""

import math

import pytest

from fourplane.control.plan import report
from fourplane.control.plan.demand import ASSUMPTIONS, needs
from fourplane.control.plan.doors import doors
from fourplane.control.plan.figures import figures
from fourplane.control.plan.prices import Prices, read_prices, written_prices
from fourplane.control.plan.results import bench_results, measured_scalability
from fourplane.control.plan.scalability import Scalability, fit
from fourplane.control.plan.sizing import availability, plan
from fourplane.control.plan.studies import ROWS
from fourplane.edge.routes import Call
from fourplane.foundation.errors import Misconfigured, Rejected
from fourplane.verbs.plan import counted

SYSTEMS = tuple(ASSUMPTIONS)
NOTHING_MEASURED = figures({})


def made(system, users, **options):
    return plan(system, users, figures=options.pop("figures", NOTHING_MEASURED), prices=Prices(), **options)


@pytest.mark.parametrize("system", SYSTEMS)
def test_more_users_never_cost_less_and_phases_go_up(system):
    plans = [made(system, 10**power) for power in range(2, 10)]
    assert [one.phase for one in plans] == sorted(one.phase for one in plans)
    assert (plans[0].phase, plans[-1].phase) == (1, 4)
    costs = [one.cost for one in plans]
    assert costs == sorted(costs)
    assert all(one.cost == pytest.approx(sum(line.cost for line in one.lines)) for one in plans)


@pytest.mark.parametrize("system", SYSTEMS)
def test_each_row_of_the_study_that_is_a_machine_has_a_line_beside_it(system):
    rows = {line.study_row for line in made(system, 1_000_000).lines}
    assert {row[0] for row in ROWS[system]} - rows <= {"Team", "Cache", "Monitoring"}


def test_twice_as_fast_a_core_needs_half_the_cores():
    slow = made("messaging", 10_000_000)
    measured = {"messaging": {"rows": {"one-to-one, 16 in flight": {"fourplane": {"per_cpu_s": 136_000}}}}}
    fast = made("messaging", 10_000_000, figures=figures(measured))
    [before], [after] = ([line for line in one.lines if line.component.startswith("One")] for one in (slow, fast))
    assert after.cores == pytest.approx(before.cores / 2)
    assert (before.basis, after.basis) == ("assumed", "measured")


def test_phase_1_is_one_machine_and_says_where_it_ends():
    small = made("commerce", 1_000)
    assert (small.phase, small.machines, small.regions, small.zones) == (1, 1, 1, 1)
    border = int(small.next_phase.split("about ")[1].split(" users")[0].replace(",", ""))
    assert made("commerce", border * 2).phase == 2
    assert made("commerce", border // 2).phase == 1


def test_zones_and_regions_that_are_asked_for_are_given():
    assert made("dispatch", 1_000, regions=2).phase == 4
    asked = made("dispatch", 1_000, zones=2)
    assert (asked.phase, asked.regions, asked.zones) == (3, 1, 2)
    assert all(line.machines >= 2 for line in asked.lines if line.machines)


def test_what_survives_more_is_up_more():
    alone = availability(1, 1, 3, alone=True)
    one_zone, three_zones, three_regions = availability(1, 1, 3), availability(1, 3, 3), availability(3, 3, 3)
    assert alone < one_zone < three_zones < three_regions < 1


def test_a_lost_zone_is_carried_by_the_others():
    one, three = made("messaging", 10_000_000, zones=1, regions=1), made("messaging", 10_000_000, zones=3)
    [single], [spread] = (
        [line for line in found.lines if line.component.startswith("Group")] for found in (one, three)
    )
    assert spread.cores == pytest.approx(single.cores * 3 / 2)


def test_habits_change_the_need():
    habits = {one.name: one.value for one in ASSUMPTIONS["messaging"]}
    before = needs("messaging", 1_000, habits, 3_000)
    after = needs("messaging", 1_000, habits | {"messages_a_day": 100}, 3_000)
    assert after[1].peak == pytest.approx(2 * before[1].peak)


@pytest.mark.parametrize(
    "options",
    [
        {"users": 0},
        {"users": 10**12},
        {"regions": 99},
        {"zones": -1},
        {"habits": {"nothing": 1.0}},
        {"habits": {"connected": -1}},
    ],
)
def test_what_makes_no_sense_is_refused(options):
    with pytest.raises(Rejected):
        made("messaging", options.pop("users", 1_000), **options)


@pytest.mark.parametrize(
    "law", [Scalability(1_000, 0.05, 0.001), Scalability(50, 0, 0.01), Scalability(7, 0.2, 0), Scalability(3, 0, 0)]
)
def test_a_fit_finds_the_law_again(law):
    found = fit([(size, law.throughput(size)) for size in (1, 2, 4, 8, 16)])
    assert found.throughput(64) == pytest.approx(law.throughput(64), rel=1e-6)
    assert found.contention == pytest.approx(law.contention, abs=1e-9)


def test_past_the_peak_more_is_less():
    law = Scalability(100, 0.1, 0.01)
    assert law.throughput(law.peak()) > law.throughput(law.peak() * 2)
    assert Scalability(1, 0.1, 0).peak() == math.inf


@pytest.mark.parametrize(
    "points", [[], [(1, 5), (2, 9)], [(1, 5), (1, 6), (1, 7)], [(0, 1), (1, 2), (2, 3)], [(1, 1), (2, 0), (3, 1)]]
)
def test_too_little_for_a_fit_is_refused(points):
    with pytest.raises(Rejected):
        fit(points)


def test_prices_are_written_read_and_refused():
    text = written_prices(Prices())
    assert read_prices(text) == Prices()
    dear = read_prices(text.replace("per_month = 45.0", "per_month = 90.0"))
    assert plan("commerce", 1_000, figures=NOTHING_MEASURED, prices=dear).cost > made("commerce", 1_000).cost
    for bad in ("machines = 4", "nothing = 1", "[[machines]]\nname = 'x'", "not toml"):
        with pytest.raises(Misconfigured):
            read_prices(bad)


def test_results_of_benchmarks_are_found_and_broken_files_are_not_measured(tmp_path):
    (tmp_path / "edge.json").write_text('{"figures": {"figures": {"gateway": {"requests_per_cpu_s": 12345}}}}')
    (tmp_path / "control.json").write_text(
        '{"figures": {"scalability": {"single": 1.0, "contention": 0.5, "coherence": 0.0}}}'
    )
    (tmp_path / "broken.json").write_text("{")
    results = bench_results(tmp_path)
    assert figures(results)["requests"].value == 12_345
    assert measured_scalability(results) == Scalability(1.0, 0.5, 0.0)
    assert bench_results(tmp_path / "none") == {}


@pytest.mark.parametrize(
    ("text", "number"), [("5000", 5_000), ("20k", 20_000), ("1.5M", 1_500_000), ("2B", 2 * 10**9), ("1,000", 1_000)]
)
def test_numbers_as_people_write_them(text, number):
    assert counted(text) == number


def test_the_page_holds_every_line_and_escapes_nothing_dangerous():
    found = made("streaming", 5_000_000)
    page = report.html(found)
    assert all(line.component.replace("'", "&#x27;") in page for line in found.lines)
    assert report.headline(found).replace("'", "&#x27;") in page
    assert "<script" not in page


def test_the_door_answers_and_refuses():
    import asyncio

    [as_json, as_page] = doors(dict)

    def asked(route, **query):
        call = Call(params={}, query=query, headers={}, body=None, identity=None, request_id="", peer="")
        return asyncio.run(route.handler(call))

    answer = asked(as_json, system="dispatch", users="5000000", trips_a_month="4")
    assert answer["plan"].users == 5_000_000
    assert next(one.value for one in answer["plan"].assumptions if one.name == "trips_a_month") == 4
    assert b"<!doctype html>" in asked(as_page, system="dispatch").body
    for query in ({"system": "nothing"}, {"users": "many"}, {"users": "-1"}, {"habit": "3"}):
        with pytest.raises(Rejected):
            asked(as_json, **query)

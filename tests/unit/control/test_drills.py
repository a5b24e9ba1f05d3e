"""What drills are made of: places, orders to workers, changes that lapse, the schedule, and what a drill cost."""

import itertools
from datetime import UTC, datetime

import msgspec
import pytest

from fourplane.control.changes import KEY, Changes
from fourplane.control.chaos_nodes import darkening, region_of_box
from fourplane.control.chaos_schedule import ScheduleSettings, due
from fourplane.control.drills import KINDS, DrillRecord, Drills, folder_of
from fourplane.control.fault_orders import FaultOrders
from fourplane.control.neighbourhood import Neighbourhood
from fourplane.control.nodes import Figures, Node, hollow
from fourplane.control.placement import Placement
from fourplane.control.places import Places
from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, NotFound, Rejected
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry
from fourplane.simulator import experiment, live
from fourplane.simulator import loop as simulated
from fourplane.simulator.aftermath import Moment, cost
from fourplane.state.embedded.blobs import EmbeddedBlobs
from fourplane.verbs.chaos import DRILLS

SYSTEMS = ("streaming", "dispatch", "commerce", "messaging")
HOUR_S = 3_600.0


def orders(tmp_path, workers=3):
    """Orders of a deployment whose systems take turns over the workers; nothing is sent."""
    near = Neighbourhood(Placement(SYSTEMS, workers), 0, tmp_path, {})
    return FaultOrders(None, near, Places(workers, regions=("us", "eu", "asia")), SYSTEMS, tmp_path)


@pytest.mark.parametrize(
    ("kind", "system", "arguments", "meant"),
    [
        ("latency", "dispatch", {}, {1: []}),
        ("latency", "dispatch", {"zone": "us-a"}, {1: []}),
        ("zone_loss", "commerce", {"zone": "asia-a"}, {2: []}),
        ("region_loss", "streaming", {"region": "us"}, {0: [], 1: [], 2: []}),
        ("service_partition", "streaming", {}, {0: [1, 2], 1: [0], 2: [0]}),
        ("service_partition", "streaming", {"to": "commerce"}, {0: [2], 2: [0]}),
        ("service_partition", "streaming", {"to": "commerce", "one_way": True}, {0: [2]}),
        ("service_partition", "commerce", {"region": "us"}, {1: [0, 2], 0: [1], 2: [1]}),
    ],
)
def test_an_order_goes_to_the_workers_it_is_for(tmp_path, kind, system, arguments, meant):
    assert orders(tmp_path)._meant(kind, system, arguments) == meant


@pytest.mark.parametrize(
    ("kind", "system", "arguments", "code"),
    [
        ("zone_loss", "commerce", {"zone": "mars-a"}, "no_place"),
        ("region_loss", "commerce", {"region": "mars"}, "no_place"),
        ("latency", "dispatch", {"zone": "eu-a"}, "no_place"),
        ("service_partition", "messaging", {"to": "streaming"}, "one_process"),
        ("service_partition", "messaging", {"to": "nobody"}, "no_service"),
    ],
)
def test_an_order_for_nobody_is_refused(tmp_path, kind, system, arguments, code):
    with pytest.raises(Rejected) as refused:
        orders(tmp_path)._meant(kind, system, arguments)
    assert refused.value.reason == code


def changed(tmp_path, main):
    """Run `main(changes, told)` with a started part in virtual time."""

    async def whole(_world):
        told = []

        async def tell(values):
            told.append(dict(values))

        blobs = await EmbeddedBlobs(tmp_path).open()
        changes = Changes(blobs, registry=Registry(), tell=tell, usual={})
        lifecycle = Lifecycle(Registry())
        lifecycle.add("changes", changes)
        await lifecycle.start()
        try:
            return await main(changes, told, blobs)
        finally:
            await lifecycle.stop()

    return simulated.run(whole, 1).result


SLOW = "rehearsal.commerce.delay_s"


def test_the_last_change_is_taken_back_once_and_everything_is_written_down(tmp_path):
    async def main(changes, told, blobs):
        await changes.apply("http.in_flight_max", 100, who="robin")
        await changes.apply(SLOW, 0.5, who="robin", note="release 7")
        back = await changes.rollback(who="runbook")
        assert (back.name, back.value, back.takes_back) == (SLOW, 0, 2)
        with pytest.raises(Conflict):
            await changes.rollback(2, who="robin")
        await changes.rollback(who="robin")
        with pytest.raises(NotFound):
            await changes.rollback(who="robin")
        with pytest.raises(Rejected):
            await changes.apply("data", 1, who="robin")
        with pytest.raises(Rejected):
            await changes.apply(SLOW, 99, who="robin")
        return told[-1], await blobs.get(KEY)

    values, kept = changed(tmp_path, main)
    assert (values["http.in_flight_max"], values[SLOW]) == (2_000, 0)
    assert kept.count(b"version") >= 4


def test_a_change_that_an_experiment_made_lapses_also_after_a_restart(tmp_path):
    async def first(changes, _told, _blobs):
        await changes.apply(SLOW, 0.5, who="experiment", lapse_after_s=30.0)
        await clock.sleep(10.0)
        return changes.values()[SLOW]

    async def second(changes, _told, _blobs):
        before = changes.values()[SLOW]
        await clock.sleep(60.0)
        return before, changes.values()[SLOW]

    assert changed(tmp_path, first) == 0.5
    assert changed(tmp_path, second) == (0.5, 0)


def test_changes_that_lapse_in_any_order_leave_what_somebody_chose(tmp_path):
    async def main(changes, _told, _blobs):
        for seconds in (5.0, 50.0, 20.0):
            await changes.apply(SLOW, seconds / 10, who="experiment", lapse_after_s=seconds)
        await changes.apply("http.in_flight_max", 9, who="experiment", lapse_after_s=5.0)
        await changes.apply("http.in_flight_max", 100, who="robin")
        seen = []
        for _ in range(4):
            await clock.sleep(15.0)
            seen.append(changes.values()[SLOW])
        return seen, changes.values()["http.in_flight_max"]

    assert changed(tmp_path, main) == ([2.0, 5.0, 5.0, 0], 100)


def at(day, hour):
    return datetime(2026, 11, day, hour, tzinfo=UTC).timestamp()


def test_the_schedule_breaks_things_only_while_people_work_and_not_too_often():
    chosen = ScheduleSettings(enabled=True, opt_out=("messaging",))
    always = dict.fromkeys(SYSTEMS, 0.0)

    def asked(now_s, last_s=None, settings=chosen, draw=always):
        return due(settings, SYSTEMS, last_s or {}, now_s, looked_s=60.0, draw=draw)

    monday, sunday = 23, 22
    assert asked(at(monday, 10)) == ["streaming", "dispatch", "commerce"]
    assert asked(at(monday, 8)) == asked(at(monday, 15)) == asked(at(sunday, 10)) == []
    assert asked(at(monday, 10), {"dispatch": at(monday, 10) - HOUR_S}) == ["streaming", "commerce"]
    assert asked(at(monday, 10), settings=ScheduleSettings()) == []
    odds = 60.0 / (chosen.mean_days * 6 * HOUR_S)
    assert asked(at(monday, 10), draw=dict.fromkeys(SYSTEMS, odds * 1.01)) == []
    assert ScheduleSettings().leashed


class Programs:
    """Drills as processes: each takes two minutes and writes its record as the runner does."""

    def __init__(self, data):
        self.data, self.begun, self.running = data, [], 0

    async def __call__(self, argv, *, on_line=None, env=None):
        *_, name, _, drill = argv
        self.begun.append((clock.now_us() / 1e6, name))
        system = name.partition("-")[0]
        record = DrillRecord(drill, name, system, "completed", clock.now_us() / 1e6, clock.now_us() / 1e6)
        folder_of(self.data).mkdir(parents=True, exist_ok=True)
        (folder_of(self.data) / f"{drill}.json").write_bytes(msgspec.json.encode(record))
        return self

    async def wait(self):
        self.running += 1
        assert self.running == 1
        await clock.sleep(120.0)
        self.running -= 1
        return 0

    async def stop(self):
        return 0

    def terminate(self):
        pass


def scheduled(tmp_path, days, **changed):
    """Days of a deployment with a schedule, in virtual time: drills that were begun, events."""

    async def main(_world):
        programs, registry = Programs(tmp_path), Registry()

        async def order(_):
            return {"ended": 0}

        schedule = ScheduleSettings(**{"enabled": True, "mean_days": 1.0, "min_days": 0.5} | changed)
        drills = Drills(
            data=tmp_path, systems=SYSTEMS, order=order, registry=registry, schedule=schedule, runner=programs
        )
        lifecycle = Lifecycle(Registry())
        lifecycle.add("drills", drills)
        await lifecycle.start()
        await clock.sleep(days * 24 * HOUR_S)
        await lifecycle.stop()
        return programs.begun, [event.text for event in registry.events]

    return simulated.run(main, 5, virtual_s_max=days * 24 * HOUR_S + 60.0).result


def test_a_week_of_the_schedule_has_drills_in_working_hours_and_none_on_a_leash(tmp_path):
    begun, _ = scheduled(tmp_path, 7, leashed=False, opt_out=("messaging",))
    moments = [datetime.fromtimestamp(at_s, UTC) for at_s, _ in begun]
    assert len(begun) >= 3
    assert {name for _, name in begun} <= {"streaming-kill", "dispatch-kill", "commerce-kill"}
    assert all(one.weekday() < 5 and 9 <= one.hour < 15 for one in moments)
    last = {}
    for at_s, name in begun:
        assert at_s - last.get(name, 0.0) >= 12 * HOUR_S
        last[name] = at_s
    leashed, events = scheduled(tmp_path / "leashed", 2)
    assert leashed == []
    assert any("is due; leashed, so not done" in text for text in events)


def test_drills_that_are_due_at_the_same_moment_are_done_one_after_the_other(tmp_path):
    always = {"weekdays": tuple(range(7)), "from_hour": 0, "to_hour": 24, "mean_days": 0.0005, "min_days": 0.0005}
    begun, events = scheduled(tmp_path, 0.01, leashed=False, **always)
    assert len(begun) >= 4
    assert all(after - before >= 120.0 for (before, _), (after, _) in itertools.pairwise(begun))
    assert any("the schedule's drill waits: a drill is under way" in text for text in events)


def test_a_restart_does_not_make_a_drill_due_again(tmp_path):
    async def start(_world):
        return clock.now_us() / 1e6

    began_s = simulated.run(start, 5).result
    record = DrillRecord("x", "x", "commerce", "completed", began_s - 60.0, began_s)
    folder_of(tmp_path).mkdir(parents=True)
    (folder_of(tmp_path) / "0000000000000-x.json").write_bytes(msgspec.json.encode(record))
    often = {"weekdays": tuple(range(7)), "from_hour": 0, "to_hour": 24, "mean_days": 0.05, "min_days": 0.05}
    begun, _ = scheduled(tmp_path, 0.5, leashed=False, opt_out=("streaming", "dispatch", "messaging"), **often)
    assert begun[0][0] - began_s >= 0.05 * 24 * HOUR_S - 60.0


def test_what_a_drill_cost_is_what_was_missing_at_the_pace_before():
    def moment(second):
        """Two orders a second of ten each; for ten seconds half of everything fails."""
        good = min(second, 10) + max(0, min(second, 20) - 10) * 0.5 + max(0, second - 20)
        bad = max(0, min(second, 20) - 10)
        return Moment(second, int(10 * good), 5 * bad, {"orders": 2 * good, "sold USD": 20 * good})

    found = cost("commerce", [moment(second) for second in range(41)], 10.0, 20.0)
    assert found.minutes_down == pytest.approx(5 / 60, rel=0.01)
    assert (found.errors, found.last_failure_s) == (50, 10.0)
    assert found.lost == {"orders": pytest.approx(10.0), "sold USD": pytest.approx(100.0)}
    assert found.study_money == pytest.approx(83_333, rel=0.01)


@pytest.mark.parametrize(("leaves", "moved_s"), [(18, 7.0), (45, 34.0), (60, None)])
def test_players_have_moved_when_nobody_is_left_at_a_dark_node(leaves, moved_s):
    moments = [
        Moment(second, 10 * second, 0, {"at EDGE1": 3.0 if second < leaves else 0.0, "at EDGE2": 5.0})
        for second in range(60)
    ]
    assert cost("streaming", moments, 10.0, 50.0, dark=["EDGE1"]).moved_s == moved_s


def test_every_drill_of_the_console_is_a_file_that_a_running_deployment_can_take():
    wanted = {f"{system}-{kind}" for system in SYSTEMS for kind in KINDS}
    files = {file.stem: file for file in DRILLS.glob("*.json")}
    assert set(files) == wanted
    for file in files.values():
        live.check_possible(experiment.parse(file.read_bytes()))


def test_a_box_in_a_dark_region_says_so_and_the_others_do_not():
    nodes = [Node("EDGE1", "edge", "a cache", "x.py", lambda: Figures(facts={"hits": 1})), hollow("EDGE2", "edge", "")]
    dark = {"EDGE1": "us"}
    boxes = {"EDGE1": "us", "CDN_US": "us", "REGION_EU": "eu", "API_GW": "", "ISP3": ""}
    assert {name: region_of_box(name, {"EDGE1": "us", "EDGE2": "eu"}) for name in boxes} == boxes
    edge, other = (darkening(node, lambda name: dark.get(name, "")) for node in nodes)
    assert (edge.figures().facts, other.built) == ({"dark": "us", "hits": 1}, False)
    dark.clear()
    assert edge.figures().facts == {"hits": 1}

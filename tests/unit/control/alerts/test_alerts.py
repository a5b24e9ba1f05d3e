"""Alerts as pure cores: what begins and ends, what is silenced, what is told when, and in which form."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourplane.control.alerts import payloads, silences
from fourplane.control.alerts.book import ACTIVE_MAX, AlertBook, Condition
from fourplane.control.alerts.grouping import Grouping, GroupingSettings
from fourplane.control.alerts.model import Alert
from fourplane.control.alerts.silences import Silence, Silences, covers, parse
from fourplane.control.alerts.workers import Heartbeat, WorkerWatch
from fourplane.foundation.errors import NotFound, Overloaded, Rejected


def holds(name="Broken", service="commerce", summary="it is", **more):
    return Condition(name, service, "page", summary, **more)


def alert(name="Broken", service="commerce", severity="page", state="firing", **labels):
    return Alert(name, service, severity, labels, 1_000.0, f"{service} is broken", state)


def told(changes):
    return [(one.name, one.state) for one in changes]


def test_an_alert_begins_when_it_has_held_and_ends_when_it_has_not_for_a_while():
    book, condition = AlertBook(), holds(for_s=3.0, keep_s=5.0)
    assert told(book.update(100.0, [condition])) == []
    assert told(book.update(103.0, [condition])) == [("Broken", "firing")]
    assert told(book.update(106.0, [])) == []
    assert told(book.update(107.0, [condition])) == [], "back within the while: the same alert"
    assert told(book.update(112.0, [])) == [("Broken", "resolved")]
    assert book.active() == []
    assert book.history[-1].ended_s == 112.0


def test_what_did_not_hold_long_enough_was_never_an_alert():
    book = AlertBook()
    book.update(100.0, [holds(for_s=3.0)])
    book.update(101.0, [])
    assert told(book.update(104.0, [holds(for_s=3.0)])) == []


def test_the_same_labels_are_the_same_alert_whatever_the_summary():
    book = AlertBook()
    book.update(1.0, [holds(summary="1 error", labels={"zone": "a"})])
    assert told(book.update(2.0, [holds(summary="2 errors", labels={"zone": "a"})])) == []
    assert book.active()[0].alert.summary == "2 errors"
    assert told(book.update(3.0, [holds(labels={"zone": "b"}), holds(labels={"zone": "a"})])) == [("Broken", "firing")]


def test_a_book_is_bounded_and_goes_on_after_a_restart():
    book = AlertBook()
    book.update(1.0, [holds(labels={"n": str(number)}) for number in range(ACTIVE_MAX + 7)])
    assert (len(book.active()), book.dropped_total) == (ACTIVE_MAX, 7)
    book.check()
    again = AlertBook()
    again.restore(book.state(), 50.0)
    assert again.update(51.0, [holds(labels={"n": "1"})]) == []
    assert len(again.update(60.0, [holds(labels={"n": "1"})])) == ACTIVE_MAX - 1, "the others ended"


def test_acknowledging_names_who():
    book = AlertBook()
    (begun,) = book.update(1.0, [holds()])
    assert book.acknowledge(begun.fingerprint, "kim") == begun
    assert book.acknowledge("0" * 16, "kim") is None
    book.update(9.0, [])
    assert book.history[-1].acknowledged_by == "kim"


@pytest.mark.parametrize(
    ("written", "matches"),
    [('service="commerce"', True), ("service=messaging", False), ('alertname=~"Bro.*"', True), ("severity!=page", False),
     ('zone!~"a|b"', True), ('zone=""', True)],
)  # fmt: skip
def test_matchers_are_written_as_alertmanagers_users_write_them(written, matches):
    silence = Silence("s", parse([written]), 0.0, 100.0, "kim")
    assert covers(silence, alert().matched()) is matches


@pytest.mark.parametrize("bad", ["service", 'a=~"("', "=x", 'a="' + "x" * 2_000 + '"'])
def test_what_is_no_matcher_is_refused(bad):
    with pytest.raises(Rejected):
        parse([bad])


def test_silences_end_and_one_that_hides_everything_is_refused():
    all_ = Silences()
    all_.add(Silence("one", parse(["service=commerce"]), 0.0, 100.0, "kim"))
    assert all_.of(alert(), 50.0).id == "one"
    assert all_.of(alert(service="messaging"), 50.0) is None
    assert all_.of(alert(), 100.0) is None
    assert all_.expire("one", 60.0).ends_s == 60.0
    assert all_.of(alert(), 61.0) is None
    with pytest.raises(NotFound):
        all_.expire("one", 62.0)
    for matchers in ([], ['service=~".*"'], ["service!=nothing"]):
        with pytest.raises(Rejected):
            all_.add(Silence("all", parse(matchers), 0.0, 100.0, "kim"))
    with pytest.raises(Rejected):
        all_.add(Silence("long", parse(["a=b"]), 0.0, 40 * 86_400.0, "kim"))
    for number in range(silences.SILENCES_MAX - 1):
        all_.add(Silence(str(number), parse(["a=b"]), 0.0, 100.0, "kim"))
    with pytest.raises(Overloaded):
        all_.add(Silence("more", parse(["a=b"]), 0.0, 100.0, "kim"))
    all_.sweep(200.0 + silences.ENDED_KEPT_S)
    assert all_.known() == []


def test_a_group_waits_is_told_and_is_told_its_end():
    grouping = Grouping(GroupingSettings(group_wait_s=2.0, group_interval_s=10.0, repeat_interval_s=100.0))
    one, two = alert(worker="1"), alert(worker="2")
    assert grouping.flush(0.0, [one]) == []
    (first,) = grouping.flush(2.0, [one, two])
    assert first.firing == [one, two], "what breaks together is told together"
    assert first.labels == {"alertname": "Broken", "service": "commerce"}
    assert grouping.flush(5.0, [one]) == [], "not before the interval"
    (second,) = grouping.flush(12.0, [one])
    assert [len(second.firing), [each.state for each in second.resolved]] == [1, ["resolved"]]
    (again,) = grouping.flush(112.0, [one])
    assert (again.firing, again.resolved) == ([one], [])
    (end,) = grouping.flush(113.0, [])
    assert (end.firing, len(end.resolved)) == ([], 1)
    assert grouping.flush(500.0, []) == []


def test_silenced_before_it_was_told_stays_untold_and_silenced_after_ends_untold_till_it_does():
    grouping = Grouping(GroupingSettings(group_wait_s=0.0, group_interval_s=0.0))
    one = alert()
    assert grouping.flush(0.0, [], [one.fingerprint]) == []
    assert len(grouping.flush(1.0, [one])) == 1
    assert grouping.flush(2.0, [], [one.fingerprint]) == [], "silenced: not over"
    (end,) = grouping.flush(3.0, [])
    assert len(end.resolved) == 1


def test_groups_go_on_after_a_restart():
    before, after = (Grouping(GroupingSettings(group_wait_s=0.0)) for _ in range(2))
    before.flush(0.0, [alert()])
    after.restore(before.told(), 5.0)
    assert after.flush(6.0, [alert()]) == [], "nobody is paged twice"
    assert len(after.flush(7.0, [])[0].resolved) == 1


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sets(st.sampled_from("abc")), st.sets(st.sampled_from("abc"))), max_size=25))
def test_told_firings_and_told_ends_alternate(rounds):
    grouping = Grouping(GroupingSettings(group_wait_s=1.0, group_interval_s=2.0, repeat_interval_s=6.0))
    known: dict[str, bool] = {}
    for second, (firing, held) in enumerate(rounds):
        back = [alert(n=name).fingerprint for name in held - firing]
        for notification in grouping.flush(float(second), [alert(n=name) for name in sorted(firing)], back):
            for one in notification.resolved:
                assert known.pop(one.fingerprint), "an end is told of what was told"
            for one in notification.firing:
                known[one.fingerprint] = True


def test_the_webhook_is_alertmanagers():
    (notification,) = Grouping(GroupingSettings(group_wait_s=0.0)).flush(0.0, [alert(zone="a"), alert(zone="b")])
    body = json.loads(payloads.webhook(notification, receiver="ops", external_url="http://x", now_s=2_000.0))
    assert {key: body[key] for key in ("version", "status", "receiver", "truncatedAlerts", "externalURL")} == {
        "version": "4", "status": "firing", "receiver": "ops", "truncatedAlerts": 0, "externalURL": "http://x",
    }  # fmt: skip
    assert body["groupKey"] == '{}:{alertname="Broken", service="commerce"}'
    assert body["commonLabels"] == {"alertname": "Broken", "service": "commerce", "severity": "page"}
    first = body["alerts"][0]
    assert (first["startsAt"], first["endsAt"]) == ("1970-01-01T00:16:40.000Z", payloads.NEVER)
    assert first["generatorURL"].startswith("http://x/control/alerts#")
    assert len(first["fingerprint"]) == 16
    assert first["annotations"] == {"summary": "commerce is broken"}


def test_pagerduty_hears_trigger_acknowledge_and_resolve_of_the_same_incident():
    grouping = Grouping(GroupingSettings(group_wait_s=0.0))
    (begin,) = grouping.flush(0.0, [alert(worker="1")])
    (end,) = grouping.flush(60.0, [])
    (trigger,) = map(json.loads, payloads.pager_events(begin, routing_key="k", source="f", external_url="http://x"))
    (resolve,) = map(json.loads, payloads.pager_events(end, routing_key="k", source="f", external_url=""))
    acknowledge = json.loads(payloads.pager_acknowledgement(alert(worker="1"), routing_key="k"))
    assert [one["event_action"] for one in (trigger, acknowledge, resolve)] == ["trigger", "acknowledge", "resolve"]
    assert len({one["dedup_key"] for one in (trigger, acknowledge, resolve)}) == 1
    payload = trigger["payload"]
    assert (payload["severity"], payload["component"], payload["class"]) == ("critical", "commerce", "Broken")
    assert payload["summary"] == "commerce: commerce is broken"


def test_a_worker_that_died_is_noticed_missing_and_noticed_back():
    watch = WorkerWatch({"1": "commerce"})
    watch.seen(0.0, {"0": 10.0, "1": 10.0})
    watch.seen(1.0, {"0": 11.0})
    assert list(watch.conditions(1.0)) == [], "one look may be late"
    watch.seen(2.0, {"0": 12.0})
    (down,) = watch.conditions(2.0)
    assert (down.labels, down.summary) == ({"worker": "1"}, "worker 1 (commerce) does not answer")
    watch.seen(3.0, {"0": 13.0, "1": 0.4})
    assert [one.summary for one in watch.conditions(4.0)] == ["worker 1 (commerce) died and is back"]
    assert list(watch.conditions(40.0)) == []
    assert watch.deaths == 1


def test_a_restart_within_a_second_is_noticed():
    watch = WorkerWatch()
    watch.seen(0.0, {"0": 10.0})
    watch.seen(1.0, {"0": 0.3})
    assert len(list(watch.conditions(1.0))) == 1


def test_a_file_stays_behind_when_the_process_is_killed(tmp_path):
    heartbeat = Heartbeat(tmp_path / "control" / "alive")
    assert heartbeat.away_s(100.0) is None
    heartbeat.beat(100.0)
    assert heartbeat.away_s(104.5) == 4.5
    assert heartbeat.away_s(100.0 + 86_400) is None, "somebody had it switched off"
    heartbeat.rest()
    assert heartbeat.away_s(105.0) is None

"""Spans: recorded inside a trace only, nested, and kept when the request is over and was worth it."""

import itertools

import pytest

from fourplane.foundation import clock, tracing
from fourplane.foundation.tracing import Tracer, span

CALLER = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7"


@pytest.fixture(autouse=True)
def outside_of_traces():
    tracing.set_trace("")
    yield
    tracing.set_trace("")


def ended(tracer, root, *, took_s=0.01, failed=False):
    tracer.end(root, "GET /a", 5.0, 5.0 + took_s, failed=failed)


def test_a_step_outside_of_a_trace_leaves_nothing():
    tracer = Tracer()
    with span(tracer, "untraced"):
        pass
    assert not tracer.parts


def test_steps_know_their_caller_and_whether_they_failed():
    tracer = Tracer()
    root = tracer.begin(None, "00000000000000aa")
    with span(tracer, "outer"), pytest.raises(KeyError), span(tracer, "inner"):
        raise KeyError("x")
    assert tracing.current_trace() == root.text
    ended(tracer, root)
    inner, outer, whole = tracer.parts
    assert [one[1] for one in (inner, outer, whole)] == ["inner", "outer", "GET /a"]
    assert inner[0].caller == outer[0].number
    assert whole[0] is root
    assert outer[0].caller == root.number
    assert (inner[4], outer[4]) == (True, False)
    assert tracing.current_trace() == ""


def test_what_nobody_wants_leaves_nothing_and_its_late_steps_cost_nothing():
    tracer = Tracer()
    root = tracer.begin(None, "00000000000000aa", ours=True)
    tracing.add_step(root.steps, "records.cart get", 5.0, failed=False)
    ended(tracer, root)
    assert (len(tracer.parts), root.steps, tracer.take()) == (0, None, [])
    assert tracing.current_trace() == ""
    with span(tracer, "late"):
        pass
    assert not tracer.parts


def test_what_went_elsewhere_waits_for_what_others_decide():
    tracer = Tracer()
    root = tracer.begin(None, "00000000000000aa", ours=True)
    tracing.add_step(root.steps, "records.cart get", 5.0, failed=True)
    assert tracing.current_trace() == root.text
    ended(tracer, root)
    assert [part[0].steps for part in tracer.parts] == [[("records.cart get", 5.0, root.steps[0][2], True)]]
    assert tracer.take() == []


def test_a_request_id_is_the_end_of_its_trace():
    for ours in (True, False):
        assert Tracer().begin(None, "00000000deadbeef", ours=ours).text.startswith("0" * 24 + "deadbeef-")
    assert tracing.trace_id_of("my own id") == tracing.trace_id_of("my own id") != tracing.trace_id_of("another")


def test_a_callers_trace_goes_on():
    root = Tracer().begin(f"00-{CALLER}-01", "1")
    assert f"{root.caller:016x}" == CALLER[33:]
    assert root.text.startswith(CALLER[:33])
    assert root.traceresponse.startswith(f"00-{CALLER[:32]}-")


@pytest.mark.parametrize(
    "header", ["", "00-zz-00", f"00-{'0' * 32}-00f067aa0ba902b7-01", f"00-{CALLER[:32]}-{'0' * 16}-01"]
)
def test_a_malformed_traceparent_begins_a_new_trace(header):
    assert Tracer().begin(header, "00000000000000bb").text.startswith("0" * 30 + "bb-")


def test_what_is_kept_failed_was_slow_was_asked_for_or_drew_the_lot():
    tracer = Tracer(one_in=4)
    tracer.slow_s = 1.0
    ended(tracer, tracer.begin(None, "1"), failed=True)
    ended(tracer, tracer.begin(None, "2"), took_s=2.0)
    ended(tracer, tracer.begin(f"00-{CALLER}-01", "3"))
    for digit in range(16):  # the first digit draws, one in four
        ended(tracer, tracer.begin(None, f"{digit:x}" + "8" * 15, ours=digit % 2 == 0))
    assert [trace[16] for trace, reason in tracer.kept if reason == "lot"] == list("cdef")
    assert [reason for _, reason in tracer.take()] == ["error", "slow", "asked", *["lot"] * 4]
    assert tracer.take() == []


def test_slow_follows_the_traffic():
    tracer = Tracer(one_in=10**9)
    for number in range(10):
        ended(tracer, tracer.begin(None, str(number)), took_s=1.0)
    before = tracer.slow_s
    tracer.take()
    assert tracer.slow_s > before
    for _ in range(200):
        tracer.take()
    assert tracer.slow_s == tracing.SLOW_S_MIN


def test_nothing_is_traced_while_tracing_is_off():
    tracer = Tracer(enabled=False)
    assert tracer.begin(f"00-{CALLER}-01", "1") is None
    assert tracing.current_trace() == ""


def test_what_is_recorded_is_bounded():
    tracer = Tracer()
    for _ in range(100):
        root = tracer.begin(f"00-{CALLER}-00", "1")
        for _ in range(tracing.STEPS_MAX + 10):
            tracing.add_step(root.steps, "s", clock.monotonic_s(), failed=False)
        assert len(root.steps) == tracing.STEPS_MAX
        ended(tracer, root)
    assert tracer.waiting == sum(1 + len(part[0].steps) for part in tracer.parts)
    assert tracing.RING - tracing.STEPS_MAX <= tracer.waiting <= tracing.RING


def test_the_parts_of_a_trace_leave_room_for_the_ids_of_their_steps():
    tracer = Tracer()
    root = tracer.begin(None, "f00000000000cafe", ours=True)
    parts = sorted([root.span, tracer.within(root).span, tracer.within(root).span])
    assert all(after - before > tracing.STEPS_MAX for before, after in itertools.pairwise(parts))
    assert f"{root.span + tracing.STEPS_MAX:x}" == "f00000000000caff"
    assert root.text == f"{0:016x}f00000000000cafe-{root.span:016x}"


def test_a_context_travels_as_a_text():
    tracing.set_trace(CALLER)
    assert tracing.current_trace() == CALLER
    tracing.set_trace("")
    assert tracing.current_trace() == ""

"""Overload: the admission on a loop whose time is counted by hand: ten times too much, foreign work, slow dependencies."""

import heapq
import random
from collections import deque
from itertools import count

import pytest

from fourplane.edge import admission as lines
from fourplane.edge.admission import Admission, AdmissionSettings
from fourplane.edge.http_request import PLAIN_GET, plain_whole
from fourplane.edge.overload import OverloadSettings, Pace
from fourplane.edge.routes import Priority
from fourplane.foundation import clock

REJECTION_S = 10e-6
COST_S = (0.002, 0.0004, 0.002, 0.004)  # by class
AT_CAPACITY = (30.0, 600.0, 100.0, 50.0)  # requests a second that together are about all this loop can do


class Timer:
    def __init__(self, callback):
        self.callback = callback

    def cancel(self):
        self.callback = None


class Machine:
    """A loop, its clock, its requests. What runs costs CPU time; what waits costs none. `foreign_s` is done each turn."""

    def __init__(self, *, cost_s=COST_S, wait_s=0.0, foreign_s=0.0):
        self.now_s = self.used_s = 0.0
        self.cost_s, self.wait_s, self.foreign_s = cost_s, wait_s, foreign_s
        self.ready, self.timers, self.arrivals, self.order = deque(), [], [], count()
        self.random = random.Random(5)
        self.took = [[] for _ in Priority]
        self.shed = [0] * 4
        self.admission = Admission(AdmissionSettings(), lambda _method, path: Priority(int(path[1:2])))
        self.admission.begin, self.admission.refuse = self.begin, self.refused

    # what the admission sees of the machine

    def cpu_s(self):
        return self.used_s

    def monotonic_s(self):
        return self.now_s

    def call_soon(self, callback, *arguments):
        self.ready.append((callback, arguments))

    def call_later(self, delay_s, callback):
        timer = Timer(callback)
        heapq.heappush(self.timers, (self.now_s + delay_s, next(self.order), timer))
        return timer

    # what the machine does

    def work(self, seconds):
        self.now_s += seconds
        self.used_s += seconds

    def arrive(self, priority, at_s):
        made = self.admission
        self.work(REJECTION_S)
        if made.in_flight >= made.shed_at and not made.admits(priority):
            self.shed[priority] += 1
            return
        made.entered()
        if not made.lines_up(b"GET", b"/%d" % priority, (priority, at_s), None):
            self.begin((priority, at_s), None)

    def begin(self, exchange, _scope):
        self.call_soon(self.step, exchange)

    def step(self, exchange):
        self.work(self.cost_s[exchange[0]])
        if self.wait_s:
            self.call_later(self.wait_s, lambda: self.end(exchange))
        else:
            self.end(exchange)

    def end(self, exchange):
        self.took[exchange[0]].append(self.now_s - exchange[1])
        self.admission.left()

    def refused(self, exchange):
        self.shed[exchange[0]] += 1
        self.admission.left()

    def run(self, rates, seconds):
        """An open loop of arrivals; the figures are those of this run alone."""
        self.shed, self.took = [0] * 4, [[] for _ in Priority]
        self.rates = rates
        began_s, ends_s = self.now_s, self.now_s + seconds
        due = [(began_s + self.random.expovariate(rate), priority) for priority, rate in enumerate(rates) if rate]
        heapq.heapify(due)
        with clock.installed(self):
            self.admission.watch(self)
            while self.now_s < ends_s:
                if not self.ready:
                    soonest = min(due[0][0] if due else ends_s, self.timers[0][0] if self.timers else ends_s)
                    self.now_s = max(self.now_s, min(soonest, ends_s))
                read_until_s = self.now_s
                while due and due[0][0] <= read_until_s:
                    at_s, priority = due[0]
                    heapq.heapreplace(due, (at_s + self.random.expovariate(rates[priority]), priority))
                    self.arrive(Priority(priority), at_s)
                self.turn()

    def turn(self):
        while self.timers and self.timers[0][0] <= self.now_s:
            timer = heapq.heappop(self.timers)[2]
            if timer.callback is not None:
                timer.callback()
        for _ in range(len(self.ready)):
            callback, arguments = self.ready.popleft()
            callback(*arguments)
        if self.foreign_s:
            self.work(self.foreign_s)

    def late(self, priority, share=0.99):
        took = sorted(self.took[priority])
        return took[min(len(took) - 1, int(share * len(took)))]

    def busy(self, seconds):
        """The share of the time that answered requests took."""
        return sum(len(took) * cost for took, cost in zip(self.took, self.cost_s, strict=True)) / seconds


def times(factor, orders=None):
    rates = [rate * factor for rate in AT_CAPACITY]
    if orders is not None:
        rates[0] = orders / COST_S[0]
    return tuple(rates)


def test_ten_times_the_capacity_leaves_the_highest_class_whole_and_the_machine_busy():
    machine = Machine()
    machine.run(times(0.5), 2.0)
    assert machine.shed == [0, 0, 0, 0]
    calm_s = machine.late(Priority.CRITICAL)
    machine.run(times(10, orders=0.6), 5.0)
    assert machine.shed[Priority.CRITICAL] == 0
    assert machine.late(Priority.CRITICAL) < 0.03 + 2 * calm_s
    assert machine.busy(5.0) > 0.9
    assert machine.late(Priority.USER) < 0.6
    assert sum(machine.took[Priority.BULK], 0.0) < 0.05 * 5.0


def test_the_highest_class_alone_past_the_capacity_is_bounded_too():
    machine = Machine()
    machine.run((1_500.0, 0.0, 0.0, 0.0), 6.0)
    assert machine.busy(6.0) > 0.9
    assert machine.late(Priority.CRITICAL) < 0.8


def test_after_the_spike_everybody_comes_in_again_within_half_a_second():
    machine = Machine()
    machine.run(times(10, orders=0.6), 3.0)
    machine.run(times(0.4), 0.5)
    machine.run(times(0.4), 3.0)
    assert machine.shed == [0, 0, 0, 0]
    assert machine.admission.statistics().waiting == 0


@pytest.mark.parametrize("stall_s", [0.1, 0.25])
def test_a_short_stall_of_a_machine_with_time_to_spare_turns_nobody_away(stall_s):
    machine = Machine()
    for _ in range(20):
        machine.call_later(0.5, lambda: machine.work(stall_s))  # a full collection, a disk that hangs
        machine.run(times(0.4), 1.5)
        assert machine.shed == [0, 0, 0, 0]


@pytest.mark.parametrize("foreign_s", [0.002, 0.005, 0.01])
def test_foreign_work_of_the_loop_sheds_nobody_who_waits_little(foreign_s):
    machine = Machine(foreign_s=foreign_s)
    machine.run((20.0, 400.0, 10.0, 0.0), 5.0)  # 22 % of the loop, which is never idle
    assert machine.shed[: Priority.DEGRADED] == [0, 0]
    assert machine.late(Priority.CRITICAL) < 4 * foreign_s + 0.02
    assert machine.late(Priority.USER) < 8 * foreign_s + 0.05


def test_beside_foreign_work_too_many_requests_are_turned_away_from_below():
    machine = Machine(foreign_s=0.005)
    machine.run(times(3, orders=0.1), 5.0)
    assert machine.shed[Priority.CRITICAL] == 0
    assert machine.shed[Priority.BULK] > 0.9 * 3 * AT_CAPACITY[3] * 5
    assert machine.late(Priority.CRITICAL) < 0.05


def test_requests_that_wait_for_something_slow_are_no_overload():
    machine = Machine(wait_s=0.1)
    machine.run((10.0, 1_000.0, 0.0, 0.0), 2.0)
    machine.run((10.0, 1_000.0, 0.0, 0.0), 3.0)
    assert machine.shed == [0, 0, 0, 0]
    assert machine.late(Priority.USER) < 0.15


def test_the_others_take_only_the_room_that_keeps_the_processor_busy():
    pace = Pace(OverloadSettings())
    for _ in range(100):
        pace.window(0.05, 0.005, in_line=True, limit=500)
    assert pace.running_max == 500
    for _ in range(100):
        pace.window(0.05, 0.049, in_line=True, limit=500)
    assert pace.running_max == OverloadSettings().running_min


def begun_a_turn(cost_s, *, turns=400):
    """How many of a class begin in one turn each, while all lines are full; none of them ever ends its first step early."""
    machine = Machine(cost_s=cost_s)
    made, begun = machine.admission, []
    with clock.installed(machine):
        made.watch(machine)
        machine.begin = lambda exchange, _scope: (begun.append(exchange[0]), machine.call_soon(machine.step, exchange))
        made.begin = machine.begin
        found = []
        for _ in range(turns):
            for priority in Priority:
                while len(made._lines[priority]) < 40:
                    made.entered()
                    if not made.lines_up(b"GET", b"/%d" % priority, (priority, machine.now_s), None):
                        machine.begin((priority, machine.now_s), None)
            begun.clear()
            machine.turn()
            found.append([begun.count(priority) for priority in Priority])
    return found[turns // 2 :]


def test_dear_first_steps_begin_one_a_turn():
    found = begun_a_turn((0.01, 0.01, 0.01, 0.01))
    assert {sum(turn) for turn in found} <= {0, 1}


def test_many_cheap_ones_begin_in_a_turn_and_no_more_than_it_is_long():
    found = begun_a_turn((0.000_1, 0.01, 0.01, 0.01))
    assert 19 <= max(turn[0] for turn in found) <= 21
    assert max(sum(turn[1:]) for turn in found) <= 1


def test_what_is_dear_goes_over_a_turn_one_at_a_time_and_is_paid_back():
    machine = Machine(cost_s=(0.000_3, 0.005, 0.002, 0.004))
    machine.run((200.0, 3_000.0, 0.0, 0.0), 1.0)
    machine.run((200.0, 3_000.0, 0.0, 0.0), 4.0)
    assert machine.shed[Priority.CRITICAL] == 0
    assert machine.late(Priority.CRITICAL, 0.95) < 0.008, "no more than one of five milliseconds is before it"
    assert machine.busy(4.0) > 0.9


def test_who_goes_before_all_others_does_not_wait_for_their_room():
    machine = Machine(cost_s=(0.000_1,) * 4, wait_s=0.2)
    made = machine.admission
    with clock.installed(machine):
        made.watch(machine)
        for _ in range(40):
            machine.arrive(Priority.USER, 0.0)
        for _ in range(10):
            machine.turn()
        assert made.waiting > 0, "there is no room for some"
        assert not machine.ready, "and nothing happens until there is"
        before = made.waiting
        machine.arrive(Priority.CRITICAL, machine.now_s)
        assert made.waiting == before, "it begins at once"
        assert len(machine.ready) == 1
        came = 1
        while made.waiting == before:
            machine.arrive(Priority.CRITICAL, machine.now_s)
            came += 1
        assert 1 < came <= 1 + made.pace.turn_s / made.pace.cost_s(0), "as many as fit into a turn"
        machine.turn()
        assert made.waiting == before, "who comes behind them begins in the next"


def admission():
    made = Admission(
        AdmissionSettings(), lambda method, path: Priority(int(path[1:2])) if method == b"POST" else Priority.USER
    )
    made.close_from(Priority.DEGRADED)
    return made


HEAD = b"POST /3 HTTP/1.1\r\nHost: shop\r\nContent-Length: 2\r\n\r\n"


def test_a_whole_body_is_turned_away_by_its_first_line():
    made = admission()
    assert plain_whole(HEAD + b"{}") == (b"POST", b"/3", b"{}")
    assert made.turns_away(b"POST", b"/3")
    assert not made.turns_away(b"POST", b"/0")
    assert not made.turns_away(b"GET", b"/3")
    assert made.statistics().shed[Priority.BULK] == 1


@pytest.mark.parametrize(
    "data",
    [
        HEAD + b"{",
        HEAD + b"{}G",
        HEAD.replace(b"Host", b"Transfer-Encoding: chunked\r\nHost") + b"{}",
        HEAD.replace(b"Host", b"Content-Length: 2\r\nHost") + b"{}",
        HEAD.replace(b"Host", b"X: a\nTransfer-Encoding : chunked\r\nHost") + b"{}",
        HEAD.replace(b"Host", b"X: a\r\n b\r\nHost") + b"{}",
        HEAD.replace(b"Content-Length:", b"Content-Length :") + b"{}",
        HEAD.replace(b"Host: shop\r\n", b"") + b"{}",
        HEAD.replace(b"Host", b"Connection: close\r\nHost") + b"{}",
        HEAD.replace(b"POST", b"GET") + b"{}",
        b"POST /3 HTTP/1.1\r\n",
    ],
)
def test_whatever_is_not_plain_is_left_to_the_parser(data):
    assert plain_whole(data) is None
    assert PLAIN_GET.fullmatch(data) is None


def test_the_refused_are_left_unread_only_while_the_highest_class_takes_more_than_the_room_of_the_others():
    machine = Machine(cost_s=(0.000_1,) * 4, wait_s=10.0)
    made = machine.admission
    with clock.installed(machine):
        made.watch(machine)
        for _ in range(60):
            machine.arrive(Priority.USER, 0.0)
        for _ in range(20):
            machine.turn()
        assert made.waiting > 0, "the others have all the room they get"
        assert not made.pressed
        for _ in range(20):
            machine.arrive(Priority.CRITICAL, 0.0)
        for _ in range(20):
            machine.turn()
        assert made.pressed
        assert not made.full
        for _ in range(40):
            machine.arrive(Priority.CRITICAL, 0.0)
        for _ in range(40):
            machine.turn()
        assert made.full


def test_what_the_highest_class_takes_is_left_to_it_in_smaller_batches_of_the_others(monkeypatch):
    def flood():
        machine = Machine(cost_s=(0.001_2, 0.000_4, 0.002, 0.004))
        rates = (400.0, 6_000.0, 1_000.0, 500.0)
        machine.run(rates, 1.0)
        machine.run(rates, 4.0)
        assert machine.shed[Priority.CRITICAL] == 0
        return machine.late(Priority.CRITICAL, 0.5), machine.busy(4.0)

    late_s, busy = flood()
    monkeypatch.setattr(lines, "RESERVED", 0.0)
    late_before_s, busy_before = flood()
    assert late_s < 0.9 * late_before_s
    assert busy > busy_before - 0.01, "at no price"


def test_those_who_stood_too_long_go_a_few_a_turn_because_each_has_requests_behind_it():
    machine = Machine()
    machine.run((0.0,) * 4, 0.01)
    made = machine.admission
    with clock.installed(machine):
        for _ in range(8 + 40):
            made.entered()
            made.lines_up(b"GET", b"/1", (1, machine.now_s), None)
        machine.now_s += AdmissionSettings().age_s_max[1] + 0.1
        assert made.waiting >= 40
        gone, turns = [], 0
        while made.waiting:
            before = machine.shed[1]
            machine.turn()
            gone.append(machine.shed[1] - before)
            turns += 1
            assert turns < 2_000
    assert 0 < max(gone) <= 4
    assert sum(gone) >= 40
    assert not machine.took[1], "nobody begins who is too old"


def test_the_room_a_slow_disk_needed_is_given_back_once_the_processor_is_full_or_the_rush_is_over():
    pace = Pace(OverloadSettings())
    for _ in range(12):
        pace.window(0.05, 0.01, in_line=True, limit=2_000)
    wide = pace.running_max
    assert wide > 150
    for _ in range(12):
        pace.window(0.05, 0.05, in_line=True, limit=2_000)
    assert pace.running_max == OverloadSettings().running_min
    machine = Machine(wait_s=0.2)
    machine.run((0.0, 400.0, 0.0, 0.0), 2.0)
    assert machine.admission.pace.running_max > OverloadSettings().running_min
    machine.run((0.0, 1.0, 0.0, 0.0), 6.0)
    machine.run((0.0, 400.0, 0.0, 0.0), 0.02)
    machine.run((0.0, 6_000.0, 0.0, 0.0), 0.04)
    assert machine.admission.pace.running_max <= 25, "a new rush, so at most one window's growth"

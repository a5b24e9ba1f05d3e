"""Overload: pure decisions over windows, and a server with one queue in virtual time under ten times its capacity."""

import pytest

from fourplane.edge.admission import Admission, AdmissionSettings
from fourplane.edge.overload import OPEN, Overload
from fourplane.edge.routes import Priority

WINDOW_S = 0.05
WAITING_MAX = AdmissionSettings().waiting_max


class Machine:
    """Serves `capacity` requests a second, the highest class first."""

    def __init__(self, capacity):
        self.capacity = capacity
        self.queue = []
        self.overload = Overload()
        self.credit = [0.0] * 4
        self.owed = [0.0] * 4
        self.done = [0] * 4
        self.shed = [0] * 4
        self.delays = []

    def window(self, rates):
        arrived = [0] * 4
        for number, rate in enumerate(rates):  # a line is bounded, as in the admission
            self.owed[number] += rate * WINDOW_S
            count, self.owed[number] = int(self.owed[number]), self.owed[number] % 1.0
            arrived[number] = count
            for _ in range(count):
                self.credit[number] += self.overload.shares[number]
                if self.credit[number] >= 1.0 and self.queue.count(number) < WAITING_MAX[number]:
                    self.credit[number] -= 1.0
                    self.queue.append(number)
                else:
                    self.credit[number] = min(self.credit[number], 1.0)
                    self.shed[number] += 1
        self.queue.sort()
        served = self.queue[: int(self.capacity * WINDOW_S)]
        self.queue = self.queue[len(served) :]
        for number in served:
            self.done[number] += 1
        delay = len(self.queue) / self.capacity
        self.delays.append(delay)
        self.overload.observe(WINDOW_S, delay, arrived=arrived, finished=len(served), busy=len(self.queue) + 8)


def test_ten_times_the_capacity_leaves_the_highest_class_whole_and_the_machine_busy():
    machine = Machine(1_000)
    for _ in range(40):
        machine.window((60, 240, 300, 200))
    assert machine.shed == [0, 0, 0, 0]
    machine.done = [0] * 4
    for _ in range(200):
        machine.window((600, 2_400, 4_000, 3_000))
    assert machine.shed[Priority.CRITICAL] == 0
    assert sum(machine.done) >= 0.9 * 1_000 * 200 * WINDOW_S
    assert machine.done[Priority.USER] > 0.2 * sum(machine.done)
    assert machine.done[Priority.BULK] < 0.03 * sum(machine.done)
    assert max(machine.delays[60:]) < 0.6


def test_after_the_spike_everybody_comes_in_again_within_a_second_or_two():
    machine = Machine(1_000)
    for _ in range(100):
        machine.window((600, 2_400, 4_000, 3_000))
    machine.shed = [0] * 4
    for _ in range(30):
        machine.window((60, 240, 300, 200))
    machine.shed = [0] * 4
    for _ in range(40):
        machine.window((60, 240, 300, 200))
    assert machine.shed == [0, 0, 0, 0]
    assert machine.overload.shares == OPEN
    assert not machine.overload.watching


def test_few_requests_on_a_slow_loop_are_no_overload():
    overload = Overload()
    for _ in range(100):
        overload.observe(WINDOW_S, 1.0, arrived=(0, 0, 0, 0), finished=1, busy=3)
    assert not overload.watching


def admission():
    made = Admission(
        AdmissionSettings(), lambda method, path: Priority(int(path[1:2])) if method == b"POST" else Priority.USER
    )
    made.close_from(Priority.DEGRADED)
    return made


HEAD = b"POST /3 HTTP/1.1\r\nHost: shop\r\nContent-Length: 2\r\n\r\n"


def test_a_whole_body_is_turned_away_by_its_first_line():
    made = admission()
    assert not made.admits_whole(HEAD + b"{}")
    assert made.admits_whole(HEAD.replace(b"/3", b"/0") + b"{}")
    assert made.admits(Priority.BULK), "what was let in is not asked twice"
    assert not made.admits(Priority.BULK)


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
        b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n",
        b"POST /3 HTTP/1.1\r\n",
    ],
)
def test_whatever_is_not_plain_is_left_to_the_parser(data):
    assert admission().admits_whole(data)

"""Connections that come back too early rest, by a clock moved by hand: first in, first out, bounded, and never for long."""

from fourplane.edge.resting import LOOKS_MAX, TICK_S, Resting, RestingSettings
from fourplane.foundation import clock

SETTINGS = RestingSettings(answers_per_s=500.0, rest_s_min=0.03, rest_s_max=1.0)


class Timer:
    def cancel(self):
        pass


class Bench:
    """A loop with one timer, its clock, its crowd, and who was read again when."""

    def __init__(self, settings=SETTINGS, brings=1):
        self.now_s, self.waiting, self.callback, self.read = 0.0, 1, None, []
        self.pressed = self.full = False
        self.brings = brings  # requests a guest has sent meanwhile, all refused
        self.resting = Resting(settings, self)
        self.resting.open(self)

    def monotonic_s(self):
        return self.now_s

    def call_later(self, _delay_s, callback):
        self.callback = callback
        return Timer()

    def rest(self, *names):
        with clock.installed(self):
            for name in names:
                self.resting.add(Guest(name, self))

    def run(self, seconds):
        ends_s = self.now_s + seconds
        with clock.installed(self):
            while self.now_s < ends_s - TICK_S / 2:
                self.now_s += TICK_S
                callback, self.callback = self.callback, None
                if callback is not None:
                    callback()


class Guest:
    def __init__(self, name, bench):
        self.name, self.bench = name, bench

    def read_again(self):
        self.bench.read.append((self.name, self.bench.now_s))
        self.bench.resting.told += self.bench.brings


def test_nobody_is_read_before_the_shortest_rest_and_the_first_goes_first():
    bench = Bench()
    bench.rest(*range(5))
    bench.run(0.024)
    assert bench.read == []
    bench.run(0.02)
    assert [name for name, _ in bench.read] == [0, 1, 2, 3, 4]
    assert bench.callback is None


def test_however_many_rest_they_are_read_at_the_pace_that_is_allowed():
    bench = Bench()
    bench.rest(*range(400))
    bench.run(0.5)
    assert 200 <= len(bench.read) <= 250
    assert [name for name, _ in bench.read] == list(range(len(bench.read)))


def test_who_brings_dozens_at_a_time_is_read_as_much_less_often():
    bench = Bench(brings=20)
    bench.rest(*range(400))
    bench.run(0.9)
    assert 10 <= len(bench.read) <= 26


def test_the_longer_somebody_rests_the_quicker_it_goes():
    bench = Bench(brings=20)
    bench.rest(*range(60))
    bench.run(1.0)
    read = len(bench.read)
    assert read < 30
    bench.run(1.0)
    assert len(bench.read) - read > 1.2 * read


def test_refusals_nobody_could_foresee_are_paid_back_by_a_pause():
    bench = Bench()
    bench.rest(*range(400))
    bench.run(0.1)
    bench.resting.told += 10_000
    read = len(bench.read)
    bench.run(0.09)
    assert len(bench.read) == read
    bench.run(0.1)
    assert len(bench.read) > read + 20


def test_nobody_rests_much_longer_than_was_told_also_when_the_highest_class_needs_all_there_is():
    for pressed in (False, True):
        bench = Bench(RestingSettings())
        bench.pressed = pressed
        bench.rest(*range(3_000))
        bench.run(1.5)
        assert len(bench.read) == 3_000
        assert max(at_s for _, at_s in bench.read) < SETTINGS.rest_s_max + 0.4


def test_while_the_highest_class_needs_all_there_is_nobody_is_read_again_early():
    bench = Bench()
    bench.pressed = True
    bench.rest(*range(50))
    bench.run(0.9)
    assert bench.read == []
    bench.pressed = False
    bench.run(0.09)
    assert len(bench.read) > 40


def test_while_the_highest_class_has_no_room_left_they_rest_half_as_long_again_and_no_longer():
    bench = Bench(RestingSettings())
    bench.pressed = bench.full = True
    bench.rest(*range(50))
    bench.run(1.4)
    assert bench.read == []
    bench.run(0.2)
    assert len(bench.read) == 50


def test_few_are_read_in_one_tick_so_that_no_turn_is_full_of_them():
    bench = Bench()
    bench.rest(*range(200))
    bench.run(1.0 - TICK_S)
    read = len(bench.read)
    bench.run(2 * TICK_S)
    assert len(bench.read) - read <= 2 * LOOKS_MAX


def test_when_nobody_stands_in_line_any_more_all_are_read_at_once():
    bench = Bench()
    bench.rest(*range(300))
    bench.waiting = 0
    bench.run(TICK_S * 6)
    assert len(bench.read) == 300


def test_closing_reads_everybody_again():
    bench = Bench()
    bench.rest(1, 2)
    bench.resting.close()
    assert [name for name, _ in bench.read] == [1, 2]
    assert not bench.resting.wanted

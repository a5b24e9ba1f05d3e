import asyncio

from fourplane.service.timer_wheel import TimerWheel, WheelClock


class Hands:
    """A wheel with a clock that tests move."""

    def __init__(self, **options):
        self.now = 100.0
        self.fired = []
        self.errors = []
        self.wheel = TimerWheel(lambda: self.now, tick_s=0.1, on_error=self.errors.append, **options)

    def at(self, seconds, name):
        return self.wheel.at(self.now + seconds, lambda: self.fired.append(name))

    def go(self, seconds):
        self.now += seconds
        self.wheel.turn(self.now)
        self.wheel.check()


def test_timer_fires_once_never_early_and_at_most_a_tick_late():
    hands = Hands()
    hands.at(0.35, "a")
    hands.go(0.34)
    assert hands.fired == []
    hands.go(0.11)
    assert hands.fired == ["a"]
    hands.go(100)
    assert hands.fired == ["a"]
    assert len(hands.wheel) == 0


def test_rearmed_timer_moves_both_ways_and_a_cancelled_one_is_silent():
    hands = Hands()
    later, sooner, never = hands.at(1, "later"), hands.at(5, "sooner"), hands.at(1, "never")
    later.rearm(3)
    sooner.rearm(0.5)
    never.cancel()
    hands.go(0.7)
    assert hands.fired == ["sooner"]
    hands.go(1)
    assert hands.fired == ["sooner"]
    hands.go(1.5)
    assert hands.fired == ["sooner", "later"]
    assert not later.pending
    later.rearm(1)
    hands.go(5)
    assert len(hands.fired) == 2
    assert len(hands.wheel) == 0


def test_pushing_back_and_forth_leaves_no_entries_behind():
    hands = Hands()
    timer = hands.at(10, "a")
    for _ in range(1_000):
        timer.rearm(5)
        timer.rearm(10)
    assert len(hands.wheel) <= 2
    hands.go(5.2)
    hands.go(5.2)
    assert hands.fired == ["a"]


def test_deadline_beyond_the_ring_goes_round():
    hands = Hands(slots=8)
    hands.at(10, "far")
    for _ in range(98):
        hands.go(0.1)
    assert hands.fired == []
    hands.go(0.4)
    assert hands.fired == ["far"]


def test_long_sleep_fires_everything_due():
    hands = Hands(slots=16)
    for n in range(50):
        hands.at(n, n)
    hands.go(25.5)
    assert sorted(hands.fired) == list(range(26))


def test_failing_callback_takes_no_other_with_it():
    hands = Hands()
    hands.wheel.at(hands.now + 1, lambda: 1 / 0)
    hands.at(1, "b")
    hands.go(2)
    assert hands.fired == ["b"]
    assert isinstance(hands.errors[0], ZeroDivisionError)


def test_wheel_turns_on_the_loop_and_rests_when_empty():
    async def main():
        clock = WheelClock(tick_s=0.001)
        done = asyncio.Event()
        clock.after(0.003, done.set)
        await asyncio.wait_for(done.wait(), 5)
        await asyncio.sleep(0.003)
        assert clock._handle is None
        clock.after(0.002, done.clear)
        async with asyncio.timeout(5):
            while done.is_set():
                await asyncio.sleep(0.001)
        clock.stop()
        assert clock.statistics().fired == 2

    asyncio.run(main())

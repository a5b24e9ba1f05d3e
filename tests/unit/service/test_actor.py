import asyncio

import pytest

from fourplane.foundation.errors import Conflict, NotFound, Overloaded, Unavailable
from fourplane.service.actor import Actor, ActorSettings, Dispatcher, Ended
from fourplane.service.hibernation import ActorTable
from fourplane.service.restart_intensity import IntensitySettings
from fourplane.service.supervisor import Child, Escalated, Supervisor, SupervisorSettings


class Noting(Actor):
    __slots__ = ("log", "name", "terminated")

    def __init__(self, name="actor", log=None):
        self.name = name
        self.log = [] if log is None else log
        self.terminated = False

    def receive(self, message):
        if isinstance(message, Exception):
            raise message
        self.log.append((self.name, message))

    def terminate(self):
        self.terminated = True
        self.log.append((self.name, "terminated"))


def on_loop(main):
    async def body():
        await main()

    asyncio.run(body())


async def quiet(dispatcher):
    while dispatcher.statistics().ready or dispatcher._scheduled:
        await asyncio.sleep(0)


def test_messages_arrive_in_order_and_the_mailbox_goes_when_empty():
    async def main():
        dispatcher = Dispatcher()
        actor = Noting()
        dispatcher.spawn(actor)
        for n in range(100):
            actor.tell(n)
        assert actor.waiting() == 100
        await quiet(dispatcher)
        assert [message for _, message in actor.log] == list(range(100))
        assert actor._mailbox is None
        assert dispatcher.statistics().messages == 100

    on_loop(main)


def test_flooded_actor_delays_another_by_one_budget():
    async def main():
        dispatcher = Dispatcher(ActorSettings(budget=4))
        log = []
        busy, other = Noting("busy", log), Noting("other", log)
        dispatcher.spawn(busy)
        dispatcher.spawn(other)
        for n in range(20):
            busy.tell(n)
        other.tell("hello")
        await quiet(dispatcher)
        assert log.index(("other", "hello")) == 4

    on_loop(main)


def test_loop_breathes_between_slices():
    async def main():
        dispatcher = Dispatcher(ActorSettings(slice_count=10, budget=5))
        actor = Noting()
        dispatcher.spawn(actor)
        for n in range(100):
            actor.tell(n)
        breaths = 0
        while actor.waiting():
            await asyncio.sleep(0)
            breaths += 1
        assert breaths >= 9

    on_loop(main)


def test_full_mailbox_refuses_and_a_gone_actor_says_so():
    async def main():
        dispatcher = Dispatcher(ActorSettings(mailbox_max=3))
        actor = Noting()
        with pytest.raises(AttributeError):
            actor.tell("nobody runs it")
        dispatcher.spawn(actor)
        for n in range(3):
            actor.tell(n)
        with pytest.raises(Overloaded):
            actor.tell(3)
        assert dispatcher.retire(actor) == 3
        assert actor.terminated
        with pytest.raises(Unavailable):
            actor.tell(4)
        await quiet(dispatcher)
        assert dispatcher.statistics().refused == 1

    on_loop(main)


def test_actor_may_retire_itself_in_the_middle_of_its_mail():
    async def main():
        dispatcher = Dispatcher()

        class Leaving(Noting):
            __slots__ = ()

            def receive(self, message):
                super().receive(message)
                if message == 2:
                    dispatcher.retire(self)

        actor = Leaving()
        dispatcher.spawn(actor)
        for n in range(5):
            actor.tell(n)
        await quiet(dispatcher)
        assert [message for _, message in actor.log] == [0, 1, 2, "terminated"]

    on_loop(main)


def test_crash_takes_linked_actors_and_tells_those_that_trap():
    async def main():
        dispatcher = Dispatcher()
        one, other, trapping = Noting("one"), Noting("other"), Noting("trapping")
        for actor in (one, other, trapping):
            dispatcher.spawn(actor)
        dispatcher.link(one, other)
        dispatcher.link(trapping, one, trap=True)
        one.tell(ValueError("broken"))
        await quiet(dispatcher)
        assert (one.alive, other.alive, trapping.alive) == (False, False, True)
        [(_, told)] = trapping.log
        assert isinstance(told, Ended)
        assert told.actor is one
        assert dispatcher._links == {}

    on_loop(main)


def family(strategy, names="abc", **settings):
    """A supervisor whose children note into one log; (supervisor, dispatcher, log)."""
    dispatcher, log = Dispatcher(), []
    kinds = settings.pop("kinds", {})
    children = [Child(n, lambda n=n: Noting(n, log), kinds.get(n, "permanent")) for n in names]
    supervisor = Supervisor(dispatcher, children, settings=SupervisorSettings(strategy=strategy, **settings))
    supervisor.start()
    return supervisor, dispatcher, log


@pytest.mark.parametrize(
    ("strategy", "stopped"), [("one_for_one", []), ("one_for_all", ["c", "a"]), ("rest_for_one", ["c"])]
)
def test_strategy_decides_who_goes_with_a_crashed_child(strategy, stopped):
    async def main():
        supervisor, dispatcher, log = family(strategy)
        before = {name: supervisor.find(name) for name in "abc"}
        before["b"].tell(ValueError("broken"))
        await quiet(dispatcher)
        assert log == [(name, "terminated") for name in stopped], "in reverse order"
        supervisor.check()
        renewed = {name for name in "abc" if supervisor.find(name) is not before[name]}
        assert renewed == {"b", *stopped}
        assert "broken" in supervisor.story("b")[0]
        supervisor.stop()
        assert [name for name, _ in log[len(stopped) :]] == ["c", "b", "a"]
        supervisor.check()

    on_loop(main)


def test_transient_child_returns_after_an_error_only_and_temporary_never():
    async def main():
        supervisor, dispatcher, _ = family("one_for_one", kinds={"a": "transient", "b": "temporary"})
        first = supervisor.find("a")
        first.tell(ValueError("broken"))
        supervisor.find("b").tell(ValueError("broken"))
        await quiet(dispatcher)
        second = supervisor.find("a")
        assert second is not None
        assert second is not first
        assert supervisor.find("b") is None
        dispatcher.retire(second)
        assert supervisor.find("a") is None
        dispatcher.retire(supervisor.find("c"))
        assert supervisor.find("c") is not None, "a permanent child comes back also after it ended in order"
        supervisor.check()

    on_loop(main)


def test_too_many_restarts_end_the_supervisor_and_climb_the_tree():
    async def main():
        dispatcher, log, reached = Dispatcher(), [], []
        two = SupervisorSettings(intensity=IntensitySettings(count_max=2, period_s=60))

        def inner():
            return Supervisor(dispatcher, [Child("leaf", lambda: Noting("leaf", log))], settings=two)

        outer = Supervisor(dispatcher, [Child("inner", inner)], settings=two)
        outer.start(reached.append)
        for _ in range(9):
            inside = outer.find("inner")
            if inside is None:
                break
            inside.find("leaf").tell(ValueError("broken"))
            await quiet(dispatcher)
            outer.check()
        assert outer.state == "ended"
        [escalated] = reached
        assert isinstance(escalated.__cause__, Escalated)
        assert dispatcher.statistics().actors == 0

    on_loop(main)


def test_factory_that_fails_during_a_restart_counts_as_crashes():
    async def main():
        dispatcher, reached, made = Dispatcher(), [], []

        def make():
            if made:
                raise RuntimeError("cannot be made again")
            made.append(Noting())
            return made[0]

        supervisor = Supervisor(dispatcher, [Child("only", make)])
        supervisor.start(reached.append)
        supervisor.find("only").tell(ValueError("broken"))
        await quiet(dispatcher)
        assert len(reached) == 1
        supervisor.check()

    on_loop(main)


def test_start_that_fails_stops_what_stands():
    async def main():
        dispatcher, log = Dispatcher(), []

        def broken():
            raise RuntimeError("no")

        supervisor = Supervisor(dispatcher, [Child("a", lambda: Noting("a", log)), Child("b", broken)])
        with pytest.raises(RuntimeError):
            supervisor.start()
        assert log == [("a", "terminated")]
        supervisor.check()

    on_loop(main)


def test_children_come_and_go():
    async def main():
        supervisor, _, log = family("one_for_one", names="")
        supervisor.add(Child("x", lambda: Noting("x", log)))
        with pytest.raises(Conflict):
            supervisor.add(Child("x", lambda: Noting("x", log)))
        supervisor.remove("x")
        with pytest.raises(NotFound):
            supervisor.remove("x")
        supervisor.stop()
        with pytest.raises(Unavailable):
            supervisor.add(Child("x", lambda: Noting("x", log)))

    on_loop(main)


class Counting(Actor):
    __slots__ = ("count", "key")

    def __init__(self, key, state):
        self.key = key
        self.count = int(state or 0)

    def receive(self, message):
        if message == "crash":
            raise ValueError(self.key)
        self.count += message

    def hibernate(self):
        return None if self.count == 99 else str(self.count).encode()


def test_sleeping_actor_wakes_with_its_state_when_told():
    async def main():
        dispatcher = Dispatcher()
        table = ActorTable(dispatcher, Counting, count_max=2)
        table.tell("anna", 5)
        assert not table.hibernate("anna"), "its mail waits"
        await quiet(dispatcher)
        assert table.hibernate("anna")
        assert (table.find("anna"), len(table)) == (None, 1)
        table.tell("anna", 2)
        await quiet(dispatcher)
        assert table.find("anna").count == 7
        table.tell("ben", 99)
        await quiet(dispatcher)
        assert not table.hibernate("ben")
        with pytest.raises(Overloaded):
            table.tell("carl", 1)
        table.tell("ben", "crash")
        await quiet(dispatcher)
        assert table.statistics().crashed == 1
        table.tell("carl", 1)
        table.remove("carl")
        table.remove("anna")
        assert len(table) == dispatcher.statistics().actors == 0

    on_loop(main)

"""A supervisor under any crashes, ordered ends, additions and removals."""

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fourplane.service.actor import Actor, Dispatcher
from fourplane.service.restart_intensity import IntensitySettings
from fourplane.service.supervisor import Child, Supervisor, SupervisorSettings

KINDS = st.sampled_from(["permanent", "transient", "temporary"])


class Worker(Actor):
    __slots__ = ()

    def receive(self, message):
        raise message


class Tree(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.escalated = []
        self.made = 0

    @initialize(
        strategy=st.sampled_from(["one_for_one", "one_for_all", "rest_for_one"]), kinds=st.lists(KINDS, max_size=4)
    )
    def begin(self, strategy, kinds):
        async def make():
            return Dispatcher()

        self.dispatcher = self.loop.run_until_complete(make())
        options = SupervisorSettings(strategy=strategy, intensity=IntensitySettings(count_max=6, period_s=3_600))
        children = [Child(f"child{n}", Worker, kind) for n, kind in enumerate(kinds)]
        self.supervisor = Supervisor(self.dispatcher, children, settings=options)
        self.supervisor.start(self.escalated.append)
        self.names = [child.name for child in children]

    def pick(self, data):
        running = [name for name in self.names if self.supervisor.find(name)]
        return data.draw(st.sampled_from(running)) if running else None

    @rule(data=st.data())
    def crash(self, data):
        name = self.pick(data)
        if name:
            self.supervisor.find(name).tell(ValueError("broken"))
            self.loop.run_until_complete(asyncio.sleep(0))
            self.loop.run_until_complete(asyncio.sleep(0))

    @rule(data=st.data())
    def end_in_order(self, data):
        name = self.pick(data)
        if name:
            self.dispatcher.retire(self.supervisor.find(name))

    @precondition(lambda self: self.supervisor.state == "running")
    @rule(kind=KINDS)
    def add(self, kind):
        self.made += 1
        self.names.append(f"added{self.made}")
        self.supervisor.add(Child(self.names[-1], Worker, kind))

    @rule(data=st.data())
    def remove(self, data):
        name = self.pick(data)
        if name:
            self.supervisor.remove(name)
            self.names.remove(name)

    @invariant()
    def holds(self):
        if not hasattr(self, "supervisor"):
            return
        self.supervisor.check()
        seen = self.supervisor.statistics()
        assert seen.running == self.dispatcher.statistics().actors, "nobody runs unsupervised"
        assert seen.restarts <= 6
        assert len(self.escalated) == (self.supervisor.state == "ended")

    def teardown(self):
        self.loop.close()


TestTree = Tree.TestCase
TestTree.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)

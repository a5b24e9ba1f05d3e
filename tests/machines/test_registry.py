"""Discovery leases against a model: who renews stays, who is silent goes, nobody goes while the registry is cut off."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fourplane.service.registry import DiscoveryRegistry, Instance, RegistrySettings

LEASE_S, RENEW_S = 30.0, 10.0
names = st.integers(0, 30).map(lambda number: f"i{number}")


class Leases(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.registry = DiscoveryRegistry(RegistrySettings(renew_s=RENEW_S, lease_s=LEASE_S))
        self.renewed = {}

    @rule(name=names)
    def register(self, name):
        self.registry.register(Instance("shop", name, f"/run/{name}"), self.now)
        self.renewed[name] = self.now

    @precondition(lambda self: self.renewed)
    @rule(data=st.data())
    def leave(self, data):
        name = data.draw(st.sampled_from(sorted(self.renewed)))
        self.registry.deregister("shop", name)
        del self.renewed[name]

    @rule(minutes=st.integers(1, 4), share=st.floats(0, 1))
    def time_passes_and_some_renew(self, minutes, share):
        faithful = sorted(self.renewed)[: round(len(self.renewed) * share)]
        for _ in range(int(minutes * 60 / RENEW_S)):
            self.now += RENEW_S
            for name in faithful:
                self.registry.renew("shop", name, self.now)
                self.renewed[name] = self.now
            self.sweep(faithful)

    @rule()
    def sweep(self, faithful=()):
        protecting = self.registry.protecting(self.now)
        before = len(self.renewed)
        gone = [one.id for one in self.registry.sweep(self.now)]
        assert not (protecting and gone), "cut off: nobody is evicted"
        assert len(gone) <= max(1, int(before * 0.15)), "a few at a time"
        for name in gone:
            assert self.now - self.renewed[name] > LEASE_S, "only the silent go"
            assert name not in faithful
            del self.renewed[name]

    @invariant()
    def same_instances(self):
        self.registry.check()
        assert [one.id for one in self.registry.find("shop")] == sorted(self.renewed)


TestLeases = Leases.TestCase
TestLeases.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_lost_network_evicts_nobody_and_a_few_dead_are_evicted():
    registry = DiscoveryRegistry(RegistrySettings(renew_s=RENEW_S, lease_s=LEASE_S))
    for number in range(100):
        registry.register(Instance("shop", f"i{number:03}", "a", zone="z1" if number % 2 else "z2"), 0.0)
    now = 0.0
    while now < 300:
        now += RENEW_S
        for number in range(95):
            registry.renew("shop", f"i{number:03}", now)
        registry.sweep(now)
    assert (len(registry.find("shop")), registry.statistics(now).protecting) == (95, False)
    while now < 600:
        now += RENEW_S
        registry.renew("shop", "i000", now)
        registry.sweep(now)
    assert registry.statistics(now).protecting
    assert len(registry.find("shop")) > 70
    assert registry.find("shop", zone="z2")[0].zone == "z2"

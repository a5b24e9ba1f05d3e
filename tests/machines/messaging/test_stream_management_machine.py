"""One client with stream management against a model: whatever is sent, acknowledged, made durable and broken in any order."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fourplane.messaging.stream_management import MODULUS, Owed, StreamManagement
from fourplane.messaging.xml_stream import StreamError


class Managed(RuleBasedStateMachine):
    """`got` is what the client has handled over all its connections; `wire` what the present connection has carried."""

    @initialize(start=st.sampled_from([0, 5, MODULUS - 3]))
    def begin(self, start):
        self.management = StreamManagement("id")
        self.management.handled = start
        self.management.acknowledged_h = start
        self.start = start
        self.sent = 0
        self.wire = []  # on their way to the client
        self.got = []
        self.claimed = 0
        self.holds = {}
        self.next_hold = 0
        self.taken_from_client = 0

    @rule(count=st.integers(1, 4))
    def server_sends(self, count):
        for _ in range(count):
            self.management.sent(Owed(b"%d" % self.sent, None))
            self.wire.append(self.sent)
            self.sent += 1

    @rule(count=st.integers(1, 3))
    def client_takes(self, count):
        taken, self.wire = self.wire[:count], self.wire[count:]
        self.got += taken

    @rule()
    def client_acknowledges(self):
        done = self.management.acknowledged((self.start + len(self.got)) % MODULUS)
        assert [int(owed.data) for owed in done] == list(range(self.claimed, len(self.got)))
        self.claimed = len(self.got)

    @rule()
    def client_claims_too_much(self):
        before = list(self.management.unacked)
        try:
            self.management.acknowledged((self.start + self.sent + 1) % MODULUS)
        except StreamError:
            assert list(self.management.unacked) == before
        else:
            raise AssertionError("more was acknowledged than was sent")

    @rule()
    def connection_breaks_and_is_resumed(self):
        """What was on the wire is lost; the client tells what it has, the rest comes again in order."""
        self.client_acknowledges()
        self.wire = [int(owed.data) for owed in self.management.unacked]

    @rule()
    def client_sends_what_must_be_stored(self):
        self.management.handled += 1
        self.taken_from_client += 1
        self.next_hold += 1
        self.holds[self.next_hold] = self.management.handled

    @rule()
    def client_sends_what_need_not(self):
        self.management.handled += 1
        self.taken_from_client += 1

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def a_write_finishes(self, data):
        del self.holds[data.draw(st.sampled_from(sorted(self.holds)))]

    @invariant()
    def the_reported_count_is_never_ahead_of_the_disk(self):
        if not hasattr(self, "management"):
            return
        told = (self.management.durable_h(self.holds) - self.start) % MODULUS
        first = min(self.holds.values(), default=self.management.handled + 1)
        assert told == min(self.taken_from_client, first - 1 - self.start)

    @invariant()
    def the_client_has_everything_once_and_in_order(self):
        if hasattr(self, "management"):
            assert self.got == list(range(len(self.got)))
            assert [int(owed.data) for owed in self.management.unacked] == list(range(self.claimed, self.sent))


TestManaged = Managed.TestCase
TestManaged.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)

"""Two users and everything they may send each other, in any order, over a network that keeps order."""

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fourplane.messaging import roster
from fourplane.messaging.roster import SUBSCRIPTION_TYPES, Contact

SIDES = st.integers(0, 1)


class Subscriptions(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.contacts = [Contact("b@x", in_roster=False), Contact("a@x", in_roster=False)]
        self.queues = [deque(), deque()]  # towards side 0 and 1

    @rule(side=SIDES, kind=st.sampled_from(SUBSCRIPTION_TYPES))
    def user_sends(self, side, kind):
        outcome = roster.outbound(self.contacts[side], kind)
        self.contacts[side] = outcome.contact
        if outcome.travels:
            self.queues[1 - side].append(kind)

    @rule(side=SIDES)
    def stanza_arrives(self, side):
        if self.queues[side]:
            outcome = roster.inbound(self.contacts[side], self.queues[side].popleft(), b"<presence/>")
            self.contacts[side] = outcome.contact
            if outcome.answer:
                self.queues[1 - side].append(outcome.answer)

    @rule()
    def all_stanzas_arrive(self):
        for _ in range(50):
            self.stanza_arrives(0)
            self.stanza_arrives(1)

    @invariant()
    def states_are_those_of_the_rfc(self):
        for contact in self.contacts:
            contact.check()

    @invariant()
    def nobody_sees_without_permission_once_all_has_arrived(self):
        if not any(self.queues):
            for side in (0, 1):
                # An old answer may cross a new request (RFC 6121 does not number them): then the open request decides.
                other = self.contacts[1 - side]
                assert not self.contacts[side].to or other.from_ or other.request


TestSubscriptions = Subscriptions.TestCase
TestSubscriptions.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)

"""Owners that claim, move, pause, wake up late and write: never two epochs that both write."""

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fourplane.foundation.errors import Conflict, NotFound
from fourplane.service.ownership import Fence, OwnershipTable
from fourplane.state.contracts import Statement
from fourplane.state.embedded.database import Database
from fourplane.state.embedded.sql import EmbeddedSql

SLOTS = st.integers(0, 2)


class Owners(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.run = self.loop.run_until_complete
        self.database = self.run(Database(None).open())
        self.sql = EmbeddedSql(self.database)
        self.table = OwnershipTable(self.sql)
        self.fence = Fence(self.sql, "shard")
        self.run(self.table.open())
        self.run(self.sql.commit([Statement("CREATE TABLE facts (epoch BIGINT, slot BIGINT)")]))
        self.believed = {}  # slot -> the epoch it thinks it owns the shard with; never taken back
        self.entered = 0
        self.written = []
        self.refusals_wrong = 0

    @rule(slot=SLOTS)
    def claim(self, slot):
        try:
            self.believed[slot] = self.run(self.table.claim("shard", f"slot-{slot}")).epoch
        except Conflict:
            return

    @rule(slot=SLOTS)
    def enter(self, slot):
        epoch = self.believed.get(slot, 0)
        try:
            self.run(self.fence.enter(epoch))
        except Conflict:
            assert epoch < self.entered
        else:
            assert epoch >= self.entered
            self.entered = epoch

    @rule(slot=SLOTS)
    def write(self, slot):
        epoch = self.believed.get(slot)
        if epoch is None:
            return
        try:
            self.run(self.fence.commit(epoch, [Statement("INSERT INTO facts VALUES (?1, ?2)", (epoch, slot))]))
        except Conflict as refused:
            stale = refused.reason == "stale_epoch" and epoch != self.entered
            self.refusals_wrong += not stale
        else:
            self.written.append((epoch, slot))

    @rule(slot=SLOTS, step=st.sampled_from(["begin", "finish", "cancel"]))
    def move(self, slot, step):
        try:
            match step:
                case "begin":
                    self.run(self.table.begin_move("shard", f"slot-{slot}"))
                case "finish":
                    grant = self.run(self.table.finish_move("shard", f"slot-{slot}"))
                    self.believed[slot] = max(self.believed.get(slot, 0), grant.epoch)
                case "cancel":
                    self.run(self.table.cancel_move("shard"))
        except (Conflict, NotFound):
            return

    @invariant()
    def holds(self):
        assert not self.refusals_wrong
        epochs = [epoch for epoch, _ in self.written]
        assert epochs == sorted(epochs), "no older epoch writes behind a younger one"
        owners = {}
        for epoch, slot in self.written:
            assert owners.setdefault(epoch, slot) == slot, "one epoch, one owner"
        assert self.run(self.sql.read("SELECT epoch, slot FROM facts ORDER BY rowid")) == self.written

    def teardown(self):
        self.run(self.database.close())
        self.loop.close()


TestOwners = Owners.TestCase
TestOwners.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)

"""Checkouts, votes of no, lost answers, crashes and takeovers in any order: all or nothing, and nothing stays held."""

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from tests.unit.service.ledger_participant import Pieces

from fourplane.foundation.errors import FourplaneError
from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry
from fourplane.service.two_phase_commit import Branch, CommitSettings, Coordinator
from fourplane.state.embedded.database import Database
from fourplane.state.embedded.sql import EmbeddedSql

QUICK = CommitSettings(retry_s=0.0001, retry_s_max=0.0001, prepare_s=5.0, confirm_s=0.0)
STOCK, MONEY, PRICE = 12, 1_000, 10
NAMES = st.sampled_from(["stock", "money"])


class Shop(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.run = self.loop.run_until_complete
        self.database = self.run(Database(None).open())
        self.sql = EmbeddedSql(self.database)
        self.participants = {name: Pieces(self.sql, name) for name in ("stock", "money")}
        self.run(self.participants["stock"].make(STOCK))
        self.run(self.participants["money"].make(MONEY))
        self.ids = IdGenerator()
        self.acknowledged = self.unknown = 0
        self.fenced = []
        self.begin()

    def begin(self):
        self.checkout = Coordinator(self.sql, "checkout", self.participants, ids=self.ids, settings=QUICK)
        self.lifecycle = Lifecycle(Registry())
        self.lifecycle.add("checkout", self.checkout)
        self.run(self.lifecycle.start())

    @rule(count=st.integers(1, 4), waves=st.booleans())
    def buy(self, count, waves):
        branches = [Branch("stock", 1), Branch("money", PRICE, wave=int(waves))]

        async def all_at_once():
            return await asyncio.gather(*(self.checkout.run(branches) for _ in range(count)), return_exceptions=True)

        for one in self.run(all_at_once()):
            assert not isinstance(one, Exception) or isinstance(one, FourplaneError)
            self.acknowledged += not isinstance(one, Exception)

    @rule(name=NAMES, step=st.sampled_from(["prepare", "commit", "abort"]), count=st.integers(1, 3), lost=st.booleans())
    def break_participant(self, name, step, count, lost):
        faults = self.participants[name].fail_after if lost else self.participants[name].fail
        faults[step] = count

    @rule(steps=st.integers(0, 30))
    def crash_in_the_middle(self, steps):
        async def crash():
            buying = asyncio.ensure_future(self.checkout.run([Branch("stock", 1), Branch("money", PRICE)]))
            for _ in range(steps):
                await asyncio.sleep(0)
            await self.lifecycle.stop()
            [result] = await asyncio.gather(buying, return_exceptions=True)
            if isinstance(result, FourplaneError) and result.reason == "in_doubt":
                self.unknown += 1
            self.acknowledged += not isinstance(result, BaseException)

        self.run(crash())
        self.begin()

    @rule()
    def take_over(self):
        self.fenced.append((self.checkout, self.lifecycle))
        self.begin()

    @rule()
    def late_owner_tries(self):
        for checkout, _ in self.fenced:
            try:
                self.run(checkout.run([Branch("stock", 1), Branch("money", PRICE)]))
            except FourplaneError:
                continue
            raise AssertionError("a fenced coordinator committed")

    @rule()
    def settle_and_count(self):
        for participant in self.participants.values():
            participant.fail.clear()
            participant.fail_after.clear()
        self.run(self.checkout.drain())
        self.run(self.lifecycle.stop())
        self.begin()
        self.run(self.checkout.drain())
        stock = self.run(self.participants["stock"].state())
        money = self.run(self.participants["money"].state())
        assert (stock[2], money[2]) == (0, 0), "nothing stays held"
        assert stock[0] + stock[1] == STOCK
        assert money[0] + money[1] == MONEY
        assert money[1] == PRICE * stock[1], "both or none"
        assert self.acknowledged <= stock[1] <= self.acknowledged + self.unknown
        self.run(self.lifecycle.stop())
        self.begin()

    def teardown(self):
        self.settle_and_count()
        for _, lifecycle in [*self.fenced, (None, self.lifecycle)]:
            self.run(lifecycle.stop())
        self.run(self.database.close())
        self.loop.close()


TestShop = Shop.TestCase
TestShop.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)

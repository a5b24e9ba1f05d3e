"""The process of a receiver dies between storing a forwarded message and saying so: told again, it is kept once."""

import asyncio

import msgspec
import pytest
from tests.journeys.messaging.house import IN_MEMORY, QUICK_ACCOUNTS, keys

from fourplane.foundation import clock
from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry
from fourplane.messaging.app import Messaging
from fourplane.messaging.settings import MessagingSettings
from fourplane.messaging.user_shards import Spread
from fourplane.service.accounts import Accounts, NewAccount
from fourplane.service.courier import Batch, Greeting
from fourplane.service.shards import ShardMap
from fourplane.simulator import loop as simulator
from fourplane.simulator.sequenced import LOCAL_HOST
from fourplane.state.stores import Stores

SHARDS = ShardMap(2, 2)
HERE = SHARDS.slot_of(b"xmpp/bob@localhost")
SENDER = "alice@localhost/phone"
BODY = ["jabber:client body"]
BOOT = "a11ce" + 11 * "0"  # of alice's worker


class Neighbour:
    """The other worker, as this one calls it: it is there, and knows of nothing."""

    def method(self, _service, method):
        async def call(*_arguments):
            return Greeting("other", 0) if method.name == "hello" else []

        return call


class Receivers:
    """The worker of bob; what it stored stays when it dies."""

    def __init__(self, *, archive):
        self.settings = MessagingSettings(port=0, tls_port=0, tls_required=False, archive=archive, offline_max=5_000)
        self.told_safe = 0

    async def open(self):
        self.stores, self.ids = Stores(IN_MEMORY), IdGenerator(0)
        self.records = await self.stores.records("messaging")
        self.accounts = Accounts(await self.stores.sql("accounts"), ids=self.ids, settings=QUICK_ACCOUNTS)
        self.life = Lifecycle(Registry())
        self.life.add("stores", self.stores)
        self.life.add("accounts", self.accounts)
        await self.life.start()
        await self.accounts.create_many([NewAccount("bob", keys=keys())])

    async def begin(self):
        """A new process."""
        self.messaging = Messaging(
            self.settings, records=self.records, accounts=self.accounts, ids=self.ids, registry=Registry(), tls=None,
            certificate_hash=b"", spread=Spread(SHARDS, HERE, {1 - HERE: Neighbour()}, None),
        )  # fmt: skip
        self.working = Lifecycle(Registry())
        self.working.add("messaging", self.messaging)
        await self.working.start()

    async def tell(self, *texts, first=1, again=False):
        """What the other worker's courier tells, until it is safe or not to be had."""
        batch = Batch(
            1, msgspec.Raw(msgspec.msgpack.encode([stanza(first + n, text) for n, text in enumerate(texts)])),
            [1] * len(texts), msgspec.Raw(msgspec.msgpack.encode([(SENDER, 1)])), again,
        )  # fmt: skip
        safe = asyncio.Event()
        shards = self.messaging.shards
        longer = shards.received(BOOT, batch, shards.read(batch), lambda _: safe.set)
        if longer:
            async with asyncio.timeout(10):
                await safe.wait()

    async def kept(self):
        """Bodies that wait for bob, and that are in his archive."""
        store = self.messaging.store
        await store.wait_written()
        waiting = [text_of(one.raw) for one in await store.offline("bob@localhost", 5_000)]
        archived = await store.archived("bob@localhost", 0, (1 << 63) - 1, 5_000, backwards=False)
        return waiting, [text_of(value) for _, value in archived]

    async def close(self):
        await self.working.stop()
        await self.life.stop()


def stanza(number, text):
    to, raw = "bob@localhost", f"<message from='{SENDER}' to='bob@localhost' type='chat'><body>{text}</body></message>"
    return (raw.encode(), number, to, BODY, "chat")


def text_of(raw):
    return raw.partition(b"<body>")[2].partition(b"</body>")[0].decode()


def run(work, *, archive):
    async def main(world):
        receivers = Receivers(archive=archive)
        receivers.world = world
        await receivers.open()
        await receivers.begin()
        await work(receivers)
        found = await receivers.kept()
        dropped = receivers.messaging.store.dropped_count
        await receivers.close()
        return *found, dropped

    return simulator.run(main, 470).result


@pytest.mark.parametrize("archive", [False, True])
def test_what_a_killed_process_had_stored_is_not_stored_again_and_the_rest_is_in_order(archive):
    async def work(receivers):
        await receivers.tell("one", "two")
        await receivers.working.stop()  # its answers are lost with it
        await receivers.begin()
        await receivers.tell("one", "two", "three", again=True)
        await receivers.tell("four", first=4)

    waiting, archived, dropped = run(work, archive=archive)
    assert waiting == ["one", "two", "three", "four"]
    assert archived == (waiting if archive else [])
    assert dropped == (4 if archive else 2)


def test_what_was_archived_and_no_more_is_delivered_and_keeps_its_id():
    async def work(receivers):
        receivers.messaging.router.archived = lambda *_: None  # it dies here
        await receivers.tell("one")
        await receivers.working.stop()
        await receivers.begin()
        await receivers.tell("one", again=True)

    waiting, archived, dropped = run(work, archive=True)
    assert (waiting, archived, dropped) == (["one"], ["one"], 1)


def test_the_same_text_sent_twice_is_two_messages_and_another_worker_has_other_numbers():
    async def work(receivers):
        await receivers.tell("hello", "hello")
        await receivers.tell("hello", first=3, again=True)

    assert run(work, archive=False)[0] == ["hello"] * 3


def test_what_was_read_before_it_is_told_again_stays_read():
    async def work(receivers):
        await receivers.tell("one")
        store = receivers.messaging.store
        await store.forget_offline("bob@localhost", [one.id for one in await store.offline("bob@localhost", 9)])
        await clock.sleep(60)  # as long as another worker tries
        await receivers.tell("one", again=True)

    assert run(work, archive=False)[0] == []


@pytest.mark.parametrize("set_forward_s", [0.0, 300.0])
def test_what_is_told_again_late_is_kept_once_however_much_came_before_it(set_forward_s):
    others = [f"of another worker {number}" for number in range(2_100)]

    async def work(receivers):
        await receivers.tell("one", "two")
        await receivers.working.stop()
        receivers.world.skew(LOCAL_HOST, set_forward_s)
        await receivers.begin()
        for begin in range(0, len(others), 700):
            await receivers.tell(*others[begin : begin + 700], first=1_000 + begin)
        await receivers.tell("one", "two", "three", again=True)

    waiting, archived, dropped = run(work, archive=True)
    assert archived == ["one", "two", *others, "three"], "what was there stays in its place"
    assert waiting == archived
    assert dropped == 4

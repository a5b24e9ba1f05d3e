"""Two workers tell each other messages while calls are lost, answers are lost, and processes begin anew: seeded rounds.
Calls on a broken connection may come late, after those on the next one.

Checked at the end of each: no process handed a message on twice or out of order, every message that was ever said to be safe had
been made safe by somebody, every sender's wait ended once, and nothing was lost while there was patience.
"""

import asyncio
import contextlib

import msgspec
import pytest

from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError, Rejected, Unavailable
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry
from fourplane.service.courier import Courier, CourierSettings
from fourplane.simulator import loop as simulator

MESSAGES = 300
UNREADABLE = "xxxxx"
OWNERS = [f"owner{number}" for number in range(7)]


class Way:
    """Calls to whoever is in the other slot now; a call, or its answer, may get lost."""

    def __init__(self, house, loss):
        self.house = house
        self.loss = loss
        self.lates = []

    def method(self, _service, method):
        async def call(*args):
            await clock.sleep(clock.random().random() * 0.004)
            target = self.house.courier
            if self.house.away:
                raise Unavailable("nobody answers", code="connection_lost")
            if target is None or clock.random().random() < self.loss:
                if clock.random().random() < 0.5:  # on a connection that broke, read after what came on the next one
                    late = self.late(target, self.house.generation, method, method.encode_arguments(args, {}))
                    self.lates.append(asyncio.get_running_loop().create_task(late))
                raise Unavailable("lost on the way", code="connection_lost")
            if self.house.generation != (generation := self.house.generation):
                raise Unavailable("another process", code="connection_lost")
            answer = await method.run(target, method.encode_arguments(args, {}))
            await clock.sleep(clock.random().random() * 0.004)
            if clock.random().random() < self.loss or self.house.generation != generation:
                raise Unavailable("the answer was lost", code="connection_lost")
            return answer

        return call

    async def late(self, target, generation, method, arguments):
        await clock.sleep(clock.random().random() * 0.1)
        if self.house.generation == generation and target is not None:
            with contextlib.suppress(FourplaneError):
                await method.run(target, arguments)


class House:
    """The senders and receivers of one slot; its courier may be replaced as a killed process is."""

    def __init__(self, slot, settings):
        self.slot = slot
        self.settings = settings
        self.courier = None
        self.generation = 0
        self.handed = []  # per process: what it handed on
        self.safe_messages = set()  # made safe here, by whatever process
        self.waits = {}
        self.tokens = 0
        self.ended = []
        self.lost_messages = []
        self.told = {}  # which process had it first
        self.restarts_heard = 0
        self.slow_s = 0.0  # until something is safe; by chance
        self.broken = False  # takes nothing
        self.away = False  # answers nothing

    async def start(self, other, loss):
        self.generation += 1
        self.handed.append([])
        self.waits = {}
        self.courier = Courier(self.slot, {1 - self.slot: Way(other, loss)}, self, settings=self.settings)
        self.lifecycle = Lifecycle(Registry())
        self.lifecycle.add("courier", self.courier)
        await self.lifecycle.start()

    async def kill(self):
        courier, self.courier = self.courier, None
        self.generation += 1
        await courier.stop()
        await self.lifecycle.stop()

    # -- what the courier asks

    def begin(self, owner):
        self.tokens += 1
        self.waits[self.tokens] = owner
        return self.tokens

    def end(self, owner, token):
        assert self.waits.pop(token) == owner, "a wait ends once"
        self.ended.append(owner)

    def introduce(self, owner):
        return owner

    def lost(self, message, owner):
        self.lost_messages.append((msgspec.msgpack.decode(message), owner and msgspec.msgpack.decode(owner)))

    def restarted(self, _slot):
        self.restarts_heard += 1

    def read(self, batch):
        if self.broken:
            raise Unavailable("takes nothing now")
        messages = msgspec.msgpack.decode(batch.messages)
        if UNREADABLE in messages:
            raise Rejected("cannot be read", code="unreadable")
        return messages

    def received(self, boot, batch, read, safe):
        longer = set()
        owners = msgspec.msgpack.decode(batch.owners)
        for message, group in zip(read, batch.groups, strict=True):
            assert (OWNERS[int(message) % 7] if group else None) == (owners[group - 1] if group else None)
            earlier = self.told.setdefault((boot, message), self.generation)
            assert earlier == self.generation or batch.again, "who may have had it before is told so"
        batch_messages = msgspec.msgpack.decode(batch.messages, type=list[msgspec.Raw])
        for message, group in zip(batch_messages, batch.groups, strict=True):
            self.handed[-1].append(bytes(message))
            if group and (self.slow_s or clock.random().random() < 0.3):
                longer.add(group)
        of_group = {}
        for message, group in zip(batch_messages, batch.groups, strict=True):
            of_group.setdefault(group, []).append(bytes(message))
        for group, messages in of_group.items():
            if group in longer:
                delay_s = self.slow_s or clock.random().random() * 0.5
                asyncio.get_running_loop().call_later(delay_s, self._safe, messages, safe(group), self.generation)
            else:
                self.safe_messages.update(messages)
        return longer

    def _safe(self, messages, tell, generation):
        if generation == self.generation:  # a killed process makes nothing safe any more
            self.safe_messages.update(messages)
            tell()


def number_of(message):
    return int(message[1:])  # a msgpack string of one to fifteen bytes


async def round_of(world, *, loss, kills):
    sender, receiver = House(0, CourierSettings()), House(1, CourierSettings())
    await receiver.start(sender, loss)
    await sender.start(receiver, loss)
    sent = []

    async def send():
        for number in range(MESSAGES):
            owner = OWNERS[number % 7] if number % 5 else None
            sender.courier.send(1, f"{number:05}", owner)
            sent.append((number, owner))
            if clock.random().random() < 0.3:
                await clock.sleep(clock.random().random() * 0.02)

    async def kill():
        for _ in range(kills):
            await clock.sleep(0.1 + clock.random().random())
            await receiver.kill()
            await clock.sleep(clock.random().random() * 0.5)
            await receiver.start(sender, loss)

    async with asyncio.TaskGroup() as group:
        group.create_task(send())
        group.create_task(kill())
    until = clock.monotonic_s() + 120
    while sender.waits and clock.monotonic_s() < until:
        await clock.sleep(0.05)
    await clock.sleep(1)
    world.note(str(len(sender.ended)))
    statistics = sender.courier.statistics()
    await sender.kill()
    await receiver.kill()
    return sender, receiver, sent, statistics


@pytest.mark.parametrize("kills", [0, 3])
@pytest.mark.parametrize("loss", [0.0, 0.1])
@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_lost_or_handed_on_twice(seed, loss, kills):
    sender, receiver, sent, statistics = simulator.run(
        lambda world: round_of(world, loss=loss, kills=kills), seed
    ).result
    for handed in receiver.handed:
        numbers = [number_of(message) for message in handed]
        assert numbers == sorted(set(numbers)), "in order, and each once in one process"
    everything = {number_of(message) for handed in receiver.handed for message in handed}
    assert everything == set(range(MESSAGES))
    waited = {number for number, owner in sent if owner is not None}
    assert waited <= {number_of(message) for message in receiver.safe_messages}
    assert not sender.waits, "every wait ended"
    assert not sender.lost_messages
    assert statistics.unsettled == 0
    assert sender.restarts_heard >= (1 if kills else 0)


def test_who_never_comes_back_loses_messages_and_the_senders_hear_it():
    async def main(_):
        sender, receiver = House(0, CourierSettings(patience_s=2.0)), House(1, CourierSettings())
        await receiver.start(sender, 0.0)
        await sender.start(receiver, 0.0)
        await clock.sleep(0.5)
        await receiver.kill()
        for number in range(10):
            sender.courier.send(1, f"{number:05}", "owner")
        await clock.sleep(30)
        return sender

    sender = simulator.run(main, 3).result
    assert sender.lost_messages == [(f"{number:05}", "owner") for number in range(10)]
    assert not sender.waits


def test_what_cannot_be_read_is_lost_alone_and_its_senders_hear_it():
    async def main(_):
        sender, receiver = House(0, CourierSettings()), House(1, CourierSettings())
        await receiver.start(sender, 0.0)
        await sender.start(receiver, 0.0)
        await clock.sleep(0.5)
        for number in range(10):
            sender.courier.send(1, f"{number:05}", OWNERS[number % 7])
            if number in {3, 4, 8}:
                await clock.sleep(0.001)  # the next ones are another batch
                sender.courier.send(1, UNREADABLE, "unlucky")
                await clock.sleep(0.001)
        await clock.sleep(3)
        return sender, receiver, sender.courier.statistics()

    sender, receiver, statistics = simulator.run(main, 3).result
    assert sender.lost_messages.count((UNREADABLE, "unlucky")) == 3
    lost = {int(message) for message, _ in sender.lost_messages if message != UNREADABLE}
    handed = [number_of(message) for message in receiver.handed[-1]]
    assert handed == sorted(set(range(10)) - lost), "what was in no such batch arrived, in order and once"
    assert len(handed) >= 5
    assert not sender.waits
    assert statistics.unsettled == 0


@pytest.mark.parametrize("trouble", ["broken", "away"])
def test_who_is_back_after_the_senders_lost_patience_gets_what_they_say_next(trouble):
    async def main(_):
        sender, receiver = House(0, CourierSettings(patience_s=2.0)), House(1, CourierSettings())
        await receiver.start(sender, 0.0)
        await sender.start(receiver, 0.0)
        for moment in range(3):
            setattr(receiver, trouble, moment == 1)
            for number in range(moment * 10, moment * 10 + 10):
                sender.courier.send(1, f"{number:05}", OWNERS[number % 7])
            await clock.sleep(30)
        return sender, receiver, sender.courier.statistics()

    sender, receiver, statistics = simulator.run(main, 3).result
    assert [int(message) for message, _ in sender.lost_messages] == list(range(10, 20))
    assert [number_of(message) for message in receiver.handed[-1]] == [*range(10), *range(20, 30)]
    assert not sender.waits
    assert (statistics.given_up, statistics.unsettled) == (10, 0)


def test_what_was_taken_is_not_lost_with_what_is_not():
    async def main(_):
        sender, receiver = House(0, CourierSettings(patience_s=2.0)), House(1, CourierSettings())
        receiver.slow_s = 10.0
        await receiver.start(sender, 0.0)
        await sender.start(receiver, 0.0)
        sender.courier.send(1, "00000", OWNERS[0])
        await clock.sleep(0.5)
        receiver.broken = True
        sender.courier.send(1, "00001", OWNERS[1])
        await clock.sleep(5)
        waiting = list(sender.waits.values())
        await clock.sleep(10)
        return sender, waiting

    sender, waiting = simulator.run(main, 3).result
    assert sender.lost_messages == [("00001", OWNERS[1])]
    assert waiting == [OWNERS[0]], "it is not safe yet, and not lost"
    assert not sender.waits


def test_a_full_lane_refuses():
    async def main(_):
        sender, receiver = House(0, CourierSettings(unsettled_max=1_000)), House(1, CourierSettings())
        await sender.start(receiver, 0.0)
        refused = 0
        for number in range(3_000):
            try:
                sender.courier.send(1, f"{number:05}")
            except FourplaneError:
                refused += 1
        return refused

    assert simulator.run(main, 3).result > 1_000

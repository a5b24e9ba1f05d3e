"""Messages for what other workers own: in order, joined per tick, each handed on once, kept until they are safe there.

A call asks and waits; a message is told and answered later, if at all. Every pair of workers has a lane in each direction. What
one tick has for a lane leaves as one batch in one call (`take`); while two are under way, what the next ticks have is joined, so
that batches are as long as the other side is slow. Whoever has messages in a batch (their owner: a session)
waits for that batch once, not per message. The receiver hands the messages on and answers which owners must wait longer,
because something of theirs is not durable or not read yet; `settle` comes for these later. Until then the sender keeps them,
because the other worker may die with what it took. When a connection breaks, the sender asks (`hello`) who is there and what
that process has: the same process gets the rest, a new one gets everything that was never safe. So a restart of the
other side costs time, not messages. A batch counts as had once it was read: of one that cannot be read the senders hear
that it is lost, and the next ones go on.

Invariants: messages of one lane are handed on in order; no process hands one on twice; every owner's wait ends exactly once;
no two batches have the same number, so that what comes late is never taken for something else.
Bounds: `unsettled_max` messages a lane (then `send` raises Overloaded), `patience_s` for a worker that does not come back
or takes nothing.
What a batch has of one owner is introduced once: who that is stands beside the messages, not in each of them.
Cost: about 1 us a message, both sides together, besides what writes and reads it (`benchmarks/runtime.py`).
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import (
    Conflict,
    Forbidden,
    FourplaneError,
    Overloaded,
    Rejected,
    Unauthenticated,
    Unavailable,
)
from fourplane.foundation.lifecycle import Tasks
from fourplane.service import call_context
from fourplane.service.rpc import Caller, idempotent, remote

SERVICE = "courier"
RETRY_S = 0.02
CALL_S = 10.0
BATCH_MAX = 512
BATCH_BYTES_MAX = 1 << 20  # and one message more
FLYING_MAX = 2  # batches of one lane under way: one is handed on there while the next one travels
NOBODY = 0  # the group of messages that nobody waits for

NONE = msgspec.Raw(b"\x90")  # an empty array
Safe = Callable[[], None]
_encoder = msgspec.msgpack.Encoder()
_encode, _encode_behind = _encoder.encode, _encoder.encode_into
_each = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


class Office(Protocol):
    """Who sends and receives: what a courier asks of its house."""

    def begin(self, owner: object) -> int:
        """An owner has the first message in a batch; a token for its wait."""

    def introduce(self, owner: object) -> object:
        """What the other side is told about this owner, once for all its messages in a batch."""

    def end(self, owner: object, token: int) -> None:
        """All of that is safe."""

    def lost(self, message: msgspec.Raw, owner: msgspec.Raw | None) -> None:
        """The other worker did not come back in time; called before `end`, with what was told about the owner."""

    def read(self, batch: "Batch") -> Any:
        """The messages of a batch and their owners, for `received`; raises Rejected when it cannot be read as a whole."""

    def received(self, boot: str, batch: "Batch", read: Any, safe: Callable[[int], Safe]) -> set[int]:
        """Hand a batch of a process on, whatever one of its messages does.

        Answers the groups of owners that wait longer, for which `safe(group)()` is called once each.
        """

    def restarted(self, slot: int) -> None:
        """In a slot is another process than the one heard of before."""


class CourierSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of every lane."""

    unsettled_max: int = 50_000
    patience_s: float = 60.0


class CourierStatistics(msgspec.Struct, frozen=True):
    sent: int
    received: int
    unsettled: int
    repeated: int
    given_up: int


class Batch(msgspec.Struct, array_like=True, gc=False):
    """What one tick had for one lane: messages, and to which group of its owners each belongs."""

    number: int
    messages: msgspec.Raw  # an array of them, read by whoever knows what they are
    groups: list[int]
    owners: msgspec.Raw = NONE  # an array: what was told about the owners of groups 1, 2, ...
    again: bool = (
        False  # another process in the receiver's slot may have had these and have died with them, or not quite
    )
    behind: int = -1  # the batch it follows; -1 for the number before its own


class Greeting(msgspec.Struct, array_like=True, frozen=True):
    """Who answers, and the last batch it has from the asker."""

    boot: str
    last: int
    longer: dict[int, list[int]] = {}  # what the latest batches were answered


class Courier:
    """One worker's lanes to all others, and what they call here. A lifecycle part."""

    def __init__(
        self, slot: int, peers: Mapping[int, Caller], office: Office, *, settings: CourierSettings | None = None
    ) -> None:
        self.settings = settings or CourierSettings()
        self.slot = slot
        self.office = office
        self.boot = clock.token_bytes(8).hex()
        self.messages_received = 0
        self._boots: dict[int, str] = {}
        self._heard: dict[int, tuple[str, int]] = {}  # from each slot: its process, the last batch
        self._answers: dict[int, dict[int, list[int]]] = {}
        self._tasks: Tasks | None = None
        far = {one: remote(Courier, peer, SERVICE, only=METHODS) for one, peer in peers.items()}
        self._lanes = {one: _Lane(self, desk, one) for one, desk in far.items()}

    def send(self, slot: int, message: object, owner: object | None = None) -> None:
        """Tell the worker in a slot one value; `owner` waits until it is safe there.

        It leaves at the end of the tick. May raise Overloaded.
        """
        self._lanes[slot].send(message, owner)

    def way(self, slot: int) -> Callable[[object, object | None], None]:
        """`send` to one slot, for whoever sends there again and again."""
        return self._lanes[slot].send

    def start_task(self, work: Coroutine[Any, Any, None]) -> None:
        """Run the work of a lane."""
        if self._tasks is not None:
            self._tasks.start(work, SERVICE)
        else:
            work.close()

    def met(self, slot: int, boot: str) -> None:
        """Somebody answers in a slot."""
        before, self._boots[slot] = self._boots.get(slot, boot), boot
        if before != boot:
            self.office.restarted(slot)

    def statistics(self) -> CourierStatistics:
        lanes = self._lanes.values()
        return CourierStatistics(
            sum(lane.sent for lane in lanes),
            self.messages_received,
            sum(lane.unsettled for lane in lanes),
            sum(lane.repeated for lane in lanes),
            sum(lane.given_up for lane in lanes),
        )

    # -- what the others call

    async def take(self, sender: int, boot: str, batch: Batch) -> list[int]:
        """Hand a batch on; the groups that wait longer.

        Raises Conflict (`out_of_order`) when the one before is missing, Rejected when it cannot be read; then it was not had.
        """
        self._check_started()
        last, number = self._last(sender, boot), batch.number
        if last != (number - 1 if batch.behind < 0 else batch.behind):
            raise Conflict(
                f"batch {number} does not follow {last}, the last one seen here", code="out_of_order", last=last
            )
        read = self.office.read(batch)
        if last == 0:
            self._answers.pop(sender, None)
        self._heard[sender] = (boot, number)
        self.messages_received += len(batch.groups)
        lane = self._lanes[sender]
        longer = list(self.office.received(boot, batch, read, lambda group: lambda: lane.tell(boot, number, group)))
        answers = self._answers.setdefault(sender, {})
        answers[number] = longer
        if len(answers) > 2 * FLYING_MAX:
            del answers[next(iter(answers))]
        return longer

    @idempotent
    async def hello(self, sender: int, boot: str) -> Greeting:
        """Who is here, and what it has of yours. Who asks for the first time began anew, and has nothing of ours."""
        self._check_started()
        if self._boots.get(sender, boot) != boot:
            self._lanes[sender].renew()
        last = self._last(sender, boot)
        return Greeting(self.boot, last, self._answers.get(sender, {}) if last else {})

    @idempotent
    async def settle(self, sender: int, teller: str, boot: str, safe: list[tuple[int, int]]) -> None:
        """These groups of these batches are safe at `sender`.

        Numbers mean something between two processes only: what a killed one said last may come after its successor was met.
        """
        self._check_started()
        if boot == self.boot and teller == self._boots.get(sender):
            self._lanes[sender].settle(safe)

    # -- lifecycle

    async def start(self, tasks: Tasks) -> None:
        self._tasks = tasks
        for lane in self._lanes.values():
            lane.begin()

    async def drain(self) -> None:
        """Wait a moment for what was sent."""
        until = clock.monotonic_s() + 1.0
        while any(lane.waiting for lane in self._lanes.values()) and clock.monotonic_s() < until:
            await clock.sleep(0.005)

    async def stop(self) -> None:
        self._tasks = None

    def _check_started(self) -> None:
        """A worker that begins is asked before its house is open: what it took then, nobody would hand on."""
        if self._tasks is None:
            raise Unavailable("this worker is starting or stopping", code="not_started")

    def _last(self, sender: int, boot: str) -> int:
        heard = self._heard.get(sender)
        return heard[1] if heard is not None and heard[0] == boot else 0


METHODS = frozenset(("take", "hello", "settle"))


def _array(count: int, written: bytearray) -> msgspec.Raw:
    """So many values, one behind the other, as the array they are in msgpack."""
    return msgspec.Raw(b"\xdc" + count.to_bytes(2, "big") + written)


class _Load:
    """A batch on the sender's side, from its first message until all its owners' waits are over."""

    __slots__ = (
        "again",
        "behind",
        "groups",
        "number",
        "owners",
        "taken",
        "tokens",
        "told",
        "tried",
        "waits",
        "written",
    )

    def __init__(self) -> None:
        self.number = self.behind = 0
        self.written = bytearray()  # while it is filled: its messages, one behind the other
        self.owners: list[object] = []
        self.told = (NONE, NONE)  # then: the messages and the owners as they travel
        self.again = False
        self.groups: list[int] = []
        self.tokens: dict[object, int] = {}  # owner: its group, in order
        self.waits: dict[int, tuple[object, int]] = {}  # group: owner and its token
        self.tried = self.taken = False


class _Lane:
    """The way to one other worker."""

    __slots__ = (
        "_begun", "_courier", "_far", "_flying", "_fresh", "_loads", "_numbers", "_process", "_reaching", "_safe", "_slot",
        "_telling", "_up", "given_up", "repeated", "sent", "unsettled",
    )  # fmt: skip

    def __init__(self, courier: Courier, far: Courier, slot: int) -> None:
        self._courier = courier
        self._far = far
        self._slot = slot
        self.sent = self.unsettled = self.repeated = self.given_up = 0
        self._flying = 0
        self._numbers = 0  # the last batch
        self._fresh: _Load | None = None  # being filled
        self._loads: dict[int, _Load] = {}  # not settled, in order
        self._begun = 0  # the last batch that was sent
        self._process = ""  # the one that was greeted last
        self._up = False  # greeted, and nothing was lost since
        self._reaching = False
        self._safe: list[tuple[str, int, int]] = []  # to tell the other side: its process, batch, group
        self._telling = False

    @property
    def waiting(self) -> bool:
        """Whether messages were not taken yet."""
        return self._fresh is not None or any(not load.taken for load in self._loads.values())

    def begin(self) -> None:
        """Greet the other side."""
        if not self._reaching:
            self._reaching = True
            self._courier.start_task(self._reach())

    def renew(self) -> None:
        """The other side is another process: find out what it lacks."""
        self._up = False
        self.begin()

    def send(self, message: object, owner: object | None) -> None:
        """See `Courier.send`."""
        load = self._fresh
        if load is None or len(load.groups) >= BATCH_MAX or len(load.written) >= BATCH_BYTES_MAX:
            load = self._load()
        written = load.written
        before = len(written)
        try:
            _encode_behind(message, written, -1)  # while it is in the caches; later it costs four times as much
        except Exception:
            del written[before:]  # what others sent goes on
            raise
        if owner is None:
            group = NOBODY
        else:
            found = load.tokens.get(owner)
            if found is None:
                office = self._courier.office
                group = load.tokens[owner] = len(load.tokens) + 1
                load.waits[group] = (owner, office.begin(owner))
                load.owners.append(office.introduce(owner))
            else:
                group = found
        load.groups.append(group)

    def settle(self, safe: list[tuple[int, int]]) -> None:
        """These groups are safe at the other side."""
        for number, group in safe:
            load = self._loads.get(number)
            if load is not None:
                self._end(load, group)
                self._drop_done(load)

    def tell(self, boot: str, number: int, group: int) -> None:
        """A group of the other side's batch is safe here."""
        self._safe.append((boot, number, group))
        if not self._telling:
            self._telling = True
            self._courier.start_task(self._tell())

    def _load(self) -> _Load:
        """A fresh batch, which leaves at the end of this tick."""
        if self.unsettled >= self._courier.settings.unsettled_max:
            raise Overloaded("too many messages wait for another worker", retry_after_s=1.0, code="lane_full")
        if self._fresh is not None:
            self._leave()
        else:
            asyncio.get_running_loop().call_soon(self._leave_unless_busy)
        load = self._fresh = _Load()
        return load

    def _leave_unless_busy(self) -> None:
        """The tick is over; with enough under way, its batch waits for one of them and for more messages."""
        if self._flying < FLYING_MAX:
            self._leave()

    def _leave(self) -> None:
        load, self._fresh = self._fresh, None
        if load is None:
            return
        load.told = (_array(len(load.groups), load.written), msgspec.Raw(_encode(load.owners)))
        load.written, load.owners, load.tokens = bytearray(), [], {}
        self._enter(load)
        self._fly_next()

    def _enter(self, load: _Load) -> None:
        self._numbers = load.number = self._numbers + 1
        load.behind = load.number - 1
        self._loads[load.number] = load
        self.sent += len(load.groups)
        self.unsettled += len(load.groups)

    def _fly_next(self) -> None:
        """Send what waits, in order, as far as there is room."""
        while self._up and self._flying < FLYING_MAX and self._begun < self._numbers:
            self._begun += 1
            self._flying += 1
            self._courier.start_task(self._carry(self._loads[self._begun]))

    async def _carry(self, load: _Load) -> None:
        """One call; whatever went wrong is found out by greeting again."""
        try:
            await self._take(load)
        except FourplaneError:
            self.renew()
        finally:
            self._flying -= 1
        self._fly_next()
        self._leave_unless_busy()

    async def _take(self, load: _Load) -> None:
        courier = self._courier
        load.tried = True
        batch = Batch(load.number, load.told[0], load.groups, load.told[1], load.again, load.behind)
        try:
            with call_context.within(CALL_S):
                longer = await self._far.take(courier.slot, courier.boot, batch)
        except Rejected as error:
            if not isinstance(error, Unauthenticated | Forbidden):  # sending it again will not help
                self._lose([load])
            raise
        self._answered(load, longer)

    def _answered(self, load: _Load, longer: list[int]) -> None:
        load.taken = True
        for group in [group for group in load.waits if group not in longer] if longer else list(load.waits):
            self._end(load, group)
        self._drop_done(load)

    def _end(self, load: _Load, group: int) -> None:
        found = load.waits.pop(group, None)
        if found is not None:
            self._courier.office.end(*found)

    def _drop_done(self, load: _Load) -> None:
        if load.taken and not load.waits and self._loads.pop(load.number, None) is not None:
            self.unsettled -= len(load.groups)

    async def _reach(self) -> None:
        """Greet until somebody answers, then send what that process has not, in order; then the lane is up."""
        courier, patience_s = self._courier, self._courier.settings.patience_s
        until, process = clock.monotonic_s() + patience_s, ""
        while True:
            there = False
            try:
                with call_context.within(CALL_S):
                    greeting = await self._far.hello(courier.slot, courier.boot)
                there = True
                if process != greeting.boot:
                    until, process = clock.monotonic_s() + patience_s, greeting.boot
                courier.met(self._slot, greeting.boot)
                self._look_back(greeting)
                while (load := self._next()) is not None:
                    self.repeated += len(load.groups)
                    await self._take(load)
                    until = clock.monotonic_s() + patience_s
                self._reaching, self._up, self._begun = False, True, self._numbers
                return
            except FourplaneError:
                if clock.monotonic_s() > until:  # what a process that is there has taken is in good hands
                    self._lose([load for load in self._loads.values() if not (there and load.taken)])
                await clock.sleep(RETRY_S)

    def _look_back(self, greeting: Greeting) -> None:
        """What of ours does the process that answers have? A new one has nothing: what was not safe is numbered anew."""
        last, known, self._process = greeting.last, greeting.boot == self._process, greeting.boot
        if last == 0 and not known:
            loads, self._loads = self._loads, {}
            self.unsettled = 0
            for load in loads.values():
                if load.taken:  # only what somebody still waits for
                    kept = [one for one in zip(_each(load.told[0]), load.groups, strict=True) if one[1] in load.waits]
                    load.told = (msgspec.Raw(_encode([one for one, _ in kept])), load.told[1])
                    load.groups = [group for _, group in kept]
                load.taken, load.again = False, load.tried
                self._enter(load)
        for load in [one for one in self._loads.values() if not one.taken and one.number <= last]:
            self._answered(load, greeting.longer.get(load.number, []))  # its answer was lost with the connection
        if (following := self._next()) is not None:
            following.behind = last  # it began anew, or those between were lost

    def _next(self) -> _Load | None:
        """The oldest batch that was not taken."""
        return next((load for load in self._loads.values() if not load.taken), None)

    def _lose(self, loads: list[_Load]) -> None:
        """The other side did not take these: they are lost, and their owners hear of it."""
        for load in loads:
            if self._loads.pop(load.number, None) is None:
                continue
            self.unsettled -= len(load.groups)
            self.given_up += len(load.groups)
            owners = _each(load.told[1])
            for message, group in zip(_each(load.told[0]), load.groups, strict=True):
                self._courier.office.lost(message, owners[group - 1] if group != NOBODY else None)
            for group in list(load.waits):
                self._end(load, group)

    async def _tell(self) -> None:
        """Say what is safe, until it was heard or its sender is another process by now."""
        while self._safe:
            told, self._safe = self._safe, []
            by_boot: dict[str, list[tuple[int, int]]] = {}
            for boot, number, group in told:
                by_boot.setdefault(boot, []).append((number, group))
            for boot, safe in by_boot.items():
                until = clock.monotonic_s() + self._courier.settings.patience_s
                while clock.monotonic_s() < until:
                    try:
                        with call_context.within(CALL_S):
                            await self._far.settle(self._courier.slot, self._courier.boot, boot, safe)
                        break
                    except FourplaneError:
                        await clock.sleep(RETRY_S)
        self._telling = False

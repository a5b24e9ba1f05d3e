"""Messages for what other workers own: in order, joined per tick, each handled once, kept until they are safe there.

A call asks and waits; a message is told and answered later, if at all. Every pair of workers has a lane in each direction. A
message gets the lane's next number and leaves with the others of its tick in one call (`take`). The receiver hands each number on
once and says later which ones are safe (`settle`): until then the sender keeps them, because the owner may die with what it
took. When the connection breaks, the sender asks (`hello`) who is there and what that process has taken: the same process
gets the rest, a new one gets everything that was never safe. So an owner's restart costs its callers time, not messages.

Invariants: numbers of one lane are handed on in order; no process hands on a number twice; a message ends exactly once, safe or
not. Bounds: `unsettled_max` messages a lane (then `send` raises Overloaded), `patience_s` for an owner that does not come back.
Cost: 2 to 3 us a message, both sides together (`benchmarks/runtime.py`).
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, FourplaneError, Overloaded
from fourplane.foundation.lifecycle import Tasks
from fourplane.service import call_context
from fourplane.service.rpc import Caller, idempotent, remote

SERVICE = "courier"
RETRY_S = 0.02
CALL_S = 10.0
AT_ONCE = 256  # messages in one call

Settled = Callable[[bool], None]  # whether it is safe
Safe = Callable[[], None]
Deliver = Callable[[int, msgspec.Raw, Safe | None], None]  # from which slot, the message, whom to tell


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


class Greeting(msgspec.Struct, array_like=True, frozen=True):
    """Who answers, and the last number it has from the asker."""

    boot: str
    last: int


class Batch(msgspec.Struct, array_like=True, frozen=True):
    """Messages of one lane."""

    previous: int  # the last number before them
    first: int
    messages: list[msgspec.Raw]
    wanted: list[int]  # the numbers somebody waits for


class Courier:
    """One worker's lanes to all others, and what they call here. A lifecycle part."""

    def __init__(
        self,
        slot: int,
        peers: Mapping[int, Caller],
        deliver: Deliver,
        *,
        restarted: Callable[[int], None] | None = None,
        settings: CourierSettings | None = None,
    ) -> None:
        """`restarted` hears of a slot whose worker is another process than the one heard of before."""
        self.settings = settings or CourierSettings()
        self.slot = slot
        self.boot = clock.token_bytes(8).hex()
        self.received = 0
        self._deliver = deliver
        self._restarted = restarted
        self._boots: dict[int, str] = {}
        self._lanes = {
            one: _Lane(self, remote(Courier, peer, SERVICE, only=METHODS), one) for one, peer in peers.items()
        }
        self._heard: dict[int, tuple[str, int]] = {}  # from each slot: its process, the last number
        self._tasks: Tasks | None = None

    def send(self, slot: int, message: bytes, settled: Settled | None = None) -> None:
        """Tell the owner in another slot; `settled` hears once whether it is safe there. Raises Overloaded past the bound."""
        self._lanes[slot].send(message, settled)

    def start_task(self, work: Coroutine[Any, Any, None]) -> None:
        """Run the work of a lane."""
        if self._tasks is not None:
            self._tasks.start(work, SERVICE)
        else:
            work.close()

    def statistics(self) -> CourierStatistics:
        lanes = self._lanes.values()
        return CourierStatistics(
            sum(lane.number for lane in lanes),
            self.received,
            sum(len(lane.unsettled) for lane in lanes),
            sum(lane.repeated for lane in lanes),
            sum(lane.given_up for lane in lanes),
        )

    def met(self, slot: int, boot: str) -> None:
        """Somebody answers in a slot."""
        before, self._boots[slot] = self._boots.get(slot, boot), boot
        if before != boot and self._restarted is not None:
            self._restarted(slot)

    # -- what the others call

    async def take(self, sender: int, boot: str, batch: Batch) -> None:
        """Hand the messages of a batch on; raises Conflict (`out_of_order`) when those before them did not arrive here."""
        first, messages, wanted, previous = batch.first, batch.messages, batch.wanted, batch.previous
        last = self._last(sender, boot)
        if last < previous:
            raise Conflict(f"{previous} was not seen here", code="out_of_order")
        wants = set(wanted)
        for number, message in enumerate(messages, first):
            if number <= last:
                continue  # came before the connection broke
            self._heard[sender] = (boot, number)
            self.received += 1
            safe = self._lanes[sender].telling(boot, number) if number in wants else None
            self._deliver(sender, message, safe)

    @idempotent
    async def hello(self, sender: int, boot: str) -> Greeting:
        """Who is here, and what it has of yours."""
        return Greeting(self.boot, self._last(sender, boot))

    @idempotent
    async def settle(self, sender: int, boot: str, numbers: list[int]) -> None:
        """These are safe at `sender`; of an earlier process here they mean nothing."""
        if boot == self.boot:
            self._lanes[sender].settle(numbers)

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

    def _last(self, sender: int, boot: str) -> int:
        heard = self._heard.get(sender)
        return heard[1] if heard is not None and heard[0] == boot else 0


METHODS = frozenset(("take", "hello", "settle"))


class _Lane:
    """The way to one other worker."""

    __slots__ = (
        "_courier", "_far", "_fresh", "_fresh_first", "_reaching", "_safe", "_scheduled", "_slot", "_telling", "_up",
        "given_up",
        "number", "repeated", "unsettled",
    )  # fmt: skip

    def __init__(self, courier: Courier, far: Courier, slot: int) -> None:
        self._courier = courier
        self._slot = slot
        self._far = far
        self.number = 0
        self.unsettled: dict[int, tuple[bytes, Settled | None]] = {}
        self.repeated = self.given_up = 0
        self._fresh: list[int] = []  # numbers that leave at the end of this tick
        self._up = False  # greeted, and nothing was lost since
        self._reaching = False
        self._scheduled = False
        self._safe: list[tuple[str, int]] = []  # to tell the other side: its process, its number
        self._telling = False

    @property
    def waiting(self) -> bool:
        """Whether messages were not taken yet."""
        return bool(self._fresh) or (self._reaching and bool(self.unsettled))

    def begin(self) -> None:
        """Greet the other side."""
        if not self._reaching:
            self._reaching = True
            self._courier.start_task(self._reach())

    def send(self, message: bytes, settled: Settled | None) -> None:
        """See `Courier.send`."""
        if len(self.unsettled) >= self._courier.settings.unsettled_max:
            raise Overloaded("too many messages wait for another worker", retry_after_s=1.0, code="lane_full")
        self.number = number = self.number + 1
        self.unsettled[number] = (message, settled)
        if self._up:
            fresh = self._fresh
            fresh.append(number)
            if len(fresh) >= AT_ONCE:
                self._leave()
            elif not self._scheduled:
                self._scheduled = True
                asyncio.get_running_loop().call_soon(self._leave)

    def settle(self, numbers: list[int]) -> None:
        """These are safe at the other side."""
        for number in numbers:
            found = self.unsettled.pop(number, None)
            if found is not None and found[1] is not None:
                found[1](True)

    def telling(self, boot: str, number: int) -> Safe:
        """What to call when a message of the other side is safe here."""

        def safe() -> None:
            self._safe.append((boot, number))
            if not self._telling:
                self._telling = True
                self._courier.start_task(self._tell())

        return safe

    def _leave(self) -> None:
        self._scheduled = False
        fresh, self._fresh = self._fresh, []
        if fresh and self._up:
            self._courier.start_task(self._carry(fresh))

    async def _carry(self, numbers: list[int]) -> None:
        """One call; whatever went wrong is found out by greeting again."""
        try:
            await self._take(numbers, numbers[0] - 1)
        except FourplaneError:
            self._up = False
            self.begin()

    async def _take(self, numbers: list[int], previous: int) -> None:
        courier, unsettled = self._courier, self.unsettled
        if any(number not in unsettled for number in numbers):
            return  # given up meanwhile
        messages = [msgspec.Raw(unsettled[number][0]) for number in numbers]
        wanted = [number for number in numbers if unsettled[number][1] is not None]
        with call_context.within(CALL_S):
            await self._far.take(courier.slot, courier.boot, Batch(previous, numbers[0], messages, wanted))
        for number in numbers:
            found = unsettled.get(number)
            if found is not None and found[1] is None:
                del unsettled[number]

    async def _reach(self) -> None:
        """Greet until somebody answers, then send what that process has not, in order; then the lane is up."""
        courier = self._courier
        until = clock.monotonic_s() + courier.settings.patience_s
        known = ""
        sent = 0
        while True:
            try:
                with call_context.within(CALL_S):
                    greeting = await self._far.hello(courier.slot, courier.boot)
                until = clock.monotonic_s() + courier.settings.patience_s
                courier.met(self._slot, greeting.boot)
                if greeting.boot != known or greeting.last < sent:
                    known, sent = greeting.boot, greeting.last
                self._drop_taken(greeting.last)
                while rest := self._next(sent):
                    self.repeated += len(rest)
                    await self._take(rest, sent)
                    sent = rest[-1]
                self._reaching, self._up = False, True
                return
            except FourplaneError:
                if clock.monotonic_s() > until:
                    self._give_up()
                    until = clock.monotonic_s() + courier.settings.patience_s
                await clock.sleep(RETRY_S)

    def _drop_taken(self, last: int) -> None:
        """Messages nobody waits for are over once they were taken."""
        for number in [n for n, (_, settled) in self.unsettled.items() if n <= last and settled is None]:
            del self.unsettled[number]

    def _next(self, sent: int) -> list[int]:
        """The next run of numbers without a gap behind `sent`."""
        run: list[int] = []
        for number in self.unsettled:
            if number <= sent:
                continue
            if run and (number != run[-1] + 1 or len(run) >= AT_ONCE):
                break
            run.append(number)
        return run

    def _give_up(self) -> None:
        """Nobody came back in time: everything that waits is not safe."""
        lost, self.unsettled = self.unsettled, {}
        self._fresh = []
        self.given_up += len(lost)
        for _, settled in lost.values():
            if settled is not None:
                settled(False)

    async def _tell(self) -> None:
        """Say what is safe, until it was heard or its sender is another process by now."""
        while self._safe:
            told, self._safe = self._safe, []
            by_boot: dict[str, list[int]] = {}
            for boot, number in told:
                by_boot.setdefault(boot, []).append(number)
            for boot, numbers in by_boot.items():
                until = clock.monotonic_s() + self._courier.settings.patience_s
                while clock.monotonic_s() < until:
                    try:
                        with call_context.within(CALL_S):
                            await self._far.settle(self._courier.slot, boot, numbers)
                        break
                    except FourplaneError:
                        await clock.sleep(RETRY_S)
        self._telling = False

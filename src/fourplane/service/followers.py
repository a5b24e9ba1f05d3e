"""Participants whose commit nobody waits for.

When a transaction is decided its outcome is certain: whatever is left can only be repeated until it is done, by this process or
by the one after a crash, because the decision's row waits for it. So a caller need not wait for a participant that says so by
having a `commit_many`: the decided transactions of a moment go to it together, in one call, behind the callers' answers.

What a call could not do for some is done for each of them alone, again and again; the line goes on meanwhile. Bounds: at most
`behind_max` transactions are behind before callers wait for their own (up to `confirm_s`), `batch_max` go in a call,
`batches_max` calls are under way, so that one that hangs does not hold up the next.

While more than `crowd` transactions wait for their decision, those that have theirs wait too, for up to `hold_s`: what a moment's
standstill left behind is sooner done when nothing but that is done.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.lifecycle import Tasks
from fourplane.service.participants import Follower, Transaction

BATCHES_BEHIND = 4  # with more in line than so many, two go at a time, and so on


class FollowerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far commits may be behind their answers, and how many go together."""

    pace_s: float = 0.02
    batch_max: int = 64
    batches_max: int = 4
    behind_max: int = 2_000
    crowd: int = 48
    hold_s: float = 0.25


class _Decided:
    __slots__ = ("names", "since_s", "transaction", "waiter")

    def __init__(self, transaction: Transaction, names: Sequence[str]) -> None:
        self.transaction = transaction
        self.names = names
        self.since_s = clock.monotonic_s()
        self.waiter: asyncio.Future[None] | None = None


class Behind:
    """The line of decided transactions in front of the followers.

    `alone` drives one transaction at the participants named until they have confirmed; `settled` hears that all have;
    `undecided` tells how many wait for their decision.
    """

    def __init__(
        self,
        settings: FollowerSettings,
        followers: Mapping[str, Follower],
        *,
        alone: Callable[[Transaction, Sequence[str]], Awaitable[None]],
        settled: Callable[[Transaction], None],
        undecided: Callable[[], int],
    ) -> None:
        self._undecided = undecided
        self._settings = settings
        self._followers = followers
        self._alone = alone
        self._settled = settled
        self._waiting: deque[_Decided] = deque()
        self._tasks: Tasks | None = None
        self._moving = False
        self._batches = self._count = 0
        self._less = asyncio.Event()

    def open(self, tasks: Tasks) -> None:
        """From now on followers are told among these tasks."""
        self._tasks = tasks

    def close(self) -> None:
        """What is still in line is for the next start."""
        self._tasks = None
        for one in self._waiting:
            _release(one)
        self._waiting.clear()

    @property
    def count(self) -> int:
        """Decided transactions that some follower has not confirmed."""
        return self._count

    async def add(self, transaction: Transaction, names: Sequence[str], patience_s: float) -> None:
        """Tell these followers soon. Returns at once, or with too many behind when they have confirmed, or patience ends."""
        if self._tasks is None:
            return
        one = _Decided(transaction, names)
        self._waiting.append(one)
        self._count += 1
        if not self._moving:
            self._moving = True
            self._tasks.start(self._move(), "followers")
        if self._count > self._settings.behind_max:
            one.waiter = asyncio.get_running_loop().create_future()
            await asyncio.wait((one.waiter,), timeout=patience_s)

    async def _move(self) -> None:
        """Batch after batch until nobody is in line."""
        settings = self._settings
        try:
            while self._waiting and self._tasks is not None:
                await self._pause()
                while self._batches >= settings.batches_max:
                    self._less.clear()
                    await self._less.wait()
                most = 1 + len(self._waiting) // (BATCHES_BEHIND * settings.batch_max)
                for _ in range(min(most, settings.batches_max - self._batches)):
                    batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), settings.batch_max))]
                    if batch and self._tasks is not None:
                        self._batches += 1
                        self._tasks.start(self._tell(batch), "follow")
        finally:
            self._moving = False

    async def _pause(self) -> None:
        """Let more come, and a crowd go first."""
        settings = self._settings
        await clock.sleep(settings.pace_s)
        while (
            self._waiting
            and self._undecided() > settings.crowd
            and clock.monotonic_s() < self._waiting[0].since_s + settings.hold_s
        ):
            await clock.sleep(settings.pace_s)

    async def _tell(self, batch: list[_Decided]) -> None:
        """One call to each follower; what it leaves is driven alone."""
        by_name: dict[str, list[Transaction]] = {}
        for one in batch:
            for name in one.names:
                by_name.setdefault(name, []).append(one.transaction)
        left: dict[int, list[str]] = {}
        try:
            if len(by_name) == 1:
                [(name, these)] = by_name.items()
                answers = [await self._ask(name, these)]
            else:
                answers = await asyncio.gather(*(self._ask(name, these) for name, these in by_name.items()))
            for name, rest in zip(by_name, answers, strict=True):
                for transaction in rest:
                    left.setdefault(transaction.id, []).append(name)
        finally:
            self._batches -= 1
            self._less.set()
        for one in batch:
            names = left.get(one.transaction.id)
            if names is None:
                self._confirmed(one)
            elif self._tasks is not None:
                self._tasks.start(self._drive(one, names), "follow alone")

    async def _ask(self, name: str, transactions: list[Transaction]) -> Sequence[Transaction]:
        try:
            return await self._followers[name].commit_many(transactions)
        except Exception:  # noqa: BLE001 - each is driven alone now, and its story tells what is wrong
            return transactions

    async def _drive(self, one: _Decided, names: Sequence[str]) -> None:
        try:
            await self._alone(one.transaction, names)
        finally:
            _release(one)
        self._confirmed(one)

    def _confirmed(self, one: _Decided) -> None:
        self._count -= 1
        _release(one)
        self._settled(one.transaction)


def _release(one: _Decided) -> None:
    if one.waiter is not None and not one.waiter.done():
        one.waiter.set_result(None)

"""All participants do it, or none does, whatever crashes in between.

Presumed abort (Mohan, Lindsay 1983): participants promise durably (`prepare`), the coordinator writes one durable row saying
COMMIT, then tells everyone. That row is the only moment that counts. A transaction without the row is aborted; so aborts
need no log, and a crash before the row needs nothing but letting go. After a crash the next coordinator of the same name
raises its epoch, drives every logged commit to its end, and asks each participant what is in doubt: whatever belongs to an older
epoch and is not in the log is aborted. Recovery ends before the listener opens.

Fencing: the row is written under the condition that the coordinator's epoch is still its own, so one that was thought dead
and wakes up late cannot decide any more. An unknown outcome of that write (the store vanished mid-way) is settled by writing
ABORT under the same primary key: exactly one of the two rows can exist.

The last agent (Gray 1978). A participant whose rows lie in the very store of the decision log need not promise anything: its
part is done, whole and on condition, in the commit of the decision itself. It sets aside in memory what it will need
(`enlist`), the others promise, then one commit decides and does the part of every last agent (`complete`), or nothing. What
was set aside in memory is gone with a crash, like the transaction. With order, stock and decisions in one store a checkout has
one commit there, and a second where something must be known before the card network is asked.

Followers (`followers`). A participant that can commit many at once is told behind the callers' answers, with all others of the
moment: nothing can change the outcome any more, and the decision's row waits for its confirmation.

Invariants: prepare, commit and abort of a participant are idempotent; commit is only called behind a durable row; abort only
where no row can appear. A caller who gives up does not stop a transaction: it runs to its end and can be asked about.
Cost: one durable row per transaction, shared with every transaction that decides while the last write was under way; removal
of finished rows rides along. About 160 us of CPU with an embedded log, besides the participants' own work.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, FourplaneError, Misconfigured, Overloaded, Unavailable
from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.prompt_future import PromptFuture
from fourplane.foundation.telemetry import Histogram
from fourplane.service.decision_log import DecisionLog
from fourplane.service.followers import Behind, FollowerSettings
from fourplane.service.participants import Follower, LastAgent, Participant, Transaction
from fourplane.service.shared_commit import SharedCommit, SharedCommitStatistics, Work
from fourplane.state.contracts import Sql, Statement

DRAFTS_MAX = 12


class Branch(msgspec.Struct, frozen=True):
    """One participant's part. Branches of a later wave are prepared only when all earlier ones said yes."""

    participant: str
    work: object
    wave: int = 0


class _Plan:
    """Who does what, sorted out once: last agents, the others' names, the waves of both, who of the others is waited for."""

    __slots__ = ("agents", "awaited", "following", "others", "waves")

    def __init__(
        self, branches: Sequence[Branch], agents: dict[str, LastAgent], followers: dict[str, Follower]
    ) -> None:
        self.agents: list[Branch] = []
        self.others: list[str] = []
        self.awaited: list[str] = []
        self.following: list[str] = []
        self.waves: dict[int, tuple[list[Branch], list[Branch]]] = {}
        for branch in branches:
            name = branch.participant
            wave = self.waves.get(branch.wave)
            if wave is None:
                wave = self.waves[branch.wave] = ([], [])
            if name in agents:
                self.agents.append(branch)
                wave[0].append(branch)
                continue
            self.others.append(name)
            (self.following if name in followers else self.awaited).append(name)
            wave[1].append(branch)


class Outcome(msgspec.Struct, frozen=True):
    """A committed transaction: what each `prepare` returned, and whether every participant had confirmed by then."""

    transaction: Transaction
    results: dict[str, object]
    settled: bool


class CommitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    open_max: int = 10_000
    prepare_s: float = 10.0
    confirm_s: float = 2.0
    recovery_s: float = 10.0
    retry_s: float = 0.05
    retry_s_max: float = 5.0
    sweep_s: float = 60.0
    stories_max: int = 1_000
    followers: FollowerSettings = FollowerSettings()


class CommitStatistics(msgspec.Struct, frozen=True):
    epoch: int
    open: int
    committed: int
    aborted: int
    unsettled: int
    recovered: int
    decision_writes: int
    seconds: Histogram


class Coordinator:
    """Runs transactions over its participants. A lifecycle part: start it before the listener."""

    def __init__(
        self,
        sql: Sql,
        name: str,
        participants: dict[str, Participant],
        *,
        ids: IdGenerator,
        settings: CommitSettings | None = None,
    ) -> None:
        assert all(name and " " not in name for name in participants), "participants' names are words"
        self._name = name
        self._participants = participants
        self._ids = ids
        self._settings = settings or CommitSettings()
        self._shared = SharedCommit(sql)
        self._log = DecisionLog(sql, name, self._shared)
        self._agents: dict[str, LastAgent] = {
            name: one for name, one in participants.items() if isinstance(one, LastAgent) and one.store is sql
        }
        self._followers: dict[str, Follower] = {
            name: one for name, one in participants.items() if name not in self._agents and isinstance(one, Follower)
        }
        self._behind = Behind(
            self._settings.followers,
            self._followers,
            alone=self._confirm_commit,
            settled=self._followed,
            undecided=lambda: self._undecided,
        )
        self._undecided = 0
        self._prepared = {name: f"{name} is prepared" for name in participants}
        self._tasks: Tasks | None = None
        self._open: set[int] = set()  # until everybody has confirmed
        self._callers: dict[int, asyncio.Future[Outcome]] = {}
        self._suspects: set[tuple[int, str]] = set()
        self._stories: OrderedDict[int, list[str]] = OrderedDict()
        self._draining = False
        self._idle = asyncio.Event()
        self._committed = self._aborted = self._recovered = self._unsettled = 0
        self._seconds = Histogram()

    @property
    def epoch(self) -> int:
        """How often a coordinator of this name has started."""
        return self._log.epoch

    async def start(self, tasks: Tasks) -> None:
        """Take over from the last coordinator of this name and settle what it left open, for up to `recovery_s`.

        What a participant cannot confirm by then goes on in the background; it still holds what it promised.
        """
        self._tasks = tasks
        self._shared.open(tasks)
        self._behind.open(tasks)
        await self._log.open()
        decided = [
            (Transaction(number, self._name, self.epoch), names) for number, names in await self._log.unfinished()
        ]
        missing = sorted({name for _, names in decided for name in names} - set(self._participants))
        if missing:
            raise Misconfigured(f"transactions of {self._name} wait for participants that are gone: {missing}")
        self._open.update(transaction.id for transaction, _ in decided)
        doubted = await self._doubted()
        settling = [
            tasks.start(self._settle(transaction, names, "commit"), "recover") for transaction, names in decided
        ]
        settling += [tasks.start(self._settle(*one, "abort"), "recover") for one in doubted.items()]
        self._recovered += len(settling)
        if settling:
            await asyncio.wait(settling, timeout=self._settings.recovery_s)
        tasks.start(self._sweep(), "sweep")

    async def drain(self) -> None:
        """Take no new transaction; return when none is open."""
        self._draining = True
        await self.settle()

    async def settle(self) -> None:
        """Return when no transaction is open: everything decided is confirmed by everybody."""
        while self._open:
            self._idle.clear()
            await self._idle.wait()

    async def stop(self) -> None:
        """Tell callers that wait; unfinished transactions are settled by the next start."""
        self._draining = True
        self._tasks = None
        self._shared.close()
        self._behind.close()
        for future in list(self._callers.values()):  # also of those whose task never began
            _fail(future, _in_doubt())

    async def run(self, branches: Sequence[Branch]) -> Outcome:
        """Commit all branches or none; raises the first error of a `prepare` after everything was let go.

        Raises Overloaded with too many open transactions, Unavailable when a vote takes longer than `prepare_s`.

        A caller that is cancelled leaves the transaction running to its end.
        """
        if self._tasks is None or self._draining:
            raise Unavailable("the coordinator is not running", code="coordinator_stopped")
        if len(self._open) >= self._settings.open_max:
            raise Overloaded("too many open transactions", code="transactions_open")
        assert len({branch.participant for branch in branches}) == len(branches) > 0, "one branch per participant"
        transaction = Transaction(self._ids.next(), self._name, self.epoch)
        self._open.add(transaction.id)
        future: asyncio.Future[Outcome] = PromptFuture()
        self._callers[transaction.id] = future
        self._tasks.start_now(self._drive(transaction, branches, future), "transaction")
        return await future  # cancelling the caller cancels only this

    async def resolve(self) -> int:
        """Abort what participants hold in doubt and nobody drives; how many there were.

        Of an older epoch everything that was decided is driven since the start, so the rest is aborted. Of this epoch only a
        `prepare` that arrived behind its own abort can be left: it must be seen in two rounds, because a transaction may
        end between a participant's answer and our look at it.
        """
        doubted = await self._doubted()
        await asyncio.gather(*(self._settle(*one, "abort") for one in doubted.items()))
        self._recovered += len(doubted)
        return len(doubted)

    async def decision(self, transaction_id: int) -> Literal["commit", "abort", "open", "unknown"]:
        """What became of a transaction: `unknown` is aborted, or committed and confirmed everywhere."""
        found = await self._log.decision(transaction_id)
        if found is not None:
            return found
        return "open" if transaction_id in self._open else "unknown"

    def story(self, transaction_id: int) -> list[str]:
        """The steps of one of the last transactions, oldest first."""
        return list(self._stories.get(transaction_id, ()))

    def statistics(self) -> CommitStatistics:
        return CommitStatistics(
            self.epoch,
            len(self._open),
            self._committed,
            self._aborted,
            self._unsettled,
            self._recovered,
            self._shared.statistics().commits,
            self._seconds,
        )

    def sharing(self) -> SharedCommitStatistics:
        """How many callers shared how many commits of the log's store."""
        return self._shared.statistics()

    async def _drive(
        self, transaction: Transaction, branches: Sequence[Branch], future: "asyncio.Future[Outcome]"
    ) -> None:
        began = clock.monotonic_s()
        plan = _Plan(branches, self._agents, self._followers)
        self._undecided += 1
        try:
            results = await self._prepare_and_decide(transaction, plan)
        except asyncio.CancelledError:
            _fail(future, _in_doubt())
            raise
        except Exception as error:  # noqa: BLE001 - whatever a participant raised belongs to the caller
            self._aborted += 1
            self._close(transaction)
            _fail(future, error)
            return
        finally:
            self._undecided -= 1
        self._committed += 1
        self._unsettled += 1
        if plan.awaited:
            await self._awaited(transaction, plan.awaited, Outcome(transaction, results, settled=False), future)
        if plan.following:
            await self._behind.add(transaction, plan.following, self._settings.confirm_s)
        else:
            self._followed(transaction)
        _settle(future, Outcome(transaction, results, settled=not plan.following))
        self._seconds.record(clock.monotonic_s() - began)

    async def _awaited(
        self, transaction: Transaction, names: Sequence[str], late: Outcome, future: "asyncio.Future[Outcome]"
    ) -> None:
        """Until these have confirmed; the caller waits for it up to `confirm_s`."""
        timer = asyncio.get_running_loop().call_later(self._settings.confirm_s, _settle, future, late)
        try:
            await self._confirm(transaction, names, "commit")
        except BaseException:
            _settle(future, late)  # the coordinator stops; its successor goes on
            raise
        finally:
            timer.cancel()

    async def _confirm_commit(self, transaction: Transaction, names: Sequence[str]) -> None:
        await self._confirm(transaction, names, "commit")

    def _followed(self, transaction: Transaction) -> None:
        """Everybody has confirmed."""
        self._unsettled -= 1
        self._log.forget(transaction.id)
        self._close(transaction)

    async def _doubted(self) -> dict[Transaction, list[str]]:
        """What participants hold in doubt and nobody drives, with who holds it; it is open from now on.

        Nothing for one that was replaced: what is held may be its successor's. The successor raised the epoch before it
        asked anybody to hold, so looking at it behind the participants' answers is enough.
        """
        found: dict[Transaction, list[str]] = {}
        seen: set[tuple[int, str]] = set()
        held = [(name, await one.in_doubt(self._name)) for name, one in self._participants.items()]
        if not await self._log.leads():
            return found
        for name, transactions in held:
            for transaction in transactions:
                if transaction.id in self._open or transaction.epoch > self.epoch:
                    continue
                key = (transaction.id, name)
                if transaction.epoch == self.epoch and key not in self._suspects:
                    seen.add(key)
                    continue
                self._tell(transaction, f"in doubt at {name}, decided by nobody")
                found.setdefault(transaction, []).append(name)
        self._suspects = seen
        self._open.update(transaction.id for transaction in found)
        return found

    async def _settle(self, transaction: Transaction, names: list[str], verdict: Literal["commit", "abort"]) -> None:
        """Bring what an earlier process left open to its end."""
        await self._confirm(transaction, names, verdict)
        if verdict == "commit":
            self._log.forget(transaction.id)
        self._close(transaction)

    def _close(self, transaction: Transaction) -> None:
        self._open.discard(transaction.id)
        self._callers.pop(transaction.id, None)
        self._idle.set()

    async def _prepare_and_decide(self, transaction: Transaction, plan: _Plan) -> dict[str, object]:
        results: dict[str, object] = {}
        asked: list[str] = []
        others, agents = plan.others, plan.agents
        try:
            for _, (enlisting, voting) in sorted(plan.waves.items()) if len(plan.waves) > 1 else plan.waves.items():
                asked += [branch.participant for branch in voting]
                await self._ask(transaction, enlisting, voting, results)
        except Exception as error:
            await self._let_go(transaction, agents, asked, error)
            raise
        try:
            await self._decide(transaction, others, agents, results)
        except FourplaneError as error:
            sure = isinstance(error, Conflict)  # nothing was written, and nothing will be
            if not sure and not await self._try_abort(transaction, others):
                for branch in agents:
                    self._agents[branch.participant].completed(transaction)
                return results  # the row was there after all
            await self._let_go(transaction, agents, others, error)
            if not sure:
                self._log.forget(transaction.id)
            raise
        self._tell(transaction, "decided to commit")
        for branch in agents:
            self._agents[branch.participant].completed(transaction)
        return results

    async def _let_go(
        self, transaction: Transaction, agents: Sequence[Branch], asked: Sequence[str], error: Exception
    ) -> None:
        self._tell(transaction, f"abort: {error!r}")
        for branch in agents:
            self._agents[branch.participant].release(transaction)
        if asked:
            await self._confirm(transaction, asked, "abort")

    async def _decide(
        self, transaction: Transaction, others: Sequence[str], agents: Sequence[Branch], results: dict[str, object]
    ) -> None:
        """Write the decision, and with it the parts of the last agents; the row waits for the others only."""
        if not agents:
            await self._log.commit(transaction.id, others)
            return
        for attempt in range(1, DRAFTS_MAX + 1):
            along: list[Work] = []
            fences: list[Statement] = []
            for branch in agents:
                draft = self._agents[branch.participant].complete(transaction, branch.work)
                along += draft.statements
                fences += draft.fences
                results[branch.participant] = draft.result
            try:
                await self._log.commit(transaction.id, others, along, fences)
            except Conflict as conflict:
                if conflict.reason == "coordinator_fenced" or not await self._again(transaction, agents, conflict):
                    raise
            else:
                return
            for branch in agents:
                await self._agents[branch.participant].enlist(transaction, branch.work, attempt)
        raise Conflict("too many at once for this; try again", code="contended")

    async def _again(self, transaction: Transaction, agents: Sequence[Branch], conflict: Conflict) -> bool:
        """Whether some agent thinks that another try may go better; raises what one of them says to the caller."""
        again = False
        for branch in agents:
            again |= await self._agents[branch.participant].conflicted(transaction, branch.work, conflict)
        return again

    async def _ask(
        self,
        transaction: Transaction,
        agents: Sequence[Branch],
        branches: Sequence[Branch],
        results: dict[str, object],
    ) -> None:
        """Enlist the last agents of a wave and collect the votes of the others."""
        if agents:
            await self._enlist(transaction, agents)
        if not branches:
            return
        first = branches[0]
        if len(branches) == 1 and getattr(self._participants[first.participant], "votes_in_time", False):
            results[first.participant] = await self._vote(transaction, first)
            return
        try:
            async with asyncio.timeout(self._settings.prepare_s):
                votes = [self._vote(transaction, branch) for branch in branches]
                found = await asyncio.gather(*votes, return_exceptions=True)
        except TimeoutError:
            raise Unavailable("a participant did not vote in time", code="vote_late") from None
        for vote in found:
            if isinstance(vote, BaseException):
                raise vote
        results.update({branch.participant: vote for branch, vote in zip(branches, found, strict=True)})

    async def _enlist(self, transaction: Transaction, agents: Sequence[Branch]) -> None:
        """What must be known before anybody else is asked is one commit, shared with others."""
        works: list[Work] = []
        for branch in agents:
            works += await self._agents[branch.participant].enlist(transaction, branch.work, 0)
        if not works:
            return
        try:
            await self._shared.commit(works)
        except Conflict as conflict:
            await self._again(transaction, agents, conflict)
            raise

    async def _vote(self, transaction: Transaction, branch: Branch) -> object:
        result = await self._participants[branch.participant].prepare(transaction, branch.work)
        self._tell(transaction, self._prepared[branch.participant])
        return result

    async def _try_abort(self, transaction: Transaction, names: Sequence[str]) -> bool:
        """Make sure that no commit row can appear any more; False when one is there."""
        delay = self._settings.retry_s
        while True:
            try:
                return await self._log.abort(transaction.id, names)
            except FourplaneError as error:
                self._tell(transaction, f"the log does not answer: {error!r}")
            delay = await self._wait(delay)

    async def _confirm(
        self, transaction: Transaction, names: Sequence[str], verdict: Literal["commit", "abort"]
    ) -> None:
        """Tell all of `names` until each has confirmed."""
        if len(names) == 1:
            await self._confirm_one(transaction, names[0], verdict)
        else:
            await asyncio.gather(*(self._confirm_one(transaction, name, verdict) for name in names))
        self._tell(transaction, f"{verdict} confirmed by {', '.join(names)}")

    async def _confirm_one(self, transaction: Transaction, name: str, verdict: Literal["commit", "abort"]) -> None:
        participant = self._participants[name]
        delay = self._settings.retry_s
        while True:
            try:
                await (participant.commit(transaction) if verdict == "commit" else participant.abort(transaction))
            except Exception as error:  # noqa: BLE001 - a promise is kept even past a bug: told, and tried again
                self._tell(transaction, f"{name} could not {verdict}: {error!r}")
            else:
                return
            delay = await self._wait(delay)

    async def _wait(self, delay: float) -> float:
        await clock.sleep(delay * (0.5 + clock.random().random()))
        return min(self._settings.retry_s_max, delay * 2)

    async def _sweep(self) -> None:
        while True:
            await clock.sleep(self._settings.sweep_s)
            try:
                await self.resolve()
                await self._log.flush()
            except FourplaneError:
                continue  # the store is away; the next round tries again

    def _tell(self, transaction: Transaction, step: str) -> None:
        story = self._stories.get(transaction.id)
        if story is None:
            story = self._stories[transaction.id] = []
            if len(self._stories) > self._settings.stories_max:
                self._stories.popitem(last=False)
        story.append(step)


def _in_doubt() -> Unavailable:
    return Unavailable("the coordinator stopped; the transaction will be settled", code="in_doubt")


def _settle(future: "asyncio.Future[Outcome]", outcome: Outcome) -> None:
    if not future.done():
        future.set_result(outcome)


def _fail(future: "asyncio.Future[Outcome]", error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # the caller may have gone; that is no unhandled error

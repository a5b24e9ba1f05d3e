"""What a two-phase commit asks of those who take part in it (see `two_phase_commit`)."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import msgspec

from fourplane.foundation.errors import Conflict
from fourplane.service.shared_commit import Work
from fourplane.state.contracts import Sql, Statement


class Transaction(msgspec.Struct, frozen=True):
    """Who coordinates what; participants store all three with what they hold."""

    id: int
    coordinator: str
    epoch: int


class Participant(Protocol):
    """Somebody who can promise. All three calls are idempotent per transaction id and durable when they return.

    One that bounds the time of its own votes may say so with an attribute `votes_in_time = True`.
    """

    async def prepare(self, transaction: Transaction, work: object) -> object:
        """Promise to be able to commit, also after a crash; the value goes to the caller. Any error is a no."""

    async def commit(self, transaction: Transaction) -> None:
        """Make the promise true. Repeated until it returns; an unknown transaction was committed before."""

    async def abort(self, transaction: Transaction) -> None:
        """Let go, also of a transaction that was never prepared here. Repeated until it returns."""

    async def in_doubt(self, coordinator: str) -> Sequence[Transaction]:
        """Everything promised to this coordinator and neither committed nor aborted."""


@runtime_checkable
class Follower(Participant, Protocol):
    """A participant nobody need wait for: callers hear of the decision, its commits follow behind, many together."""

    async def commit_many(self, transactions: Sequence[Transaction]) -> Sequence[Transaction]:
        """`commit` for each of them; those it could not do, which are told alone then. May be repeated."""


class Draft(msgspec.Struct, frozen=True):
    """A last agent's part as statements, under which fences, and what the caller gets for it."""

    statements: Sequence[Work]
    result: object = None
    fences: Sequence[Statement] = ()


@runtime_checkable
class LastAgent(Participant, Protocol):
    """A participant that can do its part in the decision's commit, when they share a store."""

    @property
    def store(self) -> Sql:
        """Where its rows lie; only where that is the decision log's store it is a last agent."""

    async def enlist(self, transaction: Transaction, work: object, attempt: int) -> Sequence[Work]:
        """Set aside in memory what the part needs; what must be durable before later waves are asked. Raises what makes
        it impossible. `attempt` counts from 0; later ones follow a lost race.
        """

    def complete(self, transaction: Transaction, work: object) -> Draft:
        """The whole part, with expectations that fail when it has become impossible."""

    async def conflicted(self, transaction: Transaction, work: object, conflict: Conflict) -> bool:
        """A commit met this conflict: raise what the caller hears, or say whether to enlist again may go better."""

    def completed(self, transaction: Transaction) -> None:
        """The decision is durable, and the part with it."""

    def release(self, transaction: Transaction) -> None:
        """It will not be completed: what was set aside is free. May be repeated."""

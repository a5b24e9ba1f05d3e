"""The durable memory of one coordinator: its epoch and the commits that are not confirmed everywhere.

Decisions are rows of the store's shared commits (`shared_commit`): all made while a write is under way share the next one,
together with the removal of finished rows and the parts of last agents. Every write locks the coordinator's
epoch row and expects it unchanged: one that was replaced can write nothing more.
"""

from collections import deque
from collections.abc import Sequence
from typing import Literal

from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, FourplaneError
from fourplane.service.schema import DECISIONS
from fourplane.service.shared_commit import Row, SharedCommit, Template, Work, rendered
from fourplane.state import schema
from fourplane.state.contracts import Sql, Statement

FORGOTTEN_WITH_ONE = 4  # finished rows that ride along with one decision
FORGOTTEN_AT_ONCE = 1_000
ABORT_KEPT_US = 3_600_000_000
INSERT = "INSERT INTO decisions (transaction_id, coordinator, decision, participants, decided_us) VALUES (?1, ?2, ?3, ?4, ?5)"
DECIDE = Template(
    "INSERT INTO decisions (transaction_id, coordinator, decision, participants, decided_us) VALUES ",
    "({}, {}, 'commit', {}, {})",
    label="decision",
)
FORGET = Template("DELETE FROM decisions WHERE transaction_id IN (", "{}", ")", counted=False)


class DecisionLog:
    """Decisions of the coordinator called `name`."""

    __slots__ = ("_finished", "_name", "_shared", "_sql", "epoch")

    def __init__(self, sql: Sql, name: str, shared: SharedCommit) -> None:
        self._sql = sql
        self._name = name
        self._shared = shared
        self._finished: deque[int] = deque()
        self.epoch = 0

    async def open(self) -> None:
        """Make the tables and raise the epoch; from here on no older coordinator of this name can decide."""
        await schema.ensure(self._sql, "decisions", DECISIONS, ())
        raise_epoch = (
            "INSERT INTO coordinators (name, epoch) VALUES (?1, 1)"
            " ON CONFLICT (name) DO UPDATE SET epoch = coordinators.epoch + 1 RETURNING epoch"
        )
        [[row]] = await self._sql.commit([Statement(raise_epoch, (self._name,), expect_rows=1)])
        assert isinstance(row[0], int), "an epoch is a number"
        self.epoch = row[0]

    async def leads(self) -> bool:
        """Whether no younger coordinator of this name had opened its log by now."""
        rows = await self._sql.read("SELECT epoch FROM coordinators WHERE name = ?1", self._name)
        return bool(rows) and rows[0][0] == self.epoch

    async def unfinished(self) -> list[tuple[int, list[str]]]:
        """Commits that some participant may not know of: transaction and participants."""
        found: list[tuple[int, list[str]]] = []
        last = -1
        while True:
            rows = await self._sql.read(
                "SELECT transaction_id, participants FROM decisions WHERE coordinator = ?1 AND decision = 'commit'"
                " AND transaction_id > ?2 ORDER BY transaction_id LIMIT 1000",
                self._name,
                last,
            )
            if not rows:
                return found
            found += [(int(number or 0), str(names).split()) for number, names in rows]
            last = found[-1][0]

    async def commit(
        self,
        transaction_id: int,
        participants: Sequence[str],
        along: Sequence[Work] = (),
        fences: Sequence[Statement] = (),
    ) -> None:
        """Decide durably, with the work `along` while its `fences` hold; raises Conflict (`coordinator_fenced`) when a
        younger coordinator has taken over.

        After any other error the row may or may not be there: `abort` finds out.
        """
        row = Row(DECIDE, (transaction_id, self._name, " ".join(participants), clock.now_us()))
        over = [self._finished.popleft() for _ in range(min(len(self._finished), FORGOTTEN_WITH_ONE))]
        works = [row, *along, *(Row(FORGET, (number,)) for number in over)]
        try:
            await self._shared.commit(works, fences=(self._fence(), *fences))
        except FourplaneError as error:
            self._finished.extend(over)
            if isinstance(error, Conflict) and error.fields.get("label") == "fence":
                raise _fenced() from None
            raise

    async def abort(self, transaction_id: int, participants: Sequence[str]) -> bool:
        """Make a commit of this transaction impossible; False when it is committed already."""
        values = (transaction_id, self._name, "abort", " ".join(participants), clock.now_us())
        await self._sql.commit([Statement(f"{INSERT} ON CONFLICT (transaction_id) DO NOTHING", values)])
        return await self.decision(transaction_id) == "abort"

    async def decision(self, transaction_id: int) -> Literal["commit", "abort"] | None:
        """What the log says; None when it never decided or everybody has confirmed."""
        rows = await self._sql.read("SELECT decision FROM decisions WHERE transaction_id = ?1", transaction_id)
        if not rows:
            return None
        return "commit" if rows[0][0] == "commit" else "abort"

    def forget(self, transaction_id: int) -> None:
        """Every participant has confirmed: the row may go with the next write."""
        self._finished.append(transaction_id)

    async def flush(self) -> None:
        """Remove the rows that may go, and abort rows that no late write can meet any more."""
        over = [self._finished.popleft() for _ in range(min(len(self._finished), FORGOTTEN_AT_ONCE))]
        old_us = clock.now_us() - ABORT_KEPT_US
        clear = "DELETE FROM decisions WHERE coordinator = ?1 AND decision = 'abort' AND decided_us < ?2"
        removal = rendered([Row(FORGET, (number,)) for number in over])
        try:
            await self._sql.commit([self._fence(), *removal, Statement(clear, (self._name, old_us))])
        except FourplaneError as error:
            self._finished.extend(over)
            if isinstance(error, Conflict) and error.fields.get("label") == "fence":
                raise _fenced() from None
            raise

    def _fence(self) -> Statement:
        fence = "UPDATE coordinators SET epoch = ?2 WHERE name = ?1 AND epoch = ?2"
        return Statement(fence, (self._name, self.epoch), expect_rows=1, label="fence")


def _fenced() -> Conflict:
    return Conflict("a younger coordinator of this name has taken over", code="coordinator_fenced")

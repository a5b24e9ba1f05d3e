"""The durable memory of one coordinator: its epoch and the commits that are not confirmed everywhere.

Decisions that arrive while a write is under way share the next one, together with the removal of finished rows and with what
local participants promised. A conflict in one of those concerns one transaction: the batch is then written one by one. Every
write locks the coordinator's epoch row and expects it unchanged: one that was replaced can write nothing more.
"""

import asyncio
from collections.abc import Sequence
from typing import Literal

from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, FourplaneError, Unavailable
from fourplane.service.schema import DECISIONS
from fourplane.state import schema
from fourplane.state.contracts import Sql, Statement

BATCH_MAX = 500
ABORT_KEPT_US = 3_600_000_000
INSERT = "INSERT INTO decisions (transaction_id, coordinator, decision, participants, decided_us) VALUES (?1, ?2, ?3, ?4, ?5)"


_Decided = tuple[int, str, Sequence[Statement]]


class _Batch:
    """Rows of one write, the future of all who wait for it, and who was refused alone."""

    __slots__ = ("future", "refused", "rows")

    def __init__(self) -> None:
        self.rows: list[_Decided] = []
        self.refused: dict[int, FourplaneError] = {}
        self.future: asyncio.Future[None] | None = None


class DecisionLog:
    """Decisions of the coordinator called `name`."""

    __slots__ = ("_batch", "_finished", "_name", "_sql", "_writing", "epoch", "writes")

    def __init__(self, sql: Sql, name: str) -> None:
        self._sql = sql
        self._name = name
        self._batch = _Batch()
        self._writing = asyncio.Lock()
        self._finished: list[int] = []
        self.epoch = 0
        self.writes = 0

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

    async def commit(self, transaction_id: int, participants: list[str], along: Sequence[Statement] = ()) -> None:
        """Decide durably, with the statements `along`; raises Conflict (`coordinator_fenced`) when a younger coordinator
        has taken over.

        After any other error the row may or may not be there: `abort` finds out.
        """
        while len(self._batch.rows) >= BATCH_MAX:
            assert self._batch.future is not None
            await asyncio.wait((self._batch.future,))
        batch = self._batch
        batch.rows.append((transaction_id, " ".join(participants), along))
        if batch.future is not None:
            await asyncio.shield(batch.future)
            if transaction_id in batch.refused:
                raise batch.refused[transaction_id]
            return
        batch.future = asyncio.get_running_loop().create_future()
        try:
            async with self._writing:
                self._batch = _Batch()
                await self._write_all(batch)
        except FourplaneError as error:
            _fail(batch.future, error)
            raise
        except BaseException:
            if self._batch is batch:
                self._batch = _Batch()
            _fail(batch.future, Unavailable("the writer of this batch was stopped", code="decision_unknown"))
            raise
        batch.future.set_result(None)
        if transaction_id in batch.refused:
            raise batch.refused[transaction_id]

    async def abort(self, transaction_id: int, participants: list[str]) -> bool:
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
        async with self._writing:
            await self._write([])
        old_us = clock.now_us() - ABORT_KEPT_US
        clear = "DELETE FROM decisions WHERE coordinator = ?1 AND decision = 'abort' AND decided_us < ?2"
        await self._sql.commit([Statement(clear, (self._name, old_us))])

    async def _write_all(self, batch: _Batch) -> None:
        try:
            await self._write(batch.rows)
        except Conflict as error:
            if error.reason == "coordinator_fenced" or len(batch.rows) == 1:
                raise
            for row in batch.rows:
                try:
                    await self._write([row])
                except FourplaneError as alone:
                    batch.refused[row[0]] = alone

    async def _write(self, rows: Sequence[_Decided]) -> None:
        finished = self._finished[: 2 * BATCH_MAX]
        fence = "UPDATE coordinators SET epoch = ?2 WHERE name = ?1 AND epoch = ?2"
        now_us = clock.now_us()
        statements = [Statement(fence, (self._name, self.epoch), expect_rows=1, label="fence")]
        statements += [Statement(INSERT, (number, self._name, "commit", names, now_us)) for number, names, _ in rows]
        for _, _, along in rows:
            statements += along
        statements += [Statement("DELETE FROM decisions WHERE transaction_id = ?1", (number,)) for number in finished]
        try:
            await self._sql.commit(statements)
        except Conflict as error:
            if error.fields.get("label") != "fence":
                raise
            raise Conflict("a younger coordinator of this name has taken over", code="coordinator_fenced") from None
        self.writes += 1
        del self._finished[: len(finished)]


def _fail(future: "asyncio.Future[None]", error: FourplaneError) -> None:
    future.set_exception(error)
    future.exception()  # nobody else may wait for it

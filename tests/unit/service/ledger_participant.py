"""A participant over Sql: it reserves pieces of a counter, with faults that tests order."""

from collections.abc import Sequence

from fourplane.foundation.errors import Conflict, Unavailable
from fourplane.service.participants import Transaction
from fourplane.state.contracts import Sql, Statement


class Pieces:
    """`left` pieces; prepare holds some, commit sells them, abort puts them back."""

    def __init__(self, sql: Sql, name: str) -> None:
        self.sql = sql
        self.name = name
        self.fail: dict[str, int] = {}  # step -> how many times still
        self.fail_after: dict[str, int] = {}  # the work is done, the answer is lost
        self.calls: list[str] = []

    async def make(self, left: int) -> None:
        holds = f"CREATE TABLE holds_{self.name} (id BIGINT PRIMARY KEY, coordinator TEXT, epoch BIGINT, count BIGINT)"
        await self.sql.commit(
            [
                Statement(
                    f"CREATE TABLE pieces_{self.name} (free BIGINT NOT NULL CHECK (free >= 0), sold BIGINT NOT NULL)"
                ),
                Statement(f"INSERT INTO pieces_{self.name} VALUES (?1, 0)", (left,)),
                Statement(holds),
            ]
        )

    async def prepare(self, transaction: Transaction, work: object) -> object:
        self._before("prepare")
        count = int(str(work))
        hold = f"INSERT INTO holds_{self.name} VALUES (?1, ?2, ?3, ?4)"
        values = (transaction.id, transaction.coordinator, transaction.epoch, count)
        take = f"UPDATE pieces_{self.name} SET free = free - ?1 WHERE free >= ?1"
        if not await self.sql.read(f"SELECT 1 FROM holds_{self.name} WHERE id = ?1", transaction.id):
            await self.sql.commit([Statement(hold, values), Statement(take, (count,), expect_rows=1, label="sold_out")])
        self._after("prepare")
        return f"{self.name}:{count}"

    async def commit(self, transaction: Transaction) -> None:
        self._before("commit")
        sell = (
            f"UPDATE pieces_{self.name} SET sold = sold + "
            f"COALESCE((SELECT count FROM holds_{self.name} WHERE id = ?1), 0)"
        )
        drop = f"DELETE FROM holds_{self.name} WHERE id = ?1"
        await self.sql.commit([Statement(sell, (transaction.id,)), Statement(drop, (transaction.id,))])
        self._after("commit")

    async def abort(self, transaction: Transaction) -> None:
        self._before("abort")
        give = (
            f"UPDATE pieces_{self.name} SET free = free + "
            f"COALESCE((SELECT count FROM holds_{self.name} WHERE id = ?1), 0)"
        )
        drop = f"DELETE FROM holds_{self.name} WHERE id = ?1"
        await self.sql.commit([Statement(give, (transaction.id,)), Statement(drop, (transaction.id,))])
        self._after("abort")

    async def in_doubt(self, coordinator: str) -> Sequence[Transaction]:
        rows = await self.sql.read(f"SELECT id, epoch FROM holds_{self.name} WHERE coordinator = ?1", coordinator)
        return [Transaction(number, coordinator, epoch) for number, epoch in rows]

    async def state(self) -> tuple[int, int, int]:
        """Free, sold, held transactions."""
        [(free, sold)] = await self.sql.read(f"SELECT free, sold FROM pieces_{self.name}")
        [(held,)] = await self.sql.read(f"SELECT COUNT(*) FROM holds_{self.name}")
        return free, sold, held

    def _before(self, step: str) -> None:
        self.calls.append(step)
        if self.fail.get(step, 0) > 0:
            self.fail[step] -= 1
            raise Unavailable(f"{self.name} is away") if step != "prepare" else Conflict(f"{self.name} says no")

    def _after(self, step: str) -> None:
        if self.fail_after.get(step, 0) > 0:
            self.fail_after[step] -= 1
            raise Unavailable(f"the answer of {self.name} is lost")

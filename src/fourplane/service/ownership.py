"""Who may write a shard: a row (shard, owner, epoch), a file lock, and an epoch in every write.

Discovery says where to try; ownership says who is right. `claim` takes the file lock of the shard (so that two
processes of one machine cannot both hold it), then raises the epoch by one. From then on every call carries the epoch,
and the store refuses an older one: an owner that was paused and wakes up late can write nothing, whatever it believes.

    OwnershipTable   the rows; claim by a restarted owner, journaled move to another
    Fence            one shard's store remembers the highest epoch; its statement rides in every commit
    EpochGate        the same for calls in memory, pure

A move is two journaled steps: `begin_move` (the source drains, callers wait), `finish_move` (the target owns, epoch + 1). A
crash between them leaves the shard with its source, and either step may be repeated.
"""

from pathlib import Path

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, NotFound
from fourplane.service.file_lock import FileLock
from fourplane.service.schema import OWNERSHIP
from fourplane.state import schema
from fourplane.state.contracts import Row, Sql, Statement


class Grant(msgspec.Struct, frozen=True):
    """The right to write one shard, as long as nobody has a higher epoch."""

    shard: str
    owner: str
    epoch: int
    moving_to: str = ""


class OwnershipTable:
    """The rows of all shards, in one Sql store."""

    def __init__(self, sql: Sql) -> None:
        self._sql = sql

    async def open(self) -> None:
        """Make the tables."""
        await schema.ensure(self._sql, "ownership", OWNERSHIP, ())

    async def find(self, shard: str) -> Grant | None:
        """The current owner of a shard."""
        rows = await self._sql.read("SELECT shard, owner, epoch, moving_to FROM owners WHERE shard = ?1", shard)
        return _grant(rows[0]) if rows else None

    async def all(self) -> list[Grant]:
        """Every shard's owner, by shard."""
        rows = await self._sql.read("SELECT shard, owner, epoch, moving_to FROM owners ORDER BY shard")
        return [_grant(row) for row in rows]

    async def claim(self, shard: str, owner: str) -> Grant:
        """Own a shard that is free or was ours before, with a new epoch; raises Conflict when another owns it."""
        before = await self.find(shard)
        now_us = clock.now_us()
        if before is None:
            grant = Grant(shard, owner, 1)
            insert = "INSERT INTO owners (shard, owner, epoch, granted_us, moving_to) VALUES (?1, ?2, 1, ?3, '')"
            statement = Statement(insert, (shard, owner, now_us), expect_rows=1)
        elif before.owner != owner:
            raise Conflict(f"{shard} belongs to {before.owner}", code="not_owner", owner=before.owner)
        else:
            grant = Grant(shard, owner, before.epoch + 1, before.moving_to)
            update = "UPDATE owners SET epoch = ?3, granted_us = ?4 WHERE shard = ?1 AND owner = ?2 AND epoch = ?5"
            values = (shard, owner, grant.epoch, now_us, before.epoch)
            statement = Statement(update, values, expect_rows=1)
        await self._sql.commit([statement, self._journal(grant.epoch, "claimed", grant, owner)])
        return grant

    async def begin_move(self, shard: str, target: str) -> Grant:
        """Announce that `target` will own the shard; the source hears of it and drains. Raises Conflict for another move."""
        before = await self._current(shard)
        if before.moving_to not in {"", target}:
            raise Conflict(f"{shard} is moving to {before.moving_to}", code="moving")
        update = "UPDATE owners SET moving_to = ?2 WHERE shard = ?1 AND epoch = ?3"
        statement = Statement(update, (shard, target, before.epoch), expect_rows=1)
        await self._sql.commit([statement, self._journal(before.epoch, "moving", before, target)])
        return Grant(shard, before.owner, before.epoch, target)

    async def finish_move(self, shard: str, target: str) -> Grant:
        """Make `target` the owner with a new epoch; fine when it is already. The source's epoch is refused from here on."""
        before = await self._current(shard)
        if before.owner == target and not before.moving_to:
            return before
        if before.moving_to != target:
            raise Conflict(f"{shard} is not moving to {target}", code="not_moving")
        grant = Grant(shard, target, before.epoch + 1)
        update = (
            "UPDATE owners SET owner = ?2, epoch = ?3, granted_us = ?4, moving_to = '' WHERE shard = ?1 AND epoch = ?5"
        )
        values = (shard, target, grant.epoch, clock.now_us(), before.epoch)
        statement = Statement(update, values, expect_rows=1)
        await self._sql.commit([statement, self._journal(grant.epoch, "moved", before, target)])
        return grant

    async def cancel_move(self, shard: str) -> Grant:
        """Leave the shard with its source."""
        before = await self._current(shard)
        update = "UPDATE owners SET moving_to = '' WHERE shard = ?1 AND epoch = ?2"
        await self._sql.commit([Statement(update, (shard, before.epoch), expect_rows=1)])
        return Grant(shard, before.owner, before.epoch)

    async def story(self, shard: str) -> list[str]:
        """Claims and moves of one shard, oldest first."""
        rows = await self._sql.read(
            "SELECT epoch, step, source, target FROM owner_moves WHERE shard = ?1 ORDER BY epoch, at_us", shard
        )
        return [f"epoch {int(epoch or 0)}: {step!s} {source!s} -> {target!s}" for epoch, step, source, target in rows]

    async def _current(self, shard: str) -> Grant:
        found = await self.find(shard)
        if found is None:
            raise NotFound(f"nobody owns {shard}", code="no_shard")
        return found

    def _journal(self, epoch: int, step: str, before: Grant, target: str) -> Statement:
        insert = (
            "INSERT INTO owner_moves (shard, epoch, step, source, target, at_us) VALUES (?1, ?2, ?3, ?4, ?5, ?6)"
            " ON CONFLICT (shard, epoch, step) DO UPDATE SET target = ?5, at_us = ?6"
        )
        return Statement(insert, (before.shard, epoch, step, before.owner, target, clock.now_us()))


class Fence:
    """The memory of one shard's store: the highest epoch that ever wrote there."""

    def __init__(self, sql: Sql, shard: str) -> None:
        self._sql = sql
        self._shard = shard

    async def enter(self, epoch: int) -> None:
        """Let `epoch` write and none older; raises Conflict (`stale_epoch`) when a younger one was here."""
        await schema.ensure(self._sql, "ownership", OWNERSHIP, ())
        upsert = (
            "INSERT INTO shard_epochs (shard, epoch) VALUES (?1, ?2)"
            " ON CONFLICT (shard) DO UPDATE SET epoch = ?2 WHERE shard_epochs.epoch <= ?2 RETURNING epoch"
        )
        try:
            await self._sql.commit([Statement(upsert, (self._shard, epoch), expect_rows=1, label="epoch")])
        except Conflict:
            raise _stale(self._shard, epoch) from None

    async def commit(self, epoch: int, statements: list[Statement]) -> list[list[Row]]:
        """Commit under this epoch; raises Conflict (`stale_epoch`) when a younger owner has entered."""
        try:
            return (await self._sql.commit([self.statement(epoch), *statements]))[1:]
        except Conflict as error:
            if error.fields.get("label") == "epoch":
                raise _stale(self._shard, epoch) from None
            raise

    def statement(self, epoch: int) -> Statement:
        """To put first into a commit of one's own: undoes it when `epoch` is not the store's."""
        guard = "UPDATE shard_epochs SET epoch = ?2 WHERE shard = ?1 AND epoch = ?2"
        return Statement(guard, (self._shard, epoch), expect_rows=1, label="epoch")


class EpochGate:
    """Refuses calls of an older epoch than the newest seen. Pure."""

    __slots__ = ("epoch",)

    def __init__(self, epoch: int = 0) -> None:
        self.epoch = epoch

    def admit(self, epoch: int) -> None:
        """Let a call pass and learn its epoch; raises Conflict (`stale_epoch`)."""
        if epoch < self.epoch:
            raise _stale("this shard", epoch)
        self.epoch = epoch


class OwnedShard:
    """A shard file this process holds: lock, grant and fence together."""

    def __init__(self, table: OwnershipTable, shard: str, owner: str, lock_path: Path) -> None:
        self._table = table
        self._shard = shard
        self._owner = owner
        self._lock = FileLock(lock_path)
        self.grant: Grant | None = None

    async def take(self, store: Sql) -> Grant:
        """Lock the file, claim the shard, enter its store; raises Conflict and holds nothing when any of it fails."""
        self._lock.acquire(owner=self._owner, shard=self._shard)
        try:
            grant = await self._table.claim(self._shard, self._owner)
            await Fence(store, self._shard).enter(grant.epoch)
        except BaseException:
            self._lock.release()
            raise
        self.grant = grant
        return grant

    def release(self) -> None:
        """Let the file go; the row still names this owner, who may come back."""
        self.grant = None
        self._lock.release()


def _grant(row: Row) -> Grant:
    shard, owner, epoch, moving_to = row
    return Grant(str(shard), str(owner), int(epoch or 0), str(moving_to))


def _stale(shard: str, epoch: int) -> Conflict:
    return Conflict(f"epoch {epoch} of {shard} is over: somebody else owns it now", code="stale_epoch", epoch=epoch)

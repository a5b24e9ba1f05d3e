import pytest
from tests.unit.service.running import run_with_sql

from fourplane.foundation.errors import Conflict, NotFound
from fourplane.service.file_lock import FileLock
from fourplane.service.ownership import EpochGate, Fence, OwnedShard, OwnershipTable
from fourplane.state.contracts import Statement

WRITE = [Statement("INSERT INTO facts VALUES (?1)", ("written",))]


def test_owner_that_returns_gets_the_next_epoch_and_a_stranger_gets_nothing():
    async def main(sql):
        table = OwnershipTable(sql)
        await table.open()
        assert (await table.claim("orders-0", "slot-0")).epoch == 1
        assert (await table.claim("orders-0", "slot-0")).epoch == 2
        with pytest.raises(Conflict) as refused:
            await table.claim("orders-0", "slot-1")
        assert refused.value.fields["owner"] == "slot-0"

    run_with_sql(main)


def test_owner_that_wakes_up_late_can_write_nothing():
    async def main(sql):
        await sql.commit([Statement("CREATE TABLE facts (fact TEXT)")])
        fence = Fence(sql, "orders-0")
        await fence.enter(1)
        await fence.commit(1, WRITE)
        await fence.enter(2)
        with pytest.raises(Conflict) as stale:
            await fence.commit(1, WRITE)
        assert stale.value.reason == "stale_epoch"
        with pytest.raises(Conflict):
            await fence.enter(1)
        with pytest.raises(Conflict):
            await fence.commit(3, WRITE)
        await fence.commit(2, WRITE)
        assert len(await sql.read("SELECT * FROM facts")) == 2

    run_with_sql(main)


def test_move_is_journaled_may_be_repeated_and_fences_the_source():
    async def main(sql):
        table = OwnershipTable(sql)
        await table.open()
        await table.claim("orders-0", "slot-0")
        with pytest.raises(Conflict):
            await table.finish_move("orders-0", "slot-1")
        await table.begin_move("orders-0", "slot-1")
        await table.begin_move("orders-0", "slot-1")
        with pytest.raises(Conflict):
            await table.begin_move("orders-0", "slot-2")
        moved = await table.finish_move("orders-0", "slot-1")
        assert (moved.owner, moved.epoch) == ("slot-1", 2)
        assert await table.finish_move("orders-0", "slot-1") == moved
        assert [step.split(": ")[1] for step in await table.story("orders-0")] == [
            "claimed slot-0 -> slot-0",
            "moving slot-0 -> slot-1",
            "moved slot-0 -> slot-1",
        ]
        with pytest.raises(NotFound):
            await table.begin_move("nothing", "slot-1")

    run_with_sql(main)


def test_cancelled_move_leaves_the_source():
    async def main(sql):
        table = OwnershipTable(sql)
        await table.open()
        await table.claim("orders-0", "slot-0")
        await table.begin_move("orders-0", "slot-1")
        assert (await table.cancel_move("orders-0")).owner == "slot-0"
        assert (await table.find("orders-0")).moving_to == ""
        assert [grant.shard for grant in await table.all()] == ["orders-0"]

    run_with_sql(main)


def test_second_holder_of_a_lock_is_told_who_has_it(tmp_path):
    first, second = FileLock(tmp_path / "shard.lock"), FileLock(tmp_path / "shard.lock")
    first.acquire(owner="slot-0")
    with pytest.raises(Conflict) as locked:
        second.acquire()
    assert "slot-0" in locked.value.message
    first.release()
    first.release()
    second.acquire()
    assert second.held
    second.release()


def test_owned_shard_holds_lock_grant_and_fence_or_nothing(tmp_path):
    async def main(sql):
        table = OwnershipTable(sql)
        await table.open()
        mine = OwnedShard(table, "orders-0", "slot-0", tmp_path / "orders-0.lock")
        assert (await mine.take(sql)).epoch == 1
        again = OwnedShard(table, "orders-0", "slot-0", tmp_path / "orders-0.lock")
        with pytest.raises(Conflict):
            await again.take(sql)
        mine.release()
        assert (await again.take(sql)).epoch == 2
        again.release()
        stranger = OwnedShard(table, "orders-0", "slot-1", tmp_path / "orders-0.lock")
        with pytest.raises(Conflict):
            await stranger.take(sql)
        assert (await mine.take(sql)).epoch == 3, "the stranger let the lock go"
        mine.release()

    run_with_sql(main)


def test_gate_learns_and_refuses():
    gate = EpochGate()
    gate.admit(3)
    gate.admit(3)
    with pytest.raises(Conflict):
        gate.admit(2)

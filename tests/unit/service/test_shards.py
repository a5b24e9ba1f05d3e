import asyncio

import pytest

from fourplane.foundation.errors import Conflict, Misconfigured
from fourplane.service.shards import ShardedRecords, ShardMap, kept_count
from fourplane.state.contracts import Put
from fourplane.state.stores import Stores, StoresSettings

KEYS = [f"xmpp/person{number}@localhost".encode() for number in range(4_000)]


def test_every_key_has_one_shard_and_they_are_even():
    shards = ShardMap(4, 2)
    counts = [0] * 4
    for key in KEYS:
        counts[shards.shard_of(key)] += 1
        assert shards.slot_of(key) == shards.slots[shards.shard_of(key)]
    assert max(counts) < 1.1 * min(counts)


def test_shards_take_turns_from_home_and_cover_all_slots():
    shards = ShardMap(5, 3, home=2)
    assert shards.slots == (2, 0, 1, 2, 0)
    assert sorted(shard for slot in range(3) for shard in shards.of_slot(slot)) == list(range(5))
    assert [shards.store_name("messaging", shard) for shard in (0, 1)] == ["messaging", "messaging-1"]


def test_a_key_does_not_move_when_workers_come_or_go():
    assert all(ShardMap(4, 1).shard_of(key) == ShardMap(4, 4).shard_of(key) for key in KEYS[:100])


def test_a_tag_names_the_shard():
    shards = ShardMap(4, 2)
    assert [shards.shard_of(b"xmpp/index{%d}" % shard) for shard in range(4)] == [0, 1, 2, 3]
    assert shards.shard_of(b"no tag}") == shards.shard_of(b"no tag}")


@pytest.mark.parametrize("count", [0, 65])
def test_a_count_out_of_bounds_is_refused(count):
    with pytest.raises(Misconfigured):
        ShardMap(count)


def test_the_number_of_shards_stays_with_the_folder(tmp_path):
    assert kept_count(tmp_path, "messaging", wanted=0, usual=2, exists=False) == 2
    assert kept_count(tmp_path, "messaging", wanted=0, usual=7, exists=True) == 2
    assert kept_count(tmp_path, "other", wanted=3, usual=1, exists=False) == 3
    with pytest.raises(Misconfigured, match="2 shards"):
        kept_count(tmp_path, "messaging", wanted=4, usual=1, exists=True)


def test_data_from_before_there_were_shards_is_one(tmp_path):
    assert kept_count(tmp_path, "messaging", wanted=0, usual=4, exists=True) == 1


def test_records_lie_in_the_store_of_their_shard_and_nowhere_else():
    async def main():
        stores = Stores(StoresSettings(records="memory://"))
        shards = ShardMap(2, 2)
        mine = await stores.records("one")
        records = ShardedRecords(shards, {0: mine})
        here = next(key for key in KEYS if shards.shard_of(key) == 0)
        there = next(key for key in KEYS if shards.shard_of(key) == 1)
        await records.write(here, [Put(b"a", b"1")])
        assert (await mine.get(here, b"a")).value == b"1"
        assert [one.sort for one in await records.scan(here)] == [b"a"]
        with pytest.raises(Conflict):
            await records.get(there, b"a")
        with pytest.raises(Conflict):
            await records.write(there, [Put(b"a", b"1")])
        await stores.stop()

    asyncio.run(main())

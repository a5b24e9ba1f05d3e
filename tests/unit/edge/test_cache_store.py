"""The store of a cache node: bounds, eviction, restart, broken files."""

import asyncio

from fourplane.edge.cache_store import HEAD_BYTES, CacheEntry, CacheStore
from fourplane.edge.http_cache import Freshness


def entry(key, *, stored_s=0.0):
    kept = Freshness(stored_s, 0.0, 60.0, False, False, 0.0, None, (), b'"x"', None, 0)
    return CacheEntry(key, 200, b"OK", [(b"content-type", b"text/plain")], kept)


def test_bytes_never_exceed_the_bound():
    store = CacheStore(None, bytes_max=10 * (1_000 + HEAD_BYTES))
    for number in range(50):
        store.put(entry(b"%d" % number), bytes(1_000))
        store.check()
    assert len(store) == 10
    assert store.evictions == 40


def test_what_is_asked_for_stays_and_what_is_not_goes():
    store = CacheStore(None, bytes_max=10 * (1_000 + HEAD_BYTES))
    popular = entry(b"popular")
    store.put(popular, bytes(1_000))
    for number in range(100):
        popular.visited = True
        store.put(entry(b"%d" % number), bytes(1_000))
    assert store.find(b"popular", []) is popular
    store.check()


def test_an_object_larger_than_the_bound_is_not_stored():
    store = CacheStore(None, bytes_max=1_000)
    store.put(entry(b"a"), bytes(2_000))
    assert len(store) == 0
    store.check()


def test_a_newer_response_replaces_the_older():
    store = CacheStore(None, bytes_max=1 << 20)
    store.put(entry(b"a"), b"old")
    store.put(entry(b"a"), b"new")
    assert bytes(store.content(store.find(b"a", []))) == b"new"
    assert len(store) == 1
    store.check()


def test_purge_by_key_and_by_tag():
    store = CacheStore(None, bytes_max=1 << 20)
    for number in range(4):
        one = entry(b"%d" % number)
        one.tags = (b"even",) if number % 2 == 0 else ()
        store.put(one, b"x")
    assert store.purge(b"1") == 1
    assert store.purge_tag(b"even") == 2
    assert [store.find(b"%d" % number, []) is not None for number in range(4)] == [False, False, False, True]


def test_a_restart_keeps_whole_entries_and_drops_broken_ones(tmp_path):
    async def first():
        store = CacheStore(tmp_path, bytes_max=1 << 20)
        await store.open()
        for number in range(6):
            store.put(entry(b"%d" % number, stored_s=number), b"body %d" % number * 100)
        store.close()
        await asyncio.sleep(0)

    async def second():
        store = CacheStore(tmp_path, bytes_max=1 << 20)
        found = await store.open()
        bodies = {number: store.find(b"%d" % number, []) for number in range(6)}
        read = {number: bytes(store.content(one)) for number, one in bodies.items() if one is not None}
        store.check()
        store.close()
        return found, read

    asyncio.run(first())
    files = sorted(tmp_path.glob("??/*"))
    assert len(files) == 6
    files[0].write_bytes(files[0].read_bytes()[:-1])
    files[1].write_bytes(b"garbage")
    (tmp_path / "ab").mkdir(exist_ok=True)
    (tmp_path / "ab" / "half.part").write_bytes(b"FPC1")
    found, read = asyncio.run(second())
    assert found == len(read) == 4
    assert all(body == b"body %d" % number * 100 for number, body in read.items())
    assert not list(tmp_path.glob("??/*.part"))


def test_a_restart_with_a_smaller_bound_evicts():
    async def main(folder, bound):
        store = CacheStore(folder, bytes_max=bound)
        await store.open()
        for number in range(4):
            if bound > 10_000:
                store.put(entry(b"%d" % number), bytes(1_000))
        store.check()
        count = len(store)
        store.close()
        await asyncio.sleep(0)
        return count

    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        assert asyncio.run(main(Path(folder), 1 << 20)) == 4
        assert asyncio.run(main(Path(folder), 2 * (1_000 + HEAD_BYTES))) == 2


def test_a_lost_file_is_a_miss_not_an_error(tmp_path):
    async def main():
        store = CacheStore(tmp_path, bytes_max=1 << 20)
        await store.open()
        store.put(entry(b"a"), bytes(100_000))
        one = store.find(b"a", [])
        while one.file is None:
            await asyncio.sleep(0)
        (tmp_path / one.file).unlink()
        assert store.content(one) is None
        assert store.find(b"a", []) is None
        store.check()
        store.close()

    asyncio.run(main())

import asyncio
import sqlite3

import pytest

from fourplane.foundation.errors import Misconfigured, Overloaded, Unavailable
from fourplane.foundation.telemetry import Registry
from fourplane.state.contracts import Put, Statement
from fourplane.state.embedded.database import Database, DatabaseSettings
from fourplane.state.stores import Stores, StoresSettings


def test_a_name_opens_once_and_everything_is_closed(tmp_path):
    async def body():
        stores = Stores(data=tmp_path)
        assert await stores.sql("shop") is await stores.sql("shop")
        assert await stores.records("shop") is not await stores.records("chat")
        await stores.log("shop")
        await stores.cache("shop")
        await (await stores.blobs("shop")).put("a/b", b"x")
        await stores.search("shop")
        assert sorted(stores.statistics()) == [
            *("blobs.shop", "cache.shop", "log.shop", "records.chat", "records.shop", "search.shop", "sql.shop")
        ]
        await stores.stop()
        assert not list((tmp_path / "state").glob("*-wal"))
        again = Stores(data=tmp_path)
        assert await (await again.blobs("shop")).get("a/b") == b"x"
        await again.stop()

    asyncio.run(body())


def test_what_a_relative_address_was_given_is_there_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    async def body():
        for folded in (False, True):
            stores = Stores(StoresSettings(sql="sqlite:///here", records="sqlite:///here"), data=tmp_path)
            sql, records = await stores.sql("shop"), await stores.records("shop")
            if not folded:
                await sql.commit([Statement("CREATE TABLE t (n BIGINT)"), Statement("INSERT INTO t VALUES (1)")])
                await records.write(b"p", [Put(b"s", b"x")])
                await records.fold()
            assert await sql.read("SELECT n FROM t") == [(1,)]
            assert records.database.read("SELECT value FROM record") == [(b"x",)]
            await stores.stop()
        with sqlite3.connect(tmp_path / "here" / "records-shop.db") as file:
            assert file.execute("SELECT value FROM record").fetchall() == [(b"x",)]

    asyncio.run(body())


def test_overrides_choose_the_engine_of_one_store(tmp_path):
    async def body():
        stores = Stores(
            StoresSettings(overrides={"records.shop": "memory://", "sql.shop": "sqlite:///{data}/one.db"}),
            data=tmp_path,
        )
        await (await stores.records("shop")).write(b"p", [Put(b"s", b"")])
        await stores.sql("shop")
        assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".db") == ["one.db"]
        await stores.stop()

    asyncio.run(body())


@pytest.mark.parametrize("url", ["oracle://x", "kafka:///x", "sqlite://", "", "redis://", "redis://h/x", "folder:///a"])
def test_urls_nobody_serves_are_named(url, tmp_path):
    async def body():
        stores = Stores(StoresSettings(cache=url, sql=url), data=tmp_path)
        for opener in (stores.cache, stores.sql):
            with pytest.raises(Misconfigured):
                await opener("shop")

    asyncio.run(body())


def test_names_that_are_paths_are_refused(tmp_path):
    async def body():
        for name in ("../x", "", "a/b", "A", "x" * 61):
            with pytest.raises(Misconfigured):
                await Stores(data=tmp_path).sql(name)

    asyncio.run(body())


def test_servers_that_are_not_there_are_unavailable(tmp_path):
    async def body():
        stores = Stores(
            StoresSettings(cache="redis://127.0.0.1:9", sql="postgresql://u:p@127.0.0.1:9/x"), data=tmp_path
        )
        for opener in (stores.cache, stores.sql):
            with pytest.raises(Unavailable) as told:
                await opener("shop")
            assert "u:p" not in str(told.value)

    asyncio.run(body())


def test_waiting_commits_are_bounded(tmp_path):
    async def body():
        database = await Database(tmp_path / "a.db", settings=DatabaseSettings(queue_max=3)).open()
        waiting = [database.transact(lambda _: 1) for _ in range(3)]
        with pytest.raises(Overloaded):
            database.transact(lambda _: 1)
        assert await asyncio.gather(*waiting) == [1, 1, 1]
        await database.close()
        with pytest.raises(Unavailable):
            database.transact(lambda _: 1)

    asyncio.run(body())


def test_a_commit_too_large_for_the_loop_runs_on_the_thread(tmp_path):
    async def body():
        stores = Stores(data=tmp_path)
        sql = await stores.sql("s")
        await sql.commit([Statement("CREATE TABLE t (id BIGINT PRIMARY KEY)")])
        many = [Statement("INSERT INTO t (id) VALUES (?1)", (number,)) for number in range(3_000)]
        large = asyncio.ensure_future(sql.commit(many))
        await asyncio.sleep(0)
        assert await sql.read("SELECT count(*) FROM t") in ([(0,)], [(3_000,)])
        await large
        assert await sql.read("SELECT count(*) FROM t") == [(3_000,)]
        with pytest.raises(Exception, match="UNIQUE"):
            await sql.commit(many)
        await stores.stop()

    asyncio.run(body())


def test_a_bug_in_one_callers_work_is_only_its_own(tmp_path):
    async def body():
        database = await Database(tmp_path / "a.db").open()

        def broken(writer):
            writer.execute("CREATE TABLE gone (id)").fetchall()
            raise ZeroDivisionError

        wrong, right = await asyncio.gather(
            database.transact(broken), database.transact(lambda _: 5), return_exceptions=True
        )
        assert isinstance(wrong, ZeroDivisionError)
        assert right == 5
        assert database.read("SELECT name FROM sqlite_schema") == []
        await database.close()

    asyncio.run(body())


def test_every_open_store_shows_its_numbers(tmp_path):
    async def body():
        registry, stores = Registry(), Stores(data=tmp_path)
        records = await stores.records("shop")
        stores.register(registry)
        log = await stores.log("shop")
        await records.write(b"p", [Put(b"s", b"")])
        await log.append("t", 0, [b"a", b"b"])
        shown = {(name, dict(labels)["store"]): cell.current() for (name, labels), cell in registry.cells.items()}
        assert shown["fourplane_state_writer_groups_total", "records.shop"] == 1
        assert shown["fourplane_state_overlay_rows", "records.shop"] == 1
        assert shown["fourplane_state_appended", "log.shop"] == 2
        assert shown["fourplane_state_writer_group_seconds_p99", "log.shop"] > 0
        await stores.stop()

    asyncio.run(body())

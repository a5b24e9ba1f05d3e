"""A live deployment's stores on the way to PostgreSQL and S3: writers run meanwhile, and nothing they were told is lost."""

import argparse
import asyncio
import contextlib
import gc
import os
import signal
import time

import pytest

from fourplane.foundation.errors import Conflict, Misconfigured, Unavailable
from fourplane.state import data_folder
from fourplane.state.contracts import Delete, Put, Statement
from fourplane.state.moving import for_postgres
from fourplane.state.stores import Stores, StoresSettings
from fourplane.verbs import move_store

CREATE = (
    "CREATE TABLE IF NOT EXISTS parent (id BIGINT NOT NULL, name VARCHAR(20) NOT NULL, PRIMARY KEY (id))",
    (
        "CREATE TABLE IF NOT EXISTS told (lane TEXT NOT NULL, number BIGINT NOT NULL, body BLOB, price FLOAT, step INTEGER,"
        " PRIMARY KEY (lane, number), FOREIGN KEY(number) REFERENCES parent (id))"
    ),
    "CREATE INDEX IF NOT EXISTS told_step ON told (step) WHERE step IS NOT NULL",
)


async def write_for_ever(data, told):
    """Rows that come, change and go in two stores; a number is told when all it did is acknowledged."""
    folder = data_folder.hold(data)
    stores = Stores(data=data)
    sql, records = await stores.sql("shop"), await stores.records("chat")
    await sql.commit([Statement(text) for text in CREATE])

    async def lane(name):
        for step in range(1_000_000):
            number = step * 10 + name
            await sql.commit(
                [
                    Statement("INSERT INTO parent (id, name) VALUES (?1, ?2)", (number, f"ä {number}")),
                    Statement(
                        "INSERT INTO told (lane, number, body, price, step) VALUES (?1,?2,?3,?4,?5)",
                        (f"lane {name}", number, bytes([step % 256]) * 50, step / 4, None if step % 3 else step),
                    ),
                    Statement("UPDATE told SET step=-1 WHERE lane=?1 AND number=?2", (f"lane {name}", number - 100)),
                    Statement("DELETE FROM told WHERE lane=?1 AND number=?2", (f"lane {name}", number - 200)),
                ]
            )
            await records.write(b"p%d" % name, [Put(b"%d" % step, b"v" * 100), Put(b"last", b"%d" % step)])
            if step >= 20:
                await records.write(b"p%d" % name, [Delete(b"%d" % (step - 20))])
            os.write(told, b"%d\n" % number)

    await asyncio.gather(*[lane(name) for name in range(4)])
    folder.release()


@pytest.fixture
def writer():
    """`writer(data)` begins to write in a process of its own, which does not outlive the test."""
    pids = []

    def begin(data):
        pid, told = begin_writer(data)
        pids.append(pid)
        return pid, told

    yield begin
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def begin_writer(data):
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            gc.freeze()
            asyncio.run(write_for_ever(data, writing))
        finally:
            os._exit(1)
    os.close(writing)
    return pid, os.fdopen(reading, "rb")


def asked(data, source, target, **more):
    given = {"once": False, "apply": False, "json": True, "config": None, "data": data} | more
    return argparse.Namespace(source=source, target=target, **given)


def test_nothing_acknowledged_is_lost_on_the_way_to_postgresql(tmp_path, postgres_server, writer, capsys, monkeypatch):
    data = tmp_path / "data"
    settings = tmp_path / "fourplane.toml"
    settings.write_text("[stores]\ncache = 'memory://'\n\n[http]\n")
    pid, told = writer(data)
    numbers = [int(told.readline()) for _ in range(200)]
    move = asked(data, f"sqlite:///{data}/state", postgres_server.url, apply=True, config=settings)
    passes = []
    one_pass = move_store._passes

    async def counted(mover, *rest, **more):
        """After the second pass the writer is killed, as roughly as can be."""
        real = mover.one_pass

        async def watched(*arguments, **keywords):
            passes.append(keywords)
            moved = await real(*arguments, **keywords)
            if len(passes) == 2:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)  # noqa: ASYNC222 - it is dead already
            return moved

        mover.one_pass = watched
        return await one_pass(mover, *rest, **more)

    monkeypatch.setattr(move_store, "_passes", counted)
    monkeypatch.setattr(move_store, "PAUSE_S", 0.05)
    assert asyncio.run(move_store._move(move)) == 0
    numbers += [int(line) for line in told.read().split(b"\n")[:-1]]
    assert passes[-1] == {"final": True}
    assert len(passes) >= 3
    assert "window_s" in capsys.readouterr().out
    assert settings.read_text().splitlines()[:3] == [
        "[stores]",
        f'sql = "{postgres_server.url}"',
        f'records = "{postgres_server.url}"',
    ]

    async def check():
        to = Stores(StoresSettings(sql=postgres_server.url, records=postgres_server.url), data=tmp_path)
        sql, records = await to.sql("shop"), await to.records("chat")
        tables = "SELECT table_name FROM information_schema.tables WHERE table_schema='r_chat'"
        assert await sql.read(tables) == [("record",)]
        for name in range(4):
            mine = max(number for number in numbers if number % 10 == name)
            rows = await sql.read(
                "SELECT number, body, price, step FROM told WHERE lane=?1 ORDER BY number", f"lane {name}"
            )
            found = {row[0]: row[1:] for row in rows}
            for number in range(max(name, mine - 180), mine + 1, 10):
                step = number // 10
                expected = -1 if number <= mine - 100 else None if step % 3 else step
                assert found[number][:2] == (bytes([step % 256]) * 50, step / 4)
                assert number > mine - 110 or found[number][2] == expected
            assert mine - 300 not in found
            last = int((await records.get(b"p%d" % name, b"last")).value)
            assert last >= mine // 10
            assert await records.get(b"p%d" % name, b"%d" % (mine // 10)) is not None or last > mine // 10 + 15
            assert await records.get(b"p%d" % name, b"%d" % max(0, mine // 10 - 30)) is None
        await to.stop()

    asyncio.run(check())


def test_a_move_that_was_interrupted_goes_on_and_a_pass_while_it_runs_may_be_all(tmp_path, postgres_server, capsys):
    data = tmp_path / "data"

    async def fill(first, last):
        stores = Stores(data=data)
        records = await stores.records("again")
        for number in range(first, last):
            await records.write(b"p", [Put(b"%04d" % number, b"x")])
        await records.fold()
        await stores.stop()

    asyncio.run(fill(0, 150))
    holder = data_folder.hold(data)
    move = asked(data, f"sqlite:///{data}/state", postgres_server.url, once=True)
    assert asyncio.run(move_store._move(move)) == 0
    assert "150 looked at, 150 copied" in capsys.readouterr().err
    holder.release()
    asyncio.run(fill(150, 160))
    holder = data_folder.hold(data)
    assert asyncio.run(move_store._move(move)) == 0
    assert "160 looked at, 10 copied" in capsys.readouterr().err
    holder.release()
    assert asyncio.run(move_store._move(asked(data, move.source, move.target))) == 0
    assert '"rows":160' in capsys.readouterr().out


def test_a_target_that_differs_is_never_called_equal(tmp_path, postgres_server, monkeypatch):
    data = tmp_path / "data"

    async def fill():
        stores = Stores(data=data)
        await (await stores.records("proof")).write(b"p", [Put(b"a", b"x"), Put(b"b", b"y")])
        await stores.stop()

    async def spoil(mover):
        sql = await mover._to.rows("records", "proof")
        await sql.commit([Statement("UPDATE record SET value=?1 WHERE sort=?2", (b"z", b"b"))])

    asyncio.run(fill())
    real = move_store._window

    async def window(mover, line):
        before = mover.proofs

        async def proofs(show):
            await spoil(mover)
            return await before(show)

        mover.proofs = proofs
        return await real(mover, line)

    monkeypatch.setattr(move_store, "_window", window)
    with pytest.raises(Conflict) as told:
        asyncio.run(move_store._move(asked(data, f"sqlite:///{data}/state", postgres_server.url)))
    assert told.value.reason == "not_equal"
    data_folder.hold(data).release()


def test_objects_reach_s3_and_are_read_back(tmp_path, s3_server, capsys):
    data = tmp_path / "data"

    async def fill(stores):
        blobs = await stores.blobs("films")
        for number in range(12):
            await blobs.put(f"a/{number}", b"%d" % number * 1_000, media_type="video/mp4")
        await blobs.delete("a/3")
        await stores.stop()

    asyncio.run(fill(Stores(data=data)))
    move = asked(data, f"folder:///{data}/blobs", s3_server.url)
    assert asyncio.run(move_store._move(move)) == 0
    assert '"rows":11' in capsys.readouterr().out

    async def change():
        stores, to = Stores(data=data), Stores(StoresSettings(blobs=s3_server.url))
        blobs, there = await stores.blobs("films"), await to.blobs("films")
        assert (await there.info("a/11")).media_type == "video/mp4"
        await blobs.put("a/5", b"new")
        await blobs.delete("a/6")
        await stores.stop()

    asyncio.run(change())
    assert asyncio.run(move_store._move(move)) == 0
    assert '"rows":10' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "target", "error"),
    [
        ("sqlite:///{data}/nowhere", "postgresql://u:p@127.0.0.1:9/x", Misconfigured),
        ("sqlite:///{data}/state", "redis://127.0.0.1:9", Misconfigured),
        ("sqlite:///{data}/state", "postgresql://u:secret@127.0.0.1:9/x", Unavailable),
        ("folder:///{data}/blobs", "s3://k:s@bucket?endpoint=http://127.0.0.1:9", Unavailable),
    ],
)
def test_what_cannot_be_moved_is_one_clear_error(tmp_path, source, target, error):
    async def fill():
        stores = Stores(data=tmp_path)
        await (await stores.records("x")).write(b"p", [Put(b"s", b"")])
        await (await stores.blobs("x")).put("a", b"")
        await stores.stop()

    asyncio.run(fill())
    began = time.monotonic()
    with pytest.raises(error) as told:
        asyncio.run(move_store._move(asked(tmp_path, source, target)))
    assert "secret" not in str(told.value)
    assert time.monotonic() - began < 30


def test_types_are_named_as_postgresql_does_and_texts_stay():
    assert for_postgres("CREATE TABLE t (v BLOB, n INTEGER DEFAULT 'INTEGER', f FLOAT) WITHOUT ROWID") == (
        "CREATE TABLE t (v BYTEA, n BIGINT DEFAULT 'INTEGER', f DOUBLE PRECISION)"
    )

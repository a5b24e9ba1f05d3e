"""What an exchange with PostgreSQL promises, beside what `Sql` promises."""

import asyncio

import asyncpg
import pytest

from fourplane.foundation.errors import Conflict, Rejected, Unavailable
from fourplane.state.contracts import Statement
from fourplane.state.engines.postgres import PostgresSettings, PostgresSql
from fourplane.state.engines.postgres_line import Answer, Ask, Line, LineLost


def with_line(server, body, *, named_max=500, timeout_s=10.0):
    async def main():
        line = await Line.open(server.url, session={}, named_max=named_max, timeout_s=timeout_s)
        try:
            await body(line)
        finally:
            line.close()

    asyncio.run(main())


def test_statements_of_an_exchange_are_one_transaction_and_one_write(postgres_server):
    async def body(line):
        writes = []
        line._transport, real = type("Counting", (), {"write": lambda _, data: writes.append(data)})(), line._transport
        running = line.run(
            [Ask("CREATE TEMP TABLE t (n BIGINT)"), *[Ask("INSERT INTO t VALUES ($1)", (n,)) for n in (1, 2)]]
        )
        task = asyncio.ensure_future(running)
        await asyncio.sleep(0)
        line._transport = real
        assert len(writes) == 1
        real.write(writes[0])
        assert [answer.changed for answer in await task] == [0, 1, 1]
        with pytest.raises(asyncpg.UndefinedTableError):
            await line.run([Ask("DELETE FROM t"), Ask("SELECT * FROM nowhere"), Ask("DELETE FROM t")])
        assert await line.run([Ask("SELECT n FROM t ORDER BY n")]) == [Answer([(1,), (2,)], 2)]

    with_line(postgres_server, body)


def test_who_looks_at_the_answers_may_undo_them(postgres_server):
    async def body(line):
        await line.run([Ask("CREATE TEMP TABLE t (n BIGINT)")])

        async def put(number, verdict):
            await line.run(
                [Ask("INSERT INTO t VALUES ($1)", (number,))], check=lambda answers: verdict(answers[0].changed)
            )

        await put(1, lambda changed: None if changed == 1 else AssertionError(changed))
        with pytest.raises(KeyError):
            await put(2, lambda _: KeyError("no"))
        with pytest.raises(asyncpg.InvalidTextRepresentationError):
            await line.run([Ask("INSERT INTO t VALUES ($1)", ("x",))], check=lambda _: None)
        assert (await line.run([Ask("SELECT n FROM t")]))[0].rows == [(1,)]

    with_line(postgres_server, body)


def test_exchanges_follow_each_other_and_each_hears_its_own_answer(postgres_server):
    async def body(line):
        questions = ["SELECT CAST($1 AS BIGINT)", "SELECT 1/CAST($1 AS BIGINT)"] * 2
        told = await asyncio.gather(*[line.run([Ask(text, (0,))]) for text in questions], return_exceptions=True)
        assert told[0] == told[2] == [Answer([(0,)], 1)]
        assert all(isinstance(one, asyncpg.DivisionByZeroError) for one in told[1::2])
        gone = asyncio.ensure_future(line.run([Ask("SELECT 1")]))
        await asyncio.sleep(0)
        gone.cancel()
        assert await line.run([Ask("SELECT 2")]) == [Answer([(2,)], 1)]
        assert line.underway == 0

    with_line(postgres_server, body)


def test_names_of_statements_are_bounded_and_wrong_ones_are_forgotten(postgres_server):
    async def body(line):
        for turn in range(3):
            for number in range(4):
                assert (await line.run([Ask(f"SELECT {number} + $1", (turn,))]))[0].rows == [(number + turn,)]
            with pytest.raises(asyncpg.PostgresSyntaxError):
                await line.run([Ask("SELECT FROM WHERE")])
            with pytest.raises(TypeError):
                await line.run([Ask("SELECT $1", (object(),))])
        [(rows, _)] = await line.run([Ask("SELECT count(*) FROM pg_prepared_statements")])
        assert rows[0][0] <= 3

    with_line(postgres_server, body, named_max=3)


def test_every_kind_of_value_goes_there_and_comes_back(postgres_server):
    async def body(line):
        text = "SELECT CAST($1 AS BIGINT), CAST($2 AS TEXT), CAST($3 AS BYTEA), CAST($4 AS DOUBLE PRECISION), CAST($5 AS NUMERIC)"
        values = (-(2**63), 'é "\\ 漢', bytes(range(256)), -1.5e-300, 2**70)
        for each in (values, values, (None,) * 5, (0, "", b"", 0.0, 0.5)):  # first as text, then as the columns are
            assert (await line.run([Ask(text, each)]))[0].rows == [each]
        assert (await line.run([Ask("SELECT n FROM generate_series(1, 50) AS n", (), 7)]))[0].rows == [
            (n,) for n in range(1, 8)
        ]

    with_line(postgres_server, body)


def test_a_server_that_does_not_answer_in_time_is_left(postgres_server):
    async def body(line):
        with pytest.raises(TimeoutError):
            await line.run([Ask("SELECT pg_sleep(60)")])
        with pytest.raises(LineLost):
            await line.run([Ask("SELECT 1")])

    with_line(postgres_server, body, timeout_s=0.05)


def test_a_table_that_changed_its_columns_is_read_anew(postgres_server):
    async def main():
        sql = await PostgresSql.open(postgres_server.url, schema="columns", settings=PostgresSettings(readers_max=1))
        await sql.commit([Statement("CREATE TABLE t (n BIGINT)"), Statement("INSERT INTO t VALUES (1)")])
        for _ in range(2):
            assert await sql.read("SELECT * FROM t") == [(1,)]
        await sql.commit([Statement("ALTER TABLE t ADD COLUMN m TEXT DEFAULT 'x'")])
        assert await sql.read("SELECT * FROM t") == [(1, "x")]
        put = Statement("UPDATE t SET n=n+1 RETURNING *", expect_rows=1)
        assert await sql.commit([put]) == [[(2, "x")]]
        await sql.commit([Statement("ALTER TABLE t DROP COLUMN m")])
        assert await sql.commit([put]) == [[(3,)]]
        await sql.close()
        with pytest.raises(Unavailable):
            await sql.read("SELECT 1")

    asyncio.run(main())


def test_commits_and_reads_beyond_the_connections_wait_their_turn(postgres_server):
    async def main():
        bounds = PostgresSettings(connections_max=2, readers_max=2)
        sql = await PostgresSql.open(postgres_server.url, schema="turns", settings=bounds)
        await sql.commit([Statement("CREATE TABLE t (n BIGINT PRIMARY KEY)")])
        put = [sql.commit([Statement("INSERT INTO t VALUES (?1)", (n % 15,), expect_rows=1)]) for n in range(20)]
        told = await asyncio.gather(*put, return_exceptions=True)
        assert sum(isinstance(one, Conflict) for one in told) == 5
        leaving = [asyncio.ensure_future(sql.commit([Statement("DELETE FROM t WHERE n=0")])) for _ in range(10)]
        await asyncio.sleep(0)
        for one in leaving[::2]:
            one.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        found = await asyncio.gather(*[sql.read("SELECT count(*) FROM t") for _ in range(30)])
        assert found == [[(14,)]] * 30
        figures = sql.statistics()
        assert (figures.connections, figures.waiting) == (2, 0)
        with pytest.raises(Rejected):
            await sql.read("DELETE FROM t")
        await sql.close()

    asyncio.run(main())

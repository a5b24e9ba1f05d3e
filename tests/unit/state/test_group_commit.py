import asyncio

import pytest

from fourplane.foundation.errors import Conflict, Rejected
from fourplane.state.contracts import Statement
from fourplane.state.stores import Stores

INSERT = "INSERT INTO t (id, v) VALUES (?1, ?2)"


def with_sql(body, tmp_path):
    async def main():
        stores = Stores(data=tmp_path)
        sql = await stores.sql("s")
        await sql.commit([Statement("CREATE TABLE t (id BIGINT PRIMARY KEY, v TEXT)")])
        await body(sql)
        await stores.stop()

    asyncio.run(main())


def test_neighbours_that_fail_undo_only_themselves(tmp_path):
    async def body(sql):
        wanted = [1, 2, 2, 3, 1, 4, 4, 4, 5]
        found = await asyncio.gather(
            *[sql.commit([Statement(INSERT, (number, f"at {at}"))]) for at, number in enumerate(wanted)],
            return_exceptions=True,
        )
        assert [isinstance(each, Conflict) for each in found] == [
            number in wanted[:at] for at, number in enumerate(wanted)
        ]
        assert await sql.read("SELECT id, v FROM t ORDER BY id") == [
            (1, "at 0"),
            (2, "at 1"),
            (3, "at 3"),
            (4, "at 5"),
            (5, "at 8"),
        ]
        assert sql.statistics().refused == 4

    with_sql(body, tmp_path)


def test_callers_of_one_group_run_in_the_order_they_asked(tmp_path):
    async def body(sql):
        found = await asyncio.gather(
            sql.commit([Statement(INSERT, (1, "a"))]),
            sql.commit([Statement("UPDATE t SET v=v || 'b' WHERE id=?1", (1,))]),
            sql.commit([Statement("UPDATE t SET v=v || 'c' WHERE id=?1 RETURNING v", (1,))]),
            sql.commit([Statement("UPDATE t SET v=v || 'd' WHERE id=?1", (1,), expect_rows=1)]),
            sql.commit([Statement(INSERT, (2, "x"))]),
            sql.commit([Statement("DELETE FROM t WHERE id=?1", (2,))]),
            sql.commit([Statement(INSERT, (2, "y"))]),
        )
        assert found == [[[]], [[]], [[("abc",)]], [[]], [[]], [[]], [[]]]
        assert await sql.read("SELECT v FROM t ORDER BY id") == [("abcd",), ("y",)]

    with_sql(body, tmp_path)


@pytest.mark.parametrize("parameters", [(1,), (1, "a", "too many"), (1, object())])
def test_wrong_parameters_are_one_callers_own(tmp_path, parameters):
    async def body(sql):
        found = await asyncio.gather(
            sql.commit([Statement(INSERT, (7, "before"))]),
            sql.commit([Statement(INSERT, parameters)]),
            sql.commit([Statement(INSERT, (8, "behind"))]),
            return_exceptions=True,
        )
        assert isinstance(found[1], Rejected)
        assert await sql.read("SELECT id FROM t ORDER BY id") == [(7,), (8,)]

    with_sql(body, tmp_path)


def test_two_statements_in_one_text_are_not_taken_for_one(tmp_path):
    async def body(sql):
        await sql.commit([Statement("INSERT INTO t (id, v) VALUES (1, 'a'); INSERT INTO t (id, v) VALUES (2, 'b')")])
        await sql.commit([Statement("INSERT INTO t (id, v) VALUES (3, 'returning')")])
        assert await sql.read("SELECT count(*) FROM t") == [(3,)]

    with_sql(body, tmp_path)


def test_a_commit_that_is_told_is_durable_and_seen_when_it_is_told(tmp_path):
    async def body(sql):
        loop, told = asyncio.get_running_loop(), []
        ended = loop.create_future()

        def hear(error):
            told.append((error, list(sql.database.read("SELECT id FROM t ORDER BY id"))))
            if len(told) == 3:
                ended.set_result(None)

        sql.commit_soon([Statement(INSERT, (1, "a"))], hear)
        assert sql.statistics().waiting == 0, "begun at once"
        sql.commit_soon([Statement(INSERT, (2, "b")), Statement(INSERT, (3, "c"))], hear)
        sql.commit_soon([Statement(INSERT, (4, "d")), Statement(INSERT, (1, "again"))], hear)
        assert sql.statistics().waiting == 2, "together, behind the one under way"
        await ended
        assert told[:2] == [(None, [(1,)]), (None, [(1,), (2,), (3,)])]
        assert isinstance(told[2][0], Conflict)
        assert told[2][1] == [(1,), (2,), (3,)], "what failed left nothing"

    with_sql(body, tmp_path)

"""Callers share commits and statements, and nobody pays for anybody else's conflict."""

import asyncio

import pytest
from tests.unit.service.running import run_with_sql

from fourplane.foundation.errors import Conflict, Unavailable
from fourplane.foundation.lifecycle import Tasks
from fourplane.service.shared_commit import Row, SharedCommit, SharedCommitSettings, Template, rendered
from fourplane.state.contracts import Statement

PUT = Template("INSERT INTO thing (id, name) VALUES ", "({}, {})", label="put")
TAKE = Template(
    "UPDATE pile SET count = count - v.column2 FROM (VALUES ", "(CAST({} AS BIGINT), CAST({} AS BIGINT))",
    ") AS v WHERE pile.id = v.column1 AND pile.count >= v.column2", summed=True, label="take",
)  # fmt: skip
DROP = Template("DELETE FROM thing WHERE id IN (", "{}", ")", counted=False)


class Counted:
    """A store that counts commits and statements."""

    def __init__(self, sql):
        self.sql, self.commits, self.statements, self.dialect = sql, 0, 0, sql.dialect

    async def read(self, *arguments):
        return await self.sql.read(*arguments)

    async def commit(self, statements):
        self.commits += 1
        self.statements += len(statements)
        return await self.sql.commit(statements)


def with_line(body, settings=None):
    async def main(sql):
        await sql.commit([Statement("CREATE TABLE thing (id BIGINT PRIMARY KEY, name TEXT)")])
        await sql.commit([Statement("CREATE TABLE pile (id BIGINT PRIMARY KEY, count BIGINT)")])
        await sql.commit([Statement("INSERT INTO pile VALUES (1, 10), (2, 1000)")])
        counted = Counted(sql)
        line = SharedCommit(counted, settings)
        tasks = Tasks("test", asyncio.get_running_loop().create_future())
        line.open(tasks)
        await body(line, counted)
        line.close()
        await tasks.cancel()

    run_with_sql(main)


def test_a_hundred_callers_share_a_commit_and_a_few_statements():
    async def body(line, sql):
        await asyncio.gather(*(line.commit([Row(PUT, (number, "x")), Row(TAKE, (2, 3))]) for number in range(100)))
        assert sql.commits <= 2
        assert sql.statements <= 12
        assert await sql.read("SELECT COUNT(*) FROM thing") == [(100,)]
        assert await sql.read("SELECT count FROM pile WHERE id = 2") == [(700,)]

    with_line(body)


def test_only_those_who_come_too_late_are_refused():
    async def body(line, sql):
        work = (line.commit([Row(PUT, (number, "x")), Row(TAKE, (1, 1))]) for number in range(30))
        answers = await asyncio.gather(*work, return_exceptions=True)
        refused = [one for one in answers if one is not None]
        assert len(refused) == 20
        assert {one.fields["label"] for one in refused} == {"take"}
        assert await sql.read("SELECT COUNT(*) FROM thing") == [(10,)], "what was refused left nothing"
        assert await sql.read("SELECT count FROM pile WHERE id = 1") == [(0,)]

    with_line(body)


def test_a_key_that_is_taken_hurts_only_its_owner():
    async def body(line, sql):
        answers = await asyncio.gather(
            *(line.commit([Row(PUT, (number // 2, f"{number}"))]) for number in range(10)), return_exceptions=True
        )
        assert sum(isinstance(one, Conflict) for one in answers) == 5
        assert await sql.read("SELECT COUNT(*) FROM thing") == [(5,)]

    with_line(body)


def test_what_cannot_be_written_hurts_only_its_owner():
    async def body(line, sql):
        bad = [Row(PUT, (1 << 70, "too large a number")), Row(PUT, (5, object()))]
        answers = await asyncio.gather(
            *(line.commit([one]) for one in (*bad, Row(PUT, (1, "x")), Row(PUT, (2, "y")))), return_exceptions=True
        )
        assert [isinstance(one, Exception) for one in answers] == [True, True, False, False]
        await line.commit([Row(PUT, (3, "z"))])
        assert await sql.read("SELECT id FROM thing ORDER BY id") == [(1,), (2,), (3,)]

    with_line(body)


def test_a_fence_is_checked_once_for_all_and_stops_all():
    async def body(line, sql):
        fence = Statement("SELECT 1 FROM pile WHERE id = ?1", (1,), expect_rows=1, label="fence")
        await asyncio.gather(*(line.commit([Row(PUT, (number, "x"))], fences=(fence,)) for number in range(8)))
        assert sql.statements <= 4
        closed = Statement("SELECT 1 FROM pile WHERE id = ?1", (99,), expect_rows=1, label="fence")
        answers = await asyncio.gather(
            *(line.commit([Row(PUT, (number, "y"))], fences=(closed,)) for number in range(20, 24)),
            return_exceptions=True,
        )
        assert [one.fields["label"] for one in answers] == ["fence"] * 4

    with_line(body)


def test_a_caller_alone_does_not_wait_for_others():
    async def body(line, sql):
        for number in range(5):
            await line.commit([Row(PUT, (number, "x"))])
        assert line.statistics().commits == line.statistics().callers == 5

    with_line(body)


def test_a_crowd_does_not_wait_for_the_pace_and_a_few_do():
    async def body(line, sql):
        for round_ in range(3):
            await asyncio.gather(*(line.commit([Row(PUT, (round_ * 10 + number, "x"))]) for number in range(8)))
        assert sql.commits <= 4, "as many as lately came together"
        before = sql.commits
        few = [asyncio.ensure_future(line.commit([Row(PUT, (100 + number, "x"))])) for number in range(3)]
        for _ in range(50):
            await asyncio.sleep(0)
        assert sql.commits == before
        assert line.statistics().waiting == 3
        await asyncio.gather(*few, *(line.commit([Row(PUT, (200 + number, "x"))]) for number in range(8)))
        assert sql.commits == before + 1

    with_line(body, SharedCommitSettings(pace_s=3_600.0))


def test_who_waits_when_the_line_closes_hears_it():
    async def body(line, sql):
        waiting = asyncio.ensure_future(line.commit([Row(PUT, (1, "x"))]))
        await asyncio.sleep(0)
        line.close()
        with pytest.raises(Unavailable):
            await waiting
        with pytest.raises(Unavailable):
            await line.commit([Row(PUT, (2, "x"))])

    with_line(body)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 65, 200])
def test_any_number_of_rows_is_written_in_statements_of_few_sizes(count):
    statements = rendered([Row(PUT, (number, f"n{number}")) for number in range(count)])
    assert sum(statement.expect_rows for statement in statements) == count
    assert [value for statement in statements for value in statement.parameters[::2]] == list(range(count))
    assert len(statements) <= 3 + count // 64 + 3


def test_equal_counters_become_one_row_and_uncounted_rows_expect_nothing():
    [statement] = rendered([Row(TAKE, (1, 2)), Row(TAKE, (1, 3))])
    assert (statement.parameters, statement.expect_rows) == ((1, 5), 1)
    [statement] = rendered([Row(DROP, (5,))])
    assert (statement.sql, statement.expect_rows) == ("DELETE FROM thing WHERE id IN (?1)", None)


def test_only_an_insert_of_just_its_rows_is_sure_to_write_them_all():
    keep = Template(PUT.head, PUT.row, " ON CONFLICT DO NOTHING")
    for far in (False, True):
        works = [Row(one, (number, 1)) for one in (PUT, keep, TAKE) for number in (1, 2)]
        assert [one.sure for one in rendered(works, far=far)] == [True, False, False]


def test_far_away_any_number_of_rows_is_one_statement_of_one_text():
    few, many = (
        rendered(
            [work for number in range(count) for work in (Row(PUT, (number, "x")), Row(DROP, (number,)))], far=True
        )
        for count in (2, 61)
    )
    assert [one.sql for one in few] == [one.sql for one in many]
    assert [one.expect_rows for one in many] == [61, None]
    assert many[0].sql == (
        "INSERT INTO thing (id, name) SELECT r.place0 AS column1, r.place1 AS column2 "
        "FROM unnest(CAST(?1 AS BIGINT[]), CAST(?2 AS TEXT[])) AS r(place0, place1)"
    )
    assert many[0].parameters == (f"{{{','.join(map(str, range(61)))}}}", "{" + ",".join(['"x"'] * 61) + "}")


def test_far_away_a_missing_value_travels_in_its_column():
    [statement] = rendered([Row(PUT, (1, None)), Row(PUT, (2, 'a "b" \\'))], far=True)
    assert statement.parameters == ("{1,2}", '{NULL,"a \\"b\\" \\\\"}')


def test_far_away_columns_of_several_kinds_or_of_nothing_go_as_near():
    for works in ([Row(PUT, (1, 5)), Row(PUT, (2, "x"))], [Row(PUT, (1, None)), Row(PUT, (2, None))]):
        assert rendered(works, far=True) == rendered(works)

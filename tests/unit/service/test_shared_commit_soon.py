"""Where the store can, a shared commit begins at once, and callers hear of it in the turn in which it is durable."""

import asyncio

import pytest
from tests.unit.service.running import run_with_sql

from fourplane.foundation.errors import Conflict, Overloaded, Unavailable
from fourplane.foundation.lifecycle import Tasks
from fourplane.service.shared_commit import CommitsSoon, Row, SharedCommit, SharedCommitSettings, Template
from fourplane.state.contracts import Statement

PUT = Template("INSERT INTO thing (id, name) VALUES ", "({}, {})", label="put")


class Held:
    """A store whose commits end when the test says so."""

    dialect = "sqlite"

    def __init__(self):
        self.told = []
        self.refusal = None

    def commit_soon(self, statements, told):
        if self.refusal is not None:
            raise self.refusal
        self.told.append((statements, told))


def with_line(sql, body):
    async def main():
        line = SharedCommit(sql)
        tasks = Tasks("test", asyncio.get_running_loop().create_future())
        line.open(tasks)
        await body(line, tasks)
        line.close()
        await tasks.cancel()

    asyncio.run(main())


async def turns(count=3):
    for _ in range(count):
        await asyncio.sleep(0)


def test_callers_are_told_in_the_call_itself():
    held = Held()

    async def body(line, _tasks):
        waiting = asyncio.ensure_future(line.commit([Row(PUT, (1, "x"))]))
        await turns()
        [(_, told)] = held.told
        told(None)
        await asyncio.sleep(0)  # one turn, not one for the line and another for its caller
        assert waiting.done()
        await waiting

    with_line(held, body)


@pytest.mark.parametrize("soon", [True, False], ids=["refused when it began", "failed later"])
def test_an_error_reaches_every_caller(soon):
    held, error = Held(), Overloaded("too many commits wait")
    held.refusal = error if soon else None

    async def body(line, _tasks):
        waiting = [asyncio.ensure_future(line.commit([Row(PUT, (number, "x"))])) for number in range(3)]
        await turns()
        if not soon:
            held.told[0][1](error)
        assert await asyncio.gather(*waiting, return_exceptions=True) == [error] * 3

    with_line(held, body)


def test_a_line_that_is_stopped_tells_those_it_was_writing_for():
    held = Held()

    async def body(line, tasks):
        waiting = asyncio.ensure_future(line.commit([Row(PUT, (1, "x"))]))
        await turns()
        await tasks.cancel()
        with pytest.raises(Unavailable):
            await waiting
        held.told[0][1](None)  # the store ends later

    with_line(held, body)


def test_on_the_embedded_store_a_conflict_hurts_only_its_caller():
    async def main(sql):
        assert isinstance(sql, CommitsSoon)
        await sql.commit([Statement("CREATE TABLE thing (id BIGINT PRIMARY KEY, name TEXT)")])
        line = SharedCommit(sql)
        tasks = Tasks("test", asyncio.get_running_loop().create_future())
        line.open(tasks)
        works = [line.commit([Row(PUT, (number % 9, "x"))]) for number in range(10)]
        told = await asyncio.gather(*works, return_exceptions=True)
        assert sum(isinstance(one, Conflict) for one in told) == 1
        assert await sql.read("SELECT COUNT(*) FROM thing") == [(9,)]
        line.close()
        await tasks.cancel()

    run_with_sql(main)


def test_who_came_meanwhile_is_written_in_the_turn_in_which_the_one_before_was_durable():
    held = Held()

    async def body(line, _tasks):
        first = asyncio.ensure_future(line.commit([Row(PUT, (1, "x"))]))
        await turns()
        rest = [asyncio.ensure_future(line.commit([Row(PUT, (number, "x"))])) for number in range(2, 5)]
        await turns()
        assert len(held.told) == 1, "one commit at a time"
        held.told[0][1](None)
        assert len(held.told) == 2
        assert len(held.told[1][0][0].parameters) == 6, "all three"
        held.told[1][1](None)
        await asyncio.gather(first, *rest)
        assert line.statistics().commits == 2

    with_line(held, body)


def test_a_store_that_is_through_at_once_serves_any_number_of_commits_in_a_row():
    class Memory(Held):
        def commit_soon(self, statements, told):
            self.told.append(statements)
            told(None)

    async def main():
        memory = Memory()
        line = SharedCommit(memory, SharedCommitSettings(batch_max=1, gather_from=2, pace_from=2))
        tasks = Tasks("test", asyncio.get_running_loop().create_future())
        line.open(tasks)
        await asyncio.gather(*(line.commit([Row(PUT, (number, "x"))]) for number in range(2_000)))
        assert len(memory.told) == 2_000
        await tasks.cancel()

    asyncio.run(main())


def test_a_line_that_was_closed_while_it_waited_for_its_pace_writes_nothing():
    held = Held()

    async def main():
        line = SharedCommit(held, SharedCommitSettings(pace_s=3_600.0))
        tasks = Tasks("test", asyncio.get_running_loop().create_future())
        line.open(tasks)
        first = [asyncio.ensure_future(line.commit([Row(PUT, (number, "x"))])) for number in range(4)]
        await turns()
        held.told[0][1](None)
        late = asyncio.ensure_future(line.commit([Row(PUT, (9, "x"))]))
        await turns()
        await asyncio.gather(*first)
        assert len(held.told) == 1, "it waits for the pace"
        line.close()
        await tasks.cancel()
        with pytest.raises(Unavailable):
            await late
        assert len(held.told) == 1

    asyncio.run(main())

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from fourplane.simulator import loop as simulator
from fourplane.state.embedded.key_filter import codes_of, key_code, partition_code
from fourplane.state.embedded.overlay import InOrder, MemoryTable
from fourplane.state.embedded.pace import ROWS_LEAST, ROWS_QUIET, Pace
from fourplane.state.embedded.sorted_runs import MemoryRuns, Merging, RunBuilder

KEYS = st.tuples(st.binary(min_size=1, max_size=2), st.binary(min_size=1, max_size=2))
STATES = st.tuples(st.none() | st.binary(max_size=4), st.integers(1, 9), st.none() | st.integers(1, 9))
TABLES = st.lists(st.dictionaries(KEYS, STATES, min_size=1, max_size=70), min_size=1, max_size=4)


def run_of(store, number, model):
    table = MemoryTable()
    table.add([(*key, *state) for key, state in model.items()])
    order = InOrder(table)
    while order.sort_some(7):
        pass
    builder = RunBuilder(number)
    for rows in order.buckets(20):
        at = builder.size
        store.write(number, at, builder.add(rows))
    assert builder.new_codes().tolist() == codes_of(sorted(model)).tolist()
    assert not len(builder.new_codes())
    at = builder.size
    last, run = builder.finish(store)
    store.write(number, at, last)
    return run


@settings(max_examples=60, deadline=None)
@given(models=TABLES, rows=st.integers(1, 60))
def test_runs_say_what_was_written_and_merge_to_the_newest(models, rows):
    store, newest = MemoryRuns(), {}
    runs = [run_of(store, number, model) for number, model in enumerate(models, 1)]
    for run, model in zip(runs, models, strict=True):
        newest |= model
        assert run.rows == len(model)
        for key, state in model.items():
            assert run.may_hold(key_code(*key))
            assert run.may_hold(partition_code(key[0]))
            assert run.find(*key) == state
        for partition, sort in list(newest)[:10]:
            assert run.find(partition, sort) == model.get((partition, sort))
            expected = [(*key, *model[key]) for key in sorted(model) if key[0] == partition and key[1] >= sort]
            assert list(run.rows_of(partition, sort, None, reverse=False)) == expected
            assert list(run.rows_of(partition, sort, None, reverse=True)) == expected[::-1]
            expected = [(*key, *model[key]) for key in sorted(model) if key[0] == partition and key[1] < sort]
            assert list(run.rows_of(partition, b"", sort, reverse=True)) == expected[::-1]
    merging, found, last = Merging(runs), [], False
    while not last:
        window, last = merging.window(rows)
        found += window
    assert found == [(*key, *newest[key]) for key in sorted(newest)]


def test_large_values_have_blocks_of_their_own():
    model = {(b"p", b"%d" % number): (bytes([number]) * 40_000, 1, None) for number in range(9)}
    run = run_of(MemoryRuns(), 1, model)
    assert len(run.firsts) == 9
    assert all(run.find(*key) == state for key, state in model.items())


def test_a_turn_comes_with_a_group_or_after_a_while():
    async def body(_world):
        pace = Pace()
        turn = asyncio.ensure_future(pace.in_passing())
        await asyncio.sleep(0)
        begun = pace.sent(100)
        await asyncio.sleep(0)
        assert not turn.done()  # the disk has not got it yet
        begun()
        assert await turn == 200
        assert pace.sent(100) is None  # nobody waits
        turn = asyncio.ensure_future(pace.in_passing())
        await asyncio.sleep(0)
        pace.hurry()
        assert await turn == ROWS_LEAST
        assert await pace.in_passing() == ROWS_QUIET

    simulator.run(body, 1)


def test_it_is_quiet_when_little_was_written_lately():
    async def body(_world):
        pace = Pace()
        assert await pace.look()
        pace.sent(1_000_000)
        assert not await pace.look()

    simulator.run(body, 1)

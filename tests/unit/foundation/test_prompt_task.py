import asyncio
import contextvars

import pytest

from fourplane.foundation.lifecycle import Tasks


def start_now(work, name):
    failed = asyncio.get_running_loop().create_future()
    return Tasks("part", failed).start_now(work, name)


WHO = contextvars.ContextVar("who", default="nobody")


def test_the_first_step_is_taken_at_once_as_the_task_and_in_its_own_context(run_on_each_loop):
    async def main():
        seen, waiting = [], asyncio.get_running_loop().create_future()

        async def work():
            seen.append((asyncio.current_task(), WHO.get()))
            WHO.set("me")
            got = await waiting
            seen.append((asyncio.current_task(), WHO.get()))
            return got

        WHO.set("starter")
        task = start_now(work(), "work")
        assert seen == [(task, "starter")]
        assert asyncio.current_task() is not task
        assert WHO.get() == "starter"
        waiting.set_result("done")
        assert await task == "done"
        assert seen[1] == (task, "me")
        assert task.get_name() == "part.work"

    run_on_each_loop(main)


def test_work_that_never_waits_has_ended_and_the_task_tells_it_later(run_on_each_loop):
    async def main():
        seen = []

        async def work(error=None):
            seen.append(1)
            if error is not None:
                raise error
            return "result"

        good, bad = start_now(work(), "good"), start_now(work(KeyError("x")), "bad")
        assert seen == [1, 1]
        assert not good.done()
        assert not bad.done()
        assert await good == "result"
        with pytest.raises(KeyError):
            await bad

    run_on_each_loop(main)


def test_a_timeout_set_up_in_the_first_step_is_the_tasks_own(run_on_each_loop):
    async def main():
        async def work():
            try:
                async with asyncio.timeout(0.01):
                    await asyncio.Event().wait()
            except TimeoutError:
                return "late"

        assert await start_now(work(), "work") == "late"
        assert asyncio.current_task().cancelling() == 0

    run_on_each_loop(main)


@pytest.mark.parametrize("turns", [0, 1, 3])
def test_it_can_be_cancelled_from_the_very_start(run_on_each_loop, turns):
    async def main():
        ended = []

        async def work():
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                ended.append("tidy")

        task = start_now(work(), "work")
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == ["tidy"]
        assert task.cancelled()

    run_on_each_loop(main)


def test_it_starts_where_no_task_runs_too(run_on_each_loop):
    async def main():
        loop, told = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

        async def work():
            await asyncio.sleep(0)
            told.set_result(asyncio.current_task().get_name())

        loop.call_soon(lambda: start_now(work(), "from a callback"))
        return await told

    assert run_on_each_loop(main) == "part.from a callback"


def test_many_at_once_all_end(run_on_each_loop):
    async def main():
        async def work(number):
            for _ in range(number % 5):
                await asyncio.sleep(0)
            return number

        return sum(await asyncio.gather(*(start_now(work(number), "one") for number in range(200))))

    assert run_on_each_loop(main) == sum(range(200))

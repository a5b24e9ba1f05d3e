"""Whoever waits goes on where the result is set: in this very turn, as its own task, once."""

import asyncio
import contextvars

import pytest

from fourplane.foundation.prompt_future import PromptFuture


async def waiting(future, heard, name="waiter"):
    """A task that waits for `future` already."""

    async def wait():
        try:
            heard.append((name, await future, asyncio.current_task().get_name()))
        except BaseException as error:
            heard.append((name, repr(error), asyncio.current_task().get_name()))
            raise

    task = asyncio.create_task(wait(), name=name)
    await asyncio.sleep(0)
    return task


def test_the_waiter_goes_on_before_the_setter_does_and_each_is_its_own_task(run_on_each_loop):
    async def main():
        future, heard = PromptFuture(), []
        task = await waiting(future, heard)
        future.set_result(1)
        assert heard == [("waiter", 1, "waiter")]
        assert asyncio.current_task().get_name() != "waiter"
        assert not task.cancelled()
        await task

    run_on_each_loop(main)


def test_the_same_from_a_callback_of_the_loop_that_is_no_task(run_on_each_loop):
    async def main():
        future, heard, seen = PromptFuture(), [], []

        def set_it():
            future.set_result(2)
            seen.append((list(heard), asyncio.current_task()))

        task = await waiting(future, heard)
        asyncio.get_running_loop().call_soon(set_it)
        await task
        assert seen == [([("waiter", 2, "waiter")], None)]

    run_on_each_loop(main)


def test_an_error_is_raised_where_it_is_waited_for(run_on_each_loop):
    async def main():
        future, heard = PromptFuture(), []
        task = await waiting(future, heard)
        future.set_exception(ValueError("no"))
        assert heard == [("waiter", "ValueError('no')", "waiter")]
        with pytest.raises(ValueError, match="no"):
            await task

    run_on_each_loop(main)


def test_one_that_is_done_and_further_waiters_are_woken_as_usual(run_on_each_loop):
    async def main():
        future, heard = PromptFuture(), []
        tasks = [await waiting(future, heard, name) for name in ("first", "second")]
        future.set_result(3)
        assert [name for name, *_ in heard] == ["first"]
        await asyncio.gather(*tasks)
        assert [name for name, *_ in heard] == ["first", "second"]
        assert await future == 3

    run_on_each_loop(main)


def test_a_wait_that_is_given_up_ends_in_its_own_turn_and_the_result_is_nobodys(run_on_each_loop):
    async def main():
        future, heard = PromptFuture(), []
        task = await waiting(future, heard)
        task.cancel()
        assert heard == [], "not inside of cancel"
        with pytest.raises(asyncio.CancelledError):
            await task
        assert future.cancelled()
        shielded = PromptFuture()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(shielded), 0.01)
        shielded.set_result(4)
        assert shielded.result() == 4

    run_on_each_loop(main)


def test_a_callback_that_was_taken_back_is_not_called(run_on_each_loop):
    async def main():
        future, called = PromptFuture(), []
        future.add_done_callback(called.append)
        future.add_done_callback(called.append)
        assert future.remove_done_callback(called.append) == 2
        future.set_result(5)
        await asyncio.sleep(0)
        assert called == []

    run_on_each_loop(main)


def test_a_waiter_that_asks_again_and_sets_others_goes_on_in_its_own_context(run_on_each_loop):
    name = contextvars.ContextVar("name")

    async def main():
        first, second, heard = PromptFuture(), PromptFuture(), []

        async def chain(mine, then, called):
            name.set(called)
            await mine
            heard.append(name.get())
            if then is not None:
                then.set_result(None)
                heard.append(f"{name.get()} again, as {asyncio.current_task().get_name()}")
            await asyncio.sleep(0)
            heard.append(name.get())

        name.set("main")
        tasks = [
            asyncio.create_task(chain(first, second, "one"), name="one"),
            asyncio.create_task(chain(second, None, "two"), name="two"),
        ]
        await asyncio.sleep(0)
        first.set_result(None)
        assert heard == ["one", "two", "one again, as one"]
        assert name.get() == "main"
        await asyncio.gather(*tasks)
        assert sorted(heard[3:]) == ["one", "two"]

    run_on_each_loop(main)


def test_a_callback_that_fails_is_told_to_the_loop_and_not_to_the_setter(run_on_each_loop):
    async def main():
        told, future = [], PromptFuture()
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
        future.add_done_callback(lambda _: 1 / 0)
        future.set_result(6)
        assert future.result() == 6
        assert [type(error) for error in told] == [ZeroDivisionError]

    run_on_each_loop(main)

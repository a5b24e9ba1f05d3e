"""The blocking seam: jobs in order on a named thread, a bound, errors carried home."""

import asyncio
import threading

import pytest

from fourplane.foundation.blocking import Pool, Worker
from fourplane.foundation.errors import Overloaded, Unavailable


def test_jobs_run_in_order_on_one_named_thread():
    async def main():
        worker = Worker("writer")
        names = []
        results = await asyncio.gather(
            *[worker.submit(lambda n=n: names.append(threading.current_thread().name) or n) for n in range(50)]
        )
        worker.close()
        return results, set(names)

    assert asyncio.run(main()) == (list(range(50)), {"writer"})


def test_an_error_reaches_the_caller():
    async def main():
        worker = Worker("writer")
        with pytest.raises(ZeroDivisionError):
            await worker.submit(lambda: 1 // 0)
        assert await worker.submit(lambda: "alive") == "alive"
        worker.close()

    asyncio.run(main())


def test_a_full_queue_refuses_and_a_closed_worker_is_unavailable():
    async def main():
        gate = threading.Event()
        started = threading.Event()
        worker = Worker("writer", queue_max=1)
        first = worker.submit(lambda: (started.set(), gate.wait()))
        while not started.is_set():
            await asyncio.sleep(0)
        second = worker.submit(lambda: 2)
        with pytest.raises(Overloaded):
            worker.submit(lambda: 3)
        gate.set()
        await first
        assert await second == 2
        worker.close()
        with pytest.raises(Unavailable):
            worker.submit(lambda: 4)

    asyncio.run(main())


def test_closing_finishes_what_was_queued():
    done = []

    async def main():
        worker = Worker("writer")
        for number in range(20):
            worker.submit(done.append, number)
        worker.close()

    asyncio.run(main())
    assert done == list(range(20))


def test_a_cancelled_job_hurts_nobody():
    async def main():
        worker = Worker("writer")
        worker.submit(lambda: None).cancel()
        assert await worker.submit(lambda: "next") == "next"
        worker.close()

    asyncio.run(main())


def test_a_pool_runs_jobs_side_by_side():
    async def main():
        pool = Pool("encoder", threads=2)
        meeting = threading.Barrier(2)  # both jobs must be there at once to pass
        await asyncio.gather(pool.run(meeting.wait), pool.run(meeting.wait))
        pool.close()

    asyncio.run(main())


def test_a_loop_with_inline_work_gets_no_thread():
    class InlineLoop(asyncio.SelectorEventLoop):
        seen = None

        def blocking_inline(self, name, work):
            self.seen = name
            future = self.create_future()
            future.set_result(work())
            return future

    loop = InlineLoop()
    before = threading.active_count()

    async def main():
        return await Worker("disk").submit(threading.active_count)

    assert loop.run_until_complete(main()) == before
    assert loop.seen == "disk"
    loop.close()


def test_a_call_tells_on_the_loop_how_it_ended():
    async def main():
        worker, told, ended = Worker("writer", queue_max=4), [], asyncio.get_running_loop().create_future()

        def hear(error):
            told.append((type(error), threading.current_thread() is threading.main_thread()))
            if len(told) == 2:
                ended.set_result(None)

        worker.call(hear, int, "7")
        worker.call(hear, int, "seven")
        await ended
        worker.close()
        with pytest.raises(Unavailable):
            worker.call(hear, int, "8")
        return told

    assert asyncio.run(main()) == [(type(None), True), (ValueError, True)]

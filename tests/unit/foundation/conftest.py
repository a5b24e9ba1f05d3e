"""What the tests of the seams share."""

import asyncio

import pytest

LOOPS = [asyncio.new_event_loop]
try:
    import uvloop

    LOOPS.append(uvloop.new_event_loop)
except ImportError:
    pass


@pytest.fixture(params=LOOPS, ids=lambda make: make.__module__.partition(".")[0])
def run_on_each_loop(request):
    """Runs a coroutine function on asyncio's own loop and on uvloop's, for 20 s at most."""

    def run_there(main):
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(asyncio.wait_for(main(), 20))

    return run_there

"""Parts start in order, stop in reverse, and one that fails takes the process down in order."""

import asyncio

import pytest

from fourplane.foundation import lifecycle
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry


class Part:
    def __init__(self, name, log, *, fails="", work=None):
        self.name, self.log, self.fails, self.work = name, log, fails, work

    async def start(self, tasks):
        await self._do("start")
        if self.work is not None:
            tasks.start(self.work(), "work")

    async def drain(self):
        await self._do("drain")

    async def stop(self):
        await self._do("stop")

    async def _do(self, step):
        self.log.append(f"{step} {self.name}")
        if self.fails == step:
            raise RuntimeError(f"{self.name} cannot {step}")
        if self.fails == f"hang {step}":
            await asyncio.get_running_loop().create_future()


def lives(*parts, steps=("start", "drain", "stop")):
    registry = Registry()

    async def main():
        life = Lifecycle(registry)
        for part in parts:
            life.add(part.name, part)
        for step in steps:
            await getattr(life, step)()
            assert life.ready == (step == "start")

    asyncio.run(main())
    return registry


def test_parts_start_in_order_and_drain_and_stop_in_reverse():
    log = []
    lives(Part("store", log), Part("edge", log))
    assert log == ["start store", "start edge", "drain edge", "drain store", "stop edge", "stop store"]


def test_a_failed_start_stops_what_stands_and_is_raised():
    log = []
    with pytest.raises(RuntimeError, match="edge cannot start"):
        lives(Part("store", log), Part("edge", log, fails="start"), Part("never", log))
    assert log == ["start store", "start edge", "stop edge", "stop store"]


def test_a_failed_stop_is_told_and_the_others_still_stop():
    log = []
    registry = lives(Part("store", log), Part("edge", log, fails="stop"))
    assert log[-2:] == ["stop edge", "stop store"]
    assert any("could not stop edge" in event.text for event in registry.events)


def test_a_hanging_step_is_given_up(monkeypatch):
    monkeypatch.setattr(lifecycle, "STEP_S_MAX", 0.0)
    log = []
    registry = lives(Part("store", log), Part("edge", log, fails="hang drain"))
    assert "stop store" in log
    assert any("edge did not drain" in event.text for event in registry.events)


def test_a_failed_task_is_heard():
    async def broken():
        raise LookupError("lost")

    async def main():
        life = Lifecycle(Registry())
        life.add("edge", Part("edge", [], work=broken))
        await life.start()
        error = await life.wait_failed()
        await life.stop()
        return error

    assert isinstance(asyncio.run(main()), LookupError)


def test_tasks_end_with_their_part():
    ended = []

    async def forever():
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append("task")

    log = []

    async def main():
        life = Lifecycle(Registry())
        life.add("edge", Part("edge", log, work=forever))
        await life.start()
        await asyncio.sleep(0)
        await life.stop()

    asyncio.run(main())
    assert (log, ended) == (["start edge", "stop edge"], ["task"])

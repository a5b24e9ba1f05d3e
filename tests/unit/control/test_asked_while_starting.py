"""A worker that is asked to stop while its parts still start stops at once, in order."""

import asyncio
import os
import signal

import pytest

from fourplane.control.fleet import Worker, serve_until_asked
from fourplane.foundation.errors import Misconfigured
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry


class Part:
    def __init__(self, name, done):
        self.name = name
        self.done = done

    async def start(self, _tasks):
        self.done.append(f"{self.name} started")

    async def drain(self):
        self.done.append(f"{self.name} drained")

    async def stop(self):
        self.done.append(f"{self.name} stopped")


class Waiting(Part):
    """Its start waits for a worker that stops as well; twice, as an impatient parent asks twice."""

    async def start(self, _tasks):
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.Event().wait()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            self.done.append(f"{self.name} given up")


class Broken(Part):
    async def start(self, _tasks):
        raise Misconfigured("this cannot work")


def serve(*parts):
    """The exit code, and what the parent read as readiness."""
    reading, writing = os.pipe()
    lifecycle = Lifecycle(Registry())
    for part in parts:
        lifecycle.add(part.name, part)
    try:
        worker = Worker(0, {}, {}, writing, say=lambda _: None)
        code = asyncio.run(serve_until_asked(worker, lifecycle, lambda: {"port": "1"}))
        os.set_blocking(reading, False)
        with pytest.raises(BlockingIOError):
            os.read(reading, 100)
        return code
    finally:
        os.close(reading)
        os.close(writing)


def test_asked_while_a_part_waits_for_what_never_comes():
    done = []
    code = serve(Part("store", done), Waiting("announcement", done), Part("behind", done))
    assert code == 0
    assert done == ["store started", "announcement given up", "announcement stopped", "store stopped"]


def test_a_part_that_cannot_start_is_an_error_as_before():
    done = []
    with pytest.raises(Misconfigured):
        serve(Part("store", done), Broken("broken", done))
    assert done == ["store started", "broken stopped", "store stopped"]

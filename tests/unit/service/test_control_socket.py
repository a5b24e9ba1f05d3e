import asyncio
import stat

import pytest
from tests.unit.service.running import started

from fourplane.foundation import network
from fourplane.foundation.errors import Conflict, NotFound, Overloaded, Unavailable
from fourplane.service.control_socket import ControlServer, ControlSettings, ask


async def count(arguments, progress):
    for step in range(arguments["to"]):
        progress({"step": step})
    return {"counted": arguments["to"]}


async def refuse(arguments, progress):
    raise Overloaded("busy", retry_after_s=7, code="too_busy", queue=3)


async def break_down(arguments, progress):
    raise ZeroDivisionError("oops")


async def wait_forever(arguments, progress):
    progress({"waiting": True})
    await asyncio.Event().wait()


VERBS = {"count": count, "refuse": refuse, "break": break_down, "wait": wait_forever}


def with_server(main, settings=None):
    def test(tmp_path):
        async def body():
            server = ControlServer(tmp_path / "control.sock", VERBS, settings=settings)
            lifecycle = await started(server)
            try:
                await main(server)
            finally:
                await lifecycle.stop()
                assert not server.path.exists()

        asyncio.run(body())

    return test


async def _answers_with_progress(server):
    steps = []
    assert await ask(server.path, "count", {"to": 3}, steps.append) == {"counted": 3}
    assert steps == [{"step": 0}, {"step": 1}, {"step": 2}]
    assert stat.S_IMODE(server.path.stat().st_mode) == 0o600


async def _keeps_errors(server):
    with pytest.raises(Overloaded) as busy:
        await ask(server.path, "refuse")
    assert (busy.value.reason, busy.value.retry_after_s, busy.value.fields) == ("too_busy", 7, {"queue": "3"})
    with pytest.raises(NotFound):
        await ask(server.path, "nonsense")
    with pytest.raises(Exception, match="ZeroDivisionError: oops"):
        await ask(server.path, "break")
    assert await ask(server.path, "count", {"to": 0}) == {"counted": 0}, "the deployment goes on"


async def _refuses_a_second_server(server):
    with pytest.raises(Conflict):
        await started(ControlServer(server.path, {}))
    assert await ask(server.path, "count", {"to": 0}) == {"counted": 0}


async def _cancels_what_a_leaving_peer_asked(server):
    waiting = asyncio.Event()
    asking = asyncio.ensure_future(ask(server.path, "wait", on_progress=lambda _: waiting.set()))
    await asyncio.wait_for(waiting.wait(), 5)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    async with asyncio.timeout(5):
        while server.connections:
            await asyncio.sleep(0.001)


class Raw(asyncio.Protocol):
    def __init__(self):
        self.told = b""
        self.closed = asyncio.Event()

    def data_received(self, data):
        self.told += data

    def connection_lost(self, exc):
        self.closed.set()


async def _answers_rubbish_with_an_error_and_closes(server):
    for rubbish in (b"GET / HTTP/1.1\r\n\r\n", b"\xff\xfe\n", b'{"id": 1}\n', b"x" * (3 << 20)):
        transport, raw = await network.connect_unix(Raw, str(server.path))
        transport.write(rubbish)
        await asyncio.wait_for(raw.closed.wait(), 5)
        assert b'"code":"rejected"' in raw.told
    assert await ask(server.path, "count", {"to": 1}) == {"counted": 1}


test_verb_answers_after_its_progress = with_server(_answers_with_progress)
test_errors_stay_what_they_were = with_server(_keeps_errors)
test_socket_of_a_living_deployment_is_not_taken = with_server(_refuses_a_second_server)
test_peer_that_leaves_cancels_its_request = with_server(_cancels_what_a_leaving_peer_asked)
test_rubbish_is_answered_and_closed = with_server(_answers_rubbish_with_an_error_and_closes, ControlSettings())


def test_nobody_listening_is_not_running(tmp_path):
    with pytest.raises(Unavailable) as missing:
        asyncio.run(ask(tmp_path / "control.sock", "status"))
    assert missing.value.reason == "not_running"


def test_socket_file_of_a_dead_deployment_is_replaced(tmp_path):
    async def main():
        path = tmp_path / "control.sock"
        path.touch()
        lifecycle = await started(ControlServer(path, VERBS))
        assert await ask(path, "count", {"to": 0}) == {"counted": 0}
        await lifecycle.stop()

    asyncio.run(main())

"""Open connections go from worker to worker, so that each is where its work is (SCM_RIGHTS).

Any worker accepts any connection; the work belongs to one. Handing every request on costs its first worker a request's
work each time; passing the connection costs both a tenth of a millisecond once. HTTP connections are passed between two
requests, when two in a row were for the same other worker; chat connections at the word that names their user
(messaging/handover.py). What is encrypted cannot be passed: its keys are in this process.

Every worker has one socket for what is passed to it; the parent process holds it, so connections wait there while their
owner restarts. Bounds: the socket's queue; when it is full or nobody is there, the connection stays where it is.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from fourplane.foundation import network
from fourplane.foundation.lifecycle import Tasks

if TYPE_CHECKING:
    from fourplane.edge.http_protocol import HttpProtocol
    from fourplane.edge.http_server import HttpServer

HTTP = "http"
TRIES = 4  # turns of the loop to see the answer out

Taken = Callable[[bytes, network.InheritedSocket], None]


class PassingStatistics(msgspec.Struct, frozen=True):
    passed: int
    taken: int
    refused: int


class Passing:
    """What this worker passes on and takes. A lifecycle part."""

    def __init__(self, inherited: network.InheritedSocket, way: Callable[[int], str]) -> None:
        """`way`: the path of the socket of a slot; `inherited`: our own."""
        self._inherited = inherited
        self._way = way
        self._takers: dict[str, Taken] = {}
        self._stop: Callable[[], None] | None = None
        self._passed = self._taken = self._refused = 0

    def takes(self, kind: str, taken: Taken) -> None:
        """Who serves connections of this kind here."""
        self._takers[kind] = taken

    def try_pass(self, slot: int, kind: str, message: bytes, connection: network.InheritedSocket) -> bool:
        """Pass a connection on; False when that is not possible now. The caller's own copy stays open."""
        try:
            gone = network.try_pass(self._way(slot), msgspec.msgpack.encode((kind, message)), connection)
        except OSError:
            gone = False
        self._passed += gone
        self._refused += not gone
        return gone

    def statistics(self) -> PassingStatistics:
        return PassingStatistics(self._passed, self._taken, self._refused)

    async def start(self, tasks: Tasks) -> None:
        """Take what others pass."""
        del tasks
        self._stop = network.take_passed(self._inherited, self._arrived)

    async def drain(self) -> None:
        """Take no more; what comes waits for the next process."""
        if self._stop is not None:
            self._stop()
            self._stop = None

    async def stop(self) -> None:
        await self.drain()

    def _arrived(self, message: bytes, connection: network.InheritedSocket) -> None:
        try:
            kind, body = msgspec.msgpack.decode(message, type=tuple[str, bytes])
        except msgspec.MsgspecError:
            connection.close()
            return
        taker = self._takers.get(kind)
        if taker is None:
            connection.close()
            return
        self._taken += 1
        taker(body, connection)


class HttpPassing:
    """Decides for one HTTP server which connections leave, and serves those that come."""

    def __init__(self, passing: Passing, server: "HttpServer", slot_of: Callable[[str], int], own: int) -> None:
        """`slot_of`: whose work a path is; `own`: this worker's slot."""
        self._passing = passing
        self._server = server
        self._slot_of = slot_of
        self._own = own
        self._tasks: Tasks | None = None
        passing.takes(HTTP, self._taken)

    def answered(self, connection: "HttpProtocol") -> None:
        """A request of this connection was answered and it is at rest: does it leave?"""
        path = connection.request.path
        slot = self._slot_of(path.decode("latin-1")) if path not in STAYS else self._own
        if slot == self._own:
            connection.far = -1
        elif connection.far != slot:
            connection.far = slot
        else:  # behind what this tick still writes
            asyncio.get_running_loop().call_soon(self._leave, connection, slot, TRIES)

    async def start(self, tasks: Tasks) -> None:
        self._tasks = tasks

    async def drain(self) -> None:
        """Nothing to finish."""

    async def stop(self) -> None:
        self._tasks = None

    def _leave(self, connection: "HttpProtocol", slot: int, tries: int) -> None:
        transport = connection.transport
        if not connection.at_rest or transport.get_extra_info("ssl_object") is not None:
            return
        if transport.get_write_buffer_size():  # the loop writes in its own time
            if tries > 1:
                asyncio.get_running_loop().call_soon(self._leave, connection, slot, tries - 1)
            return
        with network.duplicate(transport) as passed:
            if self._passing.try_pass(slot, HTTP, b"", passed):
                transport.abort()

    def _taken(self, _: bytes, passed: network.InheritedSocket) -> None:
        if self._tasks is None or self._server.draining:
            passed.close()
            return
        self._tasks.start(self._serve(passed), "passed")

    async def _serve(self, passed: network.InheritedSocket) -> None:
        try:
            await self._server.adopt(passed)
        except OSError:
            passed.close()


STAYS = (b"/healthz", b"/readyz")

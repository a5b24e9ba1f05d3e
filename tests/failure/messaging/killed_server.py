"""The messaging system in a process that kills itself (SIGKILL) at the n-th passage of one point of accepting a message.

    python -m tests.failure.messaging.killed_server DATA POINT N

accepted    read from the socket, not decided yet
storing     given to the store, nothing on disk yet
stored      on disk, nobody told
acknowledged  the sender was just told
delivered   written to the reader's socket, nothing heard back
"""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from tests.journeys.messaging.house import house

from fourplane.messaging.client_stream import ClientStream
from fourplane.messaging.routing import Router
from fourplane.messaging.tcp_stream import TcpStream
from fourplane.messaging.user_store import UserStore

POINTS = ("accepted", "storing", "stored", "acknowledged", "delivered")


class Fuse:
    """Kills this process when it has been passed often enough."""

    def __init__(self, left: int) -> None:
        self.left = left

    def passed(self) -> None:
        self.left -= 1
        if self.left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


def lay(point: str, fuse: Fuse) -> None:
    """Put the fuse at one point of the running code; the code itself is the product's."""
    from_session, put, write = Router.from_session, UserStore.put_offline, TcpStream._write
    assert point in POINTS
    assert ClientStream._write is not write

    def accepted(self, session, stanza):
        if b"<body>" in stanza.raw:
            fuse.passed()
        from_session(self, session, stanza)

    def storing(self, bare, message_id, raw, done, **origin):
        if point == "storing":
            fuse.passed()

        def told(failure):
            fuse.passed()
            done(failure)

        put(self, bare, message_id, raw, told if point == "stored" else done, **origin)

    def written(self, out):
        write(self, out)
        data = b"".join(out)
        if (b"<a xmlns" if point == "acknowledged" else b"<body>") in data:
            fuse.passed()

    if point == "accepted":
        Router.from_session = accepted
    elif point in {"storing", "stored"}:
        UserStore.put_offline = storing
    else:
        TcpStream._write = written


async def serve(data: Path, point: str, count: int) -> None:
    if count:
        lay(point, Fuse(count))
    async with house(data, ("alice", "bob"), archive=False) as here:
        sys.stdout.write(json.dumps({"port": here.messaging.port, "tls_port": here.messaging.tls_port}) + "\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))

"""What the first worker of a connection does when the connection belongs elsewhere and cannot be passed itself: it copies.

Bytes for TCP with TLS (`copy_between`), whole messages for a WebSocket (`copy_messages`, `FarSocket` at the owner).
Backpressure goes through: reading stops on one side while the other does not take. When either side is gone, so is the other.
"""

import asyncio
import socket
from collections import deque
from typing import cast

from fourplane.edge.routes import Identity, SocketSession
from fourplane.foundation import network
from fourplane.foundation.errors import FourplaneError, Unavailable
from fourplane.messaging.xml_stream import StreamError

LENGTH_BYTES = 4
BUFFER_MAX = 1 << 20
MESSAGE_MAX = 1 << 20


class _End(asyncio.Protocol):
    """One end of a copied connection: what comes here leaves at the other."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            self.other.write(data)

    def pause_writing(self) -> None:
        if self.other is not None and not self.other.is_closing():
            self.other.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and not self.other.is_closing():
            self.other.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - part of the Protocol
        if self.other is not None:
            self.other.close()


async def copy_between(client: asyncio.Transport, near: socket.socket) -> None:
    """From now on what the client's transport brings goes to `near`, and back."""
    end, front = _End(), _End()
    end.other = client  # the owner may have answered before we listen
    transport, _ = await network.adopt(lambda: end, near)
    front.transport, front.other = client, transport
    client.set_protocol(front)
    if client.is_closing():
        transport.close()
    else:
        client.resume_reading()


class FarSocket(asyncio.Protocol):
    """The owner's end of a WebSocket that another worker has: messages with their length in front. A `SocketSession`."""

    def __init__(self, peer: str, first: bytes) -> None:
        self.identity: Identity | None = None
        self.query: dict[str, str] = {}
        self.peer = peer
        self._transport: asyncio.Transport | None = None
        self._messages: deque[bytes] = deque([first])
        self._rest = b""
        self._changed = asyncio.Event()
        self._gone = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - part of the Protocol
        self._gone = True
        self._changed.set()

    def data_received(self, data: bytes) -> None:
        messages, self._rest = unframed(self._rest + data)
        self._messages.extend(messages)
        if messages:
            self._changed.set()
        if sum(map(len, self._messages)) > BUFFER_MAX and self._transport is not None:
            self._transport.pause_reading()

    async def receive(self) -> bytes | None:
        """See SocketSession."""
        while not self._messages:
            if self._gone:
                return None
            self._changed.clear()
            await self._changed.wait()
        if len(self._messages) == 1 and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
        return self._messages.popleft()

    def send(self, message: str | bytes) -> None:
        """See SocketSession."""
        if self._gone or self._transport is None:
            raise Unavailable("the client is gone", code="closed")
        self._transport.write(framed(message))

    def buffered(self) -> int:
        """See SocketSession."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    async def close(self, code: int = 1000, reason: str = "") -> None:  # noqa: ARG002 - part of the Protocol
        """See SocketSession."""
        if self._transport is not None:
            self._transport.close()


async def copy_messages(client: SocketSession, near: socket.socket) -> None:
    """Copy between a WebSocket and the pair's end until either is gone."""
    far = FarSocket("", b"")
    await network.adopt(lambda: far, near)
    await far.receive()  # the empty first message

    async def outward() -> None:
        while (message := await far.receive()) is not None:
            client.send(message.decode())
        await client.close()

    async def inward() -> None:
        while (message := await client.receive()) is not None:
            far.send(message)
        await far.close()

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(outward())
            group.create_task(inward())
    except* FourplaneError:
        await far.close()
        await client.close()


def framed(message: str | bytes) -> bytes:
    """A message with its length in front."""
    data = message.encode() if isinstance(message, str) else message
    return len(data).to_bytes(LENGTH_BYTES, "little") + data


def unframed(data: bytes) -> tuple[list[bytes], bytes]:
    """All whole messages, and the rest; raises StreamError past the bound."""
    found: list[bytes] = []
    while len(data) >= LENGTH_BYTES:
        size = int.from_bytes(data[:LENGTH_BYTES], "little")
        if size > MESSAGE_MAX:
            raise StreamError("policy-violation")
        if len(data) < LENGTH_BYTES + size:
            break
        found.append(data[LENGTH_BYTES : LENGTH_BYTES + size])
        data = data[LENGTH_BYTES + size :]
    return found, data

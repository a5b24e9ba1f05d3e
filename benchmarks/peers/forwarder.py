"""A process that hands messages on and does nothing else: what this machine and these clients take by themselves.

The floor under a server's latency: one regex, no login, no addresses, no order of anything, on the same core.

    python -m benchmarks.peers.forwarder     (prints its port)
"""

import asyncio
import json
import re

import uvloop

_MESSAGE = re.compile(rb"<message to='([^@]+)@[^>]*>.*?</message>")


_there: dict[bytes, asyncio.Transport] = {}


class Forwarder(asyncio.Protocol):
    """One client: its first line is its name, then messages."""

    def __init__(self) -> None:
        self._name = self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if not self._name:
            self._name = data.strip()
            _there[self._name] = self._transport
            self._transport.write(b"<iq id='p'/>")
            return
        data, done, out = self._rest + data, 0, {}
        for message in _MESSAGE.finditer(data):
            out.setdefault(message.group(1), []).append(message.group())
            done = message.end()
        self._rest = data[done:]
        for name, messages in out.items():
            _there[name].write(b"".join(messages))


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Forwarder, "127.0.0.1", 0)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())

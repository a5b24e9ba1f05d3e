"""A cache node before an origin whose every byte a test writes."""

import asyncio
import contextlib
import re

from fourplane.edge.cache_node import CacheNode, CacheNodeSettings
from fourplane.edge.cache_origin import OriginSettings
from fourplane.edge.listener import ListenerSettings
from fourplane.foundation import network
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry


class Origin:
    """Answers each request with what `answer(method, target, head)` returns: bytes, or None to hang up."""

    def __init__(self, answer):
        self.answer = answer
        self.seen = []
        self.writers = []
        self.gate = None

    async def serve(self, reader, writer):
        self.writers.append(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                method, target, _ = head.split(" ", 2)
                self.seen.append((method, target, head))
                if length := re.search(r"content-length: (\d+)", head, re.IGNORECASE):
                    await reader.readexactly(int(length[1]))
                if self.gate is not None:
                    await self.gate.wait()
                raw = self.answer(method, target, head)
                if raw is None:
                    break
                writer.write(raw)
                await writer.drain()
                if b"connection: close" in raw.lower():
                    break
        writer.close()


def response(body=b"hello", *fields, status="200 OK"):
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Client:
    """A raw connection to the node."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    async def ask(self, target="/a", *fields, method="GET"):
        self.send(target, *fields, method=method)
        return await self.read(method)

    def send(self, target="/a", *fields, method="GET"):
        self.writer.write("\r\n".join([f"{method} {target} HTTP/1.1", "Host: here", *fields]).encode() + b"\r\n\r\n")

    async def read(self, method="GET"):
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head[:-4].split("\r\n")
        fields = {}
        for line in lines:
            name, _, value = line.partition(": ")
            fields[name.lower()] = value
        status = int(first.split(" ")[1])
        body = b""
        if status in {103, 204, 304} or method == "HEAD":
            return status, fields, body
        if fields.get("transfer-encoding") == "chunked":
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                body += await self.reader.readexactly(size)
                await self.reader.readexactly(2)
            await self.reader.readexactly(2)
        else:
            body = await self.reader.readexactly(int(fields.get("content-length", 0)))
        return status, fields, body


@contextlib.asynccontextmanager
async def node(answer, *, origin_port=None, head_s=15.0, read_s=2.0, **settings):
    """(node, origin, connect) with everything on free ports; `head_s` and `read_s`: the patience with the origin."""
    origin = Origin(answer)

    def factory():
        reader = asyncio.StreamReader()
        return asyncio.StreamReaderProtocol(reader, origin.serve)

    server = await network.listen(factory, "127.0.0.1", 0)
    port = network.port_of(server) if origin_port is None else origin_port
    registry = Registry()
    cache = CacheNode(
        CacheNodeSettings(
            name="node",
            listener=ListenerSettings(port=0),
            origin=OriginSettings(port=port, head_s=head_s, read_s=read_s),
            **settings,
        ),
        registry=registry,
    )
    lifecycle = Lifecycle(registry)
    lifecycle.add("cache", cache)
    await lifecycle.start()
    clients = []

    async def connect():
        reader = asyncio.StreamReader()
        transport, protocol = await network.connect(
            lambda: asyncio.StreamReaderProtocol(reader), "127.0.0.1", cache.port
        )
        clients.append(transport)
        return Client(reader, asyncio.StreamWriter(transport, protocol, reader, asyncio.get_running_loop()))

    try:
        yield cache, origin, connect
    finally:
        for transport in clients:
            transport.abort()
        await lifecycle.drain()
        await lifecycle.stop()
        server.close()
        cache.store.check()
        assert not [event for event in registry.events if event.level == "error"], list(registry.events)


def fresh(_method, _target, _head):
    return response(b"0123456789", "Cache-Control: max-age=60", 'ETag: "v1"', "Content-Type: text/plain")

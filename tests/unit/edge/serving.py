"""A running server on a free port, a raw client, and a reader of raw answers."""

import asyncio
from contextlib import asynccontextmanager

from fourplane.edge.http_server import HttpServer, HttpServerSettings
from fourplane.edge.listener import ListenerSettings
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Registry

HOST = b"Host: localhost\r\n"


def settings(**changes):
    return HttpServerSettings(listener=ListenerSettings(port=changes.pop("port", 0)), **changes)


@asynccontextmanager
async def serving(app, *, registry=None, hot=(), **options):
    server = HttpServer(options.pop("settings", settings()), app, registry=registry or Registry(), **options)
    for method, path, handler in hot:
        server.hot(method, path, handler)
    tasks = Tasks("server", asyncio.get_running_loop().create_future())
    await server.start(tasks)
    try:
        yield server
    finally:
        await server.stop()
        await tasks.cancel()


async def talk(port, *pieces, half_close=True):
    """Everything the server says to these bytes until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0)
        if half_close:
            writer.write_eof()
        async with asyncio.timeout(20):
            return await reader.read(-1)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def __repr__(self):
        return f"{self.status} {self.headers} {self.body[:200]!r}"


def answers(data, *, head_only=False):
    """Raw bytes as a list of answers; fails when bytes are left over."""
    found = []
    while data:
        head, separator, data = data.partition(b"\r\n\r\n")
        assert separator, f"a cut head: {head!r}"
        first, *lines = head.decode("latin-1").split("\r\n")
        version, status = first.split(" ")[:2]
        assert version == "HTTP/1.1"
        headers = {}
        for line in lines:
            name, _, value = line.partition(": ")
            assert name not in headers, f"{name} twice"
            headers[name] = value
        if status == "100" or status in ("204", "304") or head_only:
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            body, data = _dechunk(data)
        elif "content-length" in headers:
            size = int(headers["content-length"])
            assert len(data) >= size, "a cut body"
            body, data = data[:size], data[size:]
        else:
            body, data = data, b""
        found.append(Answer(int(status), headers, body))
    return found


def _dechunk(data):
    parts = []
    while True:
        line, _, data = data.partition(b"\r\n")
        size = int(line, 16)
        parts.append(data[:size])
        assert data[size : size + 2] == b"\r\n"
        data = data[size + 2 :]
        if size == 0:
            return b"".join(parts), data


async def echo_app(scope, receive, send):
    """Says method, path and body back."""
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return
        body += message["body"]
        if not message["more_body"]:
            break
    text = f"{scope['method']} {scope['path']}?{scope['query_string'].decode()} ".encode() + body
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": text})

"""A line of so many kilobits a second between a browser and everything it asks for: an HTTP proxy in a thread.

The browser's own network emulation lets all held bytes through whenever its rate is changed, so a trace that changes every
second was no limit at all. Here each line has one bucket for all its connections, filled by the trace's rate of this
second and holding at most a tenth of a second's worth; every request waits the line's latency first.
"""

import asyncio
import contextlib
import re
import threading
import time
from urllib.parse import urlsplit

PIECE = 4_096
BURST_S = 0.1


class Line:
    """One viewer's line: `rates` in kb/s, one a second, again from the start when they end; it begins with `start`."""

    def __init__(self, rates, latency_s):
        self.rates, self.latency_s = rates, latency_s
        self.began = self.filled = time.monotonic()
        self.left = 0.0
        self.port = 0
        self.bytes = 0

    def start(self):
        self.began = self.filled = time.monotonic()
        self.left = 0.0

    async def take(self, size):
        """Wait until the line has carried so many bytes."""
        while True:
            now = time.monotonic()
            rate = self.rates[int(now - self.began) % len(self.rates)] * 125.0
            self.left = min(self.left + (now - self.filled) * rate, max(BURST_S * rate, PIECE))
            self.filled = now
            if self.left >= size:
                self.left -= size
                self.bytes += size
                return
            await asyncio.sleep(min(0.1, (size - self.left) / rate))

    async def serve(self, reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            method, target, _ = head.split(" ", 2)
            length = re.search(r"content-length: *(\d+)", head, re.IGNORECASE)
            body = await reader.readexactly(int(length[1])) if length else b""
            place = urlsplit(target)
            await asyncio.sleep(self.latency_s)
            source, sink = await asyncio.open_connection(place.hostname, place.port or 80)
            try:
                path = (place.path or "/") + (f"?{place.query}" if place.query else "")
                rest = re.sub(r"(?im)^(proxy-)?connection:.*\r\n", "", head.partition("\r\n")[2])
                sink.write(f"{method} {path} HTTP/1.1\r\nConnection: close\r\n{rest}".encode("latin-1") + body)
                while piece := await source.read(PIECE):
                    await self.take(len(piece))
                    writer.write(piece)
                    await writer.drain()
            finally:
                sink.close()
        writer.close()


@contextlib.contextmanager
def lines(traces, latency_s):
    """A `Line` per name, each listening on its own port."""
    loop, made = asyncio.new_event_loop(), {}
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def open_one(line):
        server = await asyncio.start_server(line.serve, "127.0.0.1", 0)
        line.port = server.sockets[0].getsockname()[1]

    try:
        for name, rates in traces.items():
            made[name] = Line(rates, latency_s)
            asyncio.run_coroutine_threadsafe(open_one(made[name]), loop).result(10)
        yield made
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)

"""One connection of the HTTP client: a request out, one answer in, then free for the next.

The parser is llhttp's strict response side. Interim answers (1xx) are dropped. A body without a length ends with the
connection, which is the only case in which a close is not a cut. Past `buffer_max` unread bytes reading pauses.
"""

import asyncio
from collections import deque
from typing import cast

import httptools

HEAD_BYTES_MAX = 64 << 10


class ConnectionCut(Exception):
    """The connection ended before the answer did; `answered` tells whether any byte of it had come."""

    def __init__(self, text: str, *, answered: bool) -> None:
        super().__init__(text)
        self.answered = answered


class ClientConnection(asyncio.Protocol):
    """State of one request at a time."""

    def __init__(self, buffer_max: int) -> None:
        self.status = 0
        self.fields: list[tuple[str, str]] = []
        self.uses = 0
        self.rested_s = 0.0
        self._buffer_max = buffer_max
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._parts: deque[bytes] = deque()
        self._buffered = 0
        self._head_bytes = 0
        self._asked = False
        self._answered = False
        self._head_done = False
        self._body_done = False
        self._until_close = False
        self._keep = True
        self._extra = False
        self._head_only = False
        self._paused = False
        self._lost: str | None = None

    @property
    def usable(self) -> bool:
        """Whether another request may be sent here."""
        return self._lost is None and self._transport is not None and not self._transport.is_closing()

    async def ask(self, method: str, message: bytes) -> None:
        """Send a request and wait for the head of its answer; raises ConnectionCut."""
        assert self._transport is not None
        self.uses += 1
        self.status, self.fields = 0, []
        self._answered = self._head_done = self._body_done = self._until_close = False
        self._head_only = method == "HEAD"
        self._asked = True
        self._head_bytes = 0
        if self._lost is None:
            self._transport.write(message)
        while not self._head_done:
            self._raise_if_lost()
            await self._wait()

    async def read(self) -> bytes:
        """The next piece of the body, empty at its end; raises ConnectionCut."""
        while not self._parts and not self._body_done:
            self._raise_if_lost()
            await self._wait()
        if not self._parts:
            return b""
        piece = self._parts.popleft()
        self._buffered -= len(piece)
        if self._paused and self._buffered <= self._buffer_max // 2 and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return piece

    def finish(self) -> bool:
        """The caller is through with its answer: True when the connection can carry another request."""
        whole = self._body_done and self._head_done and not self._until_close
        self._asked = False
        self._parts.clear()
        self._buffered = 0
        if not whole or not self.usable or not self._keep or self._extra:
            return False
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        if self._head_only:
            self._parser = httptools.HttpResponseParser(self)
        return True

    def abort(self) -> None:
        """End the connection now."""
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio's and the parser's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = self._lost or (str(exc) if exc is not None else "closed")
        if self._until_close and self._head_done and exc is None:
            self._body_done = True
        self._wake()

    def data_received(self, data: bytes) -> None:
        if not self._asked:
            self._fail("bytes that nobody asked for")
            return
        self._answered = True
        if not self._head_done:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail("an upgrade that nobody asked for")
        except httptools.HttpParserError as error:
            if not (self._head_only and self._body_done):
                self._fail(f"not HTTP/1.1: {error}")
        if not self._head_done and self._head_bytes > HEAD_BYTES_MAX:
            self._fail("the head of the answer is too large")

    def on_message_begin(self) -> None:
        if self._body_done:
            self._extra = True  # a second answer to one question: nothing after it can be trusted

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head_done and not self._extra:
            self.fields.append((name.decode("latin-1").lower(), value.decode("latin-1").strip()))

    def on_headers_complete(self) -> None:
        if self._extra:
            return
        status = self._parser.get_status_code()
        if status < 200:
            self.fields = []
            return
        self.status = status
        self._head_done = True
        self._keep = self._parser.should_keep_alive() or (self._head_only and not self._says_close())
        names = {name for name, _ in self.fields}
        bodyless = self._head_only or status in (204, 304)
        self._until_close = not bodyless and "content-length" not in names and "transfer-encoding" not in names
        if self._head_only:
            self._body_done = True
        self._wake()

    def on_body(self, body: bytes) -> None:
        if self._head_only or self._extra or not self._asked:
            return
        self._parts.append(body)
        self._buffered += len(body)
        if self._buffered > self._buffer_max and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        if self._head_done:
            self._body_done = True
            self._wake()

    def _says_close(self) -> bool:
        return any(name == "connection" and "close" in value.lower() for name, value in self.fields)

    def _fail(self, text: str) -> None:
        self._lost = self._lost or text
        self._wake()
        self.abort()

    def _raise_if_lost(self) -> None:
        if self._lost is not None:
            raise ConnectionCut(self._lost, answered=self._answered)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

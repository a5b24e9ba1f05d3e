"""The running deployment's door for its owner: verbs of the command line ask here instead of opening the data folder.

A Unix socket only its user may open, at `data/control.sock`. One JSON object per line, both ways: a request
`{"id", "verb", "arguments"}`; answers `{"id", "progress": {...}}` any number of times, then `{"id", "result": ...}` or
`{"id", "error": {"code", "message", "fields"}}`. Several requests may be under way on one connection; a peer that goes away
cancels its own. Lines are at most 1 MiB, connections and requests bounded. An old socket file of a dead process is replaced; one
that answers is not.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec

from fourplane.foundation import network
from fourplane.foundation.errors import Conflict, FourplaneError, NotFound, Overloaded, Rejected, Unavailable
from fourplane.foundation.lifecycle import Tasks

LINE_MAX = 1 << 20
Arguments = Mapping[str, Any]
Progress = Callable[[dict[str, Any]], None]
Handler = Callable[[Arguments, Progress], Awaitable[object]]


class ControlSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    connections_max: int = 32
    requests_max: int = 16
    progress_buffer_max: int = 1 << 20


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    id: int
    verb: str
    arguments: dict[str, Any] = {}


class ErrorText(msgspec.Struct):
    code: str
    message: str
    fields: dict[str, str] = {}
    retry_after_s: float | None = None


class _Answer(msgspec.Struct, omit_defaults=True):
    id: int
    progress: dict[str, Any] | None = None
    result: Any = msgspec.UNSET
    error: ErrorText | None = None


class ControlServer:
    """Serves verbs at `path`. A lifecycle part."""

    def __init__(
        self, path: Path | str, handlers: dict[str, Handler], *, settings: ControlSettings | None = None
    ) -> None:
        self.path = Path(path)
        self.handlers = handlers
        self.settings = settings or ControlSettings()
        self.connections: set[_ServerConnection] = set()
        self.tasks: Tasks | None = None
        self._server: asyncio.Server | None = None

    async def start(self, tasks: Tasks) -> None:
        """Listen; raises Conflict (`already_running`) when a living deployment answers at this path."""
        self.tasks = tasks
        if self.path.exists():
            if await _answers(self.path):
                raise Conflict(f"a running deployment answers at {self.path}", code="already_running")
            self.path.unlink(missing_ok=True)
        self._server = await network.listen_unix(lambda: _ServerConnection(self), str(self.path))

    async def drain(self) -> None:
        """Accept nobody new; requests that are under way go on, `stop` may be one of them."""
        if self._server is not None:
            self._server.close()

    async def stop(self) -> None:
        if self._server is None:
            return  # never listened: the socket file is somebody else's
        self._server.close()
        for connection in list(self.connections):
            connection.close()
        self.path.unlink(missing_ok=True)


class _ServerConnection(asyncio.Protocol):
    """One peer and its requests."""

    def __init__(self, server: ControlServer) -> None:
        self._server = server
        self._lines = _Lines()
        self._running: dict[int, asyncio.Task[None]] = {}
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's own classes say nothing of asyncio's
        self._transport = transport
        if len(self._server.connections) >= self._server.settings.connections_max:
            self._send(_Answer(0, error=ErrorText("overloaded", "too many control connections")))
            transport.close()
            return
        self._server.connections.add(self)

    def data_received(self, data: bytes) -> None:
        try:
            for line in self._lines.feed(data):
                self._handle(msgspec.json.decode(line, type=_Request))
        except (msgspec.DecodeError, Rejected) as error:
            self._send(_Answer(0, error=ErrorText("rejected", f"not a request: {error}")))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - part of the Protocol
        self._transport = None
        self._server.connections.discard(self)
        for task in self._running.values():
            task.cancel()

    def close(self) -> None:
        """End after what was written has gone out."""
        if self._transport is not None:
            self._transport.close()

    def _handle(self, request: _Request) -> None:
        assert self._server.tasks is not None
        if request.id in self._running or len(self._running) >= self._server.settings.requests_max:
            self._send(_Answer(request.id, error=ErrorText("overloaded", "too many requests at once")))
            return
        task = self._server.tasks.start(self._run(request), f"control.{request.verb}")
        self._running[request.id] = task
        task.add_done_callback(lambda _: self._running.pop(request.id, None))

    async def _run(self, request: _Request) -> None:
        def progress(facts: dict[str, Any]) -> None:
            transport = self._transport
            if transport is not None and transport.get_write_buffer_size() < self._server.settings.progress_buffer_max:
                self._send(_Answer(request.id, progress=facts))

        handler = self._server.handlers.get(request.verb, _unknown_verb)
        try:
            result = await handler(request.arguments, progress)
            self._send(_Answer(request.id, result=msgspec.to_builtins(result)))
        except FourplaneError as error:
            self._send(_Answer(request.id, error=_error_text(error)))
        except Exception as error:  # noqa: BLE001 - one verb's bug must not end the deployment; the asker is told
            self._send(_Answer(request.id, error=ErrorText("error", f"{type(error).__name__}: {error}")))

    def _send(self, answer: _Answer) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(msgspec.json.encode(answer) + b"\n")


class _ClientConnection(asyncio.Protocol):
    """The asking side: one request."""

    def __init__(self) -> None:
        self._lines = _Lines()
        self.answers: asyncio.Queue[_Answer | None] = asyncio.Queue()

    def data_received(self, data: bytes) -> None:
        for line in self._lines.feed(data):
            self.answers.put_nowait(msgspec.json.decode(line, type=_Answer))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - part of the Protocol
        self.answers.put_nowait(None)


class _Lines:
    """Bytes in, whole lines out, none longer than the bound."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_MAX:
            raise Rejected("a line longer than 1 MiB", code="line_too_long")
        return [line for line in lines if line.strip()]


async def ask(
    path: Path | str,
    verb: str,
    arguments: Arguments | None = None,
    on_progress: Progress | None = None,
    *,
    connect_s: float = 5.0,
) -> Any:
    """The running deployment's answer to a verb; its errors are raised as what they were.

    Raises Unavailable (`not_running`) when nobody listens, or (`connection_lost`) when the deployment ends meanwhile.
    """
    try:
        async with asyncio.timeout(connect_s):
            transport, connection = await network.connect_unix(_ClientConnection, str(path))
    except (OSError, TimeoutError):
        raise Unavailable(f"no deployment is running at {path}", code="not_running") from None
    try:
        request = _Request(1, verb, dict(arguments or {}))
        transport.write(msgspec.json.encode(request) + b"\n")
        while (answer := await connection.answers.get()) is not None:
            if answer.error is not None:
                raise _error(answer.error)
            if answer.progress is not None:
                if on_progress is not None:
                    on_progress(answer.progress)
                continue
            return None if answer.result is msgspec.UNSET else answer.result
    finally:
        transport.close()
    raise Unavailable("the deployment ended before it answered", code="connection_lost")


async def _unknown_verb(_: Arguments, __: Progress) -> object:
    raise NotFound("the running deployment does not know this verb", code="unknown_verb")


async def _answers(path: Path) -> bool:
    try:
        async with asyncio.timeout(2.0):
            transport, _ = await network.connect_unix(asyncio.Protocol, str(path))
    except (OSError, TimeoutError):
        return False
    transport.close()
    return True


def _error_text(error: FourplaneError) -> ErrorText:
    fields = {name: str(value) for name, value in error.fields.items()} | {"kind": error.code}
    after_s = error.retry_after_s if isinstance(error, Overloaded) else None
    return ErrorText(error.reason, error.message, fields, after_s)


def _error(told: ErrorText) -> FourplaneError:
    fields: dict[str, Any] = dict(told.fields)
    kind = fields.pop("kind", "")
    if kind == Overloaded.code:
        return Overloaded(told.message, code=told.code, retry_after_s=told.retry_after_s or 1.0, **fields)
    return _KINDS.get(kind, FourplaneError)(told.message, code=told.code, **fields)


def _tree(error: type[FourplaneError]) -> dict[str, type[FourplaneError]]:
    found = {error.code: error}
    for below in error.__subclasses__():
        found.update(_tree(below))
    return found


_KINDS = _tree(FourplaneError)

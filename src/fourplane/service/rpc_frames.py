"""What travels between two processes: batches of messages in msgpack, joined per loop tick.

    connection := PREAMBLE batch*          batch := length (4 bytes, little end first)  msgpack array of messages
    caller -> server   Ask  [id, kind, method, body, deadline_ms, priority, trace, epoch, credit]
    server -> caller   Tell [id, kind, body]

Messages and arguments are arrays: fields are only ever appended, with defaults, so that a process of version N reads what
N-1 wrote and the other way round. A body is msgpack of its own, decoded by whoever knows the method. Errors travel with
their class, code, sentence and fields (`ErrorFrame`). Over TCP a server greets with a PONG and answers each PING with one: that
is how a caller learns that the silence of a host is not that of a long call. A caller greets with a SIGN and answers each LOOK
with one: so does a server learn that the silence of a caller is not that of a host that is gone.

All messages that one loop tick produced leave in one batch and one write (`Batcher`). Bounds: `frame_max` bytes a batch; a
longer one ends the connection, a longer body is refused where it is made.
"""

import asyncio
import struct
from functools import partial
from typing import Any, Final, Generic, TypeVar

import msgspec

from fourplane.foundation.errors import FourplaneError, Overloaded, Rejected, TooLarge

PREAMBLE: Final = b"4pl\x01"
BATCH_BYTES: Final = 256 << 10  # a batch that grew past this leaves at once
BATCH_COUNT: Final = 32  # so that the other side works while this one still makes more

CALL, CANCEL, CREDIT, PING, SIGN = 0, 1, 2, 3, 4  # kinds of Ask
RESULT, ERROR, ITEM, END, PONG, LOOK = 0, 1, 2, 3, 4, 5  # kinds of Tell
NO_CALL: Final = 0  # what the signs of life have for an id; who does not know them ignores them

_LENGTH = struct.Struct("<I")
NOTHING: Final = msgspec.Raw(b"\xc0")


class Ask(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """A call, its cancellation, or credit for its stream."""

    id: int
    kind: int = CALL
    method: str = ""
    body: msgspec.Raw = NOTHING
    deadline_ms: int = 0  # what was left when it was sent; 0: none
    priority: int = 1
    trace: str = ""
    epoch: int = 0
    credit: int = 0


class Tell(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """An answer, an error, an item of a stream, or its end."""

    id: int
    kind: int
    body: msgspec.Raw = NOTHING


class ErrorFrame(msgspec.Struct, array_like=True):
    """An error of the tree, as it travels."""

    kind: str
    code: str
    message: str
    fields: dict[str, str | int | float | bool | None] = {}
    retry_after_s: float = 0.0


M = TypeVar("M", Ask, Tell)
Message = tuple[object, ...]  # an Ask or a Tell as it is written: its fields in their order, as many as are needed


class Batcher:
    """Collects what one tick wants to send and writes it once."""

    __slots__ = ("_encode", "_flush_soon", "_size", "_transport", "messages", "most", "sent")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._flush_soon = partial(asyncio.get_running_loop().call_soon, self.flush)
        self._encode = msgspec.msgpack.Encoder().encode
        self.messages: list[Message] = []  # of this tick
        self._size = 0
        self.most = BATCH_COUNT
        self.sent = 0

    def add(self, message: Message, size: int) -> None:
        """Send `message`, whose body has `size` bytes, with everything else of this tick."""
        messages = self.messages
        if not messages:
            self._flush_soon()
        messages.append(message)
        self._size += size
        if len(messages) >= self.most or self._size > BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what was collected."""
        messages = self.messages
        if not messages:
            return
        self.messages = []
        self._size = 0
        if not self._transport.is_closing():
            encoded = self._encode(messages)
            self.sent += 1
            self._transport.write(_LENGTH.pack(len(encoded)) + encoded)


class Unbatcher(Generic[M]):
    """Bytes in, messages out. Raises Rejected for what is no batch and TooLarge past the bound."""

    __slots__ = ("_decoder", "_frame_max", "_rest")

    def __init__(self, message: type[M], frame_max: int) -> None:
        self._decoder: msgspec.msgpack.Decoder[list[M]] = msgspec.msgpack.Decoder(list[message])  # type: ignore[valid-type]
        self._frame_max = frame_max + 2 * BATCH_BYTES  # one body at its bound, and the messages beside it
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[M]:
        """All whole messages that `data` completes."""
        whole: bytes | bytearray = data
        if self._rest:
            self._rest += data
            if len(self._rest) < 4 or len(self._rest) < 4 + _LENGTH.unpack_from(self._rest)[0]:
                self._check(self._rest)
                return []
            whole, self._rest = bytes(self._rest), bytearray()
        found: list[M] = []
        view, position, size = memoryview(whole), 0, len(whole)
        while size - position >= 4:
            end = position + 4 + _LENGTH.unpack_from(whole, position)[0]
            if end > size:
                break
            try:
                messages = self._decoder.decode(view[position + 4 : end])
            except (msgspec.DecodeError, msgspec.ValidationError) as error:
                raise Rejected(f"not a batch of messages: {error}", code="bad_batch") from None
            found = found + messages if found else messages
            position = end
        if position < size:
            self._rest += view[position:]
            self._check(self._rest)
        return found

    def _check(self, rest: bytearray) -> None:
        if len(rest) >= 4 and _LENGTH.unpack_from(rest)[0] > self._frame_max:
            raise TooLarge("a batch is too large", limit_bytes=self._frame_max)


def error_body(error: FourplaneError) -> bytes:
    """An error as the body of a Tell."""
    fields = {
        name: value if isinstance(value, str | int | float | bool | None) else str(value)
        for name, value in error.fields.items()
    }
    after_s = error.retry_after_s if isinstance(error, Overloaded) else 0.0
    kind = next(one.code for one in type(error).__mro__ if issubclass(one, FourplaneError) and one.code in _kinds())
    return msgspec.msgpack.encode(ErrorFrame(kind, error.reason, error.message, fields, after_s))


def error_of(body: msgspec.Raw | bytes) -> FourplaneError:
    """The error a body tells, of the class it had; one whose class is not known here becomes a FourplaneError."""
    told = msgspec.msgpack.decode(body, type=ErrorFrame)
    fields: dict[str, Any] = {
        name: value for name, value in told.fields.items() if name not in ("code", "retry_after_s")
    }
    if told.kind == Overloaded.code:
        return Overloaded(told.message, code=told.code, retry_after_s=told.retry_after_s, **fields)
    return _kinds().get(told.kind, FourplaneError)(told.message, code=told.code, **fields)


_known: dict[str, type[FourplaneError]] = {}


def _kinds() -> dict[str, type[FourplaneError]]:
    """The classes of `foundation.errors` by code."""
    if not _known:
        _known.update(_below(FourplaneError))
    return _known


def _below(error: type[FourplaneError]) -> dict[str, type[FourplaneError]]:
    found = {error.code: error}
    for below in error.__subclasses__():
        if below.__module__ == FourplaneError.__module__:
            found.update(_below(below))
    return found

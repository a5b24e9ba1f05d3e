"""One connection to PostgreSQL, spoken to in pipelines: many statements leave in one write and are answered in one go.

A statement that waits for its answer before the next one leaves costs a round trip and a turn of a busy loop; a commit of twelve
statements then waits twelve times. Here an exchange is a list of statements and one `Sync`: the server runs them as one
transaction, commits at the `Sync` and undoes everything at the first error. Where somebody must look at the answers before
it may commit (`check`), a `Flush` takes the place of the `Sync`; the `Sync` or a `ROLLBACK` leaves as soon as they are in, from
the very call that read them. Exchanges may follow each other without waiting, so concurrent reads share a connection.

Statements are parsed once and named; the oldest name goes when there are `named_max`. A name is used by others only when the
server has said that it parsed it: until then they send the text along. Values travel as text, except BYTEA.

asyncpg opens the connection (URL, TLS, login) and hands over its transport; errors become its exceptions. From then on it only
hears that the connection is gone.
Invariants: answers come in the order of exchanges; a line that was lost or did not answer in time is never used again.
Source: PostgreSQL manual, "Extended Query" and "Pipelining" (protocol 3.0).
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from decimal import Decimal
from struct import Struct
from typing import Any, NamedTuple, cast

import asyncpg

from fourplane.state.contracts import Row, SqlValue

Decoder = Callable[[bytes], SqlValue]
_LENGTH = Struct(">i")
_COUNT = Struct(">h")
_HEAD = Struct(">ci")
_SYNC = b"S\0\0\0\4"
_FLUSH = b"H\0\0\0\4"
_TERMINATE = b"X\0\0\0\4"
_NULL = b"\xff\xff\xff\xff"
_BYTEA = 17
VALUES_MAX = 65_535
_REPEATED = ("select", "insert", "update", "delete", "with")


class Ask(NamedTuple):
    """A statement with `$1` places and its values; at most `rows_max` rows come back, 0 for all."""

    text: str
    parameters: tuple[SqlValue, ...] = ()
    rows_max: int = 0


class Answer(NamedTuple):
    """The rows of a statement, and how many it changed or found."""

    rows: list[Row]
    changed: int


Check = Callable[[list[Answer]], Exception | None]


class LineLost(ConnectionError):
    """The server or the network closed the connection."""


class Line(asyncio.Protocol):
    """A session that is spoken to in exchanges."""

    def __init__(self, opened: "_Opened", *, named_max: int, timeout_s: float) -> None:
        self._opened = opened  # it would close the connection when nobody held it
        self._transport = opened.transport
        self._driver = cast("asyncio.Protocol", self._transport.get_protocol())
        self._named_max = named_max
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._named: dict[str, _Prepared] = {}
        self._names = 0
        self._underway: deque[_Exchange] = deque()
        self._buffer = b""
        self._last_words: Exception | None = None
        self.lost = False
        self.on_idle: Callable[[Line], None] = lambda _: None
        self.on_lost: Callable[[Line], None] = lambda _: None
        self._transport.set_protocol(self)

    @classmethod
    async def open(cls, url: str, *, session: dict[str, str], named_max: int, timeout_s: float) -> "Line":
        """Connect and log in; raises what asyncpg raises."""
        opened = cast("_Opened", await asyncpg.connect(
            url, timeout=timeout_s, statement_cache_size=0, server_settings=session, connection_class=_Opened
        ))  # fmt: skip
        return cls(opened, named_max=named_max, timeout_s=timeout_s)

    @property
    def underway(self) -> int:
        """Exchanges whose end has not come yet."""
        return len(self._underway)

    async def run(self, asks: Sequence[Ask], *, check: Check | None = None) -> list[Answer]:
        """All statements in one transaction; what `check` returns undoes it and is raised.

        A caller that is cancelled leaves the exchange on its way. Raises asyncpg's errors, LineLost, or TimeoutError after
        `timeout_s`; then nobody knows whether it happened.
        """
        if self.lost:
            raise LineLost("the connection is closed")
        exchange = _Exchange(self._loop.create_future(), check)
        self._transport.write(self._written(asks, exchange))
        exchange.timer = self._loop.call_later(self._timeout_s, self._give_up)
        self._underway.append(exchange)
        return await exchange.future

    def close(self) -> None:
        """Say goodbye; whoever still waits hears LineLost."""
        if not self.lost:
            self._transport.write(_TERMINATE)
            self._transport.close()

    def abort(self) -> None:
        """Cut the connection; nobody uses it from now on."""
        self.lost = True
        self._transport.abort()
        self.on_lost(self)

    # -- what is sent

    def _written(self, asks: Sequence[Ask], exchange: "_Exchange") -> bytes:
        written = [
            _values(ask.parameters) for ask in asks
        ]  # what cannot be written is refused before anything is noted
        parts: list[bytes] = []
        for (text, _, rows_max), (kinds, data) in zip(asks, written, strict=True):
            prepared = self._named.get(text)
            if prepared is None:
                prepared = self._introduce(text, exchange, parts)
            elif not prepared.ready and prepared.exchange is not exchange:
                prepared = _Prepared(b"", exchange)
                parts += _parse(b"", text)
            exchange.steps.append((prepared, prepared.ready))
            parts.append(_message(b"B", b"".join((b"\0", prepared.name, b"\0", kinds, data, prepared.formats))))
            parts.append(b"E\0\0\0\x09\0" + _LENGTH.pack(rows_max))
        parts.append(_SYNC if exchange.check is None else _FLUSH)
        return b"".join(parts)

    def _introduce(self, text: str, exchange: "_Exchange", parts: list[bytes]) -> "_Prepared":
        if not text[:12].lstrip().lower().startswith(_REPEATED):
            parts += _parse(b"", text)
            return _Prepared(b"", exchange)
        if len(self._named) >= self._named_max:
            oldest = next(iter(self._named))
            parts.append(_message(b"C", b"S" + self._named.pop(oldest).name + b"\0"))
        self._names += 1
        prepared = self._named[text] = _Prepared(b"s%d" % self._names, exchange)
        exchange.introduced.append((text, prepared))
        parts += _parse(prepared.name, text)
        return prepared

    # -- what comes back

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        at, size = 0, len(buffer)
        while size - at >= 5:
            kind, length = _HEAD.unpack_from(buffer, at)
            end = at + 1 + length
            if end > size:
                break
            if self._underway:
                self._hear(kind, buffer[at + 5 : end], self._underway[0])
            elif kind == b"E":
                self._last_words = _error(buffer[at + 5 : end])
            at = end
        self._buffer = buffer[at:]

    def _hear(self, kind: bytes, body: bytes, exchange: "_Exchange") -> None:
        match kind:
            case b"Z":
                self._end(exchange)
            case b"E":
                exchange.error = exchange.error or _error(body)
                self._last_words = exchange.error
                if exchange.check is not None and not exchange.decided:
                    exchange.decided = True
                    self._transport.write(_SYNC)
            case _ if len(exchange.answers) == len(exchange.steps):
                pass  # what comes of the ROLLBACK
            case b"D":
                exchange.rows.append(_row(body, exchange.decoders()))
            case b"C" | b"s" | b"I":
                exchange.step_over(_count(body) if kind == b"C" else len(exchange.rows))
                if exchange.check is not None and len(exchange.answers) == len(exchange.steps):
                    self._decide(exchange)
            case b"T":
                exchange.steps[len(exchange.answers)][0].learn(body)
            case b"n":
                exchange.steps[len(exchange.answers)][0].learn(b"\0\0")

    def _decide(self, exchange: "_Exchange") -> None:
        assert exchange.check is not None, "somebody looks at the answers"
        exchange.decided = True
        exchange.error = exchange.check(exchange.answers)
        if exchange.error is None:
            self._transport.write(_SYNC)
        else:
            self._transport.write(_UNDO)

    def _end(self, exchange: "_Exchange") -> None:
        self._underway.popleft()
        self._last_words = None
        self._settle(exchange, exchange.error)
        if is_outdated(exchange.error):
            self.abort()
        elif not self._underway:
            self.on_idle(self)

    def _settle(self, exchange: "_Exchange", error: Exception | None) -> None:
        exchange.timer.cancel()
        for text, prepared in exchange.introduced:
            if not prepared.ready and self._named.get(text) is prepared:
                del self._named[text]
        if exchange.future.done():
            return  # its caller has left
        if error is None:
            exchange.future.set_result(exchange.answers)
        else:
            exchange.future.set_exception(error)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self._driver.connection_lost(error)
        told = self._last_words
        if not isinstance(told, _FAREWELLS):
            told = LineLost("the connection was lost")
        while self._underway:
            self._settle(self._underway.popleft(), told)
        self.on_lost(self)

    def _give_up(self) -> None:
        while self._underway:
            self._settle(self._underway.popleft(), TimeoutError("PostgreSQL did not answer in time"))
        self.abort()


def is_outdated(error: Exception | None) -> bool:
    """The columns of a statement changed after it was parsed; on this connection it can run no more."""
    return isinstance(error, asyncpg.InvalidCachedStatementError)


_FAREWELLS = (asyncpg.AdminShutdownError, asyncpg.CrashShutdownError, asyncpg.CannotConnectNowError)


class _Opened(asyncpg.Connection):  # type: ignore[misc]
    """What asyncpg has opened, with its transport."""

    def __init__(self, protocol: Any, transport: asyncio.Transport, *rest: Any) -> None:
        super().__init__(protocol, transport, *rest)
        self.transport = transport


class _Prepared:
    """A statement the server has parsed, or is about to."""

    __slots__ = ("as_sent", "as_text", "exchange", "formats", "name", "ready")

    def __init__(self, name: bytes, exchange: "_Exchange") -> None:
        self.name = name
        self.exchange: _Exchange | None = exchange
        self.ready = False
        self.formats = b"\0\0"  # every column as text
        self.as_text: list[Decoder] = []
        self.as_sent: list[Decoder] = []

    def learn(self, body: bytes) -> None:
        """Note the columns of a row description."""
        (count,) = _COUNT.unpack_from(body)
        at, kinds = 2, []
        for _ in range(count):
            at = body.index(b"\0", at) + 1
            kinds.append(_LENGTH.unpack_from(body, at + 6)[0])
            at += 18
        self.as_text = [_DECODERS.get(kind, bytes.decode) for kind in kinds]
        self.as_sent = [_as_it_is if kind == _BYTEA else _DECODERS.get(kind, bytes.decode) for kind in kinds]
        if _BYTEA in kinds:
            self.formats = _COUNT.pack(count) + b"".join(b"\0\1" if kind == _BYTEA else b"\0\0" for kind in kinds)
        self.ready, self.exchange = True, None


class _Exchange:
    """Statements on their way, and what has come back."""

    __slots__ = ("answers", "check", "decided", "error", "future", "introduced", "rows", "steps", "timer")

    def __init__(self, future: "asyncio.Future[list[Answer]]", check: Check | None) -> None:
        self.future = future
        self.check = check
        self.decided = False
        self.error: Exception | None = None
        self.steps: list[tuple[_Prepared, bool]] = []  # and whether its columns were known when it left
        self.introduced: list[tuple[str, _Prepared]] = []
        self.answers: list[Answer] = []
        self.rows: list[Row] = []
        self.timer: asyncio.TimerHandle

    def decoders(self) -> list[Decoder]:
        prepared, known = self.steps[len(self.answers)]
        return prepared.as_sent if known else prepared.as_text

    def step_over(self, count: int) -> None:
        self.answers.append(Answer(self.rows, count))
        self.rows = []


def _message(kind: bytes, body: bytes) -> bytes:
    return _HEAD.pack(kind, len(body) + 4) + body


def _parse(name: bytes, text: str) -> tuple[bytes, bytes]:
    """Parse and describe a statement; the server infers the kinds of its values."""
    whole = name + b"\0" + text.encode() + b"\0\0\0"
    return _message(b"P", whole), _message(b"D", b"S" + name + b"\0")


def _values(parameters: Sequence[SqlValue]) -> tuple[bytes, bytes]:
    """How the values travel, and the values with their count."""
    count = len(parameters)
    if count > VALUES_MAX:
        raise ValueError(f"{count} values in one statement, {VALUES_MAX} are possible")
    pieces = [count.to_bytes(2, "big")]
    binary = False
    for value in parameters:
        if value is None:
            pieces.append(_NULL)
            continue
        if isinstance(value, str):
            data = value.encode()
        elif isinstance(value, int):
            data = b"%d" % value
        elif isinstance(value, float):
            data = repr(value).encode()
        elif isinstance(value, bytes | bytearray | memoryview):
            data, binary = bytes(value), True
        else:
            raise TypeError(f"a value of kind {type(value).__name__} cannot be stored")
        pieces += (_LENGTH.pack(len(data)), data)
    if not binary:
        return b"\0\0", b"".join(pieces)
    kinds = (b"\0\1" if isinstance(value, bytes | bytearray | memoryview) else b"\0\0" for value in parameters)
    return pieces[0] + b"".join(kinds), b"".join(pieces)


_UNDO = b"".join((*_parse(b"", "ROLLBACK"), _message(b"B", bytes(8)), _message(b"E", bytes(5)), _SYNC))


def _row(body: bytes, decoders: list[Decoder]) -> Row:
    values: list[SqlValue] = []
    at = 2
    for decode in decoders:
        (length,) = _LENGTH.unpack_from(body, at)
        at += 4
        if length < 0:
            values.append(None)
        else:
            values.append(decode(body[at : at + length]))
            at += length
    return tuple(values)


def _count(tag: bytes) -> int:
    """The number in `UPDATE 3` or `INSERT 0 1`; 0 where there is none."""
    last = tag[:-1].rpartition(b" ")[2]
    return int(last) if last.isdigit() else 0


def _error(body: bytes) -> Exception:
    fields = {part[:1].decode(): part[1:].decode(errors="replace") for part in body.split(b"\0") if part}
    return cast("Exception", asyncpg.PostgresError.new(fields))


def number(text: bytes) -> int | float:
    """NUMERIC as a plain number; sums of BIGINT are NUMERIC."""
    value = Decimal(text.decode())
    return int(value) if value == value.to_integral_value() else float(value)


def _as_it_is(value: bytes) -> bytes:
    return value


def _from_hex(text: bytes) -> bytes:
    return bytes.fromhex(text[2:].decode())


_DECODERS: dict[int, Decoder] = {
    16: lambda text: text == b"t",
    _BYTEA: _from_hex,
    20: int,
    21: int,
    23: int,
    26: int,
    700: float,
    701: float,
    1700: number,
}

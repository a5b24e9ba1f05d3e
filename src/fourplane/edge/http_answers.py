"""The bytes of HTTP/1.1 answers: status lines, dates, whole answers built once and sent many times.

Hot handlers, error replies and the admission's rejections all come from here, so that one place decides how an answer of
this server looks. Nothing here waits or knows a connection. Cost: `date_line` 0.2 us, `answer` about 1.5 us.
"""

from collections.abc import Iterable, Mapping
from email.utils import formatdate
from http import HTTPStatus

import msgspec

from fourplane.foundation import clock

Headers = Iterable[tuple[bytes, bytes]]

STATUS_LINES: dict[int, bytes] = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
CLOSE = b"connection: close\r\n"
KEEP = b"connection: keep-alive\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"
LAST_CHUNK = b"0\r\n\r\n"
NO_BODY = frozenset({204, 304})

_date_second = -1
_date_line = b""


def date_line() -> bytes:
    """`date: ...` of the current second with its line end, formatted once a second."""
    global _date_second, _date_line
    second = clock.now_us() // 1_000_000
    if second != _date_second:
        _date_line = b"date: " + http_date(second).encode() + b"\r\n"
        _date_second = second
    return _date_line


def http_date(seconds: float) -> str:
    """A moment as an HTTP date (IMF-fixdate)."""
    return formatdate(seconds, usegmt=True)


def status_line(status: int) -> bytes:
    """The first line of an answer, also for numbers without a registered phrase."""
    line = STATUS_LINES.get(status)
    return line if line is not None else f"HTTP/1.1 {status} Unknown\r\n".encode()


def answer(
    status: int,
    body: bytes = b"",
    *,
    media_type: str = "application/json",
    headers: Mapping[str, str] | None = None,
    close: bool = False,
    dated: bool = True,
) -> bytes:
    """One whole answer, head and body; `dated` False for bytes that are kept and sent for long."""
    lines = [status_line(status)]
    if status not in NO_BODY and status >= 200:
        lines.append(f"content-type: {media_type}\r\ncontent-length: {len(body)}\r\n".encode())
    for name, value in (headers or {}).items():
        lines.append(f"{name}: {value}\r\n".encode("latin-1"))
    if dated:
        lines.append(date_line())
    if close:
        lines.append(CLOSE)
    lines.append(b"\r\n")
    if status not in NO_BODY:
        lines.append(body)
    return b"".join(lines)


def error_body(code: str, message: str, fields: Mapping[str, object] | None = None) -> bytes:
    """The JSON every error has, whoever says no."""
    told = {
        name: value if isinstance(value, str | int | float | bool) else str(value)
        for name, value in (fields or {}).items()
    }
    if "file" in told:
        told["file"] = str(told["file"]).rpartition("/")[2]  # where it lies is told nobody
    return msgspec.json.encode({"error": {"code": code, "message": message, "fields": told}})


def error_answer(
    status: int,
    code: str,
    message: str,
    *,
    close: bool,
    headers: Mapping[str, str] | None = None,
    dated: bool = True,
) -> bytes:
    """A whole error answer as the protocol sends it before any application sees the request."""
    return answer(status, error_body(code, message), headers=headers, close=close, dated=dated)


def seconds_text(seconds: float) -> str:
    """A Retry-After value: whole seconds, at least one."""
    return str(max(1, int(seconds + 0.999)))

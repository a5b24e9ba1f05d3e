"""From what a handler returned, or raised, to an answer: whole bytes for our own server, messages of ASGI for all others.

One table of security headers for pages, one error shape for programs, one error page for people: a browser that asks for
`text/html` gets a page with the same facts. A stream that fails after its head was sent is cut, never ended as if
it were whole. Whole answers and messages say the same: the fields of both come from here.
"""

import html
import re
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import msgspec

from fourplane.edge.asgi import Send
from fourplane.edge.exchange import ApplicationFault
from fourplane.edge.http_answers import NO_BODY, error_body, seconds_text, status_line
from fourplane.edge.routes import Reply
from fourplane.foundation.errors import FourplaneError, Overloaded, Unavailable

LOOPBACK = ("127.0.0.1", "localhost")
_HOST = re.compile(r"(?:\*\.)?[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*")


def content_security(hosts: Iterable[str] = LOOPBACK) -> str:
    """What a page may load: its own server's, and media and calls of the hosts of this deployment on their other ports."""
    named = sorted({host.lower() for host in (*LOOPBACK, *hosts) if _HOST.fullmatch(host)})
    everywhere = "*" in hosts
    others = "http: https:" if everywhere else " ".join(f"http://{host}:* https://{host}:*" for host in named)
    return (
        "default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        f"media-src 'self' blob: {others}; worker-src 'self' blob:; connect-src 'self' ws: wss: {others}; "
        "font-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )


PAGE_HEADERS: list[tuple[bytes, bytes]] = [
    (b"content-security-policy", content_security().encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), payment=()"),
]
JSON_HEADERS: list[tuple[bytes, bytes]] = [
    (b"content-type", b"application/json"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
]
ERROR_PAGE_HEADERS: list[tuple[bytes, bytes]] = [
    (b"content-type", b"text/html; charset=utf-8"),
    (b"cache-control", b"no-store"),
]
Headers = list[tuple[bytes, bytes]]
SendWhole = Callable[[bytes, bytes | None], None]

FRAMING = frozenset({"connection", "content-length", "date", "transfer-encoding"})
TYPES_MAX = 256  # media types whose lines are kept
OVERRIDABLE = frozenset({"content-type", *(name.decode() for name, _ in PAGE_HEADERS)})
_first_lines: dict[tuple[str, bool], bytes] = {}
NO_SNIFFING = (b"x-content-type-options", b"nosniff")
NOTHING_LINE = status_line(204)
JSON_LINES = b"HTTP/1.1 200 OK\r\n" + b"".join(b"%b: %b\r\n" % field for field in JSON_HEADERS)

_encode = msgspec.json.Encoder().encode


def allow_hosts(hosts: Iterable[str]) -> None:
    """Let the pages of this process load from these hosts too; said once, by the gateway, before the first page."""
    PAGE_HEADERS[0] = (b"content-security-policy", content_security(tuple(hosts)).encode())
    _first_lines.clear()


async def send_result(send: Send, result: object, extra: Headers, *, whole: SendWhole | None = None) -> int:
    """Send what a handler returned; the status that went out. `whole` is our own server's shorter way."""
    if whole is not None:
        made = whole_result(result, extra)
        if made is not None:
            whole(made[1], made[2])
            return made[0]
    if result is None:
        await _send(send, 204, extra, b"")
        return 204
    if isinstance(result, Reply):
        return await _send_reply(send, result, extra)
    await _send(send, 200, [*JSON_HEADERS, *extra], _encode(result))
    return 200


async def send_error(send: Send, error: FourplaneError, extra: Headers, *, wants_page: bool) -> int:
    """Send what went wrong in the form the caller reads; the status that went out."""
    status, headers, body = _error(error, extra, wants_page=wants_page)
    await _send(send, status, headers, body)
    return status


def whole_result(result: object, extra: Headers) -> tuple[int, bytes, bytes | None] | None:
    """What a handler returned as status, lines and body of a whole answer.

    None for what is no whole answer: a stream, or a reply that says something about the connection or its own length.
    """
    lines = b"".join([b"%b: %b\r\n" % field for field in extra])
    if result is None:
        return 204, NOTHING_LINE + lines, None
    if not isinstance(result, Reply):
        return 200, JSON_LINES + lines, _encode(result)
    status, body = result.status, result.body
    if not isinstance(body, bytes):
        if not isinstance(body, bytearray | memoryview):
            return None
        body = bytes(body)
    own = _reply_lines(result)
    if own is None:
        return None
    return status, status_line(status) + lines + own, None if status in NO_BODY else body


def whole_error(error: FourplaneError, extra: Headers, *, wants_page: bool) -> tuple[int, bytes, bytes]:
    """What went wrong as status, lines and body of a whole answer."""
    status, headers, body = _error(error, extra, wants_page=wants_page)
    return status, status_line(status) + b"".join([b"%b: %b\r\n" % field for field in headers]), body


def _error(error: FourplaneError, extra: Headers, *, wants_page: bool) -> tuple[int, Headers, bytes]:
    headers = list(extra)
    status = error.http_status
    if isinstance(error, Overloaded):
        headers.append((b"retry-after", seconds_text(error.retry_after_s).encode()))
        if "limit" in error.fields:
            status = 429
    elif isinstance(error, Unavailable):
        headers.append((b"retry-after", b"1"))
    elif status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if wants_page:
        page = error_page(status, error.public, error.reason)
        return status, [*headers, *ERROR_PAGE_HEADERS, *PAGE_HEADERS], page
    return status, [*JSON_HEADERS, *headers], error_body(error.reason, error.public, error.fields)


def error_page(status: int, message: str, code: str) -> bytes:
    """A page for a person: what happened, and the way back."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<title>{status}</title><link rel="stylesheet" href="/console/style.css">'
        "<style>body{font:1rem/1.5 system-ui,sans-serif;max-width:40rem;margin:15vh auto;padding:0 1rem;"
        "color-scheme:light dark}</style></head><body><main>"
        f"<h1>{status}</h1><p>{html.escape(message[:1].upper() + message[1:])}.</p>"
        f'<p><small>{html.escape(code)}</small></p><p><a href="/">Back to the start</a></p></main></body></html>'
    ).encode()


def _first_fields(reply: Reply) -> Headers:
    """The fields of a reply that its handler did not give: its type, and what browsers may do with it."""
    given, media_type = reply.headers, reply.media_type
    fields: Headers = []
    if media_type and "content-type" not in given and reply.status not in NO_BODY:
        fields.append((b"content-type", media_type.encode("latin-1")))
    if media_type.startswith("text/html"):
        fields += [entry for entry in PAGE_HEADERS if entry[0].decode() not in given]
    else:
        fields.append(NO_SNIFFING)
    return fields


def _reply_lines(reply: Reply) -> bytes | None:
    """All fields of a reply as lines; None when one of them says something about connection or length."""
    given, own = reply.headers, []
    for name, value in given.items():
        low = name.lower()
        if low in FRAMING:
            return None
        own.append(f"{low}: {value}\r\n")
    lines = "".join(own).encode("latin-1")
    key = (reply.media_type, reply.status in NO_BODY)
    first = _first_lines.get(key) if OVERRIDABLE.isdisjoint(given) else None
    if first is None:
        fields = _first_fields(reply)
        first = b"".join([b"%b: %b\r\n" % field for field in fields])
        if first.count(b"\n") != len(fields) or first.count(b"\r") != len(fields):
            raise ApplicationFault("a media type contains a line end")
        if OVERRIDABLE.isdisjoint(given):
            if len(_first_lines) >= TYPES_MAX:
                _first_lines.clear()
            _first_lines[key] = first
    if lines.count(b"\n") != len(own) or lines.count(b"\r") != len(own):
        raise ApplicationFault("a header field contains a line end")
    return first + lines


async def _send_reply(send: Send, reply: Reply, extra: Headers) -> int:
    given = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in reply.headers.items()]
    headers = [*extra, *_first_fields(reply), *given]
    body = reply.body
    if isinstance(body, bytes | bytearray | memoryview):
        await _send(send, reply.status, headers, bytes(body))
        return reply.status
    await _send_stream(send, reply.status, headers, body)
    return reply.status


async def _send_stream(send: Send, status: int, headers: Headers, body: AsyncIterator[bytes]) -> None:
    try:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        async for piece in body:
            if piece:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    finally:
        close: Any = getattr(body, "aclose", None)
        if close is not None:
            await close()


async def _send(send: Send, status: int, headers: Headers, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

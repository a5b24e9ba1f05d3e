"""From what a handler returned, or raised, to an ASGI answer.

One table of security headers for pages, one error shape for programs, one error page for people: a browser that asks for
`text/html` gets a page with the same facts. A stream that fails after its head was sent is cut, never ended as if
it were whole.
"""

import html
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

import msgspec

from fourplane.edge.asgi import Send
from fourplane.edge.http_answers import error_body, seconds_text
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
Headers = list[tuple[bytes, bytes]]
SendWhole = Callable[[bytes, bytes], None]

JSON_LINES = b"HTTP/1.1 200 OK\r\n" + b"".join(b"%b: %b\r\n" % field for field in JSON_HEADERS)

_encode = msgspec.json.Encoder().encode


def allow_hosts(hosts: Iterable[str]) -> None:
    """Let the pages of this process load from these hosts too; said once, by the gateway, before the first page."""
    PAGE_HEADERS[0] = (b"content-security-policy", content_security(tuple(hosts)).encode())


async def send_result(send: Send, result: object, extra: Headers, *, whole: SendWhole | None = None) -> int:
    """Send what a handler returned; the status that went out. `whole` is our own server's shorter way."""
    if result is None:
        await _send(send, 204, extra, b"")
        return 204
    if isinstance(result, Reply):
        return await _send_reply(send, result, extra)
    if whole is not None:
        whole(JSON_LINES + b"".join([b"%b: %b\r\n" % field for field in extra]), _encode(result))
    else:
        await _send(send, 200, [*JSON_HEADERS, *extra], _encode(result))
    return 200


async def send_error(send: Send, error: FourplaneError, extra: Headers, *, wants_page: bool) -> int:
    """Send what went wrong in the form the caller reads; the status that went out."""
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
        headers += [(b"content-type", b"text/html; charset=utf-8"), (b"cache-control", b"no-store"), *PAGE_HEADERS]
        await _send(send, status, headers, page)
    else:
        await _send(send, status, [*JSON_HEADERS, *headers], error_body(error.reason, error.public, error.fields))
    return status


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


async def _send_reply(send: Send, reply: Reply, extra: Headers) -> int:
    headers = list(extra)
    given = reply.headers
    if reply.media_type and "content-type" not in given and reply.status not in (204, 304):
        headers.append((b"content-type", reply.media_type.encode("latin-1")))
    if reply.media_type.startswith("text/html"):
        headers += [entry for entry in PAGE_HEADERS if entry[0].decode() not in given]
    else:
        headers.append((b"x-content-type-options", b"nosniff"))
    headers += encoded_headers(given)
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


def encoded_headers(headers: Mapping[str, str]) -> Headers:
    """Header fields as ASGI carries them."""
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


async def _send(send: Send, status: int, headers: Headers, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

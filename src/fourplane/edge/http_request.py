"""One request as the protocol read it, before any application looked at it."""

from collections.abc import Callable
from typing import Final

HotAnswer = bytes | tuple[bytes | memoryview, ...] | None
HotHandler = Callable[["HttpRequest"], HotAnswer]

HOST_BYTES: Final = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~:[]%!$&'()*+,;="
HOST_LENGTH_MAX: Final = 255


class BadTarget(Exception):
    """The request target has none of the four forms."""


class HttpRequest:
    """Method, target, headers (names in lower case) and, on a hot route, the whole body.

    Made once per request on the hottest path, so most fields are class attributes until something differs.
    """

    method = b""
    target = b""
    path = b""
    query = b""
    host: bytes | None = None
    hot: HotHandler | None = None
    body = b""
    remaining = 0  # bytes of a body with a length that have not come yet
    received = 0
    head_bytes = 0
    keep_alive = True
    connection_named = False
    chunked = False
    has_body = False
    http_1_0 = False
    expects_continue = False
    reading_paused = False
    upgrade: bytes | None = None

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.headers: list[tuple[bytes, bytes]] = []
        self.parts: list[bytes] = []

    def header(self, name: bytes) -> bytes | None:
        """The first field of this lower-case name."""
        for found, value in self.headers:
            if found == name:
                return value
        return None


def host_is_valid(value: bytes) -> bool:
    """Whether a Host value can be a host with an optional port (RFC 9110 7.2); an empty one is allowed there, not here."""
    return 0 < len(value) <= HOST_LENGTH_MAX and not value.translate(None, HOST_BYTES)


def split_target(method: bytes, target: bytes) -> tuple[bytes, bytes, bytes | None]:
    """Path, query and authority of a target in absolute or asterisk form."""
    if target == b"*":
        if method != b"OPTIONS":
            raise BadTarget("only OPTIONS asks about *")
        return b"*", b"", None
    if method == b"CONNECT":
        return b"", b"", None
    scheme, separator, rest = target.partition(b"://")
    if not separator or scheme.lower() not in (b"http", b"https"):
        raise BadTarget("the request target is not a path")
    authority, slash, path = rest.partition(b"/")
    if not slash:
        authority, mark, query = rest.partition(b"?")
        path, query = b"", query if mark else b""
    else:
        path, _, query = path.partition(b"?")
    if not host_is_valid(authority):
        raise BadTarget("the request target has no valid host")
    return b"/" + path, query, authority

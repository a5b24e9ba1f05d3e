"""One request as the protocol read it, before any application looked at it."""

import re
from collections.abc import Callable
from typing import Final

HotAnswer = bytes | tuple[bytes | memoryview, ...] | None
HotHandler = Callable[["HttpRequest"], HotAnswer]

HOST_BYTES: Final = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~:[]%!$&'()*+,;="
HOST_LENGTH_MAX: Final = 255
_NOT_PLAIN = rb"(?!(?i:host|connection|content-length|transfer-encoding|expect|upgrade):)"
_FIELD = (
    rb"(?:"
    + _NOT_PLAIN
    + rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[\t\x20-\x7e\x80-\xff]*+\r\n|(?i:connection): keep-alive\r\n)*+"
)
PLAIN_HEAD: Final = re.compile(
    rb"GET (/[!\"$-~]*+) HTTP/1\.1\r\n"
    + _FIELD
    + rb"(?i:host):[ \t]*+([-a-zA-Z0-9._~:\[\]%!$&'()*+,;=]{1,255}+)[ \t]*+\r\n"
    + _FIELD
    + rb"\r\n"
)


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
    raw = b""  # a whole plain head whose fields nobody has asked for yet
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
        self.fields: list[tuple[bytes, bytes]] = []
        self.parts: list[bytes] = []

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """All header fields in their order, names in lower case."""
        if self.raw:
            self.fields = [_field(line) for line in self.raw.split(b"\r\n")[1:-2]]
            self.raw = b""
        return self.fields

    def header(self, name: bytes) -> bytes | None:
        """The first field of this lower-case name."""
        for found, value in self.headers:
            if found == name:
                return value
        return None


def plain_request(data: bytes, peer: str) -> HttpRequest | None:
    """The request in `data` if that is exactly one plain GET; None when llhttp has to look.

    Accepts only what needs no second thought: the strict grammar, one valid Host, no body, no upgrade, no expectation, a
    connection that is kept. Fields are split when somebody asks for them.
    """
    found = PLAIN_HEAD.fullmatch(data)
    if found is None:
        return None
    request = HttpRequest(peer)
    request.method = b"GET"
    request.target, request.host = found.groups()
    request.path, _, request.query = request.target.partition(b"?")
    request.raw = data
    return request


def _field(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    return name.lower(), value.strip(b" \t")


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

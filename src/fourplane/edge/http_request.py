"""One request as the protocol read it, before any application looked at it."""

import re
from collections.abc import Callable
from typing import Final

HotAnswer = bytes | tuple[bytes | memoryview, ...] | None
HotHandler = Callable[["HttpRequest"], HotAnswer]

HOST_BYTES: Final = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~:[]%!$&'()*+,;="
HOST_LENGTH_MAX: Final = 255
_NOT_PLAIN = rb"(?!(?i:host|connection|content-length|transfer-encoding|expect|upgrade):)"
_FIELDS = (
    rb"(?:"
    + _NOT_PLAIN
    + rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[\t\x20-\x7e\x80-\xff]*+\r\n|(?i:connection): keep-alive\r\n)*+"
)
PLAIN_REST: Final = r"(?:\?[!\"$-~]*+)? HTTP/1\.1"  # of a first line behind its path
_TARGET = rb" (/[!\"$-~]*+) HTTP/1\.1\r\n"
_HOST = rb"(?i:host):[ \t]*+([-a-zA-Z0-9._~:\[\]%!$&'()*+,;=]{1,255}+)[ \t]*+\r\n"
_LENGTH = rb"(?i:content-length):[ \t]*+([0-9]{1,7}+)[ \t]*+\r\n"
_BLOCK = (  # the fields of a request that may have a body: host and length, or length and host
    _FIELDS
    + rb"(?:" + _HOST + _FIELDS + rb"(?:" + _LENGTH + _FIELDS + rb")?|" + _LENGTH + _FIELDS + _HOST + _FIELDS + rb")\r\n"
)  # fmt: skip
PLAIN_GET: Final = re.compile(rb"GET" + _TARGET + _FIELDS + _HOST + _FIELDS + rb"\r\n")
PLAIN_HEAD: Final = re.compile(rb"(POST|PUT|PATCH|DELETE)" + _TARGET + _BLOCK)
PLAIN_LINE: Final = re.compile(rb"(GET|POST|PUT|PATCH|DELETE)" + _TARGET.removesuffix(rb"\r\n"))
PLAIN_BLOCK: Final = re.compile(rb"\r\n" + _BLOCK)  # what follows a plain first line
GET: Final = b"GET"
FIRST_OF_GET: Final = GET[0]
MAY_BE_PLAIN: Final = frozenset(b"PD")  # how those methods begin
PLAIN_FIRST: Final = frozenset(b"GPD")


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
    host: bytes | None = None  # while the parser reads; `header(b"host")` always
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

    def texts(self) -> dict[str, str]:
        """All header fields as text, the last of each name; names in lower case."""
        if not self.raw:
            return {name.decode("latin-1"): value.decode("latin-1") for name, value in self.fields}
        found = {}
        for line in self.raw.decode("latin-1").split("\r\n")[1:-2]:
            name, _, value = line.partition(":")
            found[name.lower()] = value.strip(" \t")
        return found

    def header(self, name: bytes) -> bytes | None:
        """The first field of this lower-case name."""
        for found, value in self.headers:
            if found == name:
                return value
        return None


def plain_request(data: bytes, peer: str) -> HttpRequest | None:
    """The request in `data` if that is exactly one plain request; None when llhttp has to look.

    Accepts only what needs no second thought: the strict grammar, one valid Host, no body or one that lies here whole, no
    upgrade, no expectation, a connection that is kept. Fields are split when somebody asks for them.
    """
    found = PLAIN_GET.fullmatch(data)
    if found is not None:
        return made_request(data, GET, found[1], b"", peer)
    whole = plain_whole(data)
    return None if whole is None else made_request(data, *whole, peer)


def plain_whole(data: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Method, target and body of a plain POST, PUT, PATCH or DELETE that lies here whole."""
    found = PLAIN_HEAD.match(data)
    if found is None:
        return None
    end = found.end()
    if len(data) - end != int(found[4] or found[5] or 0):
        return None
    return found[1], found[2], data[end:]


def made_request(data: bytes, method: bytes, target: bytes, body: bytes, peer: str) -> HttpRequest:
    """The request of a plain head that was already matched; `data` begins with that head."""
    request = HttpRequest(peer)
    request.method = method
    request.target = target
    mark = target.find(b"?")
    if mark < 0:
        request.path = target
    else:
        request.path, request.query = target[:mark], target[mark + 1 :]
    if body:
        request.body = body
        request.raw = data[: -len(body)]
    else:
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

"""What a server owes beyond the grammar of HTTP/1.1: one valid Host, only `chunked`, known versions and expectations.

Each rule is a refusal with its status; the protocol ends the connection with it, because after a request that can be
read in two ways nothing on that connection can be trusted. Sources: RFC 9112 sections 2.5, 3.2, 6, RFC 9110 10.1.1.
"""

import re
from typing import Final

from fourplane.edge.http_request import HttpRequest, host_is_valid

SPECIAL: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect", b"upgrade", b"connection"})
EMPTY_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*\r\n", re.IGNORECASE)


class Refused(Exception):
    """Raised out of a parser callback: the request is wrong, the connection ends with this answer."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def note_special(request: HttpRequest, name: bytes, value: bytes) -> None:
    """Take one field of SPECIAL into account; raises Refused."""
    match name:
        case b"host":
            if request.host is not None:
                raise Refused(400, "host_twice", "a request has one Host")
            if not host_is_valid(value):
                raise Refused(400, "bad_host", "the Host is not a host")
            request.host = value
        case b"content-length":
            request.remaining = int(value)
            request.has_body = request.remaining > 0
        case b"transfer-encoding":
            if value.lower() != b"chunked":
                raise Refused(501, "transfer_coding", "only chunked is understood")
            request.has_body = request.chunked = True
        case b"expect":
            if value.lower() != b"100-continue":
                raise Refused(417, "expectation", "only 100-continue can be expected")
            request.expects_continue = True
        case b"connection":
            request.connection_named = True
        case _:
            request.upgrade = value.lower()


def check_version(request: HttpRequest, version: str) -> None:
    """Accept HTTP/1.1 and 1.0 and their differences; raises Refused."""
    if version == "1.1":
        return
    if version != "1.0":
        raise Refused(505, "http_version", "only HTTP/1.1 and HTTP/1.0 are spoken here")
    if request.chunked:
        raise Refused(400, "chunked_in_1_0", "HTTP/1.0 has no transfer codings")
    if request.upgrade is not None and request.has_body:
        raise Refused(400, "upgrade_with_body", "an upgrade carries no body")
    request.http_1_0 = True
    request.expects_continue = False
    request.upgrade = None
